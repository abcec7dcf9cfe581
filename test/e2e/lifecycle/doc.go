// Package lifecycle tests what becomes of connections when programs, pods and rules come
// and go: killed and rolled proxies and agents, enrolment, drift, cleanup. What
// does not belong here: policies, and peers that attack.
package lifecycle
