package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tacit-mesh/tacit/internal/kube/nodeapi"
	"github.com/tacit-mesh/tacit/redirect/pods"
)

const (
	component = "tacit-agent"
	// maxText is what the API accepts of an event's message.
	maxText = 1024
	// maxPrefix is of an event's name, which ends with the time in nanoseconds.
	maxPrefix = 200
	// maxWaiting events are kept while the API is away or slow. What comes when
	// there are as many is in the log alone.
	maxWaiting = 100
	// burst events are sent at once and one every pause after that, however
	// often pods fail, and in however many ways.
	burst = 50
	pause = 2 * time.Second
	// attempts are made to send one while the API cannot be reached.
	attempts = 5
	retry    = 10 * time.Second
	// attemptTimeout bounds each of them.
	attemptTimeout = 10 * time.Second
)

// events are what owners of pods are to be told. client-go's recorder would also
// count what repeats itself, which workers tell once in half an hour, and bring
// half of an API server's library for OpenAPI with it.
type events struct {
	client  nodeapi.Client
	node    string
	retry   time.Duration
	log     *zap.Logger
	waiting chan *corev1.Event
}

func newEvents(client nodeapi.Client, node string, log *zap.Logger) *events {
	return &events{client: client, node: node, retry: retry, log: log, waiting: make(chan *corev1.Event, maxWaiting)}
}

// Report is for [pods.Config].Report, as an Event of the pod. It needs Run, and
// waits for nothing.
func (s *Source) Report(p pods.Pod, problem pods.Problem) {
	select {
	case s.events.waiting <- s.events.of(p, problem, time.Now()):
	default: // who reports has logged it
	}
}

// of makes the event of a problem.
func (e *events) of(p pods.Pod, problem pods.Problem, now time.Time) *corev1.Event {
	at := metav1.NewTime(now)
	return &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: fmt.Sprintf("%s.%x", cut(p.Name, maxPrefix), now.UnixNano())},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID),
		},
		Type: corev1.EventTypeWarning, Reason: string(problem.Reason), Message: cut(problem.Text, maxText),
		Source:         corev1.EventSource{Component: component, Host: e.node},
		FirstTimestamp: at, LastTimestamp: at, Count: 1,
		ReportingController: component, ReportingInstance: e.node,
	}
}

// cut leaves of a text at most that many bytes, and no part of a letter.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "")
}

// run sends until the context ends.
func (e *events) run(ctx context.Context) {
	limit := rate.NewLimiter(rate.Every(pause), burst)
	for {
		select {
		case event := <-e.waiting:
			if limit.Wait(ctx) == nil {
				e.send(ctx, event)
			}
		case <-ctx.Done():
			return
		}
	}
}

// send tries again only where the API has not answered: a refusal stays one.
// That the event is there already means that an answer was lost.
func (e *events) send(ctx context.Context, event *corev1.Event) {
	var err error
	for range attempts {
		if err = e.create(ctx, event); err == nil || isAnswer(err) {
			break
		}
		select {
		case <-time.After(e.retry):
		case <-ctx.Done():
			return
		}
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		e.log.Warn("an event is lost", zap.String("pod", event.Namespace+"/"+event.InvolvedObject.Name), zap.Error(explain(err, "create", "events")))
	}
}

func (e *events) create(ctx context.Context, event *corev1.Event) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	_, err := e.client.Events(event.Namespace).Create(ctx, event, metav1.CreateOptions{})
	return err
}

// isAnswer reports whether an error is the API's own. That it has too much to do
// is none that lasts.
func isAnswer(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status) && !apierrors.IsTooManyRequests(err) && !apierrors.IsServiceUnavailable(err)
}
