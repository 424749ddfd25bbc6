// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/json"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"

	"holdfast/internal/network/ipam"
)

func TestInterfacesAreCalledWhatNobodyMisreads(t *testing.T) {
	for _, name := range []string{"br0", "br-0123456789ab", "eth0.10", "_x", "a@b", "abcdefghijklmno"} {
		if !isInterfaceName(name) {
			t.Errorf("%q is refused", name)
		}
	}
	for _, name := range []string{"", ".", "..", "-j", "br+", "br*", "br%d", "a b", "a\nb", "a\tb", "a/b", "../x", "a:b", `a"b`, "a'b", `a\b`, "!a", "a,b", "a;b", "a#b", "abcdefghijklmnop", "bü"} {
		if isInterfaceName(name) {
			t.Errorf("%q is taken", name)
		}
	}
	m := &Manager{opts: &parsed{}}
	for option, value := range map[string]string{
		optTrusted: "lan0:br+", optIfacePrefix: "../",
	} {
		if _, err := m.opts.newRecord(network.CreateRequest{Name: "n", Options: map[string]string{option: value}}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s=%s: %v", option, value, err)
		}
	}
	for _, name := range []string{"br+", "-j", `a"b`, "a/b", ""} {
		if _, err := (Options{BridgeName: name}).parse(); name != "" && !errdefs.IsInvalidArgument(err) {
			t.Errorf("the daemon's bridge %q: %v", name, err)
		}
		if name == "" {
			continue
		}
		if err := assignParent(&record{Driver: driverMacvlan, Options: map[string]string{optParent: name}}); !errdefs.IsInvalidArgument(err) && !errdefs.IsNotImplemented(err) {
			t.Errorf("parent %q: %v", name, err)
		}
	}
	for _, es := range []*network.EndpointSettings{
		{Aliases: []string{"a\n192.0.2.1 bank"}}, {Aliases: []string{"a b"}}, {DriverOpts: map[string]string{optIfName: "../../x"}},
	} {
		if err := validateRequested("own", es); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", es, err)
		}
	}
}

// FuzzCreateRequest feeds arbitrary requests for networks.
func FuzzCreateRequest(f *testing.F) {
	for _, s := range []string{
		`{"Name":"n"}`,
		`{"Name":"n","EnableIPv6":true,"IPAM":{"Config":[{"Subnet":"10.1.0.0/24","IPRange":"10.1.0.128/25","Gateway":"10.1.0.1","AuxiliaryAddresses":{"a":"10.1.0.9"}}]}}`,
		`{"Name":"n","EnableIPv6":true,"IPAM":{"Config":[{"Subnet":"fd00::/64","Gateway":"fd00::1%x"}]}}`,
		`{"Name":"n","Internal":true,"Options":{"com.docker.network.bridge.name":"br+","com.docker.network.bridge.trusted_host_interfaces":"a:b","com.docker.network.driver.mtu":"1","com.docker.network.host_ipv4":"::"}}`,
		`{"Name":"n\nm","Driver":"macvlan","ConfigOnly":true,"ConfigFrom":{"Network":"x"}}`,
		`{"Name":"n","IPAM":{"Config":[{"Subnet":"0.0.0.0/0"},{"Subnet":"255.255.255.254/31"},{"Subnet":"ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127"}]}}`,
	} {
		f.Add([]byte(s))
	}
	m := &Manager{opts: &parsed{}}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r network.CreateRequest
		if json.Unmarshal(b, &r) != nil {
			return
		}
		rec, err := m.opts.newRecord(r)
		if err == nil && !validName.MatchString(rec.Name) {
			t.Errorf("the name %q is taken", rec.Name)
		}
		if r.IPAM == nil {
			return
		}
		for _, c := range r.IPAM.Config {
			if !c.Subnet.IsValid() {
				continue
			}
			s, err := parseSubnet(c)
			if err != nil {
				continue
			}
			if !s.Gateway.IsValid() {
				s.Gateway = ipam.Gateway(s.Prefix, netip.Prefix{})
			}
			if s.checkReserved() != nil {
				continue
			}
			n := object{record: &record{Name: "n", Subnets: []subnet{s}}}
			if err := n.makeAllocators(); err != nil {
				continue
			}
			seen := map[netip.Addr]bool{s.Gateway: true}
			for _, aux := range s.Aux {
				seen[aux] = true
			}
			for range 8 {
				a, err := n.allocators[0].Next()
				if err != nil {
					break
				}
				if seen[a] || !s.Prefix.Contains(a) || s.Range.IsValid() && !s.Range.Contains(a) {
					t.Errorf("%+v gives out %s", s, a)
				}
				seen[a] = true
			}
		}
	})
}

// FuzzEndpointSettings feeds arbitrary settings for a container's endpoint.
func FuzzEndpointSettings(f *testing.F) {
	for _, s := range []string{
		`{"Aliases":["a"],"MacAddress":"02:42:c0:00:02:01","IPAMConfig":{"IPv4Address":"10.1.0.9","LinkLocalIPs":["169.254.1.1"]}}`,
		`{"DriverOpts":{"com.docker.network.endpoint.ifname":"../../x","com.docker.network.endpoint.sysctls":"net.ipv4.conf.IFNAME.log_martians=1,net.ipv6..ifname.=\n"}}`,
		`{"IPAMConfig":{"IPv6Address":"fe80::1%\n"}}`,
	} {
		f.Add([]byte(s))
	}
	n := &object{record: &record{Name: "own", EnableIPv4: true, EnableIPv6: true, Subnets: []subnet{
		{Prefix: netip.MustParsePrefix("10.1.0.0/24"), Gateway: netip.MustParseAddr("10.1.0.1")},
		{Prefix: netip.MustParsePrefix("fd00::/64"), Gateway: netip.MustParseAddr("fd00::1")},
	}}}
	f.Fuzz(func(t *testing.T, b []byte) {
		var es network.EndpointSettings
		if json.Unmarshal(b, &es) != nil || validateRequested("own", &es) != nil || n.validate(&es) != nil {
			return
		}
		name := es.DriverOpts[optIfName]
		if name == "" {
			name = "eth0"
		}
		sysctls, err := sysctlsOf(&es)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sysctls {
			if path := filepath.Join("/proc/sys", strings.ReplaceAll(s[0], "IFNAME", name)); !strings.HasPrefix(path, "/proc/sys/net/") {
				t.Errorf("%q writes %s", es.DriverOpts, path)
			}
		}
		if c := es.IPAMConfig; c != nil {
			for _, a := range []netip.Addr{c.IPv4Address, c.IPv6Address} {
				if a.IsValid() && a.Zone() != "" {
					t.Errorf("the address %s is taken", a)
				}
			}
		}
	})
}
