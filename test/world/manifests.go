package world

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// object is one Kubernetes object, as its text.
type object struct {
	kind, namespace, name string
	text                  []byte
	pod                   *corev1.Pod
	service               *corev1.Service
	config                *corev1.ConfigMap
}

func (o object) key() string {
	return objectKey(o.kind, strings.TrimPrefix(o.namespace+"/"+o.name, "/"))
}

func objectKey(kind, name string) string { return strings.ToLower(kind) + "/" + name }

func fileName(key string) string { return strings.ReplaceAll(key, "/", "-") + ".yaml" }

// manifests is a directory with one object a file, and what is in it.
type manifests struct {
	dir string

	mu      sync.Mutex
	objects map[string]object
}

func copyManifests(from, to string) (*manifests, error) {
	m := &manifests{dir: to, objects: map[string]object{}}
	entries, err := os.ReadDir(from)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); e.IsDir() || ext != ".yaml" && ext != ".yml" {
			continue
		}
		data, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			return nil, err
		}
		objects, err := parseManifests(e.Name(), data)
		if err != nil {
			return nil, err
		}
		for _, o := range objects {
			m.set(o)
			if err := m.write(o); err != nil {
				return nil, err
			}
		}
	}
	return m, nil
}

func parseManifests(name string, data []byte) ([]object, error) {
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	var out []object
	for {
		text, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		o, err := parseObject(text)
		if err != nil {
			return nil, fmt.Errorf("%s: object %d: %w", name, len(out)+1, err)
		}
		if o.kind != "" { // not only comments
			out = append(out, o)
		}
	}
}

func parseObject(text []byte) (object, error) {
	var head struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata"`
	}
	if err := yaml.Unmarshal(text, &head); err != nil {
		return object{}, err
	}
	o := object{kind: head.Kind, namespace: head.Namespace, name: head.Name, text: text}
	var into any
	switch head.Kind {
	case "Pod":
		o.pod = new(corev1.Pod)
		into = o.pod
	case "Service":
		o.service = new(corev1.Service)
		into = o.service
	case "ConfigMap":
		o.config = new(corev1.ConfigMap)
		into = o.config
	default:
		return o, nil // for others to read
	}
	if head.Namespace == "" || head.Name == "" {
		return object{}, fmt.Errorf("%s: metadata.namespace and metadata.name must be set", head.Kind)
	}
	return o, yaml.UnmarshalStrict(text, into)
}

func (m *manifests) set(o object) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects[o.key()] = o
}

// write puts an object's file in place of an older one, at once.
func (m *manifests) write(o object) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	file := fileName(o.key())
	temporary := filepath.Join(m.dir, "."+file+".new") // not a .yaml: nobody reads it
	if err := os.WriteFile(temporary, o.text, 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(m.dir, file))
}

func (m *manifests) remove(kind, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := objectKey(kind, name)
	delete(m.objects, key)
	return os.Remove(filepath.Join(m.dir, fileName(key)))
}

// pods are those that have a node, by "NAMESPACE/NAME".
func (m *manifests) pods() map[string]*corev1.Pod {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]*corev1.Pod{}
	for _, o := range m.objects {
		if o.pod != nil && o.pod.Spec.NodeName != "" {
			out[o.namespace+"/"+o.name] = o.pod
		}
	}
	return out
}

func (m *manifests) services() []*corev1.Service {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*corev1.Service
	for _, key := range slices.Sorted(maps.Keys(m.objects)) {
		if s := m.objects[key].service; s != nil {
			out = append(out, s)
		}
	}
	return out
}

func (m *manifests) configMap(namespace, name string) *corev1.ConfigMap {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.objects[objectKey("ConfigMap", namespace+"/"+name)].config
}

func nodeNames(pods map[string]*corev1.Pod) []string {
	names := map[string]bool{}
	for _, p := range pods {
		names[p.Spec.NodeName] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// addressesOf are a service's addresses: its own or, if it is headless, those
// of the pods that it selects.
func addressesOf(s *corev1.Service, pods []*Pod) []string {
	ips := s.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{s.Spec.ClusterIP}
	}
	if ips[0] != corev1.ClusterIPNone {
		return slices.DeleteFunc(slices.Clone(ips), func(ip string) bool { return ip == "" })
	}
	var out []string
	selector := labels.SelectorFromSet(s.Spec.Selector)
	for _, p := range pods {
		if p.object.Namespace == s.Namespace && len(s.Spec.Selector) > 0 && selector.Matches(labels.Set(p.object.Labels)) {
			for _, a := range p.Addresses {
				out = append(out, a.String())
			}
		}
	}
	return out
}
