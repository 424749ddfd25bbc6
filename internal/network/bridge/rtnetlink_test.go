// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"encoding/binary"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/dump"
)

func TestLinksAreReadAsTheLibraryReadsThem(t *testing.T) {
	// Other tests make and remove interfaces meanwhile, so repeat until nothing
	// changed.
	for range 1000 {
		before, err := dump.Interfaces()
		if err != nil {
			t.Fatal(err)
		}
		got, err := dump.Whole(listLinks)
		if err != nil {
			t.Fatal(err)
		}
		after, err := dump.Interfaces()
		if err != nil {
			t.Fatal(err)
		}
		if len(before) != len(got) || len(after) != len(got) {
			continue
		}
		same := true
		for i, l := range got {
			a := after[i].Attrs()
			same = same && before[i].Attrs().Index == a.Index && l.index == a.Index
			if l.index != a.Index {
				break
			}
			kind := after[i].Type()
			if kind == "device" { // the library's name for a link whose kind the kernel does not name
				kind = ""
			}
			if l.name != a.Name || l.master != a.MasterIndex || l.flags != a.RawFlags || l.kind != kind && l.kind != "" {
				t.Errorf("read was %+v, the library reads %s %+v", l, kind, a)
			}
		}
		if same {
			return
		}
	}
	t.Error("the host's interfaces change too fast to be compared")
}

func linkMessage(attrs ...*nl.RtAttr) []byte {
	info := nl.NewIfInfomsg(unix.AF_UNSPEC)
	info.Index, info.Flags = 7, unix.IFF_UP
	m := info.Serialize()
	for _, a := range attrs {
		m = append(m, a.Serialize()...)
	}
	return m
}

func TestLinkIsReadWithItsKindAndMaster(t *testing.T) {
	kind := nl.NewRtAttr(unix.IFLA_LINKINFO|unix.NLA_F_NESTED, nil)
	kind.AddRtAttr(nl.IFLA_INFO_KIND, nl.ZeroTerminated("veth"))
	m := linkMessage(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("veth1")), nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(3)), kind)
	l, err := parseLink(m)
	if want := (link{name: "veth1", kind: "veth", index: 7, master: 3, flags: unix.IFF_UP}); err != nil || l != want {
		t.Errorf("%+v, %v", l, err)
	}
	if _, err := parseLink(m[:10]); err == nil {
		t.Error("half a message was read")
	}
	binary.NativeEndian.PutUint16(m[unix.SizeofIfInfomsg:], 1)
	if _, err := parseLink(m); err == nil {
		t.Error("an attribute without a length was read")
	}
}

func FuzzLink(f *testing.F) {
	f.Add(linkMessage(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("lo"))))
	f.Fuzz(func(t *testing.T, m []byte) { _, _ = parseLink(m) })
}

func TestSettingsOfAPortAreReadFromItsLink(t *testing.T) {
	conf := make([]byte, 4*60)
	set := func(i int, v uint32) { binary.NativeEndian.PutUint32(conf[4*i:], v) }
	link := func(conf []byte) []byte {
		spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
		spec.AddRtAttr(unix.AF_INET, make([]byte, 8))
		spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_CONF, conf)
		return linkMessage(spec)
	}
	for _, tt := range []struct {
		name                string
		ra, redirects, none uint32
		want                bool
	}{
		{"hardened", 0, 0, 1, true},
		{"kernel's defaults", 1, 1, 0, false},
		{"router advertisements", 2, 0, 1, false},
		{"redirects", 0, 1, 1, false},
		{"addresses of IPv6", 0, 0, 0, false},
	} {
		set(confAcceptRA, tt.ra)
		set(confAcceptRedirects, tt.redirects)
		set(confDisableIPv6, tt.none)
		if l, err := parseLink(link(conf)); err != nil || l.hardened != tt.want {
			t.Errorf("%s: %+v, %v", tt.name, l, err)
		}
	}
	if l, err := parseLink(link(conf[:4*confDisableIPv6])); err != nil || l.hardened {
		t.Errorf("settings cut short: %+v, %v", l, err)
	}
}
