//go:build !race

package hbone

const raceDetector = false
