// Package wire translates between the model and the resources that travel
// over xDS: Istio's workload discovery service, and our own messages in its
// extension fields. Both directions stand side by side.
//
// Decoding is strict. A workload or service with a number out of its range or
// an address of a wrong length is an error; fields unknown to this version
// are ignored there, but in a policy, at any level, they make that level
// unknown, so that it errs on the closed side. So does a waypoint that cannot
// be read: what is behind it is known, and not to be reached. What does not belong here:
// connections, versions, and what a resource means.
package wire

import (
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tacit-mesh/tacit/xds/api/workload"
)

// The types of resources, by their type URLs. An Address is a workload, named
// by its UID, or a service, named by its key; an Authorization is a policy,
// named by its key.
const (
	AddressType       = "type.googleapis.com/istio.workload.Address"
	AuthorizationType = "type.googleapis.com/istio.security.Authorization"
)

// partial ends the system_version_info of a response that others complete.
const partial = " partial"

// VersionInfo is the system_version_info of a response: the generation of the
// mesh that it belongs to, and whether more responses follow that bring the
// rest of what is new in it. A proxy that understands this applies them as one
// change, so that it never decides by policies of one generation and workloads
// of another.
func VersionInfo(generation uint64, more bool) string {
	info := strconv.FormatUint(generation, 10)
	if more {
		return info + partial
	}
	return info
}

// MoreFollows reads [VersionInfo]. Other control planes' responses each stand
// for themselves.
func MoreFollows(versionInfo string) bool { return strings.HasSuffix(versionInfo, partial) }

// IsGeneration reports whether a response is one with [VersionInfo], of a control
// plane that says of its own accord when a name on demand stands for something
// else.
func IsGeneration(versionInfo string) bool {
	_, err := strconv.ParseUint(strings.TrimSuffix(versionInfo, partial), 10, 64)
	return err == nil
}

// findExtension reads the extension of that name, if there is one, into out.
func findExtension(list []*workload.Extension, name string, out proto.Message) error {
	for _, e := range list {
		if e.GetName() != name {
			continue
		}
		if err := e.GetConfig().UnmarshalTo(out); err != nil {
			return fmt.Errorf("extension %s: %w", name, err)
		}
	}
	return nil
}

// pack marshals deterministically: equal resources have equal bytes, so that
// a version can be a hash of them.
func pack(m proto.Message) (*anypb.Any, error) {
	out := new(anypb.Any)
	if err := anypb.MarshalFrom(out, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		return nil, err
	}
	return out, nil
}
