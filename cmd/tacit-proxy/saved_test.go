package main

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func none() []byte { return nil }

// What one proxy hands over the next one reads, and nothing else.
func TestSavedIsRead(t *testing.T) {
	for _, s := range []saved{{}, {mesh: []byte("mesh")}, {[]byte("mesh"), []byte("certificates")}} {
		pieces := s.pieces()
		if len(s.mesh) > 0 && &pieces[3][0] != &s.mesh[0] {
			t.Error("the mesh is copied")
		}
		content := bytes.Join(pieces, nil)
		if got, ok := readSaved(content); !ok || !bytes.Equal(got.mesh, s.mesh) || !bytes.Equal(got.certificates, s.certificates) {
			t.Errorf("of %q is read %q, %v", s, got, ok)
		}
		for i := range content {
			if got, ok := readSaved(content[:i]); ok {
				t.Errorf("of the first %d bytes of %q is read %q", i, content, got)
			}
		}
		content[2]++
		if _, ok := readSaved(content); ok {
			t.Error("another format is read")
		}
	}
}

// However often certificates change, saving takes but a part of the time, and
// the last change is saved.
func TestSavesPause(t *testing.T) {
	for took, most := range map[time.Duration]int{time.Millisecond: 10000 / 301, 100 * time.Millisecond: 10000 / 1100} {
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
				go keepSaved(t.Context(), ctx, changed, meshes, none, func(mesh []byte) <-chan struct{} {
					mu.Lock()
					saved, saves, got = newest, saves+1, string(mesh)
					mu.Unlock()
					<-time.After(took)
					return nil
				}, func() {})
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

// What has changed since the last save is saved when the process is told to end,
// and the sockets stay until the agent was sent it.
func TestEndSaves(t *testing.T) {
	for _, there := range []bool{true, false} {
		t.Run(fmt.Sprint("an agent is there: ", there), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				serving, end := context.WithCancel(t.Context())
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				p := &process{handedOver: make(chan struct{})}
				after := p.afterHandover(serving, ctx)
				changed, renewed, saved := make(chan struct{}), false, false
				sent, meshes, held := make(chan struct{}), make(chan []byte, 1), "first"
				newest := func() []byte { return []byte(held) }
				go keepSaved(serving, ctx, func() <-chan struct{} { return changed }, meshes, newest, func(mesh []byte) <-chan struct{} {
					saved = renewed && string(mesh) == "newest"
					<-time.After(longestPause / savePause)
					return sent
				}, func() { close(p.handedOver) })
				<-time.After(2 * longestPause / savePause) // within the pause
				renewed = true
				close(changed)
				changed = make(chan struct{})
				if synctest.Wait(); saved {
					t.Fatal("there is no pause")
				}
				held = "newest"
				end()
				<-time.After(sendTimeout / 2)
				if !saved || after.Err() != nil {
					t.Errorf("the last change is saved: %v, and before the agent was sent it: %v", saved, after.Err())
				}
				began := time.Now()
				if there {
					close(sent)
				}
				if <-after.Done(); there && time.Since(began) > 0 || time.Since(began) > sendTimeout {
					t.Errorf("it took %v", time.Since(began))
				}
			})
		})
	}
}
