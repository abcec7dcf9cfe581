package world

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/tacit-mesh/tacit/redirect/netns"
)

// StartApps starts the programs of every pod that has none running yet, as
// its manifest says: each container's command and arguments, environment,
// user, and its emptyDir and configMap volumes. The image is the machine.
// Containers without a command are left out. It waits until each TCP port
// that a container declares is listened on.
func (w *World) StartApps(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for _, pod := range w.Pods() {
		if err := w.startPod(pod); err != nil {
			return fmt.Errorf("pod %s: %w", pod.Key, err)
		}
	}
	for _, pod := range w.Pods() {
		for i, app := range pod.Apps() {
			for _, port := range pod.containers()[i].Ports {
				if port.Protocol != "" && port.Protocol != corev1.ProtocolTCP {
					continue
				}
				if err := app.ready(ctx, func() error { return pod.listens(int(port.ContainerPort)) }); err != nil {
					return fmt.Errorf("pod %s: %w", pod.Key, err)
				}
			}
		}
	}
	return nil
}

// Apps are the pod's running programs, one per container with a command.
func (p *Pod) Apps() []*Program {
	p.Node.world.mu.Lock()
	defer p.Node.world.mu.Unlock()
	return p.apps
}

// containers are those that can be run here.
func (p *Pod) containers() []corev1.Container {
	var out []corev1.Container
	for _, c := range p.object.Spec.Containers {
		if len(c.Command) > 0 {
			out = append(out, c)
		}
	}
	return out
}

func (w *World) startPod(pod *Pod) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(pod.apps) > 0 {
		return nil
	}
	for _, c := range pod.containers() {
		spec, err := w.containerSpec(pod, c)
		if err != nil {
			return fmt.Errorf("container %s: %w", c.Name, err)
		}
		name := strings.ReplaceAll(pod.Key, "/", "_") + "-" + c.Name
		app, err := w.start(name, spec, c.Command[0], append(c.Command[1:len(c.Command):len(c.Command)], c.Args...)...)
		if err != nil {
			return err
		}
		pod.apps = append(pod.apps, app)
	}
	return nil
}

func (w *World) containerSpec(pod *Pod, c corev1.Container) (execSpec, error) {
	spec := pod.spec()
	spec.Dir = c.WorkingDir
	for _, e := range c.Env {
		spec.Env = append(spec.Env, e.Name+"="+e.Value)
	}
	if s := c.SecurityContext; s != nil && s.RunAsUser != nil {
		spec.User, spec.Group = int(*s.RunAsUser), int(*s.RunAsUser)
		if s.RunAsGroup != nil {
			spec.Group = int(*s.RunAsGroup)
		}
	}
	for _, m := range c.VolumeMounts {
		from, err := w.volume(pod, m.Name)
		if err != nil {
			return spec, err
		}
		spec.Mounts = append(spec.Mounts, mount{from, m.MountPath})
	}
	return spec, nil
}

// volume makes the directory behind a volume of the pod.
func (w *World) volume(pod *Pod, name string) (string, error) {
	dir := filepath.Join(pod.dir, "volumes", name)
	for _, v := range pod.object.Spec.Volumes {
		if v.Name != name {
			continue
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
		switch {
		case v.EmptyDir != nil:
			return dir, os.Chmod(dir, 0o1777) // for any user; no umask in the way
		case v.ConfigMap != nil:
			return dir, w.writeConfigMap(pod.object.Namespace, v.ConfigMap.Name, dir)
		}
		return "", fmt.Errorf("volume %s: only emptyDir and configMap are understood here", name)
	}
	return "", fmt.Errorf("volume %s is not in spec.volumes", name)
}

func (w *World) writeConfigMap(namespace, name, dir string) error {
	config := w.manifests.configMap(namespace, name)
	if config == nil {
		return fmt.Errorf("no ConfigMap %s/%s", namespace, name)
	}
	for file, text := range config.Data {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// listens looks for a listening socket in the pod's own tables: connecting
// would already be traffic.
func (p *Pod) listens(port int) error {
	return p.Do(func() error {
		for _, table := range []string{"tcp", "tcp6"} {
			data, err := os.ReadFile("/proc/thread-self/net/" + table)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			for line := range strings.Lines(string(data)) {
				// sl, local address, remote address, state; 0A is LISTEN
				f := strings.Fields(line)
				if len(f) > 3 && f[3] == "0A" && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
					return nil
				}
			}
		}
		return fmt.Errorf("nothing listens on port %d", port)
	})
}

// leftovers names processes in the world's namespaces, all of which should
// have ended by now. The caller holds w.mu.
func (w *World) leftovers() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	ours := map[netns.ID]string{}
	note := func(name string, n *namespace) {
		if n != nil {
			ours[n.ID()] = name
		}
	}
	note("the backbone", w.backbone)
	for _, node := range w.nodes {
		note("node "+node.Name, node.netns)
	}
	for _, pod := range w.pods {
		if !pod.object.Spec.HostNetwork {
			note("pod "+pod.Key, pod.netns)
		}
	}
	if err := Poll(ctx, func() error { return processesIn(ours) }); err != nil {
		return fmt.Errorf("left over: %w", err)
	}
	return nil
}

// processesIn fails with the processes whose network namespace is one of
// these. A process that is only a zombie has none.
func processesIn(namespaces map[netns.ID]string) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	var found error
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(filepath.Join("/proc", e.Name(), "ns/net"), &st) != nil {
			continue // it has ended
		}
		if where, ok := namespaces[netns.ID{Dev: st.Dev, Inode: st.Ino}]; ok {
			name, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
			found = errors.Join(found, fmt.Errorf("process %d (%s) in %s", pid, strings.TrimSpace(string(name)), where))
		}
	}
	return found
}
