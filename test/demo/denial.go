package demo

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/tacit-mesh/tacit/proxy/admin"
)

// denial lets two clients call the web pod that may not: one with the wrong
// identity, and one with none.
func (d *Demo) denial(ctx context.Context) error {
	node := d.world.Node("b")
	web := d.world.Pod("shop/web")
	if err := d.deniedCall(ctx, "shop/worker", "http://web/"); err != nil {
		return err
	}
	if err := d.explained(ctx, "shop/worker", "shop/web:8080", "shop/web"); err != nil {
		return err
	}
	c, err := newest(ctx, node, "denied", "shop/worker", "shop/web", func(c admin.Connection) bool { return c.Denied })
	if err != nil {
		return err
	}
	d.out.proven("node b's proxy logged it as %s: %s", c.ID, c.Reason)

	if err := d.deniedCall(ctx, "outside/visitor", "http://"+web.Address().String()+":8080/"); err != nil {
		return err
	}
	c, err = newest(ctx, node, "denied", d.world.Pod("outside/visitor").Address().String(), "shop/web", func(c admin.Connection) bool { return c.Source.Identity == "" })
	if err != nil {
		return err
	}
	d.out.proven("a call without any identity: %s", c.Reason)
	return nil
}

// deniedCall checks that curl gets no answer.
func (d *Demo) deniedCall(ctx context.Context, pod, to string) error {
	text, code, err := d.shell(ctx, pod, "curl -sS --max-time 10 "+to)
	const timedOut = 28
	switch {
	case err != nil:
		return err
	case code == 0 || strings.Contains(text, page):
		return errors.New("curl got an answer: nothing was denied")
	case code == timedOut:
		return errors.New("curl waited in vain: a denial must be told")
	}
	d.out.proven("curl was cut off (exit code %d)", code)
	return nil
}

// explained checks that the CLI names the policy that decides.
func (d *Demo) explained(ctx context.Context, from, to, policy string) error {
	node := d.world.Node("b")
	text, err := d.tacit(ctx, node, "explain", "--from", from, "--to", to)
	if err != nil {
		return err
	}
	e, err := ask[admin.Explanation](ctx, node, "/explain", url.Values{"from": {from}, "to": {to}})
	if err != nil {
		return err
	}
	if e.Outcome != admin.Denied || !strings.Contains(text, policy) {
		return fmt.Errorf("explain says %q and does not name policy %s", e.Outcome, policy)
	}
	d.out.proven("tacit explain names policy %s", policy)
	return nil
}
