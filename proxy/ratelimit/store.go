package ratelimit

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/tacit-mesh/tacit/proxy/kept"
	"github.com/tacit-mesh/tacit/proxy/policy"
	"github.com/tacit-mesh/tacit/xds/model"
)

// Dialer connects to "HOST:PORT" as somebody, whose connections are not shared
// with others; empty is nobody in particular.
type Dialer func(ctx context.Context, as, network, address string) (net.Conn, error)

const (
	// storeTimeout is what a request waits for its count at most.
	storeTimeout = 100 * time.Millisecond
	// storePause is how long a store that failed is left alone.
	storePause = time.Second
	// storeConns bounds the connections to a store, maxStores the stores, and
	// maxStoresEach those that are asked on behalf of one.
	storeConns    = 16
	maxStores     = 256
	maxStoresEach = 64
)

// script is advance, in microseconds of Redis's own clock, which all nodes
// share. It returns what is over the burst: above 0, nothing was taken.
var script = redis.NewScript(1, `
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local each, burst, n, charge = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
local empty = tonumber(redis.call('GET', KEYS[1]) or '0')
if empty < now then empty = now end
local next = empty + math.min(each * n, 1.5e15) -- microseconds: longestSpan
local asked = next
if charge then asked = empty end
local over = asked - now - math.min(each * burst, 1.5e15)
local refused = over > 0 or charge and over >= 0
if refused and not charge then next = empty end
if next > now then
  redis.call('SET', KEYS[1], string.format('%.0f', next), 'PX', math.ceil((next - now) / 1000))
end
if refused then return math.max(math.ceil(over), 1) end
return 0
`)

// stores are the connections to those in use.
type stores struct {
	dial Dialer
	// What requests wait for at most, and how long what failed is left alone.
	timeout, pause time.Duration

	clients *kept.Set[storeKey, *store]
}

type storeKey struct {
	as         string
	host       string
	port       uint16
	tls        bool
	serverName string
	roots      string
}

type store struct {
	pool    *redis.Pool
	address string
	broken  atomic.Int64 // Unix nanoseconds until which it is left alone
}

// Close implements io.Closer.
func (s *store) Close() error { return s.pool.Close() }

var errAway = errors.New("the store of rate limits is away")

func (s *stores) count(ctx context.Context, as string, a *policy.AppliedLimit, n uint64, charge bool) (Outcome, error) {
	waits, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	st, done, err := s.get(waits, as, a.Store)
	if err != nil {
		return Outcome{}, err
	}
	defer done()
	if time.Now().UnixNano() < st.broken.Load() {
		return Outcome{}, errAway
	}
	each := float64(a.Limit.Interval.Microseconds()) / float64(max(a.Limit.Amount, 1))
	over, err := st.run(waits, redisKey(a), strconv.FormatFloat(each, 'g', -1, 64), max(a.Limit.Burst, 1), n, charge)
	if err != nil {
		if ctx.Err() == nil { // else who asked has gone, which says nothing about the store
			st.broken.Store(time.Now().Add(s.pause).UnixNano())
		}
		return Outcome{}, fmt.Errorf("store of rate limits %s: %w", st.address, err)
	}
	if over > 0 {
		return Outcome{RetryAfter: time.Duration(over) * time.Microsecond}, nil
	}
	return Outcome{Allowed: true}, nil
}

// run runs the script on a connection of its own meanwhile.
func (s *store) run(ctx context.Context, keysAndArguments ...any) (int64, error) {
	c, err := s.pool.GetContext(ctx)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return redis.Int64(script.DoContext(ctx, c, keysAndArguments...))
}

// redisKey has no more of what callers wrote than a hash.
func redisKey(a *policy.AppliedLimit) string {
	sum := sha256.Sum256([]byte(a.Key))
	return "tacit:limit:" + a.Policy + ":" + strconv.Itoa(a.Index) + ":" + hex.EncodeToString(sum[:16])
}

// get is the store, until done is called.
func (s *stores) get(ctx context.Context, as string, at *model.LimitStore) (st *store, done func(), err error) {
	k := storeKey{as, at.Host, at.Port, at.TLS, at.ServerName, at.Roots}
	return s.clients.Use(ctx, as, k, func() (*store, error) { return s.newStore(as, at) })
}

// newStore connects when it is asked.
func (s *stores) newStore(as string, at *model.LimitStore) (*store, error) {
	var secure *tls.Config
	if at.TLS {
		var err error
		if secure, err = tlsConfig(at); err != nil {
			return nil, err
		}
	}
	address := net.JoinHostPort(at.Host, strconv.Itoa(int(at.Port)))
	return &store{address: address, pool: &redis.Pool{
		DialContext: func(ctx context.Context) (redis.Conn, error) { return s.connect(ctx, as, address, secure) },
		MaxActive:   storeConns, MaxIdle: storeConns, Wait: true,
		TestOnBorrow: func(c redis.Conn, lastUsed time.Time) (err error) {
			if time.Since(lastUsed) >= s.pause { // the store may have been away
				_, err = c.Do("PING")
			}
			return err
		},
	}}, nil
}

// connect makes a connection, over TLS if secure is not nil.
func (s *stores) connect(ctx context.Context, as, address string, secure *tls.Config) (redis.Conn, error) {
	c, err := s.dial(ctx, as, "tcp", address)
	if err != nil {
		return nil, err
	}
	if secure != nil {
		t := tls.Client(c, secure)
		if err := t.HandshakeContext(ctx); err != nil {
			_ = c.Close()
			return nil, err
		}
		c = t
	}
	return redis.NewConn(c, s.timeout, s.timeout), nil
}

func tlsConfig(at *model.LimitStore) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: at.ServerName}
	if config.ServerName == "" {
		config.ServerName = at.Host
	}
	if at.Roots != "" {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM([]byte(at.Roots)) {
			return nil, errors.New("the store's roots are no PEM certificates")
		}
	}
	return config, nil
}
