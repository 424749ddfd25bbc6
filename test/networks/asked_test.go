// SPDX-License-Identifier: Apache-2.0

package networks

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The values here are those of a dockerd that was asked the same.

// create sends a create request over the API and returns the status and the
// error message.
func (h *house) create(name, mode string, networks ...string) (int, string) {
	h.Helper()
	endpoints := map[string]any{}
	for _, n := range networks {
		endpoints[n] = map[string]any{}
	}
	body, err := json.Marshal(map[string]any{
		"Image": image, "Cmd": []string{"sleep", "9999"},
		"HostConfig": map[string]any{"NetworkMode": mode}, "NetworkingConfig": map[string]any{"EndpointsConfig": endpoints},
	})
	if err != nil {
		h.Fatal(err)
	}
	res, err := h.d.HTTP().Post("http://d/containers/create?name="+name, "application/json", bytes.NewReader(body))
	if err != nil {
		h.Fatal(err)
	}
	defer res.Body.Close()
	said, err := io.ReadAll(res.Body)
	if err != nil {
		h.Fatal(err)
	}
	return res.StatusCode, string(said)
}

// on returns the networks of a container, as inspect shows them and as the
// addresses of its interfaces in the kernel show them.
func (h *house) on(name string) string {
	h.Helper()
	return strings.TrimSpace(h.inspect(name, "{{range $k, $v := .NetworkSettings.Networks}}{{$k}} {{end}}"))
}

func TestContainerIsOnTheNetworksThatItNamesAlone(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "--internal", "in")
	h.d.Docker("network", "create", "own")
	id := h.d.Docker("network", "inspect", "-f", "{{.Id}}", "own")
	for i, c := range []struct {
		mode     string
		networks []string
		want     string
	}{
		{"", []string{"in"}, "in"},
		{"default", []string{"in"}, "in"},
		{"bridge", []string{"in"}, "in"},
		{"", []string{"in", "own"}, "in own"},
		{"", []string{id}, "own"},
		{"own", []string{"in"}, "in"},
		{"own", []string{"own", "in"}, "in own"},
		{id, []string{"own"}, "own"},
		{"", []string{"default"}, "bridge"},
		{"", []string{"bridge", "own"}, "bridge own"},
		{"own", nil, "own"},
		{"", nil, "bridge"},
		{"none", []string{"none"}, "none"},
		{"", []string{"none"}, "none"},
	} {
		name := fmt.Sprintf("c%d", i)
		if code, said := h.create(name, c.mode, c.networks...); code != http.StatusCreated {
			t.Errorf("mode %q, networks %v: %d %s", c.mode, c.networks, code, said)
			continue
		}
		h.d.Docker("start", name)
		if got := h.on(name); got != c.want {
			t.Errorf("mode %q, networks %v: the container is on %q, want %q", c.mode, c.networks, got, c.want)
		}
		links := len(strings.Fields(c.want))
		if c.want == "none" {
			links = 0
		}
		h.know(name)
		if got := strings.Count(h.in(name, "ip", "-o", "-4", "addr", "show", "scope", "global"), "\n"); got != links {
			t.Errorf("mode %q, networks %v: %d addresses, want %d", c.mode, c.networks, got, links)
		}
	}
	// The container keeps no connection, also if it is started after it left
	// its only network.
	h.d.Docker("network", "disconnect", "in", "c0")
	h.d.Docker("restart", "-t", "0", "c0")
	h.know("c0")
	if got := h.in("c0", "ip", "-o", "-4", "addr", "show", "scope", "global"); got != "" {
		t.Errorf("a container that left its only network has %s", got)
	}
}

func TestNetworkThatGoesWithNoOtherIsRefused(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "own")
	h.run("ada", image, "sleep", "9999")
	for _, c := range []struct {
		mode     string
		networks []string
	}{
		{"host", []string{"own"}},
		{"none", []string{"own"}},
		{"container:ada", []string{"own"}},
		{"own", []string{"host"}},
		{"own", []string{"none"}},
		{"own", []string{"own", "host"}},
		{"", []string{"own", "host"}},
		{"", []string{"own", "none"}},
		{"", []string{"host"}},
		{"host", []string{"host", "none"}},
	} {
		if code, said := h.create("eve", c.mode, c.networks...); code != http.StatusBadRequest || !strings.Contains(said, "network") {
			t.Errorf("mode %q, networks %v: %d %s", c.mode, c.networks, code, said)
		}
	}
	for _, n := range []string{"host", "none"} {
		h.refused("conflicting options", "run", "--rm", "--network", n, "--network", "own", image, "true")
	}
	h.refused("conflicting options", "run", "--rm", "--network", "host", "--network", "none", image, "true")
}

func TestHostGatewayIsTheDefaultBridgesAddress(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "--internal", "in")
	h.d.Docker("network", "create", "own")
	want := h.d.Address.Addr().String() + "\thg"
	for _, networks := range [][]string{
		nil, {"--network", "host"}, {"--network", "none"}, {"--network", "own"}, {"--network", "in"}, {"--network", "own", "--network", "in"},
	} {
		args := append([]string{"run", "--rm", "--add-host", "hg:host-gateway"}, networks...)
		if got := h.d.Docker(append(args, image, "grep", "hg$", "/etc/hosts")...); got != want {
			t.Errorf("%v: got %q, want %q", networks, got, want)
		}
	}
}

func TestInterfacesKeepTheirNamesAndTheFirstIsTheModes(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	for _, n := range []string{"na", "nb", "nc"} {
		h.d.Docker("network", "create", n)
	}
	order := func() (all []string) {
		h.know("ada")
		for i, name := range []string{"eth0", "eth1", "eth2"} {
			out, err := h.tryIn("ada", "ip", "-o", "-4", "addr", "show", "dev", name)
			if err != nil || out == "" {
				all = append(all, "")
				continue
			}
			for _, n := range []string{"na", "nb", "nc"} {
				if a := h.inspect("ada", fmt.Sprintf("{{with index .NetworkSettings.Networks %q}}{{.IPAddress}}{{end}}", n)); a != "" && strings.Contains(out, " "+a+"/") {
					all = append(all, n)
				}
			}
			if len(all) != i+1 {
				t.Fatalf("%s is on no network: %s", name, out)
			}
		}
		return all
	}
	h.run("ada", "--network", "nc", "--network", "na", image, "sleep", "9999")
	want := []string{"nc", "na", ""}
	if got := order(); !slices.Equal(got, want) {
		t.Errorf("at first: %v, want %v", got, want)
	}
	h.d.Docker("network", "connect", "nb", "ada")
	h.d.Docker("network", "disconnect", "nc", "ada")
	h.d.Docker("network", "connect", "nc", "ada")
	want = []string{"nc", "na", "nb"}
	if got := order(); !slices.Equal(got, want) {
		t.Errorf("after connects: %v, want %v", got, want)
	}
	for range 2 {
		h.d.Docker("restart", "-t", "0", "ada")
		if got := order(); !slices.Equal(got, want) {
			t.Errorf("after a restart: %v, want %v", got, want)
		}
	}
}

func TestSubnetOfTwoAddresses(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "--subnet", h.net+".1.0/31", "two")
	h.equal("gateway", h.d.Docker("network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "two"), h.net+".1.0")
	h.serve("ada", "--network", "two")
	h.equal("address", h.address("ada", "two"), h.net+".1.1")
	h.has("routes", h.in("ada", "ip", "route"), "default via "+h.net+".1.0")
	if err := connect(h.net+".1.1", 80, 5*time.Second); err != nil {
		t.Errorf("the host does not reach the container: %v", err)
	}
	h.refused("no available IPv4 addresses", "run", "--rm", "--network", "two", image, "true")
	h.d.Docker("network", "create", "--subnet", h.net+".1.4/31", "--gateway", h.net+".1.5", "other")
	h.run("bob", "--network", "other", image, "sleep", "9999")
	h.equal("address beside another gateway", h.address("bob", "other"), h.net+".1.4")
}

func TestFixedCIDRWithoutBIPIsTheSubnet(t *testing.T) {
	t.Parallel()
	n := 200 + houses.Load()%50
	h := newHouse(t, map[string]any{"bip": "", "fixed-cidr": fmt.Sprintf("10.%d.1.128/25", n)})
	h.run("ada", image, "sleep", "9999")
	h.equal("address", h.address("ada", "bridge"), fmt.Sprintf("10.%d.1.130", n))
	h.equal("network", h.d.Docker("network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}} {{(index .IPAM.Config 0).Gateway}}", "bridge"),
		fmt.Sprintf("10.%[1]d.1.128/25 10.%[1]d.1.129", n))
}

func TestLinksHaveNamesAndAreRemoved(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.serve("web")
	h.run("cli", "--link", "web:w", "--link", "web", image, "sleep", "9999")
	names := func(filter string) string {
		return h.d.Docker("ps", "-a", "--no-trunc", "--format", "{{.Names}}", "--filter", "name="+filter)
	}
	links := func(name string) string { return h.inspect(name, "{{json .HostConfig.Links}}") }
	h.equal("names", names("^/web"), "cli/w,cli/web,web")
	h.equal("names without those of links", h.d.Docker("ps", "--format", "{{.Names}}", "--filter", "name=^/web"), "web")
	h.equal("a filter of names", names("cli/w"), "")
	h.equal("links", links("cli"), `["/web:/cli/w","/web:/cli/web"]`)
	h.equal("looked up by a link's name", h.inspect("cli/w", "{{.Name}}"), "/web")
	h.equal("looked up by a link's name", h.inspect("/cli/web", "{{.Name}}"), "/web")
	h.d.Docker("rename", "web", "shop")
	h.d.Docker("rename", "cli", "till")
	h.equal("links after renames", links("till"), `["/shop:/till/w","/shop:/till/web"]`)
	h.equal("names after renames", names("^/shop"), "shop,till/w,till/web")
	h.d.Kill9()
	h.d.Start()
	h.equal("names with the next daemon", names("^/shop"), "shop,till/w,till/web")

	h.refused("Conflict, cannot remove the default link name of the container", "rm", "--link", "shop")
	h.refused("No such container: till/nope", "rm", "--link", "till/nope")
	h.refused("No such container: nope", "rm", "--link", "nope")
	h.equal("removal", h.d.Docker("rm", "--link", "till/w"), "till/w")
	h.equal("links after a removal", links("till"), `["/shop:/till/web"]`)
	hosts := h.d.Docker("exec", "till", "cat", "/etc/hosts")
	if strings.Contains(hosts, "\tw ") || !strings.Contains(hosts+"\n", "\tweb\n") {
		t.Errorf("the hosts file after the removal of one of two links:\n%s", hosts)
	}
	h.d.Docker("rm", "--link", "/till/web")
	h.equal("links after all removals", links("till"), "null")
	h.equal("names after all removals", names("^/shop"), "shop")

	// A legacy link is removed with the container that it leads to.
	h.d.Docker("run", "-d", "--name", "last", "--link", "shop:s", image, "sleep", "9999")
	h.d.Docker("rm", "-f", "shop")
	h.equal("links of one that is gone", links("last"), "null")
	h.d.Docker("restart", "-t", "0", "last")
}

func TestLinkReachesExposedPortsWhereContainersDoNotReachEachOther(t *testing.T) {
	t.Parallel()
	h := newHouse(t, map[string]any{"icc": false})
	h.serve("web", "--expose", "80")
	h.serve("shut")
	h.run("cli", "--link", "web:w", "--link", "shut:s", image, "sleep", "9999")
	h.run("eve", image, "sleep", "9999")
	web, shut, cli := h.address("web", "bridge"), h.address("shut", "bridge"), h.address("cli", "bridge")
	h.always(func() {
		h.reaches("cli", web, "web")
		h.isolated("cli", shut) // publishes and exposes nothing
		h.isolated("eve", web)
		h.isolated("web", cli)
	})
	h.d.Docker("rm", "--link", "cli/w")
	h.isolated("cli", web)
	if rules := h.rules(); strings.Contains(rules, "tcp dport 80") {
		t.Errorf("a rule of a removed link:\n%s", rules)
	}
}

func TestRouteThatFailsIsReportedAndTheConnectionUndone(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "--subnet", h.net+".1.0/24", "own")
	h.run("ada", "--cap-add", "NET_ADMIN", image, "sleep", "9999")
	route := func(args ...string) {
		h.host(append([]string{"nsenter", "-t", fmt.Sprint(h.pids["ada"]), "-n", "--", "ip", "route"}, args...)...)
	}
	// The network's gateway can't be reached through this container.
	route("add", "unreachable", h.net+".1.1/32", "scope", "host")
	h.refused("add default route by "+h.net+".1.1", "network", "connect", "--gw-priority", "9", "own", "ada")
	h.equal("networks", h.on("ada"), "bridge")
	if out, err := h.tryIn("ada", "ip", "link", "show", "eth1"); err == nil {
		t.Errorf("the interface still exists: %s", out)
	}
	h.has("routes", h.in("ada", "ip", "route"), "default via "+h.d.Address.Addr().String())
	route("del", "unreachable", h.net+".1.1/32")
	h.d.Docker("network", "connect", "--gw-priority", "9", "own", "ada")
	h.has("routes", h.in("ada", "ip", "route"), "default via "+h.net+".1.1")
}

func TestIPv6IsSwitchedOffOnAnInterface(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	six := "fd05:" + strings.TrimPrefix(h.net, "10.") + ":6::"
	h.d.Docker("network", "create", "--ipv6", "--subnet", six+"/64", "six")
	h.run("ada", "--network", "name=six,driver-opt=com.docker.network.endpoint.sysctls=net.ipv6.conf.IFNAME.disable_ipv6=1", image, "sleep", "9999")
	h.run("bob", "--network", "six", "--sysctl", "net.ipv6.conf.all.disable_ipv6=1", image, "sleep", "9999")
	h.run("cyd", "--network", "six", image, "sleep", "9999")
	for name, want := range map[string]bool{"ada": false, "bob": false, "cyd": true} {
		if got := h.address6(name, "six") != "" && h.address6(name, "six") != "invalid IP"; got != want {
			t.Errorf("%s has the IPv6 address %q", name, h.address6(name, "six"))
		}
		if got := strings.Contains(h.in(name, "ip", "-6", "-o", "addr", "show", "dev", "eth0"), "inet6"); got != want {
			t.Errorf("%s speaks IPv6: %v", name, got)
		}
		hosts := h.in(name, "cat", "/etc/hosts")
		if got := strings.Contains(hosts, six); got != want {
			t.Errorf("%s: its hosts file:\n%s", name, hosts)
		}
		if got := strings.Contains(hosts, "ip6-localhost"); got != (name != "bob") {
			t.Errorf("%s: its hosts file:\n%s", name, hosts)
		}
	}
}

// Hosts that communicate with an address are notified at once that another
// container has it.
func TestNeighboursAreToldOfANewAddress(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	six := "fd05:" + strings.TrimPrefix(h.net, "10.") + ":7::"
	h.d.Docker("network", "create", "--subnet", h.net+".1.0/24", "--ipv6", "--subnet", six+"/64", "own")
	h.run("ada", "--network", "own", image, "sleep", "9999")
	var fd int
	h.within("ada", func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		return err
	})
	defer unix.Close(fd)
	h.run("bob", "--network", "own", "--ip", h.net+".1.77", "--ip6", six+"77", image, "sleep", "9999")
	timeout := unix.NsecToTimeval(int64(5 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		t.Fatal(err)
	}
	var n [4]byte
	fmt.Sscanf(h.net+".1.77", "%d.%d.%d.%d", &n[0], &n[1], &n[2], &n[3])
	arp, advert := false, false
	frame := make([]byte, 2048)
	for !arp || !advert {
		size, _, err := unix.Recvfrom(fd, frame, 0)
		if err != nil {
			t.Fatalf("gratuitous ARP %v, unsolicited advertisement %v: %v", arp, advert, err)
		}
		f := frame[:size]
		if len(f) >= 42 && f[12] == 8 && f[13] == 6 {
			arp = arp || bytes.Equal(f[28:32], n[:]) && bytes.Equal(f[38:42], n[:])
		}
		if len(f) >= 86 && f[12] == 0x86 && f[13] == 0xdd && f[54] == 136 {
			advert = advert || f[77] == 0x77
		}
	}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func TestNamesOfDNSAreTold(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "own")
	names := func(name, network string) string {
		return h.inspect(name, fmt.Sprintf("{{json (index .NetworkSettings.Networks %q).DNSNames}}", network))
	}
	h.run("ada", image, "sleep", "9999")
	h.equal("of the default network", names("ada", "bridge"), "null")
	h.d.Docker("create", "--name", "bob", "--network", "own", image, "sleep", "9999")
	h.equal("before the first start", names("bob", "own"), "null")
	h.d.Docker("start", "bob")
	want := fmt.Sprintf(`["bob","%.12s"]`, h.inspect("bob", "{{.Id}}"))
	h.equal("while it runs", names("bob", "own"), want)
	h.d.Docker("stop", "-t", "0", "bob")
	h.equal("after a stop", names("bob", "own"), want)
}

func TestObjectsAreFoundByIDThenNameThenBeginningOfAnID(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	first := h.d.Docker("network", "create", "first")
	for _, name := range []string{first, first[:12]} {
		// A network whose name is another network's ID, or the beginning of
		// one.
		second := h.d.Docker("network", "create", name)
		want := second
		if name == first {
			want = first
		}
		h.equal("network "+name, h.d.Docker("network", "inspect", "-f", "{{.Id}}", name), want)
		h.d.Docker("network", "rm", second)
		h.equal("the first network", h.d.Docker("network", "ls", "-q", "--no-trunc", "--filter", "id="+first), first)
	}
	ada := h.d.Docker("create", "--name", "ada", image, "true")
	bob := h.d.Docker("create", "--name", ada[:12], image, "true")
	cyd := h.d.Docker("create", "--name", ada, image, "true")
	h.equal("a container called like the beginning of an ID", h.inspect(ada[:12], "{{.Id}}"), bob)
	h.equal("the beginning of an ID that is no name", h.inspect(ada[:11], "{{.Id}}"), ada)
	h.equal("a container called like an ID", h.inspect(ada, "{{.Id}}"), ada)
	h.d.Docker("rm", ada)
	h.equal("what is left", h.inspect(ada, "{{.Id}}"), cyd)

	id := strings.TrimPrefix(h.inspect(image, "{{.Id}}"), "sha256:")
	other := h.d.DockerWith(strings.NewReader(emptyTar()), "import", "-", id[:12])
	h.equal("an image called like the beginning of an ID", h.d.Docker("image", "inspect", "-f", "{{.Id}}", id[:12]), other)
	h.equal("the ID itself", h.d.Docker("image", "inspect", "-f", "{{.Id}}", id), "sha256:"+id)
	h.equal("a beginning that is no name", h.d.Docker("image", "inspect", "-f", "{{.Id}}", id[:11]), "sha256:"+id)
	h.refused("no such volume", "volume", "inspect", "ad")

	// What two IDs begin with is neither of them. There are sixteen first digits.
	shared := func(create func(i int) string) string {
		seen := map[byte]bool{}
		for i := range 17 {
			id := create(i)
			if seen[id[0]] {
				return id[:1]
			}
			seen[id[0]] = true
		}
		t.Fatal("seventeen IDs begin with different digits")
		return ""
	}
	digit := shared(func(int) string { return h.d.Docker("create", image, "true") })
	h.refused("ultiple IDs found with provided prefix", "rm", digit)
	digit = shared(func(i int) string { return h.d.Docker("network", "create", "--config-only", fmt.Sprint("conf", i)) })
	h.refused("ambiguous", "network", "rm", digit)
}

// emptyTar is an archive without entries.
func emptyTar() string { return strings.Repeat("\x00", 1024) }

func TestFirstDaemonOfAHostDoesNotWarnOfForwarding(t *testing.T) {
	// Not in parallel: the sysctl applies to the whole host.
	const file = "/proc/sys/net/ipv4/ip_forward"
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile(file, before, 0) })
	if err := os.WriteFile(file, []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	h := newHouse(t, nil)
	const warning = "IPv4 forwarding is disabled"
	if got := h.d.Docker("info", "-f", "{{json .Warnings}} {{.IPv4Forwarding}}"); strings.Contains(got, warning) || !strings.HasSuffix(got, " true") {
		t.Errorf("info: %s", got)
	}
	if r := h.d.TryDocker("create", "--name", "ada", image, "true"); strings.Contains(r.Stderr, warning) {
		t.Errorf("create: %s", r.Stderr)
	}
	// Where it was disabled, info and create say so.
	if err := os.WriteFile(file, []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	if got := h.d.Docker("info", "-f", "{{json .Warnings}} {{.IPv4Forwarding}}"); !strings.Contains(got, warning) || !strings.HasSuffix(got, " false") {
		t.Errorf("info with forwarding disabled: %s", got)
	}
	if r := h.d.TryDocker("create", "--name", "bob", image, "true"); !strings.Contains(r.Stderr, warning) {
		t.Errorf("create with forwarding disabled: %q", r.Stderr)
	}
}
