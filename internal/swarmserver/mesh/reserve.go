// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"fmt"

	"github.com/moby/swarmkit/v2/log"
	"golang.org/x/sys/unix"

	"holdfast/internal/errs"
	"holdfast/internal/network/swarmlb"
)

// reservations keep programs of the host from using the ports that the routing mesh
// publishes. The mesh needs no sockets: their only purpose is that another bind fails.
type reservations struct {
	sockets map[published]int // descriptors
	failed  map[published]bool
}

// published is a port of the host.
type published struct {
	proto string
	port  uint16
}

func (p published) String() string { return fmt.Sprintf("%d/%s", p.port, p.proto) }

// set reserves exactly these ports. What another program has already stays its own
// until it ends: then it is reserved with the next comparison.
func (r *reservations) set(ports []swarmlb.IngressPort) {
	wanted := map[published]bool{}
	for _, p := range ports {
		wanted[published{p.Proto, p.Port}] = true
	}
	for p, fd := range r.sockets {
		if !wanted[p] {
			unix.Close(fd)
			delete(r.sockets, p)
		}
	}
	for p := range wanted {
		if _, have := r.sockets[p]; have {
			continue
		}
		fd, err := occupy(p, swarmlb.IngressInterface, false)
		if err != nil {
			if !r.failed[p] {
				log.L.Errorf("port %s of the routing mesh can't be reserved on this node: connections to it lead to the service, and not to the program or container that uses it: %v", p, err)
			}
			r.failed[p] = true
			continue
		}
		delete(r.failed, p)
		r.sockets[p] = fd
	}
}

// occupy binds a socket to a port. With an interface it gets only packets that arrive
// there, and keeps others from the port all the same. With reuse a connection that is
// about to end is not in the way.
func occupy(p published, device string, reuse bool) (fd int, err error) {
	kind, number := unix.SOCK_STREAM, unix.IPPROTO_TCP
	switch p.proto {
	case "udp":
		kind, number = unix.SOCK_DGRAM, unix.IPPROTO_UDP
	case "sctp":
		number = unix.IPPROTO_SCTP
	}
	if fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, number); err != nil {
		return -1, err
	}
	if device != "" {
		err = unix.BindToDevice(fd, device)
	}
	if err == nil && reuse && p.proto != "udp" {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(p.port)})
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Free returns an error if a program or a container of this host has a port that a
// service is about to publish on all nodes. ErrConflict.
func (m *Mesh) Free(proto string, port uint16) error {
	p := published{proto, port}
	m.syncing.Lock()
	_, ours := m.reserved.sockets[p]
	m.syncing.Unlock()
	if ours {
		return nil // of another service: the cluster refuses it
	}
	fd, err := occupy(p, "", true)
	if errors.Is(err, unix.EADDRINUSE) {
		return errs.Conflict("port %s is already in use on this node by a container or another program: stop that, or publish the service on another port", p)
	}
	if err == nil {
		unix.Close(fd)
	}
	return nil // what can't be found out here is no reason to refuse
}
