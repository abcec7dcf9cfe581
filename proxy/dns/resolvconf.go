package dns

import (
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	// checkEvery is how often the file is looked at, while there are queries.
	checkEvery = time.Second
	maxServers = 3 // as resolv.conf(5) has it
)

// resolvConf is a file with the names of servers.
type resolvConf struct {
	file string
	port uint16

	mu      sync.Mutex
	checked time.Time
	changed time.Time // of the file
	servers []netip.AddrPort
	err     error
}

// list are the servers, at least one. A file that cannot be read any more
// leaves those of before.
func (r *resolvConf) list() ([]netip.AddrPort, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.checked) >= checkEvery {
		r.checked = now
		info, err := os.Stat(r.file)
		if err == nil && (r.servers == nil || !info.ModTime().Equal(r.changed)) {
			r.changed = info.ModTime()
			err = r.read()
		}
		r.err = err
	}
	if r.servers == nil {
		return nil, fmt.Errorf("DNS servers to ask: %w", r.err)
	}
	return r.servers, nil
}

func (r *resolvConf) read() error {
	config, err := mdns.ClientConfigFromFile(r.file)
	if err != nil {
		return err
	}
	var servers []netip.AddrPort
	for _, text := range config.Servers {
		if addr, err := netip.ParseAddr(text); err == nil && len(servers) < maxServers {
			servers = append(servers, netip.AddrPortFrom(addr, r.port))
		}
	}
	if servers == nil {
		return fmt.Errorf("%s names no server (nameserver ADDRESS)", r.file)
	}
	r.servers = servers
	return nil
}
