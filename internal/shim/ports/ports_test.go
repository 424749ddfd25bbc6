// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
	"holdfast/internal/shim/stream"
)

// hostSocket listens on a free port of the loopback address.
func hostSocket(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 8); err != nil {
		t.Fatal(err)
	}
	return fd
}

// service answers each connection with its name. It returns its address.
func service(t *testing.T, name string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, name)
			c.Close()
		}
	}()
	return l.Addr().String()
}

func get(t *testing.T, address string) string {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	b, _ := io.ReadAll(c)
	return string(b)
}

func TestUpdateLeadsASocketElsewhere(t *testing.T) {
	one, two := service(t, "one"), service(t, "two")
	fd := hostSocket(t)
	host := bound(fd)
	p, err := Serve([]proto.Port{{Proto: "tcp", Host: host, Target: one}}, []int{fd})
	if err != nil {
		t.Fatal(err)
	}
	if got := get(t, host); got != "one" {
		t.Errorf("answer %q", got)
	}
	reply, changed, err := p.Update(proto.Ports{Ports: []proto.Port{
		{Proto: "tcp", Host: host, Target: two}, {Proto: "tcp", Host: "127.0.0.1:1", Target: two}}}, nil)
	if err != nil || !changed || len(reply.Missing) != 1 || reply.Missing[0] != 1 {
		t.Errorf("reply %+v, changed %v, %v", reply, changed, err)
	}
	if got := get(t, host); got != "two" {
		t.Errorf("answer after the update %q", got)
	}
	if got := p.Ports(); len(got) != 1 || got[0].Target != two {
		t.Errorf("ports for the next shim: %+v", got)
	}
	p.Close()
	var refused *proto.Error
	if _, changed, err := p.Update(proto.Ports{}, nil); changed || !errors.As(err, &refused) || refused.Kind != proto.KindConflict {
		t.Errorf("update after the end: changed %v, %v", changed, err)
	}
}

// A set restored from a section has the same sockets, which answer.
func TestSectionRestoresSockets(t *testing.T) {
	one := service(t, "one")
	fd := hostSocket(t)
	host := bound(fd)
	ports := []proto.Port{{Proto: "tcp", Host: host, Target: one}, {Proto: "tcp"}}
	reserved := hostSocket(t)
	before := newSet(ports, []int{fd, reserved})
	var saved Section
	stream.Motion.Lock()
	saved.Save(before)
	stream.Motion.Unlock()
	raw, err := json.Marshal(&saved)
	if err != nil {
		t.Fatal(err)
	}
	var next Section
	if err := json.Unmarshal(raw, &next); err != nil {
		t.Fatal(err)
	}
	if list := next.Descriptors(); len(list) != 2 || *list[0] != fd || *list[1] != reserved {
		t.Errorf("descriptors: %s", raw)
	}
	after := next.Restore(ports)
	defer after.Close()
	if got := get(t, host); got != "one" {
		t.Errorf("answer %q", got)
	}
}

// Clients connect to the first of many ports while a shim takes the others over.
func TestPortsAreTakenOverUnderConnections(t *testing.T) {
	one := service(t, "one")
	var ports []proto.Port
	var fds []int
	for range 64 {
		fd := hostSocket(t)
		fds = append(fds, fd)
		ports = append(ports, proto.Port{Proto: "tcp", Host: bound(fd), Target: one})
	}
	answers := make(chan string)
	for range 8 {
		go func() { answers <- get(t, ports[0].Host) }()
	}
	p, err := Serve(ports, fds)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for range 8 {
		if got := <-answers; got != "one" {
			t.Errorf("answer %q", got)
		}
	}
}

// A restored peer's datagram that waited for the next shim leaves by the socket that
// the container knows the peer by.
func TestRestoredPeerKeepsItsSocket(t *testing.T) {
	udp := func() (*net.UDPConn, netip.AddrPort) {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	socket := func() int {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	container, target := udp()
	client, from := udp()
	host, peer := socket(), socket()
	sa, _ := sockaddr(target)
	if err := unix.Connect(peer, sa); err != nil {
		t.Fatal(err)
	}
	want := bound(peer)
	if _, err := client.WriteToUDPAddrPort([]byte("hello"), netip.MustParseAddrPort(bound(host))); err != nil {
		t.Fatal(err)
	}
	ports := []proto.Port{{Proto: "udp", Host: bound(host), Target: target.String()}}
	section := Section{Ports: []int{host}, Peers: [][]savedPeer{{{From: from.String(), Socket: peer}}}}
	for range 64 {
		fd := socket()
		ports = append(ports, proto.Port{Proto: "udp", Host: bound(fd), Target: target.String()})
		section.Ports = append(section.Ports, fd)
	}
	p := section.Restore(ports)
	defer p.Close()
	container.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, seen, err := container.ReadFromUDPAddrPort(make([]byte, 16))
	if err != nil || seen.String() != want {
		t.Errorf("the datagram came from %v, not from %s: %v", seen, want, err)
	}
}

func TestSocketsOfAWrongKindAreRefused(t *testing.T) {
	p := New()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = p.Update(proto.Ports{New: []proto.Port{{Proto: "tcp", Target: netip.AddrPortFrom(netip.IPv4Unspecified(), 1).String()}}}, []int{fd})
	var refused *proto.Error
	if !errors.As(err, &refused) || refused.Kind != proto.KindInvalid {
		t.Errorf("%v", err)
	}
	p.Close()
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != unix.EBADF {
		t.Error("the socket is still open")
	}
}

// A connection is accepted in a step, with the set locked. Who saves the state has
// stopped all steps, so it must not wait for that lock.
func TestSavingDoesNotWaitForAStep(t *testing.T) {
	p := New()
	p.mu.Lock() // as while a connection is accepted, which waits for its step
	defer p.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		stream.Motion.Lock()
		defer stream.Motion.Unlock()
		p.Ports()
		(&Section{}).Save(p)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the state is not saved while a connection is accepted")
	}
}
