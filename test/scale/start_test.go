// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mdnetlink "github.com/mdlayher/netlink"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/dump"
	"holdfast/test/kit"
)

var containers = flag.Int("containers", 60, "how many run while the daemon is started")

const image = "busybox:test"

func TestMain(m *testing.M) { flag.Parse(); kit.Main(m) }

// many starts containers with two published ports each, and returns their IDs.
func many(tb testing.TB, d *kit.Daemon, c *client.Client, n int) []string {
	tb.Helper()
	ids, errs := make([]string, n), make([]error, n)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	local := []network.PortBinding{{HostIP: netip.MustParseAddr("127.0.0.1")}}
	for i := range n {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			created, err := c.ContainerCreate(context.Background(), client.ContainerCreateOptions{
				Config: &container.Config{
					Image: image, Cmd: []string{"sleep", "100000"}, StopSignal: "SIGKILL",
					ExposedPorts: network.PortSet{network.MustParsePort("80/tcp"): {}, network.MustParsePort("81/tcp"): {}},
				},
				HostConfig: &container.HostConfig{PortBindings: network.PortMap{
					network.MustParsePort("80/tcp"): local, network.MustParsePort("81/tcp"): local,
				}},
			})
			if err == nil {
				_, err = c.ContainerStart(context.Background(), created.ID, client.ContainerStartOptions{})
			}
			ids[i], errs[i] = created.ID, err
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			tb.Fatal(err)
		}
	}
	return ids
}

// seen returns the properties that must not change, for each container.
func seen(tb testing.TB, c *client.Client, ids []string) []string {
	tb.Helper()
	var out []string
	for _, id := range ids {
		r, err := c.ContainerInspect(context.Background(), id, client.ContainerInspectOptions{})
		if err != nil {
			tb.Fatal(err)
		}
		s, n := r.Container.State, r.Container.NetworkSettings
		out = append(out, fmt.Sprintf("%s %s pid %d since %s %q restarts %d at %s ports %v", id[:12], s.Status, s.Pid, s.StartedAt, s.Error,
			r.Container.RestartCount, n.Networks["bridge"].IPAddress, n.Ports))
	}
	return out
}

// monitor records the changes of a daemon's network, as "nft monitor" and "ip
// monitor" show them. It ignores other changes on the host.
type monitor struct {
	d     *kit.Daemon
	tb    testing.TB
	links map[int]string
	conns []*mdnetlink.Conn
	got   chan string
	wg    sync.WaitGroup
}

func watch(tb testing.TB, d *kit.Daemon) *monitor {
	tb.Helper()
	m := &monitor{d: d, tb: tb, links: map[int]string{}, got: make(chan string, 10000)}
	all, err := dump.Interfaces()
	if err != nil {
		tb.Fatal(err)
	}
	bridge := 0
	for _, l := range all {
		if l.Attrs().Name == d.Bridge {
			bridge = l.Attrs().Index
		}
	}
	for _, l := range all {
		if l.Attrs().Index == bridge || l.Attrs().MasterIndex == bridge {
			m.links[l.Attrs().Index] = l.Attrs().Name
		}
	}
	if bridge == 0 || len(m.links) < 2 {
		tb.Fatalf("the bridge %s has no ports: %v", d.Bridge, m.links)
	}
	// The kernel checks the interfaces' own addresses for duplicates. It sends
	// a notification two seconds after the addresses were added.
	kit.Eventually(tb, "all addresses are checked", func() bool {
		addrs, err := dump.Addrs(nil, netlink.FAMILY_V6)
		return err == nil && !slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
			return m.links[a.LinkIndex] != "" && a.Flags&unix.IFA_F_TENTATIVE != 0
		})
	})
	m.listen(unix.NETLINK_NETFILTER, m.rule, unix.NFNLGRP_NFTABLES)
	m.listen(unix.NETLINK_ROUTE, m.route, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	return m
}

func (m *monitor) listen(family int, each func(mdnetlink.Message) string, groups ...uint32) {
	m.tb.Helper()
	c, err := mdnetlink.Dial(family, nil)
	if err != nil {
		m.tb.Fatal(err)
	}
	m.conns = append(m.conns, c)
	if err := c.SetReadBuffer(16 << 20); err != nil {
		m.tb.Fatal(err)
	}
	for _, g := range groups {
		if err := c.JoinGroup(g); err != nil {
			m.tb.Fatal(err)
		}
	}
	m.wg.Go(func() {
		for {
			messages, err := c.Receive()
			if err != nil {
				if strings.Contains(err.Error(), "buffer") {
					m.got <- err.Error()
					continue
				}
				return
			}
			for _, msg := range messages {
				if what := each(msg); what != "" {
					m.got <- what
				}
			}
		}
	})
}

// rule describes a change of the daemon's table, including its elements.
func (m *monitor) rule(msg mdnetlink.Message) string {
	if len(msg.Data) < 4 {
		return ""
	}
	attrs, err := mdnetlink.UnmarshalAttributes(msg.Data[4:])
	if err != nil {
		return err.Error()
	}
	for _, a := range attrs {
		if a.Type == unix.NFTA_TABLE_NAME && string(bytes.TrimRight(a.Data, "\x00")) == m.d.Table {
			return fmt.Sprintf("nftables message %d", msg.Header.Type&0xff)
		}
	}
	return ""
}

// route describes a change of the bridge and its ports.
func (m *monitor) route(msg mdnetlink.Message) string {
	index := -1
	switch msg.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(msg.Data) >= 8 { // struct ifinfomsg and ifaddrmsg have the index at the same offset
			index = int(int32(binary.NativeEndian.Uint32(msg.Data[4:])))
		}
	}
	if name := m.links[index]; name != "" {
		return fmt.Sprintf("message %d of %s", msg.Header.Type, name)
	}
	return ""
}

// stop returns the recorded changes. It makes a change of its own; each socket
// delivers that after all earlier changes, so it ends the wait.
func (m *monitor) stop() []string {
	m.tb.Helper()
	nft := "add table inet " + m.d.Table + "; add chain inet " + m.d.Table + " ending; delete chain inet " + m.d.Table + " ending"
	if out, err := exec.Command("nft", nft).CombinedOutput(); err != nil {
		m.tb.Fatalf("nft: %v: %s", err, out)
	}
	if out, err := exec.Command("ip", "link", "set", m.d.Bridge, "txqueuelen", "999").CombinedOutput(); err != nil {
		m.tb.Fatalf("ip: %v: %s", err, out)
	}
	var rules, links []string
	late := time.After(30 * time.Second)
	// A chain added and removed, and one interface.
	for len(rules) < 2 || len(links) < 1 {
		select {
		case what := <-m.got:
			if strings.HasPrefix(what, "nftables") {
				rules = append(rules, what)
			} else {
				links = append(links, what)
			}
		case <-late:
			m.tb.Fatalf("the monitor does not see the test's own change: %v %v", rules, links)
		}
	}
	for _, c := range m.conns {
		c.Close()
	}
	m.wg.Wait()
	close(m.got)
	out := append(rules, links...)
	for what := range m.got {
		out = append(out, what)
	}
	return out
}

func mounts(tb testing.TB, d *kit.Daemon) []string {
	tb.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		tb.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, d.Root+"/") {
			out = append(out, line)
		}
	}
	slices.Sort(out)
	return out
}

// started holds the durations of a start, measured from exec.
type started struct{ answers, ready, managed time.Duration }

// restart kills the daemon and starts it again while all containers run.
func restart(tb testing.TB, d *kit.Daemon, c *client.Client, ids []string) started {
	tb.Helper()
	d.Kill9()
	return start(tb, d, c, ids)
}

func start(tb testing.TB, d *kit.Daemon, c *client.Client, ids []string) (s started) {
	tb.Helper()
	begin := time.Now()
	answered := make(chan time.Duration, 1)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	go func() {
		again := time.NewTicker(time.Millisecond)
		defer again.Stop()
		for ctx.Err() == nil {
			// The restore must not delay a list.
			if r, err := c.ContainerList(ctx, client.ContainerListOptions{}); err == nil && len(r.Items) == len(ids) {
				answered <- time.Since(begin)
				return
			}
			<-again.C
		}
	}()
	d.Start()
	s.ready = time.Since(begin)
	// A container is managed when its shim carries out a request.
	var wg sync.WaitGroup
	errs := make([]error, len(ids))
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < len(ids); i += 8 {
				_, errs[i] = c.ContainerKill(ctx, ids[i], client.ContainerKillOptions{Signal: "SIGURG"})
			}
		})
	}
	wg.Wait()
	s.managed = time.Since(begin)
	for _, err := range errs {
		if err != nil {
			tb.Fatal(err)
		}
	}
	select {
	case s.answers = <-answered:
	case <-ctx.Done():
		tb.Fatal("the list request was not answered")
	}
	return s
}

func TestStartOverManyContainersChangesNothing(t *testing.T) {
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	c := d.Client()
	ids := many(t, d, c, *containers)
	before, mounted := seen(t, c, ids), mounts(t, d)
	kit.AwaitAddresses(t)
	d.Kill9()
	m := watch(t, d)
	s := start(t, d, c, ids)
	t.Logf("%d containers with two ports each: all listed %s after exec, ready after %s, each one managed after %s", len(ids), s.answers, s.ready, s.managed)
	if after := seen(t, c, ids); !slices.Equal(before, after) {
		t.Errorf("the containers before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	if after := mounts(t, d); !slices.Equal(mounted, after) {
		t.Errorf("mounts were changed: %d before, %d after", len(mounted), len(after))
	}
	d.Kill9() // so that it does not repair the change that ends the monitoring
	if told := m.stop(); len(told) > 3 {
		t.Errorf("the kernel reported %d changes: %s", len(told), strings.Join(told[:min(20, len(told))], ", "))
	}
	d.Start()
}

// BenchmarkStartOverManyContainers makes the figures of docs/restart.md:
//
//	go test ./test/scale -bench . -containers 200
func BenchmarkStartOverManyContainers(b *testing.B) {
	d := kit.Start(b, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(b, nil))
	c := d.Client()
	ids := many(b, d, c, *containers)
	var sum started
	for b.Loop() {
		s := restart(b, d, c, ids)
		sum.answers += s.answers
		sum.ready += s.ready
		sum.managed += s.managed
	}
	n := float64(b.N)
	b.ReportMetric(float64(sum.answers.Milliseconds())/n, "ms-to-list")
	b.ReportMetric(float64(sum.ready.Milliseconds())/n, "ms-to-ready")
	b.ReportMetric(float64(sum.managed.Milliseconds())/n, "ms-to-managed")
}
