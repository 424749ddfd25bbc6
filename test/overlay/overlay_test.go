// SPDX-License-Identifier: Apache-2.0

package overlay_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/dump"
	"holdfast/internal/network/overlay"
	"holdfast/internal/network/overlay/kernel"
	"holdfast/test/kit"
)

func subnet(prefix string, vni uint32) overlay.Subnet {
	p := netip.MustParsePrefix(prefix)
	return overlay.Subnet{Prefix: p, Gateway: p.Addr().Next(), VNI: vni}
}

var front = overlay.Network{ID: "front", Subnets: []overlay.Subnet{subnet("10.7.1.0/24", 4101)}}

func TestContainersOfTwoHostsReachEachOther(t *testing.T) {
	l := newLab(t, "192.0.2.0/24")
	h1, h2 := l.host(1), l.host(2)
	for _, h := range []*host{h1, h2} {
		if !h.ensure(front) {
			t.Error("nothing was made")
		}
	}
	a := h1.task("a").join(front, "10.7.1.5/24", overlay.MAC{}).serve()
	b := h2.task("b").join(front, "10.7.1.6/24", overlay.MAC{}).serve()
	a.cannot("tcp4", "10.7.1.6:80")
	h1.peers(front, true, a, b)
	h2.peers(front, true, a, b)
	a.wants("tcp4", "10.7.1.6:80", "b 10.7.1.5")
	b.wants("tcp4", "10.7.1.5:80", "a 10.7.1.6")
	a.wants("udp4", "10.7.1.6:80", "b 10.7.1.5")

	// What is right is not touched, and a connection goes on.
	var c net.Conn
	a.inside(func() (err error) {
		if c, err = net.Dial("tcp4", "10.7.1.6:80"); err == nil {
			_, err = line(c, false)
		}
		return err
	})
	defer c.Close()
	for _, k := range []*task{a, b} {
		if k.ensure(front) {
			t.Error("a right network was changed")
		}
		if c := k.peers(front, true, a, b); !c.Empty() {
			t.Errorf("right tables were changed: %+v", c)
		}
		k.add(front)
	}
	echo(t, c)
}

// echo sends many full frames to a server that returns them.
func echo(t *testing.T, c net.Conn) {
	t.Helper()
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() { _, _ = c.Write(data) }()
	got := make([]byte, len(data))
	must(t, c.SetDeadline(time.Now().Add(10*within)))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, data) {
		t.Errorf("1 MiB through the network: %v", err)
	}
}

func TestVXLANSocketIsTheHosts(t *testing.T) {
	l := newLab(t, "192.0.2.0/24")
	h := l.host(1)
	h.ensure(front)
	must(t, h.Run(func() error {
		// The port is bound in the host's namespace.
		c, err := net.ListenPacket("udp4", fmt.Sprintf(":%d", overlay.DefaultPort))
		if err == nil {
			c.Close()
			t.Error("the VXLAN port is free on the host")
		}
		links, err := dump.Interfaces()
		for _, link := range links {
			if link.Type() == "vxlan" {
				t.Errorf("%s is on the host", link.Attrs().Name)
			}
		}
		return err
	}))
}

func TestSubnetsOfANetworkAreRouted(t *testing.T) {
	two := overlay.Network{ID: "two", MTU: 1400, Subnets: []overlay.Subnet{subnet("10.7.2.0/24", 4102), subnet("10.7.3.0/24", 4103)}}
	l := newLab(t, "192.0.2.0/24")
	h1, h2 := l.host(1), l.host(2)
	h1.ensure(two)
	h2.ensure(two)
	a := h1.task("a").join(two, "10.7.2.5/24", overlay.MAC{}).serve()
	b := h2.task("b").join(two, "10.7.3.5/24", overlay.MAC{}).serve()
	c := h1.task("c").join(two, "10.7.3.6/24", overlay.MAC{}).serve()
	h1.peers(two, true, a, b, c)
	h2.peers(two, true, a, b, c)
	a.wants("tcp4", "10.7.3.5:80", "b 10.7.2.5")
	b.wants("tcp4", "10.7.2.5:80", "a 10.7.3.5")
	a.wants("tcp4", "10.7.3.6:80", "c 10.7.2.5")
	b.wants("tcp4", "10.7.3.6:80", "c 10.7.3.5")
	a.inside(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err == nil && eth0.Attrs().MTU != 1400 {
			t.Errorf("MTU %d", eth0.Attrs().MTU)
		}
		return err
	})
}

func TestNetworksAreSeparate(t *testing.T) {
	back := overlay.Network{ID: "back", Subnets: []overlay.Subnet{subnet("10.7.1.0/24", 4104)}} // the same addresses
	l := newLab(t, "192.0.2.0/24")
	h1, h2 := l.host(1), l.host(2)
	for _, h := range []*host{h1, h2} {
		h.ensure(front)
		h.ensure(back)
	}
	a := h1.task("a").join(front, "10.7.1.5/24", overlay.MAC{})
	b := h2.task("b").join(front, "10.7.1.6/24", overlay.MAC{}).serve()
	c := h1.task("c").join(back, "10.7.1.5/24", overlay.MAC{})
	d := h2.task("d").join(back, "10.7.1.6/24", overlay.MAC{}).serve()
	h1.peers(front, true, a, b)
	h2.peers(front, true, a, b)
	h1.peers(back, true, c, d)
	h2.peers(back, true, c, d)
	a.wants("tcp4", "10.7.1.6:80", "b 10.7.1.5")
	c.wants("tcp4", "10.7.1.6:80", "d 10.7.1.5")
}

func TestContainerOnSeveralNetworks(t *testing.T) {
	back := overlay.Network{ID: "back", Subnets: []overlay.Subnet{subnet("10.7.4.0/24", 4104)}}
	l := newLab(t, "192.0.2.0/24")
	h := l.host(1)
	h.ensure(front)
	h.ensure(back)
	a := h.task("a").join(front, "10.7.1.5/24", overlay.MAC{}).join(back, "10.7.4.5/24", overlay.MAC{})
	h.task("b").join(front, "10.7.1.6/24", overlay.MAC{}).serve()
	h.task("c").join(back, "10.7.4.6/24", overlay.MAC{}).serve()
	a.wants("tcp4", "10.7.1.6:80", "b 10.7.1.5")
	a.wants("tcp4", "10.7.4.6:80", "c 10.7.4.5")
}

// TestReusedAddressLeavesNoStaleEntry: an address moves to another container, on a
// third host and on the client's own, with another MAC each time.
func TestReusedAddressLeavesNoStaleEntry(t *testing.T) {
	l := newLab(t, "192.0.2.0/24")
	h1, h2, h3 := l.host(1), l.host(2), l.host(3)
	for _, h := range []*host{h1, h2, h3} {
		h.ensure(front)
	}
	a := h1.task("a").join(front, "10.7.1.5/24", overlay.MAC{2, 1}).serve()
	b := h2.task("b").join(front, "10.7.1.6/24", overlay.MAC{2, 2}).serve()
	h1.peers(front, true, a, b)
	h2.peers(front, true, a, b)
	a.wants("tcp4", "10.7.1.6:80", "b 10.7.1.5")

	must(t, h2.data.RemoveEndpoint(front.ID, b.on[0].ID))
	c := h3.task("c").join(front, "10.7.1.6/24", overlay.MAC{2, 3}).serve()
	h3.peers(front, true, a, c)
	if got := h1.peers(front, false, c); len(got.Remove.FDB)+len(got.Remove.Neighbours) > 0 {
		t.Errorf("removed before the peers were complete: %+v", got.Remove)
	}
	begun := time.Now()
	a.wants("tcp4", "10.7.1.6:80", "c 10.7.1.5")
	got := h1.peers(front, true, a, c)
	if len(got.Remove.FDB) != 1 || got.Remove.FDB[0].MAC != (overlay.MAC{2, 2}) {
		t.Errorf("removed %+v, want the way to the former host", got.Remove)
	}

	must(t, h3.data.RemoveEndpoint(front.ID, c.on[0].ID))
	d := h1.task("d").join(front, "10.7.1.6/24", overlay.MAC{2, 4}).serve()
	a.wants("tcp4", "10.7.1.6:80", "d 10.7.1.5")
	h1.peers(front, true, a, d)

	// And back to another host, with the MAC that it had here.
	must(t, h1.data.RemoveEndpoint(front.ID, d.on[0].ID))
	e := h2.task("e").join(front, "10.7.1.6/24", overlay.MAC{2, 4}).serve()
	h2.peers(front, true, a, e)
	h1.peers(front, true, a, e)
	a.wants("tcp4", "10.7.1.6:80", "e 10.7.1.5")
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("the three moves took %v: a cache was wrong", took)
	}
}

// TestInterruptedWorkIsFinished: at each point at which a process may have died, the
// next call completes what is half done.
func TestInterruptedWorkIsFinished(t *testing.T) {
	l := newLab(t, "192.0.2.0/24")
	h1, h2 := l.host(1), l.host(2)
	in := func(path string, fn func() error) { t.Helper(); must(t, kit.InNetns(path, fn)) }
	network := func(h *host) string { return h.data.Dir + "/" + front.ID }

	// A file without a namespace, and a namespace without interfaces.
	must(t, os.MkdirAll(h1.data.Dir, 0o710))
	must(t, os.WriteFile(network(h1), nil, 0o444))
	must(t, bridge.Join(bridge.Sandbox{Path: network(h2)}))
	if ids, err := h2.data.Networks(); err != nil || len(ids) != 1 || ids[0] != front.ID {
		t.Errorf("networks: %v %v", ids, err)
	}
	h1.ensure(front)
	h2.ensure(front)

	// Interfaces that are there and not in order.
	in(network(h1), func() error {
		links, err := dump.Interfaces()
		for _, link := range links {
			switch link.Type() {
			case "vxlan":
				err = errors.Join(err, netlink.LinkSetNoMaster(link), netlink.LinkSetDown(link))
			case "bridge":
				err = errors.Join(err, netlink.LinkSetDown(link))
			}
		}
		return err
	})
	if !h1.ensure(front) {
		t.Error("nothing was repaired")
	}

	// A veth whose other end is in the namespace of the container's former life.
	a := h1.task("a").join(front, "10.7.1.5/24", overlay.MAC{})
	first := a.path
	again := h1.task("a")
	a.path, a.on[0].Netns = again.path, again.path
	a.add(front)
	a.serve()
	in(first, func() error {
		if _, err := netlink.LinkByName("eth0"); err == nil {
			t.Error("the former namespace has the interface still")
		}
		return nil
	})
	// One without address, one that is down.
	b := h2.task("b").join(front, "10.7.1.6/24", overlay.MAC{}).serve()
	b.inside(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := dump.Addrs(eth0, unix.AF_INET)
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrDel(eth0, &addrs[0]), netlink.LinkSetDown(eth0))
	})
	b.add(front)
	h1.peers(front, true, a, b)
	h2.peers(front, true, a, b)
	a.wants("tcp4", "10.7.1.6:80", "b 10.7.1.5")
	if ids, err := h1.data.Endpoints(front.ID); err != nil || len(ids) != 1 || ids[0] != a.on[0].ID {
		t.Errorf("endpoints: %v %v", ids, err)
	}

	// Another number for the segment: the container stays connected.
	moved := front
	moved.Subnets = []overlay.Subnet{subnet("10.7.1.0/24", 4999)}
	h1.ensure(moved)
	h2.ensure(moved)
	h1.peers(moved, true, a, b)
	h2.peers(moved, true, a, b)
	a.wants("tcp4", "10.7.1.6:80", "b 10.7.1.5")
}

// TestTwoProcessesMayMakeANetwork: the daemon connects containers while the swarm
// process compares the network.
func TestTwoProcessesMayMakeANetwork(t *testing.T) {
	l := newLab(t, "192.0.2.0/24")
	h := l.host(1)
	a, b := h.task("a"), h.task("b")
	for i, k := range []*task{a, b} {
		p := netip.MustParsePrefix(fmt.Sprintf("10.7.1.%d/24", 5+i))
		k.on = append(k.on, kernel.Endpoint{ID: k.name + "0000000000", Netns: k.path, Name: "eth0", Addr: p, MAC: overlay.MACOf(p.Addr())})
	}
	var wg sync.WaitGroup
	for range 3 {
		for _, k := range []*task{a, b} {
			wg.Go(func() {
				for range 5 {
					if err := h.Run(func() error {
						if _, err := h.data.Ensure(front); err != nil {
							return err
						}
						return h.data.AddEndpoint(front, k.on[0])
					}); err != nil {
						t.Error(err)
					}
					if _, err := h.data.SetPeers(front, nil, true); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	b.serve()
	a.wants("tcp4", "10.7.1.6:80", "b 10.7.1.5")
}

func TestManyPeers(t *testing.T) {
	wide := overlay.Network{ID: "wide", Subnets: []overlay.Subnet{subnet("10.9.0.0/16", 4105)}}
	l := newLab(t, "192.0.2.0/24")
	h := l.host(1)
	h.ensure(wide)
	var peers []overlay.Peer
	for i := range 5000 {
		at := netip.AddrFrom4([4]byte{10, 9, byte(1 + i/200), byte(1 + i%200)})
		peers = append(peers, overlay.Peer{Addr: at, MAC: overlay.MACOf(at), Host: netip.AddrFrom4([4]byte{192, 0, 2, byte(2 + i%16)})})
	}
	for _, c := range []struct {
		what         string
		peers        []overlay.Peer
		set, removed int
	}{
		{"made", peers, 5000, 0}, {"compared", peers, 0, 0}, {"one moved", append(peers[1:len(peers):len(peers)], overlay.Peer{Addr: peers[0].Addr, MAC: peers[0].MAC, Host: netip.MustParseAddr("192.0.2.99")}), 1, 0},
		{"removed", nil, 0, 5000},
	} {
		begun := time.Now()
		got, err := h.data.SetPeers(wide, c.peers, true)
		must(t, err)
		t.Logf("5000 peers: %s in %v", c.what, time.Since(begun))
		if len(got.Set.FDB) != c.set || len(got.Remove.FDB) != c.removed || len(got.Remove.Neighbours) != c.removed {
			t.Errorf("%s: set %d, removed %d and %d", c.what, len(got.Set.FDB), len(got.Remove.FDB), len(got.Remove.Neighbours))
		}
	}
}

func TestRemovedNetworkLeavesNothing(t *testing.T) {
	l := newLab(t, "192.0.2.0/24")
	h := l.host(1)
	for range 3 { // at once again with the same number
		h.ensure(front)
		a := h.task("a").join(front, "10.7.1.5/24", overlay.MAC{})
		if err := h.data.Remove(front.ID); !errors.Is(err, kernel.ErrInUse) {
			t.Fatalf("removed with an endpoint: %v", err)
		}
		must(t, h.data.RemoveEndpoint(front.ID, a.on[0].ID))
		must(t, h.data.RemoveEndpoint(front.ID, a.on[0].ID))
		must(t, h.data.Remove(front.ID))
		must(t, h.data.Remove(front.ID))
		if ids, err := h.data.Networks(); err != nil || len(ids) > 0 {
			t.Errorf("left: %v %v", ids, err)
		}
	}
	if err := h.data.RemoveEndpoint("unknown", "x"); err != nil {
		t.Error(err)
	}
}

// TestContainersEndTakesItsEndpointAlong: nobody removes the endpoint of a container
// that ends while no process lives.
func TestContainersEndTakesItsEndpointAlong(t *testing.T) {
	l := newLab(t, "192.0.2.0/24")
	h := l.host(1)
	h.ensure(front)
	a := h.task("a").join(front, "10.7.1.5/24", overlay.MAC{})
	must(t, bridge.Leave(a.path))
	kit.Eventually(t, "the endpoint is gone", func() bool {
		ids, err := h.data.Endpoints(front.ID)
		must(t, err)
		return len(ids) == 0
	})
}

func TestForeignSegmentIsReported(t *testing.T) {
	l := newLab(t, "192.0.2.0/24")
	h := l.host(1)
	must(t, h.Run(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "theirs"
		return netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 4101, Port: overlay.DefaultPort})
	}))
	err := h.Run(func() error { _, err := h.data.Ensure(front); return err })
	if !errors.Is(err, unix.EEXIST) {
		t.Errorf("error %v", err)
	}
}
