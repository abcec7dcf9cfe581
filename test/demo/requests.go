package demo

import (
	"context"
	"fmt"
	"strings"

	"github.com/tacit-mesh/tacit/test/world"
)

const readOnly = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: read-only
  namespace: shop
spec:
  selector:
    matchLabels:
      app: web
  action: DENY
  rules:
    - to:
        - operation:
            notMethods: ["GET"]
`

// requests puts a policy about the method of requests in force, and sees one
// connection of curl carry a request that it denies and one that it does not.
func (d *Demo) requests(ctx context.Context) error {
	proxy := d.world.Node("b").Proxy()
	mark := proxy.Mark()
	if err := d.world.Apply(readOnly); err != nil {
		return err
	}
	d.out.say("policy shop/read-only denies what is not GET; no other proxy was deployed for it")
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	frontend := d.world.Pod("shop/frontend")
	err := world.Poll(wait, func() error { // until it is in force
		text, err := frontend.Command(wait, "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-X", "DELETE", "http://web/").CombinedOutput()
		if err == nil && string(text) != "403" {
			err = fmt.Errorf("the application answers a DELETE: %s", text)
		}
		return err
	})
	if err != nil {
		return err
	}
	const curl = `curl -sS -o /dev/null -w '%{http_code} %{num_connects} %header{tacit-connection-id}\n' `
	answer, _, err := d.shell(ctx, "shop/frontend", curl+"-X DELETE http://web/ --next "+strings.TrimPrefix(curl, "curl ")+"http://web/")
	if err != nil {
		return err
	}
	fields := strings.Fields(answer)
	if len(fields) < 5 || fields[0] != "403" || fields[3] != "200" || fields[4] != "0" {
		return fmt.Errorf("curl says %q, want 403, and 200 on the same connection", answer)
	}
	d.out.proven("DELETE is answered with 403 and the connection's id %s, GET behind it on the same connection with 200", fields[2])
	line, err := proxy.WaitLog(wait, mark, func(line string) bool {
		return strings.Contains(line, fields[2]) && strings.Contains(line, "shop/read-only")
	})
	if err != nil {
		return err
	}
	d.out.proven("node b's proxy logged the request, the policy and what matched")
	d.out.output(line)
	return d.world.Delete("AuthorizationPolicy", "shop/read-only")
}
