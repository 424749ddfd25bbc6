// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"

	"holdfast/internal/filter"
	"holdfast/internal/network/swarmlb"
)

func TestOptionsThatMakeNoSenseAreRefusedByName(t *testing.T) {
	for want, o := range map[string]Options{
		"bip":                 {BIP: "172.17.0.1"},
		"bridge needs one":    {BIP: "172.17.0.0/16"},
		"bip6":                {BIP6: "10.0.0.1/8"},
		"fixed-cidr \"":       {FixedCIDR: "x"},
		"fixed-cidr-v6":       {FixedCIDRv6: "10.0.0.0/8"},
		"default-gateway \"":  {DefaultGateway: "fd00::1"},
		"mtu":                 {MTU: 12},
		"bridge name":         {BridgeName: "a-name-that-is-too-long"},
		"default-gateway-v6 ": {DefaultGatewayV6: "10.0.0.1"},
	} {
		_, err := Open(context.Background(), o)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got %v, want %q", o, err, want)
		}
	}
}

func TestTableFollowsTheBridge(t *testing.T) {
	for o, want := range map[*Options]string{
		{}:                            "holdfast",
		{BridgeName: "br7"}:           "holdfast-br7",
		{BridgeName: "x", Table: "y"}: "y",
	} {
		p, err := o.parse()
		if err != nil || p.Table != want {
			t.Errorf("got %q, %v; want %q", p.Table, err, want)
		}
	}
}

func TestOpenRefusesRecordsOfANewerRelease(t *testing.T) {
	for name, content := range map[string]string{
		"newer":           `{"schema": 99, "id": "a", "name": "bridge"}`,
		"newer and other": `{"schema": 99, "id": ["a"]}`,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "a.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(context.Background(), Options{Root: dir}); err == nil || !strings.Contains(err.Error(), "a.json") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestRecordsSurviveOnDisk(t *testing.T) {
	dir := t.TempDir()
	r := &record{
		Schema: recordSchema, ID: "abc", Name: "bridge", Driver: driverBridge, EnableIPv4: true,
		Subnets: []subnet{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Gateway: netip.MustParseAddr("10.0.0.1"), Bridge: netip.MustParseAddr("10.0.0.1")}},
		Bridge:  &bridgeRecord{Name: "br0", Made: true},
	}
	for range 2 {
		if err := save(dir, r); err != nil {
			t.Fatal(err)
		}
	}
	got, err := load(dir)
	if err != nil || len(got.records) != 1 || !reflect.DeepEqual(got.records["bridge"], r) {
		t.Fatalf("got %+v, %v", got, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("files: %v, %v", entries, err)
	}
}

func TestPortsOverlapByAddress(t *testing.T) {
	addr := netip.MustParseAddr
	for name, c := range map[string]struct {
		have, want string
		overlap    bool
	}{
		"same":            {"10.0.0.1", "10.0.0.1", true},
		"other address":   {"10.0.0.1", "10.0.0.2", false},
		"all, then one":   {"0.0.0.0", "10.0.0.2", true},
		"one, then all":   {"10.0.0.2", "0.0.0.0", true},
		"other family":    {"0.0.0.0", "::", false},
		"all of IPv6":     {"::", "fd00::1", true},
		"one of each":     {"127.0.0.1", "::1", false},
		"all of IPv4, ::": {"::", "0.0.0.0", false},
	} {
		r := newHostPorts(1, 2)
		m := PortMapping{Proto: "tcp", HostIP: addr(c.have), HostPort: 80}
		r.take(m, "a")
		if _, got := r.owner("tcp", addr(c.want), 80); got != c.overlap {
			t.Errorf("%s: got %v", name, got)
		}
		if _, got := r.owner("udp", addr(c.want), 80); got {
			t.Errorf("%s: another protocol overlaps", name)
		}
		r.drop([]PortMapping{m}, "b")
		if len(r.owners) == 0 {
			t.Errorf("%s: another container gave it back", name)
		}
		r.drop([]PortMapping{m}, "a")
		if len(r.owners) != 0 {
			t.Errorf("%s: not given back", name)
		}
	}
}

// The routing mesh of a swarm has no container, and no socket while the process of the
// swarm is dead.
func TestPortOfTheRoutingMeshIsTaken(t *testing.T) {
	r := newHostPorts(1, 2)
	r.mesh = func() []swarmlb.IngressPort { return []swarmlb.IngressPort{{Proto: "tcp", Port: 80}} }
	for name, c := range map[string]struct {
		proto, ip string
		port      uint16
		taken     bool
	}{
		"all addresses":    {"tcp", "0.0.0.0", 80, true},
		"one address":      {"tcp", "127.0.0.1", 80, true},
		"IPv6":             {"tcp", "::1", 80, false},
		"another protocol": {"udp", "127.0.0.1", 80, false},
		"another port":     {"tcp", "127.0.0.1", 0, false},
	} {
		files, err := r.reserve([]PortMapping{{Proto: c.proto, HostIP: netip.MustParseAddr(c.ip), HostPort: c.port}}, "a", false)
		closeAll(files)
		var inUse errInUse
		if taken := errors.As(err, &inUse) && strings.Contains(err.Error(), "a service of the swarm publishes it"); taken != c.taken {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestChosenPortsGoUpAndWrap(t *testing.T) {
	r := newHostPorts(100, 102)
	for _, want := range []uint16{100, 101, 102, 100} {
		if got := r.next(); got != want {
			t.Errorf("got %d, want %d", got, want)
		}
	}
}

// withPredefined returns a manager with the networks that Restore would define on
// a host without any. Nothing is created in the kernel.
func withPredefined(t *testing.T) *Manager {
	t.Helper()
	m, err := Open(context.Background(), Options{Root: t.TempDir(), BridgeName: "hfunit0", BIP: "10.77.0.1/30", ICC: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.definePredefined(ownership{}); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestListKnowsDockersFilters(t *testing.T) {
	m := withPredefined(t)
	for name, c := range map[string]struct {
		args filter.Args
		want string
	}{
		"all":      {nil, "bridge host none"},
		"driver":   {filter.Args{"driver": {"null"}}, "none"},
		"name":     {filter.Args{"name": {"o"}}, "host none"},
		"builtin":  {filter.Args{"type": {"builtin"}}, "bridge host none"},
		"custom":   {filter.Args{"type": {"custom"}}, ""},
		"dangling": {filter.Args{"dangling": {"true"}}, ""},
		"scope":    {filter.Args{"scope": {"swarm"}}, ""},
		"label":    {filter.Args{"label": {"a=b"}}, ""},
	} {
		got, err := m.List(c.args)
		var names []string
		for _, n := range got {
			names = append(names, n.Name)
		}
		if err != nil || strings.Join(names, " ") != c.want {
			t.Errorf("%s: got %v, %v", name, names, err)
		}
	}
	for _, args := range []filter.Args{{"nonsense": {"1"}}, {"type": {"odd"}}, {"dangling": {"maybe"}}} {
		if _, err := m.List(args); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: got %v", args, err)
		}
	}
}

func TestPredefinedNetworksAnswerAsDockersDo(t *testing.T) {
	m := withPredefined(t)
	ctx := context.Background()
	if _, err := m.Remove(ctx, "bridge"); !errdefs.IsPermissionDenied(err) || err.Error() != "bridge is a pre-defined network and cannot be removed" {
		t.Errorf("remove: %v", err)
	}
	if _, err := m.Remove(ctx, "other"); !errdefs.IsNotFound(err) || err.Error() != "network other not found" {
		t.Errorf("remove: %v", err)
	}
	if _, err := m.Create(ctx, network.CreateRequest{Name: "host"}); !errdefs.IsPermissionDenied(err) {
		t.Errorf("create: %v", err)
	}
	in, err := m.Inspect("bridge", nil)
	if err != nil || in.IPAM.Config[0].Gateway.String() != "10.77.0.1" || in.Options["com.docker.network.bridge.name"] != "hfunit0" {
		t.Errorf("inspect: %+v, %v", in, err)
	}
	if byID, err := m.Inspect(in.ID[:8], nil); err != nil || byID.Name != "bridge" {
		t.Errorf("inspect by id: %+v, %v", byID, err)
	}
}

func TestExhaustedNetworkSaysSoInDockersWords(t *testing.T) {
	m := withPredefined(t) // a /30: one address beside the bridge's
	ctx := context.Background()
	first, _, err := m.Prepare(ctx, Request{ID: "a", Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = m.Prepare(ctx, Request{ID: "b", Name: "b"})
	if !errdefs.IsResourceExhausted(err) || !strings.HasPrefix(err.Error(), "no available IPv4 addresses on this network's address pools: bridge (") {
		t.Errorf("got %v", err)
	}
	if err := m.Release(ctx, first); err != nil {
		t.Fatal(err)
	}
	again, _, err := m.Prepare(ctx, Request{ID: "b", Name: "b"})
	if err != nil || again.Endpoints[0].IPv4.Address != first.Endpoints[0].IPv4.Address {
		t.Errorf("got %+v, %v", again.Endpoints, err)
	}
	es := m.Settings(again).Networks["bridge"]
	if es.Gateway.String() != "10.77.0.1" || es.IPPrefixLen != 30 || es.MacAddress.String() != "02:42:0a:4d:00:02" {
		t.Errorf("settings: %+v", es)
	}
}
