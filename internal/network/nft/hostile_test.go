// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"net/netip"
	"strings"
	"testing"
)

// FuzzRender: whatever the names of interfaces, tables and owners, a name must
// not read as a rule, and different rules must have different fingerprints.
func FuzzRender(f *testing.F) {
	f.Add("holdfast", "holdfast0", "lan0", "4f1c", "172.17.0.0/16", "192.0.2.7", uint16(80))
	f.Add("holdfast", "a\" accept # ", "b\n\t\tdrop", "\"} }\ntable inet x {", "fd00::/64", "2001:db8::1", uint16(1))
	f.Add("x y", "br+", "br*", "\\", "10.0.0.0/8", "::", uint16(65535))
	f.Fuzz(func(t *testing.T, table, bridge, other, owner, subnet, host string, port uint16) {
		p, err := netip.ParsePrefix(subnet)
		if err != nil {
			return
		}
		h, err := netip.ParseAddr(host)
		if err != nil {
			return
		}
		e := Element{Proto: "tcp", Host: h, HostPort: port, Target: netip.AddrPortFrom(p.Addr(), 80), Owner: owner}
		c := Config{Table: table, IPv4: true, IPv6: true, Direct: true, Rest: Rest{
			Refused: [2]bool{true, true}, Pass: []string{other}, Within: []string{bridge},
		}, Bridges: []Bridge{
			{Name: bridge, Subnets: []netip.Prefix{p}, ICC: true, Masquerade: true, Trusted: []string{other}},
			{Name: other, Internal: true, Access: [2]Access{Routed, Open}, Exceptions: []Exception{{Addr: p.Addr(), ICC: true}}},
		}}
		if e.Check() == nil {
			c.Elements = append(c.Elements, e)
		}
		rs := Build(c)
		lines := 2
		texts := map[string]bool{}
		for _, m := range rs.Maps {
			lines += 3 + len(m.Elements)
			for _, e := range m.Elements {
				got, err := Decode(m, e.Key(), e.Value(), e.Owner)
				if err != nil || got != e && e.Host.Zone() == "" && e.Target.Addr().Zone() == "" {
					t.Errorf("%s is %s in the kernel, %v", e, got, err)
				}
			}
		}
		for _, ch := range rs.Chains {
			lines += 2 + len(ch.Rules)
			if ch.Hook != "" {
				lines++
			}
			for _, r := range ch.Rules {
				texts[r.String()] = true
			}
		}
		lines += len(rs.Maps) + len(rs.Chains) - 1
		if text := Render(rs); strings.Count(text, "\n") != lines {
			t.Errorf("%d lines and not %d:\n%s", strings.Count(text, "\n"), lines, text)
		}
		if a, b := (Rule{Interface{Name: bridge}, accept}), (Rule{Interface{Name: other}, accept}); bridge != other && a.Fingerprint() == b.Fingerprint() {
			t.Errorf("%q and %q look the same", a, b)
		}
		for _, b := range DeleteBatches(table, c.Elements, true) {
			if len(b) == 0 {
				t.Error("an empty batch")
			}
		}
	})
}

// FuzzPlace: for chains of other programs of any shape the place is within the
// chain, and after the call was inserted there it is right.
func FuzzPlace(f *testing.F) {
	f.Add([]byte{0, 1, 2}, true)
	f.Add([]byte{5, 4, 0x15, 0x25, 2}, false)
	f.Fuzz(func(t *testing.T, b []byte, drops bool) {
		names := []string{"holdfast", "holdfast-b", "a", "b"}
		var chain []Foreign
		for _, c := range b {
			r := Foreign{Deed: Deed(c % 6)}
			if r.Deed == Calls {
				r.Chain = names[c>>4%4]
			}
			chain = append(chain, r)
		}
		of := func(name string) []Foreign {
			if name == "a" && len(chain) > 0 {
				return chain[:len(chain)/2]
			}
			return nil
		}
		p := Place(chain, drops, "holdfast", of)
		if p.Before < 0 || p.Before > len(chain) {
			t.Fatalf("a place %d in %d rules", p.Before, len(chain))
		}
		var fixed []Foreign
		for i := range len(chain) + 1 {
			if p.Needed && i == p.Before {
				fixed = append(fixed, Foreign{Deed: Calls, Chain: "holdfast"})
			}
			if i < len(chain) && !(chain[i].Deed == Calls && chain[i].Chain == "holdfast") {
				fixed = append(fixed, chain[i])
			}
		}
		if again := Place(fixed, drops, "holdfast", func(string) []Foreign { return of("a") }); p.Needed != again.Needed && len(of("a")) == 0 {
			t.Errorf("%v: needed %v, and then %v", chain, p.Needed, again.Needed)
		}
	})
}
