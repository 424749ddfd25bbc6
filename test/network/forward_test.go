// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	apinet "github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/network"
	"holdfast/internal/network/bridge"
)

// A second machine, on another interface of the host.
const (
	wanAddr   = "198.51.100.9"
	hostWAN   = "198.51.100.1"
	wanAddr6  = "2001:db8:1::9"
	hostWAN6  = "2001:db8:1::1"
	innerAddr = "203.0.113.9" // a virtual machine of another program
	hostInner = "203.0.113.1"
)

// router is a host with two interfaces. The machines on them have routes to
// each other through the host.
type router struct {
	*host
	wan string // path of the second machine's namespace
}

// newRouter makes a host that does not forward packets before the daemon
// starts.
func newRouter(t *testing.T, before func(r *router), change func(*network.Options)) *router {
	t.Helper()
	clean(t)
	h := newHost(t, change)
	h.ok(h.m.Close())
	h.ok(netlink.LinkDel(h.link("hft0")))
	removeTable(t, table)
	h.ok(os.RemoveAll(h.opts.ExecRoot))
	h.ok(os.RemoveAll(h.opts.Root))
	h.switchOff()
	r := &router{h, filepath.Join(t.TempDir(), "wan")}
	r.wan = h.machine("wan0", hostWAN, wanAddr, "")
	h.in(r.wan, func() { h.address("eth0", wanAddr6+"/64") })
	h.address("wan0", hostWAN6+"/64")
	for path, to := range map[string][]string{h.lan: {wanAddr, hostAddr, wanAddr6, hostAddr6}, r.wan: {lanAddr, hostWAN, lanAddr6, hostWAN6}} {
		h.routeBy(path, to[0], to[1])
		h.routeBy(path, to[2], to[3])
	}
	h.serve(r.wan, "tcp4", ":7000", "wan")
	h.serve(r.wan, "tcp6", ":7000", "wan6")
	h.serve(h.lan, "tcp4", ":7001", "lan")
	h.serve(h.lan, "tcp6", ":7001", "lan6")
	if before != nil {
		before(r)
	}
	h.log.take()
	h.open(nil)
	return r
}

// switchOff disables forwarding on the host.
func (h *host) switchOff() {
	h.setSysctl("net/ipv4/ip_forward", "0")
	h.setSysctl("net/ipv6/conf/all/forwarding", "0")
	h.setSysctl("net/ipv6/conf/default/forwarding", "0")
}

// machine makes a machine beside the host. It is connected to an interface of
// the host, or to a bridge if one is named.
func (h *host) machine(link, host, addr, onBridge string) (path string) {
	h.t.Helper()
	path = filepath.Join(h.t.TempDir(), "machine")
	h.ok(bridge.Join(bridge.Sandbox{Path: path}))
	h.t.Cleanup(func() {
		if err := bridge.Leave(path); err != nil {
			h.t.Error(err)
		}
	})
	ns, err := os.Open(path)
	h.ok(err)
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = link
	h.ok(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.Fd())}))
	if onBridge != "" {
		h.ok(netlink.LinkSetMaster(h.link(link), h.link(onBridge)))
	} else {
		h.address(link, host+"/24")
	}
	h.ok(netlink.LinkSetUp(h.link(link)))
	h.in(path, func() {
		h.address("eth0", addr+"/24")
		h.ok(netlink.LinkSetUp(h.link("eth0")))
	})
	return path
}

func (h *host) address(link, addr string) {
	h.t.Helper()
	a, err := netlink.ParseAddr(addr)
	h.ok(err)
	a.Flags = unix.IFA_F_NODAD
	h.ok(netlink.AddrAdd(h.link(link), a))
}

func (h *host) routeBy(path, to, by string) {
	h.t.Helper()
	h.in(path, func() {
		bits := 32
		if strings.Contains(to, ":") {
			bits = 128
		}
		dst, err := netlink.ParseIPNet(to + map[int]string{32: "/32", 128: "/128"}[bits])
		h.ok(err)
		gw, err := netlink.ParseAddr(by + map[int]string{32: "/32", 128: "/128"}[bits])
		h.ok(err)
		h.ok(netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: gw.IP}))
	})
}

func (r *router) opened(four, six bool) {
	r.t.Helper()
	for addr, open := range map[string]bool{wanAddr + ":7000": four, "[" + wanAddr6 + "]:7000": six} {
		if open {
			r.answers(r.lan, "tcp", addr, map[bool]string{false: "wan6", true: "wan"}[addr[0] != '['], "")
		} else {
			r.silent(r.lan, "tcp", addr)
		}
	}
	for addr, open := range map[string]bool{lanAddr + ":7001": four, "[" + lanAddr6 + "]:7001": six} {
		if open {
			r.answers(r.wan, "tcp", addr, map[bool]string{false: "lan6", true: "lan"}[addr[0] != '['], "")
		} else {
			r.silent(r.wan, "tcp", addr)
		}
	}
}

// serves checks that a container can be reached and can reach other machines.
func (r *router) serves(c *container) {
	r.t.Helper()
	r.answers(r.lan, "tcp", hostAddr+":8080", "web", lanAddr)
	r.answers(r.wan, "tcp", hostWAN+":8080", "web", wanAddr)
	r.answers(c.Netns, "tcp", wanAddr+":7000", "wan", hostWAN)
	r.answers(c.Netns, "tcp", lanAddr+":7001", "lan", hostAddr)
	r.silent(r.lan, "tcp", c.ip()+":81")
}

func (r *router) web() *container {
	r.t.Helper()
	c := r.run(r.request("8080:80/tcp"))
	r.serve(c.Netns, "tcp4", ":80", "web")
	r.serve(c.Netns, "tcp4", ":81", "hidden")
	r.route(c)
	return c
}

func TestHostThatTheEngineMadeForwardIsNoRouterBetweenItsOtherLinks(t *testing.T) {
	r := newRouter(t, func(r *router) { r.opened(false, false) }, sixes)
	if r.sysctl("net/ipv4/ip_forward") != "1" || r.sysctl("net/ipv6/conf/all/forwarding") != "1" {
		t.Fatal("the host does not forward")
	}
	c := r.web()
	r.opened(false, false)
	r.serves(c)

	// Packets pass without a daemon too. The next daemon changes nothing, and
	// knows that Holdfast enabled forwarding.
	r.ok(r.m.Close())
	r.opened(false, false)
	before := generation(t)
	r.log.take()
	r.open(r.stored(c))
	if now := generation(t); now != before {
		t.Errorf("the next daemon sent %d transactions: %s", now-before, r.log.take())
	}
	r.opened(false, false)
	r.serves(c)

	// All nftables tables were deleted while no daemon lived.
	r.ok(r.m.Close())
	r.do("", "nft", "flush", "ruleset")
	r.opened(true, true)
	r.open(r.stored(c))
	r.opened(false, false)
	r.serves(c)
	r.log.take()
	r.do("", "nft", "flush", "ruleset")
	r.says("packet filter was changed by others")
	r.opened(false, false)

	r.opts.IPForwardNoDrop = true
	r.open(r.stored(c))
	r.opened(true, true)
	r.opts.IPForwardNoDrop = false
	r.open(r.stored(c))
	r.opened(false, false)
	r.serves(c)
}

// A record of an earlier boot does not apply to this boot, and an unreadable
// record is ignored.
func TestWhoSwitchedForwardingOnIsKnownForThisBootAlone(t *testing.T) {
	r := newRouter(t, nil, nil)
	r.opened(false, false)
	path := filepath.Join(r.opts.ExecRoot, "forwarding.json")
	b, err := os.ReadFile(path)
	r.ok(err)
	boot := strings.TrimSpace(r.sysctl("kernel/random/boot_id"))
	if !strings.Contains(string(b), boot) {
		t.Fatalf("%s", b)
	}
	for what, content := range map[string]string{"another boot": strings.Replace(string(b), boot, "0", 1), "damaged": "{"} {
		r.ok(os.WriteFile(path, []byte(content), 0o600))
		r.open(nil)
		r.answers(r.lan, "tcp", wanAddr+":7000", "wan", "")
		if what == "damaged" {
			r.says("can't be read")
		}
	}
	r.ok(os.WriteFile(path, b, 0o600))
	r.open(nil)
	r.opened(false, false)
}

func TestHostThatForwardedBeforeGoesOn(t *testing.T) {
	for name, c := range map[string]struct {
		before    func(r *router)
		four, six bool
	}{
		"both": {func(r *router) {
			r.setSysctl("net/ipv4/ip_forward", "1")
			r.setSysctl("net/ipv6/conf/all/forwarding", "1")
		}, true, true},
		"IPv4": {func(r *router) { r.setSysctl("net/ipv4/ip_forward", "1") }, true, false},
		"IPv6": {func(r *router) { r.setSysctl("net/ipv6/conf/all/forwarding", "1") }, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRouter(t, c.before, sixes)
			r.opened(c.four, c.six)
			r.serves(r.web())
		})
	}
	t.Run("what came by one link", func(t *testing.T) {
		r := newRouter(t, func(r *router) {
			r.setSysctl("net/ipv4/conf/lan0/forwarding", "1")
			r.silent(r.lan, "tcp", wanAddr+":7000") // the answer comes back through the other interface
		}, nil)
		r.answers(r.lan, "tcp", wanAddr+":7000", "wan", lanAddr) // now the answer may come through that interface
		r.silent(r.wan, "tcp", lanAddr+":7001")
	})
}

func TestForwardingOfIPv6ThatANetworkSwitchesOnOpensNothingElse(t *testing.T) {
	r := newRouter(t, nil, nil)
	if r.sysctl("net/ipv6/conf/all/forwarding") != "0" {
		t.Fatal("forwarding is enabled")
	}
	on := true
	_, err := r.m.Create(context.Background(), apinet.CreateRequest{Name: "six", EnableIPv6: &on, Options: map[string]string{"com.docker.network.bridge.name": "hft6"}})
	r.ok(err)
	if r.sysctl("net/ipv6/conf/all/forwarding") != "1" {
		t.Fatal("forwarding is disabled")
	}
	r.opened(false, false)
	r.open(nil)
	r.opened(false, false)
	r.serves(r.web())
}

// Packets that others accept explicitly pass, as with a FORWARD chain whose
// policy is DROP. For packets that others drop by default, their decision
// stands.
func TestWhatOthersAllowPassesAndTheRestDoesNot(t *testing.T) {
	for _, kind := range []string{"nft", "legacy"} {
		t.Run("a rule of iptables-"+kind, func(t *testing.T) {
			r := newRouter(t, nil, sixes)
			c := r.web()
			r.opened(false, false)
			r.iptables(kind, "-A", "FORWARD", "-i", "lan0", "-o", "wan0", "-j", "ACCEPT")
			r.iptables(kind, "-A", "FORWARD", "-i", "nowhere", "-j", "ACCEPT")
			r.says("are now dropped after its rules")
			r.becomes("an accepted packet passes", func() bool {
				_, err := r.ask(r.lan, "tcp", wanAddr+":7000", silence)
				return err == nil
			})
			r.answers(r.lan, "tcp", "["+wanAddr6+"]:7000", "wan6", "")
			r.silent(r.wan, "tcp", lanAddr+":7001")
			r.silent(r.wan, "tcp", "["+lanAddr6+"]:7001")
			r.serves(c)

			// The next daemon changes nothing.
			r.ok(r.m.Close())
			before := generation(t)
			saved := r.saved(kind)
			r.log.take()
			r.open(r.stored(c))
			if now := generation(t); now != before || r.saved(kind) != saved {
				t.Errorf("the next daemon sent %d transactions: %s\nrules before:\n%s\nafter:\n%s", now-before, r.log.take(), saved, r.saved(kind))
			}
			r.silent(r.wan, "tcp", lanAddr+":7001")

			// The others remove their rule.
			r.iptables(kind, "-D", "FORWARD", "-i", "lan0", "-o", "wan0", "-j", "ACCEPT")
			r.silent(r.lan, "tcp", wanAddr+":7000")
			r.iptables(kind, "-F", "FORWARD")
			r.becomes("our own table drops it again", func() bool {
				return strings.Contains(r.do("", "nft", "list", "table", "inet", table), "chain rest")
			})
			r.becomes("closed", func() bool {
				_, err := r.ask(r.lan, "tcp", wanAddr+":7000", silence)
				return err != nil
			})
			r.serves(c)
			if got := r.saved(kind); strings.Contains(got, table) {
				t.Errorf("Holdfast's rules are left over:\n%s", got)
			}
		})
	}
	t.Run("a filter that drops by default", func(t *testing.T) {
		const theirs = `table inet mine {
			chain forward {
				type filter hook forward priority 0; policy drop;
				ct state established accept
				iifname "lan0" oifname "wan0" accept
			}
		}`
		r := newRouter(t, func(r *router) { r.do(theirs, "nft", "-f", "-") }, sixes)
		c := r.web()
		r.answers(r.lan, "tcp", wanAddr+":7000", "wan", "")
		r.silent(r.wan, "tcp", lanAddr+":7001")
		r.serves(c)
		r.do("", "nft", "delete", "table", "inet", "mine")
		r.becomes("our own table drops it", func() bool {
			_, err := r.ask(r.lan, "tcp", wanAddr+":7000", silence)
			return err != nil
		})
		r.serves(c)
	})
}

// A bridge of another program, for virtual machines for example, is cut off
// unless a program filters packets to and from it. Frames between two ports of
// the bridge are never dropped.
func TestNetworksOfOtherPrograms(t *testing.T) {
	var vm, vm2 string
	r := newRouter(t, func(r *router) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "virbr9"
		r.ok(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
		r.address("virbr9", hostInner+"/24")
		r.ok(netlink.LinkSetUp(r.link("virbr9")))
		vm = r.machine("vnet0", "", innerAddr, "virbr9")
		vm2 = r.machine("vnet1", "", "203.0.113.8", "virbr9")
		r.routeBy(vm, wanAddr, hostInner)
		r.routeBy(r.wan, innerAddr, hostWAN)
		r.serve(vm, "tcp4", ":7002", "vm")
	}, nil)
	r.filterFrames()
	c := r.web()
	r.answers(vm2, "tcp", innerAddr+":7002", "vm", "203.0.113.8")
	r.silent(vm, "tcp", wanAddr+":7000")
	r.silent(r.wan, "tcp", innerAddr+":7002")

	r.do(`table ip virtual_network {
		chain forward {
			type filter hook forward priority 0; policy accept;
			oifname "virbr9" ct state established,related accept
			iifname "virbr9" accept
			oifname "virbr9" reject
		}
	}`, "nft", "-f", "-")
	r.becomes("the machine reaches the outside", func() bool {
		_, err := r.ask(vm, "tcp", wanAddr+":7000", silence)
		return err == nil
	})
	r.silent(r.wan, "tcp", innerAddr+":7002")
	r.silent(r.lan, "tcp", wanAddr+":7000")
	r.serves(c)

	// A bridge that is created later.
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "virbr8"
	r.ok(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	r.becomes("the new bridge has its rule", func() bool {
		return strings.Contains(r.do("", "nft", "list", "table", "inet", table), `iifname "virbr8" oifname "virbr8" accept`)
	})
}

// Two daemons on one host: the first has enabled forwarding.
func TestDaemonsBesideEachOtherDropNothingOfEachOther(t *testing.T) {
	r := newRouter(t, nil, nil)
	first := r.web()
	dir := t.TempDir()
	second := &host{t: t, lan: r.lan, log: r.log, opts: r.opts, n: 100}
	second.opts.Root, second.opts.ExecRoot, second.opts.BridgeName = filepath.Join(dir, "networks"), filepath.Join(dir, "run"), "hft5"
	for _, filter := range []string{"our own table", "FORWARD"} {
		if filter == "FORWARD" {
			r.iptables("nft", "-A", "FORWARD", "-i", "nowhere", "-j", "ACCEPT")
			r.says("are now dropped after its rules")
		}
		second.open(nil)
		c := second.run(second.request("8090:80/tcp"))
		second.serve(c.Netns, "tcp4", ":80", "second")
		second.answers(r.lan, "tcp", hostAddr+":8090", "second", lanAddr)
		second.answers(c.Netns, "tcp", wanAddr+":7000", "wan", hostWAN)
		r.silent(r.lan, "tcp", wanAddr+":7000")
		r.serves(first)
		second.ok(second.m.Release(context.Background(), c.Sandbox))
		c.closePorts()
		b, err := os.ReadFile(filepath.Join(second.opts.ExecRoot, "forwarding.json"))
		second.ok(err)
		if !strings.Contains(string(b), `"switched":[false,false]`) {
			t.Errorf("the second daemon records that it enabled forwarding: %s", b)
		}
	}
	second.ok(second.m.Close())
	removeTable(t, "holdfast-hft5")
}
