// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// udpPorts are the UDP ports that are open in a namespace, in hexadecimal digits as the
// kernel shows them.
func udpPorts(t *testing.T, ns kit.Netns) map[string]bool {
	t.Helper()
	open := map[string]bool{}
	if err := ns.Run(func() error {
		for _, table := range []string{"udp", "udp6"} {
			text, err := os.ReadFile("/proc/thread-self/net/" + table)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(text)) {
				if fields := strings.Fields(line); len(fields) > 1 {
					_, port, _ := strings.Cut(fields[1], ":")
					open[port] = true
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return open
}

// addressesIn returns the first address of each running task of the services, by the
// subnet that has it. A subnet without a task is not in the map.
func (n *node) addressesIn(services []string, subnets ...string) map[string][]string {
	found := map[string][]string{}
	for _, service := range services {
		for _, task := range n.running(service) {
			addr := task.NetworksAttachments[0].Addresses[0].Addr()
			for _, subnet := range subnets {
				if netip.MustParsePrefix(subnet).Contains(addr) {
					found[subnet] = append(found[subnet], addr.String())
				}
			}
		}
	}
	return found
}

// TestOptionsOfOverlayNetworksHoldBetweenHosts has a task of each service on each host.
func TestOptionsOfOverlayNetworksHoldBetweenHosts(t *testing.T) {
	t.Parallel()
	h := wired(t, 2)
	m := prepare(t, kit.Options{LiveRestore: true, Netns: h.all[0]})
	m.Docker("swarm", "init", "--advertise-addr", address(0), "--data-path-port", "5789")
	w := h.worker(1, m)
	nodes := []*node{m, w}

	// The first subnet has six addresses: one is the gateway's, one the service's.
	m.Docker("network", "create", "-d", "overlay", "--subnet", "10.97.0.0/29", "--subnet", "10.98.0.0/24", "--opt", "com.docker.network.driver.mtu=1300", "wide")
	m.Docker("network", "create", "-d", "overlay", "--internal", "inner")
	serve := "mkdir -p /www; cat /etc/hostname > /www/index.html; dd if=/dev/zero of=/www/large bs=1k count=300 2>/dev/null; exec httpd -f -p 80 -h /www"
	m.Docker("service", "create", "-d", "--name", "few", "--mode", "global", "--network", "wide", "--hostname", "few-{{.Node.ID}}", image, "sh", "-c", serve)
	m.await("few", 2)
	m.Docker("service", "create", "-d", "--name", "more", "--mode", "global", "--network", "wide", "--hostname", "more-{{.Node.ID}}", image, "sh", "-c", serve)
	m.Docker("service", "create", "-d", "--name", "shut", "--mode", "global", "--network", "inner", "--hostname", "shut-{{.Node.ID}}", image, "sh", "-c", serve)
	m.await("more", 2)
	m.await("shut", 2)

	subnets := m.addressesIn([]string{"few", "more"}, "10.97.0.0/29", "10.98.0.0/24")
	// The allocator takes an address of either subnet, at random.
	for range 20 {
		if len(subnets) == 2 {
			break
		}
		m.Docker("service", "update", "--force", "--update-monitor", "1s", "more")
		subnets = m.addressesIn([]string{"few", "more"}, "10.97.0.0/29", "10.98.0.0/24")
	}
	if len(subnets) != 2 {
		t.Fatalf("one of the two subnets is never used: %v", subnets)
	}
	for i, n := range nodes {
		for _, service := range []string{"few", "more"} {
			c := n.container(service)
			for _, addrs := range subnets {
				for _, addr := range addrs {
					kit.Eventually(t, fmt.Sprintf("%s of host %d reaches %s", service, i, addr), func() bool { return strings.Contains(n.get(c, "http://"+addr+"/"), "-") })
					if r := n.TryDocker("exec", c, "sh", "-c", "timeout 5 wget -qO- http://"+addr+"/large | wc -c"); strings.TrimSpace(r.Stdout) != "307200" {
						t.Errorf("%s of host %d receives %s of 307200 bytes from %s: %s", service, i, strings.TrimSpace(r.Stdout), addr, r.Stderr)
					}
				}
			}
			for _, name := range []string{"few", "more"} {
				kit.Eventually(t, fmt.Sprintf("%s of host %d meets both tasks of %s", service, i, name), func() bool { return n.allAnswer(c, "http://"+name+"/", 2) })
			}
			if got := n.Docker("exec", c, "cat", "/sys/class/net/eth0/mtu"); got != "1300" {
				t.Errorf("the MTU of %s on host %d is %s", service, i, got)
			}
			// A program that may leave its network reaches the other host.
			if r := n.TryDocker("exec", c, "sh", "-c", "nc -w 3 "+address(0)+" 2377 </dev/null"); r.Code != 0 {
				t.Errorf("%s of host %d does not reach a host: %s", service, i, r.Stderr)
			}
		}
		shut := n.container("shut")
		kit.Eventually(t, "the tasks of an internal network reach each other", func() bool { return n.allAnswer(shut, "http://shut/", 2) })
		if r := n.TryDocker("exec", shut, "sh", "-c", "nc -w 3 "+address(0)+" 2377 </dev/null"); r.Code == 0 {
			t.Errorf("a task of an internal network on host %d reaches a host", i)
		}
		if got := n.Docker("exec", shut, "ip", "route"); strings.Contains(got, "default") || strings.Contains(got, "docker_gwbridge") {
			t.Errorf("routes of a task of an internal network: %s", got)
		}
		if open := udpPorts(t, h.all[i]); !open["169D"] || open["12B5"] { // 5789, 4789
			t.Errorf("the open UDP ports of host %d are %v", i, open)
		}
	}
}
