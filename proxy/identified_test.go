package proxy

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tacit-mesh/tacit/proxy/http"
	"github.com/tacit-mesh/tacit/xds/model"
)

func TestIdentified(t *testing.T) {
	caller := model.Identity{TrustDomain: "td", Namespace: "shop", ServiceAccount: "web"}
	local := model.Identity{TrustDomain: "td", Namespace: "data", ServiceAccount: "db"}
	accept := http.Field{Name: "Accept", Value: "*/*"}
	told := http.Field{Name: "X-Forwarded-Client-Cert", Value: "By=spiffe://td/ns/data/sa/db;URI=spiffe://td/ns/shop/sa/web"}
	for _, test := range []struct {
		name   string
		caller model.Identity
		came   []http.Field
		want   []http.Field
	}{
		{"nothing said", caller, []http.Field{accept}, []http.Field{accept, told}},
		{"nobody", model.Identity{}, []http.Field{accept}, []http.Field{accept}},
		{"said by the caller", caller, []http.Field{{Name: "x-forwarded-client-cert", Value: "URI=boss"}, accept}, []http.Field{accept, told}},
		{"said by nobody", model.Identity{}, []http.Field{{Name: "X-FORWARDED-CLIENT-CERT", Value: "URI=boss"}}, []http.Field{}},
		{"with another sign", caller, []http.Field{{Name: "X_Forwarded_Client-Cert", Value: "URI=boss"}}, []http.Field{told}},
		{"another header", caller, []http.Field{{Name: "X-Forwarded-Client", Value: "a"}}, []http.Field{{Name: "X-Forwarded-Client", Value: "a"}, told}},
	} {
		if diff := cmp.Diff(test.want, identified(test.came, test.caller, local)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", test.name, diff)
		}
	}
}
