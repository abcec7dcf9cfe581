// Package images says what is in the images of the programs. The Dockerfile,
// the chart and the tests on a cluster are held to it.
//
// What does not belong here: building programs and talking to registries.
package images

// Image is one container image: static programs, and nothing else unless
// Userland says so.
type Image struct {
	Name     string // of the image, and of its stage in the Dockerfile
	Programs []Program
	// Userland is whether what userland.sh copies is in it, too.
	Userland   bool
	User       string // "UID:GID"
	Entrypoint string
}

// Program is one of this module's, built with CGO_ENABLED=0.
type Program struct {
	Package string // below the module, such as "cmd/tacitd"
	Tags    string // for go build -tags; may be empty
	Path    string // in the image
}

// UserlandScript is the program, by its path in the repository, that copies
// iptables, nft and their libraries into a directory: the root of an image.
const UserlandScript = "deploy/images/userland.sh"

// ProxyUID is the user that the proxy runs as, and by which the agent knows it.
const ProxyUID = 13371

// tagInPod leaves out of tacit what is of no use in a pod: all that talks to
// the Kubernetes API.
const tagInPod = "inpod"

const bin = "/usr/local/bin/"

// All lists every image.
func All() []Image {
	return []Image{
		{
			Name: "tacit-proxy",
			Programs: []Program{
				{Package: "cmd/tacit-proxy", Path: bin + "tacit-proxy"},
				{Package: "cmd/tacit", Tags: tagInPod, Path: bin + "tacit"},
			},
			User: "13371:13371", Entrypoint: bin + "tacit-proxy",
		},
		{
			Name:     "tacit-agent",
			Programs: []Program{{Package: "cmd/tacit-agent", Path: bin + "tacit-agent"}, {Package: "cmd/tacit-cni", Path: bin + "tacit-cni"}},
			Userland: true,
			User:     "0:0", Entrypoint: bin + "tacit-agent",
		},
		{
			Name:     "tacitd",
			Programs: []Program{{Package: "cmd/tacitd", Path: bin + "tacitd"}},
			User:     "13372:13372", Entrypoint: bin + "tacitd",
		},
		{
			Name:     "tacit",
			Programs: []Program{{Package: "cmd/tacit", Path: bin + "tacit"}},
			User:     "13372:13372", Entrypoint: bin + "tacit",
		},
	}
}
