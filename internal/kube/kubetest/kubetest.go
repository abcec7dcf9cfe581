// Package kubetest has what tests with a fake Kubernetes API share.
package kubetest

import (
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	clienttesting "k8s.io/client-go/testing"
)

// deletionUnit is what a deletion adds to the resource version of a list; no
// test writes to a resource that often.
const deletionUnit = 1_000_000

// fakeClient is a fake of k8s.io/client-go.
type fakeClient interface {
	clienttesting.FakeClient
	PrependReactor(verb, resource string, reaction clienttesting.ReactionFunc)
	PrependWatchReactor(resource string, reaction clienttesting.WatchReactionFunc)
}

// deletions has what was deleted from one resource, in order.
type deletions []runtime.Object

// ShowDeletions has the fake tell of what is deleted between the list and the
// watch of a reflector, as a real server does. A fake by itself counts no
// deletion in its resource versions. It returns the client.
func ShowDeletions[C fakeClient](client C) C {
	tracker := client.Tracker()
	react := clienttesting.ObjectReaction(tracker)
	// Reactors run one at a time, under the fake's lock.
	deleted := map[schema.GroupVersionResource]deletions{}
	client.PrependReactor("delete", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		object, err := tracker.Get(a.GetResource(), a.GetNamespace(), a.(clienttesting.DeleteAction).GetName())
		if err == nil {
			deleted[a.GetResource()] = append(deleted[a.GetResource()], object)
		}
		return false, nil, nil
	})
	client.PrependReactor("list", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		_, list, err := react(a)
		if err != nil {
			return true, list, err
		}
		m, err := meta.ListAccessor(list)
		if err != nil {
			return true, nil, err
		}
		version, err := strconv.Atoi(m.GetResourceVersion())
		m.SetResourceVersion(strconv.Itoa(version + deletionUnit*len(deleted[a.GetResource()])))
		return true, list, err
	})
	client.PrependWatchReactor("*", func(a clienttesting.Action) (bool, watch.Interface, error) {
		options := a.(clienttesting.WatchActionImpl).ListOptions
		if options.ResourceVersion == "" { // the watch begins with what there is
			return false, nil, nil
		}
		version, err := strconv.Atoi(options.ResourceVersion)
		if err != nil {
			return true, nil, err
		}
		options.ResourceVersion = strconv.Itoa(version % deletionUnit)
		w, err := tracker.Watch(a.GetResource(), a.GetNamespace(), options)
		if err == nil {
			deleted[a.GetResource()][version/deletionUnit:].replay(tracker, a, w.(*watch.RaceFreeFakeWatcher))
		}
		return true, w, err
	})
	return client
}

// replay tells the watch that a began of the objects that it is about, but for
// those that are there again.
func (d deletions) replay(tracker clienttesting.ObjectTracker, a clienttesting.Action, w *watch.RaceFreeFakeWatcher) {
	for _, object := range d {
		m, err := meta.Accessor(object)
		if err != nil || a.GetNamespace() != "" && m.GetNamespace() != a.GetNamespace() {
			continue
		}
		if _, err := tracker.Get(a.GetResource(), m.GetNamespace(), m.GetName()); apierrors.IsNotFound(err) {
			w.Add(object)
			w.Delete(object)
		}
	}
}
