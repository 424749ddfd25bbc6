package server

import (
	"errors"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
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

	ep       int // the epoll descriptor, -1 until something is forwarded
	handlers map[int32]func()
	targets  map[int]netip.AddrPort // by socket; not valid: it leads nowhere now
	udp      []*udpForward

	room atomic.Int64 // sockets that may still be opened to forward

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

// take counts sockets that are about to be opened, or reports false: a flood of
// connections must not leave the container's log and its commands without
// descriptors.
func (p *hostPorts) take(n int64) bool {
	if p.room.Add(-n) >= 0 {
		return true
	}
	p.room.Add(n)
	return false
}

// servePorts forwards for all ports with one goroutine while nothing comes.
// It takes over the descriptors.
func servePorts(ports []proto.Port, fds []int) (*hostPorts, error) {
	held := newHostPorts(nil)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil, os.NewSyscallError("getrlimit", err)
	}
	held.room.Store(max(0, int64(min(limit.Cur, 1<<20))-int64(len(fds))) / 2)
	return held, held.add(ports, fds)
}

func newHostPorts(fds []int) *hostPorts {
	return &hostPorts{fds: fds, ep: -1, handlers: map[int32]func(){}, targets: map[int]netip.AddrPort{}}
}

// add takes over sockets and forwards what comes to them.
func (p *hostPorts) add(ports []proto.Port, fds []int) error {
	p.fds = append(p.fds, fds...)
	for i, port := range ports {
		target, err := netip.ParseAddrPort(port.Target)
		if err != nil && !listens(fds[i]) {
			continue // held, not forwarded
		}
		if err := p.forward(fds[i], port.Proto, target); err != nil {
			return err
		}
	}
	return nil
}

// forward begins to forward what comes to a socket.
func (p *hostPorts) forward(fd int, protocol string, target netip.AddrPort) error {
	switch protocol {
	case "tcp":
		p.handlers[int32(fd)] = func() { p.acceptTCP(fd) }
	case "udp":
		u := &udpForward{held: p, fd: fd, peers: map[netip.AddrPort]*os.File{}}
		p.handlers[int32(fd)] = u.receive
		p.udp = append(p.udp, u)
	default:
		return nil
	}
	p.targets[fd] = target
	if err := unix.SetNonblock(fd, true); err != nil {
		return os.NewSyscallError("setnonblock", err)
	}
	if p.ep < 0 {
		if err := p.poll(); err != nil {
			return err
		}
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.ep, unix.EPOLL_CTL_ADD, fd, &event))
}

// listens reports whether a socket waits for connections: it was made to
// forward them, though it may lead nowhere just now.
func listens(fd int) bool {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && n != 0
}

// poll begins to wait for what comes.
func (p *hostPorts) poll() error {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create", err)
	}
	// An epoll descriptor can itself be polled.
	if err := unix.SetNonblock(ep, true); err != nil {
		return os.NewSyscallError("setnonblock", err)
	}
	f := os.NewFile(uintptr(ep), "ports")
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	p.ep = ep
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
				p.use(func() { p.handlers[e.Fd]() })
			}
		}
	})
	return nil
}

// lead makes a socket lead elsewhere: what comes from now on. Peers of UDP get
// new sockets, as the old ones send to where the container no longer is.
func (p *hostPorts) lead(fd int, protocol string, target netip.AddrPort) error {
	old, forwards := p.targets[fd]
	if !forwards {
		if target.IsValid() && (protocol == "udp" || listens(fd)) {
			return p.forward(fd, protocol, target)
		}
		return nil
	}
	if old == target {
		return nil
	}
	p.targets[fd] = target
	for _, u := range p.udp {
		if u.fd == fd {
			u.forget()
		}
	}
	return nil
}

// setPorts carries out a Ports.
func (s *Shim) setPorts(m proto.Ports, added []int) (reply proto.PortsReply, err error) {
	p := s.ports
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		closeAll(added)
		return reply, conflict("the container has ended")
	}
	s.mu.Lock()
	ports := append([]proto.Port(nil), s.boot.Ports...)
	s.mu.Unlock()
	ports = append(ports, m.New...)
	err = p.add(m.New, added)
	index := map[string]int{}
	for i, fd := range p.fds {
		if i < len(ports) {
			index[ports[i].Proto+" "+bound(fd)] = i
		}
	}
	for i, port := range m.Ports {
		at, held := index[port.Proto+" "+port.Host]
		if !held {
			reply.Missing = append(reply.Missing, i)
			continue
		}
		target, perr := netip.ParseAddrPort(port.Target)
		if perr != nil && port.Target != "" {
			err = invalid("%s: target %q: %v", proto.MethodPorts, port.Target, perr)
			continue
		}
		ports[at].Target = port.Target
		err = errors.Join(err, p.lead(p.fds[at], port.Proto, target))
	}
	s.mu.Lock()
	s.boot.Ports = ports
	s.boot.Teardown.Netlink = m.Netlink
	s.mu.Unlock()
	if err != nil {
		return reply, err
	}
	return reply, s.keepBootstrap()
}

// bound is the address and port that a socket has on the host.
func bound(fd int) string {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return ""
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)).String()
	}
	return ""
}

func sockaddr(a netip.AddrPort) (unix.Sockaddr, int) {
	if ip := a.Addr().Unmap(); ip.Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: ip.As4()}, unix.AF_INET
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}, unix.AF_INET6
}

// acceptTCP takes the connections that wait.
func (p *hostPorts) acceptTCP(fd int) {
	target := p.targets[fd]
	for {
		room := target.IsValid() && p.take(2)
		motion.RLock()
		c, _, err := unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		var w *forward
		switch {
		case err == nil && room:
			w = &forward{client: os.NewFile(uintptr(c), "client"), target: target}
			p.mark(w, true)
		case err == nil:
			unix.Close(c) // better told at once than left to wait
		}
		motion.RUnlock()
		if w != nil {
			go p.forwardTCP(w)
			continue
		}
		if room {
			p.room.Add(2)
		}
		switch err {
		case nil, unix.EINTR, unix.ECONNABORTED:
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
	defer p.room.Add(2)
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
	held *hostPorts
	fd   int

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
	target := u.held.targets[u.fd]
	if !target.IsValid() || len(u.peers) >= udpPeers || !u.held.take(1) {
		return nil
	}
	sa, family := sockaddr(target)
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		u.held.room.Add(1)
		return nil
	}
	if err := unix.Connect(fd, sa); err != nil {
		unix.Close(fd)
		u.held.room.Add(1)
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

// forget ends what is forwarded: each peer's next datagram opens a new socket.
func (u *udpForward) forget() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, f := range u.peers {
		f.Close()
	}
	clear(u.peers)
}

// take takes a peer's socket over from the program before.
func (u *udpForward) take(from netip.AddrPort, fd int) {
	sa, _ := sockaddr(from)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.held.room.Add(-1)
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
	if u.peers[key] == f {
		delete(u.peers, key)
	}
	u.mu.Unlock()
	f.Close()
	u.held.room.Add(1)
}
