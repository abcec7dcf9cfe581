package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/proxy/admin"
)

// Pods of the churn come in waves, all of one before the next.
const (
	waves     = 20
	podsAWave = 250
	warmUp    = 4 // waves after which nothing may grow any more
	accounts  = 7 // which shift by one with each wave, so that addresses change hands
	// mostGrowth is a KB for each pod of the waves after the first ones.
	mostGrowth = (waves - warmUp) * podsAWave << 10
)

// Pods that have gone leave nothing behind in control plane and proxies: 5,000
// come and go, and neither memory nor metric series grow. No node runs these
// pods; for all others they are as any.
func churn(e environment) {
	e = e.within(8 * time.Minute)
	const namespace = "churn"
	e.newNamespace(namespace, inMesh())
	for i := range accounts {
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("account-%d", i)}}
		_, err := e.Client.CoreV1().ServiceAccounts(namespace).Create(e.ctx, account, metav1.CreateOptions{})
		e.must(err)
	}
	resting := e.restingWorkloads()
	var warm map[string]footprint
	for wave := range waves {
		e.makeWave(namespace, wave)
		e.awaitWorkloads(resting + podsAWave)
		now := int64(0)
		e.must(e.Client.CoreV1().Pods(namespace).DeleteCollection(e.ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{}))
		e.awaitWorkloads(resting)
		if wave+1 == warmUp {
			warm = e.footprints()
		}
	}
	for pod, last := range e.footprints() {
		first := warm[pod]
		e.t.Logf("%s: %d KB and %d series, after the first waves %d KB and %d", pod, last.live>>10, last.series, first.live>>10, first.series)
		if last.live > first.live+mostGrowth {
			e.t.Errorf("%s has grown by %d KB, want %d at most", pod, (last.live-first.live)>>10, mostGrowth>>10)
		}
		if last.series > first.series+10 {
			e.t.Errorf("%s has %d series, and %d after the first waves", pod, last.series, first.series)
		}
	}
}

// makeWave makes pods that run and are captured, as far as one can see.
func (e environment) makeWave(namespace string, wave int) {
	e.t.Helper()
	group, ctx := errgroup.WithContext(e.ctx)
	group.SetLimit(16)
	pods := e.Client.CoreV1().Pods(namespace)
	for i := range podsAWave {
		group.Go(func() error {
			pod, err := pods.Create(ctx, &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{
					Name: fmt.Sprintf("wave-%d-%d", wave, i), Labels: map[string]string{"wave": fmt.Sprint(wave)},
					Annotations: map[string]string{captureAnnotation: enabled},
				},
				Spec: corev1.PodSpec{
					NodeName:           fmt.Sprintf("nowhere-%d", wave), // Kubernetes removes pods of a node that there is not, in time
					ServiceAccountName: fmt.Sprintf("account-%d", (i+wave)%accounts),
					Containers:         []corev1.Container{{Name: "app", Image: "none"}},
				},
			}, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			address := fmt.Sprintf("10.250.%d.%d", i/200, 1+i%200)
			pod.Status.Phase, pod.Status.PodIP, pod.Status.PodIPs = corev1.PodRunning, address, []corev1.PodIP{{IP: address}}
			pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
			_, err = pods.UpdateStatus(ctx, pod, metav1.UpdateOptions{})
			return err
		})
	}
	e.must(group.Wait())
}

const proxies = "app.kubernetes.io/name=tacit-proxy"

// workloads is how many a proxy knows.
func (e environment) workloads(proxy string) (int, error) {
	out, err := e.Exec(e.ctx, Namespace, proxy, "/usr/local/bin/tacit", "status", "--output=json")
	if err != nil {
		return 0, err
	}
	var status admin.Status
	err = json.Unmarshal([]byte(out), &status)
	return status.Workloads, err
}

// restingWorkloads is how many all proxies know once what was before has gone.
func (e environment) restingWorkloads() int {
	e.t.Helper()
	last, since := -1, time.Now()
	e.eventually("all proxies know the same", func() error {
		for _, proxy := range e.podNames(Namespace, proxies) {
			n, err := e.workloads(proxy)
			if err != nil {
				return err
			}
			if n != last {
				last, since = n, time.Now()
			}
		}
		if time.Since(since) < unchanged {
			return fmt.Errorf("%d since %v", last, since)
		}
		return nil
	})
	return last
}

// unchanged is for how long nothing has to have changed.
const unchanged = 3 * time.Second

// awaitWorkloads waits until every proxy knows that many.
func (e environment) awaitWorkloads(want int) {
	e.t.Helper()
	for _, proxy := range e.podNames(Namespace, proxies) {
		e.eventually(fmt.Sprintf("%s knows %d workloads", proxy, want), func() error {
			n, err := e.workloads(proxy)
			if err == nil && n != want {
				err = fmt.Errorf("it knows %d", n)
			}
			return err
		})
	}
}

// footprint is what a program holds.
type footprint struct {
	live   int // bytes that were in use after a garbage collection, or soon after
	series int
}

// footprints are those of control plane and proxies, by pod.
func (e environment) footprints() map[string]footprint {
	e.t.Helper()
	all := map[string]footprint{}
	for program, port := range map[string]string{"tacitd": "15014", "tacit-proxy": "15020"} {
		for _, pod := range e.podNames(Namespace, "app.kubernetes.io/name="+program) {
			all[pod] = e.footprint(pod, port)
		}
	}
	return all
}

// footprint looks at a program until it has collected its garbage twice, which
// being looked at makes it do.
func (e environment) footprint(pod, port string) footprint {
	e.t.Helper()
	var least footprint
	begin := -1.0
	e.eventually(pod+" collects its garbage", func() error {
		families, err := e.scrape(pod, port)
		if err != nil {
			return err
		}
		now := footprint{live: int(families["go_memstats_heap_alloc_bytes"].GetMetric()[0].GetGauge().GetValue())}
		for _, family := range families {
			now.series += len(family.GetMetric())
		}
		if least.live == 0 || now.live < least.live {
			least = now
		}
		collected := float64(families["go_gc_duration_seconds"].GetMetric()[0].GetSummary().GetSampleCount())
		if begin < 0 {
			begin = collected
		}
		if collected < begin+2 {
			return errors.New("not yet")
		}
		return nil
	})
	return least
}
