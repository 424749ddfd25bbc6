package server

import (
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
)

// The host's sockets of published ports are held here so that nobody else gets
// the ports. Almost all traffic never comes to them: the kernel translates it.
// What it can't translate, such as a connection to [::1], is forwarded.

const (
	udpIdle  = 90 * time.Second // after which a peer's socket is given up
	udpPeers = 1024             // peers of one port at a time
	dialTime = 10 * time.Second
	copySize = 32 << 10
)

// hostPorts are the sockets.
type hostPorts struct {
	mu     sync.Mutex // held while sockets are used, and while they are closed
	fds    []int
	closed bool

	udp []*udpForward

	flows    sync.Mutex // after motion
	forwards map[*forward]struct{}
}

// close gives the ports back to the host. What is being forwarded goes on.
func (p *hostPorts) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		closeAll(p.fds)
		p.closed = true
	}
}

// use calls fn unless the sockets are closed: their numbers may then mean other
// files.
func (p *hostPorts) use(fn func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		fn()
	}
}

// servePorts forwards for all ports with one goroutine while nothing comes.
// It takes over the descriptors.
func servePorts(ports []proto.Port, fds []int) (*hostPorts, error) {
	held := &hostPorts{fds: fds}
	if len(fds) == 0 {
		return held, nil
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create", err)
	}
	// An epoll descriptor can itself be polled.
	if err := unix.SetNonblock(ep, true); err != nil {
		return nil, os.NewSyscallError("setnonblock", err)
	}
	handlers := map[int32]func(){}
	for i, port := range ports {
		fd := fds[i]
		target, err := netip.ParseAddrPort(port.Target)
		if err != nil || port.Proto != "tcp" && port.Proto != "udp" {
			continue // held, not forwarded
		}
		if err := unix.SetNonblock(fd, true); err != nil {
			return nil, os.NewSyscallError("setnonblock", err)
		}
		switch port.Proto {
		case "tcp":
			handlers[int32(fd)] = func() { held.acceptTCP(fd, target) }
		case "udp":
			u := &udpForward{held: held, fd: fd, target: target, peers: map[netip.AddrPort]*os.File{}}
			handlers[int32(fd)] = u.receive
			held.udp = append(held.udp, u)
		}
		event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
		if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
			return nil, os.NewSyscallError("epoll_ctl", err)
		}
	}
	f := os.NewFile(uintptr(ep), "ports")
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	go raw.Read(func(ep uintptr) bool {
		var events [16]unix.EpollEvent
		for {
			n, err := unix.EpollWait(int(ep), events[:], 0)
			if err != nil && err != unix.EINTR {
				logf("ports: epoll_wait: %v", err)
				return true
			}
			if n == 0 {
				return false
			}
			for _, e := range events[:max(n, 0)] {
				held.use(handlers[e.Fd])
			}
		}
	})
	return held, nil
}

func sockaddr(a netip.AddrPort) (unix.Sockaddr, int) {
	if ip := a.Addr().Unmap(); ip.Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: ip.As4()}, unix.AF_INET
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}, unix.AF_INET6
}

// acceptTCP takes the connections that wait.
func (p *hostPorts) acceptTCP(fd int, target netip.AddrPort) {
	for {
		motion.RLock()
		c, _, err := unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		var w *forward
		if err == nil {
			w = &forward{client: os.NewFile(uintptr(c), "client"), target: target}
			p.mark(w, true)
		}
		motion.RUnlock()
		switch err {
		case nil:
			go p.forwardTCP(w)
		case unix.EINTR, unix.ECONNABORTED:
		case unix.EAGAIN:
			return
		default:
			logf("accept for %v: %v", target, err)
			return
		}
	}
}

// forward is a connection that is carried on to the container. What is in its
// halves changes within steps (see still.go).
type forward struct {
	client, server *os.File // server is nil until it is reached
	target         netip.AddrPort
	up, down       half
}

// half is one direction.
type half struct {
	left  []byte // read and not yet written
	ended bool   // its source has no more
	over  bool   // and its destination was told
}

func (p *hostPorts) forwardTCP(w *forward) {
	defer w.client.Close()
	defer p.mark(w, false)
	if w.server == nil {
		server, err := dialTCP(w.target)
		if err != nil {
			return
		}
		motion.RLock()
		w.server = server
		motion.RUnlock()
	}
	defer w.server.Close()
	var both sync.WaitGroup
	both.Go(func() { w.up.copy(w.server, w.client) })
	both.Go(func() { w.down.copy(w.client, w.server) })
	both.Wait()
}

// mark notes which connections are forwarded.
func (p *hostPorts) mark(w *forward, on bool) {
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

// copy copies the direction and passes its end on.
func (h *half) copy(dst, src *os.File) {
	buf := make([]byte, copySize)
	for !h.over {
		if len(h.left) > 0 {
			if writeSteps(dst, &h.left) != nil {
				shutdown(src, unix.SHUT_RD)
				h.over = true
				return
			}
		}
		if h.ended {
			shutdown(dst, unix.SHUT_WR)
			h.over = true
			return
		}
		readStep(src, buf, func(p []byte, eof bool) {
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

// udpForward gives every peer a socket of its own towards the container, so
// that answers find their way back.
type udpForward struct {
	held   *hostPorts
	fd     int
	target netip.AddrPort

	mu    sync.Mutex
	peers map[netip.AddrPort]*os.File
}

func (u *udpForward) receive() {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := unix.Recvfrom(u.fd, buf, unix.MSG_DONTWAIT)
		if err == unix.EINTR || err == unix.ECONNREFUSED {
			continue
		}
		if err != nil {
			return
		}
		if f := u.peer(from); f != nil {
			f.Write(buf[:n])
		}
	}
}

func (u *udpForward) peer(from unix.Sockaddr) *os.File {
	var key netip.AddrPort
	switch a := from.(type) {
	case *unix.SockaddrInet4:
		key = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		key = netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	default:
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if f := u.peers[key]; f != nil {
		f.SetReadDeadline(time.Now().Add(udpIdle))
		return f
	}
	if len(u.peers) >= udpPeers {
		return nil
	}
	sa, family := sockaddr(u.target)
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	if err := unix.Connect(fd, sa); err != nil {
		unix.Close(fd)
		return nil
	}
	return u.add(key, from, fd)
}

// add is called with the lock held.
func (u *udpForward) add(key netip.AddrPort, from unix.Sockaddr, fd int) *os.File {
	f := os.NewFile(uintptr(fd), "peer")
	f.SetReadDeadline(time.Now().Add(udpIdle))
	u.peers[key] = f
	go u.answer(key, from, f)
	return f
}

// take takes a peer's socket over from the program before.
func (u *udpForward) take(from netip.AddrPort, fd int) {
	sa, _ := sockaddr(from)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.add(from, sa, fd)
}

func (u *udpForward) answer(key netip.AddrPort, to unix.Sockaddr, f *os.File) {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		if err != nil && n <= 0 {
			// A port that is closed just now may be open for the next datagram.
			if pe, ok := err.(*os.PathError); ok && pe.Err == unix.ECONNREFUSED {
				continue
			}
			break
		}
		u.held.use(func() { unix.Sendto(u.fd, buf[:n], unix.MSG_DONTWAIT, to) })
		f.SetReadDeadline(time.Now().Add(udpIdle))
	}
	u.mu.Lock()
	delete(u.peers, key)
	u.mu.Unlock()
	f.Close()
}
