package lint

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	securityv1beta1 "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/tacit-mesh/tacit/xds/model"
)

func (c *checker) authorization(p *securityv1.AuthorizationPolicy, pods []*corev1.Pod) {
	allow := p.Spec.Action == securityv1beta1.AuthorizationPolicy_ALLOW
	for i, rule := range p.Spec.Rules {
		path := fmt.Sprintf("spec.rules[%d]", i)
		for j, from := range rule.GetFrom() {
			c.source(fmt.Sprintf("%s.from[%d].source", path, j), from.GetSource(), allow)
		}
		for j, to := range rule.GetTo() {
			c.operation(fmt.Sprintf("%s.to[%d].operation", path, j), to.GetOperation())
		}
		for j, when := range rule.GetWhen() {
			c.condition(fmt.Sprintf("%s.when[%d]", path, j), when, allow)
		}
		c.requestsOnOtherPorts(path, rule, pods, allow)
	}
}

func (c *checker) source(path string, s *securityv1beta1.Source, allow bool) {
	c.principals(path+".principals", s.GetPrincipals())
	c.principals(path+".notPrincipals", s.GetNotPrincipals())
	if allow && !identified(s) {
		c.strangers(path+".notPrincipals", s.GetNotPrincipals(), "principals")
		c.strangers(path+".notNamespaces", s.GetNotNamespaces(), "namespaces")
		c.strangers(path+".notServiceAccounts", s.GetNotServiceAccounts(), "serviceAccounts")
		c.strangers(path+".notRequestPrincipals", s.GetNotRequestPrincipals(), "requestPrincipals")
	}
	c.addresses(path+".ipBlocks", s.GetIpBlocks())
	c.addresses(path+".notIpBlocks", s.GetNotIpBlocks())
	for name, list := range map[string][]string{
		".principals": s.GetPrincipals(), ".notPrincipals": s.GetNotPrincipals(), ".requestPrincipals": s.GetRequestPrincipals(),
		".namespaces": s.GetNamespaces(), ".notNamespaces": s.GetNotNamespaces(),
	} {
		c.shadows(path+name, list, textCovers)
	}
	c.shadows(path+".ipBlocks", s.GetIpBlocks(), prefixCovers)
	c.shadows(path+".notIpBlocks", s.GetNotIpBlocks(), prefixCovers)
}

// identified reports whether something about the caller's identity must fit.
func identified(s *securityv1beta1.Source) bool {
	return len(s.GetPrincipals())+len(s.GetNamespaces())+len(s.GetServiceAccounts())+len(s.GetTrustDomains())+len(s.GetRequestPrincipals()) > 0
}

// strangers: what excludes identities alone lets callers in that have none.
func (c *checker) strangers(field string, not []string, positive string) {
	switch {
	case len(not) == 0:
	case slices.Contains(not, "*"):
		c.find(field, "allows exactly the callers that have not authenticated, and nobody else",
			`to refuse them: action DENY with this source, or ALLOW with `+positive+`: ["*"]`)
	default:
		c.find(field, "also allows callers that have not authenticated, as they are none of these",
			`to allow all others that have: add `+positive+`: ["*"]`)
	}
}

func (c *checker) principals(field string, list []string) {
	for i, p := range list {
		at := fmt.Sprintf("%s[%d]", field, i)
		switch rest, scheme := strings.CutPrefix(p, "spiffe://"); {
		case scheme:
			c.find(at, "Istio's own proxies compare principals without the scheme, so there this never matches; Tacit takes it off", rest)
		case !strings.Contains(p, "/") && !strings.Contains(p, "*"):
			c.find(at, "never matches: a principal is TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT",
				"cluster.local/ns/NAMESPACE/sa/"+p+", or serviceAccounts: ["+p+"]")
		}
	}
}

// private are addresses of clusters and of what is near to them.
var private = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("fc00::/7"),
}

func (c *checker) addresses(field string, list []string) {
	for i, text := range list {
		p, err := model.ParseCIDR(text)
		if err != nil || p.Bits() == 0 || slices.ContainsFunc(private, func(n netip.Prefix) bool { return n.Overlaps(p) }) {
			continue
		}
		c.find(fmt.Sprintf("%s[%d]", field, i), "is compared with the address at the other end of the connection, which for callers from outside is the gateway's, load balancer's or node's",
			"to decide about "+text+" at the gateway, and here about the gateway's identity (principals)")
	}
}

func (c *checker) operation(path string, o *securityv1beta1.Operation) {
	for name, list := range map[string][]string{".paths": o.GetPaths(), ".notPaths": o.GetNotPaths()} {
		for i, p := range list {
			at := fmt.Sprintf("%s%s[%d]", path, name, i)
			if cut := strings.IndexAny(p, "?#"); cut >= 0 {
				c.find(at, "never matches: paths are compared without their query", p[:cut]+"; a query cannot be a condition")
			} else if !strings.HasPrefix(p, "/") && !strings.HasPrefix(p, "*") {
				c.find(at, "never matches: every path begins with a slash", "/"+p)
			} else if strings.HasSuffix(p, "{**}/") {
				c.find(at, "matches only paths that end in a slash", strings.TrimSuffix(p, "/"))
			}
		}
		c.shadows(path+name, list, textCovers)
	}
	for name, list := range map[string][]string{".methods": o.GetMethods(), ".notMethods": o.GetNotMethods()} {
		for i, m := range list {
			if upper := strings.ToUpper(m); m != upper {
				c.find(fmt.Sprintf("%s%s[%d]", path, name, i), "never matches: methods are compared with regard to case", upper)
			}
		}
		c.shadows(path+name, list, textCovers)
	}
	c.shadows(path+".hosts", o.GetHosts(), textCovers)
	c.shadows(path+".notHosts", o.GetNotHosts(), textCovers)
}

func (c *checker) condition(path string, w *securityv1beta1.Condition, allow bool) {
	covers := textCovers
	switch key := w.GetKey(); key {
	case "source.ip":
		c.addresses(path+".values", w.GetValues())
		c.addresses(path+".notValues", w.GetNotValues())
		covers = prefixCovers
	case "remote.ip", "destination.ip":
		covers = prefixCovers
	case "source.principal":
		c.principals(path+".values", w.GetValues())
		c.principals(path+".notValues", w.GetNotValues())
		fallthrough
	case "source.namespace", "request.auth.principal", "source.serviceAccount":
		if allow && len(w.GetValues()) == 0 {
			c.strangers(path+".notValues", w.GetNotValues(), "values of "+key)
		}
	}
	c.shadows(path+".values", w.GetValues(), covers)
	c.shadows(path+".notValues", w.GetNotValues(), covers)
}

// shadows finds values that another of the same list covers.
func (c *checker) shadows(field string, list []string, covers func(a, b string) bool) {
	for i, shadowed := range list {
		for j, other := range list {
			if i != j && covers(other, shadowed) && (!covers(shadowed, other) || j < i) {
				c.find(fmt.Sprintf("%s[%d]", field, i), fmt.Sprintf("%q adds nothing: %q covers it", shadowed, other), fmt.Sprintf("only one of the two; without %q if all that it covers is too much", other))
				break
			}
		}
	}
}

// textCovers reports whether whatever b matches, a does, too.
func textCovers(a, b string) bool {
	x, err1 := model.ParsePathMatch(a)
	y, err2 := model.ParsePathMatch(b)
	switch {
	case err1 != nil || err2 != nil:
		return false
	case a == b || x.Kind == model.MatchPresence:
		return true
	case y.Kind == model.MatchExact:
		return x.Matches(y.Value)
	case y.Kind == model.MatchPrefix && x.Kind == model.MatchPrefix:
		return strings.HasPrefix(y.Value, x.Value)
	case y.Kind == model.MatchSuffix && x.Kind == model.MatchSuffix:
		return strings.HasSuffix(y.Value, x.Value)
	}
	return false
}

func prefixCovers(a, b string) bool {
	x, err1 := model.ParseCIDR(a)
	y, err2 := model.ParseCIDR(b)
	return err1 == nil && err2 == nil && x.Bits() <= y.Bits() && x.Contains(y.Addr())
}

// requestsOnOtherPorts finds rules about requests on ports that services
// declare to carry something else.
func (c *checker) requestsOnOtherPorts(path string, rule *securityv1beta1.Rule, pods []*corev1.Pod, allow bool) {
	field, ports := requestField(rule)
	if field == "" {
		return
	}
	var opaque []string
	open := false
	for _, svc := range c.objects.Services {
		if len(svc.Spec.Selector) == 0 || !slices.ContainsFunc(pods, func(p *corev1.Pod) bool {
			return p.Namespace == svc.Namespace && labels.SelectorFromSet(svc.Spec.Selector).Matches(labels.Set(p.Labels))
		}) {
			continue
		}
		for _, p := range svc.Spec.Ports {
			target := p.TargetPort.String()
			if target == "0" || target == "" {
				target = fmt.Sprint(p.Port)
			}
			if len(ports) > 0 && !slices.Contains(ports, target) {
				continue
			}
			if isOpaque(p) {
				opaque = append(opaque, fmt.Sprintf("%s of Service %s", target, svc.Name))
			} else {
				open = true
			}
		}
	}
	if len(opaque) == 0 || open && len(ports) == 0 {
		return
	}
	now := "there the rule never matches, so it allows nothing"
	if !allow {
		now = "there it matches whatever the request, by what else it says"
	}
	c.find(path+"."+field, "is about requests of HTTP, and port "+strings.Join(opaque, ", ")+" is declared to carry something else: "+now,
		"ports of HTTP in to.operation.ports, or another appProtocol or name of the Service's port")
}

// requestField is the first field that only requests have, and the ports that
// the rule is about.
func requestField(rule *securityv1beta1.Rule) (field string, ports []string) {
	for i, to := range rule.GetTo() {
		o := to.GetOperation()
		ports = append(ports, o.GetPorts()...)
		if len(o.GetMethods())+len(o.GetNotMethods())+len(o.GetPaths())+len(o.GetNotPaths())+len(o.GetHosts())+len(o.GetNotHosts()) > 0 && field == "" {
			field = fmt.Sprintf("to[%d].operation", i)
		}
	}
	for i, from := range rule.GetFrom() {
		if len(from.GetSource().GetRequestPrincipals())+len(from.GetSource().GetNotRequestPrincipals()) > 0 && field == "" {
			field = fmt.Sprintf("from[%d].source", i)
		}
	}
	for i, when := range rule.GetWhen() {
		key := when.GetKey()
		if (strings.HasPrefix(key, "request.headers") || strings.HasPrefix(key, "request.auth")) && field == "" {
			field = fmt.Sprintf("when[%d]", i)
		}
	}
	return field, ports
}

func isOpaque(p corev1.ServicePort) bool {
	name, _, _ := strings.Cut(p.Name, "-")
	if p.AppProtocol != nil {
		name = strings.ToLower(*p.AppProtocol)
	}
	return slices.Contains([]string{"tcp", "tls", "https", "redis", "mysql", "mongo"}, name)
}
