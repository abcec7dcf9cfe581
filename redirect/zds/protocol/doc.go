// Package protocol is the messages between Istio's CNI agent and who has the
// part of ztunnel. What does not belong here: any code.
package protocol
