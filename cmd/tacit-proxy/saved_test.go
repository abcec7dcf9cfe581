package main

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// However often certificates change, saving takes but a part of the time, and
// the last change is saved.
func TestSavesPause(t *testing.T) {
	for took, most := range map[time.Duration]int{time.Millisecond: 10000 / 21, 100 * time.Millisecond: 10000 / 1100} {
		t.Run(took.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var mu sync.Mutex
				news, newest, saved, saves := make(chan struct{}), 0, 0, 0
				meshes := make(chan []byte, 1)
				changed := func() <-chan struct{} {
					mu.Lock()
					defer mu.Unlock()
					return news
				}
				var got string
				go keepSaved(ctx, changed, meshes, nil, func(mesh []byte) {
					mu.Lock()
					saved, saves, got = newest, saves+1, string(mesh)
					mu.Unlock()
					<-time.After(took)
				})
				for end := time.Now().Add(10 * time.Second); time.Now().Before(end); <-time.After(time.Millisecond) {
					mu.Lock()
					newest++
					close(news)
					news = make(chan struct{})
					mu.Unlock()
				}
				<-time.After(2 * longestPause)
				synctest.Wait()
				if saved != newest || saves > most+2 || saves < most/2 {
					t.Errorf("%d of %d changes are saved; %d saves in 10 s, want up to %d", saved, newest, saves, most)
				}
				for i := range 3 { // of meshes each, and at once
					meshes <- fmt.Append(nil, i)
					if synctest.Wait(); got != fmt.Sprint(i) {
						t.Errorf("mesh %q is saved, want %d", got, i)
					}
					<-time.After(took)
					synctest.Wait()
				}
			})
		})
	}
}
