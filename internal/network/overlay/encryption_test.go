// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

// keysFrom are the three keys that a cluster has after a number of rotations.
func keysFrom(first uint32) (keys []Key) {
	for tag := first; tag < first+3; tag++ {
		keys = append(keys, Key{tag, []byte(fmt.Sprintf("key number %5d", tag))})
	}
	return keys
}

var hostA, hostB = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")

// plans are those of both hosts with keys of their own.
func plans(a, b []Key) (ofA, ofB Encryption) {
	return PlanEncryption(hostA, []netip.Addr{hostB, hostA, hostB}, a, 0), PlanEncryption(hostB, []netip.Addr{hostA}, b, 0)
}

// understood reports whether one host accepts what the other one sends.
func understood(from, to Encryption) bool {
	for _, p := range from.Policies {
		sends := slices.IndexFunc(from.Associations, func(a Association) bool { return a.SPI == p.SPI && a.Src == p.Src && a.Dst == p.Dst })
		if sends < 0 || !slices.ContainsFunc(to.Associations, func(a Association) bool { return a.String() == from.Associations[sends].String() }) {
			return false
		}
	}
	return len(from.Policies) > 0
}

func TestEncryptionOfAPairOfHostsFollowsTheKeys(t *testing.T) {
	var text strings.Builder
	section := func(name string, lines ...fmt.Stringer) {
		fmt.Fprintf(&text, "# %s\n", name)
		for _, l := range lines {
			fmt.Fprintln(&text, l)
		}
	}
	list := func(associations []Association, policies []Policy) (all []fmt.Stringer) {
		for _, a := range associations {
			all = append(all, a)
		}
		for _, p := range policies {
			all = append(all, p)
		}
		return all
	}
	a, b := plans(keysFrom(7), keysFrom(7))
	section("host "+hostA.String(), list(a.Associations, a.Policies)...)
	section("host "+hostB.String(), list(b.Associations, b.Policies)...)
	rotated, _ := plans(keysFrom(8), nil)
	s := CompareEncryption(rotated, a)
	section("rotation: add", list(s.Add, nil)...)
	section("rotation: set", list(nil, s.Set)...)
	section("rotation: unset", list(nil, s.Unset)...)
	section("rotation: remove", list(s.Remove, nil)...)
	s = CompareEncryption(Encryption{}, rotated)
	section("the other host leaves: unset", list(nil, s.Unset)...)
	section("the other host leaves: remove", list(s.Remove, nil)...)
	fmt.Fprintf(&text, "# rules\n%s", RenderEncryptionRules(0, []uint32{4098, 4097, 4098}))

	const golden = "testdata/encryption.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || string(want) != text.String() {
		t.Errorf("%v, rendered:\n%s", err, text.String())
	}
}

// Hosts hear of a rotation at different times.
func TestHostsUnderstandEachOtherDuringARotation(t *testing.T) {
	for _, c := range []struct{ a, b uint32 }{{1, 1}, {2, 1}, {1, 2}, {2, 2}, {3, 2}} {
		a, b := plans(keysFrom(c.a), keysFrom(c.b))
		if !understood(a, b) || !understood(b, a) {
			t.Errorf("with the keys from %d and from %d a host does not understand the other", c.a, c.b)
		}
	}
	// A host that has missed two rotations is not understood: that is what a rotation is for.
	if a, b := plans(keysFrom(1), keysFrom(4)); understood(a, b) || understood(b, a) {
		t.Error("a key that was removed is accepted")
	}
}

// After each step what is sent can be encrypted, and what the other host sends is accepted.
func TestNoPacketIsLostBetweenTheStepsOfARotation(t *testing.T) {
	now, other := plans(keysFrom(1), keysFrom(1))
	want, _ := plans(keysFrom(2), nil)
	s := CompareEncryption(want, now)
	check := func(when string) {
		t.Helper()
		if !understood(now, other) || !understood(other, now) {
			t.Errorf("%s a packet is lost", when)
		}
	}
	for _, a := range s.Add {
		now.Associations = append(now.Associations, a)
		check("after an added association")
	}
	for _, p := range s.Set {
		now.Policies = append(slices.DeleteFunc(slices.Clone(now.Policies), func(o Policy) bool { return o.Dst == p.Dst }), p)
		check("after a changed policy")
	}
	for _, a := range s.Remove {
		now.Associations = slices.DeleteFunc(slices.Clone(now.Associations), func(o Association) bool { return o.String() == a.String() })
		check("after a removed association")
	}
	if s := CompareEncryption(want, now); len(s.Add)+len(s.Set)+len(s.Unset)+len(s.Remove) != 0 {
		t.Errorf("after all steps there are others: %+v", s)
	}
}
