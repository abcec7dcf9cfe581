// Package ca is the schema of Istio's certificate service (istio.v1.auth).
// Generated; no code of ours belongs here.
package ca
