// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/hex"
	"holdfast/test/golden"
	"net/netip"
	"path/filepath"
	"testing"
)

func prefixes(ps ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ps {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func element(proto, host, target string) Element {
	h := netip.MustParseAddrPort(host)
	return Element{Proto: proto, Host: h.Addr(), HostPort: h.Port(), Target: netip.MustParseAddrPort(target), Owner: "4f1c"}
}

func direct(proto, at string) Element {
	a := netip.MustParseAddrPort(at)
	return Element{Proto: proto, Host: a.Addr(), HostPort: a.Port(), Owner: "4f1c"}
}

var elements = []Element{
	element("tcp", "0.0.0.0:8080", "172.17.0.2:80"),
	element("udp", "0.0.0.0:53", "172.17.0.2:53"),
	element("tcp", "127.0.0.1:9000", "172.17.0.2:9000"),
	element("sctp", "192.0.2.7:9000", "172.17.0.2:9000"),
	element("tcp", "[::]:8080", "[fd00::2]:80"),
	element("tcp", "[2001:db8::1]:8080", "[fd00::2]:80"),
}

func TestRulesReadAsDocumented(t *testing.T) {
	for name, c := range map[string]Config{
		"default.nft": {Table: "holdfast", IPv4: true, IPv6: true,
			Bridges: []Bridge{{Name: "holdfast0", Subnets: prefixes("172.17.0.0/16"), ICC: true, Masquerade: true}}},
		"published.nft": {Table: "holdfast", IPv4: true, IPv6: true, Elements: elements,
			Bridges: []Bridge{{Name: "holdfast0", Subnets: prefixes("172.17.0.0/16", "fd00::/64"), ICC: true, Masquerade: true}}},
		"two-bridges-closed.nft": {Table: "private", IPv4: true,
			Bridges: []Bridge{
				{Name: "br1", Subnets: prefixes("10.2.0.0/24", "10.1.0.0/24"), Masquerade: true},
				{Name: "br0", Subnets: prefixes("172.17.0.0/16"), ICC: true},
			}},
		"exceptions.nft": {Table: "holdfast", IPv4: true, IPv6: true, Bridges: []Bridge{
			{Name: "closed", Subnets: prefixes("172.26.0.0/16", "fd00:1::/64"), Exceptions: []Exception{
				{Addr: netip.MustParseAddr("172.26.0.9"), ICC: true, Masquerade: true}, {Addr: netip.MustParseAddr("fd00:1::2"), ICC: true},
			}},
			{Name: "open", Subnets: prefixes("172.27.0.0/16"), ICC: true, Masquerade: true, Exceptions: []Exception{
				{Addr: netip.MustParseAddr("172.27.0.3")}, {Addr: netip.MustParseAddr("172.27.0.2")},
			}},
		}},
		"links.nft": {Table: "holdfast", IPv4: true, Bridges: []Bridge{
			{Name: "closed", Subnets: prefixes("172.26.0.0/16"), Masquerade: true, LegacyLinks: []LegacyLink{
				{From: netip.MustParseAddr("172.26.0.3"), To: netip.MustParseAddr("172.26.0.2"), Proto: "tcp", Port: 80},
				{From: netip.MustParseAddr("172.26.0.3"), To: netip.MustParseAddr("172.26.0.2"), Proto: "tcp", Port: 80},
				{From: netip.MustParseAddr("172.26.0.3"), To: netip.MustParseAddr("172.26.0.2"), Proto: "sctp", Port: 7},
				{From: netip.MustParseAddr("fd00::3"), To: netip.MustParseAddr("fd00::2"), Proto: "tcp", Port: 80}, // IPv6 is not filtered
			}},
		}},
		"reached.nft": {Table: "holdfast", IPv4: true, IPv6: true,
			Elements: append(elements[:len(elements):len(elements)], direct("tcp", "172.30.0.2:80"), direct("udp", "[fd00:3::2]:53")),
			Bridges: []Bridge{
				{Name: "routed", Subnets: prefixes("172.30.0.0/16", "fd00:3::/64"), Masquerade: true, Access: [2]Access{Routed, Routed}},
				{Name: "open", Subnets: prefixes("172.31.0.0/16"), ICC: true, Masquerade: true, Access: [2]Access{Open, NAT}},
				{Name: "trusting", Subnets: prefixes("172.29.0.0/16", "fd00:4::/64"), ICC: true, Masquerade: true, Trusted: []string{"lan0", "lan1"},
					Source: [2]netip.Addr{netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::9")}},
			}},
		"reached-all.nft": {Table: "holdfast", IPv4: true, Direct: true, Elements: []Element{direct("sctp", "172.17.0.2:80")}, Bridges: []Bridge{
			{Name: "br-inside", Subnets: prefixes("172.28.0.0/16"), ICC: true, Internal: true},
			{Name: "holdfast0", Subnets: prefixes("172.17.0.0/16"), ICC: true, Masquerade: true},
		}},
		"internal.nft": {Table: "holdfast", IPv4: true, IPv6: true, Bridges: []Bridge{
			{Name: "br-inside", Subnets: prefixes("172.28.0.0/16", "fd00:2::/64"), ICC: true, Masquerade: true, Internal: true},
			{Name: "holdfast0", Subnets: prefixes("172.17.0.0/16"), ICC: true, Masquerade: true},
		}},
		"rest.nft": {Table: "holdfast", IPv4: true, IPv6: true,
			Rest: Rest{Refused: [2]bool{true, true}, Before: [2][]string{{"wan0"}, nil}, Pass: []string{"virbr0"}, Within: []string{"br0", "virbr0"}},
			Bridges: []Bridge{
				{Name: "br-inside", Subnets: prefixes("172.28.0.0/16"), ICC: true, Internal: true},
				{Name: "holdfast0", Subnets: prefixes("172.17.0.0/16", "fd00::/64"), ICC: true, Masquerade: true},
			}},
		"rest-ipv4.nft": {Table: "holdfast", IPv4: true, IPv6: true, Rest: Rest{Refused: [2]bool{true, false}, Before: [2][]string{nil, {"wan0"}}},
			Bridges: []Bridge{{Name: "holdfast0", Subnets: prefixes("172.17.0.0/16", "fd00::/64"), ICC: true, Masquerade: true}}},
		"ipv6-only.nft": {Table: "holdfast", IPv6: true, Elements: elements,
			Bridges: []Bridge{{Name: "holdfast0", Subnets: prefixes("172.17.0.0/16", "fd00::/64"), ICC: true, Masquerade: true}}},
	} {
		t.Run(name, func(t *testing.T) { golden.Compare(t, filepath.Join("testdata", name), []byte(Render(Build(c)))) })
	}
	r := Rest{Before: [2][]string{{"wan0"}, {"wan6"}}, Pass: []string{"virbr0"}, Within: []string{"br0"}}
	for name, v6 := range map[string]bool{"closing4.nft": false, "closing6.nft": true} {
		c := Closing(Admission("holdfast", []string{"holdfast0"}, []string{"docker0"}), r, v6)
		golden.Compare(t, filepath.Join("testdata", name), []byte(Render(Ruleset{Table: "filter", Chains: []Chain{c}})))
	}
}

func TestDeletionIsEncodedAsTheKernelWantsIt(t *testing.T) {
	for name, destroy := range map[string]bool{"destroy.hex": true, "delete.hex": false} {
		var out string
		for _, b := range DeleteBatches("holdfast", elements, destroy) {
			out += hex.Dump(b) + "\n"
		}
		golden.Compare(t, filepath.Join("testdata", name), []byte(out))
	}
}

func TestNothingToDeleteIsNoBatch(t *testing.T) {
	for _, destroy := range []bool{true, false} {
		if b := DeleteBatches("holdfast", nil, destroy); len(b) != 0 {
			t.Errorf("%d batches", len(b))
		}
	}
}

func TestLargeDeletionFitsNetlinkAttributes(t *testing.T) {
	var many []Element
	for i := range 5000 {
		e := element("tcp", "[2001:db8::1]:1", "[fd00::2]:80")
		e.HostPort = uint16(i + 1)
		many = append(many, e)
	}
	total := 0
	for _, b := range DeleteBatches("holdfast", many, true) {
		total += len(b)
	}
	if perElement := total / len(many); perElement < 28 || perElement > 48 {
		t.Errorf("%d bytes an element", perElement)
	}
	if n := len(deletion(msgDestroySetElem, "holdfast", "publish6", many[:maxBatch])); n > 1<<16 {
		t.Errorf("a message of %d bytes overflows its list", n)
	}
}

func TestElementsSurviveTheKernelsForm(t *testing.T) {
	elements := append(elements[:len(elements):len(elements)], direct("tcp", "172.30.0.2:80"), direct("udp", "[fd00:3::2]:53"))
	rs := Build(Config{Table: "holdfast", IPv4: true, IPv6: true, Elements: elements, Direct: true})
	n := 0
	for _, m := range rs.Maps {
		for _, e := range m.Elements {
			n++
			got, err := Decode(m, e.Key(), e.Value(), e.Owner)
			if err != nil || got != e {
				t.Errorf("%s: got %v, %v", e, got, err)
			}
		}
		if _, err := Decode(m, []byte{1}, nil, ""); err == nil {
			t.Errorf("%s takes a short key", m.Name)
		}
	}
	if n != len(elements) {
		t.Errorf("%d of %d elements are in a map", n, len(elements))
	}
}

func TestCheckRefusesWhatCannotBePublished(t *testing.T) {
	for name, e := range map[string]Element{
		"protocol":     element("icmp", "0.0.0.0:1", "10.0.0.1:1"),
		"families":     element("tcp", "[::]:1", "10.0.0.1:1"),
		"host port":    element("tcp", "0.0.0.0:0", "10.0.0.1:1"),
		"target port":  element("tcp", "0.0.0.0:1", "10.0.0.1:0"),
		"no addresses": {Proto: "tcp", HostPort: 1},
		"own of all":   direct("tcp", "0.0.0.0:80"),
		"own port":     direct("tcp", "10.0.0.1:0"),
	} {
		if e.Check() == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for _, e := range elements {
		if err := e.Check(); err != nil {
			t.Errorf("%s: %v", e, err)
		}
	}
}

func TestFingerprintFollowsTheText(t *testing.T) {
	seen := map[[8]byte]string{}
	for _, c := range Build(Config{Table: "x", IPv4: true, IPv6: true, Bridges: []Bridge{{Name: "a", Subnets: prefixes("10.0.0.0/8"), Masquerade: true}}}).Chains {
		for _, r := range c.Rules {
			if first, second := r.Fingerprint(), r.Fingerprint(); first != second {
				t.Error("not stable")
			}
			if old, ok := seen[r.Fingerprint()]; ok && old != r.String() {
				t.Errorf("%q and %q look the same", old, r)
			}
			seen[r.Fingerprint()] = r.String()
		}
	}
}
