// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// FuzzHostFiles writes a user's names into /etc/hosts and /etc/resolv.conf. Each
// accepted name must be one word of its line.
func FuzzHostFiles(f *testing.F) {
	f.Add("web", "example.com", "db:10.0.0.1", "a:b", "8.8.8.8", "example.com", "ndots:1")
	f.Add("web\n6.6.6.6 bank", "x\ty", "bank\n6.6.6.6:1.2.3.4", "a:b\n6.6.6.6 bank", "fe80::1%\nnameserver 6.6.6.6", "a\nnameserver 6.6.6.6", "x\roptions y")
	f.Add("w\u0085eb", "\u2028", "a=[::1%x y]", "/a:/b/c d", "fe80::1%eth0", "a\vb", "\x00")
	f.Fuzz(func(t *testing.T, hostname, domain, extra, link, dns, search, option string) {
		server, err := netip.ParseAddr(dns)
		if err != nil {
			return
		}
		c := &container.Config{Hostname: hostname, Domainname: domain}
		hc := &container.HostConfig{ExtraHosts: []string{extra}, Links: []string{link}, DNS: []netip.Addr{server}, DNSSearch: []string{search}, DNSOptions: []string{option}}
		if validateHostname(hostname, "hostname") != nil || validateHostname(domain, "domainname") != nil || validateNetwork(c, hc) != nil {
			return
		}
		_, alias, err := ParseLink(link)
		if err != nil {
			t.Fatalf("the link %q was taken, and then: %v", link, err)
		}
		own := netip.MustParseAddr("10.1.0.2")
		got, err := Hosts(HostsInput{
			Hostname: hostname, Domainname: domain, Addresses: []netip.Addr{own}, ExtraHosts: []string{extra},
			HostGateway: []netip.Addr{netip.MustParseAddr("10.1.0.1")}, Links: []HostsEntry{{Addr: own, Names: []string{alias}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		want := 3 // localhost, the extra host, the link
		if hostname != "" {
			want++
		}
		words(t, string(got), want)
		for line := range strings.Lines(string(got)) {
			if _, err := netip.ParseAddr(strings.Fields(line)[0]); err != nil {
				t.Errorf("a line of %q begins with no address", got)
			}
		}
		resolv := ResolvConf(ResolvInput{DNS: hc.DNS, Search: hc.DNSSearch, Options: hc.DNSOptions}).Content
		want = 4 // a comment, an empty line, a server, options
		if search != "." {
			want++
		}
		words(t, string(resolv), want)
		if n := strings.Count(string(resolv), "nameserver "); n != 1 && !strings.Contains(search+option, "nameserver") {
			t.Errorf("%d name servers in %q", n, resolv)
		}
	})
}

// words counts lines as programs do that read such files.
func words(t *testing.T, file string, want int) {
	t.Helper()
	if n := strings.Count(file, "\n"); n != want || strings.ContainsAny(file, "\r\v\f\x00") {
		t.Errorf("%d lines and not %d: %q", n, want, file)
	}
}

func TestNamesDoNotBreakOutOfTheirLine(t *testing.T) {
	for what, c := range map[string]struct {
		c  container.Config
		hc container.HostConfig
	}{
		"hostname":    {c: container.Config{Hostname: "a\n6.6.6.6 bank"}},
		"domain name": {c: container.Config{Domainname: "a\n6.6.6.6 bank"}},
		"extra host":  {hc: container.HostConfig{ExtraHosts: []string{"a\n6.6.6.6 bank:10.0.0.1"}}},
		"link":        {hc: container.HostConfig{Links: []string{"web:a\n6.6.6.6 bank"}}},
		"bare link":   {hc: container.HostConfig{Links: []string{"web\n6.6.6.6 bank"}}},
		"server":      {hc: container.HostConfig{DNS: []netip.Addr{netip.MustParseAddr("fe80::1%\nnameserver 6.6.6.6")}}},
		"search":      {hc: container.HostConfig{DNSSearch: []string{"a\vnameserver 6.6.6.6"}}},
		"option":      {hc: container.HostConfig{DNSOptions: []string{"a\nnameserver 6.6.6.6"}}},
		"host address": {hc: container.HostConfig{PortBindings: network.PortMap{
			network.MustParsePort("80/tcp"): {{HostIP: netip.MustParseAddr("::1%a\nb"), HostPort: "80"}},
		}}},
	} {
		err := validateNetwork(&c.c, &c.hc)
		for _, name := range []string{c.c.Hostname, c.c.Domainname} {
			if err == nil {
				err = validateHostname(name, "hostname")
			}
		}
		if err == nil {
			t.Errorf("%s: it is taken", what)
		}
	}
}
