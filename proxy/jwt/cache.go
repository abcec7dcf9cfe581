package jwt

import (
	"sync"
	"time"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Bounds of what is remembered. When one is reached, some of it is forgotten.
const (
	maxKeySets    = 256
	maxTokensHeld = 4096
)

// cache spares parsing key sets, and verifying the same token with every
// request. It holds what was accepted alone: tokens that are not must not
// drive out those that are.
type cache struct {
	mu     sync.Mutex
	sets   map[string]*keySet // by document
	tokens map[cacheKey]*token
}

// cacheKey holds the rule: one that changes is another.
type cacheKey struct {
	rule *model.JWTRule
	text string
}

func newCache() cache {
	return cache{sets: map[string]*keySet{}, tokens: map[cacheKey]*token{}}
}

func (c *cache) verify(rule *model.JWTRule, text string, now time.Time) (*token, string) {
	key := cacheKey{rule, text}
	c.mu.Lock()
	known := c.tokens[key]
	c.mu.Unlock()
	if known == nil {
		var reason string
		if known, reason = verify(rule, c.keys(rule.Keys), text); reason != "" {
			return nil, reason
		}
		c.mu.Lock()
		forgetSome(c.tokens, maxTokensHeld)
		c.tokens[key] = known
		c.mu.Unlock()
	}
	if reason := known.at(now); reason != "" {
		return nil, reason
	}
	return known, ""
}

func (c *cache) keys(document string) *keySet {
	c.mu.Lock()
	defer c.mu.Unlock()
	set := c.sets[document]
	if set == nil {
		forgetSome(c.sets, maxKeySets)
		set = parseKeys(document)
		c.sets[document] = set
	}
	return set
}

// forgetSome makes room, of a full map an eighth, whichever comes first.
func forgetSome[K comparable, V any](m map[K]V, limit int) {
	if len(m) < limit {
		return
	}
	n := 0
	for key := range m {
		delete(m, key)
		if n++; n >= limit/8 {
			return
		}
	}
}
