package kube

import "fmt"

// odd is a pod of which not everything can be as it asks: an annotation of it
// does not parse. Beside it is one that is not in the mesh.
const odd = `
apiVersion: v1
kind: Pod
metadata:
  name: odd
  namespace: %[1]s
  annotations: {tacit.mesh/skip-inbound-ports: "8080", tacit.mesh/skip-outbound-ports: "7000,none"}
spec:
  nodeName: %[2]s
  terminationGracePeriodSeconds: 1
  containers: [{name: app, image: %[3]q, args: [serve], readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: %[1]s, labels: {tacit.mesh/dataplane: disabled}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: app, image: %[3]q}]
`

// What is wrong with a pod its owner is told, the rest of what it asks for is in
// force, and the pods beside it notice nothing: neither of what it gets after it
// was captured, nor of the end of its network under it.
func faults(e environment) {
	if !e.Ours() {
		e.t.Skip("changes networks of pods: only on a cluster made here")
	}
	const namespace = "faults"
	e.newNamespace(namespace, inMesh())
	e.must(e.Apply(e.ctx, fmt.Sprintf(requireTLS, namespace)))
	e.serve(namespace, "shop")
	web := e.load(namespace, "web", "shop."+namespace)
	nodes, err := e.NodeNames(e.ctx)
	e.must(err)
	image, err := e.AppImage(e.ctx)
	e.must(err)
	e.must(e.Apply(e.ctx, fmt.Sprintf(odd, namespace, nodes[0], image)))
	e.must(e.AwaitPod(e.ctx, namespace, "plain"))
	e.must(e.AwaitPod(e.ctx, namespace, "odd"))
	e.awaitEvent(namespace, `pod annotation tacit.mesh/skip-outbound-ports: port list "7000,none": "none" is not a port`)
	first := e.oddIsCaptured(web, "")

	// As plugins do that attach further interfaces after the first.
	e.toPodAt(nodes[0], first, `in="nsenter --net=$pod"
$in ip link add net1 type veth peer name net2
$in ip address add 198.51.100.1/24 dev net1
$in ip link set net1 up`)
	e.awaitEvent(namespace, "further addresses: 198.51.100.1")

	e.toPodAt(nodes[0], first, `inode=$(stat -Lc %i "$pod")
umount -l "$pod"
rm "$pod"
for process in /proc/[0-9]*; do
  [ "$(stat -Lc %i $process/ns/net)" != "$inode" ] || kill -9 "${process#/proc/}"
done 2>/dev/null || true`)
	e.oddIsCaptured(web, first)
	web.progress()
	web.wantNoFailure("pods beside those with faults")
}

// oddIsCaptured waits until the pod has another address than before, if it is to
// have another, lets nobody in there who is not in the mesh but where it skips a
// port, and is reached from the mesh. It returns the address.
func (e environment) oddIsCaptured(from clients, before string) (address string) {
	e.t.Helper()
	e.eventually("the pod has an address", func() error {
		addresses, err := e.PodAddresses(e.ctx, from.namespace, "odd")
		if err == nil && (len(addresses) != 2 || addresses[0] == before) {
			err = fmt.Errorf("it has %v", addresses)
		}
		if err == nil {
			address = addresses[0]
		}
		return err
	})
	e.eventually("it skips one port for who is not in the mesh", func() error { return e.get(from.namespace, "plain", urls(8080, address)[0]) })
	e.eventually("it is reached from the mesh", func() error { return e.exchange(from.namespace, from.pods()[0], address) })
	if e.exchange(from.namespace, "plain", address) == nil {
		e.t.Error("a connection in clear was let in under STRICT, to a port that is not skipped")
	}
	return address
}

// toPodAt runs a script on a node that knows as $pod the network namespace in which
// an address is.
func (e environment) toPodAt(node, address, script string) {
	e.t.Helper()
	_, err := e.Node(node).Run(e.ctx, "bash", "-ec", `
for pod in /run/netns/*; do
  ! nsenter --net="$pod" ip -oneline address | grep -qF " $1/" || { pod=$pod exec bash -ec "$2"; }
done
exit 1`, "bash", address, script)
	e.must(err)
}
