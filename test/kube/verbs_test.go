package kube

import (
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"

	"github.com/tacit-mesh/tacit/internal/kube/access"
)

// lackingVerbs takes verbs out of roles while clients make traffic: whatever needs
// them says what to add to which role, and nothing else notices.
func (e environment) lackingVerbs(web clients) {
	e.t.Helper()
	e.newNamespace("late", inMesh())
	since := metav1.Now()
	report, review := e.takeVerb("tacit-agent", "pods/status", "patch"), e.takeVerb("tacitd", "tokenreviews", "create")
	e.workload("late", "late", nil, "") // which takes certificates of an identity that is new
	e.awaitEvent("late", `rule {apiGroups: [""], resources: [pods/status], verbs: [patch]} in the ClusterRole or Role tacit-agent`)
	e.awaitLog("tacitd", since, `rule {apiGroups: ["authentication.k8s.io"], resources: [tokenreviews], verbs: [create]} in the ClusterRole or Role tacitd`)
	web.progress()
	web.wantNoFailure("roles that lack verbs")
	report()
	review()
	e.must(e.AwaitDeployment(e.ctx, "late", "late"))
	e.awaitCapture("late", true)
}

// eachVerb asks for everything that the programs' roles grant as an account to
// which nobody grants anything.
func (e environment) eachVerb() {
	e.t.Helper()
	config, err := access.Config(e.Kubeconfig)
	e.must(err)
	config.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:" + Namespace + ":stranger"}
	client, err := rest.HTTPClientFor(config)
	e.must(err)
	asked := 0
	for _, rule := range e.grantedRules() {
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					asked++
					want := fmt.Sprintf("grant it by a rule {apiGroups: [%q], resources: [%s], verbs: [%s]} in the ClusterRole or Role stranger", group, resource, verb)
					if text, err := e.ask(client, group, resource, verb); err != nil || !strings.Contains(text, want) {
						e.t.Errorf("%s %s of %q is refused by %q, error %v, want %q", verb, resource, group, text, err, want)
					}
				}
			}
		}
	}
	if asked < 50 {
		e.t.Errorf("the roles grant %d things", asked)
	}
}

// grantedRules are those of all roles that are bound to accounts of ours.
func (e environment) grantedRules() []rbacv1.PolicyRule {
	e.t.Helper()
	roles := e.Client.RbacV1()
	ours := func(subjects []rbacv1.Subject) bool {
		return slices.ContainsFunc(subjects, func(s rbacv1.Subject) bool { return s.Kind == "ServiceAccount" && s.Namespace == Namespace })
	}
	var rules []rbacv1.PolicyRule
	wide, err := roles.ClusterRoleBindings().List(e.ctx, metav1.ListOptions{})
	e.must(err)
	for _, binding := range wide.Items {
		if ours(binding.Subjects) {
			role, err := roles.ClusterRoles().Get(e.ctx, binding.RoleRef.Name, metav1.GetOptions{})
			e.must(err)
			rules = append(rules, role.Rules...)
		}
	}
	narrow, err := roles.RoleBindings(Namespace).List(e.ctx, metav1.ListOptions{})
	e.must(err)
	for _, binding := range narrow.Items {
		if ours(binding.Subjects) {
			role, err := roles.Roles(Namespace).Get(e.ctx, binding.RoleRef.Name, metav1.GetOptions{})
			e.must(err)
			rules = append(rules, role.Rules...)
		}
	}
	return rules
}

// ask makes a request with a verb of RBAC and returns the answer. Whether it is
// allowed is decided before anything else of it matters.
func (e environment) ask(client *http.Client, group, resource, verb string) (string, error) {
	method, named := map[string]string{"create": http.MethodPost, "update": http.MethodPut, "patch": http.MethodPatch}[verb], !slices.Contains([]string{"create", "list", "watch"}, verb)
	resource, subresource, hasSubresource := strings.Cut(resource, "/")
	where := path.Join("/apis", group, "v1", "namespaces", Namespace, resource)
	if group == "" {
		where = path.Join("/api/v1/namespaces", Namespace, resource)
	}
	if named || hasSubresource {
		where = path.Join(where, "any", subresource)
	}
	if verb == "watch" {
		where += "?watch=true"
	}
	request, err := http.NewRequestWithContext(e.ctx, method, e.Config.Host+where, http.NoBody)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	return strings.ReplaceAll(string(text), `\"`, `"`), err
}

// takeVerb takes one out of a ClusterRole, until the function that it returns is
// called.
func (e environment) takeVerb(role, resource, verb string) (restore func()) {
	e.t.Helper()
	roles := e.Client.RbacV1().ClusterRoles()
	change := func(e environment, change func([]rbacv1.PolicyRule) []rbacv1.PolicyRule) error {
		return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
			now, err := roles.Get(e.ctx, role, metav1.GetOptions{})
			if err != nil {
				return err
			}
			now.Rules = change(now.Rules)
			_, err = roles.Update(e.ctx, now, metav1.UpdateOptions{})
			return err
		})
	}
	var before []rbacv1.PolicyRule
	e.must(change(e, func(rules []rbacv1.PolicyRule) []rbacv1.PolicyRule {
		before = rules
		without := slices.Clone(rules)
		for i := range without {
			if slices.Contains(without[i].Resources, resource) {
				without[i].Verbs = slices.DeleteFunc(slices.Clone(without[i].Verbs), func(v string) bool { return v == verb })
			}
		}
		return slices.DeleteFunc(without, func(r rbacv1.PolicyRule) bool { return len(r.Verbs) == 0 })
	}))
	put := func(e environment) error {
		return change(e, func([]rbacv1.PolicyRule) []rbacv1.PolicyRule { return before })
	}
	e.atEnd(put)
	return func() { e.must(put(e)) }
}

// awaitEvent waits until an event of a namespace says something.
func (e environment) awaitEvent(namespace, text string) {
	e.t.Helper()
	e.eventually("an event of "+namespace+" says "+text, func() error {
		events, err := e.Client.CoreV1().Events(namespace).List(e.ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		var all []string
		for _, event := range events.Items {
			if strings.Contains(event.Message, text) {
				return nil
			}
			all = append(all, event.Message)
		}
		return fmt.Errorf("they say %q", all)
	})
}

// awaitLog waits until a program has logged a text.
func (e environment) awaitLog(program string, since metav1.Time, text string) {
	e.t.Helper()
	e.eventually(program+" logs "+text, func() error {
		for _, pod := range e.podNames(Namespace, "app.kubernetes.io/name="+program) {
			logged, err := e.Client.CoreV1().Pods(Namespace).GetLogs(pod, &corev1.PodLogOptions{SinceTime: &since}).DoRaw(e.ctx)
			if err != nil {
				return err
			}
			if strings.Contains(strings.ReplaceAll(string(logged), `\"`, `"`), text) {
				return nil
			}
		}
		return fmt.Errorf("it does not since %v", since)
	})
}
