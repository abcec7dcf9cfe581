package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"

	"github.com/spf13/cobra"

	"github.com/tacit-mesh/tacit/proxy/admin"
)

// pair explains two ends by the proxy that knows best. Where that one gives no
// answer another does, for they know the same mesh.
func (f *explainFlags) pair(cmd *cobra.Command) error {
	query := url.Values{"from": {f.from}, "to": {f.to}}
	all, err := f.proxies(cmd, about{from: f.from, to: f.to, one: true})
	if err != nil {
		return err
	}
	asked := all[0]
	e, text, err := askPair(cmd, asked, query)
	var (
		lack   error
		absent absentError
	)
	others := asked.node != "" && !cmd.Flag("node").Changed
	if err != nil && !errors.As(err, &absent) && others {
		lack = fmt.Errorf("explain: node %s gave no answer, so that of another is shown: %w", asked.node, err)
		if all, err = f.proxies(cmd, about{}); err != nil {
			return errors.Join(err, lack)
		}
		for _, asked = range all {
			if e, text, err = askPair(cmd, asked, query); err == nil || errors.As(err, &absent) {
				break
			}
		}
	}
	if err != nil {
		return err
	}
	if others {
		lack = errors.Join(lack, f.askOthers(cmd, e, query))
		if query.Has(admin.QueryCertificates) {
			again, said, err := askPair(cmd, asked, query)
			if lack = errors.Join(lack, err); err == nil {
				e, text = again, said
			}
		}
	}
	if lack != nil {
		lack = partialError{lack}
	}
	return f.show(cmd, e, text, lack)
}

// askPair returns the explanation also as it came.
func askPair(cmd *cobra.Command, from answerer, query url.Values) (e admin.Explanation, text json.RawMessage, err error) {
	body, err := from.ask(cmd.Context(), "/explain", query)
	if err != nil {
		return e, nil, err
	}
	defer body.Close()
	if err := from.read(body, &text); err != nil {
		return e, nil, err
	}
	if err := json.Unmarshal(text, &e); err != nil {
		return e, nil, fmt.Errorf("answer of the proxy%s: %w", from.where(), err)
	}
	return e, text, nil
}

// askOthers adds to the question the certificates that other nodes alone have, and
// says what of them is lacking.
func (f *explainFlags) askOthers(cmd *cobra.Command, e admin.Explanation, query url.Values) (lack error) {
	identities := map[string][]string{} // by node
	for _, s := range e.Steps {
		if s.Ask != nil {
			identities[s.Ask.Node] = append(identities[s.Ask.Node], s.Ask.Identity)
		}
	}
	if len(identities) == 0 {
		return nil
	}
	all, err := f.proxies(cmd, about{})
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(a answerer) bool { return identities[a.node] == nil })
	for _, a := range askAll[certificates](cmd, all, "/certificates", nil) {
		wanted := identities[a.node]
		delete(identities, a.node)
		if a.err != nil {
			lack = errors.Join(lack, fmt.Errorf("explain: certificates of node %s: %w", a.node, a.err))
			continue
		}
		a.value.Node = a.node
		lack = errors.Join(lack, admin.With(query, a.value, wanted))
	}
	for node := range identities {
		lack = errors.Join(lack, fmt.Errorf("explain: certificates of node %s: no proxy runs there", node))
	}
	return lack
}
