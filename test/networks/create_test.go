// SPDX-License-Identifier: Apache-2.0

package networks

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestNetworkIsWhatWasAskedFor(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "--subnet", h.net+".1.0/24", "--gateway", h.net+".1.254", "--ip-range", h.net+".1.64/26",
		"--aux-address", "printer="+h.net+".1.64", "--label", "who=test", "--attachable",
		"--opt", "com.docker.network.driver.mtu=1400", "both")
	h.run("ada", "--network", "both", image, "sleep", "9999")
	h.always(func() {
		h.has("addresses", h.in("ada", "ip", "addr", "show", "eth0"), h.net+".1.65/24", "mtu 1400")
		h.has("routes", h.in("ada", "ip", "route"), "default via "+h.net+".1.254")
		if h.d.Running() {
			got := h.d.Docker("network", "inspect", "both")
			h.has("inspect", got, `"Subnet": "`+h.net+`.1.0/24"`, `"IPRange": "`+h.net+`.1.64/26"`, `"Gateway": "`+h.net+`.1.254"`,
				`"printer": "`+h.net+`.1.64"`, `"who": "test"`, `"Attachable": true`, `"Driver": "bridge"`, `"Name": "ada"`)
			h.has("list", h.d.Docker("network", "ls"), "both", "bridge", "host", "none")
			h.equal("list by label", h.d.Docker("network", "ls", "--filter", "label=who=test", "--format", "{{.Name}}"), "both")
			h.equal("list by driver", h.d.Docker("network", "ls", "--filter", "driver=null", "--format", "{{.Name}}"), "none")
		}
	})
}

func TestSecondSubnetIsUsedWhenTheFirstIsFull(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	// Each subnet has room for one container. The command line sends the
	// subnets in no particular order.
	h.d.Docker("network", "create", "--subnet", h.net+".1.0/30", "--subnet", h.net+".2.0/30", "n")
	h.serve("ada", "--network", "n")
	h.serve("bob", "--network", "n")
	got := []string{h.address("ada", "n"), h.address("bob", "n")}
	slices.Sort(got)
	h.equal("addresses", strings.Join(got, " "), h.net+".1.2 "+h.net+".2.2")
	h.always(func() {
		h.reaches("ada", "bob", "bob")
		h.reaches("bob", "ada", "ada")
	})
}

func TestErrorsAreInDockersWords(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "--subnet", h.net+".1.0/24", "n")
	h.serve("ada", "--network", "n")
	h.d.Docker("create", "--name", "stopped", "--network", "n", image)
	own := h.net + "."
	for range 2 {
		for _, c := range [][]string{
			{"network with name n already exists", "network", "create", "n"},
			{"Pool overlaps with other one on this address space", "network", "create", "--subnet", own + "1.0/25", "o"},
			{"operation is not permitted on predefined", "network", "create", "host"},
			{"invalid network name", "network", "create", "a/b"},
			{"plugin", "network", "create", "-d", "weave", "o"},
			{"only one instance of", "network", "create", "-d", "host", "o"},
			{"it should be " + own + "3.0/24", "network", "create", "--subnet", own + "3.7/24", "o"},
			{"network o not found", "network", "rm", "o"},
			{"pre-defined network and cannot be removed", "network", "rm", "bridge"},
			{"has active endpoints", "network", "rm", "n"},
			{"network o not found", "network", "connect", "o", "ada"},
			{"network o not found", "run", "--rm", "--network", "o", image},
			{"No such container: nobody", "network", "connect", "n", "nobody"},
			{"already exists in network n", "network", "connect", "n", "ada"},
			{"is not connected to ", "network", "disconnect", "bridge", "ada"},
			{"host network", "network", "connect", "host", "ada"},
			{"private (none) mode", "network", "connect", "none", "ada"},
			{"no configured subnet contains IP address", "run", "--rm", "--network", "n", "--ip", "192.0.2.1", image},
			{"ddress already in use", "run", "--rm", "--network", "n", "--ip", h.address("ada", "n"), image},
			{"gateway mode 'isolated' can only be used for an internal network", "network", "create", "-o", "com.docker.network.bridge.gateway_mode_ipv4=isolated", "o"},
			{"want nat, nat-unprotected, routed or isolated", "network", "create", "-o", "com.docker.network.bridge.gateway_mode_ipv4=bridged", "o"},
			{"user-specified IP address is supported on user-defined networks only", "run", "--rm", "--ip", "192.0.2.1", image},
			{"user-specified IP address is supported on user-defined networks only", "create", "--network", "none", "--ip", "192.0.2.1", image},
			{"user-specified IP address is supported on user-defined networks only", "create", "--network", "host", "--ip", "192.0.2.1", image},
			{"network-scoped alias is supported only for containers in user defined networks", "network", "connect", "--alias", "a", "bridge", "ada"},
			{"invalid MAC address 01:00:00:00:00:01", "create", "--network", "n", "--mac-address", "01:00:00:00:00:01", image},
			{"failed to allocate secondary ip address (a:" + own + "4.1): Address already in use", "network", "create", "--subnet", own + "4.0/24", "--aux-address", "a=" + own + "4.1", "o"},
			{"failed to allocate gateway (" + own + "4.0): Address already in use", "network", "create", "--subnet", own + "4.0/24", "--gateway", own + "4.0", "o"},
		} {
			h.refused(c[0], c[1:]...)
		}
		for _, name := range strings.Fields(h.d.Docker("ps", "-aq", "--filter", "status=created")) {
			if h.inspect(name, "{{.Name}}") != "/stopped" {
				h.d.Docker("rm", name)
			}
		}
		h.d.Kill9()
		h.d.Start()
	}
	// A stopped container refers to the network, but does not prevent its
	// removal.
	h.d.Docker("rm", "-f", "ada")
	delete(h.pids, "ada")
	h.d.Docker("network", "rm", "n")
	h.refused("network n not found", "start", "stopped")
}

func TestPruneRemovesWhatNoContainerNames(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	for _, n := range []string{"used", "named", "free", "kept"} {
		label := "keep=" + map[bool]string{true: "yes", false: "no"}[n == "kept"]
		h.d.Docker("network", "create", "--label", label, n)
	}
	h.serve("ada", "--network", "used")
	h.d.Docker("create", "--name", "bob", "--network", "named", image)
	h.d.Kill9()
	h.d.Start()
	h.has("prune", h.d.Docker("network", "prune", "-f", "--filter", "label!=keep=yes"), "free")
	h.equal("what is left", h.d.Docker("network", "ls", "--filter", "type=custom", "--format", "{{.Name}}"), "kept\nnamed\nused")
	h.has("prune", h.d.Docker("network", "prune", "-f"), "kept")
	h.equal("what is left", h.d.Docker("network", "ls", "--filter", "type=custom", "--format", "{{.Name}}"), "named\nused")
}

func TestExistingBridgeIsUsedAndKept(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.host("ip", "link", "add", "own0", "type", "bridge")
	t.Cleanup(func() { try("ip", "link", "del", "own0") })
	h.d.Docker("network", "create", "--subnet", h.net+".1.0/24", "--opt", "com.docker.network.bridge.name=own0", "n")
	h.serve("ada", "--network", "n")
	h.serve("bob", "--network", "n")
	h.always(func() {
		h.reaches("ada", "bob", "bob")
		h.has("ports of the bridge", h.host("ip", "link", "show", "master", "own0"), "veth")
	})
	h.refused("bridge name conflict", "network", "create", "--opt", "com.docker.network.bridge.name=own0", "o")
	h.d.Docker("rm", "-f", "ada", "bob")
	clear(h.pids)
	h.d.Docker("network", "rm", "n")
	if _, err := netlink.LinkByName("own0"); err != nil {
		t.Errorf("the user's bridge: %v", err)
	}
}

// As with dockerd's bridge "none": a container without a network runs, and can
// be connected to one.
func TestWithoutADefaultBridgeContainersHaveLoopbackAlone(t *testing.T) {
	t.Parallel()
	h := newHouse(t, map[string]any{"bridge": "none", "bip": ""})
	h.d.Docker("network", "create", "n")
	h.serve("ada", "-p", "18380:80")
	h.serve("bob", "--network", "n")
	h.serve("cyd")
	h.refused("network bridge not found", "network", "connect", "bridge", "bob")
	h.d.Docker("network", "connect", "n", "ada")
	h.always(func() {
		h.reaches("bob", "ada", "ada")
		h.equal("port", fetchHost("http://127.0.0.1:18380/"), "ada")
		h.equal("links", strings.TrimSpace(h.in("cyd", "ls", "/sys/class/net")), "lo")
		h.reaches("cyd", "127.0.0.1", "cyd")
	})
	h.d.Docker("restart", "-t", "0", "cyd")
	h.know("cyd")
	h.equal("links", strings.TrimSpace(h.in("cyd", "ls", "/sys/class/net")), "lo")
}

func TestNetworkKeepsTheMTUItWasCreatedWith(t *testing.T) {
	t.Parallel()
	h := newHouse(t, map[string]any{"mtu": 1450})
	h.d.Docker("network", "create", "n")
	h.run("ada", "--network", "n", image, "sleep", "9999")
	h.has("before", h.in("ada", "ip", "link", "show", "eth0"), "mtu 1450")
	h.d.Kill9()
	h.d.WriteConfig(map[string]any{"mtu": 1300, "live-restore": true})
	h.d.Start()
	h.run("bob", "--network", "n", image, "sleep", "9999")
	h.has("of the network", h.in("bob", "ip", "link", "show", "eth0"), "mtu 1450")
	h.has("of the container", h.in("ada", "ip", "link", "show", "eth0"), "mtu 1450")
}

func TestDaemonsDefaultOptionsHoldForNewNetworks(t *testing.T) {
	t.Parallel()
	h := newHouse(t, map[string]any{"default-network-opts": map[string]any{"bridge": map[string]string{"com.docker.network.driver.mtu": "1234"}}})
	h.d.Docker("network", "create", "n")
	h.d.Docker("network", "create", "--opt", "com.docker.network.driver.mtu=1400", "own")
	h.equal("option", h.d.Docker("network", "inspect", "-f", `{{index .Options "com.docker.network.driver.mtu"}}`, "n"), "1234")
	h.equal("its own", h.d.Docker("network", "inspect", "-f", `{{index .Options "com.docker.network.driver.mtu"}}`, "own"), "1400")
	h.run("ada", "--network", "n", image, "sleep", "9999")
	h.always(func() { h.has("link", h.in("ada", "ip", "link", "show", "eth0"), "mtu 1234") })
}

// A subnet is visible on the host only when a bridge has an address in it.
func TestDaemonsBesideEachOtherChooseDifferentSubnets(t *testing.T) {
	t.Parallel()
	a := newHouse(t, nil)
	b := newHouse(t, map[string]any{"default-address-pools": []map[string]any{{"base": a.net + ".128.0/17", "size": 24}}})
	const each = 6
	var all sync.WaitGroup
	for _, h := range []*house{a, b} {
		for i := range each {
			all.Go(func() { h.d.Docker("network", "create", fmt.Sprint("n", i)) })
		}
	}
	all.Wait()
	subnets := map[string]bool{}
	for _, h := range []*house{a, b} {
		for i := range each {
			subnets[h.d.Docker("network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", fmt.Sprint("n", i))] = true
		}
	}
	if len(subnets) != 2*each {
		t.Errorf("%d networks have %d subnets: %v", 2*each, len(subnets), slices.Sorted(maps.Keys(subnets)))
	}
}

func TestConfigurationOnlyNetworkConfiguresOthers(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "--config-only", "--subnet", h.net+".1.0/24", "--ip-range", h.net+".1.64/26",
		"--label", "who=test", "--opt", "com.docker.network.driver.mtu=1400", "conf")
	h.d.Docker("network", "create", "--config-from", "conf", "n")
	h.run("ada", "--network", "n", image, "sleep", "9999")
	h.always(func() {
		h.has("addresses", h.in("ada", "ip", "addr", "show", "eth0"), h.net+".1.65/24", "mtu 1400")
		if h.d.Running() {
			h.has("inspect", h.d.Docker("network", "inspect", "n"), `"Network": "conf"`, `"who": "test"`, `"Driver": "bridge"`, h.net+".1.64/26")
			h.has("inspect", h.d.Docker("network", "inspect", "conf"), `"ConfigOnly": true`, `"Driver": "null"`)
		}
	})
	h.refused("configuration-only network", "run", "--rm", "--network", "conf", image)
	h.refused("configuration-only network", "network", "connect", "conf", "ada")
	h.refused("is in use", "network", "rm", "conf")
	h.refused("overlaps with other one", "network", "create", "--config-from", "conf", "again")
	h.refused("user specified configurations are not supported", "network", "create", "--config-from", "conf", "--label", "a=b", "more")
	h.d.Docker("rm", "-f", "ada")
	h.d.Docker("network", "prune", "-f")
	h.equal("what prune leaves", h.d.Docker("network", "ls", "--filter", "type=custom", "--format", "{{.Name}}"), "conf")
	h.d.Docker("network", "rm", "conf")
}

// A network that is removed while it is being created is removed wholly: nobody is
// told of a missing bridge, and no bridge is left.
func TestNetworkIsCreatedAndRemovedAtTheSameTime(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	var mu sync.Mutex
	var made []string
	ask := func(method, path, body string, want ...int) {
		req, err := http.NewRequest(method, "http://d"+path, strings.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := h.d.HTTP().Do(req)
		if err != nil {
			t.Error(err)
			return
		}
		defer res.Body.Close()
		said, err := io.ReadAll(res.Body)
		if err != nil || !slices.Contains(want, res.StatusCode) {
			t.Errorf("%s %s: %s %s %v", method, path, res.Status, said, err)
		}
		if res.StatusCode == http.StatusCreated {
			var n struct{ ID string }
			if err := json.Unmarshal(said, &n); err != nil || len(n.ID) < 12 {
				t.Errorf("%s: %v", said, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			made = append(made, n.ID)
		}
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 10 {
				ask(http.MethodPost, "/networks/create", `{"Name":"comes"}`, http.StatusCreated, http.StatusConflict)
			}
		})
		all.Go(func() {
			for range 10 {
				ask(http.MethodDelete, "/networks/comes", "", http.StatusNoContent, http.StatusNotFound)
			}
		})
	}
	all.Wait()
	h.d.TryDocker("network", "rm", "comes")
	if len(made) == 0 {
		t.Error("no network was created")
	}
	links := h.host("ip", "-o", "link")
	for _, id := range made {
		if strings.Contains(links, "br-"+id[:12]) {
			t.Errorf("the bridge of the removed network %.12s is left", id)
		}
	}
}
