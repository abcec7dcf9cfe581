package identity

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
)

const savedVersion = 1

type savedMaterials struct {
	Version   int             `json:"version"`
	Materials []savedMaterial `json:"materials"`
}

type savedMaterial struct {
	Selectors string              `json:"selectors,omitempty"`
	Key       []byte              `json:"key"`   // PKCS #8
	Chain     [][]byte            `json:"chain"` // DER, leaf first
	Roots     [][]byte            `json:"roots"`
	Federated map[string][][]byte `json:"federated,omitempty"` // roots by trust domain
}

// Export is everything that Import needs to serve at once, for this process's
// successor. It CONTAINS PRIVATE KEYS: it may go to sealed memory, never to a
// disk or a log.
func (s *Store) Export() ([]byte, error) {
	saved := savedMaterials{Version: savedVersion}
	for _, e := range s.exported() {
		m := e.material
		key, err := m.encodedKey()
		if err != nil {
			return nil, fmt.Errorf("export certificate of %s: %w", m.Identity(), err)
		}
		one := savedMaterial{Selectors: e.subject.Selectors, Key: key, Chain: m.Certificate.Certificate, Roots: rawOf(m.Authorities)}
		for domain, b := range m.Federated {
			if one.Federated == nil {
				one.Federated = map[string][][]byte{}
			}
			one.Federated[domain] = rawOf(b.Authorities)
		}
		saved.Materials = append(saved.Materials, one)
	}
	return json.Marshal(saved)
}

type exported struct {
	subject  Subject
	material *Material
}

func (s *Store) exported() []exported {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget()
	all := map[Subject]*Material{}
	for subject, k := range s.kept {
		all[subject] = k.material
	}
	for subject, e := range *s.entries.Load() {
		if m := e.material.Load(); m != nil {
			all[subject] = m
		}
	}
	var materials []exported
	for subject, m := range all {
		if m.ValidAt(s.now()) {
			materials = append(materials, exported{subject, m})
		}
	}
	slices.SortFunc(materials, func(a, b exported) int {
		return a.material.Leaf.NotAfter.Compare(b.material.Leaf.NotAfter)
	})
	return materials
}

func rawOf(all []*x509.Certificate) [][]byte {
	var raw [][]byte
	for _, c := range all {
		raw = append(raw, c.Raw)
	}
	return raw
}

// Import takes over what Export gave, to serve it until the source has
// something newer. What has expired meanwhile is left out. Either all of data
// is understood or nothing is taken.
func (s *Store) Import(data []byte) error {
	var saved savedMaterials
	// The parser's own error could quote the data, which holds keys.
	if json.Unmarshal(data, &saved) != nil || saved.Version != savedVersion {
		return fmt.Errorf("import certificates: not written by this version (%d bytes, format %d, want %d)",
			len(data), saved.Version, savedVersion)
	}
	materials := map[Subject]*Material{}
	for i, one := range saved.Materials {
		m, err := one.material()
		if err != nil {
			return fmt.Errorf("import certificates: number %d: %w", i, err)
		}
		if m.ValidAt(s.now()) {
			materials[Subject{m.Identity(), one.Selectors}] = m
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	until := s.now().Add(importedLife)
	for subject, m := range materials {
		if e := (*s.entries.Load())[subject]; e == nil {
			s.kept[subject] = kept{m, until}
		} else if e.material.CompareAndSwap(nil, m) {
			s.announce()
		}
	}
	s.wakeRun()
	return nil
}

func (one savedMaterial) material() (*Material, error) {
	key, err := x509.ParsePKCS8PrivateKey(one.Key)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("private key: a %T cannot sign", key)
	}
	chain, err := parseAll(one.Chain)
	if err != nil {
		return nil, fmt.Errorf("chain: %w", err)
	}
	roots, err := parseAll(one.Roots)
	if err != nil {
		return nil, fmt.Errorf("roots: %w", err)
	}
	m, err := NewMaterial(chain, signer, roots)
	if err != nil {
		return nil, err
	}
	federated := map[string][]*x509.Certificate{}
	for domain, ders := range one.Federated {
		if federated[domain], err = parseAll(ders); err != nil {
			return nil, fmt.Errorf("roots of %s: %w", domain, err)
		}
	}
	m.Federate(federated)
	return m, nil
}

func parseAll(ders [][]byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}
