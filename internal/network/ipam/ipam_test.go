// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"math"
	"net/netip"
	"strings"
	"testing"
)

func mustNew(t *testing.T, s Subnet) *Allocator {
	t.Helper()
	a, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func next(t *testing.T, a *Allocator) string {
	t.Helper()
	addr, err := a.Next()
	if err != nil {
		t.Fatal(err)
	}
	return addr.String()
}

func TestFirstAddressFollowsTheGateway(t *testing.T) {
	for name, c := range map[string]struct {
		s    Subnet
		want []string
	}{
		"v4":         {Subnet{Prefix: netip.MustParsePrefix("172.17.0.0/16"), Reserved: []netip.Addr{netip.MustParseAddr("172.17.0.1")}}, []string{"172.17.0.2", "172.17.0.3"}},
		"v6":         {Subnet{Prefix: netip.MustParsePrefix("fd00::/64"), Reserved: []netip.Addr{netip.MustParseAddr("fd00::1")}}, []string{"fd00::2", "fd00::3"}},
		"range":      {Subnet{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Range: netip.MustParsePrefix("10.1.2.0/24")}, []string{"10.1.2.0", "10.1.2.1"}},
		"two":        {Subnet{Prefix: netip.MustParsePrefix("10.0.0.0/31")}, []string{"10.0.0.0", "10.0.0.1"}},
		"unaligned":  {Subnet{Prefix: netip.MustParsePrefix("10.0.0.7/29")}, []string{"10.0.0.1"}},
		"gateway up": {Subnet{Prefix: netip.MustParsePrefix("10.0.0.0/30"), Reserved: []netip.Addr{netip.MustParseAddr("10.0.0.2")}}, []string{"10.0.0.1"}},
	} {
		t.Run(name, func(t *testing.T) {
			a := mustNew(t, c.s)
			for _, want := range c.want {
				if got := next(t, a); got != want {
					t.Errorf("got %s, want %s", got, want)
				}
			}
		})
	}
}

func TestGatewayIsTheFirstOfSubnetOrRange(t *testing.T) {
	for _, c := range []struct{ subnet, within, want string }{
		{"10.0.0.0/24", "", "10.0.0.1"},
		{"10.0.0.0/24", "10.0.0.0/25", "10.0.0.1"},
		{"10.0.0.0/24", "10.0.0.128/25", "10.0.0.128"},
		{"10.0.0.0/31", "", "10.0.0.0"},
		{"fd00::/64", "", "fd00::1"},
		{"fd00::/64", "fd00::1:0:0:0/80", "fd00::1:0:0:0"},
	} {
		var within netip.Prefix
		if c.within != "" {
			within = netip.MustParsePrefix(c.within)
		}
		if got := Gateway(netip.MustParsePrefix(c.subnet), within).String(); got != netip.MustParseAddr(c.want).String() {
			t.Errorf("gateway of %s in %q is %s, want %s", c.subnet, c.within, got, c.want)
		}
	}
}

func TestUsageCountsWhatIsLeft(t *testing.T) {
	for _, c := range []struct {
		subnet     string
		used, free uint64
	}{
		{"10.0.0.0/24", 3, 253},
		{"fd00::/80", 2, 1<<48 - 2},
		{"fd00::/64", 2, math.MaxUint64 - 1},
		{"fd00::/48", 2, math.MaxUint64}, // more than can be counted
	} {
		p := netip.MustParsePrefix(c.subnet)
		used, free := mustNew(t, Subnet{Prefix: p, Reserved: []netip.Addr{Gateway(p, netip.Prefix{})}}).Usage()
		if used != c.used || free != c.free {
			t.Errorf("%s: %d used and %d free, want %d and %d", c.subnet, used, free, c.used, c.free)
		}
	}
}

func TestReleasedAddressComesLast(t *testing.T) {
	a := mustNew(t, Subnet{Prefix: netip.MustParsePrefix("10.0.0.0/29")})
	first := next(t, a)
	a.Release(netip.MustParseAddr(first))
	for range 5 {
		if got := next(t, a); got == first {
			t.Fatalf("%s was given out again while others were free", first)
		}
	}
	if got := next(t, a); got != first {
		t.Errorf("got %s, want the released %s", got, first)
	}
}

func TestResumedCursorDoesNotReuse(t *testing.T) {
	a := mustNew(t, Subnet{Prefix: netip.MustParsePrefix("10.0.0.0/24")})
	a.Resume(netip.MustParseAddr("10.0.0.9"))
	if got := next(t, a); got != "10.0.0.10" {
		t.Errorf("got %s", got)
	}
	a.Resume(netip.MustParseAddr("192.0.2.1"))
	if got := next(t, a); got != "10.0.0.11" {
		t.Errorf("a foreign address moved the cursor: got %s", got)
	}
}

func TestExhaustedSubnetSaysSo(t *testing.T) {
	a := mustNew(t, Subnet{Prefix: netip.MustParsePrefix("10.0.0.0/30")})
	next(t, a)
	next(t, a)
	if _, err := a.Next(); !errors.Is(err, ErrExhausted) {
		t.Errorf("got %v", err)
	}
	a.Release(netip.MustParseAddr("10.0.0.1"))
	if got := next(t, a); got != "10.0.0.1" {
		t.Errorf("got %s", got)
	}
}

func TestReserveRefusesTakenAndForeign(t *testing.T) {
	a := mustNew(t, Subnet{Prefix: netip.MustParsePrefix("10.0.0.0/24"), Reserved: []netip.Addr{netip.MustParseAddr("10.0.0.1")}})
	if err := a.Reserve(netip.MustParseAddr("10.0.0.2")); err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]error{
		"10.0.0.0":   ErrInUse,
		"10.0.0.1":   ErrInUse,
		"10.0.0.2":   ErrInUse,
		"10.0.0.255": ErrInUse,
		"10.0.1.1":   ErrOutside,
		"fd00::1":    ErrOutside,
	} {
		if err := a.Reserve(netip.MustParseAddr(addr)); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", addr, err, want)
		}
	}
	if got := next(t, a); got != "10.0.0.3" {
		t.Errorf("got %s", got)
	}
	if used, free := a.Usage(); used != 5 || free != 251 {
		t.Errorf("%d used, %d free", used, free)
	}
	if h := a.Highest(); h.String() != "10.0.0.3" {
		t.Errorf("highest: %s", h)
	}
}

func TestNewRefusesWhatMakesNoSense(t *testing.T) {
	for name, s := range map[string]Subnet{
		"no prefix":       {},
		"wider range":     {Prefix: netip.MustParsePrefix("10.0.0.0/24"), Range: netip.MustParsePrefix("10.0.0.0/16")},
		"foreign range":   {Prefix: netip.MustParsePrefix("10.0.0.0/24"), Range: netip.MustParsePrefix("10.0.1.0/26")},
		"foreign gateway": {Prefix: netip.MustParsePrefix("10.0.0.0/24"), Reserved: []netip.Addr{netip.MustParseAddr("10.0.1.1")}},
	} {
		if _, err := New(s); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestFirstFreeSkipsWhatOverlaps(t *testing.T) {
	for name, c := range map[string]struct {
		used []string
		want string
	}{
		"nothing used":       {nil, "172.17.0.0/16"},
		"first used":         {[]string{"172.17.3.0/24"}, "172.18.0.0/16"},
		"a wide route":       {[]string{"172.16.0.0/12"}, "192.168.0.0/20"},
		"part of a pool":     {[]string{"172.17.0.0/16", "172.18.0.0/15", "172.20.0.0/16"}, "172.21.0.0/16"},
		"other family":       {[]string{"fd00::/8"}, "172.17.0.0/16"},
		"host in the middle": {[]string{"172.16.0.0/12", "192.168.0.0/24", "192.168.16.9/32"}, "192.168.32.0/20"},
	} {
		t.Run(name, func(t *testing.T) {
			var used []netip.Prefix
			for _, u := range c.used {
				used = append(used, netip.MustParsePrefix(u))
			}
			got, err := FirstFree(DefaultPools, false, used)
			if err != nil || got.String() != c.want {
				t.Errorf("got %s, %v; want %s", got, err, c.want)
			}
		})
	}
}

func TestFirstFreeReportsThatPoolsAreFull(t *testing.T) {
	_, err := FirstFree(DefaultPools, false, []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")})
	if !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "fully subnetted") {
		t.Errorf("got %v", err)
	}
	if _, err := FirstFree(DefaultPools, true, nil); !errors.Is(err, ErrExhausted) {
		t.Errorf("no pool of IPv6, yet: %v", err)
	}
}

func TestLast(t *testing.T) {
	for p, want := range map[string]string{"10.0.0.0/8": "10.255.255.255", "10.0.0.4/30": "10.0.0.7", "10.0.0.4/32": "10.0.0.4", "fd00::/64": "fd00::ffff:ffff:ffff:ffff"} {
		if got := Last(netip.MustParsePrefix(p)); got.String() != want {
			t.Errorf("%s: got %s, want %s", p, got, want)
		}
	}
}
