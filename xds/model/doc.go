// Package model holds the mesh as pure values: identities, workloads,
// services, policies, and the immutable [Snapshot] that joins them.
//
// Everything else translates to or from these values. Nothing here reads a
// wire format, a clock, a file or the network, and nothing imports another
// package of this module. Values inside a Snapshot are shared between
// goroutines and must never be written to.
package model
