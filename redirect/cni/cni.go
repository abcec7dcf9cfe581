// Package cni is the agent's side of the CNI plugin tacit-cni: installing it
// and answering it.
//
// The plugin runs when a pod's network namespace is complete and before its
// first container starts; for a pod that is enrolled it waits until the agent
// has captured it. What does not belong here: the plugin itself
// (redirect/cni/plugin), and how a pod is captured.
package cni

import (
	"errors"
	"net/netip"
	"path/filepath"
	"time"
)

// Type is the plugin's name, in configurations and as a file.
const Type = "tacit-cni"

// Config is the plugin's entry in a network configuration. Paths are the
// node's own.
type Config struct {
	Type   string `json:"type"`
	Socket string `json:"socket"` // of the agent
	// SkipNamespaces are those whose pods never wait: the agent and what it
	// needs must be able to start without it.
	SkipNamespaces []string `json:"skipNamespaces"`
	// TimeoutSeconds is how long an enrolled pod waits for the agent.
	TimeoutSeconds int `json:"timeoutSeconds"`
}

// Files beside the plugin's binary, for when the agent does not answer: root
// alone may read them.
const (
	stateDir       = "." + Type
	kubeconfigFile = "kubeconfig"
	enrolledFile   = "enrolled"
)

// Kubeconfig is the path of the file by which the plugin reaches the API, for
// the directory of its binary.
func Kubeconfig(binDir string) string { return filepath.Join(binDir, stateDir, kubeconfigFile) }

// EnrolledFile is the path of the list of enrolled namespaces, an [Enrolled].
func EnrolledFile(binDir string) string { return filepath.Join(binDir, stateDir, enrolledFile) }

// Enrolled is what the agent keeps for the plugin: namespaces whose label asks
// for capture, as last seen.
type Enrolled struct {
	Namespaces []string `json:"namespaces"`
}

// Attachment is a pod's network, as the plugin finds it.
type Attachment struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	UID       string `json:"uid,omitempty"` // by which the container runtime knows the pod
	Container string `json:"container"`     // by which it knows the sandbox
	NetNS     string `json:"netns"`         // path on the node
	// NetNSDevice and NetNSInode tell which namespace that is, wherever its
	// path leads for somebody else.
	NetNSDevice uint64        `json:"netnsDevice"`
	NetNSInode  uint64        `json:"netnsInode"`
	Addresses   []netip.Addr  `json:"addresses"`
	Timeout     time.Duration `json:"timeout"` // for the answer
}

// Answer is the agent's.
type Answer struct {
	Enrolled bool `json:"enrolled"`
	// Error is why an enrolled pod is not captured; empty if it is.
	Error string `json:"error,omitempty"`
}

// Paths of the requests: POST with an Attachment.
const (
	PathAdd   = "/v1/add"
	PathCheck = "/v1/check"
	PathDel   = "/v1/del"
)

// ErrNotReady says that the agent cannot tell yet which pods are enrolled.
var ErrNotReady = errors.New("the agent does not know its pods yet")
