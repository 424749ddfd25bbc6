// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"holdfast/internal/network"
	"holdfast/internal/network/firewall"
)

const table = "holdfast-hft0"

func TestPublishedPortAnswersFromEverywhere(t *testing.T) {
	h := newHost(t, nil)
	c := h.run(h.request("8080:80/tcp", "5353:53/udp"))
	h.serve(c.Netns, "tcp4", ":80", "web")
	h.serve(c.Netns, "udp4", ":53", "dns")
	other := h.run(h.request())
	gateway := c.Endpoints[0].IPv4.Gateway.String()

	for name, from := range map[string]struct{ path, addr, seenAs string }{
		"neighbour":                        {h.lan, hostAddr, lanAddr},
		"host by 127.0.0.1":                {"", "127.0.0.1", gateway},
		"host by 127.1.2.3":                {"", "127.1.2.3", gateway},
		"host by its address":              {"", hostAddr, hostAddr},
		"host by the bridge's":             {"", gateway, gateway},
		"the container itself, by host":    {c.Netns, hostAddr, gateway},
		"the container itself, by gateway": {c.Netns, gateway, gateway},
		"another container":                {other.Netns, hostAddr, gateway},
	} {
		t.Run(name, func(t *testing.T) {
			h := &host{t: t}
			h.answers(from.path, "tcp", from.addr+":8080", "web", from.seenAs)
			h.answers(from.path, "udp", from.addr+":5353", "dns", from.seenAs)
		})
	}
}

func TestPortOnOneAddressAnswersThereOnly(t *testing.T) {
	h := newHost(t, nil)
	c := h.run(h.request("127.0.0.1:8080:80/tcp", hostAddr+":8081:80/tcp"))
	h.serve(c.Netns, "tcp4", ":80", "web")
	h.answers("", "tcp", "127.0.0.1:8080", "web", "")
	h.silent(h.lan, "tcp", hostAddr+":8080")
	h.answers(h.lan, "tcp", hostAddr+":8081", "web", lanAddr)
	h.silent("", "tcp", "127.0.0.1:8081")
}

func TestPublishedPortAnswersOverIPv6(t *testing.T) {
	h := newHost(t, func(o *network.Options) { o.IPv6, o.FixedCIDRv6 = true, "fd00:1::/64" })
	c := h.run(h.request("8080:80/tcp", "["+hostAddr6+"]:8081:80/tcp"))
	if got := c.Endpoints[0].IPv6.Address.String(); got != "fd00:1::2/64" {
		t.Errorf("address %s", got)
	}
	h.serve(c.Netns, "tcp6", ":80", "web6")
	h.answers(h.lan, "tcp", "["+hostAddr6+"]:8080", "web6", lanAddr6)
	h.answers(h.lan, "tcp", "["+hostAddr6+"]:8081", "web6", lanAddr6)
	h.answers("", "tcp", "["+hostAddr6+"]:8080", "web6", "")
	h.answers(c.Netns, "tcp", "["+hostAddr6+"]:8080", "web6", "fd00:1::1")

	h.serve(h.lan, "tcp6", ":7000", "lan6")
	h.answers(c.Netns, "tcp", "["+lanAddr6+"]:7000", "lan6", hostAddr6)
}

func TestContainerReachesOutsideWithTheHostsAddress(t *testing.T) {
	h := newHost(t, nil)
	c := h.run(h.request())
	h.serve(h.lan, "tcp4", ":7000", "lan")
	h.serve(h.lan, "udp4", ":7000", "lan")
	h.answers(c.Netns, "tcp", lanAddr+":7000", "lan", hostAddr)
	h.answers(c.Netns, "udp", lanAddr+":7000", "lan", hostAddr)
}

// route gives the neighbour a route through the host to the containers' subnet.
func (h *host) route(c *container) {
	h.in(h.lan, func() {
		_, dst, err := netParse(c)
		if err == nil {
			err = netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: parseIP(hostAddr)})
		}
		if err != nil {
			h.t.Error(err)
		}
	})
}

func TestUnpublishedPortIsOutOfTheNeighboursReach(t *testing.T) {
	h := newHost(t, nil)
	c := h.run(h.request("8080:80/tcp"))
	h.serve(c.Netns, "tcp4", ":80", "web")
	h.serve(c.Netns, "tcp4", ":81", "hidden")
	h.route(c)
	h.silent(h.lan, "tcp", c.ip()+":81")
	h.silent(h.lan, "tcp", c.ip()+":80")
	h.answers("", "tcp", c.ip()+":81", "hidden", "")
	// The rules kept the packet out.
	h.ok(h.m.Close()) // so that no daemon repairs the rules
	flushChain(t, table, "to-hft0")
	h.answers(h.lan, "tcp", c.ip()+":81", "hidden", lanAddr)
}

func TestNeighbourCannotReachTheHostsLoopback(t *testing.T) {
	h := newHost(t, nil)
	c := h.run(h.request("127.0.0.1:5353:53/udp"))
	packets := h.count(c.Netns, "udp4", ":53")
	h.send(h.lan, "lan0", datagram(lanAddr, "127.0.0.1", 5353))
	if n := packets(silence); n != 0 {
		t.Errorf("%d packets came through", n)
	}
	h.ok(h.m.Close()) // so that no daemon repairs the rules
	flushChain(t, table, "guard")
	h.send(h.lan, "lan0", datagram(lanAddr, "127.0.0.1", 5353))
	if n := packets(soon); n != 1 {
		t.Errorf("without the guard %d packets passed, so the test does not prove that the guard works", n)
	}
}

func TestContainerCannotReachOrPretendToBeTheHostsLoopback(t *testing.T) {
	h := newHost(t, nil)
	c := h.run(h.request())
	gateway := c.Endpoints[0].IPv4.Gateway.String()
	private := h.count("", "udp4", "127.0.0.1:9000")
	trusting := h.count("", "udp4", gateway+":9001")
	send := func() {
		h.send(c.Netns, "hft0", datagram(c.ip(), "127.0.0.1", 9000))
		// The kernel itself drops packets to 127.0.0.1, an address of lo, but
		// not those to the rest of 127.0.0.0/8.
		h.send(c.Netns, "hft0", datagram("127.9.9.9", gateway, 9001))
	}
	send()
	if a, b := private(silence), trusting(silence); a+b != 0 {
		t.Errorf("%d packets reached 127.0.0.1, %d arrived with a source address of its subnet", a, b)
	}
	h.ok(h.m.Close()) // so that no daemon repairs the rules
	flushChain(t, table, "guard")
	send()
	if a, b := private(soon), trusting(soon); a*b != 1 {
		t.Errorf("without the guard %d packets reached 127.0.0.1 and %d arrived with a source address of its subnet, so the test does not prove that the guard works", a, b)
	}
}

func TestContainersOfAClosedBridgeDoNotMeet(t *testing.T) {
	h := newHost(t, func(o *network.Options) { o.ICC = false })
	a := h.run(h.request("8080:80/tcp"))
	b := h.run(h.request())
	h.serve(a.Netns, "tcp4", ":80", "a")
	h.silent(b.Netns, "tcp", a.ip()+":80")
	h.answers(b.Netns, "tcp", hostAddr+":8080", "a", "")
	h.answers(h.lan, "tcp", hostAddr+":8080", "a", lanAddr)

	open := newOpenBridge(t, h)
	h.answers(open[1].Netns, "tcp", open[0].ip()+":80", "open", "")
}

// newOpenBridge is the same with communication between containers enabled, for
// comparison.
func newOpenBridge(t *testing.T, h *host) [2]*container {
	h.opts.BridgeName, h.opts.ICC, h.opts.Root = "hft1", true, h.opts.Root+"1"
	h.opts.BIP = "10.99.0.1/24"
	h.m.Close()
	m, err := network.Open(context.Background(), h.opts)
	h.ok(err)
	h.m = m
	t.Cleanup(func() { removeTable(t, "holdfast-hft1") })
	h.ok(m.Restore(context.Background(), nil, nil))
	a, b := h.run(h.request()), h.run(h.request())
	h.serve(a.Netns, "tcp4", ":80", "open")
	return [2]*container{a, b}
}

func TestTeardownBatchEndsTheTranslation(t *testing.T) {
	h := newHost(t, nil)
	c := h.run(h.request("8080:80/tcp", "5353:53/udp", "127.0.0.1:9000:9000/tcp"))
	kept := h.run(h.request("8081:80/tcp"))
	h.serve(c.Netns, "tcp4", ":80", "web")
	h.answers(h.lan, "tcp", hostAddr+":8080", "web", "")
	if n := owners(t, table)[c.Container]; n != 3 {
		t.Fatalf("%d elements", n)
	}
	for range 2 { // the second call has nothing to remove, and must succeed
		batches := h.m.TeardownBatch(c.Sandbox)
		if len(batches) == 0 {
			t.Fatal("nothing to send")
		}
		for _, b := range batches {
			h.ok(firewall.Send(b))
		}
	}
	got := owners(t, table)
	if got[c.Container] != 0 || got[kept.Container] != 1 {
		t.Errorf("elements by owner: %v", got)
	}
	h.silent(h.lan, "tcp", hostAddr+":8080")
}

func TestUDPClientReachesTheNewContainerOfAPort(t *testing.T) {
	h := newHost(t, nil)
	r := h.request("5353:53/udp")
	old := h.run(r)
	h.serve(old.Netns, "udp4", ":53", "old")
	client := h.udpClient(h.lan, hostAddr+":5353")
	if got := client(); got != "old" {
		t.Fatalf("got %q", got)
	}
	h.ok(h.m.Release(context.Background(), old.Sandbox))
	old.closePorts()
	next := h.run(h.request("5353:53/udp"))
	if next.ip() == old.ip() {
		t.Errorf("the address %s was allocated again at once", next.ip())
	}
	h.serve(next.Netns, "udp4", ":53", "new")
	if got := client(); got != "new" {
		t.Errorf("the flow reaches %q", got)
	}
}

func TestKernelHoldsTheRulesAsDocumented(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Fatalf("the nft command is needed to see the kernel's rules (package nftables): %v", err)
	}
	h := newHost(t, func(o *network.Options) { o.IPv6, o.FixedCIDRv6 = true, "fd00:1::/64" })
	h.run(h.request("127.0.0.1:8080:80/tcp"))
	out, err := exec.Command(nft, "list", "table", "inet", table).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got, want := string(out), h.m.Rules(); got != want {
		t.Errorf("the kernel's rules are\n%s\nwant\n%s", got, want)
	}
}

func TestThousandPortsArePublishedTogether(t *testing.T) {
	h := newHost(t, nil)
	var specs []string
	for i := range 1000 {
		specs = append(specs, fmt.Sprintf("%d:%d/tcp", 20000+i, 1000+i))
	}
	r := h.request(specs...)
	start := time.Now()
	c := h.run(r)
	t.Logf("1000 ports: %v", time.Since(start))
	if n := owners(t, table)[c.Container]; n != 1000 {
		t.Errorf("%d elements", n)
	}
	h.serve(c.Netns, "tcp4", ":1999", "last")
	h.answers(h.lan, "tcp", hostAddr+":20999", "last", lanAddr)

	before := generation(t)
	start = time.Now()
	h.open(map[string]network.Sandbox{c.Container: c.Sandbox})
	t.Logf("restore: %v", time.Since(start))
	if generation(t) != before {
		t.Error("the restore changed the rules")
	}
	start = time.Now()
	h.ok(h.m.Release(context.Background(), c.Sandbox))
	t.Logf("release: %v", time.Since(start))
	if n := owners(t, table)[c.Container]; n != 0 {
		t.Errorf("%d elements are left", n)
	}
}

func TestReserveSaysInDockersWordsThatAPortIsTaken(t *testing.T) {
	h := newHost(t, nil)
	first := h.run(h.request("8080:80/tcp"))
	fails := func(want string, ports ...string) {
		t.Helper()
		r := h.request(ports...)
		s, _, err := h.m.Prepare(context.Background(), r)
		if err == nil || !strings.Contains(err.Error(), want) ||
			!strings.HasPrefix(err.Error(), "driver failed programming external connectivity on endpoint "+r.Name) {
			t.Errorf("%v: got %v, want %q", ports, err, want)
		}
		if len(s.Ports) != 0 {
			t.Errorf("a sandbox was returned together with an error")
		}
	}
	fails("Bind for 0.0.0.0:8080 failed: port is already allocated", "8081:81/tcp", "8080:80/tcp")
	fails("Bind for 127.0.0.1:8080 failed: port is already allocated", "127.0.0.1:8080:80/tcp")
	h.serve("", "tcp4", hostAddr+":9090", "another process")
	fails("failed to bind host port 0.0.0.0:9090/tcp: address already in use", "9091:91/tcp", "9090:80/tcp")
	fails("failed to bind host port 203.0.113.1:80/tcp: cannot assign requested address", "203.0.113.1:80:80/tcp")

	// The failed requests have reserved no port.
	c := h.run(h.request("8081:81/tcp", "9091:91/tcp", "8080:80/udp"))
	// A range continues with the next port, also if another process uses one of
	// them.
	ranged := h.run(h.request("9090-9092:80/tcp"))
	if p := ranged.Ports[0].HostPort; p != 9092 {
		t.Errorf("port %d of the range", p)
	}
	h.ok(h.m.Release(context.Background(), first.Sandbox))
	first.closePorts()
	again := h.run(h.request("8080:80/tcp"))
	if again.Ports[0].HostPort != 8080 || len(c.Ports) == 0 {
		t.Errorf("ports %v", again.Ports)
	}
}

func TestPortsWithoutANumberAreTheSameOnBothFamilies(t *testing.T) {
	h := newHost(t, nil)
	c := h.run(h.request(":80/tcp", ":80/udp"))
	if len(c.Ports) != 4 {
		t.Fatalf("ports %v", c.Ports)
	}
	if c.Ports[0].HostPort != c.Ports[1].HostPort || c.Ports[0].HostPort == c.Ports[2].HostPort {
		t.Errorf("ports %v", c.Ports)
	}
	h.serve(c.Netns, "tcp4", ":80", "web")
	h.answers(h.lan, "tcp", fmt.Sprintf("%s:%d", hostAddr, c.Ports[0].HostPort), "web", lanAddr)
}
