// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"

	"holdfast/internal/errs"
)

// HostsInput is the input for a container's /etc/hosts.
type HostsInput struct {
	Hostname, Domainname string
	// Addresses are the container's own, on all of its networks. Its names are
	// listed once for each address.
	Addresses []netip.Addr
	// Names are additional names of the container, after the host name.
	Names []string
	// ExtraHosts are the entries of HostConfig.ExtraHosts, "name:address".
	ExtraHosts []string
	// HostGateway are the addresses that replace "host-gateway", one line each.
	HostGateway []netip.Addr
	// Links are the entries for other containers.
	Links []HostsEntry
	// IPv6 adds the lines of the loopback and multicast addresses.
	IPv6 bool
	// Base replaces the default lines for a container in the host's network: it is
	// the host's own /etc/hosts.
	Base []byte
}

// HostsEntry is one line.
type HostsEntry struct {
	Addr  netip.Addr
	Names []string
}

// Hosts renders /etc/hosts. Errors are of kind errdefs.ErrInvalidArgument.
func Hosts(in HostsInput) ([]byte, error) {
	var b bytes.Buffer
	line := func(addr netip.Addr, names ...string) {
		b.WriteString(addr.WithZone("").String())
		b.WriteByte('\t')
		b.WriteString(strings.Join(names, " "))
		b.WriteByte('\n')
	}
	if in.Base != nil {
		b.Write(in.Base)
		if n := len(in.Base); n > 0 && in.Base[n-1] != '\n' {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString("127.0.0.1\tlocalhost\n")
		if in.IPv6 {
			b.WriteString("::1\tlocalhost ip6-localhost ip6-loopback\n" +
				"fe00::\tip6-localnet\n" +
				"ff00::\tip6-mcastprefix\n" +
				"ff02::1\tip6-allnodes\n" +
				"ff02::2\tip6-allrouters\n")
		}
	}
	for _, e := range in.ExtraHosts {
		name, addr, err := ParseExtraHost(e)
		if err != nil {
			return nil, err
		}
		if addr.IsValid() {
			line(addr, name)
			continue
		}
		if len(in.HostGateway) == 0 {
			return nil, errs.Invalid("unable to derive the IP value for host-gateway")
		}
		for _, gw := range in.HostGateway {
			line(gw, name)
		}
	}
	for _, l := range in.Links {
		if l.Addr.IsValid() && len(l.Names) > 0 {
			line(l.Addr, l.Names...)
		}
	}
	names := ownNames(in)
	if len(names) > 0 {
		for _, addr := range in.Addresses {
			if addr.IsValid() {
				line(addr, names...)
			}
		}
	}
	return b.Bytes(), nil
}

// ownNames returns "host.domain host", then the others, without duplicates.
func ownNames(in HostsInput) []string {
	var names []string
	if in.Hostname != "" {
		if in.Domainname != "" {
			names = append(names, in.Hostname+"."+in.Domainname)
		}
		names = append(names, in.Hostname)
		// A host name with dots is also known by its first label.
		if first, _, dotted := strings.Cut(in.Hostname, "."); dotted && first != "" {
			names = append(names, first)
		}
	}
	return dedupe(append(names, in.Names...))
}

// Rehost updates the container's own lines in its hosts file after it was
// connected or disconnected: it removes the lines of old addresses and adds those
// of new ones. Other content of the file stays.
func Rehost(content []byte, in HostsInput) []byte {
	var b bytes.Buffer
	names := ownNames(in)
	missing := slices.Clone(in.Addresses)
	for line := range strings.Lines(string(content)) {
		if fields := strings.Fields(line); len(fields) > 1 && slices.Equal(fields[1:], names) {
			a, err := netip.ParseAddr(fields[0])
			i := slices.Index(missing, a)
			if err == nil && i < 0 && !a.IsLoopback() {
				continue
			}
			if i >= 0 {
				missing = slices.Delete(missing, i, i+1)
			}
		}
		b.WriteString(line)
	}
	if n := b.Len(); n > 0 && b.Bytes()[n-1] != '\n' {
		b.WriteByte('\n')
	}
	for _, a := range missing {
		if a.IsValid() && len(names) > 0 {
			b.WriteString(a.String() + "\t" + strings.Join(names, " ") + "\n")
		}
	}
	return b.Bytes()
}

// Relink updates the links in a hosts file: it replaces the line of a link whose
// address changed, and adds missing ones. Other content of the file stays.
func Relink(content []byte, links []HostsEntry) []byte {
	var b bytes.Buffer
	done := make([]bool, len(links))
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		for i, l := range links {
			if !l.is(fields) {
				continue
			}
			if a, err := netip.ParseAddr(fields[0]); err == nil && a.Is4() == l.Addr.Is4() {
				line, done[i] = l.Addr.String()+"\t"+strings.Join(l.Names, " ")+"\n", true
			}
		}
		b.WriteString(line)
	}
	for i, l := range links {
		if !done[i] {
			b.WriteString(l.Addr.String() + "\t" + strings.Join(l.Names, " ") + "\n")
		}
	}
	return b.Bytes()
}

// is reports whether a line is that of a link. Since the line was written the
// linked container may have got another address, or another name, which is the
// last one of the line.
func (l HostsEntry) is(fields []string) bool {
	if len(fields) < 2 || fields[1] != l.Names[0] {
		return false
	}
	names := fields[1:]
	a, err := netip.ParseAddr(fields[0])
	return slices.Equal(names, l.Names) || err == nil && a == l.Addr ||
		len(names) > 1 && len(l.Names) > 1 && names[1] == l.Names[1]
}

// Unlink removes the lines of links from a hosts file.
func Unlink(content []byte, links []HostsEntry) []byte {
	var b bytes.Buffer
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		if !slices.ContainsFunc(links, func(l HostsEntry) bool { return l.is(fields) }) {
			b.WriteString(line)
		}
	}
	return b.Bytes()
}

// Hostname returns the content of /etc/hostname.
func Hostname(hostname string) []byte { return []byte(hostname + "\n") }
