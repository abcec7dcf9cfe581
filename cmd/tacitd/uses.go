package main

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"
	"k8s.io/client-go/kubernetes"

	"github.com/tacit-mesh/tacit/internal/kube"
	"github.com/tacit-mesh/tacit/proxy/admin"
	"github.com/tacit-mesh/tacit/sight/uses"
)

// usesInterval is how often it is looked which policies have decided about
// something. What proxies have told meanwhile they tell the next tacitd again.
const usesInterval = time.Minute

// keeper replaces a text that outlives this process by what merge makes of it.
type keeper func(ctx context.Context, merge func(kept string) (string, error)) error

// inConfigMap keeps it in tacitd's namespace.
func inConfigMap(client kubernetes.Interface, namespace string) keeper {
	return func(ctx context.Context, merge func(string) (string, error)) error {
		return kube.MergeConfigMap(ctx, client, namespace, uses.ConfigMap, uses.Key, merge)
	}
}

// inFile keeps it in a file; nil for no file.
func inFile(path string) keeper {
	if path == "" {
		return nil
	}
	return func(_ context.Context, merge func(string) (string, error)) error {
		kept, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		text, err := merge(string(kept))
		if err != nil || text == string(kept) {
			return err
		}
		f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
		if err != nil {
			return err
		}
		defer os.Remove(f.Name())
		_, err = f.WriteString(text)
		if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
			return err
		}
		return os.Rename(f.Name(), path)
	}
}

// remember is the task of keeping when policies last decided about something.
func (o *sightOptions) remember(seen *observed, keep keeper, log *zap.Logger) func(context.Context) error {
	return func(ctx context.Context) error {
		if seen == nil || keep == nil {
			<-ctx.Done()
			return ctx.Err()
		}
		return seen.remember(ctx, keep, cmp.Or(o.usesInterval, usesInterval), log)
	}
}

func (s *observed) remember(ctx context.Context, keep keeper, interval time.Duration, log *zap.Logger) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if mesh := s.mesh(); mesh.PoliciesReady() { // else all of them would be forgotten
			if err := keep(ctx, s.merge); err != nil && ctx.Err() == nil {
				log.Warn("when policies were last of use is not kept; it is tried again", zap.Error(err))
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// merge adds what is known here to what was kept.
func (s *observed) merge(kept string) (string, error) {
	if err := s.memory.Merge(kept); err != nil {
		s.log.Warn("what was kept is left out, and written anew", zap.Error(err))
	}
	mesh := s.mesh()
	matched := s.uses(mesh)
	var inForce []string
	for _, use := range admin.PolicyUses(mesh, matched) {
		inForce = append(inForce, use.Policy)
	}
	s.memory.Note(inForce, matched, time.Now())
	text, left, err := s.memory.Text()
	if left > 0 {
		s.log.Warn("there is no room to keep when all policies were last of use", zap.Int("left out", left))
	}
	return text, err
}
