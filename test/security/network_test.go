// SPDX-License-Identifier: Apache-2.0

package security

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/dump"
	"holdfast/internal/osthread"
	"holdfast/test/kit"
)

// The first thread can't end, so it must not be one that enters another network
// namespace. It stays with the main goroutine.
func init() {
	runtime.LockOSThread()
	roles["advertise"] = advertiseRole
	roles["flood"] = floodRole
}

// The network between the host and the machine beside it.
const (
	hostAddr = "192.0.2.1"
	lanAddr  = "192.0.2.9"
)

// lanHost is a host in a network namespace of its own, with a machine beside
// it. The test's goroutine is in that namespace, and so are the processes that
// it starts, including daemons.
type lanHost struct {
	*testing.T
	lan *os.File // the neighbour's namespace
}

func newLANHost(t *testing.T) *lanHost {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends in this namespace
	h := &lanHost{T: t}
	h.ok(unix.Unshare(unix.CLONE_NEWNET))
	h.up("lo")
	h.ok(osthread.Run(func() error {
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			h.lan, err = os.Open("/proc/thread-self/ns/net")
		}
		return err
	}))
	t.Cleanup(func() { h.lan.Close() })
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "lan0"
	h.ok(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(h.lan.Fd())}))
	h.address("lan0", hostAddr+"/24")
	h.up("lan0")
	h.beside(func() error {
		h.address("eth0", lanAddr+"/24")
		h.up("eth0")
		return nil
	})
	return h
}

func (h *lanHost) ok(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

func (h *lanHost) link(name string) netlink.Link {
	link, err := netlink.LinkByName(name)
	if err != nil {
		h.Error(err)
		runtime.Goexit()
	}
	return link
}

func (h *lanHost) up(name string) {
	if err := netlink.LinkSetUp(h.link(name)); err != nil {
		h.Error(err)
	}
}

func (h *lanHost) address(name, addr string) {
	a, err := netlink.ParseAddr(addr)
	if err == nil {
		err = netlink.AddrAdd(h.link(name), a)
	}
	if err != nil {
		h.Error(err)
	}
}

// beside runs f on the machine beside the host.
func (h *lanHost) beside(f func() error) {
	h.Helper()
	h.ok(kit.InNetns(fmt.Sprintf("/proc/self/fd/%d", h.lan.Fd()), f))
}

// start starts a daemon on the host, with an image for containers.
func (h *lanHost) start(config map[string]any) *kit.Daemon {
	h.Helper()
	d := kit.Start(h.T, kit.Options{LiveRestore: true, Config: config})
	d.Load(image, kit.Busybox(h.T, nil))
	return d
}

// answers reports whether a TCP port answers to the host or, with there, to the
// machine beside it.
func (h *lanHost) answers(there bool, address string, patience time.Duration) (ok bool) {
	h.Helper()
	dial := func() error {
		c, err := net.DialTimeout("tcp", address, patience)
		if err == nil {
			ok = true
			c.Close()
		}
		return nil
	}
	if !there {
		h.ok(dial())
		return ok
	}
	h.beside(dial)
	return ok
}

const (
	soon    = 10 * time.Second
	silence = 400 * time.Millisecond
)

// becomes polls until a condition holds.
func (h *lanHost) becomes(what string, is func() bool) {
	h.Helper()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	late := time.After(soon)
	for !is() {
		select {
		case <-again.C:
		case <-late:
			h.Fatalf("timeout waiting until %s", what)
		}
	}
}

// web runs a container that serves port 80, and waits until it does.
func (h *lanHost) web(d *kit.Daemon, args ...string) (id, address string) {
	h.Helper()
	id = d.Docker(append(append([]string{"run", "-d"}, args...), image, "httpd", "-f", "-p", "80")...)
	address = d.Docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", id)
	h.becomes(address+" answers", func() bool { return h.answers(false, address+":80", time.Second) })
	return id, address
}

// route lets the machine beside the host send packets to a subnet through the
// host.
func (h *lanHost) route(to string) {
	h.Helper()
	h.beside(func() error {
		dst, err := netlink.ParseIPNet(to)
		if err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{Dst: dst, Gw: net.ParseIP(hostAddr)})
	})
}

// advertisement is an Ethernet frame with a router advertisement that contains
// a prefix.
func advertisement(mac net.HardwareAddr) []byte {
	from, to := net.ParseIP("fe80::bad"), net.ParseIP("ff02::1")
	body := []byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}
	body = append(body, 1, 1)
	body = append(body, mac...)
	body = append(body, 3, 4, 64, 0xc0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	body = append(body, net.ParseIP("2001:db8:bad::")...)
	sum := uint32(len(body)) + unix.IPPROTO_ICMPV6
	for _, b := range [][]byte{from, to, body} {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(body[2:], ^uint16(sum))
	frame := []byte{0x33, 0x33, 0, 0, 0, 1}
	frame = append(frame, mac...)
	frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(body)), unix.IPPROTO_ICMPV6, 255)
	return append(append(append(frame, from...), to...), body...)
}

// advertise sends one through the interface eth0 of the thread's namespace. It
// needs only the right to send raw packets.
func advertise() error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	i := link.Attrs()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, advertisement(i.HardwareAddr), 0, &unix.SockaddrLinklayer{Ifindex: i.Index, Halen: 6, Addr: [8]byte{0x33, 0x33, 0, 0, 0, 1}})
}

func advertiseRole() {
	for range 3 {
		if err := advertise(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// learnt returns the interfaces through which the host has accepted routers, or
// that have addresses with the advertised prefix.
func (h *lanHost) learnt() (by []int) {
	h.Helper()
	routes, err := dump.Routes(netlink.FAMILY_V6, &netlink.Route{Protocol: unix.RTPROT_RA}, netlink.RT_FILTER_PROTOCOL)
	h.ok(err)
	for _, r := range routes {
		by = append(by, r.LinkIndex)
	}
	addrs, err := dump.Addrs(nil, netlink.FAMILY_V6)
	h.ok(err)
	for _, a := range addrs {
		if strings.HasPrefix(a.IP.String(), "2001:db8:bad:") {
			by = append(by, a.LinkIndex)
		}
	}
	return by
}

// Bridges without IPv6 accepted router advertisements, so a container that
// could send raw packets made itself the host's IPv6 router and received the
// host's packets. Here bridges and the host's ends of veth pairs ignore router
// advertisements, and have no IPv6 if the network has none. The same frame on
// another interface is accepted, which proves that it is valid.
func TestCVE_2020_13401_ContainerIsNotTheHostsRouter(t *testing.T) {
	h := newLANHost(t)
	d := h.start(nil)
	d.Docker("network", "create", "--internal", "inside")
	d.Docker("network", "create", "own")
	for _, network := range []string{"bridge", "inside", "own"} {
		d.Docker("run", "--rm", "--network", network, "-v", self(t)+":/attack:ro", "-e", "SECURITY_ROLE=advertise", image, "/attack")
	}
	lan0 := h.link("lan0").Attrs().Index
	h.ok(os.WriteFile("/proc/sys/net/ipv6/conf/lan0/accept_ra", []byte("2"), 0))
	h.becomes("a router on the host's own link is heard", func() bool {
		h.beside(advertise)
		return slices.Contains(h.learnt(), lan0)
	})
	for _, by := range h.learnt() {
		if by != lan0 {
			t.Errorf("the host accepted a container's router advertisement on interface %d", by)
		}
	}
}

// A container that can forge frames can use any address: containers on one
// bridge trust each other, as with Docker. The right can be removed from a
// container.
func TestForgingFramesNeedsARightThatCanBeTaken(t *testing.T) {
	d := live(t)
	r := d.TryDocker("run", "--rm", "--cap-drop", "NET_RAW", "-v", self(t)+":/attack:ro", "-e", "SECURITY_ROLE=advertise", image, "/attack")
	if r.Code != 1 || !strings.Contains(r.Stderr, "operation not permitted") {
		t.Errorf("exit code %d: %s", r.Code, r.Stderr)
	}
}

// An engine that had disabled IPv6 for a network left it enabled on the
// interfaces, so containers had addresses and neighbours that no firewall rule
// covered. Here an interface has IPv6 only if its network has it, also if it is
// added later, in the container and on the host.
func TestCVE_2024_32473_InterfaceHasIPv6OnlyWhereItsNetworkHas(t *testing.T) {
	h := newLANHost(t)
	d := h.start(nil)
	d.Docker("network", "create", "four")
	d.Docker("network", "create", "--ipv6", "six")
	id := d.Docker("run", "-d", image, "sleep", "inf")
	d.Docker("network", "connect", "six", id)
	d.Docker("network", "connect", "four", id)
	off := func(name string) bool {
		v := d.Docker("exec", id, "cat", "/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6")
		has := strings.Contains(d.Docker("exec", id, "ip", "-6", "addr", "show", "dev", name), "inet6")
		if (v == "1") == has {
			t.Errorf("%s: disable_ipv6=%s, and addresses: %v", name, v, has)
		}
		return v == "1"
	}
	if !off("eth0") || off("eth1") || !off("eth2") {
		t.Errorf("off: eth0 %v, eth1 %v, eth2 %v; want IPv6 on eth1 alone", off("eth0"), off("eth1"), off("eth2"))
	}
	links, err := dump.Interfaces()
	h.ok(err)
	six := "br-" + d.Docker("network", "inspect", "-f", "{{.Id}}", "six")[:12]
	for _, l := range links {
		name := l.Attrs().Name
		addrs, err := dump.Addrs(l, netlink.FAMILY_V6)
		h.ok(err)
		if len(addrs) > 0 && name != six && name != "lo" && name != "lan0" {
			t.Errorf("%s has %v", name, addrs)
		}
	}
	// On a kernel without the driver, no network is created.
	for _, driver := range []string{"macvlan", "ipvlan"} {
		if r := d.TryDocker("network", "create", "-d", driver, "-o", "parent=lan0", driver); r.Code != 0 {
			if !strings.Contains(r.Stderr, "this kernel has no "+driver) {
				t.Errorf("%s: %s", driver, r.Stderr)
			}
			continue
		}
		id := d.Docker("run", "-d", "--network", driver, image, "sleep", "inf")
		if v := d.Docker("exec", id, "cat", "/proc/sys/net/ipv6/conf/eth0/disable_ipv6"); v != "1" {
			t.Errorf("%s: disable_ipv6=%s", driver, v)
		}
		d.Docker("rm", "-f", id)
		d.Docker("network", "rm", driver)
	}
}

// resolver is a name server on the host's loopback interface. It records the
// names in queries. If it is silent, it sends no answers.
type resolver struct {
	mu    sync.Mutex
	asked []string
}

func (h *lanHost) resolver(silent bool) *resolver {
	h.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 53})
	h.ok(err)
	h.Cleanup(func() { c.Close() })
	r := &resolver{}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := c.ReadFromUDP(buf)
			if err != nil {
				return
			}
			if silent {
				continue
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			r.mu.Lock()
			r.asked = append(r.asked, m.Questions[0].Name.String())
			r.mu.Unlock()
			m.Response, m.RCode, m.Additionals = true, dnsmessage.RCodeNameError, nil
			if b, err := m.Pack(); err == nil {
				c.WriteToUDP(b, from)
			}
		}
	}()
	return r
}

func (r *resolver) heard(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.asked, name)
}

// A container that was only on internal networks could send data out in the
// names that it resolved, because the engine forwarded its queries from the
// host's namespace. Here the container's name server forwards no query, also
// after the container has left a network with access to the outside, and
// without a daemon.
func TestCVE_2024_29018_InternalNetworkAsksNobodyOutside(t *testing.T) {
	h := newLANHost(t)
	r := h.resolver(false)
	d := h.start(map[string]any{"dns": []string{"127.0.0.1"}})
	d.Docker("network", "create", "--internal", "inside")
	d.Docker("network", "create", "out")
	both := d.Docker("run", "-d", "--network", "inside", image, "sleep", "inf")
	own := d.Docker("run", "-d", "--network", "inside", "--dns", "127.0.0.1", image, "sleep", "inf")
	ask := func(id, name string) { // the name exists nowhere
		pid := d.Docker("inspect", "-f", "{{.State.Pid}}", id)
		d.Kill9()
		out, _ := exec.Command("nsenter", "-t", pid, "-m", "-n", "--", "nslookup", name).CombinedOutput()
		d.Start()
		if !strings.Contains(string(out), "NXDOMAIN") {
			t.Errorf("%s: %s", name, out)
		}
	}
	ask(both, "secret.first.example.com.")
	ask(own, "secret.own.example.com.")
	d.Docker("network", "connect", "out", both)
	ask(both, "open.example.com.")
	d.Docker("network", "disconnect", "out", both)
	ask(both, "secret.last.example.com.")
	if !r.heard("open.example.com.") {
		t.Error("a query of a container with access to the outside was not forwarded either")
	}
	for _, name := range r.asked {
		if strings.Contains(name, "secret") {
			t.Errorf("the host's name server got a query for %s", name)
		}
	}
}

// A reload of the host's firewall removed the rules that keep other machines
// from containers' own addresses, and the engine did not restore them. So ports
// that were published to a loopback address were open to neighbours with a
// route. Here the rules are in a table that no reload removes. If it is removed
// nevertheless, the daemon notices and restores it at once, or the next daemon
// does.
func TestCVE_2025_54388_FirewallReloadOpensNoLoopbackPort(t *testing.T) {
	h := newLANHost(t)
	d := h.start(nil)
	_, address := h.web(d, "-p", "127.0.0.1:18080:80", "-p", hostAddr+":18081:80")
	d.Docker("network", "create", "other")
	_, apart := h.web(d, "--network", "other")
	h.route(d.Address.Masked().String())
	h.route(apart + "/32")
	closed := func() {
		t.Helper()
		for _, at := range []string{hostAddr + ":18080", address + ":80", apart + ":80"} {
			if h.answers(true, at, silence) {
				t.Errorf("a neighbour reaches %s", at)
			}
		}
		if !h.answers(false, "127.0.0.1:18080", soon) || !h.answers(true, hostAddr+":18081", soon) {
			t.Error("the published port does not answer")
		}
	}
	closed()
	flush := func() {
		if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
	}
	there := func() bool { return exec.Command("nft", "list", "table", "inet", d.Table).Run() == nil }
	flush()
	h.becomes("the rules are back", there)
	closed()
	d.Kill9()
	flush()
	d.Start()
	closed()
}

// A reload of the host's firewall removed the rules that separate networks, and
// the engine did not restore them. So every container could reach every port of
// all others. Here the daemon notices and restores the rules at once, or the
// next daemon does.
func TestCVE_2025_54410_FirewallReloadLeavesNetworksApart(t *testing.T) {
	h := newLANHost(t)
	d := h.start(nil)
	d.Docker("network", "create", "other")
	_, there := h.web(d, "--network", "other")
	id, here := h.web(d)
	pid := d.Docker("inspect", "-f", "{{.State.Pid}}", id)
	reaches := func(address string) bool {
		return exec.Command("nsenter", "-t", pid, "-m", "-n", "--", "nc", "-w", "1", address, "80", "-e", "true").Run() == nil
	}
	apart := func() {
		t.Helper()
		if !reaches(here) || reaches(there) {
			t.Errorf("a container reaches itself: %v; one of another network: %v", reaches(here), reaches(there))
		}
	}
	apart()
	flush := func() {
		if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
	}
	flush()
	h.becomes("the rules are back", func() bool { return exec.Command("nft", "list", "table", "inet", d.Table).Run() == nil })
	apart()
	d.Kill9()
	flush()
	if !reaches(there) {
		t.Error("without rules the container does not reach the other one either")
	}
	d.Start()
	apart()
}

// One of a class of flaws (moby issue 41872): a machine on the host's network
// sent packets to 127.0.0.1 with the host's MAC address, and reached ports that
// are published on loopback only. Here such packets are dropped before any
// address is translated.
func TestNeighbourReachesNoLoopbackPortByTheHostsHardwareAddress(t *testing.T) {
	h := newLANHost(t)
	d := h.start(nil)
	h.web(d, "-p", "127.0.0.1:18080:80")
	h.beside(func() error { // with lo down, 127.0.0.1 is treated like any other address
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0); err != nil {
			return err
		}
		dst, err := netlink.ParseIPNet("127.0.0.1/32")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(hostAddr), Src: net.ParseIP(lanAddr)})
	})
	if h.answers(true, "127.0.0.1:18080", silence) {
		t.Error("a neighbour reaches a port that is published on the host's 127.0.0.1")
	}
	// Without the rule the neighbour reaches the port, so the test proves the
	// rule.
	if out, err := exec.Command("nft", "flush", "chain", "inet", d.Table, "guard").CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	h.becomes("the rule is back", func() bool {
		out, err := exec.Command("nft", "list", "chain", "inet", d.Table, "guard").Output()
		return err == nil && bytes.Contains(out, []byte("127.0.0.0/8"))
	})
	if h.answers(true, "127.0.0.1:18080", silence) {
		t.Error("a neighbour reaches the port after the rule was removed and restored")
	}
	if !h.answers(false, "127.0.0.1:18080", soon) {
		t.Error("the host does not reach the port")
	}
}

// Shims listened on abstract sockets. These belong to the host's network
// namespace and are not protected by directories, so root in a container with
// the host's network could send requests to shims. Here no process of the
// engine has an abstract socket, and its sockets are in directories that the
// container does not see.
func TestCVE_2020_15257_EngineHasNoAbstractSocket(t *testing.T) {
	h := newLANHost(t)
	d := h.start(nil)
	id := d.Docker("run", "-d", "-t", "--network", "host", "--health-cmd", "true", "--health-interval", "100ms", image, "sleep", "inf")
	d.Docker("run", "-d", "-p", "127.0.0.1:18090:80", image, "sleep", "inf")
	d.Docker("network", "create", "own")
	d.Docker("run", "-d", "--network", "own", image, "sleep", "inf")
	sockets := d.Docker("exec", id, "cat", "/proc/net/unix")
	if !strings.Contains(sockets, "/shim.sock") || !strings.Contains(sockets, d.Socket) {
		t.Fatalf("the engine's sockets are not of this namespace: %s", sockets)
	}
	for line := range strings.Lines(sockets) {
		fields := strings.Fields(line)
		if name := fields[len(fields)-1]; strings.HasPrefix(name, "@") {
			t.Errorf("an abstract socket: %s", name)
		}
		if name := fields[len(fields)-1]; strings.HasPrefix(name, "/") {
			if r := d.TryDocker("exec", id, "ls", name); r.Code == 0 {
				t.Errorf("the container sees %s", name)
			}
		}
	}
}

// floodRole sends queries to the container's name server as fast as it can, for
// the number of names in its argument.
func floodRole() {
	n, err := strconv.Atoi(os.Args[1])
	if err != nil {
		os.Exit(2)
	}
	c, err := net.Dial("udp4", "127.0.0.11:53")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for i := range n {
		m := dnsmessage.Message{Header: dnsmessage.Header{ID: uint16(i), RecursionDesired: true}, Questions: []dnsmessage.Question{
			{Name: dnsmessage.MustNewName(fmt.Sprintf("n%d.example.com.", i)), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET},
		}}
		b, err := m.Pack()
		if err != nil {
			os.Exit(2)
		}
		_, _ = c.Write(b) // datagrams without room in the buffer are lost
	}
}

// A container that floods its name server with queries that remain unanswered
// uses up only its own server, within limits. Names of other containers are
// resolved meanwhile, and descriptors and CPU time are released afterwards.
func TestFloodOfQuestionsStaysTheContainersOwn(t *testing.T) {
	h := newLANHost(t)
	h.resolver(true)
	d := h.start(map[string]any{"dns": []string{"127.0.0.1"}})
	d.Docker("network", "create", "own")
	bad := d.Docker("run", "-d", "--name", "bad", "--network", "own", "-v", self(t)+":/attack:ro", image, "sleep", "inf")
	d.Docker("run", "-d", "--name", "good", "--network", "own", image, "sleep", "inf")
	pid := d.ShimState(bad).ShimPid
	descriptors := func() int {
		names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		h.ok(err)
		return len(names)
	}
	before := descriptors()
	d.Docker("exec", "-e", "SECURITY_ROLE=flood", "bad", "/attack", "20000")
	if n := descriptors() - before; n < 100 || n > 1300 {
		t.Errorf("the flood has %d descriptors; want some, and a bound", n)
	}
	if out := d.Docker("exec", "good", "nslookup", "bad"); !strings.Contains(out, "Address") {
		t.Errorf("another container's name server: %s", out)
	}
	if out := d.Docker("exec", "bad", "nslookup", "good"); !strings.Contains(out, "Address") {
		t.Errorf("its own name server does not resolve its neighbours: %s", out)
	}
	h.becomes("the descriptors are given back", func() bool { return descriptors() <= before+2 })
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	h.ok(err)
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			if kb, err := strconv.Atoi(strings.Fields(rest)[0]); err != nil || kb > 48<<10 {
				t.Errorf("the shim holds %s", strings.TrimSpace(rest))
			}
		}
	}
	// The shim is idle again: a container's command takes almost none of its
	// time.
	used := cpu(t, pid)
	for range 5 {
		d.Docker("exec", "bad", "true")
	}
	if spent := cpu(t, pid) - used; spent > 100 {
		t.Errorf("the shim used %d ticks of CPU time without queries", spent)
	}
}

// cpu is the CPU time of a process, in ticks of 10 ms.
func cpu(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	sum := 0
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// Names become part of /etc/hosts, /etc/resolv.conf, paths below /proc/sys and
// firewall rules. No name may add a line, a path or a rule of its own.
func TestNamesBringNoLinesAlong(t *testing.T) {
	d := live(t)
	for what, body := range map[string]string{
		"host name":      `{"Image":"IMAGE","Hostname":"a\n6.6.6.6 bank"}`,
		"domain name":    `{"Image":"IMAGE","Domainname":"a\n6.6.6.6 bank"}`,
		"extra host":     `{"Image":"IMAGE","HostConfig":{"ExtraHosts":["a\n6.6.6.6 bank:1.2.3.4"]}}`,
		"link":           `{"Image":"IMAGE","HostConfig":{"Links":["x:a\n6.6.6.6 bank"]}}`,
		"server":         `{"Image":"IMAGE","HostConfig":{"Dns":["fe80::1%\nnameserver 6.6.6.6"]}}`,
		"search domain":  `{"Image":"IMAGE","HostConfig":{"DnsSearch":["a\nnameserver 6.6.6.6"]}}`,
		"option":         `{"Image":"IMAGE","HostConfig":{"DnsOptions":["a\nnameserver 6.6.6.6"]}}`,
		"alias":          `{"Image":"IMAGE","HostConfig":{"NetworkMode":"own"},"NetworkingConfig":{"EndpointsConfig":{"own":{"Aliases":["a\n6.6.6.6 bank"]}}}}`,
		"interface":      `{"Image":"IMAGE","HostConfig":{"NetworkMode":"own"},"NetworkingConfig":{"EndpointsConfig":{"own":{"DriverOpts":{"com.docker.network.endpoint.ifname":"../../x"}}}}}`,
		"host's address": `{"Image":"IMAGE","HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"::1%a\nb","HostPort":"1"}]}}}`,
	} {
		if code, said := post(t, d, "/containers/create", strings.ReplaceAll(body, "IMAGE", image)); code != http.StatusBadRequest {
			t.Errorf("%s: %d %s", what, code, said)
		}
	}
	if code, said := post(t, d, "/containers/create?name=a%0Ab", `{"Image":"`+image+`"}`); code != http.StatusBadRequest {
		t.Errorf("container's name: %d %s", code, said)
	}
	for what, option := range map[string]string{
		"a wildcard": `"com.docker.network.bridge.name":"br+"`, "a number": `"com.docker.network.bridge.name":"br%d"`,
		"a quotation mark": `"com.docker.network.bridge.name":"a\"b"`, "an option": `"com.docker.network.bridge.name":"-j"`,
		"a path": `"com.docker.network.container_iface_prefix":"../"`, "blanks": `"com.docker.network.bridge.trusted_host_interfaces":"a b"`,
	} {
		if code, said := post(t, d, "/networks/create", `{"Name":"n","Options":{`+option+`}}`); code != http.StatusBadRequest {
			t.Errorf("interface with %s: %d %s", what, code, said)
		}
	}
	if code, said := post(t, d, "/networks/create", `{"Name":"a\nb"}`); code != http.StatusBadRequest {
		t.Errorf("network's name: %d %s", code, said)
	}
}

func post(t *testing.T, d *kit.Daemon, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://docker"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := d.HTTP().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var said struct{ Message, Id string }
	_ = json.NewDecoder(resp.Body).Decode(&said) // an invalid answer is recognized by its status
	return resp.StatusCode, said.Message + said.Id
}
