// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func mac(s string) MAC {
	m, err := ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

var network = Network{ID: "n1", Subnets: []Subnet{
	{netip.MustParsePrefix("10.0.1.0/24"), addr("10.0.1.1"), 4097},
	{netip.MustParsePrefix("10.0.2.0/24"), addr("10.0.2.1"), 4098},
}}

func TestPlanHasOneEntryOfEachKindPerPeer(t *testing.T) {
	host2, host3 := addr("192.0.2.2"), addr("192.0.2.3")
	a, b := mac("02:42:0a:00:01:05"), mac("02:42:0a:00:02:07")
	for _, c := range []struct {
		name  string
		peers []Peer
		want  Tables
	}{
		{"none", nil, Tables{}},
		{"each in its subnet", []Peer{{addr("10.0.2.7"), b, host3}, {addr("10.0.1.5"), a, host2}}, Tables{
			[]FDB{{4097, a, host2}, {4098, b, host3}},
			[]Neighbour{{4097, addr("10.0.1.5"), a}, {4098, addr("10.0.2.7"), b}},
		}},
		{"an address that moved counts where it was reported last", []Peer{{addr("10.0.1.5"), a, host2}, {addr("10.0.1.5"), a, host3}}, Tables{
			[]FDB{{4097, a, host3}}, []Neighbour{{4097, addr("10.0.1.5"), a}},
		}},
		{"an address with a new MAC leaves no entry of the old one", []Peer{{addr("10.0.1.5"), b, host2}, {addr("10.0.1.5"), a, host3}}, Tables{
			[]FDB{{4097, a, host3}}, []Neighbour{{4097, addr("10.0.1.5"), a}},
		}},
		{"in no subnet, without a host, without a MAC, with a group's MAC", []Peer{
			{addr("10.9.1.5"), a, host2}, {addr("10.0.1.6"), a, netip.Addr{}}, {addr("10.0.1.7"), MAC{}, host2}, {addr("10.0.1.8"), mac("01:00:5e:00:00:01"), host2},
		}, Tables{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := PlanTables(network, c.peers); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got  %v\nwant %v", got, c.want)
			}
		})
	}
}

func TestCompareRemovesOnlyWhenThePeersAreComplete(t *testing.T) {
	host2, host3 := addr("192.0.2.2"), addr("192.0.2.3")
	a, b, d := mac("02:00:00:00:00:0a"), mac("02:00:00:00:00:0b"), mac("02:00:00:00:00:0d")
	have := Tables{
		[]FDB{{4097, a, host2}, {4097, b, host2}},
		[]Neighbour{{4097, addr("10.0.1.5"), a}, {4097, addr("10.0.1.6"), b}},
	}
	want := Tables{
		[]FDB{{4097, b, host3}, {4097, d, host2}},
		[]Neighbour{{4097, addr("10.0.1.5"), d}, {4097, addr("10.0.1.6"), b}},
	}
	set := Tables{[]FDB{{4097, b, host3}, {4097, d, host2}}, []Neighbour{{4097, addr("10.0.1.5"), d}}}
	if got := Compare(want, have, false); !reflect.DeepEqual(got, Changes{Set: set}) {
		t.Errorf("incomplete: %+v", got)
	}
	remove := Tables{FDB: []FDB{{4097, a, host2}}}
	got := Compare(want, have, true)
	if !reflect.DeepEqual(got, Changes{Set: set, Remove: remove}) {
		t.Errorf("complete: %+v", got)
	}
	if moved := got.MovedNeighbours(have); !slices.Equal(moved, set.Neighbours) {
		t.Errorf("moved: %v", moved)
	}
	if got := Compare(want, want, true); !got.Empty() {
		t.Errorf("what is right is changed: %+v", got)
	}
	if got := Compare(Tables{}, have, true); len(got.Remove.FDB) != 2 || len(got.Remove.Neighbours) != 2 {
		t.Errorf("without peers: %+v", got)
	}
}

func TestMACOfAnAddressStaysWithTheAddress(t *testing.T) {
	n := Neighbour{4097, addr("10.0.1.5"), MACOf(addr("10.0.1.5"))}
	if n.MAC.String() != "02:42:0a:00:01:05" {
		t.Error(n.MAC)
	}
	if moved := (Changes{Set: Tables{Neighbours: []Neighbour{n}}}).MovedNeighbours(Tables{}); len(moved) > 0 {
		t.Errorf("an ARP cache can't be wrong about %v", moved)
	}
}

func TestNetworksThatCannotWorkAreRefused(t *testing.T) {
	if err := network.Check(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Network){
		"no network ID":          func(n *Network) { n.ID = "../x" },
		"MTU 20":                 func(n *Network) { n.MTU = 20 },
		"no subnet":              func(n *Network) { n.Subnets = nil },
		"only IPv4":              func(n *Network) { n.Subnets[0].Prefix = netip.MustParsePrefix("fd00::/64") },
		"VXLAN number 0":         func(n *Network) { n.Subnets[0].VNI = 0 },
		"VXLAN number 16777216":  func(n *Network) { n.Subnets[0].VNI = 1 << 24 },
		"not in the subnet":      func(n *Network) { n.Subnets[0].Gateway = addr("10.0.9.1") },
		"needs a gateway":        func(n *Network) { n.Subnets[1].Gateway = netip.Addr{} },
		"overlap":                func(n *Network) { n.Subnets[1] = Subnet{n.Subnets[0].Prefix, n.Subnets[0].Gateway, 5000} },
		"same VXLAN number 4097": func(n *Network) { n.Subnets[1].VNI = 4097 },
	} {
		n := network
		n.Subnets = slices.Clone(network.Subnets)
		change(&n)
		if err := n.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func FuzzParseMAC(f *testing.F) {
	for _, s := range []string{"02:42:0a:00:01:05", "02420a000105", "02:42:0A:00:01:05", "", "02:42:0a:00:01", "02:42:0a:00:01:05:06", "::::::", "0242:0a00:0105"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if m, err := ParseMAC(s); err == nil && m.String() != strings.ToLower(s) {
			t.Errorf("%q is read as %s", s, m)
		}
	})
}
