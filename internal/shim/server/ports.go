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
			handlers[int32(fd)] = func() { acceptTCP(fd, target) }
		case "udp":
			u := &udpForward{held: held, fd: fd, target: target, peers: map[netip.AddrPort]*os.File{}}
			handlers[int32(fd)] = u.receive
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

func acceptTCP(fd int, target netip.AddrPort) {
	for {
		c, _, err := unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			go forwardTCP(os.NewFile(uintptr(c), "client"), target)
		case unix.EINTR, unix.ECONNABORTED:
		case unix.EAGAIN:
			return
		default:
			logf("accept for %v: %v", target, err)
			return
		}
	}
}

func forwardTCP(client *os.File, target netip.AddrPort) {
	defer client.Close()
	server, err := dialTCP(target)
	if err != nil {
		return
	}
	defer server.Close()
	var both sync.WaitGroup
	both.Go(func() { copyHalf(server, client) })
	both.Go(func() { copyHalf(client, server) })
	both.Wait()
}

// copyHalf copies one direction and passes its end on.
func copyHalf(dst, src *os.File) {
	buf := make([]byte, copySize)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				shutdown(src, unix.SHUT_RD)
				return
			}
		}
		if err != nil {
			shutdown(dst, unix.SHUT_WR)
			return
		}
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
	f := os.NewFile(uintptr(fd), "peer")
	f.SetReadDeadline(time.Now().Add(udpIdle))
	u.peers[key] = f
	go u.answer(key, from, f)
	return f
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
