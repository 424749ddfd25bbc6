// SPDX-License-Identifier: Apache-2.0

package overlay_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/dump"
	"holdfast/internal/network/overlay"
	"holdfast/internal/network/overlay/kernel"
	"holdfast/internal/network/swarmlb"
	lb "holdfast/internal/network/swarmlb/kernel"
	"holdfast/test/kit"
)

// mesh is a swarm with an ingress network.
type mesh struct {
	*lab
	network overlay.Network
	hosts   []*host
	entries []kernel.Endpoint // by host
	tasks   []*task
}

// newMesh makes hosts that are entries, with a task on each of the first ones.
func newMesh(t *testing.T, lan, ingress string, hosts, tasks int) *mesh {
	t.Helper()
	m := &mesh{lab: newLab(t, lan), network: overlay.Network{ID: "ingress", Subnets: []overlay.Subnet{subnet(ingress, 4096)}}}
	first := m.network.Subnets[0].Prefix.Addr().As4()
	at := func(last int) netip.Prefix {
		first[3] = byte(last)
		return netip.PrefixFrom(netip.AddrFrom4(first), m.network.Subnets[0].Prefix.Bits())
	}
	for i := range hosts {
		h := m.host(byte(i + 101))
		h.ensure(m.network)
		e := kernel.Endpoint{ID: fmt.Sprintf("entry%d-0000000000", i), Name: "hf-ingress", Addr: at(2 + i), MAC: overlay.MACOf(at(2 + i).Addr())}
		must(t, h.Run(func() error { return h.data.AddEndpoint(m.network, e) }))
		m.hosts, m.entries = append(m.hosts, h), append(m.entries, e)
	}
	for i := range tasks {
		m.tasks = append(m.tasks, m.hosts[i].task(fmt.Sprint("task", i)).join(m.network, at(20+i).String(), overlay.MAC{}).wayOut().serve())
	}
	for i, h := range m.hosts {
		var peers []overlay.Peer
		for j, o := range m.hosts {
			if i != j {
				peers = append(peers, overlay.Peer{Addr: m.entries[j].Addr.Addr(), MAC: m.entries[j].MAC, Host: o.addr})
			}
		}
		for _, k := range m.tasks {
			if k.host != h {
				peers = append(peers, overlay.Peer{Addr: k.addr(), MAC: k.on[0].MAC, Host: k.host.addr})
			}
		}
		_, err := h.data.SetPeers(m.network, peers, true)
		must(t, err)
	}
	for _, k := range m.tasks {
		task := swarmlb.Task{Ingress: "eth0", Address: k.addr()}
		for _, e := range m.entries {
			task.Entries = append(task.Entries, swarmlb.Entry{Addr: e.Addr.Addr(), MAC: e.MAC})
		}
		for _, want := range []bool{true, false} {
			if changed, err := lb.Apply(k.path, task); err != nil || changed != want {
				t.Fatalf("table of %s: changed %v, want %v; %v", k.name, changed, want, err)
			}
		}
	}
	return m
}

// wayOut gives the task the second interface that containers on overlay networks
// have, with the default route. It leads nowhere here.
func (k *task) wayOut() *task {
	k.t.Helper()
	k.inside(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth9"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "nowhere"}); err != nil {
			return err
		}
		for _, name := range []string{"eth9", "nowhere"} {
			l, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkSetUp(l)
			}
			if err != nil {
				return err
			}
		}
		l, err := netlink.LinkByName("eth9")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(172, 30, 0, 2), Mask: net.CIDRMask(16, 32)}}); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.IPv4(172, 30, 0, 1)})
	})
	return k
}

// publish publishes port 8080 of the tasks on all hosts.
func (m *mesh) publish(tasks ...*task) {
	m.t.Helper()
	for i := range m.hosts {
		if !m.publishOn(i, tasks...) {
			m.t.Error("nothing was changed")
		}
		if m.publishOn(i, tasks...) {
			m.t.Error("what was right was changed")
		}
	}
}

func (m *mesh) publishOn(i int, tasks ...*task) (changed bool) {
	m.t.Helper()
	var to []netip.AddrPort
	for _, k := range tasks {
		to = append(to, netip.AddrPortFrom(k.addr(), 80))
	}
	must(m.t, m.hosts[i].Run(func() (err error) {
		changed, err = lb.ApplyIngress(swarmlb.Ingress{
			Interface: "hf-ingress", Addr: m.entries[i].Addr.Addr(), Subnet: m.network.Subnets[0].Prefix,
			Ports: []swarmlb.IngressPort{{Proto: "tcp", Port: 8080, Targets: to}, {Proto: "udp", Port: 8080, Targets: to}},
		})
		return err
	}))
	return changed
}

// asked returns what a machine gets as an answer.
func asked(t *testing.T, from kit.Netns, network, to string) (answer string) {
	t.Helper()
	if err := from.Run(func() (err error) {
		answer, err = ask(network, to)
		return err
	}); err != nil {
		t.Errorf("%s %s: %v", network, to, err)
	}
	return answer
}

func TestPublishedPortIsReachedOnEveryHost(t *testing.T) {
	for name, c := range map[string]struct{ lan, rpFilter string }{
		"without checks of sources":                       {"192.0.2.0/24", "0"},
		"with strict checks":                              {"192.0.2.0/24", "1"},
		"with loose checks":                               {"192.0.2.0/24", "2"},
		"of hosts in a subnet like the ingress network's": {"10.8.0.0/24", "0"},
		"of such hosts with strict checks":                {"10.8.0.0/24", "1"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t, c.lan, "10.8.0.0/24", 3, 1)
			check := func() error {
				_, err := bridge.Sysctl("net/ipv4/conf/all/rp_filter", c.rpFilter)
				return err
			}
			m.tasks[0].inside(check)
			for _, h := range m.hosts {
				must(t, h.Run(check))
			}
			m.publish(m.tasks[0])
			client, clientAddr := m.machine(200)
			for i, h := range m.hosts {
				at := h.addr.String() + ":8080"
				for _, network := range []string{"tcp4", "udp4"} {
					if got, want := asked(t, client, network, at), "task0 "+clientAddr.String(); got != want {
						t.Errorf("host %d answers %q by %s, want %q: the task sees the client's address", i, got, network, want)
					}
					if got, want := asked(t, h.Netns, network, "127.0.0.1:8080"), "task0 "+m.entries[i].Addr.Addr().String(); got != want {
						t.Errorf("host %d itself gets %q by %s, want %q", i, got, network, want)
					}
					if got, want := asked(t, h.Netns, network, at), "task0 "+h.addr.String(); got != want {
						t.Errorf("host %d itself gets %q by its address by %s, want %q", i, got, network, want)
					}
					if got, want := asked(t, h.Netns, network, m.hosts[(i+1)%3].addr.String()+":8080"), "task0 "+h.addr.String(); got != want {
						t.Errorf("host %d gets %q from the next host by %s, want %q", i, got, network, want)
					}
				}
			}
			// The task asks for its entry's MAC anew.
			m.tasks[0].inside(func() error {
				all, err := dump.Whole(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, netlink.FAMILY_V4) })
				for _, n := range all {
					err = errors.Join(err, netlink.NeighDel(&n))
				}
				return err
			})
			for i, h := range m.hosts {
				if got, want := asked(t, client, "tcp4", h.addr.String()+":8080"), "task0 "+clientAddr.String(); got != want {
					t.Errorf("host %d answers %q when the task has forgotten its MAC, want %q", i, got, want)
				}
			}
		})
	}
}

func TestPublishedPortIsSpreadAndFollowsItsTasks(t *testing.T) {
	m := newMesh(t, "192.0.2.0/24", "10.8.0.0/24", 3, 2)
	m.publish(m.tasks...)
	client, clientAddr := m.machine(200)
	at := m.hosts[2].addr.String() + ":8080"
	by := map[string]int{}
	for range 10 {
		by[asked(t, client, "tcp4", at)]++
	}
	if by["task0 "+clientAddr.String()] != 5 || by["task1 "+clientAddr.String()] != 5 {
		t.Errorf("answers: %v", by)
	}
	var tcp, udp net.Conn
	must(t, client.Run(func() (err error) {
		if tcp, err = net.DialTimeout("tcp4", at, within); err == nil {
			udp, err = net.Dial("udp4", at)
		}
		return err
	}))
	defer tcp.Close()
	defer udp.Close()
	first, err := line(tcp, false)
	must(t, err)
	echo(t, tcp)
	if _, err := line(udp, true); err != nil {
		t.Error(err)
	}
	for i, k := range m.tasks {
		m.publish(k)
		for range 4 {
			if got, want := asked(t, client, "tcp4", at), fmt.Sprintf("task%d %s", i, clientAddr); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		if got, err := line(udp, true); err != nil || got != fmt.Sprintf("task%d %s", i, clientAddr) {
			t.Errorf("from the same udp socket: %q %v", got, err)
		}
		if got, err := line(tcp, true); err != nil || got != "?" {
			t.Errorf("the open connection to %s: %q %v", first, got, err)
		}
	}
	for i, h := range m.hosts {
		must(t, h.Run(func() error {
			if changed, err := lb.ApplyIngress(swarmlb.Ingress{}); err != nil || !changed {
				t.Errorf("host %d: changed %v, %v", i, changed, err)
			}
			rules, err := dump.Whole(func() ([]netlink.Rule, error) { return netlink.RuleList(netlink.FAMILY_V4) })
			for _, r := range rules {
				if r.Mark != 0 || r.Table != unix.RT_TABLE_LOCAL && r.Table != unix.RT_TABLE_MAIN && r.Table != unix.RT_TABLE_DEFAULT {
					t.Errorf("host %d: left is the rule %s", i, r)
				}
			}
			return err
		}))
	}
	if err := client.Run(func() error { _, err := ask("tcp4", at); return err }); err == nil {
		t.Error("the port answers after its removal")
	}
}

// TestIngressInterfaceDoesNotReachTheHostsLoopback: a task sends a frame for 127.0.0.1
// to the entry's MAC. One for the entry's own address does arrive.
func TestIngressInterfaceDoesNotReachTheHostsLoopback(t *testing.T) {
	m := newMesh(t, "192.0.2.0/24", "10.8.0.0/24", 1, 1)
	m.publish(m.tasks[0])
	entry := m.entries[0].Addr.Addr().String()
	listeners := map[string]net.PacketConn{"127.0.0.1": nil, entry: nil}
	must(t, m.hosts[0].Run(func() (err error) {
		for _, name := range []string{"all", "hf-ingress"} {
			if _, e := bridge.Sysctl("net/ipv4/conf/"+name+"/rp_filter", "0"); e != nil {
				return e
			}
		}
		for at := range listeners {
			if listeners[at], err = net.ListenPacket("udp4", at+":9000"); err != nil {
				return err
			}
		}
		return nil
	}))
	for _, at := range []string{"127.0.0.1", entry} {
		l := listeners[at]
		defer l.Close()
		m.tasks[0].inside(func() error {
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return bridge.SendFrame(eth0.Attrs().Index, datagram(m.entries[0].MAC, m.tasks[0], netip.MustParseAddrPort(at+":9000")))
		})
		must(t, l.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
		if _, _, err := l.ReadFrom(make([]byte, 1)); (err == nil) != (at == entry) {
			t.Errorf("sent to %s: %v", at, err)
		}
	}
}

// TestEntryIsNoRouterForContainers: a task sends a frame for another machine to the
// entry's MAC.
func TestEntryIsNoRouterForContainers(t *testing.T) {
	m := newMesh(t, "192.0.2.0/24", "10.8.0.0/24", 1, 1)
	m.publish(m.tasks[0])
	machine, addr := m.machine(200)
	var l net.PacketConn
	must(t, machine.Run(func() (err error) {
		l, err = net.ListenPacket("udp4", ":9000")
		return err
	}))
	defer l.Close()
	receive := func() error {
		must(t, l.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
		_, _, err := l.ReadFrom(make([]byte, 1))
		return err
	}
	m.tasks[0].inside(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return bridge.SendFrame(eth0.Attrs().Index, datagram(m.entries[0].MAC, m.tasks[0], netip.AddrPortFrom(addr, 9000)))
	})
	if err := receive(); err == nil {
		t.Error("the datagram was forwarded")
	}
	must(t, m.hosts[0].Run(func() error {
		c, err := net.Dial("udp4", addr.String()+":9000")
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("?"))
		return err
	}))
	if err := receive(); err != nil {
		t.Errorf("this test does not see a datagram: %v", err)
	}
}

// datagram returns a frame with a datagram of one byte. The kernel would not send one
// to 127.0.0.1.
func datagram(mac overlay.MAC, from *task, to netip.AddrPort) []byte {
	ip := []byte{0x45, 0, 0, 29, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	ip = append(append(ip, from.addr().AsSlice()...), to.Addr().AsSlice()...)
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(ip[i])<<8 | uint32(ip[i+1])
	}
	sum = ^(sum>>16 + sum&0xffff)
	ip[10], ip[11] = byte(sum>>8), byte(sum)
	frame := append(append(mac[:], from.on[0].MAC[:]...), 8, 0)
	frame = append(frame, ip...)
	return append(frame, 0x23, 0x28, byte(to.Port()>>8), byte(to.Port()), 0, 9, 0, 0, '?')
}
