//go:build race

package hostile

// memory is by how much an attack may make a proxy grow, in bytes. The race
// detector takes several times what the program does.
const memory = 5 * 150 << 20
