package model

import "time"

// RateLimit bounds what workloads are asked to do.
type RateLimit struct {
	Limits []Limit
	// Store shares the counts between nodes; nil: each node counts for itself.
	Store *LimitStore
}

// Limit is one bound. It holds for what any of its rules matches; without
// rules, for everything.
type Limit struct {
	Rules    []Rule
	Unit     LimitUnit
	Amount   uint64        // above 0, in Interval
	Interval time.Duration // above 0
	Burst    uint64        // how much at once; at least 1
	// Per says whose counts are apart from others'. Key is the name of the
	// header, or the path of the claim, "a.b" for a nested one.
	Per LimitKey
	Key string
	// PerWorkload says that each destination counts for itself, too.
	PerWorkload bool
}

// LimitUnit is what a limit counts.
type LimitUnit uint8

// The units. Bytes are those of both directions.
const (
	LimitRequests LimitUnit = iota
	LimitConnections
	LimitBytes
)

// LimitKey is what counts are kept apart by.
type LimitKey uint8

// The keys. Whoever lacks what a key names counts under the empty value,
// together with everybody else who does.
const (
	LimitTotal LimitKey = iota
	LimitPerIdentity
	LimitPerClaim
	LimitPerHeader
)

// LimitStore is a Redis that all nodes count in.
type LimitStore struct {
	Host       string
	Port       uint16
	TLS        bool
	ServerName string // empty: Host
	Roots      string // PEM; empty: the system's
}
