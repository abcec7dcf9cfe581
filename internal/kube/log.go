package kube

import (
	"github.com/go-logr/logr/funcr"
	"go.uber.org/zap"
	"k8s.io/klog/v2"
)

// LogTo has client-go write to the program's own log, for the whole process:
// it knows no other way. To be called once, by main.
func LogTo(log *zap.Logger) {
	log = log.Named("client-go")
	klog.SetLogger(funcr.New(func(prefix, text string) {
		if prefix != "" {
			text = prefix + ": " + text
		}
		log.Info(text)
	}, funcr.Options{}))
}
