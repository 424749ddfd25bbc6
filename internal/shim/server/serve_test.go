package server

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
)

// A daemon that can't read an answer asks the next shim for the same, so that
// nothing may follow an answer that is not sent.
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
			s := &server{shim: &Shim{rec: &record{}}}
			c := &conn{srv: s, frames: frames, done: make(chan struct{}), wake: make(chan struct{}, 1)}
			// More than the socket holds goes before the answer.
			big := string(make([]byte, 64<<10))
			for range 64 {
				c.post(plain(&proto.Message{Method: big}))
			}
			followed := make(chan struct{})
			c.answerThen(1, nil, nil, func() { close(followed) })
			go c.write()
			fill := []unix.PollFd{{Fd: int32(fds[1]), Events: unix.POLLIN}}
			if n, err := unix.Poll(fill, 10_000); n != 1 {
				t.Fatalf("nothing is sent: %v", err)
			}
			select {
			case <-followed:
				t.Fatal("it followed before the answer was sent")
			default:
			}
			go tt.peer(fds[1])
			select {
			case <-followed:
			case <-time.After(10 * time.Second):
				t.Fatal("it never followed")
			}
			c.end()
			<-c.done
			late := false
			c.answerThen(2, nil, nil, func() { late = true })
			if !late {
				t.Error("what follows an answer to a connection that is over was forgotten")
			}
		})
	}
}
