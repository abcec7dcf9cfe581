//go:build !race

package hostile

// memory is by how much an attack may make a proxy grow, in bytes.
const memory = 150 << 20
