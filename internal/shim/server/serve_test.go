// SPDX-License-Identifier: Apache-2.0

package server

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
)

// A daemon that can't read an answer sends the same request to the next shim.
// Therefore an action that follows an answer must wait until that is sent.
func TestWhatFollowsAnAnswerWaitsUntilItIsSent(t *testing.T) {
	for _, tt := range []struct {
		name string
		peer func(fd int)
	}{
		{"read by its peer", func(fd int) {
			for buf := make([]byte, 1<<20); ; {
				if n, _ := unix.Read(fd, buf); n <= 0 {
					return
				}
			}
		}},
		{"whose peer has gone", func(fd int) { unix.Shutdown(fd, unix.SHUT_RDWR) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fds[1])
			frames, err := proto.NewConn(fds[0])
			if err != nil {
				t.Fatal(err)
			}
			s := &server{shim: &Shim{rec: &record{}, verbs: &verbs{}}}
			c := newConn(s, frames)
			// Queue more than the socket buffers before the answer. Letters need no
			// escapes, so that encoding is fast under the race detector too.
			big := strings.Repeat("x", 64<<10)
			for range 64 {
				c.post(plain(&proto.Message{Method: big}))
			}
			followed := make(chan struct{})
			c.answerThen(1, nil, nil, func() { close(followed) })
			go c.write()
			fill := []unix.PollFd{{Fd: int32(fds[1]), Events: unix.POLLIN}}
			n, err := unix.Poll(fill, 10_000)
			for err == unix.EINTR { // a preemption signal of the Go runtime
				n, err = unix.Poll(fill, 10_000)
			}
			if n != 1 {
				t.Fatalf("nothing is sent: %v", err)
			}
			select {
			case <-followed:
				t.Fatal("then was called before the answer was sent")
			default:
			}
			go tt.peer(fds[1])
			select {
			case <-followed:
			case <-time.After(10 * time.Second):
				t.Fatal("then was not called after the answer was sent")
			}
			c.closeAfterQueue()
			<-c.done
			late := false
			c.answerThen(2, nil, nil, func() { late = true })
			if !late {
				t.Error("then was not called for an answer on a closed connection")
			}
		})
	}
}

// TestSubscriberMayAlwaysBeALittleBehind: what counts is how far it is behind, not
// how many events it got.
func TestSubscriberMayAlwaysBeALittleBehind(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	frames, err := proto.NewConn(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	c := newConn(&server{shim: &Shim{rec: &record{}}}, frames)
	defer frames.File().Close()
	c.postEvent(&proto.Event{})
	for range 3 * eventsQueued {
		c.postEvent(&proto.Event{})
		if m, _ := c.next(); m == nil || c.closing {
			t.Fatalf("%v, closing: %v", m, c.closing)
		}
	}
	for range eventsQueued {
		c.postEvent(&proto.Event{})
	}
	if !c.closing {
		t.Error("a subscriber that reads nothing is kept")
	}
}
