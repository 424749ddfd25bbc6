// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	apinet "github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/network"
	"holdfast/internal/network/bridge"
	"holdfast/internal/network/dump"
)

// stored returns the sandboxes as the engine would read them from the
// specifications after it was killed.
func (h *host) stored(cs ...*container) map[string]network.Sandbox {
	h.t.Helper()
	out := map[string]network.Sandbox{}
	for _, c := range cs {
		b, err := json.Marshal(c.Sandbox)
		h.ok(err)
		var s network.Sandbox
		h.ok(json.Unmarshal(b, &s))
		out[c.Container] = s
	}
	return out
}

func TestRestoreTouchesNothingThatIsAsItShouldBe(t *testing.T) {
	h := newHost(t, func(o *network.Options) { o.IPv6 = true })
	a := h.run(h.request("8080:80/tcp", "["+hostAddr6+"]:8081:80/tcp", "5353:53/udp"))
	b := h.run(h.request("127.0.0.1:9000:80/tcp"))
	h.serve(a.Netns, "tcp4", ":80", "a")
	before := generation(t)
	links := make(chan netlink.LinkUpdate, 100)
	addrs := make(chan netlink.AddrUpdate, 100)
	done := make(chan struct{})
	defer close(done)
	h.ok(netlink.LinkSubscribe(links, done))
	h.ok(netlink.AddrSubscribe(addrs, done))
	h.log.take()
	for range 2 {
		h.open(h.stored(a, b))
	}
	if now := generation(t); now != before {
		t.Errorf("%d transactions", now-before)
	}
	if got := h.log.take(); got != "" {
		t.Errorf("logged: %s", got)
	}
	// The test changes an interface itself. All notifications before that one
	// belong to the restore.
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "mark"
	h.ok(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	for {
		u := <-links
		if u.Attrs().Name == "mark" {
			break
		}
		t.Errorf("interface %s was touched", u.Attrs().Name)
	}
	if len(addrs) > 0 {
		t.Errorf("%d addresses were touched", len(addrs))
	}
	h.answers(h.lan, "tcp", hostAddr+":8080", "a", lanAddr)

	// The addresses and ports in use are known again.
	c := h.run(h.request())
	for _, other := range []*container{a, b} {
		if c.ip() == other.ip() {
			t.Errorf("the address %s was allocated twice", c.ip())
		}
	}
	_, _, err := h.m.Prepare(context.Background(), h.request("8080:80/tcp"))
	if err == nil {
		t.Error("port 8080 was allocated twice")
	}
}

func TestPortAnswersWhileNoDaemonLives(t *testing.T) {
	h := newHost(t, nil)
	c := h.run(h.request("8080:80/tcp"))
	h.serve(c.Netns, "tcp4", ":80", "web")
	h.ok(h.m.Close())
	h.m = nil
	h.answers(h.lan, "tcp", hostAddr+":8080", "web", lanAddr)
	h.answers("", "tcp", "127.0.0.1:8080", "web", "")
}

func TestRestoreRemovesWhatBelongsToNobody(t *testing.T) {
	h := newHost(t, nil)
	kept := h.run(h.request("8080:80/tcp"))
	gone := h.run(h.request("8081:80/tcp"))
	h.serve(kept.Netns, "tcp4", ":80", "kept")
	h.open(h.stored(kept))
	if bridge.IsNamespace(gone.Netns) {
		t.Error("its namespace is still mounted")
	}
	if _, err := os.Stat(gone.Netns); !os.IsNotExist(err) {
		t.Errorf("its namespace's file: %v", err)
	}
	if _, err := netlink.LinkByName(gone.Endpoints[0].HostName); err == nil {
		t.Error("its interface is still there")
	}
	got := owners(t, table)
	if got[gone.Container] != 0 || got[kept.Container] != 1 {
		t.Errorf("elements by owner: %v", got)
	}
	h.answers(h.lan, "tcp", hostAddr+":8080", "kept", lanAddr)
}

func TestRestorePutsBackWhatWasTakenAway(t *testing.T) {
	for name, take := range map[string]func(h *host, c *container){
		"the table":   func(h *host, c *container) { removeTable(h.t, table) },
		"a rule":      func(h *host, c *container) { flushChain(h.t, table, "prerouting") },
		"the bridge":  func(h *host, c *container) { h.ok(bridge.Remove("hft0")) },
		"the address": func(h *host, c *container) { h.removeBridgeAddress() },
		"the veth": func(h *host, c *container) {
			link, err := netlink.LinkByName(c.Endpoints[0].HostName)
			h.ok(err)
			h.ok(netlink.LinkDel(link))
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, nil)
			c := h.run(h.request("8080:80/tcp"))
			h.serve(c.Netns, "tcp4", ":80", "web")
			h.answers(h.lan, "tcp", hostAddr+":8080", "web", lanAddr)
			h.ok(h.m.Close()) // the change happens while no daemon watches
			take(h, c)
			h.silent(h.lan, "tcp", hostAddr+":8080")
			h.open(h.stored(c))
			h.answers(h.lan, "tcp", hostAddr+":8080", "web", lanAddr)
		})
	}
}

func (h *host) removeBridgeAddress() {
	link, err := netlink.LinkByName("hft0")
	h.ok(err)
	addrs, err := dump.Addrs(link, netlink.FAMILY_V4)
	h.ok(err)
	for _, a := range addrs {
		h.ok(netlink.AddrDel(link, &a))
	}
}

func TestPublishRepairsATableThatWasFlushed(t *testing.T) {
	h := newHost(t, nil)
	first := h.run(h.request("8080:80/tcp"))
	h.serve(first.Netns, "tcp4", ":80", "first")
	removeTable(t, table)
	second := h.run(h.request("8081:80/tcp"))
	h.serve(second.Netns, "tcp4", ":80", "second")
	h.answers(h.lan, "tcp", hostAddr+":8080", "first", lanAddr)
	h.answers(h.lan, "tcp", hostAddr+":8081", "second", lanAddr)
}

func TestContainerKeepsItsGatewayWhenTheBridgesAddressChanges(t *testing.T) {
	h := newHost(t, func(o *network.Options) { o.BIP = "10.90.0.1/24" })
	old := h.run(h.request("8080:80/tcp"))
	h.serve(old.Netns, "tcp4", ":80", "old")
	h.serve(h.lan, "tcp4", ":7000", "lan")
	h.opts.BIP = "10.91.0.1/24"
	h.open(h.stored(old))
	next := h.run(h.request())
	if next.ip() != "10.91.0.2" {
		t.Errorf("the new container has %s", next.ip())
	}
	h.answers(h.lan, "tcp", hostAddr+":8080", "old", lanAddr)
	h.answers(old.Netns, "tcp", lanAddr+":7000", "lan", hostAddr)
	h.answers(next.Netns, "tcp", lanAddr+":7000", "lan", hostAddr)
	// The old address is removed when no container needs it any more.
	h.ok(h.m.Release(context.Background(), old.Sandbox))
	h.open(h.stored(next))
	addrs, _, err := bridge.Addresses("hft0")
	h.ok(err)
	if len(addrs) != 1 || addrs[0].String() != "10.91.0.1/24" {
		t.Errorf("the bridge has %v", addrs)
	}
}

func TestSubnetAvoidsTheHostsRoutesAndStays(t *testing.T) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "corp"
	link := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr("172.17.5.1/16")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	h := newHost(t, nil)
	gateway := func() string {
		return h.m.HostGateway()[0].String()
	}
	if got := gateway(); got != "172.18.0.1" {
		t.Errorf("gateway %s", got)
	}
	h.ok(netlink.LinkDel(link))
	h.open(nil)
	if got := gateway(); got != "172.18.0.1" {
		t.Errorf("gateway %s after a restart", got)
	}
}

func TestBridgeOfTheHostIsUsedAsItIs(t *testing.T) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "hft0"
	link := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"10.80.0.7/24", "10.81.0.1/24"} {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			t.Fatal(err)
		}
	}
	h := newHost(t, nil)
	c := h.run(h.request())
	if c.ip() != "10.80.0.1" || c.Endpoints[0].IPv4.Gateway.String() != "10.80.0.7" {
		t.Errorf("got %s by %s", c.ip(), c.Endpoints[0].IPv4.Gateway)
	}
	h.open(h.stored(c))
	addrs, _, err := bridge.Addresses("hft0")
	h.ok(err)
	if len(addrs) != 2 {
		t.Errorf("the bridge has %v", addrs)
	}
}

func TestJoinMayBeCutOffAndRepeated(t *testing.T) {
	h := newHost(t, nil)
	ctx := context.Background()
	s, reserved, err := h.m.Prepare(ctx, h.request())
	h.ok(err)
	c := &container{s, reserved}
	// The daemon died after it had mounted the namespace.
	h.ok(bridge.Join(bridge.Sandbox{Path: s.Netns}))
	for range 3 {
		h.ok(h.m.Join(ctx, s))
	}
	h.serve(h.lan, "tcp4", ":7000", "lan")
	h.answers(c.Netns, "tcp", lanAddr+":7000", "lan", hostAddr)
	for range 3 {
		h.ok(h.m.Release(ctx, s))
	}
	if _, err := os.Stat(s.Netns); !os.IsNotExist(err) {
		t.Errorf("the namespace's file: %v", err)
	}
	// The interface of a namespace that was never mounted still exists.
	s, _, err = h.m.Prepare(ctx, h.request())
	h.ok(err)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = s.Endpoints[0].HostName
	h.ok(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "stray"}))
	h.ok(h.m.Join(ctx, s))
	h.answers(s.Netns, "tcp", lanAddr+":7000", "lan", hostAddr)
}

func TestReleaseOfAnEarlierLifeLeavesTheLaterAlone(t *testing.T) {
	h := newHost(t, nil)
	r := h.request("8080:80/tcp")
	old := h.run(r)
	old.closePorts()
	next := h.run(r)
	h.ok(h.m.Release(context.Background(), old.Sandbox))
	h.serve(next.Netns, "tcp4", ":80", "next")
	h.answers(h.lan, "tcp", hostAddr+":8080", "next", lanAddr)
}

func TestPredefinedModes(t *testing.T) {
	h := newHost(t, nil)
	ctx := context.Background()
	prepare := func(mode string) network.Sandbox {
		t.Helper()
		r := h.request()
		r.Mode = mode
		s, _, err := h.m.Prepare(ctx, r)
		h.ok(err)
		h.ok(h.m.Join(ctx, s))
		h.ok(h.m.Publish(ctx, s))
		return s
	}
	onHost, none, bridged := prepare("host"), prepare("none"), prepare("default")
	if onHost.Netns != "" {
		t.Errorf("host: namespace %s", onHost.Netns)
	}
	if got := h.links(none.Netns); !slices.Equal(got, []string{"lo"}) {
		t.Errorf("none: interfaces %v", got)
	}
	if got := h.links(bridged.Netns); !slices.Equal(got, []string{"lo", "eth0"}) {
		t.Errorf("bridge: interfaces %v", got)
	}
	shared := prepare("container:" + bridged.Container)
	if shared.Netns != bridged.Netns {
		t.Errorf("shared: namespace %s", shared.Netns)
	}
	h.ok(h.m.Release(ctx, shared))
	if !bridge.IsNamespace(bridged.Netns) {
		t.Error("the owner lost its namespace")
	}
	for mode, is := range map[string]func(error) bool{
		"container:" + h.id(): errdefs.IsFailedPrecondition,
		"nowhere":             errdefs.IsNotFound,
	} {
		r := h.request()
		r.Mode = mode
		if _, _, err := h.m.Prepare(ctx, r); !is(err) {
			t.Errorf("%s: got %v", mode, err)
		}
	}
	in, err := h.m.Inspect("bridge", func(string) string { return "web" })
	h.ok(err)
	if e := in.Containers[bridged.Container]; e.Name != "web" || e.IPv4Address != bridged.Endpoints[0].IPv4.Address {
		t.Errorf("inspect: %+v", in.Containers)
	}
}

func (h *host) links(path string) (names []string) {
	h.in(path, func() {
		links, err := dump.Interfaces()
		if err != nil {
			h.t.Error(err)
		}
		for _, l := range links {
			names = append(names, l.Attrs().Name)
		}
	})
	return names
}

func TestIPv6IsOffInContainersWithoutAnAddressOfIt(t *testing.T) {
	h := newHost(t, nil)
	c := h.run(h.request())
	h.in(c.Netns, func() {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			t.Error(err)
			return
		}
		addrs, err := dump.Addrs(link, netlink.FAMILY_V6)
		if err != nil || len(addrs) != 0 {
			t.Errorf("eth0: %v, %v", addrs, err)
		}
	})
}

func TestAddressesThatTheUserNames(t *testing.T) {
	h := newHost(t, nil)
	ctx := context.Background()
	_, err := h.m.Create(ctx, apinet.CreateRequest{Name: "own", IPAM: &apinet.IPAM{Config: []apinet.IPAMConfig{{Subnet: netip.MustParsePrefix("10.90.0.0/24")}}}})
	h.ok(err)
	r := h.request()
	r.Mode = "own"
	mac := apinet.HardwareAddr{2, 0, 0, 0, 0, 9}
	r.Endpoints = map[string]*apinet.EndpointSettings{"own": {
		IPAMConfig: &apinet.EndpointIPAMConfig{IPv4Address: parseAddr("10.90.0.77")}, MacAddress: mac,
	}}
	c := h.run(r)
	es := h.m.Settings(c.Sandbox).Networks["own"]
	if c.ip() != "10.90.0.77" || es.MacAddress.String() != mac.String() || es.IPAddress.String() != c.ip() {
		t.Errorf("got %+v", es)
	}
	h.in(c.Netns, func() {
		link, err := netlink.LinkByName("eth0")
		if err != nil || link.Attrs().HardwareAddr.String() != mac.String() {
			t.Errorf("eth0: %v, %v", link, err)
		}
	})
	again := h.request()
	again.Endpoints, again.Mode = r.Endpoints, "own"
	if _, _, err := h.m.Prepare(ctx, again); !errdefs.IsInvalidArgument(err) {
		t.Errorf("the same address again: %v", err)
	}
	onDefault := h.request()
	onDefault.Endpoints = map[string]*apinet.EndpointSettings{"bridge": r.Endpoints["own"]}
	if _, _, err := h.m.Prepare(ctx, onDefault); !errdefs.IsInvalidArgument(err) {
		t.Errorf("on the default network: %v", err)
	}
	h.ok(h.m.Release(ctx, c.Sandbox))
	_, err = h.m.Remove(ctx, "own")
	h.ok(err)
}

func TestManyContainersAtOnce(t *testing.T) {
	h := newHost(t, nil)
	ctx := context.Background()
	const n = 50
	rs := make([]network.Request, n)
	for i := range rs {
		rs[i] = h.request(":80/tcp")
	}
	cs := make([]*container, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range rs {
		wg.Go(func() {
			s, reserved, err := h.m.Prepare(ctx, rs[i])
			cs[i] = &container{s, reserved}
			if err == nil {
				err = h.m.Join(ctx, s)
			}
			if err == nil {
				err = h.m.Publish(ctx, s)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	t.Logf("%d at once: %v", n, time.Since(start))
	seen := map[string]bool{}
	for i, c := range cs {
		t.Cleanup(c.closePorts)
		h.ok(errs[i])
		if seen[c.ip()] {
			t.Errorf("%s twice", c.ip())
		}
		seen[c.ip()] = true
	}
	h.serve(cs[n-1].Netns, "tcp4", ":80", "last")
	h.answers(cs[0].Netns, "tcp", cs[n-1].ip()+":80", "last", cs[0].ip())
	start = time.Now()
	h.open(h.stored(cs...))
	t.Logf("restore of %d: %v", n, time.Since(start))

	// The threads that entered namespaces have returned to the host's namespace
	// or exited.
	host, err := os.Readlink("/proc/self/ns/net")
	h.ok(err)
	runtime.GC()
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	h.ok(err)
	for _, task := range tasks {
		if ns, err := os.Readlink(task); err == nil && ns != host {
			t.Errorf("a thread is in %s", ns)
		}
	}
}

func TestTimes(t *testing.T) {
	h := newHost(t, nil)
	ctx := context.Background()
	const n = 30
	took := map[string][]time.Duration{}
	timed := func(name string, f func() error) {
		start := time.Now()
		h.ok(f())
		took[name] = append(took[name], time.Since(start))
	}
	for range n {
		r := h.request(":80/tcp")
		var s network.Sandbox
		var reserved []network.Reserved
		timed("prepare", func() (err error) { s, reserved, err = h.m.Prepare(ctx, r); return err })
		timed("join", func() error { return h.m.Join(ctx, s) })
		timed("publish", func() error { return h.m.Publish(ctx, s) })
		timed("release", func() error { return h.m.Release(ctx, s) })
		(&container{s, reserved}).closePorts()
	}
	for name, ds := range took {
		slices.Sort(ds)
		t.Logf("%-8s median %v, max %v", name, ds[n/2], ds[n-1])
	}
}

func TestFirstPacketAfterJoinIsNotLost(t *testing.T) {
	h := newHost(t, nil)
	ctx := context.Background()
	h.serve(h.lan, "tcp4", ":7000", "lan")
	for range 20 {
		// The bridge loses its only port each time, and gets another.
		s, _, err := h.m.Prepare(ctx, h.request())
		h.ok(err)
		h.ok(h.m.Join(ctx, s))
		start := time.Now()
		h.answers(s.Netns, "tcp", lanAddr+":7000", "lan", hostAddr)
		if d := time.Since(start); d > 900*time.Millisecond {
			t.Errorf("answered after %v: a packet was lost and repeated", d)
		}
		h.ok(h.m.Release(ctx, s))
	}
}

func TestWithoutPacketFilterPortsAreTheShims(t *testing.T) {
	h := newHost(t, func(o *network.Options) { o.Iptables, o.Ip6tables = false, false })
	before := generation(t)
	s, reserved, err := h.m.Prepare(context.Background(), h.request("8080:80/tcp"))
	h.ok(err)
	c := &container{s, reserved}
	t.Cleanup(c.closePorts)
	h.ok(h.m.Join(context.Background(), s))
	h.ok(h.m.Publish(context.Background(), s))
	if b := h.m.TeardownBatch(s); b != nil {
		t.Errorf("%d batches", len(b))
	}
	if generation(t) != before {
		t.Error("the packet filter was changed")
	}
	if len(reserved) != 2 || reserved[0].Target != c.ip()+":80" {
		t.Errorf("reserved %+v", reserved)
	}
	h.ok(h.m.Release(context.Background(), s))
}

func TestWithoutProxyPortsAreHeldButDoNotListen(t *testing.T) {
	h := newHost(t, func(o *network.Options) { o.UserlandProxy = false })
	c := h.run(h.request("8080:80/tcp"))
	if len(c.reserved) != 1 || c.reserved[0].Target != "" {
		t.Errorf("reserved %+v", c.reserved)
	}
	h.serve(c.Netns, "tcp4", ":80", "web")
	h.answers(h.lan, "tcp", hostAddr+":8080", "web", lanAddr)
	if _, err := h.ask("", "tcp", "[::1]:8080", soon); err == nil {
		t.Error("something listens on ::1")
	}
}

func TestReserveBindsThePortsAgain(t *testing.T) {
	h := newHost(t, nil)
	c := h.run(h.request("8080:80/tcp", "5353:53/udp"))
	c.closePorts()
	again, err := h.m.Reserve(context.Background(), c.Sandbox)
	h.ok(err)
	c.reserved = again
	if len(again) != 4 {
		t.Fatalf("reserved %+v", again)
	}
	if l, err := net.Listen("tcp4", ":8080"); err == nil {
		l.Close()
		t.Error("another process can bind the port")
	}
}

// A shim that was killed may still have its sockets when the engine has noticed its end.
func TestReserveWaitsForTheLastShimsSockets(t *testing.T) {
	h := newHost(t, nil)
	c := h.run(h.request("8080:80/tcp"))
	last := c.reserved
	time.AfterFunc(200*time.Millisecond, func() {
		for _, r := range last {
			r.File.Close()
		}
	})
	again, err := h.m.Reserve(context.Background(), c.Sandbox)
	h.ok(err)
	c.reserved = again
	if len(again) != 2 {
		t.Errorf("reserved %+v", again)
	}
	if got := h.m.Troubles(c.Container); len(got) > 0 {
		t.Errorf("troubles: %q", got)
	}
}

// Without free descriptors a shim would be started that does not have the ports.
func TestReserveFailsWithoutFreeDescriptors(t *testing.T) {
	h := newHost(t, nil)
	c := h.run(h.request("8080:80/tcp"))
	c.closePorts()
	var was unix.Rlimit
	h.ok(unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	h.ok(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}))
	again, err := h.m.Reserve(context.Background(), c.Sandbox)
	h.ok(unix.Setrlimit(unix.RLIMIT_NOFILE, &was))
	if !errors.Is(err, unix.EMFILE) || len(again) != 0 {
		t.Errorf("%d ports, %v", len(again), err)
	}
	again, err = h.m.Reserve(context.Background(), c.Sandbox)
	h.ok(err)
	c.reserved = again
	if len(again) != 2 {
		t.Errorf("reserved %+v", again)
	}
}

// A container on a macvlan network has ended, and its namespace still exists, as
// the kernel removes a namespace some time after its last process. A daemon that has
// found the container, and did not make its namespace itself, frees the hardware
// address for the next start all the same.
func TestAddressOnAParentIsFreeAtOnceAlsoAfterARestore(t *testing.T) {
	h := newHost(t, nil)
	_, err := h.m.Create(context.Background(), apinet.CreateRequest{Name: "mac", Driver: "macvlan", Options: map[string]string{"parent": "lan0"}})
	h.ok(err)
	r := h.request()
	r.Mode = "mac"
	c := h.run(r)
	h.open(h.stored(c))
	process, err := os.Open(c.Netns)
	h.ok(err)
	defer process.Close()
	h.ok(bridge.Leave(c.Netns)) // as the shim does at the end
	h.ok(h.m.Release(context.Background(), c.Sandbox))
	r.Last = c.Endpoints
	again := h.run(r)
	if got, want := again.Endpoints[0].MAC, c.Endpoints[0].MAC; got != want {
		t.Errorf("the next start has the hardware address %s, want %s", got, want)
	}
}

// After a handover the old daemon's networks are closed, and the table belongs to
// its successor.
func TestClosedNetworksLeaveTheTableAlone(t *testing.T) {
	h := newHost(t, nil)
	old := h.m
	h.open(nil) // closes the old ones
	c := h.run(h.request("8081:80/tcp"))
	h.serve(c.Netns, "tcp4", ":80", "c")
	before := generation(t)
	if _, err := old.Create(context.Background(), apinet.CreateRequest{Name: "late"}); err != nil {
		t.Log(err) // it may be refused
	}
	if now := generation(t); now != before {
		t.Errorf("%d transactions", now-before)
	}
	h.answers(h.lan, "tcp", hostAddr+":8081", "c", lanAddr)
}

// The daemon found containers with rules, and its own options want none. What the
// last of them leaves in the table goes with the next change.
func TestRulesThatNoContainerNeedsAreRemovedByTheNextChange(t *testing.T) {
	h := newHost(t, nil)
	c := h.run(h.request("8081:80/tcp"))
	h.opts.Iptables, h.opts.Ip6tables = false, false
	h.open(h.stored(c))
	h.ok(h.m.Release(context.Background(), c.Sandbox))
	_, err := h.m.Create(context.Background(), apinet.CreateRequest{Name: "next"})
	h.ok(err)
	before := generation(t)
	h.ok(h.m.Sync(context.Background()))
	if now := generation(t); now != before {
		t.Errorf("the table was not what it should be: %d transactions", now-before)
	}
}
