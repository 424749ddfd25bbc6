// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/swarmlb"
	lbkernel "holdfast/internal/network/swarmlb/kernel"
)

// backlog is the length of the accept queue of a reserved port. Connections wait
// in it until the kernel translates the port. net.core.somaxconn limits it.
const backlog = 4096

// hostPorts records which container has which host port. The sockets alone
// can't distinguish our ports from another process's, and sctp may have no
// socket.
type hostPorts struct {
	first, last uint16 // range of ports that the engine chooses from
	cursor      uint16
	owners      map[hostPort][]portOwner
	// mesh returns the ports that the routing mesh of a swarm publishes on this host.
	mesh func() []swarmlb.IngressPort
}

type hostPort struct {
	proto string
	port  uint16
}

type portOwner struct {
	addr      netip.Addr
	container string
}

func newHostPorts(first, last uint16) *hostPorts {
	return &hostPorts{first: first, last: last, cursor: last, owners: map[hostPort][]portOwner{}, mesh: meshPorts}
}

// meshPorts returns the ports that the routing mesh of a swarm publishes on this host.
// They are read from the kernel's table, so it does not matter whether the process of
// the swarm lives. If it can't be read, the socket with which that process reserves each port is
// in the way of a container's.
func meshPorts() []swarmlb.IngressPort {
	if there, err := bridge.Exists(swarmlb.IngressInterface); err != nil || !there {
		return nil // this host is no entry to the mesh
	}
	ports, _ := lbkernel.IngressPorts()
	return ports
}

// owner returns the container that has the port on an overlapping address.
func (r *hostPorts) owner(proto string, addr netip.Addr, port uint16) (string, bool) {
	for _, o := range r.owners[hostPort{proto, port}] {
		if o.addr.Is4() == addr.Is4() && (o.addr == addr || o.addr.IsUnspecified() || addr.IsUnspecified()) {
			return o.container, true
		}
	}
	return "", false
}

func (r *hostPorts) take(m PortMapping, container string) {
	if m.HostPort == 0 {
		return // no port of the host
	}
	k := hostPort{m.Proto, m.HostPort}
	r.owners[k] = append(r.owners[k], portOwner{m.HostIP, container})
}

// drop removes those of the ports that belong to the container.
func (r *hostPorts) drop(ms []PortMapping, container string) {
	for _, m := range ms {
		k := hostPort{m.Proto, m.HostPort}
		left := r.owners[k][:0]
		for _, o := range r.owners[k] {
			if o.container != container || o.addr != m.HostIP {
				left = append(left, o)
			}
		}
		if len(left) == 0 {
			delete(r.owners, k)
		} else {
			r.owners[k] = left
		}
	}
}

// next returns the port after the last one that was chosen.
func (r *hostPorts) next() uint16 {
	if r.cursor >= r.last {
		r.cursor = r.first
	} else {
		r.cursor++
	}
	return r.cursor
}

// errInUse means that the port is taken. Another port of a range may be free.
type errInUse struct{ error }

// reserve takes the port on all the mappings' addresses, or on none. files has
// one entry for each mapping, nil where the kernel has no such socket. The caller
// holds the lock that guards the registry.
func (r *hostPorts) reserve(ms []PortMapping, container string, listen bool) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
			files = nil
		}
	}()
	mesh := r.mesh()
	for _, m := range ms {
		// The mesh publishes on all IPv4 addresses of the host.
		if m.HostIP.Is4() && slices.ContainsFunc(mesh, func(p swarmlb.IngressPort) bool { return p.Proto == m.Proto && p.Port == m.HostPort }) {
			return files, errInUse{errdefs.ErrInternal.WithMessage(fmt.Sprintf(
				"Bind for %s failed: port is already allocated: a service of the swarm publishes it on all nodes (docker service ls shows which); choose another port",
				netip.AddrPortFrom(m.HostIP, m.HostPort)))}
		}
		if _, taken := r.owner(m.Proto, m.HostIP, m.HostPort); taken {
			return files, errInUse{errdefs.ErrInternal.WithMessage(fmt.Sprintf("Bind for %s failed: port is already allocated", netip.AddrPortFrom(m.HostIP, m.HostPort)))}
		}
		f, err := bind(m, listen)
		if err != nil {
			reason := err.Error()
			var errno unix.Errno
			if errors.As(err, &errno) {
				reason = errno.Error()
			}
			werr := errdefs.ErrInternal.WithMessage(fmt.Sprintf("failed to bind host port %s/%s: %s", netip.AddrPortFrom(m.HostIP, m.HostPort), m.Proto, reason))
			if errors.Is(err, unix.EMFILE) {
				return files, errdefs.ErrResourceExhausted.WithMessage(werr.Error() + ": the daemon's limit of open files (LimitNOFILE) is less than the ports need")
			}
			if errors.Is(err, unix.EADDRINUSE) {
				return files, errInUse{werr}
			}
			return files, werr
		}
		files = append(files, f)
	}
	for _, m := range ms {
		r.take(m, container)
	}
	return files, nil
}

// bind opens the socket that reserves a port. It is in blocking mode; the process
// that receives it may change that. If the kernel has no sctp sockets it returns
// nil and no error, because packets are translated all the same.
func bind(m PortMapping, listen bool) (*os.File, error) {
	family, typ, proto := unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP
	switch m.Proto {
	case "udp":
		typ, proto = unix.SOCK_DGRAM, unix.IPPROTO_UDP
	case "sctp":
		proto = unix.IPPROTO_SCTP
	}
	var sa unix.Sockaddr
	if m.HostIP.Is4() {
		sa = &unix.SockaddrInet4{Port: int(m.HostPort), Addr: m.HostIP.As4()}
	} else {
		family = unix.AF_INET6
		sa = &unix.SockaddrInet6{Port: int(m.HostPort), Addr: m.HostIP.As16()}
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, proto)
	if m.Proto == "sctp" && errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), fmt.Sprintf("%s/%d", m.Proto, m.HostPort))
	if err := prepareSocket(fd, family, m.Proto); err != nil {
		f.Close()
		return nil, err
	}
	if err := unix.Bind(fd, sa); err != nil {
		f.Close()
		return nil, err
	}
	if m.Proto == "tcp" && listen {
		if err := unix.Listen(fd, backlog); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

func prepareSocket(fd, family int, proto string) error {
	if family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return err
		}
	}
	if proto == "udp" {
		return nil
	}
	// Connections in TIME_WAIT from an earlier run must not prevent the bind.
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// ephemeralRange returns the kernel's range of ephemeral ports. The engine
// chooses ports from it when none is named.
func ephemeralRange() (first, last uint16) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		if n, err := fmt.Sscan(strings.TrimSpace(string(b)), &first, &last); n == 2 && err == nil && first > 0 && first <= last {
			return first, last
		}
	}
	return 49153, 65535
}

// hostHasIPv6 reports whether IPv6 sockets can be bound.
func hostHasIPv6() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.Bind(fd, &unix.SockaddrInet6{}) == nil
}
