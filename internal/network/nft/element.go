// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"net/netip"
)

// Element is one published port.
type Element struct {
	Proto string // tcp, udp or sctp
	// Host is the host's address. The unspecified address means all addresses of
	// its family.
	Host     netip.Addr
	HostPort uint16
	// Target is the address that the port is translated to. If it is zero, Host and
	// HostPort are the container's own and may be reached directly.
	Target netip.AddrPort
	// Owner is the container's ID. The kernel stores it with the element, as a
	// comment.
	Owner string
}

var protocols = map[string]byte{"tcp": 6, "udp": 17, "sctp": 132}

// Direct reports whether e is a container's own address and port.
func (e Element) Direct() bool { return e.Target == netip.AddrPort{} }

// Check returns an error if the element is not valid.
func (e Element) Check() error {
	switch {
	case protocols[e.Proto] == 0:
		return fmt.Errorf("unknown protocol %q", e.Proto)
	case e.Direct() && e.HostPort > 0 && e.Host.IsValid() && !e.Host.IsUnspecified():
	case !e.Host.IsValid() || !e.Target.IsValid() || e.Host.Is4() != e.Target.Addr().Is4():
		return fmt.Errorf("no translation from %s to %s", e.Host, e.Target)
	case e.HostPort == 0 || e.Target.Port() == 0:
		return fmt.Errorf("port 0 can't be published")
	case len(e.Owner) > 64:
		return fmt.Errorf("owner %q is too long", e.Owner)
	}
	return nil
}

func (e Element) mapName() string {
	name := "publish"
	switch {
	case e.Direct():
		name = "direct"
	case e.Host.IsUnspecified():
		name = "publish_any"
	}
	if e.Host.Is4() {
		return name + "4"
	}
	return name + "6"
}

func (e Element) less(o Element) bool {
	if c := e.Host.Compare(o.Host); c != 0 {
		return c < 0
	}
	if e.HostPort != o.HostPort {
		return e.HostPort < o.HostPort
	}
	return e.Proto < o.Proto
}

// MapOf returns the name of the map that e belongs to.
func MapOf(e Element) string { return e.mapName() }

// Key returns the element's key in the kernel's form: each part padded to 32
// bits.
func (e Element) Key() []byte {
	var k []byte
	if !e.Host.IsUnspecified() {
		k = e.Host.AsSlice()
	}
	return append(k, protocols[e.Proto], 0, 0, 0, byte(e.HostPort>>8), byte(e.HostPort), 0, 0)
}

// Value returns the element's value in the kernel's form, or nil in a set.
func (e Element) Value() []byte {
	if e.Direct() {
		return nil
	}
	p := e.Target.Port()
	return append(e.Target.Addr().AsSlice(), byte(p>>8), byte(p), 0, 0)
}

// Decode is the reverse of Key and Value, for an element of m.
func Decode(m Map, key, value []byte, owner string) (Element, error) {
	addrLen := 4
	if m.V6 {
		addrLen = 16
	}
	want := 8
	if m.Addr {
		want += addrLen
	}
	wantValue := addrLen + 4
	if m.Set {
		wantValue = 0
	}
	if len(key) != want || len(value) != wantValue {
		return Element{}, fmt.Errorf("map %s: element with a key of %d and a value of %d bytes", m.Name, len(key), len(value))
	}
	e := Element{Owner: owner, Host: netip.IPv4Unspecified()}
	if m.V6 {
		e.Host = netip.IPv6Unspecified()
	}
	if m.Addr {
		e.Host, _ = netip.AddrFromSlice(key[:addrLen])
		key = key[addrLen:]
	}
	for name, n := range protocols {
		if n == key[0] {
			e.Proto = name
		}
	}
	e.HostPort = uint16(key[4])<<8 | uint16(key[5])
	if m.Set {
		return e, nil
	}
	addr, _ := netip.AddrFromSlice(value[:addrLen])
	e.Target = netip.AddrPortFrom(addr, uint16(value[addrLen])<<8|uint16(value[addrLen+1]))
	return e, nil
}
