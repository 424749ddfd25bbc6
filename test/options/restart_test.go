// SPDX-License-Identifier: Apache-2.0

package options

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"holdfast/test/kit"
)

// second is another subnet for the daemon, as an address with its prefix
// length.
func second(d *kit.Daemon) netip.Prefix {
	a := d.Address.Addr().As4()
	a[1] ^= 1
	return netip.PrefixFrom(netip.AddrFrom4(a), 24)
}

// reaches connects to one container's web server from another container. within
// is the time that a busy machine may need to answer. A connection whose
// packets are dropped takes all of it.
func reaches(h *house, from, to string, within time.Duration) bool {
	h.Helper()
	seconds := strconv.Itoa(int(within / time.Second))
	return h.d.TryDocker("exec", from, "nc", "-w", seconds, h.address(to).String(), "80").Code == 0
}

// removeBridge removes a bridge that a test has named, and the nftables table
// of that name.
func removeBridge(t *testing.T, name string) {
	if l, err := netlink.LinkByName(name); err == nil {
		if err := netlink.LinkDel(l); err != nil {
			t.Error(err)
		}
	}
	c, err := nftables.New()
	if err != nil {
		t.Error(err)
		return
	}
	table := c.AddTable(&nftables.Table{Name: "holdfast-" + name, Family: nftables.TableFamilyINet})
	c.DelTable(table)
	if err := c.Flush(); err != nil {
		t.Error(err)
	}
}

func TestRestartWithOtherNetworkOptionsHoldsForNewContainersOnly(t *testing.T) {
	t.Parallel()
	var otherBridge string
	t.Cleanup(func() { removeBridge(t, otherBridge) })
	h := newHouse(t, nil)
	otherBridge = "hg" + h.d.Bridge[2:]
	subnet := second(h.d)
	upper := netip.PrefixFrom(h.d.Address.Masked().Addr(), 24).Masked()
	a := upper.Addr().As4()
	a[3] = 128
	half := netip.PrefixFrom(netip.AddrFrom4(a), 25)
	a[3] = 99
	gateway := netip.AddrFrom4(a)
	both := func(h *house) {
		h.Helper()
		if !reaches(h, "old", "new", 30*time.Second) || !reaches(h, "new", "old", 30*time.Second) {
			h.Error("the old and the new container don't reach each other")
		}
	}
	// Keys that can't be combined with another change are left out of the last
	// step, in which all are changed together.
	walk(h, []change{
		{key: "bip", set: map[string]any{"bip": subnet.String()}, check: all(both, func(h *house) {
			if got := h.address("new"); !subnet.Masked().Contains(got) {
				h.Errorf("the new container's address is %s, which is not in %s", got, subnet)
			}
			h.in("old", "ping", "-c", "1", "-W", "1", h.d.Address.Addr().String()) // its gateway
		})},
		{key: "fixed-cidr", alone: true, set: map[string]any{"fixed-cidr": half.String()}, check: all(both, func(h *house) {
			if got := h.address("new"); !half.Contains(got) {
				h.Errorf("the new container's address is %s, which is not in %s", got, half)
			}
		})},
		{key: "default-gateway", alone: true, set: map[string]any{"default-gateway": gateway.String()}, check: func(h *house) {
			if got := h.in("new", "ip", "route"); !strings.Contains(got, "default via "+gateway.String()) {
				h.Errorf("the new container's routes: %s", got)
			}
			if got := h.in("old", "ip", "route"); !strings.Contains(got, "default via "+h.d.Address.Addr().String()) {
				h.Errorf("the old container's routes: %s", got)
			}
		}},
		{key: "mtu", set: map[string]any{"mtu": 1400}, check: all(both, ran("1500", "1400", "cat", "/sys/class/net/eth0/mtu"))},
		{key: "ip", set: map[string]any{"ip": "127.0.0.1"}, run: []string{"-p", "81"}, check: func(h *house) {
			h.want("host address", h.inspect("new", `{{(index (index .NetworkSettings.Ports "81/tcp") 0).HostIp}}`), "127.0.0.1")
		}},
		{key: "ipv6", set: map[string]any{"ipv6": true, "fixed-cidr-v6": "fd00:7e57::/64"}, check: all(both, inspected("{{range .NetworkSettings.Networks}}{{.GlobalIPv6PrefixLen}}{{end}}", "0", "64"))},
		{key: "userland-proxy", alone: true, set: map[string]any{"userland-proxy": false}, check: both},
		{key: "iptables", set: map[string]any{"iptables": false}},
		{key: "ip6tables", set: map[string]any{"ip6tables": false}, check: both},
		{key: "ip-masq", set: map[string]any{"ip-masq": false}, check: both},
		{key: "icc", set: map[string]any{"icc": false}, check: func(h *house) {
			both(h) // the old container can communicate with all others
			h.d.Docker(append([]string{"run", "-d", "--name", "newer", "-p", "127.0.0.1::80", image}, writer...)...)
			h.answers("newer")
			if reaches(h, "new", "newer", 2*time.Second) || reaches(h, "newer", "new", 2*time.Second) {
				h.Error("two new containers reach each other")
			}
			h.d.Docker("rm", "-f", "newer")
		}},
		{key: "default-address-pools", set: map[string]any{"default-address-pools": []map[string]any{{"base": "10.250.0.0/16", "size": 24}}}, check: both},
		{key: "default-network-opts", set: map[string]any{"default-network-opts": map[string]any{"bridge": map[string]string{"com.docker.network.driver.mtu": "1400"}}}, check: both},
		{key: "ip-forward", set: map[string]any{"ip-forward": false}, check: both},
		{key: "bridge", set: map[string]any{"bridge": otherBridge, "bip": subnet.String()}, check: func(h *house) {
			if got := h.address("new"); !subnet.Masked().Contains(got) {
				h.Errorf("the new container's address is %s, which is not in %s", got, subnet)
			}
		}},
	}, func(h *house) {
		if got := h.address("old"); !subnet.Masked().Contains(got) {
			h.Errorf("a restarted container must join the network in its current form: its address is %s, which is not in %s", got, subnet)
		}
	})
}

func TestRestartWithOtherDaemonOptionsIsNotNoticed(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	d := h.d
	d.Docker("exec", "old", "sh", "-c", "echo kept >/file")
	kept := func(h *house) {
		h.Helper()
		h.want("a file of the old container", h.in("old", "cat", "/file"), "kept")
	}
	old := h.inspect("old", "{{.GraphDriver.Name}}")
	socket := d.Root + "/second.sock"
	walk(h, []change{
		{key: "storage-driver", set: map[string]any{"storage-driver": "native"}, check: all(kept, info("{{.Driver}}", "native"), func(h *house) {
			h.in("new", "sh", "-c", "echo new >/file")
			h.want("driver of the old container", h.inspect("old", "{{.GraphDriver.Name}}"), old)
			h.want("driver of the new container", h.inspect("new", "{{.GraphDriver.Name}}"), "native")
		})},
		{key: "hosts", set: map[string]any{"hosts": []string{"unix://" + d.Socket, "unix://" + socket}}, check: func(h *house) {
			c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			}}}
			resp, err := c.Get("http://holdfast/_ping")
			if err != nil {
				h.Fatal(err)
			}
			resp.Body.Close()
		}},
		{key: "pidfile", set: map[string]any{"pidfile": d.Root + "/other.pid"}, check: func(h *house) {
			if _, err := os.Stat(d.Root + "/other.pid"); err != nil {
				h.Error(err)
			}
		}},
		{key: "log-format", set: map[string]any{"log-format": "json"}, check: func(h *house) {
			if !strings.Contains(h.d.Log(), `"level":"info"`) {
				h.Error("the daemon's log is not JSON")
			}
		}},
		{key: "experimental", set: map[string]any{"experimental": true}, check: info("{{.ExperimentalBuild}}", "true")},
		{key: "min-api-version", set: map[string]any{"min-api-version": "1.40"}, check: func(h *house) {
			resp, err := h.d.HTTP().Get("http://holdfast/v1.30/info")
			if err != nil {
				h.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusBadRequest {
				h.Errorf("version 1.30 is answered %s", resp.Status)
			}
		}},
		{key: "features", set: map[string]any{"features": map[string]bool{"containerd-snapshotter": true}}},
		{key: "oom-score-adjust", set: map[string]any{"oom-score-adjust": 100}},
		{key: "group", set: map[string]any{"group": "65534"}},
		{key: "raw-logs", set: map[string]any{"raw-logs": true}},
		{key: "http-proxy", alone: true, set: map[string]any{"proxies": map[string]string{"http-proxy": "http://proxy.example:3128"}}, check: info("{{.HTTPProxy}}", "http://proxy.example:3128")},
		{key: "https-proxy", alone: true, set: map[string]any{"proxies": map[string]string{"https-proxy": "http://proxy.example:3128"}}},
		{key: "no-proxy", set: map[string]any{"proxies": map[string]string{"no-proxy": "example.org"}}, check: info("{{.NoProxy}}", "example.org")},
	}, kept)
}
