// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apinet "github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"holdfast/internal/network"
	"holdfast/internal/network/dump"
)

func (h *host) sysctl(name string) string {
	h.t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc/sys", name))
	h.ok(err)
	return strings.TrimSpace(string(b))
}

func (h *host) setSysctl(name, value string) {
	h.t.Helper()
	h.ok(os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0))
}

// hears returns the sysctls of an interface that make the host accept routes
// and addresses from a neighbour.
func (h *host) hears(name string) (out []string) {
	h.t.Helper()
	for _, file := range []string{"accept_ra", "accept_redirects"} {
		if got := h.sysctl("net/ipv6/conf/" + name + "/" + file); got != "0" {
			out = append(out, name+": "+file+"="+got)
		}
	}
	return out
}

// networksOfAllKinds starts one container on a network of each kind.
func networksOfAllKinds(h *host) []*container {
	h.t.Helper()
	off, on := false, true
	six := &apinet.IPAM{Config: []apinet.IPAMConfig{{Subnet: netip.MustParsePrefix("fd00:9::/64")}}}
	var all []*container
	for _, r := range []apinet.CreateRequest{
		{Name: "four"},
		{Name: "inside", Internal: true},
		{Name: "both", EnableIPv6: &on},
		{Name: "six", EnableIPv4: &off, EnableIPv6: &on, IPAM: six},
	} {
		r.Options = map[string]string{"com.docker.network.bridge.name": "hft-" + r.Name}
		_, err := h.m.Create(context.Background(), r)
		h.ok(err)
		req := h.request()
		req.Mode = r.Name
		all = append(all, h.run(req))
	}
	return append(all, h.run(h.request()))
}

// advertise sends a router advertisement with a prefix from the namespace.
func (h *host) advertise(path, ifname string) {
	h.t.Helper()
	h.in(path, func() {
		// The container may enable IPv6 in its own namespace, whatever its
		// network is.
		h.setSysctl("net/ipv6/conf/"+ifname+"/disable_ipv6", "0")
		link, err := netlink.LinkByName(ifname)
		h.ok(err)
		from, err := netlink.ParseAddr("fe80::bad/64")
		h.ok(err)
		from.Flags = unix.IFA_F_NODAD
		h.ok(netlink.AddrReplace(link, from))
		c, err := icmp.ListenPacket("ip6:ipv6-icmp", "fe80::bad%"+ifname)
		h.ok(err)
		defer c.Close()
		body := []byte{64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0} // hop limit, router lifetime
		body = append(body, 3, 4, 64, 0xc0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0)
		prefix := netip.MustParseAddr("2001:db8:bad::").As16()
		body = append(body, prefix[:]...)
		b, err := (&icmp.Message{Type: ipv6.ICMPTypeRouterAdvertisement, Body: &icmp.RawBody{Data: body}}).Marshal(nil)
		h.ok(err)
		h.ok(c.IPv6PacketConn().SetMulticastHopLimit(255))
		_, err = c.WriteTo(b, &net.IPAddr{IP: net.IPv6linklocalallnodes, Zone: ifname})
		h.ok(err)
	})
}

// learnt returns the routes and addresses that the namespace has from router
// advertisements.
func (h *host) learnt(path string) (out []string) {
	out, _ = h.learntOf(path)
	return out
}

// learntBy returns the indexes of the interfaces that they came through.
func (h *host) learntBy(path string) []int {
	_, by := h.learntOf(path)
	return by
}

func (h *host) learntOf(path string) (out []string, by []int) {
	h.t.Helper()
	h.in(path, func() {
		routes, err := dump.Routes(netlink.FAMILY_V6, &netlink.Route{Protocol: unix.RTPROT_RA}, netlink.RT_FILTER_PROTOCOL)
		h.ok(err)
		for _, r := range routes {
			out, by = append(out, r.String()), append(by, r.LinkIndex)
		}
		addrs, err := dump.Addrs(nil, netlink.FAMILY_V6)
		h.ok(err)
		for _, a := range addrs {
			if strings.HasPrefix(a.IP.String(), "2001:db8:bad:") {
				out, by = append(out, a.String()), append(by, a.LinkIndex)
			}
		}
	})
	return out, by
}

// becomes polls until a condition holds.
func (h *host) becomes(what string, is func() bool) {
	h.t.Helper()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	late := time.After(10 * time.Second)
	for !is() {
		select {
		case <-again.C:
		case <-late:
			h.t.Fatalf("timeout waiting until %s", what)
		}
	}
}

func TestNoContainerMakesItselfTheHostsRouter(t *testing.T) {
	h := newHost(t, nil)
	h.setSysctl("net/ipv6/conf/all/forwarding", "0")
	all := networksOfAllKinds(h)
	for _, c := range all {
		e := c.Endpoints[0]
		for _, bad := range append(h.hears(e.Bridge), h.hears(e.HostName)...) {
			t.Error(bad)
		}
		without := map[bool]string{true: "0", false: "1"}[e.IPv6.Address.IsValid()]
		if got := h.sysctl("net/ipv6/conf/" + e.Bridge + "/disable_ipv6"); got != without {
			t.Errorf("%s: disable_ipv6=%s", e.Bridge, got)
		}
		if got := h.sysctl("net/ipv6/conf/" + e.HostName + "/disable_ipv6"); got != "1" {
			t.Errorf("the port %s of %s: disable_ipv6=%s", e.HostName, e.Bridge, got)
		}
		for _, file := range []string{"accept_redirects", "accept_source_route"} {
			if got := h.sysctl("net/ipv4/conf/" + e.Bridge + "/" + file); got != "0" {
				t.Errorf("%s: %s=%s", e.Bridge, file, got)
			}
		}
	}
	// The host does not forward IPv6 now, so it would accept router
	// advertisements.
	h.setSysctl("net/ipv6/conf/all/forwarding", "0")
	for _, c := range all {
		for range 3 {
			h.advertise(c.Netns, "eth0")
		}
	}
	// An advertisement of a neighbour on the host's own interface is accepted.
	// That proves that the packet is valid.
	h.setSysctl("net/ipv6/conf/lan0/accept_ra", "1")
	h.becomes("a router on the host's own link is heard", func() bool {
		h.advertise(h.lan, "eth0")
		return len(h.learnt("")) > 0
	})
	lan0 := h.link("lan0").Attrs().Index
	for _, by := range h.learntBy("") {
		if by != lan0 {
			t.Errorf("the host accepted a container's router advertisement on interface %d", by)
		}
	}
}

func TestNoContainerMakesItselfItsNeighboursRouter(t *testing.T) {
	h := newHost(t, sixes)
	bad, good := h.run(h.request()), h.run(h.request())
	r := h.request()
	r.Endpoints = map[string]*apinet.EndpointSettings{"bridge": {DriverOpts: map[string]string{
		"com.docker.network.endpoint.sysctls": "net.ipv6.conf.IFNAME.accept_ra=2",
	}}}
	willing := h.run(r)
	h.becomes("a container that accepts advertisements gets the route", func() bool {
		h.advertise(bad.Netns, "eth0")
		return len(h.learnt(willing.Netns)) > 0
	})
	if got := h.learnt(good.Netns); len(got) > 0 {
		t.Errorf("a container accepted its neighbour's router advertisement: %q", got)
	}
	h.answersPing(good)
}

func (h *host) answersPing(c *container) {
	h.t.Helper()
	h.serve(c.Netns, "tcp6", ":80", "six")
	h.answers("", "tcp", "["+c.Endpoints[0].IPv6.Address.Addr().String()+"]:80", "six", "")
}

// The next start corrects the sysctls that an earlier release left open. A
// start after that changes nothing, and a running daemon corrects what others
// open.
func TestBridgesThatHearOfRoutersAreMadeDeaf(t *testing.T) {
	open := func(h *host, names ...string) {
		for _, name := range names {
			h.setSysctl("net/ipv6/conf/"+name+"/disable_ipv6", "0")
			h.setSysctl("net/ipv6/conf/"+name+"/accept_ra", "2")
		}
	}
	deaf := func(h *host, names ...string) bool {
		for _, name := range names {
			if len(h.hears(name)) > 0 {
				return false
			}
		}
		return true
	}
	t.Run("by the next start", func(t *testing.T) {
		h := newHost(t, sixes)
		c := h.run(h.request())
		names := []string{"hft0", c.Endpoints[0].HostName}
		h.ok(h.m.Close())
		open(h, names...)
		h.becomes("a container is the host's router", func() bool {
			h.advertise(c.Netns, "eth0")
			return len(h.learnt("")) > 1
		})
		h.open(h.stored(c))
		if !deaf(h, names...) {
			t.Errorf("%q %q", h.hears(names[0]), h.hears(names[1]))
		}
		if got := h.learnt(""); len(got) > 0 {
			t.Errorf("routes from the advertisement still exist: %q", got)
		}
		h.log.take()
		h.open(h.stored(c))
		if got := h.log.take(); got != "" {
			t.Errorf("a start with nothing to correct logged: %s", got)
		}
	})
	t.Run("while the daemon lives", func(t *testing.T) {
		h := newHost(t, sixes)
		c := h.run(h.request())
		names := []string{"hft0", c.Endpoints[0].HostName}
		open(h, names...)
		h.becomes("the sysctls are closed", func() bool {
			h.advertise(c.Netns, "eth0") // no event reports a change of a sysctl, so the daemon must notice the route
			return deaf(h, names...)
		})
		h.becomes("no route from the advertisement exists", func() bool { return len(h.learnt("")) == 0 })
	})
	t.Run("a network without IPv6", func(t *testing.T) {
		h := newHost(t, nil)
		c := h.run(h.request())
		h.setSysctl("net/ipv6/conf/hft0/disable_ipv6", "0")
		h.becomes("off again", func() bool { return h.sysctl("net/ipv6/conf/hft0/disable_ipv6") == "1" })
		h.setSysctl("net/ipv6/conf/"+c.Endpoints[0].HostName+"/disable_ipv6", "0")
		h.becomes("off again", func() bool {
			return h.sysctl("net/ipv6/conf/"+c.Endpoints[0].HostName+"/disable_ipv6") == "1"
		})
	})
}

// The host may get its own router advertisements through a bridge that another
// program made.
func TestBridgeByWhichTheHostHearsOfItsRoutersGoesOnHearing(t *testing.T) {
	for name, want := range map[string]string{"it has heard of one": "1", "it has heard of none": "0"} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, func(o *network.Options) { o.BridgeName = "theirs" })
			h.setSysctl("net/ipv6/conf/all/forwarding", "0")
			h.ok(h.m.Close())
			h.ok(netlink.LinkDel(h.link("theirs")))
			h.ok(os.RemoveAll(h.opts.Root))
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "theirs"
			h.ok(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
			link := h.link("theirs")
			addr, err := netlink.ParseAddr("10.99.0.1/24")
			h.ok(err)
			h.ok(netlink.AddrAdd(link, addr))
			h.ok(netlink.LinkSetUp(link))
			if want == "1" {
				h.ok(netlink.LinkSetMaster(h.link("lan0"), link))
				h.becomes("a router is heard", func() bool {
					h.advertise(h.lan, "eth0")
					return len(h.learnt("")) > 0
				})
			}
			h.open(nil)
			if got := h.sysctl("net/ipv6/conf/theirs/accept_ra"); got != want {
				t.Errorf("accept_ra=%s, want %s", got, want)
			}
			if got := h.sysctl("net/ipv6/conf/theirs/disable_ipv6"); got != "0" {
				t.Errorf("disable_ipv6=%s on another program's bridge", got)
			}
		})
	}
}
