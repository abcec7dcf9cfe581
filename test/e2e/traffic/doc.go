// Package traffic tests what connections through the mesh do: every path that they may
// take, and that bytes, closes, resets and addresses arrive as they were sent.
// What does not belong here: who may connect, and programs that die.
package traffic
