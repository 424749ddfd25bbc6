// SPDX-License-Identifier: Apache-2.0

package networks

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// neighbour is another machine, with routes through the host to the networks of
// the house.
type neighbour struct {
	*house
	pid  int
	addr string
}

// newNeighbour makes a neighbour. n must differ from that of other tests, so
// that their addresses differ.
func (h *house) newNeighbour(name string, n int, to ...string) *neighbour {
	h.Helper()
	m := &neighbour{house: h, addr: fmt.Sprintf("198.18.%d.2", n)}
	m.pid = h.machine(name+h.d.ID[3:], fmt.Sprintf("198.18.%d.1/24", n), m.addr+"/24")
	six := fmt.Sprintf("fd98:%d::", n)
	h.host("ip", "addr", "add", six+"1/64", "dev", name+h.d.ID[3:], "nodad")
	m.do("ip", "addr", "add", six+"2/64", "dev", "eth0", "nodad")
	for _, subnet := range to {
		via := fmt.Sprintf("198.18.%d.1", n)
		if strings.Contains(subnet, ":") {
			via = six + "1"
		}
		m.do("ip", "route", "add", subnet, "via", via)
	}
	return m
}

func (m *neighbour) do(args ...string) string {
	m.Helper()
	return m.host(append([]string{"nsenter", "-t", strconv.Itoa(m.pid), "-n", "--"}, args...)...)
}

func (m *neighbour) connects(addr string, port int) {
	m.Helper()
	if err := inNamespace(m.pid, func() error { return connect(addr, port, 5*time.Second) }); err != nil {
		m.Errorf("another machine does not reach %s port %d: %v", addr, port, err)
	}
}

func (m *neighbour) isKeptOut(addr string, port int) {
	m.Helper()
	if err := inNamespace(m.pid, func() error { return connect(addr, port, 400*time.Millisecond) }); err == nil {
		m.Errorf("another machine reaches %s port %d", addr, port)
	}
}

// sees returns the address that the machine sees a container at.
func (m *neighbour) sees(from string) string {
	m.Helper()
	said := m.in(from, "sh", "-c", "nc "+m.addr+" 80 </dev/null")
	addr, _, _ := strings.Cut(said, ":")
	return addr
}

func TestRoutedNetworkIsReachedAtItsContainersAddresses(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	four, six := h.net+".5.0/24", "fd05:"+strings.TrimPrefix(h.net, "10.")+"::/64"
	h.d.Docker("network", "create", "--subnet", four, "--ipv6", "--subnet", six,
		"-o", "com.docker.network.bridge.gateway_mode_ipv4=routed", "-o", "com.docker.network.bridge.gateway_mode_ipv6=routed", "r")
	h.d.Docker("network", "create", "other")
	h.serve("ada", "--network", "r", "-p", "80", "-p", "18581:80")
	h.serve("bob", "--network", "r")
	h.serve("cyd", "--network", "other")
	a4, a6, b4 := h.address("ada", "r"), h.address6("ada", "r"), h.address("bob", "r")
	m := h.newNeighbour("rt", 5, four, six)
	h.equal("the host's ports", h.inspect("ada", `{{range index .NetworkSettings.Ports "80/tcp"}}[{{.HostPort}}]{{end}}`), "[][][][]")
	h.equal("ps", h.d.Docker("ps", "--filter", "name=ada", "--format", "{{.Ports}}"), "80/tcp")
	h.always(func() {
		m.connects(a4, 80)
		m.connects(a6, 80)
		m.isKeptOut(b4, 80)
		m.isKeptOut("198.18.5.1", 18581)
		m.do("busybox", "ping", "-c", "1", "-W", "5", b4)
		h.reaches("cyd", a4, "ada") // also from another network
		h.isolated("cyd", b4)
		h.reaches("bob", a4, "ada")
		h.equal("its own address outside", m.sees("ada"), a4)
	})
	// The published ports of a container are closed with it, also without a
	// daemon.
	h.d.Kill9()
	h.host("kill", "-9", strconv.Itoa(h.pids["ada"]))
	for late := time.Now().Add(10 * time.Second); ; {
		rules := h.rules()
		if !strings.Contains(rules, a4+" . tcp") && !strings.Contains(rules, a6+" . tcp") {
			break
		}
		if time.Now().After(late) {
			t.Fatal("the ports of a removed container can be reached:\n" + rules)
		}
	}
	h.d.Start()
}

func TestUnprotectedNetworkIsOpenToOtherMachines(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	four := h.net + ".6.0/24"
	h.d.Docker("network", "create", "--subnet", four, "-o", "com.docker.network.bridge.gateway_mode_ipv4=nat-unprotected", "open")
	h.d.Docker("network", "create", "other")
	h.serve("ada", "--network", "open", "-p", "18681:80")
	h.serve("bob", "--network", "open")
	h.serve("cyd", "--network", "other")
	b4 := h.address("bob", "open")
	m := h.newNeighbour("op", 6, four)
	h.always(func() {
		m.connects(b4, 80)
		m.connects("198.18.6.1", 18681)
		h.reaches("cyd", b4, "bob") // as in Docker
		h.equal("the host's address outside", m.sees("bob"), "198.18.6.1")
	})
}

func TestTrustedInterfacesReachPublishedPortsDirectly(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	four := h.net + ".7.0/24"
	trusted, other := h.newNeighbour("tr", 27, four), h.newNeighbour("un", 37, four)
	h.d.Docker("network", "create", "--subnet", four, "-o", "com.docker.network.bridge.trusted_host_interfaces=none0:tr"+h.d.ID[3:], "n")
	h.serve("ada", "--network", "n", "-p", "127.0.0.1:18781:80", "-p", "127.0.0.1:18782:80")
	h.serve("bob", "--network", "n")
	a4, b4 := h.address("ada", "n"), h.address("bob", "n")
	h.always(func() {
		trusted.connects(a4, 80)
		trusted.isKeptOut(b4, 80)
		trusted.isKeptOut("198.18.27.1", 18781)
		other.isKeptOut(a4, 80)
	})
}

func TestDirectRoutingCanBeAllowedAndTakenBack(t *testing.T) {
	t.Parallel()
	h := newHouse(t, map[string]any{"allow-direct-routing": true})
	four := h.net + ".8.0/24"
	m := h.newNeighbour("dr", 28, four)
	h.d.Docker("network", "create", "--subnet", four, "n")
	h.d.Docker("network", "create", "other")
	h.serve("ada", "--network", "n", "-p", "127.0.0.1:18881:80")
	h.serve("bob", "--network", "n")
	h.serve("cyd", "--network", "other")
	a4, b4 := h.address("ada", "n"), h.address("bob", "n")
	h.always(func() {
		m.connects(a4, 80)
		m.isKeptOut(b4, 80)
		h.isolated("cyd", a4)
	})
	h.d.WriteConfig(map[string]any{"live-restore": true})
	h.d.Restart()
	m.isKeptOut(a4, 80)
}

func TestBridgeMayBeLeftWithoutAnAddress(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "--subnet", h.net+".9.0/24", "-o", "com.docker.network.bridge.name=bare9",
		"-o", "com.docker.network.bridge.inhibit_ipv4=true", "n")
	h.serve("ada", "--network", "n")
	h.serve("bob", "--network", "n")
	h.always(func() {
		h.reaches("bob", "ada", "ada")
		h.has("route", h.in("ada", "ip", "route"), "default via "+h.net+".9.1")
		if addrs := h.host("ip", "-4", "addr", "show", "bare9"); strings.Contains(addrs, "inet ") {
			t.Errorf("the bridge has an address: %s", addrs)
		}
	})
}

func TestGatewayOptionsThatMeanNothingAreRefused(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	for option, word := range map[string]string{
		"com.docker.network.bridge.gateway_mode_ipv4=bridged":        "want nat, nat-unprotected, routed or isolated",
		"com.docker.network.bridge.gateway_mode_ipv6=isolated":       "can only be used for an internal network",
		"com.docker.network.bridge.inhibit_ipv4=perhaps":             "want true or false",
		"com.docker.network.bridge.trusted_host_interfaces=a:":       "names of interfaces",
		"com.docker.network.host_ipv4=fd00::1":                       "want an IPv4 address of the host",
		"com.docker.network.host_ipv6=192.0.2.1":                     "want an IPv6 address of the host",
		"com.docker.network.bridge.trusted_host_interfaces=a b\"; x": "names of interfaces",
	} {
		h.refused(word, "network", "create", "-o", option, "n")
	}
}
