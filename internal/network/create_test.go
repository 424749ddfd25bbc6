// SPDX-License-Identifier: Apache-2.0

package network

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
)

func TestWhatCannotBeCreatedIsRefusedByKind(t *testing.T) {
	m := withPredefined(t)
	yes, no := true, false
	for name, c := range map[string]struct {
		r    network.CreateRequest
		kind func(error) bool
		want string
	}{
		"no name":       {network.CreateRequest{}, errdefs.IsInvalidArgument, "name is empty"},
		"bad name":      {network.CreateRequest{Name: "a b"}, errdefs.IsInvalidArgument, "only [a-zA-Z0-9]"},
		"meaning":       {network.CreateRequest{Name: "default"}, errdefs.IsPermissionDenied, "predefined default network"},
		"predefined":    {network.CreateRequest{Name: "bridge"}, errdefs.IsPermissionDenied, "predefined bridge network"},
		"second host":   {network.CreateRequest{Name: "n", Driver: "host"}, errdefs.IsPermissionDenied, "only one instance"},
		"overlay":       {network.CreateRequest{Name: "n", Driver: "overlay"}, errdefs.IsNotImplemented, "swarm mode"},
		"swarm's scope": {network.CreateRequest{Name: "n", Scope: "swarm"}, errdefs.IsNotImplemented, "swarm mode"},
		"config only":   {network.CreateRequest{Name: "n", ConfigOnly: true, Internal: true}, errdefs.IsPermissionDenied, "network specific fields"},
		"no config":     {network.CreateRequest{Name: "n", ConfigFrom: &network.ConfigReference{Network: "x"}}, errdefs.IsNotFound, "does not exist"},
		"config twice":  {network.CreateRequest{Name: "n", ConfigFrom: &network.ConfigReference{Network: "x"}, Labels: map[string]string{"a": "b"}}, errdefs.IsPermissionDenied, "user specified"},
		"config chain":  {network.CreateRequest{Name: "n", ConfigOnly: true, ConfigFrom: &network.ConfigReference{Network: "x"}}, errdefs.IsPermissionDenied, "cannot depend"},
		"driver":        {network.CreateRequest{Name: "n", Driver: "weave"}, errdefs.IsNotFound, `plugin "weave" not found`},
		"scope":         {network.CreateRequest{Name: "n", Scope: "galaxy"}, errdefs.IsInvalidArgument, "invalid scope"},
		"IPAM driver":   {network.CreateRequest{Name: "n", IPAM: &network.IPAM{Driver: "x"}}, errdefs.IsNotFound, "IPAM driver"},
		"no family":     {network.CreateRequest{Name: "n", EnableIPv4: &no}, errdefs.IsInvalidArgument, "must be enabled"},
		"mtu":           {network.CreateRequest{Name: "n", Options: map[string]string{optMTU: "7"}}, errdefs.IsInvalidArgument, "68 to 65535"},
		"icc":           {network.CreateRequest{Name: "n", Options: map[string]string{optICC: "maybe"}}, errdefs.IsInvalidArgument, "true or false"},
		"host address":  {network.CreateRequest{Name: "n", EnableIPv4: &yes, Options: map[string]string{optBindIPv4: "::1"}}, errdefs.IsInvalidArgument, "an IPv4 address"},
		"announcements": {network.CreateRequest{Name: "n", Options: map[string]string{optAnnouncements: "4", optAnnounceEvery: "1s"}}, errdefs.IsInvalidArgument, "range 0 to 3\nvalue for option com.docker.network.advertise_addr_ms"},
		"prefix":        {network.CreateRequest{Name: "n", Options: map[string]string{optIfacePrefix: "much-too-long-a-name"}}, errdefs.IsInvalidArgument, "12 characters"},
	} {
		r, err := m.configured(c.r)
		if err == nil {
			_, err = m.opts.newRecord(r)
		}
		if err == nil || !c.kind(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestSubnetsThatMakeNoSenseAreRefused(t *testing.T) {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	ten := prefix("10.1.0.0/24")
	for want, c := range map[string]network.IPAMConfig{
		"no room":             {Subnet: prefix("10.1.0.0/32")},
		"should be":           {Subnet: prefix("10.1.0.9/24")},
		"multicast addresses": {Subnet: prefix("127.1.0.0/24")},
		"not part":            {Subnet: ten, IPRange: prefix("10.2.0.0/25")},
		"invalid ip-range":    {Subnet: ten, IPRange: prefix("10.1.0.0/16")},
		"invalid gateway":     {Subnet: ten, Gateway: addr("10.2.0.1")},
		"auxiliary address x": {Subnet: ten, AuxAddress: map[string]netip.Addr{"x": addr("10.2.0.1")}},
	} {
		if _, err := parseSubnet(c); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got %v, want %q", c, err, want)
		}
	}
	s, err := parseSubnet(network.IPAMConfig{Subnet: ten, IPRange: prefix("10.1.0.128/25"), Gateway: addr("10.1.0.9")})
	if err != nil || s.Prefix != ten || s.Range != prefix("10.1.0.128/25") || s.Gateway != addr("10.1.0.9") {
		t.Errorf("got %+v, %v", s, err)
	}
}

func TestSubnetsOfAFamilyThatIsSwitchedOffAreLeftOut(t *testing.T) {
	m := withPredefined(t)
	four, six := netip.MustParsePrefix("10.71.0.0/24"), netip.MustParsePrefix("fd71::/64")
	yes, no := true, false
	for name, c := range map[string]struct {
		r      network.CreateRequest
		option string // the daemon's com.docker.network.enable_ipv6
		want   []netip.Prefix
	}{
		"IPv6 is not asked for":                   {network.CreateRequest{}, "", []netip.Prefix{four}},
		"IPv6 is switched off":                    {network.CreateRequest{EnableIPv6: &no}, "true", []netip.Prefix{four}},
		"both":                                    {network.CreateRequest{EnableIPv6: &yes}, "", []netip.Prefix{four, six}},
		"IPv6 alone":                              {network.CreateRequest{EnableIPv4: &no, EnableIPv6: &yes}, "", []netip.Prefix{six}},
		"both by the daemon's default":            {network.CreateRequest{}, "true", []netip.Prefix{four, six}},
		"IPv6 alone by its own options":           {network.CreateRequest{Options: map[string]string{optEnableIPv4: "0", optEnableIPv6: "1"}}, "", []netip.Prefix{six}},
		"its own option goes before the daemon's": {network.CreateRequest{Options: map[string]string{optEnableIPv6: "false"}}, "true", []netip.Prefix{four}},
	} {
		m.opts.NetworkOpts = nil
		if c.option != "" {
			m.opts.NetworkOpts = map[string]map[string]string{"bridge": {optEnableIPv6: c.option}}
		}
		c.r.Name = "n"
		rec, err := m.opts.newRecord(c.r)
		if err == nil {
			err = m.inv.assignSubnets(rec, &network.IPAM{Config: []network.IPAMConfig{{Subnet: four}, {Subnet: six}}})
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got []netip.Prefix
		for _, s := range rec.Subnets {
			got = append(got, s.Prefix)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
	if _, err := m.opts.newRecord(network.CreateRequest{Name: "n", Options: map[string]string{optEnableIPv6: "maybe"}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("neither true nor false: %v", err)
	}
}

func TestReservedAddressesThatAreTakenAreRefused(t *testing.T) {
	m := withPredefined(t)
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	ten := prefix("10.72.0.0/24")
	aux := func(addrs ...string) map[string]netip.Addr {
		out := map[string]netip.Addr{}
		for i, a := range addrs {
			out[string(rune('a'+i))] = addr(a)
		}
		return out
	}
	for want, c := range map[string]network.IPAMConfig{
		"failed to allocate gateway (10.72.0.0): Address already in use":                  {Subnet: ten, Gateway: addr("10.72.0.0")},
		"failed to allocate gateway (10.72.0.255): Address already in use":                {Subnet: ten, Gateway: addr("10.72.0.255")},
		"failed to allocate secondary ip address (a:10.72.0.1): Address already in use":   {Subnet: ten, AuxAddress: aux("10.72.0.1")},
		"failed to allocate secondary ip address (a:10.72.0.9): Address already in use":   {Subnet: ten, Gateway: addr("10.72.0.9"), AuxAddress: aux("10.72.0.9")},
		"failed to allocate secondary ip address (b:10.72.0.9): Address already in use":   {Subnet: ten, AuxAddress: aux("10.72.0.9", "10.72.0.9")},
		"failed to allocate secondary ip address (a:10.72.0.255): Address already in use": {Subnet: ten, AuxAddress: aux("10.72.0.255")},
		"": {Subnet: prefix("10.72.0.0/31"), Gateway: addr("10.72.0.0")},
	} {
		rec, err := m.opts.newRecord(network.CreateRequest{Name: "n"})
		if err != nil {
			t.Fatal(err)
		}
		err = m.inv.assignSubnets(rec, &network.IPAM{Config: []network.IPAMConfig{c}})
		if want == "" && err != nil || want != "" && (!errdefs.IsInvalidArgument(err) || err.Error() != want) {
			t.Errorf("%+v: got %v, want %q", c, err, want)
		}
	}
}

func TestNetworkTakesTheDaemonsDefaultsWhenItIsCreated(t *testing.T) {
	m := withPredefined(t)
	m.opts.MTU = 1450
	m.opts.NetworkOpts = map[string]map[string]string{"bridge": {optICC: "false"}, "macvlan": {optMTU: "9000"}}
	rec, err := m.opts.newRecord(network.CreateRequest{Name: "n"})
	if err != nil {
		t.Fatal(err)
	}
	own, err := m.opts.newRecord(network.CreateRequest{Name: "o", Options: map[string]string{optICC: "true", optMTU: "1300"}})
	if err != nil {
		t.Fatal(err)
	}
	m.opts.MTU, m.opts.NetworkOpts = 1200, nil
	if got := m.opts.traits(rec); got.mtu != 1450 || got.icc || !got.masq {
		t.Errorf("of the daemon's: %+v", got)
	}
	if got := m.opts.traits(own); got.mtu != 1300 || !got.icc {
		t.Errorf("its own: %+v", got)
	}
	if got := m.opts.traits(&record{Name: "old"}); got.mtu != 1200 {
		t.Errorf("a record without an mtu: %+v", got)
	}
}

// withTwo returns a manager with the networks one and two, and a sandbox that is
// on one.
func withTwo(t *testing.T) (*Manager, Sandbox) {
	t.Helper()
	m := withPredefined(t)
	for i, name := range []string{"one", "two"} {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(i + 1), 0}), 24)
		n := &object{record: &record{
			Schema: recordSchema, ID: strings.Repeat(name, 20), Name: name, Driver: driverBridge, EnableIPv4: true,
			Subnets: []subnet{{Prefix: p, Gateway: p.Addr().Next(), Bridge: p.Addr().Next()}}, Bridge: &bridgeRecord{Name: "hfunit" + name},
		}}
		if err := n.makeAllocators(); err != nil {
			t.Fatal(err)
		}
		m.inv.networks[name] = n
	}
	s, _, err := m.Prepare(t.Context(), Request{ID: "0123456789abcdef", Name: "web", Mode: "one"})
	if err != nil {
		t.Fatal(err)
	}
	return m, s
}

func TestConnectingGivesAnotherEndpointAndDisconnectingTakesIt(t *testing.T) {
	m, s := withTwo(t)
	both, _, err := m.AddEndpoint(s, Request{}, "two", &network.EndpointSettings{GwPriority: 1})
	if err != nil || len(both.Endpoints) != 2 || both.Endpoints[1].Name != "eth1" || both.gateway(false) != 1 {
		t.Fatalf("got %+v, %v", both, err)
	}
	if len(s.Endpoints) != 1 {
		t.Error("the sandbox that was given has changed")
	}
	if _, _, err := m.AddEndpoint(both, Request{}, "two", nil); !errdefs.IsPermissionDenied(err) {
		t.Errorf("twice: %v", err)
	}
	for _, ref := range []string{"host", "none"} {
		if _, _, err := m.AddEndpoint(both, Request{}, ref, nil); !errdefs.IsPermissionDenied(err) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	left, err := m.RemoveEndpoint(both, "one")
	if err != nil || len(left.Endpoints) != 1 || left.Endpoints[0].Network != "two" {
		t.Errorf("got %+v, %v", left, err)
	}
	if _, err := m.RemoveEndpoint(left, "one"); !errdefs.IsPermissionDenied(err) {
		t.Errorf("twice: %v", err)
	}
	if _, err := m.RemoveEndpoint(left, "three"); !errdefs.IsNotFound(err) {
		t.Errorf("no such network: %v", err)
	}
}

func TestPublishedPortsFollowTheGateway(t *testing.T) {
	m, s := withTwo(t)
	s.Ports = []PortMapping{{Proto: "tcp", HostPort: 80, HostIP: netip.IPv4Unspecified(), ContainerPort: 80, Target: netip.AddrPortFrom(s.Endpoints[0].IPv4.Address.Addr(), 80)}}
	both, _, err := m.AddEndpoint(s, Request{}, "two", &network.EndpointSettings{})
	if err != nil {
		t.Fatal(err)
	}
	if both.Ports[0].Target != s.Ports[0].Target {
		t.Error("the port leads to a network of the same priority that came later")
	}
	left, err := m.RemoveEndpoint(both, "one")
	if err != nil {
		t.Fatal(err)
	}
	if back, _, err := m.AddEndpoint(left, Request{}, "one", &network.EndpointSettings{GwPriority: 1}); err != nil || back.Ports[0].Target.Addr() != back.Endpoints[1].IPv4.Address.Addr() {
		t.Errorf("with a network of a higher priority: %+v, %v", back.Ports, err)
	}
	if got, want := left.Ports[0].Target.Addr(), left.Endpoints[0].IPv4.Address.Addr(); got != want {
		t.Errorf("the port leads to %s, want %s", got, want)
	}
	if s.Ports[0].Target.Addr() != s.Endpoints[0].IPv4.Address.Addr() {
		t.Error("the sandbox that was given has changed")
	}
}

func TestSettingsThatAContainerCanNotHaveAreRefusedWhenTheyAreAsked(t *testing.T) {
	m, _ := withTwo(t)
	static := &network.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("10.77.1.9")}
	mac := func(b ...byte) *network.EndpointSettings {
		return &network.EndpointSettings{MacAddress: network.HardwareAddr(b)}
	}
	for name, c := range map[string]struct {
		ref  string
		es   *network.EndpointSettings
		want string
	}{
		"address on host":          {"host", &network.EndpointSettings{IPAMConfig: static}, "user-defined networks only"},
		"address on none":          {"none", &network.EndpointSettings{IPAMConfig: static}, "user-defined networks only"},
		"address on the default":   {"default", &network.EndpointSettings{IPAMConfig: static}, "user-defined networks only"},
		"alias on the default":     {"bridge", &network.EndpointSettings{Aliases: []string{"a"}}, "network-scoped alias"},
		"alias on host":            {"host", &network.EndpointSettings{Aliases: []string{"a"}}, "network-scoped alias"},
		"address of no subnet":     {"two", &network.EndpointSettings{IPAMConfig: static}, "no configured subnet contains"},
		"multicast MAC":            {"one", mac(1, 0, 0, 0, 0, 1), "invalid MAC address 01:00:00:00:00:01"},
		"no MAC":                   {"one", mac(0, 0, 0, 0, 0, 0), "invalid MAC address"},
		"MAC of eight bytes":       {"later", mac(2, 0, 0, 0, 0, 0, 0, 1), "invalid MAC address"},
		"sysctl of all interfaces": {"later", &network.EndpointSettings{DriverOpts: map[string]string{optSysctls: "net.ipv4.conf.all.forwarding=1"}}, "IFNAME"},
	} {
		if err := m.ValidateEndpoint(c.ref, c.es); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("create, %s: got %v, want %q", name, err, c.want)
		}
		if _, err := m.CheckConnect(c.ref, c.es); err == nil {
			t.Errorf("connect, %s: is allowed", name)
		}
	}
	for name, es := range map[string]*network.EndpointSettings{
		"nothing":                       nil,
		"a link-local address":          {IPAMConfig: &network.EndpointIPAMConfig{LinkLocalIPs: []netip.Addr{netip.MustParseAddr("169.254.9.9")}}},
		"a sysctl as Docker's CLI says": {DriverOpts: map[string]string{optSysctls: "net.ipv4.conf.ifname.log_martians=1"}},
		"all":                           {IPAMConfig: static, Aliases: []string{"a"}, MacAddress: network.HardwareAddr{2, 0, 0, 0, 0, 1}},
	} {
		if err := m.ValidateEndpoint("one", es); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Crashes in the middle of a write leave nothing beside the records: neither those of
// this release nor those of earlier ones.
func TestTemporaryFilesOfRecordsAreRemoved(t *testing.T) {
	root := t.TempDir()
	if err := save(root, &record{ID: "abc", Name: "red"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".network-123", ".abc.json.tmp", ".never.json.tmp"} {
		if err := os.WriteFile(filepath.Join(root, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeTemps(root); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(root)
	if err != nil || len(left) != 1 || left[0].Name() != "abc.json" {
		t.Errorf("left: %v, %v", left, err)
	}
}
