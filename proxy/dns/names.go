package dns

import (
	"iter"
	"strings"
)

// Zone is where the services of a cluster have their names.
type Zone struct {
	domain   string // "cluster.local"
	services string // "svc.cluster.local"
}

// NewZone is the zone of a cluster with this domain, such as "cluster.local".
func NewZone(domain string) Zone {
	domain = strings.ToLower(strings.Trim(domain, "."))
	return Zone{domain: domain, services: "svc." + domain}
}

// candidate is a name that may be meant by the one that was asked for.
type candidate struct {
	name string
	// stripped is the name asked for without the search domain that a
	// resolver has put behind it; empty if there is none.
	stripped string
}

// candidates are what a pod of the namespace may mean by a name (lower case,
// without the last dot), the likeliest first: the name itself, what it is an
// abbreviation of, and the same without each of the search domains that
// Kubernetes gives to pods.
func (z Zone) candidates(name, namespace string) iter.Seq[candidate] {
	return func(yield func(candidate) bool) {
		if !yield(candidate{name: name}) {
			return
		}
		for full := range z.expansions(name, namespace) {
			if !yield(candidate{name: full}) {
				return
			}
		}
		for _, search := range []string{namespace + "." + z.services, z.services, z.domain} {
			stripped, ok := strings.CutSuffix(name, "."+search)
			if !ok || stripped == "" {
				continue
			}
			if !yield(candidate{stripped, stripped}) {
				return
			}
			for full := range z.expansions(stripped, namespace) {
				if !yield(candidate{full, stripped}) {
					return
				}
			}
		}
	}
}

// expansions are the full names of which this one may be the beginning:
// SERVICE.NAMESPACE.svc.DOMAIN, or HOST.SERVICE.NAMESPACE.svc.DOMAIN.
func (z Zone) expansions(name, namespace string) iter.Seq[string] {
	return func(yield func(string) bool) {
		inSvc := strings.HasSuffix(name, ".svc")
		switch labels := strings.Count(name, ".") + 1; {
		case labels == 1:
			yield(name + "." + namespace + "." + z.services)
		case labels == 2:
			_ = yield(name+"."+z.services) && yield(name+"."+namespace+"."+z.services)
		case labels == 3:
			_ = (!inSvc || yield(name+"."+z.domain)) && yield(name+"."+z.services)
		case labels == 4 && inSvc:
			yield(name + "." + z.domain)
		}
	}
}

// patterns are the hostnames that cover a name: itself, and the wildcards of
// every domain above it, the nearest first.
func patterns(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		if !yield(name) {
			return
		}
		for {
			_, above, ok := strings.Cut(name, ".")
			if !ok || !yield("*."+above) {
				return
			}
			name = above
		}
	}
}

// has reports whether a hostname is one of the cluster's services.
func (z Zone) has(hostname string) bool { return strings.HasSuffix(hostname, "."+z.services) }
