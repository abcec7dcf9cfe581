package kube

import (
	"encoding/json"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tacit-mesh/tacit/proxy/admin"
)

// Pods of the churn come in waves, all of one before the next.
const (
	waves     = 10
	podsAWave = 500
	warmUp    = 5 // waves after which nothing may grow any more: as many connections were made as proxies remember
	accounts  = 7 // which shift by one with each wave, so that addresses change hands
	// mostGrowth is a KB for each pod of the waves after the first ones.
	mostGrowth = (waves - warmUp) * podsAWave << 10
)

// Pods that have gone leave nothing behind in control plane, proxies and agents:
// 5,000 come and go, each connects to a pod or is connected to by one, and
// neither memory nor metric series grow. No node runs these pods; for all others
// they are as any. The pods that connect to them are real, and made anew in each
// wave.
func churn(e environment) {
	e = e.within(8 * time.Minute)
	const namespace = "churn"
	e.newNamespace(namespace, inMesh())
	e.makeNowhere()
	traffic := e.newChurnTraffic()
	for i := range accounts {
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: accountName(i)}}
		_, err := e.Client.CoreV1().ServiceAccounts(namespace).Create(e.ctx, account, metav1.CreateOptions{})
		e.must(err)
	}
	owner := e.makeOwner(namespace)
	resting := e.restingWorkloads()
	var warm map[string]footprint
	for wave := range waves {
		traffic.renewCallers()
		e.makeWave(namespace, wave, owner)
		e.awaitWorkloads(resting + podsAWave)
		traffic.exchange(wave)
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

// nowhere is the node of the pods that no node runs. There is an object of it,
// as Kubernetes removes pods of a node that there is not, but no DaemonSet has a
// pod there: it is not said to run Linux.
const nowhere = "nowhere"

func (e environment) makeNowhere() {
	e.t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nowhere}, Spec: corev1.NodeSpec{Unschedulable: true}}
	_, err := e.Client.CoreV1().Nodes().Create(e.ctx, node, metav1.CreateOptions{})
	e.must(err)
	e.atEnd(func(e environment) error { return e.Delete(e.ctx, "v1", "Node", "", nowhere) })
}

// makeOwner makes what all pods of the churn are said to belong to, as those of a
// Deployment do, whose pods are one workload to whoever counts: something that
// Kubernetes does not hold to any number of pods.
func (e environment) makeOwner(namespace string) metav1.OwnerReference {
	e.t.Helper()
	made, err := e.Client.CoreV1().ConfigMaps(namespace).Create(e.ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "owner"}}, metav1.CreateOptions{})
	e.must(err)
	return *metav1.NewControllerRef(made, corev1.SchemeGroupVersion.WithKind("ConfigMap"))
}

// waveAddress is that of a pod of each wave, by its number.
func waveAddress(pod int) string { return fmt.Sprintf("10.250.%d.%d", pod/200, 1+pod%200) }

// waveAccount is the number of a pod's account.
func waveAccount(wave, pod int) int { return (wave + pod) % accounts }

func accountName(number int) string { return fmt.Sprintf("account-%d", number) }

// makeWave makes pods that run and are captured, as far as one can see.
func (e environment) makeWave(namespace string, wave int, owner metav1.OwnerReference) {
	e.t.Helper()
	group, ctx := errgroup.WithContext(e.ctx)
	group.SetLimit(16)
	pods := e.Client.CoreV1().Pods(namespace)
	for i := range podsAWave {
		group.Go(func() error {
			pod, err := pods.Create(ctx, &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{
					Name: fmt.Sprintf("wave-%d-%d", wave, i), Labels: map[string]string{"wave": fmt.Sprint(wave)},
					Annotations:     map[string]string{captureAnnotation: enabled},
					OwnerReferences: []metav1.OwnerReference{owner},
				},
				Spec: corev1.PodSpec{
					NodeName:           nowhere,
					Tolerations:        []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
					ServiceAccountName: accountName(waveAccount(wave, i)),
					Containers:         []corev1.Container{{Name: "app", Image: "none"}},
				},
			}, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			address := waveAddress(i)
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

// footprints are those of control plane, proxies and agents, by pod.
func (e environment) footprints() map[string]footprint {
	e.t.Helper()
	var all []*collector
	for program, port := range map[string]string{"tacitd": "15014", "tacit-proxy": "15020", "tacit-agent": "15013"} {
		for _, pod := range e.podNames(Namespace, "app.kubernetes.io/name="+program) {
			all = append(all, &collector{pod: pod, port: port, begin: -1})
		}
	}
	e.eventually("all programs collect their garbage", func() error {
		var group errgroup.Group
		for _, c := range all {
			group.Go(func() error { return c.look(e) })
		}
		return group.Wait()
	})
	found := map[string]footprint{}
	for _, c := range all {
		found[c.pod] = c.least
	}
	return found
}

// collector looks at a program until it has collected its garbage twice, which
// being looked at makes it do.
type collector struct {
	pod, port        string
	begin, collected float64 // collections; -1 before the first look
	least            footprint
}

// looks are how many there are without a pause.
const looks = 20

func (c *collector) look(e environment) error {
	for range looks {
		if c.begin >= 0 && c.collected >= c.begin+2 {
			return nil
		}
		families, err := e.scrape(Namespace, c.pod, c.port)
		if err != nil {
			return err
		}
		now := footprint{live: int(families["go_memstats_heap_alloc_bytes"].GetMetric()[0].GetGauge().GetValue())}
		for _, family := range families {
			now.series += len(family.GetMetric())
		}
		if c.least.live == 0 || now.live < c.least.live {
			c.least = now
		}
		c.collected = float64(families["go_gc_duration_seconds"].GetMetric()[0].GetSummary().GetSampleCount())
		if c.begin < 0 {
			c.begin = c.collected
		}
	}
	return fmt.Errorf("%s has done so %v times", c.pod, c.collected-c.begin)
}
