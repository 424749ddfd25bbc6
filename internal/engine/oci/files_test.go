// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"holdfast/test/golden"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestHostsFiles(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   HostsInput
	}{
		{"plain", HostsInput{Hostname: "0123456789ab", Addresses: addrs("172.17.0.2")}},
		{"ipv6", HostsInput{Hostname: "web", Domainname: "example.org", Addresses: addrs("172.17.0.2", "fd00::2"), IPv6: true, Names: []string{"alias", "web"}}},
		{"all", HostsInput{
			Hostname: "web.example.org", Addresses: addrs("10.0.0.2", "10.1.0.2"),
			ExtraHosts:  []string{"db:10.9.9.9", "v6=[fd00::9]", "host.docker.internal:host-gateway"},
			HostGateway: addrs("172.17.0.1", "fd00::1"),
			Links:       []HostsEntry{{Addr: netip.MustParseAddr("10.0.0.3"), Names: []string{"alias", "short", "name"}}},
		}},
		{"labels-and-domain", HostsInput{Hostname: "web.east", Domainname: "example.org", Addresses: addrs("172.17.0.2")}},
		{"host-network", HostsInput{Hostname: "thehost", Base: []byte("127.0.1.1 thehost"), ExtraHosts: []string{"a:1.2.3.4"}}},
		{"none", HostsInput{Hostname: "web", IPv6: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Hosts(tc.in)
			if err != nil {
				t.Fatal(err)
			}
			golden.Compare(t, "testdata/hosts/"+tc.name, got)
		})
	}
	if _, err := Hosts(HostsInput{ExtraHosts: []string{"a:host-gateway"}}); err == nil || !strings.Contains(err.Error(), "host-gateway") || !errdefs.IsInvalidArgument(err) {
		t.Errorf("host-gateway without an address: %v", err)
	}
	if got := string(Hostname("web")); got != "web\n" {
		t.Errorf("Hostname = %q", got)
	}
}

func TestResolvConfs(t *testing.T) {
	host := []byte("# made by hand\nnameserver 127.0.0.53\nnameserver 192.0.2.1 # first\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\n" +
		"domain old.example\nsearch a.example b.example\noptions edns0 trust-ad\noptions timeout:1\nnonsense\nnameserver x\n")
	loopback := []byte("nameserver 127.0.0.1\nnameserver ::1\nsearch .\n")
	internal := netip.MustParseAddr("127.0.0.11")
	for _, tc := range []struct {
		name     string
		in       ResolvInput
		upstream []string
		fallback bool
	}{
		{"plain", ResolvInput{Host: host}, []string{"192.0.2.1"}, false},
		{"ipv6", ResolvInput{Host: host, IPv6: true}, []string{"192.0.2.1", "2001:db8::1"}, false},
		{"loopback-only", ResolvInput{Host: loopback}, []string{"8.8.8.8", "8.8.4.4"}, true},
		{"loopback-only-ipv6", ResolvInput{Host: loopback, IPv6: true}, []string{"8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"}, true},
		{"host-network", ResolvInput{Host: host, HostNetwork: true}, []string{"127.0.0.53", "192.0.2.1", "fe80::1%eth0", "2001:db8::1"}, false},
		{"overridden", ResolvInput{Host: host, DNS: addrs("1.1.1.1", "127.0.0.1"), Search: []string{"."}, Options: []string{"ndots:3"}}, []string{"1.1.1.1", "127.0.0.1"}, false},
		{"internal", ResolvInput{Host: host, Internal: internal}, []string{"127.0.0.53", "192.0.2.1", "fe80::1%eth0", "2001:db8::1"}, false},
		{"internal-ndots", ResolvInput{Host: host, Internal: internal, DNS: addrs("9.9.9.9"), Options: []string{"ndots:2"}, Search: []string{"x.example"}}, []string{"9.9.9.9"}, false},
		{"nothing", ResolvInput{}, []string{"8.8.8.8", "8.8.4.4"}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := ResolvConf(tc.in)
			golden.Compare(t, "testdata/resolv/"+tc.name, r.Content)
			var up []string
			for _, a := range r.Upstream {
				up = append(up, a.String())
			}
			if !slices.Equal(up, tc.upstream) || r.Fallback != tc.fallback {
				t.Errorf("upstream %v, fallback %v", up, r.Fallback)
			}
		})
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 1.1.1.1\nsearch a b # c\noptions x:1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := ResolvConf(ResolvInput{Host: b})
		if !strings.Contains(string(r.Content), "nameserver ") {
			t.Errorf("no name server in %q", r.Content)
		}
	})
}

func TestRelinkReplacesTheLinesOfLinksAlone(t *testing.T) {
	file := "127.0.0.1\tlocalhost\n172.17.0.2\tdatabase db\n172.17.0.3\tweb\n# mine\n192.0.2.1 printer"
	got := string(Relink([]byte(file+"\n"), []HostsEntry{
		{Addr: netip.MustParseAddr("172.17.0.9"), Names: []string{"database", "db"}},
		{Addr: netip.MustParseAddr("fd00::9"), Names: []string{"database", "db"}},
	}))
	want := "127.0.0.1\tlocalhost\n172.17.0.9\tdatabase db\n172.17.0.3\tweb\n# mine\n192.0.2.1 printer\nfd00::9\tdatabase db\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if again := string(Relink([]byte(got), []HostsEntry{{Addr: netip.MustParseAddr("172.17.0.9"), Names: []string{"database", "db"}}})); again != got {
		t.Errorf("a second time:\n%s", again)
	}
}

func TestRehostReplacesTheLinesOfOwnNamesAlone(t *testing.T) {
	file := "127.0.0.1\tlocalhost\n127.0.1.1\tweb\n10.1.0.2\tweb\n192.0.2.9\tprinter\n10.1.0.2\tweb and more\n10.2.0.2\tweb\n# web\n10.3.0.9 mine"
	in := HostsInput{Hostname: "web", Addresses: []netip.Addr{netip.MustParseAddr("10.2.0.2"), netip.MustParseAddr("fd00::2")}}
	got := string(Rehost([]byte(file), in))
	want := "127.0.0.1\tlocalhost\n127.0.1.1\tweb\n192.0.2.9\tprinter\n10.1.0.2\tweb and more\n10.2.0.2\tweb\n# web\n10.3.0.9 mine\nfd00::2\tweb\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if again := string(Rehost([]byte(got), in)); again != got {
		t.Errorf("repeated:\n%s", again)
	}
}

func TestLineOfALinkIsKnownAfterARename(t *testing.T) {
	at := netip.MustParseAddr("10.0.0.2")
	content := []byte("127.0.0.1\tlocalhost\n10.0.0.2\tw web\n10.0.0.2\tweb\n192.0.2.9 w\n192.0.2.9\tprinter w\n")
	w := HostsEntry{Addr: at, Names: []string{"w", "web", "shop"}}
	if got, want := string(Unlink(content, []HostsEntry{w})), "127.0.0.1\tlocalhost\n10.0.0.2\tweb\n192.0.2.9 w\n192.0.2.9\tprinter w\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	// The host name of the container is the link's alias.
	web := HostsEntry{Addr: at, Names: []string{"web", "shop"}}
	if got, want := string(Relink(content, []HostsEntry{w, web})), "127.0.0.1\tlocalhost\n10.0.0.2\tw web shop\n10.0.0.2\tweb shop\n192.0.2.9 w\n192.0.2.9\tprinter w\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	w.Addr = netip.MustParseAddr("10.0.0.7")
	if got, want := string(Relink(content[:35], []HostsEntry{w})), "127.0.0.1\tlocalhost\n10.0.0.7\tw web shop\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
