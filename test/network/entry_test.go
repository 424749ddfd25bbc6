// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/dump"
	"holdfast/internal/network/overlay"
	"holdfast/internal/network/overlay/kernel"
	"holdfast/internal/network/swarmlb"
	lb "holdfast/internal/network/swarmlb/kernel"
	"holdfast/test/kit"
)

// TestPublishedPortsOfASwarmPassAProgramThatDropsForwardedPackets: the swarm process
// makes the host an entry while the daemon runs, and the daemon ends.
func TestPublishedPortsOfASwarmPassAProgramThatDropsForwardedPackets(t *testing.T) {
	// Once a namespace has had a routing rule, the kernel checks sources more strictly.
	if !kit.Alone(t) {
		return
	}
	for _, kind := range []string{"nft", "legacy"} {
		t.Run(kind, func(t *testing.T) {
			clean(t)
			h := newHost(t, nil)
			h.iptables(kind, "-P", "FORWARD", "DROP")
			h.says("it now accepts")
			h.log.take()

			swarm := kernel.Host{Dir: filepath.Join(t.TempDir(), "overlay")}
			prefix := netip.MustParsePrefix("10.0.0.0/24")
			ingress := overlay.Network{ID: "ingress", Subnets: []overlay.Subnet{{Prefix: prefix, Gateway: prefix.Addr().Next(), VNI: 4096}}}
			_, err := swarm.Ensure(ingress)
			h.ok(err)
			task := filepath.Join(t.TempDir(), "task")
			h.ok(bridge.Join(bridge.Sandbox{Path: task}))
			own, its := netip.MustParsePrefix("10.0.0.2/24"), netip.MustParsePrefix("10.0.0.7/24")
			endpoints := []kernel.Endpoint{
				{ID: "host-ingress", Name: swarmlb.IngressInterface, Addr: own, MAC: overlay.MACOf(own.Addr())},
				{ID: "task-ingress", Netns: task, Name: "eth0", Addr: its, MAC: overlay.MACOf(its.Addr())},
			}
			for _, e := range endpoints {
				h.ok(swarm.AddEndpoint(ingress, e))
			}
			leave := func() {
				_, err := lb.ApplyIngress(swarmlb.Ingress{})
				h.ok(err)
				for _, e := range endpoints {
					h.ok(swarm.RemoveEndpoint(ingress.ID, e.ID))
				}
				h.ok(swarm.Remove(ingress.ID))
				h.ok(bridge.Leave(task))
			}
			t.Cleanup(leave)
			_, err = lb.Apply(task, swarmlb.Task{Ingress: "eth0", Address: its.Addr(), Entries: []swarmlb.Entry{{Addr: own.Addr(), MAC: overlay.MACOf(own.Addr())}}})
			h.ok(err)
			h.serve(task, "tcp4", ":80", "task")
			_, err = lb.ApplyIngress(swarmlb.Ingress{
				Interface: swarmlb.IngressInterface, Addr: own.Addr(), Subnet: prefix,
				Ports: []swarmlb.IngressPort{{Proto: "tcp", Port: 8080, Targets: []netip.AddrPort{netip.AddrPortFrom(its.Addr(), 80)}}},
			})
			h.ok(err)
			h.says("it now accepts")
			h.answers(h.lan, "tcp", hostAddr+":8080", "task", lanAddr)

			h.m.Leave()
			h.ok(h.m.Close())
			h.answers(h.lan, "tcp", hostAddr+":8080", "task", lanAddr)

			h.open(nil)
			h.answers(h.lan, "tcp", hostAddr+":8080", "task", lanAddr)
			leave()
			h.open(nil)
			if got := h.saved(kind); strings.Contains(got, swarmlb.IngressInterface) {
				t.Errorf("rules are left for a host that is no entry:\n%s", got)
			}
			rules, err := dump.Whole(func() ([]netlink.Rule, error) { return netlink.RuleList(unix.AF_INET) })
			h.ok(err)
			for _, r := range rules {
				if r.Mark != 0 {
					t.Errorf("the rule %s is left", r)
				}
			}
		})
	}
}
