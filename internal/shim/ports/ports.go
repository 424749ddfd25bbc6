// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/descriptor"
	"holdfast/internal/shim/log"
	"holdfast/internal/shim/proto"
)

// Set has the sockets of one container's published ports and the connections
// forwarded from them. Its methods may be called from any goroutine.
type Set struct {
	mu     sync.Mutex // held while sockets are used, and while they are closed; before stream.Motion
	fds    []int      // the socket of each port
	closed bool

	listMu sync.Mutex   // held for moments only, so that Ports does not wait for a step
	list   []proto.Port // replaced, never changed

	ep       int // the epoll descriptor, -1 until something is forwarded
	handlers map[int32]func()
	targets  map[int]netip.AddrPort // by socket; invalid: no target at the moment
	udp      []*udpForward

	budget atomic.Int64 // how many more sockets may be opened for forwarding

	flows    sync.Mutex // after stream.Motion
	forwards map[*forward]struct{}
}

// New returns a set without ports.
func New() *Set { return newSet(nil, nil) }

// Serve takes over the sockets of the ports, in the same order, and forwards what
// arrives at them. It takes a single goroutine while nothing arrives, and none if
// nothing has to be forwarded.
func Serve(ports []proto.Port, fds []int) (*Set, error) {
	p := newSet(ports, nil)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p, p.serve(ports, fds)
}

// serve is Serve for a set that nothing uses yet. It is called with the lock held:
// as soon as the first socket is forwarded, what arrives there is handled.
func (p *Set) serve(ports []proto.Port, fds []int) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		p.fds = append(p.fds, fds...)
		return os.NewSyscallError("getrlimit", err)
	}
	p.budget.Store(max(0, int64(min(limit.Cur, 1<<20))-int64(len(fds))) / 2)
	return p.add(ports, fds)
}

func newSet(ports []proto.Port, fds []int) *Set {
	return &Set{list: ports, fds: fds, ep: -1, handlers: map[int32]func(){}, targets: map[int]netip.AddrPort{}}
}

// Ports returns the ports as they are forwarded now, for the next shim. The caller
// must not change them.
func (p *Set) Ports() []proto.Port {
	p.listMu.Lock()
	defer p.listMu.Unlock()
	return p.list
}

func (p *Set) setPorts(list []proto.Port) {
	p.listMu.Lock()
	p.list = list
	p.listMu.Unlock()
}

// Close releases the ports on the host. Connections that are being forwarded
// continue.
func (p *Set) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.clear()
		p.closed = true
	}
}

// Clear releases the ports on the host as Close does, but others may be added later.
func (p *Set) Clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.clear()
	}
}

// clear is called with the lock held.
func (p *Set) clear() {
	descriptor.CloseAll(p.fds)
	p.setPorts(nil)
	p.fds, p.udp = nil, nil
	clear(p.targets)
}

// withSockets calls fn unless the sockets are closed: their numbers may then refer
// to other files.
func (p *Set) withSockets(fn func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		fn()
	}
}

// reserve takes n sockets from the budget, or reports false. A flood of connections
// must not use up the descriptors that the container's log and exec sessions need.
func (p *Set) reserve(n int64) bool {
	if p.budget.Add(-n) >= 0 {
		return true
	}
	p.budget.Add(n)
	return false
}

// add takes over sockets and forwards what arrives at them. It is called with the
// lock held.
func (p *Set) add(ports []proto.Port, fds []int) error {
	p.fds = append(p.fds, fds...)
	for i, port := range ports {
		target, err := netip.ParseAddrPort(port.Target)
		if err != nil && !descriptor.Listens(fds[i]) {
			continue // only reserves the port
		}
		if err := p.startForwarding(fds[i], port.Proto, target); err != nil {
			return err
		}
	}
	return nil
}

// startForwarding forwards what arrives at a socket.
func (p *Set) startForwarding(fd int, protocol string, target netip.AddrPort) error {
	// epoll would report another kind of socket for ever, and nothing could be read
	// from it.
	kind := descriptor.SocketType(fd)
	if protocol == "tcp" && (kind != unix.SOCK_STREAM || !descriptor.Listens(fd)) || protocol == "udp" && kind != unix.SOCK_DGRAM {
		return proto.Errorf(proto.KindInvalid, "ports: the descriptor for %v is no %s socket that can be forwarded", target, protocol)
	}
	switch protocol {
	case "tcp":
		p.handlers[int32(fd)] = func() { p.acceptTCP(fd) }
	case "udp":
		u := &udpForward{ports: p, fd: fd, peers: map[netip.AddrPort]*os.File{}}
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

// poll starts the goroutine that waits for all sockets.
func (p *Set) poll() error {
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
				log.Printf("ports: epoll_wait: %v", err)
				return true
			}
			if n == 0 {
				return false
			}
			for _, e := range events[:max(n, 0)] {
				p.withSockets(func() { p.handlers[e.Fd]() })
			}
		}
	})
	return nil
}

// retarget changes where a socket is forwarded to, for what arrives from now on.
// UDP peers get new sockets, as the old ones send to the previous address of the
// container.
func (p *Set) retarget(fd int, protocol string, target netip.AddrPort) error {
	old, forwards := p.targets[fd]
	if !forwards {
		if target.IsValid() && (protocol == "udp" || descriptor.Listens(fd)) {
			return p.startForwarding(fd, protocol, target)
		}
		return nil
	}
	if old == target {
		return nil
	}
	p.targets[fd] = target
	for _, u := range p.udp {
		if u.fd == fd {
			u.closePeers()
		}
	}
	return nil
}

// Update handles Ports: where the sockets lead from now on. It takes over the
// sockets of m.New in any case. Changed is false if the set is as it was before;
// with true there may be an error all the same.
func (p *Set) Update(m proto.Ports, added []int) (reply proto.PortsReply, changed bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		descriptor.CloseAll(added)
		return reply, false, proto.Errorf(proto.KindConflict, "the container has ended")
	}
	if most := descriptor.Limit(1 << 20); len(p.fds)+len(added) > most {
		descriptor.CloseAll(added)
		return reply, false, proto.Errorf(proto.KindConflict, "%s: the shim holds %d sockets, and %d is the limit", proto.MethodPorts, len(p.fds), most)
	}
	ports := slices.Concat(p.Ports(), m.New)
	err = p.add(m.New, added)
	index := map[string]int{}
	for i, fd := range p.fds {
		if i < len(ports) {
			index[ports[i].Proto+" "+bound(fd)] = i
		}
	}
	for i, port := range m.Ports {
		at, found := index[port.Proto+" "+port.Host]
		if !found {
			reply.Missing = append(reply.Missing, i)
			continue
		}
		target, perr := netip.ParseAddrPort(port.Target)
		if perr != nil && port.Target != "" {
			err = proto.Errorf(proto.KindInvalid, "%s: target %q: %v", proto.MethodPorts, port.Target, perr)
			continue
		}
		ports[at].Target = port.Target
		err = errors.Join(err, p.retarget(p.fds[at], port.Proto, target))
	}
	p.setPorts(ports)
	return reply, true, err
}

// bound returns a socket's local address and port, or "".
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

// portPause is how long a socket is not polled after an accept or a receive failed.
const portPause = time.Second

// pause stops polling a socket for a while. It is called within withSockets.
func (p *Set) pause(fd int) {
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	// Removed, because with an empty event mask epoll would still report errors.
	if err := unix.EpollCtl(p.ep, unix.EPOLL_CTL_DEL, fd, &event); err != nil {
		return // already paused
	}
	time.AfterFunc(portPause, func() {
		p.withSockets(func() {
			if err := unix.EpollCtl(p.ep, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
				log.Printf("ports: epoll_ctl: %v", err)
			}
		})
	})
}
