// SPDX-License-Identifier: Apache-2.0

package swarmlb

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/test/golden"
)

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func ports(list ...string) (out []netip.AddrPort) {
	for _, s := range list {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

var (
	services = []Service{
		{VIP: addrs("10.0.1.3")[0], Backends: addrs("10.0.1.9")},
		{VIP: addrs("10.0.1.2")[0], Backends: addrs("10.0.1.6", "10.0.1.5")},
		{VIP: addrs("10.0.1.4")[0]},
	}
	entries = []Entry{
		{addrs("10.0.0.3")[0], [6]byte{2, 0x42, 10, 0, 0, 3}},
		{addrs("10.0.0.2")[0], [6]byte{2, 0x42, 10, 0, 0, 2}},
	}
	ingress = Ingress{
		Interface: "hf-ingress", Addr: addrs("10.0.0.2")[0], Subnet: netip.MustParsePrefix("10.0.0.0/24"),
		Ports: []IngressPort{
			{"udp", 53, ports("10.0.0.9:5353")},
			{"tcp", 8080, ports("10.0.0.8:80", "10.0.0.7:80")},
			{"tcp", 9090, nil},
		},
	}
)

func TestTables(t *testing.T) {
	for name, table := range map[string]Table{
		"services":          BuildTask(Task{Services: services}),
		"task-with-ingress": BuildTask(Task{Services: services[:1], Ingress: "eth0", Address: addrs("10.0.0.7")[0], Entries: entries}),
		"ingress":           BuildIngress(ingress),
	} {
		t.Run(name, func(t *testing.T) {
			golden.Compare(t, filepath.Join("testdata", name+".nft"), []byte(table.String()))
		})
	}
}

func TestTablesThatAreNotNeeded(t *testing.T) {
	noPort, noInterface := ingress, ingress
	noPort.Ports, noInterface.Interface = ingress.Ports[2:], ""
	for name, table := range map[string]Table{
		"no services":  BuildTask(Task{}),
		"no entries":   BuildTask(Task{Ingress: "eth0"}),
		"no address":   BuildTask(Task{Ingress: "eth0", Entries: entries}),
		"no interface": BuildTask(Task{Entries: entries}),
		"IPv6 only":    BuildTask(Task{Services: []Service{{VIP: addrs("fd00::1")[0]}}}),
		"no targets":   BuildIngress(noPort),
		"no entry":     BuildIngress(noInterface),
	} {
		if table.Needed() {
			t.Errorf("%s: %s", name, table)
		}
	}
}

// chains returns the names of a table's chains.
func chains(table Table) (names []string) {
	for _, c := range table.Chains {
		names = append(names, c.Name)
	}
	for _, g := range table.Targets {
		names = append(names, g.Chain.Name)
	}
	return names
}

// TestNamesOfChainsShowWhatDiffers: what is in the kernel is compared by names alone.
func TestNamesOfChainsShowWhatDiffers(t *testing.T) {
	before := chains(BuildTask(Task{Services: services, Ingress: "eth0", Address: addrs("10.0.0.7")[0], Entries: entries}))
	if got := chains(BuildTask(Task{Services: slices.Clone(services), Ingress: "eth0", Address: addrs("10.0.0.7")[0], Entries: slices.Clone(entries)})); !slices.Equal(got, before) {
		t.Errorf("the same is named %v and %v", before, got)
	}
	changed := slices.Clone(services)
	changed[0].Backends = addrs("10.0.1.8")
	for name, c := range map[string]struct {
		task Task
		want string // beginning of the name that differs
	}{
		"backend":   {Task{changed, "eth0", addrs("10.0.0.7")[0], entries}, "vip-10.0.1.3-"},
		"entry":     {Task{services, "eth0", addrs("10.0.0.7")[0], entries[:1]}, "layout-"},
		"address":   {Task{services, "eth0", addrs("10.0.0.8")[0], entries}, "layout-"},
		"interface": {Task{services, "eth1", addrs("10.0.0.7")[0], entries}, "layout-"},
	} {
		var differ []string
		for _, n := range chains(BuildTask(c.task)) {
			if !slices.Contains(before, n) {
				differ = append(differ, n)
			}
		}
		if len(differ) != 1 || !strings.HasPrefix(differ[0], c.want) {
			t.Errorf("another %s: %v differ, want %s", name, differ, c.want)
		}
	}
}

func TestKeysAreFoundByTheNamesOfChains(t *testing.T) {
	for _, table := range []Table{BuildTask(Task{Services: services}), BuildIngress(ingress)} {
		for _, g := range table.Targets {
			if got := table.Key(g.Chain.Name); !slices.Equal(got, g.Key.Key) {
				t.Errorf("%s: key %v, want %v", g.Chain.Name, got, g.Key.Key)
			}
			removed := table.Removed(g.Key.Key).Flows
			if removed.Addr != g.Flows.Addr || removed.Port != g.Flows.Port || removed.Proto != g.Flows.Proto {
				t.Errorf("%s: flows %+v, want those of %+v", g.Chain.Name, removed, g.Flows)
			}
		}
		for _, c := range table.Chains {
			if got := table.Key(c.Name); got != nil {
				t.Errorf("%s: key %v", c.Name, got)
			}
		}
		for _, name := range []string{"vip-10.0.1-x", "vip-fd00::1-x", "tcp-x-y", "icmp-5-x", "tcp-70000-x", "a", "a-b-c-d"} {
			if got := table.Key(name); got != nil {
				t.Errorf("%s: key %v", name, got)
			}
		}
	}
}

func TestMarksDifferByEntryAndFromTheHosts(t *testing.T) {
	seen := map[uint32]string{Mark: "the host's"}
	for _, a := range addrs("10.0.0.2", "10.0.0.3", "10.0.1.2", "10.1.0.2") {
		m := MarkOf(a)
		if seen[m] != "" || m&MarkMask != Mark {
			t.Errorf("%s: mark 0x%08x, of %q", a, m, seen[m])
		}
		seen[m] = a.String()
	}
}
