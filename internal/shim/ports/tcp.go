// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/log"
	"holdfast/internal/shim/stream"
)

const (
	dialTime = 10 * time.Second
	copySize = 32 << 10
)

// acceptTCP accepts the pending connections.
func (p *Set) acceptTCP(fd int) {
	target := p.targets[fd]
	for {
		room := target.IsValid() && p.reserve(2)
		stream.Motion.RLock()
		c, _, err := unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		var w *forward
		switch {
		case err == nil && room:
			w = &forward{client: os.NewFile(uintptr(c), "client"), target: target}
			p.trackForward(w, true)
		case err == nil:
			unix.Close(c) // a refused client fails faster than one that waits
		}
		stream.Motion.RUnlock()
		if w != nil {
			go p.forwardTCP(w)
			continue
		}
		if room {
			p.budget.Add(2)
		}
		switch err {
		case nil, unix.EINTR, unix.ECONNABORTED:
		case unix.EAGAIN:
			return
		default:
			// Most likely descriptors or memory have run out. The connection stays in
			// the queue, and epoll would report it again at once.
			log.Printf("accept for %v: %v", target, err)
			p.pause(fd)
			return
		}
	}
}

// forward is a TCP connection that is forwarded to the container. Its halves change
// within steps (see stream.Motion).
type forward struct {
	client, server *os.File // server is nil until it is connected
	target         netip.AddrPort
	up, down       half
}

// half is one direction of a forwarded connection.
type half struct {
	left  []byte // read and not yet written
	ended bool   // the source is at EOF
	done  bool   // the EOF was passed on, or a write failed
}

func (p *Set) forwardTCP(w *forward) {
	defer p.budget.Add(2)
	defer w.client.Close()
	defer p.trackForward(w, false)
	if w.server == nil {
		server, err := dialTCP(w.target)
		if err != nil {
			return
		}
		stream.Motion.RLock()
		w.server = server
		stream.Motion.RUnlock()
	}
	defer w.server.Close()
	var both sync.WaitGroup
	both.Go(func() { w.up.copy(w.server, w.client) })
	both.Go(func() { w.down.copy(w.client, w.server) })
	both.Wait()
}

// trackForward adds a connection to those that a re-exec hands over, or removes it.
func (p *Set) trackForward(w *forward, on bool) {
	p.flows.Lock()
	defer p.flows.Unlock()
	if on {
		if p.forwards == nil {
			p.forwards = map[*forward]struct{}{}
		}
		p.forwards[w] = struct{}{}
	} else {
		delete(p.forwards, w)
	}
}

// copy copies bytes until EOF and passes the EOF on.
func (h *half) copy(dst, src *os.File) {
	buf := make([]byte, copySize)
	for !h.done {
		if len(h.left) > 0 {
			if stream.WriteSteps(dst, &h.left) != nil {
				shutdown(src, unix.SHUT_RD)
				h.done = true
				return
			}
		}
		if h.ended {
			shutdown(dst, unix.SHUT_WR)
			h.done = true
			return
		}
		stream.ReadStep(src, buf, func(p []byte, eof bool) {
			h.left = append(h.left, p...)
			h.ended = eof
		})
	}
}

func shutdown(f *os.File, how int) {
	if raw, err := f.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), how) })
	}
}

func dialTCP(target netip.AddrPort) (*os.File, error) {
	sa, family := sockaddr(target)
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	err = unix.Connect(fd, sa)
	if err != nil && err != unix.EINPROGRESS && err != unix.EINTR {
		unix.Close(fd)
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "container")
	raw, rerr := f.SyscallConn()
	if rerr != nil {
		f.Close()
		return nil, rerr
	}
	f.SetWriteDeadline(time.Now().Add(dialTime))
	rerr = raw.Write(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, _ := unix.Poll(fds, 0); n == 0 {
			return false
		}
		var soerr int
		if soerr, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); err == nil && soerr != 0 {
			err = syscall.Errno(soerr)
		}
		return true
	})
	if rerr != nil {
		err = rerr
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	f.SetWriteDeadline(time.Time{})
	return f, nil
}
