package main

import (
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/tacit-mesh/tacit/proxy/tracing"
)

// defaultSampling is the share of traces that a mesh takes on its own account
// unless told otherwise, as Istio's.
const defaultSampling = 0.01

func (o *options) tracingFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.tracing, "tracing", false, "send spans of connections, and of requests that a policy about requests covers, to --otlp; such requests are given the traceparent of their span")
	f.Float64Var(&o.sampling, "trace-sampling", defaultSampling, "`share` of the traces to sample that begin here, 0 to 1; of those that a caller began, its own choice holds")
}

func (o *options) checkTracing() error {
	switch {
	case o.tracing && !o.otlp.Wanted():
		return errors.New("--tracing has no effect without --otlp, the collector to send to")
	case !(o.sampling >= 0 && o.sampling <= 1):
		return fmt.Errorf("--trace-sampling=%v: want a share from 0 to 1, such as 0.01", o.sampling)
	}
	return nil
}

// sampler is nil if there are no spans to be made.
func (o *options) sampler() *tracing.Sampler {
	if !o.tracing {
		return nil
	}
	return tracing.NewSampler(o.sampling)
}
