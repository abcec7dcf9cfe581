package lifecycle

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tacit-mesh/tacit/test/e2e"
	"github.com/tacit-mesh/tacit/test/world"
)

// status reads /proc/PID/status.
func status(t *testing.T, pid int) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.Fields(value)
	}
	return fields
}

// The running proxy has no privilege at all, and nobody but root can look
// into it.
func TestPrivileges(t *testing.T) {
	wantUnprivileged(t, e2e.Start(t))
}

func wantUnprivileged(t *testing.T, m *e2e.Mesh) {
	t.Helper()
	for _, node := range m.Nodes() {
		pid := node.Proxy().PID()
		got := status(t, pid)
		user := fmt.Sprint(world.ProxyUID)
		for name, want := range map[string][]string{
			"Uid": {user, user, user, user}, "Gid": {user, user, user, user}, "Groups": {},
			"CapInh": {"0000000000000000"}, "CapPrm": {"0000000000000000"}, "CapEff": {"0000000000000000"},
			"CapBnd": {"0000000000000000"}, "CapAmb": {"0000000000000000"}, "NoNewPrivs": {"1"},
		} {
			if !slices.Equal(got[name], want) {
				t.Errorf("%s: %v, want %v", name, got[name], want)
			}
		}
		info, err := os.Stat(fmt.Sprintf("/proc/%d/mem", pid))
		if err != nil {
			t.Fatal(err)
		}
		if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 {
			t.Errorf("the memory of the proxy belongs to user %d: it is dumpable", uid)
		}
		err = e2e.AsUser(world.ProxyUID, func() error {
			f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
			if err == nil {
				_ = f.Close()
			}
			return err
		})
		if !errors.Is(err, os.ErrPermission) {
			t.Errorf("another process of the same user opens its memory: %v", err)
		}
	}
}

// kept is the memory that the agent keeps for the next proxy.
func kept(agent int) (content []byte, seals int, err error) {
	dir := fmt.Sprintf("/proc/%d/fd", agent)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, 0, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if to, err := os.Readlink(path); err != nil || !strings.HasPrefix(to, "/memfd:") {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			return nil, 0, err
		}
		defer func() { _ = f.Close() }()
		if seals, err = unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); err != nil {
			return nil, 0, err
		}
		content, err = os.ReadFile(path)
		return content, seals, err
	}
	return nil, 0, errors.New("the agent keeps no memory")
}

// privateKeys are those in what a proxy has saved.
func privateKeys(content []byte) (keys []*ecdsa.PrivateKey, err error) {
	const certificates = 3 // the field of these
	var all struct{ Materials []struct{ Key []byte } }
	for len(content) > 0 {
		field, _, head := protowire.ConsumeTag(content)
		if head < 0 {
			return nil, protowire.ParseError(head)
		}
		value, n := protowire.ConsumeBytes(content[head:])
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		content = content[head+n:]
		if field == certificates {
			if err := json.Unmarshal(value, &all); err != nil {
				return nil, err
			}
		}
	}
	for _, m := range all.Materials {
		key, err := x509.ParsePKCS8PrivateKey(m.Key)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key.(*ecdsa.PrivateKey))
	}
	return keys, nil
}

// Private keys are in the proxy and in the sealed memory that the agent keeps
// unread, and nowhere else.
func TestKeysStayInside(t *testing.T) {
	m := e2e.Start(t)
	serveEverywhere(m)
	if _, err := m.Call("mesh/client", "198.18.2.10:8080"); err != nil {
		t.Fatal(err)
	}
	var keys []*ecdsa.PrivateKey
	m.Eventually("the agent keeps the keys of two identities", func() error {
		content, seals, err := kept(m.Node("a").Agent().PID())
		if err != nil {
			return err
		}
		const all = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
		if seals&all != all {
			t.Errorf("seals %#x, want all of %#x", seals, all)
		}
		if keys, err = privateKeys(content); err == nil && len(keys) < 2 {
			err = fmt.Errorf("%d keys", len(keys))
		}
		return err
	})
	if inMemory(t, m.Node("a").Proxy().PID(), keys) == "" {
		t.Error("not even the proxy's memory has a key: this is no way to look for them")
	}
	if where := inMemory(t, m.Node("a").Agent().PID(), keys); where != "" {
		t.Errorf("the agent, which is to keep the keys unread, has one in its memory: %s", where)
	}
	for _, user := range []int{world.ProxyUID, world.ProxyUID + 1} {
		wantClosed(t, user, m.Node("a").Agent().PID(), "agent")
		wantClosed(t, user, m.Node("a").Proxy().PID(), "proxy")
	}
	if err := m.Node("a").Proxy().Kill(); err != nil { // what it says at its end and after it counts, too
		t.Fatal(err)
	}
	if err := m.Node("a").StartProxy(m.Context()); err != nil {
		t.Fatal(err)
	}

	said := map[string][]byte{}
	for _, path := range []string{"/dump", "/status", "/connections?live=&ended="} {
		text, err := m.AdminText("a", path)
		if err != nil {
			t.Fatal(err)
		}
		said[path] = text
	}
	files, err := filepath.Glob(filepath.Join(m.Dir(), "logs", "*"))
	if err != nil || len(files) < 6 {
		t.Fatalf("logs: %v, %v", files, err)
	}
	for _, file := range files {
		if said[file], err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	for where, text := range said {
		for _, key := range keys {
			for _, form := range forms(t, key) {
				if bytes.Contains(text, form) {
					t.Errorf("%s has a private key", where)
				}
			}
		}
		if bytes.Contains(text, []byte("PRIVATE KEY")) {
			t.Errorf("%s has something that looks like a private key", where)
		}
	}
}

// inMemory names the mapping of a process that has a private key in it, "" if
// none has.
func inMemory(t *testing.T, pid int, keys []*ecdsa.PrivateKey) string {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = memory.Close() }()
	looked := 0
	for line := range strings.Lines(string(maps)) {
		var begin, end int64
		if !strings.Contains(line, " rw") {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x", &begin, &end); err != nil {
			t.Fatal(err)
		}
		if end-begin > 1<<28 { // what the race detector has for itself
			continue
		}
		content := make([]byte, end-begin)
		n, _ := memory.ReadAt(content, begin) // up to what the kernel shows of it
		looked += n
		for _, key := range keys {
			raw, err := key.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(content[:n], raw) {
				return line
			}
		}
	}
	if looked < 1<<20 {
		t.Errorf("only %d bytes of the memory of process %d were looked at", looked, pid)
	}
	return ""
}

// wantClosed has another user try all ways into a process by which its memory,
// and what it holds open, could be taken.
func wantClosed(t *testing.T, user, pid int, who string) {
	t.Helper()
	descriptors, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil || len(descriptors) < 10 {
		t.Fatalf("%s: descriptors %v, %v", who, descriptors, err)
	}
	ways := map[string]func() error{
		"a copy of its memory": func() error {
			to := unix.Iovec{Base: new(byte), Len: 1}
			_, err := unix.ProcessVMReadv(pid, []unix.Iovec{to}, []unix.RemoteIovec{{Base: 1 << 22, Len: 1}}, 0)
			return err
		},
		"tracing it": func() error { return unix.PtraceSeize(pid) },
		"the list of its descriptors": func() error {
			_, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
			return err
		},
	}
	for _, file := range []string{"mem", "environ", "maps"} {
		ways[file] = func() error {
			f, err := os.Open(fmt.Sprintf("/proc/%d/%s", pid, file))
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }()
			_, err = f.Read(make([]byte, 1))
			return err
		}
	}
	for _, d := range descriptors {
		number, err := strconv.Atoi(d.Name())
		if err != nil {
			t.Fatal(err)
		}
		ways["opening descriptor "+d.Name()] = func() error {
			f, err := os.Open(fmt.Sprintf("/proc/%d/fd/%d", pid, number))
			if err == nil {
				_ = f.Close()
			}
			return err
		}
		ways["taking descriptor "+d.Name()] = func() error { return take(pid, number) }
	}
	for way, try := range ways {
		if err := e2e.AsUser(user, try); !errors.Is(err, os.ErrPermission) && !errors.Is(err, unix.EPERM) {
			t.Errorf("user %d gets into the %s by %s: %v", user, who, way, err)
		}
	}
}

// take takes a descriptor of another process.
func take(pid, number int) error {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(process) }()
	taken, err := unix.PidfdGetfd(process, number, 0)
	if err == nil {
		_ = unix.Close(taken)
	}
	return err
}

// forms are the ways in which a key may be written.
func forms(t *testing.T, key *ecdsa.PrivateKey) (all [][]byte) {
	t.Helper()
	raw, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	all = [][]byte{raw, der, bytes.Split(block, []byte("\n"))[1], []byte(fmt.Sprint(raw))}
	for _, b := range [][]byte{raw, der} {
		all = append(all, []byte(hex.EncodeToString(b)), []byte(base64.StdEncoding.EncodeToString(b)), []byte(base64.URLEncoding.EncodeToString(b)))
	}
	return all
}
