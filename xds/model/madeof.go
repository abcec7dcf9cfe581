package model

import "strings"

// The names of policies that are made of other objects. No object of Kubernetes
// can have such a name. Istio's ambient control plane sends converted
// PeerAuthentications under the first two.
const (
	StaticStrictName     = "istio_converted_static_strict"
	PeerAuthenticationOf = "converted_peer_authentication_" // and the object's name
	RevokedIdentityOf    = "revoked_identity_"              // and the object's name
	RevokedIdentityToOf  = "revoked_identity_to_"           // and the object's name
)

// MadeOfPeerAuthentications reports whether a policy of that name demands mTLS,
// and says nothing of who may call.
func MadeOfPeerAuthentications(name string) bool {
	return name == StaticStrictName || strings.HasPrefix(name, PeerAuthenticationOf)
}

// MadeOfRevokedIdentity reports whether a policy of that name denies an identity
// that was revoked.
func MadeOfRevokedIdentity(name string) bool { return strings.HasPrefix(name, RevokedIdentityOf) }
