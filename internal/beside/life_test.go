// SPDX-License-Identifier: Apache-2.0

package beside

import (
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// chores is a Work that can be given something to do.
type chores struct {
	http.Handler
	busy   bool
	tidy   func()
	tidied atomic.Int32
}

func (c *chores) Busy() bool   { return c.busy }
func (c *chores) Close() error { return nil }
func (c *chores) Tidy() {
	c.tidied.Add(1)
	if c.tidy != nil {
		c.tidy()
	}
}

// alive returns a Life with its Work, whose process ends after a minute without one.
func alive(c *chores) *Life {
	l := newLife(time.Minute)
	l.begin(c)
	return l
}

func (l *Life) ended() bool {
	synctest.Wait()
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// after reports whether the process has ended when a time has passed.
func (l *Life) after(d time.Duration) bool {
	<-time.After(d)
	return l.ended()
}

func TestProcessEndsWhenItHasHadNoClientForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &chores{}
		l := alive(c)
		end, ok := l.Begin()
		other, _ := l.Begin()
		if !ok || l.after(time.Hour) {
			t.Fatal("it ends although it has a client")
		}
		end()
		end() // connections are closed more than once
		if l.after(time.Hour) {
			t.Fatal("it ends although it has one of two clients")
		}
		other()
		if l.after(59*time.Second) || c.tidied.Load() > 0 {
			t.Fatal("it ends too soon")
		}
		if !l.after(2*time.Second) || c.tidied.Load() != 1 {
			t.Errorf("it does not end, or has tidied %d times", c.tidied.Load())
		}
		if _, ok := l.Begin(); ok {
			t.Error("a client is taken by a process that ends")
		}
	})
}

func TestProcessThatHasWorkStaysWithoutAClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &chores{busy: true}
		l := alive(c)
		if l.after(time.Hour) || l.stop(false) || l.ended() {
			t.Fatal("it ends although it has something to do")
		}
		c.busy = false
		l.Rest()
		if !l.after(61 * time.Second) {
			t.Error("it does not end when it has nothing left to do")
		}
	})
}

func TestClientThatComesWhileTheProcessTidiesIsServed(t *testing.T) {
	for name, leaves := range map[string]bool{"and stays": false, "and leaves": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &chores{}
				l := newLife(time.Minute)
				c.tidy = func() {
					if c.tidied.Load() > 1 {
						return
					}
					if end, ok := l.Begin(); !ok {
						t.Error("the client is refused")
					} else if leaves {
						end()
					}
				}
				l.begin(c)
				if l.after(90 * time.Second) {
					t.Fatal("the process ends at once")
				}
				if got := l.after(time.Minute); got != leaves || leaves && c.tidied.Load() != 2 {
					t.Errorf("it has ended: %v, want %v; it has tidied %d times", got, leaves, c.tidied.Load())
				}
				l.stop(true)
			})
		})
	}
}

func TestDaemonEndsAProcessThatIsIdleOrAny(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &chores{}
		l := alive(c)
		end, _ := l.Begin()
		if l.stop(false) || l.ended() {
			t.Error("a process with a client ends")
		}
		end()
		if !l.stop(false) || !l.ended() || c.tidied.Load() > 0 {
			t.Errorf("an idle process does not end, or has tidied %d times", c.tidied.Load())
		}
		if !l.stop(true) { // a second daemon asks
			t.Error("a process that ends says that it does not")
		}
		l = alive(&chores{busy: true})
		if _, ok := l.Begin(); !ok || !l.stop(true) || !l.ended() {
			t.Error("a process with a client and work does not end")
		}
	})
}
