// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"context"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apinet "github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"

	"holdfast/internal/network"
	"holdfast/internal/network/bridge"
)

// says waits until the manager has logged certain words.
func (h *host) says(words string) {
	h.t.Helper()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	late := time.After(10 * time.Second)
	var all string
	for {
		all += h.log.take()
		if strings.Contains(all, words) {
			return
		}
		select {
		case <-again.C:
		case <-late:
			h.t.Fatalf("the log does not contain %q: %s", words, all)
		}
	}
}

// vanishes waits until an interface is gone. The kernel removes the interfaces of a
// network namespace some time after the namespace.
func (h *host) vanishes(name string) {
	h.t.Helper()
	changes, done := make(chan netlink.LinkUpdate, 16), make(chan struct{})
	defer close(done)
	h.ok(netlink.LinkSubscribe(changes, done))
	late := time.After(10 * time.Second)
	for {
		if _, err := netlink.LinkByName(name); err != nil {
			return
		}
		select {
		case <-changes:
		case <-late:
			h.t.Fatalf("%s is still there", name)
		}
	}
}

func (h *host) link(name string) netlink.Link {
	h.t.Helper()
	link, err := netlink.LinkByName(name)
	h.ok(err)
	return link
}

// damage is what firewalls, network managers and administrators do to a host.
var damage = map[string]struct {
	do   func(h *host, c *container)
	says string
}{
	"flush ruleset": {func(h *host, c *container) {
		if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
			h.t.Fatalf("nft: %v: %s", err, out)
		}
	}, "packet filter"},
	"the table is deleted":            {func(h *host, c *container) { removeTable(h.t, table) }, "packet filter"},
	"a rule is deleted":               {func(h *host, c *container) { flushChain(h.t, table, "prerouting") }, "packet filter"},
	"the bridge is deleted":           {func(h *host, c *container) { h.ok(bridge.Remove("hft0")) }, "bridge"},
	"the bridge is down":              {func(h *host, c *container) { h.ok(netlink.LinkSetDown(h.link("hft0"))) }, "bridge"},
	"the bridge's address is deleted": {func(h *host, c *container) { h.removeBridgeAddress() }, "bridge"},
	"the interface is down":           {func(h *host, c *container) { h.ok(netlink.LinkSetDown(h.link(c.Endpoints[0].HostName))) }, "interface"},
	"the interface is on no bridge":   {func(h *host, c *container) { h.ok(netlink.LinkSetNoMaster(h.link(c.Endpoints[0].HostName))) }, "interface"},
}

func TestDamageDoneWhileTheDaemonLivesIsHealedWithoutARestart(t *testing.T) {
	for name, d := range damage {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, nil)
			c := h.run(h.request("8080:80/tcp"))
			h.serve(c.Netns, "tcp4", ":80", "web")
			h.answers(h.lan, "tcp", hostAddr+":8080", "web", lanAddr)
			for range 2 { // repairing once is not enough
				h.log.take()
				d.do(h, c)
				h.says(d.says)
				h.answers(h.lan, "tcp", hostAddr+":8080", "web", lanAddr)
			}
		})
	}
}

func TestDamageDoneWhileNoDaemonLivesIsHealedByTheNext(t *testing.T) {
	for name, d := range damage {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, nil)
			c := h.run(h.request("8080:80/tcp"))
			h.serve(c.Netns, "tcp4", ":80", "web")
			h.answers(h.lan, "tcp", hostAddr+":8080", "web", lanAddr)
			h.ok(h.m.Close())
			d.do(h, c)
			h.log.take()
			h.open(h.stored(c))
			h.answers(h.lan, "tcp", hostAddr+":8080", "web", lanAddr)
			if h.log.take() == "" {
				t.Error("nothing was logged")
			}
			if got := h.m.Troubles(c.Container); len(got) > 0 {
				t.Errorf("troubles: %q", got)
			}
		})
	}
}

// The repair of one bridge must not recreate the bridge of another network that
// is removed at the same time.
func TestHealingBringsNothingBackThatWasRemoved(t *testing.T) {
	h := newHost(t, nil)
	for range 20 {
		id, err := h.m.Create(context.Background(), apinet.CreateRequest{Name: "own", Options: map[string]string{"com.docker.network.bridge.name": "hft9"}})
		h.ok(err)
		h.removeBridgeAddress() // so that this network is repaired while the other is removed
		_, err = h.m.Remove(context.Background(), id)
		h.ok(err)
	}
	h.says("a bridge was changed by others")
	c := h.run(h.request("8080:80/tcp"))
	h.ok(h.m.Release(context.Background(), c.Sandbox))
	h.vanishes(c.Endpoints[0].HostName)
	h.removeBridgeAddress()
	h.says("a bridge was changed by others")
	for _, name := range []string{"hft9", c.Endpoints[0].HostName} {
		if _, err := netlink.LinkByName(name); err == nil {
			t.Errorf("%s is there", name)
		}
	}
}

// If a repair is impossible, the message must tell the user how to proceed.
func TestPortTakenWhileTheShimWasAwayIsTold(t *testing.T) {
	h := newHost(t, nil)
	c := h.run(h.request("8080:80/tcp"))
	c.closePorts()
	l, err := net.Listen("tcp4", ":8080")
	h.ok(err)
	defer l.Close()
	h.open(h.stored(c))
	reserved, err := h.m.Reserve(context.Background(), c.Sandbox)
	h.ok(err)
	for _, r := range reserved {
		r.File.Close()
	}
	got := strings.Join(h.m.Troubles(c.Container), "\n")
	if !strings.Contains(got, "0.0.0.0:8080/tcp") || !strings.Contains(got, "taken by another process") {
		t.Errorf("troubles: %q", got)
	}
	h.ok(h.m.Release(context.Background(), c.Sandbox))
	if got := h.m.Troubles(c.Container); len(got) > 0 {
		t.Errorf("after its end: %q", got)
	}
}

func TestLostNamespaceIsTold(t *testing.T) {
	h := newHost(t, func(o *network.Options) { o.IPv6 = false })
	c := h.run(h.request())
	h.ok(h.m.Close())
	lost := h.stored(c)
	s := lost[c.Container]
	s.Netns = filepath.Join(t.TempDir(), "nothing")
	lost[c.Container] = s
	h.open(lost)
	if got := h.m.Troubles(c.Container); len(got) != 1 || !strings.Contains(got[0], "restart the container") {
		t.Errorf("troubles: %q", got)
	}
}
