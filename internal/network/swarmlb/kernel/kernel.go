// SPDX-License-Identifier: Apache-2.0

// Package kernel puts the tables of package swarmlb into network namespaces, with
// the routes that their marks need, and forgets connections to tasks that are gone.
// It owns the tables of those names, and the rules and routing tables whose number
// is one of swarmlb's marks. It knows neither swarms nor containers.
//
// All state is in the kernel. Each change is one transaction, and what is right is
// not touched. A process with CAP_NET_ADMIN in a container can change its own
// table; the next change of the table's chains repairs it.
package kernel

import (
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/swarmlb"
	"holdfast/internal/osthread"
)

// socketBuffer has room for a transaction of thousands of chains and the answers to
// it. It is a limit, not an allocation.
const socketBuffer = 16 << 20

// space is a network namespace with connections to its parts.
type space struct {
	file   *os.File
	filter *nftables.Conn
	// tracking is a socket for connection tracking.
	tracking *nl.SocketHandle
	*netlink.Handle
}

func open(path string) (*space, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	s := &space{file: f}
	err = osthread.InNetns(f, func() error {
		if s.Handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return err
		}
		socket, err := nl.Subscribe(unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		s.tracking = &nl.SocketHandle{Socket: socket}
		return s.dial()
	})
	if err != nil {
		s.close()
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return s, nil
}

// dial connects to nftables. Call it on a thread in the namespace.
func (s *space) dial() (err error) {
	s.filter, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
		return errors.Join(c.SetReadBuffer(socketBuffer), c.SetWriteBuffer(socketBuffer))
	}))
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

func (s *space) close() {
	if s.filter != nil {
		_ = s.filter.CloseLasting()
	}
	if s.tracking != nil {
		s.tracking.Close()
	}
	if s.Handle != nil {
		s.Close()
	}
	s.file.Close()
}

// commit sends the queued messages as one transaction. After an error the
// connection may still have answers to them in its socket, so it is replaced.
func (s *space) commit() error {
	err := s.filter.Flush()
	if err == nil {
		return nil
	}
	_ = s.filter.CloseLasting()
	return errors.Join(err, osthread.InNetns(s.file, s.dial))
}

// Apply makes the table of a task's network namespace right, and reports whether
// anything had to be changed. UDP flows to tasks that get no new connections are
// forgotten, because they would never end. TCP connections go on until they end, or
// until Forget. Without services and entries the table is removed: a namespace
// without virtual addresses has no connection tracking.
func Apply(netns string, t swarmlb.Task) (changed bool, err error) {
	fail := func(err error) (bool, error) {
		return changed, fmt.Errorf("load balancing in %s: %w", netns, err)
	}
	s, err := open(netns)
	if err != nil {
		return fail(err)
	}
	defer s.close()
	if t.Ingress != "" {
		if changed, err = s.answerMarked(); err != nil {
			return fail(err)
		}
	}
	// Marked packets need their routes first.
	c, err := s.route(taskWays(t))
	changed = changed || c
	if err != nil {
		return fail(err)
	}
	if c, err = s.apply(swarmlb.BuildTask(t)); err != nil {
		return fail(err)
	}
	return changed || c, nil
}

// Forget forgets all connections to the virtual addresses of a task's services that
// lead to other tasks than the services' backends, and returns how many there were.
// TCP connections of clients in the namespace end at once, or with the client's next
// packet if the kernel can't end them. Call it when backends are gone.
func Forget(netns string, t swarmlb.Task) (n int, err error) {
	s, err := open(netns)
	if err != nil {
		return 0, err
	}
	defer s.close()
	gone, err := s.forget(swarmlb.BuildTask(t).Targets, anyProtocol)
	if err = errors.Join(err, s.abort(gone)); err != nil {
		return len(gone), fmt.Errorf("connections in %s: %w", netns, err)
	}
	return len(gone), nil
}

const hostNetns = "/proc/thread-self/ns/net"

// ApplyIngress makes the host, which is the calling thread's network namespace, an
// entry to published ports, as Apply does for tasks. Without an interface the host
// is no entry.
func ApplyIngress(i swarmlb.Ingress) (changed bool, err error) {
	fail := func(err error) (bool, error) { return changed, fmt.Errorf("ingress: %w", err) }
	s, err := open(hostNetns)
	if err != nil {
		return fail(err)
	}
	defer s.close()
	if i.Interface != "" {
		if changed, err = s.openInterface(i.Interface); err != nil {
			return fail(err)
		}
	}
	c, err := s.route(hostWays(i))
	changed = changed || c
	if err != nil {
		return fail(err)
	}
	if c, err = s.apply(swarmlb.BuildIngress(i)); err != nil {
		return fail(err)
	}
	return changed || c, nil
}

// IngressPorts returns the ports that this host is an entry to, without their targets.
func IngressPorts() ([]swarmlb.IngressPort, error) {
	s, err := open(hostNetns)
	if err != nil {
		return nil, err
	}
	defer s.close()
	chains, err := s.chains(swarmlb.IngressTable)
	return swarmlb.IngressPorts(chains), err
}

// ForgetIngress is Forget for a host. A port without targets is one that is not
// published any more. Clients on other hosts get a reset with their next packet.
func ForgetIngress(i swarmlb.Ingress) (n int, err error) {
	s, err := open(hostNetns)
	if err != nil {
		return 0, err
	}
	defer s.close()
	gone, err := s.forget(swarmlb.IngressTargets(i), anyProtocol)
	if err = errors.Join(err, s.abort(gone)); err != nil {
		return len(gone), fmt.Errorf("connections to published ports: %w", err)
	}
	return len(gone), nil
}
