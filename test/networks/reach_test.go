// SPDX-License-Identifier: Apache-2.0

package networks

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
)

func TestNetworksCannotReachEachOther(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "--ipv6", "one")
	h.d.Docker("network", "create", "--ipv6", "two")
	h.serve("ada", "--network", "one")
	h.serve("bob", "--network", "two")
	h.serve("cyd", "--network", "one")
	h.serve("dan")
	b4, b6, c4, c6, d4 := h.address("bob", "two"), h.address6("bob", "two"), h.address("cyd", "one"), h.address6("cyd", "one"), h.address("dan", "bridge")
	h.always(func() {
		h.reaches("ada", c4, "cyd")
		h.reaches("ada", c6, "cyd")
		h.isolated("ada", b4)
		h.isolated("ada", b6)
		h.isolated("ada", d4)
		h.isolated("dan", b4)
		h.reaches("bob", "127.0.0.1", "bob")
	})
}

func TestInternalNetworkReachesNothingOutside(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "--internal", "in")
	h.serve("ada", "--network", "in", "-p", "127.0.0.1::80")
	h.serve("bob", "--network", "in")
	h.serve("other")
	h.machine("lan"+h.d.ID[3:], "198.18.1.1/24", "198.18.1.2/24")
	other := h.address("other", "bridge")
	h.always(func() {
		h.reaches("ada", "bob", "bob")
		h.isolated("ada", "198.18.1.2")
		h.isolated("ada", other)
		if r := h.in("ada", "ip", "route"); strings.Contains(r, "default") {
			t.Errorf("a way out: %s", r)
		}
		h.unknown("ada", "example.com")
	})
	// Not even with a route that the container adds.
	gw := h.address("ada", "in")
	gw = gw[:strings.LastIndex(gw, ".")] + ".1"
	h.in("ada", "ip", "route", "add", "default", "via", gw)
	h.isolated("ada", "198.18.1.2")
}

func TestIsolatedGatewayKeepsTheHostOut(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "--internal", "--subnet", h.net+".3.0/24", "-o", "com.docker.network.bridge.gateway_mode_ipv4=isolated", "in")
	h.serve("ada", "--network", "in")
	h.serve("bob", "--network", "in")
	a := h.address("ada", "in")
	h.always(func() {
		h.reaches("bob", "ada", "ada")
		if err := connect(a, 80, 400*time.Millisecond); err == nil {
			t.Error("the host reaches the container")
		}
	})
}

func TestIccOffKeepsContainersApart(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "--opt", "com.docker.network.bridge.enable_icc=false", "n")
	h.serve("ada", "--network", "n")
	h.serve("bob", "--network", "n", "-p", "18080:80")
	addr := h.address("bob", "n")
	gw := h.inspect("ada", "{{.NetworkSettings.Networks.n.Gateway}}")
	h.always(func() {
		h.isolated("ada", addr)
		h.reaches("ada", gw+":18080", "bob") // published ports are reachable for all
	})
}

func TestAddressAndMACAreThoseAskedFor(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	six := "fd00:" + strings.TrimPrefix(h.net, "10.") + ":1"
	h.d.Docker("network", "create", "--subnet", h.net+".1.0/24", "--ipv6", "--subnet", six+"::/64", "n")
	h.serve("ada", "--network", "n", "--ip", h.net+".1.77", "--ip6", six+"::77", "--mac-address", "02:11:22:33:44:55")
	h.serve("bob", "--network", "n")
	h.always(func() {
		h.has("link", h.in("ada", "ip", "addr", "show", "eth0"), h.net+".1.77/24", six+"::77/64", "02:11:22:33:44:55")
		h.reaches("bob", h.net+".1.77", "ada")
		h.reaches("bob", six+"::77", "ada")
	})
	h.refused("ddress already in use", "run", "--rm", "--network", "n", "--ip6", six+"::77", image)
	// Two containers with one MAC address on a network would not receive their
	// packets. A container without an explicit MAC address never gets a used
	// one by accident, and the same address is allowed on another network.
	h.refused("is already in use on network n by container", "run", "--rm", "--network", "n", "--mac-address", "02:11:22:33:44:55", image)
	h.d.Docker("network", "create", "o")
	h.d.Docker("run", "--rm", "--network", "o", "--mac-address", "02:11:22:33:44:55", image, "true")
	h.run("cyd", "--network", "n", "--ip", h.net+".1.80", "--mac-address", "02:42:0a:"+hex(h.net)+":01:51", image, "sleep", "9999")
	h.serve("dan", "--network", "n", "--ip", h.net+".1.81")
	h.has("MAC that goes with the address", h.in("cyd", "ip", "link"), "02:42:0a:"+hex(h.net)+":01:51")
	h.always(func() { h.reaches("cyd", h.net+".1.81", "dan") })
	h.d.Docker("restart", "-t", "0", "ada")
	h.know("ada")
	h.has("after a restart", h.in("ada", "ip", "addr", "show", "eth0"), h.net+".1.77/24", "02:11:22:33:44:55")
}

// hex is the second byte of 10.N, as written in a MAC address.
func hex(net string) string {
	n, _ := strconv.Atoi(strings.TrimPrefix(net, "10."))
	return fmt.Sprintf("%02x", n)
}

func TestContainersReachTheOutsideWithTheHostsAddress(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	pid := h.machine("out"+h.d.ID[3:], "198.18.2.1/24", "198.18.2.2/24")
	h.d.Docker("network", "create", "masked")
	h.d.Docker("network", "create", "--opt", "com.docker.network.bridge.enable_ip_masquerade=false", "plain")
	h.run("ada", "--network", "masked", image, "sleep", "9999")
	h.run("bob", "--network", "plain", image, "sleep", "9999")
	h.serve("cyd", "--network", "masked")
	closed := h.address("cyd", "masked")
	h.always(func() {
		h.within("ada", func() error { return connect("198.18.2.2", 80, 5*time.Second) })
		h.isolated("bob", "198.18.2.2") // the machine has no route back to the container's address
		// A packet from outside, by a route to the container's address, does
		// not get in.
		h.host("nsenter", "-t", strconv.Itoa(pid), "-n", "--", "ip", "route", "replace", closed+"/32", "via", "198.18.2.1")
		err := inNamespace(pid, func() error { return connect(closed, 80, 400*time.Millisecond) })
		if err == nil {
			t.Error("another machine reaches a port that is not published")
		}
	})
}

func TestWhatLeavesHasTheAddressThatTheNetworkNames(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	link := "src" + h.d.ID[3:]
	pid := h.machine(link, "198.18.7.1/24", "198.18.7.2/24")
	six := "fd00:198:" + strings.TrimPrefix(h.net, "10.") + "::"
	h.host("ip", "addr", "add", "198.18.7.9/24", "dev", link)
	for _, a := range []string{"1", "9"} {
		h.host("ip", "addr", "add", six+a+"/64", "dev", link, "nodad")
	}
	h.host("nsenter", "-t", strconv.Itoa(pid), "-n", "--", "ip", "addr", "add", six+"2/64", "dev", "eth0", "nodad")
	h.d.Docker("network", "create", "--ipv6", "--opt", "com.docker.network.host_ipv4=198.18.7.9", "--opt", "com.docker.network.host_ipv6="+six+"9", "named")
	h.d.Docker("network", "create", "usual")
	h.run("ada", "--network", "named", image, "sleep", "9999")
	h.run("bob", "--network", "usual", image, "sleep", "9999")
	h.refused("want an IPv4 address of the host", "network", "create", "--opt", "com.docker.network.host_ipv4="+six+"9", "o")
	seen := func(name, at string) string {
		return h.in(name, "nc", "-w", "5", at, "80")
	}
	h.always(func() {
		h.has("the machine sees", seen("ada", "198.18.7.2"), "198.18.7.9:")
		h.has("the machine sees", seen("ada", six+"2"), "["+six+"9]:")
		h.has("the machine sees", seen("bob", "198.18.7.2"), "198.18.7.1:")
	})
}

// The host forwards IPv6 as soon as a network has it, and still accepts its own
// router advertisements. Not in parallel, because the sysctl applies to all
// daemons of the host.
func TestIPv6LeadsToOtherMachinesAndBack(t *testing.T) {
	h := newHouse(t, nil)
	link := "six" + h.d.ID[3:]
	pid := h.machine(link, "198.18.8.1/24", "198.18.8.2/24")
	six := "fd00:199:" + strings.TrimPrefix(h.net, "10.") + "::"
	h.host("ip", "addr", "add", six+"1/64", "dev", link, "nodad")
	h.host("nsenter", "-t", strconv.Itoa(pid), "-n", "--", "ip", "addr", "add", six+"2/64", "dev", "eth0", "nodad")
	for _, conf := range []string{"all", link} {
		h.host("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/"+conf+"/forwarding")
	}
	h.host("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/"+link+"/accept_ra")
	h.d.Docker("network", "create", "--ipv4=false", "--ipv6", "n")
	h.serve("ada", "--network", "n", "-p", "18280:80")
	h.always(func() {
		h.has("the machine sees", h.in("ada", "nc", "-w", "5", six+"2", "80"), "["+six+"1]:")
		if err := inNamespace(pid, func() error { return connect(six+"1", 18280, 5*time.Second) }); err != nil {
			t.Errorf("the machine does not reach the published port: %v", err)
		}
		h.equal("routers are heard of", strings.TrimSpace(h.host("cat", "/proc/sys/net/ipv6/conf/"+link+"/accept_ra")), "2")
	})
}

func TestMacvlanPutsContainersOnTheHostsLink(t *testing.T) {
	t.Parallel()
	onParent(t, "macvlan")
}

// On a kernel without ipvlan the error must say what is missing.
func TestIPvlanPutsContainersOnTheHostsLinkOrSaysWhyNot(t *testing.T) {
	t.Parallel()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "hfprobe1"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "hfprobe2"}); err != nil {
		t.Fatal(err)
	}
	defer try("ip", "link", "del", "hfprobe1")
	if _, err := try("ip", "link", "add", "hfprobe0", "link", "hfprobe1", "type", "ipvlan", "mode", "l2"); err == nil {
		onParent(t, "ipvlan")
		return
	}
	h := newHouse(t, nil)
	h.refused("ipvlan", "network", "create", "-d", "ipvlan", "--subnet", h.net+".1.0/24", "n")
	h.equal("networks", h.d.Docker("network", "ls", "-q", "--filter", "type=custom"), "")
}

// An interface of such a network has no peer on the host that would show the
// next daemon that a connection is incomplete.
func TestMacvlanConnectionIsFinishedAfterACrash(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "first")
	h.d.Docker("network", "create", "-d", "macvlan", "--subnet", h.net+".5.0/24", "lone")
	h.run("ada", "--network", "first", image, "sleep", "9999")
	h.serve("bob", "--network", "lone")
	b := h.address("bob", "lone")
	dies := func(args ...string) {
		t.Helper()
		h.d.Kill9()
		h.d.SetEnv("HOLDFAST_FAILPOINT=network.recorded")
		h.d.Start()
		h.d.SetEnv()
		h.d.TryDocker(args...)
		h.d.WaitExit()
		h.d.Start()
	}
	dies("network", "connect", "lone", "ada")
	h.always(func() { h.reaches("ada", b, "bob") })
	dies("network", "disconnect", "lone", "ada")
	h.always(func() { h.isolated("ada", b) })
}

// A container in another container's network namespace loses its interfaces
// when the other one ends, as in Docker. Their addresses are free for the next
// container.
func TestAddressIsNobodysWhenAContainerEndsWhoseNamespaceAnotherShares(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "--subnet", h.net+".1.0/24", "n")
	h.serve("ada", "--network", "n")
	h.d.Docker("run", "-d", "--name", "bob", "--network", "container:ada", image, "sleep", "9999")
	h.know("bob")
	h.serve("cyd", "--network", "n")
	addr := h.address("ada", "n")
	h.has("shared", h.in("bob", "ip", "addr"), addr)
	alone := func() {
		t.Helper()
		if got := h.in("bob", "ip", "addr"); strings.Contains(got, addr) {
			t.Errorf("two interfaces have the address %s:\n%s", addr, got)
		}
	}
	h.d.Kill9()
	h.d.Start()
	h.d.Docker("restart", "-t", "0", "ada")
	h.know("ada")
	h.reaches("ada", "127.0.0.1", "ada")
	h.always(func() {
		alone()
		h.reaches("cyd", addr, "ada")
	})
	h.d.Docker("restart", "-t", "0", "bob")
	h.know("bob")
	h.has("shared again", h.in("bob", "ip", "addr"), addr)
	h.d.Docker("rm", "-f", "ada")
	delete(h.pids, "ada")
	alone()
	h.serve("dan", "--network", "n", "--ip", addr)
	h.always(func() { h.reaches("cyd", addr, "dan") })
}

func onParent(t *testing.T, driver string) {
	// Other hosts are in the same subnet, and the host's name server may know
	// their names.
	lan := newUpstream(t, map[string]string{"macvlan": "127.0.5.53", "ipvlan": "127.0.6.53"}[driver], 5)
	h := newHouse(t, map[string]any{"dns": []string{lan.addr}})
	link := "par" + h.d.ID[3:]
	pid := h.machine(link, "", h.net+".1.250/24")
	h.d.Docker("network", "create", "-d", driver, "--subnet", h.net+".1.0/24", "--gateway", h.net+".1.250", "-o", "parent="+link, "n")
	h.serve("ada", "--network", "n")
	h.serve("bob", "--network", "n")
	addr := h.address("ada", "n")
	h.always(func() {
		h.reaches("bob", "ada", "ada")
		h.ask("bob", backwards(h.net+".1.77"), dnsmessage.TypePTR, false)
		h.within("ada", func() error { return connect(h.net+".1.250", 80, 5*time.Second) })
		if err := inNamespace(pid, func() error { return connect(addr, 80, 5*time.Second) }); err != nil {
			t.Errorf("the other machine does not reach the container: %v", err)
		}
	})
	// The MAC address is free for the container's next start at once.
	for range 10 {
		h.d.Docker("restart", "-t", "0", "bob")
	}
	h.know("bob")
	h.reaches("bob", "127.0.0.1", "bob")
	h.reaches("bob", "ada", "ada")
	if !lan.asked(backwards(h.net+".1.77")+".") || lan.asked(backwards(addr)+".") {
		t.Errorf("queries were forwarded to the host's name server: %v", lan.seen)
	}
	h.d.Docker("rm", "-f", "ada", "bob")
	clear(h.pids)
	h.d.Docker("network", "rm", "n")
	if _, err := netlink.LinkByName(link); err != nil {
		t.Errorf("the user's link: %v", err)
	}
	h.refused("loopback interface is not a valid "+driver+" parent link", "network", "create", "-d", driver, "-o", "parent=lo", "o")
	if driver == "macvlan" {
		h.d.Docker("network", "create", "-d", driver, "--subnet", h.net+".1.0/24", "-o", "parent="+link, "n")
		h.refused("in mode passthru it is one network's alone", "network", "create", "-d", driver, "-o", "parent="+link, "-o", "macvlan_mode=passthru", "o")
		h.d.Docker("network", "rm", "n")
	}
	// Without a parent the network is internal, and its parent interface
	// belongs to Holdfast.
	h.d.Docker("network", "create", "-d", driver, "lone")
	h.serve("cyd", "--network", "lone")
	h.serve("dan", "--network", "lone")
	h.always(func() { h.reaches("cyd", "dan", "dan") })
}
