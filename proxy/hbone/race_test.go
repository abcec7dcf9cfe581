//go:build race

package hbone

const raceDetector = true
