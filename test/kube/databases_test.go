package kube

import "fmt"

// These make a container's files those of the node, which are those of this
// machine: its programs are in no image.
const (
	machineMounts = `{name: usr, mountPath: /usr, readOnly: true}, {name: bin, mountPath: /bin, readOnly: true},
          {name: lib, mountPath: /lib, readOnly: true}, {name: lib64, mountPath: /lib64, readOnly: true},
          {name: alternatives, mountPath: /etc/alternatives, readOnly: true}, {name: passwd, mountPath: /etc/passwd, readOnly: true},
          {name: data, mountPath: /tmp}`
	machineVolumes = `{name: usr, hostPath: {path: /usr}}, {name: bin, hostPath: {path: /bin}}, {name: lib, hostPath: {path: /lib}},
        {name: lib64, hostPath: {path: /lib64}}, {name: alternatives, hostPath: {path: /etc/alternatives}},
        {name: passwd, hostPath: {path: /etc/passwd}}, {name: data, emptyDir: {}}`
)

// database is a database in one container, its annotations those of a user of
// another mesh, and a server of [load] in another.
const database = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  selector: {matchLabels: {app: %[2]s}}
  template:
    metadata: {labels: {app: %[2]s}, annotations: {%[3]s: "%[4]d"}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: database
        image: %[5]q
        command: [/bin/sh, -ec, %[6]q]
        securityContext: {runAsUser: 65534, runAsGroup: 65534}
        readinessProbe: {tcpSocket: {port: %[4]d}, periodSeconds: 1}
        volumeMounts: [` + machineMounts + `]
      - {name: app, image: %[5]q, args: [serve]}
      volumes: [` + machineVolumes + `]
---
apiVersion: v1
kind: Service
metadata: {name: %[2]s, namespace: %[1]s}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: %[2]s}, ports: [{name: database, port: %[4]d}, {name: echo, port: 7000}, {name: web, port: 8080}]}
`

const (
	runPostgres = `PATH=$(echo /usr/lib/postgresql/*/bin | tr ' ' ':'):$PATH
initdb --pgdata=/tmp/data --username=postgres --auth=trust --no-sync >/dev/null
printf 'host all all all trust\n' >>/tmp/data/pg_hba.conf
exec postgres -D /tmp/data -c listen_addresses='*' -c unix_socket_directories=/tmp -c fsync=off -c shared_buffers=16MB`
	runRedis = `exec redis-server --port 6379 --bind '*' '-::*' --protected-mode no --save '' --dir /tmp`
)

// databaseClient has the databases' own programs, and whatever annotations it is given.
const databaseClient = `
apiVersion: v1
kind: Pod
metadata: {name: %[2]s, namespace: %[1]s, annotations: {%[3]s}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    image: %[4]q
    volumeMounts: [` + machineMounts + `]
  volumes: [` + machineVolumes + `]
`

// PostgreSQL and Redis keep out of the mesh by the annotations that users of
// Linkerd and Istio have on them and on their clients, as these stand, and all
// other ports of the same pods stay in it.
func databases(e environment) {
	if !e.Ours() {
		e.t.Skip("runs databases of this machine: only on a cluster made here")
	}
	const namespace = "databases"
	e.newNamespace(namespace, inMesh())
	e.must(e.Apply(e.ctx, fmt.Sprintf(requireTLS, namespace)))
	image, err := e.AppImage(e.ctx)
	e.must(err)
	e.must(e.Apply(e.ctx, fmt.Sprintf(database, namespace, "postgres", "config.linkerd.io/skip-inbound-ports", 5432, image, runPostgres)))
	e.must(e.Apply(e.ctx, fmt.Sprintf(database, namespace, "redis", "traffic.sidecar.istio.io/excludeInboundPorts", 6379, image, runRedis)))
	clients := []struct{ namespace, name, annotations string }{
		{namespace, "linkerd", `config.linkerd.io/skip-outbound-ports: "5432,6379"`},
		{namespace, "istio", `traffic.sidecar.istio.io/excludeOutboundPorts: "5432,6379"`},
		{namespace, "unaware", ""},
		{"default", "outside", ""},
	}
	for _, c := range clients {
		e.must(e.Apply(e.ctx, fmt.Sprintf(databaseClient, c.namespace, c.name, c.annotations, image)))
	}
	e.atEnd(func(e environment) error { return e.Delete(e.ctx, "v1", "Pod", "default", "outside") })
	for _, name := range []string{"postgres", "redis"} {
		e.must(e.AwaitDeployment(e.ctx, namespace, name))
	}
	for _, c := range clients {
		e.must(e.AwaitPod(e.ctx, c.namespace, c.name))
	}
	e.awaitCapture(namespace, true)

	before, err := e.encrypted(namespace)
	e.must(err)
	for _, c := range clients {
		e.useDatabases(c.namespace, c.name, namespace)
	}
	if now, err := e.encrypted(namespace); err != nil || now != before {
		e.t.Errorf("%v connections to skipped ports went over mutual TLS, error %v", now-before, err)
	}
	for _, c := range clients {
		opened, err := e.metric("tacit-proxy", "15020", "istio_tcp_connections_opened_total", "reporter=source",
			"source_workload_namespace="+namespace, "source_workload="+c.name)
		// Whoever skips nothing on the way out goes through its node's proxy.
		if expected := c.name == "unaware"; err != nil || (opened > 0) != expected {
			e.t.Errorf("%v connections of %s went through a proxy, error %v", opened, c.name, err)
		}
	}
	for _, name := range []string{"postgres", "redis"} {
		host := name + "." + namespace
		e.must(e.exchange(namespace, "unaware", host))
		e.wantDenied(e.exchange("default", "outside", host))
	}
	e.eventually("connections to other ports are counted", func() error {
		now, err := e.encrypted(namespace)
		if err == nil && now-before != 2 {
			err = fmt.Errorf("of two %v went over mutual TLS", now-before)
		}
		return err
	})
}

// useDatabases works with both databases from a pod.
func (e environment) useDatabases(namespace, pod, databases string) {
	e.t.Helper()
	script := fmt.Sprintf(`
PATH=$(echo /usr/lib/postgresql/*/bin | tr ' ' ':'):$PATH
export PGHOST=postgres.%[1]s PGUSER=postgres PGDATABASE=postgres
pgbench --initialize --quiet >/dev/null 2>&1
pgbench --no-vacuum --connect --client 2 --transactions 20 >/dev/null 2>&1
psql -Atc 'select count(*) from pgbench_history'
redis-benchmark -h redis.%[1]s -q -n 500 -c 5 -t set,get >/dev/null
redis-cli -h redis.%[1]s get key:__rand_int__ | wc -c`, databases)
	e.eventually(pod+" uses both databases", func() error { // as soon as their services are everywhere
		out, err := e.Exec(e.ctx, namespace, pod, "/bin/bash", "-ec", script)
		if want := "40\n4\n"; err == nil && out != want {
			err = fmt.Errorf("%q, want %q", out, want)
		}
		return err
	})
}
