// SPDX-License-Identifier: Apache-2.0

package networks

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/test/kit"
)

func TestContainerIsConnectedAndDisconnectedWhileItRuns(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "one")
	h.d.Docker("network", "create", "two")
	h.serve("ada", "--network", "one")
	h.serve("bob", "--network", "two")
	pid := h.inspect("ada", "{{.State.Pid}}")
	b := h.address("bob", "two")
	h.isolated("ada", b)
	h.unknown("ada", "bob")

	h.d.Docker("network", "connect", "--alias", "again", "two", "ada")
	a := h.address("ada", "two")
	h.always(func() {
		h.reaches("ada", b, "bob")
		h.reaches("ada", "bob", "bob")
		h.reaches("bob", "again", "ada")
		h.has("hosts file", h.in("ada", "cat", "/etc/hosts"), a+"\tada")
		h.has("interfaces", h.in("ada", "ip", "addr"), "eth0", "eth1", a)
	})

	h.d.Docker("network", "disconnect", "two", "ada")
	h.always(func() {
		h.isolated("ada", b)
		h.unknown("ada", "bob")
		h.unknown("bob", "again")
		if hosts := h.in("ada", "cat", "/etc/hosts"); strings.Contains(hosts, a) {
			t.Errorf("hosts file: %s", hosts)
		}
		if addrs := h.in("ada", "ip", "addr"); strings.Contains(addrs, "eth1") {
			t.Errorf("interfaces: %s", addrs)
		}
	})
	h.equal("process", h.inspect("ada", "{{.State.Pid}}"), pid)
	h.d.Docker("network", "rm", "-f", "nothing-of-the-kind")
}

func TestContainerWithoutAnyNetworkGetsOne(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "one")
	h.serve("bob", "--network", "one")
	h.serve("ada", "--network", "one")
	h.d.Docker("network", "disconnect", "one", "ada")
	h.always(func() {
		if addrs := h.in("ada", "ip", "addr"); strings.Contains(addrs, "eth") {
			t.Errorf("interfaces: %s", addrs)
		}
	})
	h.d.Docker("network", "connect", "one", "ada")
	h.always(func() {
		h.reaches("ada", "bob", "bob")
		h.reaches("bob", "ada", "ada")
	})
}

func TestDefaultRouteAndPublishedPortFollowTheGatewayPriority(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	for i, n := range []string{"low", "high", "mid"} {
		h.d.Docker("network", "create", "--subnet", fmt.Sprintf("%s.%d.0/24", h.net, i), n)
	}
	pid := h.machine("gwp"+h.d.ID[3:], "198.18.3.1/24", "198.18.3.2/24")
	via := func(want int) {
		t.Helper()
		h.has("route", h.in("ada", "ip", "route"), fmt.Sprintf("default via %s.%d.1 ", h.net, want))
		if got := fetchHost("http://127.0.0.1:18081/"); got != "ada" {
			t.Errorf("published port: %q", got)
		}
		// And from another machine, on a host with reverse path filtering.
		if err := inNamespace(pid, func() error { return connect("198.18.3.1", 18081, 2*time.Second) }); err != nil {
			t.Errorf("published port from another machine: %v", err)
		}
		h.has("rules", h.rules(), fmt.Sprintf("tcp . 18081 comment \"%s", h.ids["ada"][:12]), fmt.Sprintf(" : %s.%d.", h.net, want))
	}
	h.serve("ada", "--network", "low", "-p", "18081:80")
	h.reaches("ada", "127.0.0.1", "ada")
	h.always(func() { via(0) })
	h.d.Docker("network", "connect", "--gw-priority", "10", "high", "ada")
	h.always(func() { via(1) })
	h.d.Docker("network", "connect", "--gw-priority", "5", "mid", "ada")
	h.always(func() { via(1) })
	h.d.Docker("network", "disconnect", "high", "ada")
	h.always(func() { via(2) })
	h.d.Docker("network", "disconnect", "low", "ada")
	h.always(func() { via(2) })
	h.d.Docker("restart", "-t", "0", "ada")
	h.know("ada")
	h.reaches("ada", "127.0.0.1", "ada")
	h.always(func() { via(2) })
}

// As in Docker, a container that joins or leaves a network keeps its own
// changes in /etc/hosts and /etc/resolv.conf.
func TestWhatAContainerWroteIntoItsFilesStaysWhenItsNetworksChange(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "--subnet", h.net+".1.0/24", "n")
	h.serve("ada")
	h.serve("bob")
	h.serve("cyd", "--network", "n")
	h.in("ada", "sh", "-c", "echo 192.0.2.9 printer >> /etc/hosts; echo mine > /etc/hostname; echo nameserver 192.0.2.53 > /etc/resolv.conf")
	own := h.net + ".1."
	h.d.Docker("network", "connect", "n", "ada")
	h.d.Docker("network", "connect", "n", "bob")
	h.always(func() {
		h.has("files", h.in("ada", "cat", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"), "192.0.2.9 printer\n", own, "mine\nnameserver 192.0.2.53\n")
		h.has("the other's", h.in("bob", "cat", "/etc/resolv.conf"), "127.0.0.11")
		h.reaches("bob", "cyd", "cyd")
	})
	h.d.Docker("network", "disconnect", "n", "ada")
	h.d.Docker("network", "disconnect", "n", "bob")
	h.always(func() {
		got := h.in("ada", "cat", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
		h.has("files", got, "192.0.2.9 printer\n", "mine\nnameserver 192.0.2.53\n")
		if strings.Contains(got, own) {
			t.Errorf("a line of a network that the container has left:\n%s", got)
		}
		if got := h.in("bob", "cat", "/etc/resolv.conf"); strings.Contains(got, "127.0.0.11") {
			t.Errorf("the name server of a network that the container has left:\n%s", got)
		}
	})
}

// The options of a connection: addresses, including link-local ones, the
// interface's name, and its sysctls. The container is created, running or
// paused.
func TestConnectionIsAsItWasAskedFor(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	six := "fd00:" + strings.TrimPrefix(h.net, "10.") + ":2"
	h.d.Docker("network", "create", "--subnet", h.net+".2.0/24", "--ipv6", "--subnet", six+"::/64", "n")
	h.d.Docker("network", "create", "first")
	h.d.Docker("network", "create", "--ipv4=false", "--ipv6", "six")
	connect := func(name string, last int) {
		t.Helper()
		h.d.Docker("network", "connect", "--ip", fmt.Sprintf("%s.2.%d", h.net, last), "--ip6", fmt.Sprintf("%s::%d", six, last), "--link-local-ip", fmt.Sprintf("169.254.9.%d", last),
			"--alias", "an_"+name, "--driver-opt", "com.docker.network.endpoint.ifname=lan0",
			"--driver-opt", "com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.log_martians=1", "n", name)
	}
	h.d.Docker("create", "--name", "ada", "--network", "first", image, "sleep", "9999")
	h.run("bob", "--network", "first", image, "sleep", "9999")
	h.run("cyd", "--network", "first", image, "sleep", "9999")
	h.refused("no configured subnet contains IP address", "network", "connect", "--ip", "192.0.2.7", "n", "ada")
	h.refused("net.X.Y.IFNAME.Z=VALUE", "network", "connect", "--driver-opt", "com.docker.network.endpoint.sysctls=kernel.x=1", "n", "ada")
	connect("ada", 11)
	connect("bob", 12)
	h.d.Docker("pause", "cyd")
	connect("cyd", 13)
	h.d.Docker("network", "connect", "six", "cyd")
	h.d.Docker("unpause", "cyd")
	h.d.Docker("start", "ada")
	h.know("ada")
	check := func() {
		t.Helper()
		for i, name := range []string{"ada", "bob", "cyd"} {
			last := 11 + i
			h.has(name, h.in(name, "ip", "addr", "show", "lan0"), fmt.Sprintf("%s.2.%d/24", h.net, last), fmt.Sprintf("%s::%d/64", six, last), fmt.Sprintf("169.254.9.%d/16", last))
			h.equal(name, strings.TrimSpace(h.in(name, "cat", "/proc/sys/net/ipv4/conf/lan0/log_martians")), "1")
			h.resolves("ada", "an_"+name, fmt.Sprintf("%s.2.%d", h.net, last))
		}
	}
	h.always(check)
	h.d.Docker("restart", "-t", "0", "ada", "bob")
	h.know("ada")
	h.know("bob")
	h.always(check)
	h.refused("has active endpoints", "network", "rm", "n")
	h.d.Docker("network", "disconnect", "-f", "n", "bob")
	h.d.Docker("network", "disconnect", "n", "ada")
	h.d.Docker("network", "disconnect", "n", "cyd")
	h.d.Docker("network", "rm", "n")
}

// A command that arrives while the daemon still restores containers waits for
// that, and is then carried out.
func TestConnectWhileTheDaemonIsStarting(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "one")
	h.d.Docker("network", "create", "two")
	for i := range 6 {
		h.serve(fmt.Sprintf("ada%d", i), "--network", "one")
	}
	for round := range 2 {
		h.d.Kill9()
		var all sync.WaitGroup
		for i := range 6 {
			all.Go(func() {
				verb := []string{"connect", "disconnect"}[round]
				// Until the socket exists the command fails at once.
				for deadline := time.Now().Add(20 * time.Second); ; {
					r := h.d.TryDocker("network", verb, "two", fmt.Sprintf("ada%d", i))
					if r.Code == 0 {
						return
					}
					if time.Now().After(deadline) || !strings.Contains(r.Stderr, "annot connect") {
						t.Errorf("network %s: %s", verb, r.Stderr)
						return
					}
				}
			})
		}
		h.d.Start()
		all.Wait()
		h.always(func() {
			for i := range 6 {
				n := strings.Count(h.in(fmt.Sprintf("ada%d", i), "ip", "-o", "-4", "addr"), ": eth")
				h.equal("networks", fmt.Sprint(n), fmt.Sprint(2-round))
			}
			h.reaches("ada0", "ada5", "ada5")
		})
	}
}

func TestContainerStartsOnSeveralNetworks(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "one")
	h.d.Docker("network", "create", "two")
	h.serve("ada", "--network", "name=one,alias=uno", "--network", "name=two,alias=due,gw-priority=1")
	h.serve("bob", "--network", "one")
	h.serve("cyd", "--network", "two")
	h.always(func() {
		h.reaches("bob", "uno", "ada")
		h.reaches("cyd", "due", "ada")
		h.unknown("bob", "due")
		h.unknown("bob", "cyd")
		h.reaches("ada", "bob", "bob")
		h.reaches("ada", "cyd", "cyd")
	})
	h.has("ps by network", h.d.Docker("ps", "--filter", "network=two", "--format", "{{.Names}}"), "ada", "cyd")
	h.equal("ps by network", strings.Join(sorted(strings.Fields(h.d.Docker("ps", "--filter", "network=one", "--format", "{{.Names}}"))), " "), "ada bob")
}

func TestProjectOfSeveralServicesLivesOnWithoutTheDaemon(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	label := []string{"--label", "com.docker.compose.project=p"}
	for _, n := range []string{"front", "back"} {
		args := append([]string{"network", "create", "--driver", "bridge", "--attachable"}, label...)
		if n == "back" {
			args = append(args, "--internal")
		}
		h.d.Docker(append(args, "p_"+n)...)
	}
	h.serve("p-db-1", append(label, "--network", "name=p_back,alias=db")...)
	h.serve("p-app-1", append(label, "--network", "name=p_back,alias=app", "--network", "name=p_front,alias=app")...)
	h.serve("p-app-2", append(label, "--network", "name=p_back,alias=app", "--network", "name=p_front,alias=app")...)
	h.serve("p-web-1", append(label, "--network", "name=p_front,alias=web", "-p", "127.0.0.1:18082:80")...)
	app := h.addresses("p_front", "p-app-1", "p-app-2")
	kit.Eventually(t, "the server of the published port listens", func() bool { return fetchHost("http://127.0.0.1:18082/") == "p-web-1" })
	h.always(func() {
		h.reaches("p-app-1", "db", "p-db-1")
		h.unknown("p-web-1", "db")
		h.resolves("p-web-1", "app", app...)
		if got := fetchHost("http://127.0.0.1:18082/"); got != "p-web-1" {
			t.Errorf("published port: %q", got)
		}
	})
	// One container is replaced as `up` does it: a new one is created with the
	// new configuration, the old one is removed, and the new one is renamed and
	// started.
	h.d.Docker("create", "--name", "x_p-app-2", "--hostname", "app2-new", "--network", "name=p_back,alias=app", "--network", "name=p_front,alias=app", image, "sh", "-c", server)
	h.d.Docker("stop", "-t", "0", "p-app-2")
	h.d.Docker("rm", "p-app-2")
	h.d.Docker("rename", "x_p-app-2", "p-app-2")
	h.d.Docker("start", "p-app-2")
	h.know("p-app-2")
	app = h.addresses("p_front", "p-app-1", "p-app-2")
	h.always(func() {
		h.reaches("p-web-1", "p-app-2", "app2-new")
		h.resolves("p-web-1", "app", app...)
		h.unknown("p-web-1", "x_p-app-2")
	})
	// As `down` does it.
	h.d.Docker("rm", "-f", "p-web-1", "p-app-1", "p-app-2", "p-db-1")
	clear(h.pids)
	h.d.Docker("network", "rm", "p_front", "p_back")
}
