// SPDX-License-Identifier: Apache-2.0

package overlay_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/dump"
	"holdfast/internal/network/overlay"
	"holdfast/internal/network/overlay/kernel"
	"holdfast/internal/network/swarmlb"
	lb "holdfast/internal/network/swarmlb/kernel"
	"holdfast/test/kit"
)

var (
	vip   = netip.MustParseAddr("10.7.1.2")
	other = netip.MustParseAddr("10.7.1.3")
)

// behind is a service with the tasks as backends.
func behind(vip netip.Addr, tasks ...*task) swarmlb.Service {
	s := swarmlb.Service{VIP: vip}
	for _, k := range tasks {
		s.Backends = append(s.Backends, k.addr())
	}
	return s
}

// apply applies the services in the task's namespace.
func (k *task) apply(services ...swarmlb.Service) (changed bool) {
	k.t.Helper()
	changed, err := lb.Apply(k.path, swarmlb.Task{Services: services})
	must(k.t, err)
	return changed
}

// threeTasks are a client and two servers, one on another host.
func threeTasks(t *testing.T) (client, a, b *task) {
	l := newLab(t, "192.0.2.0/24")
	h1, h2 := l.host(1), l.host(2)
	h1.ensure(front)
	h2.ensure(front)
	client = h1.task("client").join(front, "10.7.1.5/24", overlay.MAC{})
	a = h1.task("a").join(front, "10.7.1.6/24", overlay.MAC{}).serve()
	b = h2.task("b").join(front, "10.7.1.7/24", overlay.MAC{}).serve()
	h1.peers(front, true, client, a, b)
	h2.peers(front, true, client, a, b)
	return client, a, b
}

func TestVIPReachesAllBackendsInTurn(t *testing.T) {
	client, a, b := threeTasks(t)
	if !client.apply(behind(vip, a, b)) || client.apply(behind(vip, b, a)) {
		t.Error("a change is not reported, or one of the order alone is")
	}
	for _, network := range []string{"tcp4", "udp4"} {
		if by := client.asks(network, "10.7.1.2:80", 10); by["a"] != 5 || by["b"] != 5 {
			t.Errorf("%s: %v", network, by)
		}
	}
	client.wants("tcp4", "10.7.1.6:80", "a 10.7.1.5") // directly

	// A task that is a backend of its own service reaches itself, too.
	a.apply(behind(vip, a, b))
	if by := a.asks("tcp4", "10.7.1.2:80", 10); by["a"] != 5 || by["b"] != 5 {
		t.Errorf("from a backend: %v", by)
	}
}

func TestRemovedBackendGetsNothingNew(t *testing.T) {
	client, a, b := threeTasks(t)
	client.apply(behind(vip, a, b), behind(other, a))
	var open []net.Conn // to a and to b
	client.inside(func() error {
		for range 2 {
			c, err := net.DialTimeout("tcp4", "10.7.1.2:80", within)
			if err != nil {
				return err
			}
			open = append(open, c)
			if _, err := line(c, false); err != nil {
				return err
			}
		}
		return nil
	})
	if !client.apply(behind(vip, a), behind(other, a)) {
		t.Error("no change")
	}
	if by := client.asks("tcp4", "10.7.1.2:80", 10); by["a"] != 10 {
		t.Errorf("after the removal of b: %v", by)
	}
	for _, c := range open { // what exists is not cut off while b drains
		if got, err := line(c, true); err != nil || got != "?" {
			t.Errorf("an open connection: %q %v", got, err)
		}
	}
	// b is gone: its client is told, the other is not.
	n, err := lb.Forget(client.path, swarmlb.Task{Services: []swarmlb.Service{behind(vip, a)}})
	if err != nil || n != 1 {
		t.Errorf("forgot %d connections, %v; want 1", n, err)
	}
	failed := 0
	for _, c := range open {
		if _, err := line(c, true); err != nil {
			failed++
		}
		c.Close()
	}
	if failed != 1 {
		t.Errorf("%d connections were reset, want the one to b", failed)
	}
	if by := client.asks("tcp4", "10.7.1.3:80", 2); by["a"] != 2 {
		t.Errorf("the other service: %v", by)
	}
}

// A client that waits for its server sends nothing, so that no packet of its would be
// refused.
func TestClientThatOnlyWaitsLearnsThatItsBackendIsGone(t *testing.T) {
	client, a, b := threeTasks(t)
	client.apply(behind(vip, b))
	var c net.Conn
	client.inside(func() (err error) {
		c, err = net.DialTimeout("tcp4", "10.7.1.2:80", within)
		return err
	})
	defer c.Close()
	if _, err := line(c, false); err != nil {
		t.Fatal(err)
	}
	client.apply(behind(vip, a))
	if n, err := lb.Forget(client.path, swarmlb.Task{Services: []swarmlb.Service{behind(vip, a)}}); err != nil || n != 1 {
		t.Errorf("forgot %d connections, %v; want 1", n, err)
	}
	must(t, c.SetReadDeadline(time.Now().Add(within)))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the client waits on: %v", err)
	}
}

// Nothing of ours answers: the kernels of the hosts do.
func TestEndpointsAreAskedWhetherTheyAreThere(t *testing.T) {
	client, a, b := threeTasks(t)
	gone := netip.MustParseAddr("10.7.1.9")
	alive, err := kernel.Probe{Netns: client.path, From: client.addr()}.Alive([]netip.Addr{a.addr(), b.addr(), gone}, time.Second)
	if err != nil || len(alive) != 2 || !alive[a.addr()] || !alive[b.addr()] {
		t.Errorf("there are %v, %v", alive, err)
	}
}

func TestUDPDoesNotStickToARemovedBackend(t *testing.T) {
	client, a, b := threeTasks(t)
	client.apply(behind(vip, a))
	var c net.Conn
	client.inside(func() (err error) {
		c, err = net.Dial("udp4", "10.7.1.2:80")
		return err
	})
	defer c.Close()
	for range 2 {
		if got, err := line(c, true); err != nil || got != "a 10.7.1.5" {
			t.Fatalf("%q %v", got, err)
		}
	}
	client.apply(behind(vip, b))
	if got, err := line(c, true); err != nil || got != "b 10.7.1.5" {
		t.Errorf("after the change, from the same socket: %q %v", got, err)
	}
	client.apply(behind(vip))
	if got, err := line(c, true); err == nil {
		t.Errorf("without backends %q answers", got)
	}
	client.apply(behind(vip, a))
	if got, err := line(c, true); err != nil || got != "a 10.7.1.5" {
		t.Errorf("after the second change: %q %v", got, err)
	}
	dropTable(t, client.path, "")
	client.apply(behind(vip, b))
	if got, err := line(c, true); err != nil || got != "b 10.7.1.5" {
		t.Errorf("after a new table: %q %v", got, err)
	}
}

func TestServiceWithoutTasksRefusesAtOnce(t *testing.T) {
	client, a, _ := threeTasks(t)
	client.apply(behind(vip), behind(other, a))
	begun := time.Now()
	client.inside(func() error {
		if _, err := ask("tcp4", "10.7.1.2:80"); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("tcp: %v", err)
		}
		if _, err := ask("udp4", "10.7.1.2:80"); err == nil {
			t.Error("udp: an answer")
		}
		return nil
	})
	if took := time.Since(begun); took > time.Second {
		t.Errorf("it took %v", took)
	}
	client.wants("tcp4", "10.7.1.3:80", "a 10.7.1.5")
	client.apply(behind(vip, a))
	client.wants("tcp4", "10.7.1.2:80", "a 10.7.1.5")
	client.cannot("tcp4", "10.7.1.3:80") // its service was removed
}

// TestChangesLoseNoConnection changes the backends, which of two it is, and the whole
// table, while a client connects all the time.
func TestChangesLoseNoConnection(t *testing.T) {
	client, a, b := threeTasks(t)
	client.apply(behind(vip, a, b))
	var stop atomic.Bool
	done := make(chan error, 1)
	var asked int
	go func() {
		done <- kit.InNetns(client.path, func() error {
			for !stop.Load() {
				if _, err := ask("tcp4", "10.7.1.2:80"); err != nil {
					return fmt.Errorf("after %d connections: %w", asked, err)
				}
				asked++
			}
			return nil
		})
	}()
	for i := range 30 {
		client.apply(behind(vip, a), behind(other, b))
		client.apply(behind(vip, b))
		client.apply(behind(vip, a, b), behind(other, a))
		if i%5 == 0 {
			dropTable(t, client.path, "layout-")
		}
	}
	stop.Store(true)
	if err := <-done; err != nil || asked < 100 {
		t.Errorf("%d connections, %v", asked, err)
	}
}

// chainsOf returns the chains of a namespace.
func chainsOf(t *testing.T, netns string) (all []*nftables.Chain) {
	t.Helper()
	must(t, kit.InNetns(netns, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		var generations dump.Nftables
		defer generations.Close()
		all, err = dump.Ruleset(&generations, func() ([]*nftables.Chain, error) { return c.ListChainsOfTableFamily(nftables.TableFamilyIPv4) })
		return err
	}))
	return all
}

// dropTable deletes the chain that begins so, or with "" the table.
func dropTable(t *testing.T, netns, chain string) {
	t.Helper()
	ns, err := os.Open(netns)
	must(t, err)
	defer ns.Close()
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	must(t, err)
	table := &nftables.Table{Name: swarmlb.TaskTable, Family: nftables.TableFamilyIPv4}
	if chain == "" {
		c.DelTable(table)
		must(t, c.Flush())
		return
	}
	for _, have := range chainsOf(t, netns) {
		if strings.HasPrefix(have.Name, chain) {
			c.DelChain(have)
		}
	}
	must(t, c.Flush())
}

// TestTwoProcessesMayApply: the daemon prepares a namespace while the swarm process
// compares it.
func TestTwoProcessesMayApply(t *testing.T) {
	client, a, b := threeTasks(t)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 20 {
				task := swarmlb.Task{Services: []swarmlb.Service{behind(vip, a, b), behind(other, b)}}
				switch (i + j) % 4 {
				case 0:
					task.Services = task.Services[:1]
				case 1:
					task.Services[0] = behind(vip, b)
				case 2:
					task = swarmlb.Task{}
				}
				if _, err := lb.Apply(client.path, task); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	client.apply(behind(vip, a, b), behind(other, b))
	if client.apply(behind(vip, a, b), behind(other, b)) {
		t.Error("it takes two changes to be right")
	}
	for to, want := range map[string]int{"10.7.1.2:80": 5, "10.7.1.3:80": 0} {
		if by := client.asks("tcp4", to, 10); by["a"] != want || by["b"] != 10-want {
			t.Errorf("%s: %v", to, by)
		}
	}
}

// TestTableIsRepaired: a container with CAP_NET_ADMIN, or an interrupted change, left
// something else than the table.
func TestTableIsRepaired(t *testing.T) {
	client, a, b := threeTasks(t)
	client.apply(behind(vip, a))
	for name, c := range map[string]struct {
		damage func()
		seen   bool // by the names of the chains
	}{
		"without table": {func() { dropTable(t, client.path, "") }, true},
		"not completed": {func() { dropTable(t, client.path, "layout-") }, true},
		"flushed map": {func() {
			ns, err := os.Open(client.path)
			must(t, err)
			defer ns.Close()
			c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
			must(t, err)
			c.FlushSet(&nftables.Set{Table: &nftables.Table{Name: swarmlb.TaskTable, Family: nftables.TableFamilyIPv4}, Name: "vips"})
			must(t, c.Flush())
		}, false},
	} {
		c.damage()
		if client.apply(behind(vip, a)) != c.seen {
			t.Errorf("%s: it was not as expected whether that is seen", name)
		}
		if c.damage(); !client.apply(behind(vip, b)) {
			t.Errorf("%s: no change", name)
		}
		client.wants("tcp4", "10.7.1.2:80", "b 10.7.1.5")
		client.apply(behind(vip, a))
		client.wants("tcp4", "10.7.1.2:80", "a 10.7.1.5")
	}
}

// TestInterruptedChangeIsCompleted: a process died when new connections took their new
// way, and before the rest was done.
func TestInterruptedChangeIsCompleted(t *testing.T) {
	client, a, b := threeTasks(t)
	client.apply(behind(vip, a), behind(other, b))
	for _, stale := range []string{"vip-10.7.1.2-0123456789abcdef", "vip-10.7.1.9-0123456789abcdef"} {
		ns, err := os.Open(client.path)
		must(t, err)
		defer ns.Close()
		c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
		must(t, err)
		table := &nftables.Table{Name: swarmlb.TaskTable, Family: nftables.TableFamilyIPv4}
		c.AddChain(&nftables.Chain{Name: stale, Table: table})
		must(t, c.Flush())
		if !client.apply(behind(vip, a), behind(other, b)) {
			t.Errorf("%s: nothing was changed", stale)
		}
		for _, have := range chainsOf(t, client.path) {
			if have.Name == stale {
				t.Errorf("%s is left", stale)
			}
		}
		client.wants("tcp4", "10.7.1.2:80", "a 10.7.1.5")
		client.wants("tcp4", "10.7.1.3:80", "b 10.7.1.5")
	}
}

func TestNamespaceWithoutVIPsPaysNothing(t *testing.T) {
	client, a, _ := threeTasks(t)
	if client.apply() {
		t.Error("something was changed for no services")
	}
	client.wants("tcp4", "10.7.1.6:80", "a 10.7.1.5")
	flows := func() int {
		list, err := flowsOf(client.path)
		must(t, err)
		return len(list)
	}
	if n := flows(); n > 0 {
		t.Errorf("%d connections are tracked", n)
	}
	client.apply(behind(vip, a))
	client.wants("tcp4", "10.7.1.2:80", "a 10.7.1.5")
	if flows() == 0 {
		t.Error("this test does not see tracked connections")
	}
	if !client.apply() || client.apply() {
		t.Error("the table was not removed once")
	}
	client.cannot("tcp4", "10.7.1.2:80")
}

func flowsOf(path string) (list []*netlink.ConntrackFlow, err error) {
	err = kit.InNetns(path, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer h.Close()
		list, err = dump.Whole(func() ([]*netlink.ConntrackFlow, error) {
			return h.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		})
		return err
	})
	return list, err
}

// TestManyServices: the messages of a large table do not exceed their limits.
func TestManyServices(t *testing.T) {
	client, a, _ := threeTasks(t)
	services := []swarmlb.Service{behind(vip, a)}
	var many []netip.Addr
	for i := range 1000 {
		at := netip.AddrFrom4([4]byte{10, 7, 1 + byte(i/250), 5 + byte(i%250)})
		many = append(many, at)
		services = append(services, swarmlb.Service{VIP: at, Backends: []netip.Addr{a.addr()}})
	}
	services = append(services, swarmlb.Service{VIP: other, Backends: many})
	begun := time.Now()
	client.apply(services...)
	full := time.Since(begun)
	client.wants("tcp4", "10.7.1.2:80", "a 10.7.1.5")
	client.wants("tcp4", "10.7.1.200:80", "a 10.7.1.5")
	begun = time.Now()
	if client.apply(services...) {
		t.Error("a right table was changed")
	}
	same := time.Since(begun)
	begun = time.Now()
	services[5].Backends = nil
	client.apply(services...)
	t.Logf("1002 services: made in %v, compared in %v, one of them changed in %v", full, same, time.Since(begun))
	if _, err := lb.Apply(client.path, swarmlb.Task{Services: []swarmlb.Service{{VIP: vip, Backends: append(many, netip.MustParseAddr("10.7.9.1"))}}}); err == nil {
		t.Error("1001 tasks of one service are not refused")
	}
	client.apply()
}
