// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"fmt"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

// hosts are network namespaces on one wire, each with one address of it.
type hosts struct {
	t    *testing.T
	wire kit.Netns // has a bridge
	all  []kit.Netns
}

func (h *hosts) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// wired returns hosts with the addresses 192.0.2.1, 192.0.2.2 and so on.
func wired(t *testing.T, count int) *hosts {
	t.Helper()
	h := &hosts{t: t, wire: kit.NewNetns(t)}
	h.must(h.wire.Run(func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "wire"}}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		return netlink.LinkSetUp(br)
	}))
	for i := range count {
		h.all = append(h.all, kit.NewNetns(t))
		h.must(h.wire.Run(func() error { return h.connect(i) }))
		h.must(h.all[i].Run(func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			ip, subnet, err := net.ParseCIDR(address(i) + "/24")
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: subnet.Mask}}); err != nil {
				return err
			}
			return netlink.LinkSetUp(link)
		}))
	}
	return h
}

// address is that of a host.
func address(i int) string { return fmt.Sprintf("192.0.2.%d", i+1) }

// connect lays a cable from the bridge to a host. It runs on a thread in the namespace
// of the wire.
func (h *hosts) connect(i int) error {
	// The namespace of a thread of the host is found by its path.
	var fd int
	if err := h.all[i].Run(func() (err error) {
		fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	}); err != nil {
		return err
	}
	defer unix.Close(fd)
	br, err := netlink.LinkByName("wire")
	if err != nil {
		return err
	}
	name := fmt.Sprintf("host%d", i)
	err = netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, MasterIndex: br.Attrs().Index}, PeerName: "eth0", PeerNamespace: netlink.NsFd(fd),
	})
	if err != nil {
		return err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// plug plugs a host's cable in, or pulls it out.
func (h *hosts) plug(i int, in bool) {
	h.t.Helper()
	h.must(h.wire.Run(func() error {
		link, err := netlink.LinkByName(fmt.Sprintf("host%d", i))
		if err != nil {
			return err
		}
		if in {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	}))
}

// renumber gives a host another address than its own.
func (h *hosts) renumber(i int, from, to string) {
	h.t.Helper()
	h.must(h.all[i].Run(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		old, err := netlink.ParseAddr(from + "/24")
		if err != nil {
			return err
		}
		next, err := netlink.ParseAddr(to + "/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrDel(link, old); err != nil {
			return err
		}
		return netlink.AddrAdd(link, next)
	}))
}

// manager starts a daemon on the first host, with a swarm.
func (h *hosts) manager() *node {
	h.t.Helper()
	n := prepare(h.t, kit.Options{LiveRestore: true, Netns: h.all[0]})
	n.Docker("swarm", "init", "--advertise-addr", address(0))
	return n
}

// worker starts a daemon on a host that joins the swarm of a manager.
func (h *hosts) worker(i int, m *node) *node {
	h.t.Helper()
	n := prepare(h.t, kit.Options{LiveRestore: true, Netns: h.all[i]})
	n.Docker("swarm", "join", "--token", m.Docker("swarm", "join-token", "-q", "worker"), "--advertise-addr", address(i), address(0)+":2377")
	return n
}
