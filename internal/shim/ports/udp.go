// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/log"
)

const (
	udpIdle  = 90 * time.Second // idle time after which a peer's socket is closed
	udpPeers = 1024             // peers of one port at a time
)

// udpForward forwards one UDP port. Each peer gets its own socket towards the
// container, so that answers can be attributed to it.
type udpForward struct {
	ports *Set
	fd    int

	mu    sync.Mutex
	peers map[netip.AddrPort]*os.File
}

func (u *udpForward) receive() {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := unix.Recvfrom(u.fd, buf, unix.MSG_DONTWAIT)
		switch err {
		case nil:
		case unix.EINTR, unix.ECONNREFUSED:
			continue
		case unix.EAGAIN:
			return
		default:
			log.Printf("receive for a published port: %v", err)
			u.ports.pause(u.fd)
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
	target := u.ports.targets[u.fd]
	if !target.IsValid() || len(u.peers) >= udpPeers || !u.ports.reserve(1) {
		return nil
	}
	sa, family := sockaddr(target)
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		u.ports.budget.Add(1)
		return nil
	}
	if err := unix.Connect(fd, sa); err != nil {
		unix.Close(fd)
		u.ports.budget.Add(1)
		return nil
	}
	return u.addPeer(key, from, fd)
}

// addPeer is called with the lock held.
func (u *udpForward) addPeer(key netip.AddrPort, from unix.Sockaddr, fd int) *os.File {
	f := os.NewFile(uintptr(fd), "peer")
	f.SetReadDeadline(time.Now().Add(udpIdle))
	u.peers[key] = f
	go u.copyReplies(key, from, f)
	return f
}

// closePeers closes all peers' sockets. A peer's next datagram opens a new one.
func (u *udpForward) closePeers() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, f := range u.peers {
		f.Close()
	}
	clear(u.peers)
}

// restorePeer takes over a peer's socket after a re-exec.
func (u *udpForward) restorePeer(from netip.AddrPort, fd int) {
	sa, _ := sockaddr(from)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.ports.budget.Add(-1)
	u.addPeer(from, sa, fd)
}

func (u *udpForward) copyReplies(key netip.AddrPort, to unix.Sockaddr, f *os.File) {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		if err != nil && n <= 0 {
			// Nothing listens in the container now, but something may for the next
			// datagram.
			if pe, ok := err.(*os.PathError); ok && pe.Err == unix.ECONNREFUSED {
				continue
			}
			break
		}
		u.ports.withSockets(func() { unix.Sendto(u.fd, buf[:n], unix.MSG_DONTWAIT, to) })
		f.SetReadDeadline(time.Now().Add(udpIdle))
	}
	u.mu.Lock()
	if u.peers[key] == f {
		delete(u.peers, key)
	}
	u.mu.Unlock()
	f.Close()
	u.ports.budget.Add(1)
}
