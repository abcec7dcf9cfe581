package main

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/spf13/cobra"
)

// review is what of an AdmissionReview of admission.k8s.io/v1 is asked and
// answered here.
type review struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Request    struct {
		UID  string `json:"uid"`
		Name string `json:"name"`
	} `json:"request,omitzero"`
	Response struct {
		UID     string `json:"uid"`
		Allowed bool   `json:"allowed"`
	} `json:"response"`
}

func webhook() *cobra.Command {
	cmd := &cobra.Command{Use: "webhook NAME", Short: "answer the API server on port 8443, and refuse objects of that name", Args: cobra.ExactArgs(1)}
	cert := cmd.Flags().String("cert", "/tls/tls.crt", "`file` of the certificate")
	key := cmd.Flags().String("key", "/tls/tls.key", "`file` of its key")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		server := &http.Server{Addr: ":8443", Handler: judge(args[0]), ReadHeaderTimeout: time.Minute}
		stop := context.AfterFunc(cmd.Context(), func() { _ = server.Close() })
		defer stop()
		return server.ListenAndServeTLS(*cert, *key)
	}
	return cmd
}

// judge refuses objects of one name.
func judge(refused string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var asked, answer review
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer.APIVersion, answer.Kind = asked.APIVersion, asked.Kind
		answer.Response.UID, answer.Response.Allowed = asked.Request.UID, asked.Request.Name != refused
		_ = json.NewEncoder(w).Encode(answer) // the API server sees what is missing
	})
}
