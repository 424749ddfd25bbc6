// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/osthread"
	"holdfast/test/kit"
)

// site is an engine in a network namespace of its own, so that the interfaces
// and rules there are this engine's alone. A veth pair connects the namespace
// with that of a neighbour.
type site struct {
	*subject
	host, neighbour kit.Netns
	server, client  machine
	ports           map[int]string // by container port, the host port or address where the server is published
}

// machine is a running container.
type machine struct {
	id, address string
	ns          kit.Netns
}

const (
	hostAddress      = "192.0.2.1"
	neighbourAddress = "192.0.2.2"
	netName          = "bench"
	iperfPort        = 5201
	echoPort         = 7
)

// newSite starts an engine. It returns nil if the engine is not installed.
func newSite(t testing.TB, make func(kit.Netns) engine) *site {
	t.Helper()
	x := &site{ports: map[int]string{}, host: kit.NewNetns(t), neighbour: kit.NewNetns(t)}
	e := make(x.host)
	if e == nil {
		return nil
	}
	err := x.host.Run(func() error {
		cable := netlink.NewLinkAttrs()
		cable.Name = "cable"
		return errors.Join(
			netlink.LinkAdd(&netlink.Veth{LinkAttrs: cable, PeerName: "cable", PeerNamespace: netlink.NsFd(int(x.neighbour.File().Fd()))}),
			raise("cable", hostAddress))
	})
	if err == nil {
		err = x.neighbour.Run(func() error { return raise("cable", neighbourAddress) })
	}
	if err != nil {
		t.Fatal(err)
	}
	x.subject = &subject{engine: e}
	x.api, _ = connect(x.socket())
	x.start()
	if err := x.waitUp(); err != nil {
		t.Fatalf("%s does not answer: %v", x.name(), err)
	}
	x.api.must(t, "POST", "/images/load?quiet=1", kit.Archive(t, imageRef, kit.Image(t, kit.Busybox(t, nil), nil)), nil)
	x.api.must(t, "POST", "/networks/create", map[string]any{
		"Name": netName, "Driver": "bridge",
		// A network needs an explicit subnet before containers can request
		// addresses in it.
		"IPAM": map[string]any{"Config": []map[string]string{{"Subnet": "10.62.0.0/16"}}},
	}, nil)
	return x
}

// raise sets an interface in the thread's namespace up.
func raise(name, address string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if address != "" {
		a, err := netlink.ParseAddr(address + "/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// sleeper is the configuration of a container that does nothing, on the
// user-defined network.
func sleeper(ports map[int]string) map[string]any {
	exposed, bound := map[string]any{}, map[string]any{}
	for in, out := range ports {
		name := fmt.Sprintf("%d/tcp", in)
		exposed[name] = map[string]any{}
		bound[name] = []map[string]string{{"HostPort": out}}
	}
	return map[string]any{
		"Image": imageRef, "Cmd": []string{"sleep", "1000000"}, "StopSignal": "SIGKILL", "ExposedPorts": exposed,
		"HostConfig": map[string]any{"NetworkMode": netName, "PortBindings": bound},
	}
}

// launch does what "run -d --network" does.
func (x *site) launch(t testing.TB, ports map[int]string) (id string) {
	t.Helper()
	var c struct{ ID string }
	x.api.must(t, "POST", "/containers/create", sleeper(ports), &c)
	x.api.must(t, "POST", "/containers/"+c.ID+"/start", nil, nil)
	return c.ID
}

func (x *site) remove(t testing.TB, id string) {
	t.Helper()
	x.api.must(t, "DELETE", "/containers/"+id+"?force=1", nil, nil)
}

// machine returns the namespace and addresses of a running container. The
// namespace's file stays open until the end of the test. No interface outlives
// that, because the engine removes its interfaces itself.
func (x *site) machine(t testing.TB, id string) machine {
	t.Helper()
	var c struct {
		State           struct{ Pid int }
		NetworkSettings struct {
			Networks map[string]struct{ IPAddress string }
		}
	}
	x.api.must(t, "GET", "/containers/"+id+"/json", nil, &c)
	return machine{id, c.NetworkSettings.Networks[netName].IPAddress, kit.NetnsOf(t, c.State.Pid)}
}

// way returns how the server's port is reached in case n: from which namespace,
// and at which address.
func (x *site) way(n int) (from kit.Netns, where func(port int) string) {
	switch n {
	case 0:
		from = x.client.ns
	case 1:
		from = x.host
	default:
		return x.neighbour, func(port int) string { return net.JoinHostPort(hostAddress, x.ports[port]) }
	}
	return from, func(port int) string { return net.JoinHostPort(x.server.address, fmt.Sprint(port)) }
}

// measureNet measures networks, each engine in a namespace of its own. It runs
// last and is short, so it always has all its rounds.
func measureNet(t *testing.T, s scale, table *table) {
	own := newSite(t, func(ns kit.Netns) engine {
		return &holdfast{kit.New(t, kit.Options{LiveRestore: true, Disk: true}), t, ns}
	})
	sites := []*site{own}
	if beside() {
		other := newSite(t, func(ns kit.Netns) engine {
			if d := newDockerd(t, ns, "--userland-proxy=false"); d != nil {
				return d
			}
			return nil
		})
		if other != nil {
			sites = append(sites, other)
		}
	}
	if t.Failed() {
		return
	}
	measureLaunch(t, s, table, sites)
	if t.Failed() {
		return
	}
	measureAttach(t, s, table, own)
	if t.Failed() {
		return
	}
	for _, x := range sites {
		x.ports[iperfPort], x.ports[echoPort] = nextPort(), nextPort()
		x.server = x.machine(t, x.launch(t, x.ports))
		x.client = x.machine(t, x.launch(t, nil))
		defer echo(t, x.server.ns)()
	}
	if t.Failed() {
		return
	}
	trips, streams := map[string]map[string][]float64{}, map[string]map[string][]float64{}
	note := func(in map[string]map[string][]float64, row, who string, v float64, err error) {
		if err != nil {
			t.Errorf("%s, %s: %v", who, row, err)
			return
		}
		if in[row] == nil {
			in[row] = map[string][]float64{}
		}
		in[row][who] = append(in[row][who], v)
	}
	_, missing := exec.LookPath("iperf3")
	if missing == nil {
		for _, x := range sites {
			serveIperf(t, x.server.ns)
		}
	}
	// Load from other processes on the machine must meet all engines alike. So
	// the engines take short turns, and their order changes with each turn.
	for way, name := range []string{"container to container", "host to container", "neighbour to published port"} {
		conns := map[*site]*net.TCPConn{}
		for _, x := range sites {
			from, where := x.way(way)
			c, err := dial(from, where(echoPort))
			if err != nil {
				t.Errorf("%s, %s: %v", x.name(), name, err)
				return
			}
			defer c.Close()
			conns[x] = c
		}
		for range s.turns {
			slices.Reverse(sites)
			for _, x := range sites {
				us, err := roundTrip(conns[x], s.trips)
				note(trips, fmt.Sprintf(rowTrip, name), x.name(), us, err)
			}
			if t.Failed() {
				return
			}
		}
		for range s.pairs {
			if missing != nil {
				break
			}
			slices.Reverse(sites)
			for _, x := range sites {
				from, where := x.way(way)
				rate, err := iperf(from, where(iperfPort), s.stream)
				note(streams, fmt.Sprintf(rowStream, name), x.name(), rate, err)
			}
			if t.Failed() {
				return
			}
		}
	}
	for _, in := range []map[string]map[string][]float64{trips, streams} {
		for row, by := range in {
			table.setPairs(row, by)
		}
	}
	for _, x := range sites {
		x.remove(t, x.server.id)
		x.remove(t, x.client.id)
	}
}

// measureLaunch measures "run -d" on a user-defined network.
func measureLaunch(t *testing.T, s scale, table *table, sites []*site) {
	times := map[string][]time.Duration{}
	for round := range s.rounds + 1 {
		for _, x := range sites {
			begin := time.Now()
			id := x.launch(t, nil)
			if round > 0 { // the first round warms caches
				times[x.name()] = append(times[x.name()], time.Since(begin))
			}
			x.remove(t, id)
		}
		if t.Failed() {
			return
		}
	}
	for who, list := range times {
		table.set(rowLaunch, who, ms(median(list)))
	}
}

// measureAttach disconnects a running container with a published port from its
// network. Then it measures how long a new connection with the same address
// takes.
func measureAttach(t *testing.T, s scale, table *table, x *site) {
	const bundle = 100 // ports of one container
	var crowd []string
	for _, taken := range []int{0, s.taken} {
		for n := 0; n < taken; n += bundle {
			ports := map[int]string{}
			for i := range min(bundle, taken-n) {
				ports[2000+i] = nextPort()
			}
			crowd = append(crowd, x.launch(t, ports))
		}
		port := nextPort()
		id := x.launch(t, map[int]string{echoPort: port})
		if t.Failed() {
			return
		}
		m := x.machine(t, id)
		silence := echo(t, m.ns)
		again := map[string]any{"Container": id, "EndpointConfig": map[string]any{
			"IPAMConfig": map[string]string{"IPv4Address": m.address},
		}}
		var times []time.Duration
		for range s.rounds {
			x.api.must(t, "POST", "/networks/"+netName+"/disconnect", map[string]any{"Container": id}, nil)
			begin := time.Now()
			x.api.must(t, "POST", "/networks/"+netName+"/connect", again, nil)
			times = append(times, time.Since(begin))
			c, err := dial(x.neighbour, net.JoinHostPort(hostAddress, port))
			if err == nil {
				_, err = roundTrip(c, 1)
				c.Close()
			}
			if err != nil {
				t.Errorf("the published port does not answer after the connect: %v", err)
			}
			if t.Failed() {
				return
			}
		}
		silence()
		x.remove(t, id)
		table.set(fmt.Sprintf(rowAttach, taken), x.name(), ms(median(times)))
	}
	for _, id := range crowd {
		x.remove(t, id)
	}
}

// echo runs a TCP echo server in a namespace until end is called.
func echo(t testing.TB, ns kit.Netns) (end func()) {
	t.Helper()
	var l net.Listener
	err := ns.Run(func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", echoPort))
		return err
	})
	if err != nil {
		t.Error(err)
		return func() {}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = pinned(c.(*net.TCPConn), serverCPU, func(fd int) error {
					b := make([]byte, 1)
					for {
						if err := errors.Join(again(unix.Read, fd, b), again(unix.Write, fd, b)); err != nil {
							return err
						}
					}
				})
			}()
		}
	}()
	return func() { l.Close() }
}

func dial(from kit.Netns, address string) (c *net.TCPConn, err error) {
	err = from.Run(func() error {
		conn, err := net.DialTimeout("tcp4", address, 5*time.Second)
		if err == nil {
			c = conn.(*net.TCPConn)
		}
		return err
	})
	return c, err
}

// roundTrip is the median time in which a byte travels to the peer and back
// over a connection, in microseconds.
func roundTrip(c *net.TCPConn, trips int) (float64, error) {
	times := make([]time.Duration, trips)
	err := pinned(c, clientCPU, func(fd int) error {
		limit := unix.NsecToTimeval(int64(5 * time.Second))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		b := make([]byte, 1)
		for i := range times {
			begin := time.Now()
			if err := errors.Join(again(unix.Write, fd, b), again(unix.Read, fd, b)); err != nil {
				return err
			}
			times[i] = time.Since(begin)
		}
		return nil
	})
	return float64(median(times)) / float64(time.Microsecond), err
}

// The CPUs of the two ends of a connection. They are fixed, because the
// scheduler's choice would influence the figures more than the network does.
const clientCPU, serverCPU = 0, 0

// pinned calls fn with a connection's blocking socket in a thread that stays on
// one CPU. It bypasses the runtime's poller, whose wake-ups cost as much time
// as the network.
func pinned(c *net.TCPConn, cpu int, fn func(fd int) error) error {
	f, err := c.File()
	if err != nil {
		return err
	}
	defer f.Close()
	return osthread.Run(func() error {
		var set unix.CPUSet
		set.Set(cpu % runtime.NumCPU())
		fd := int(f.Fd())
		if err := errors.Join(unix.SchedSetaffinity(0, &set), unix.SetNonblock(fd, false)); err != nil {
			return err
		}
		return fn(fd)
	})
}

// again repeats a system call that signals of the Go runtime have interrupted.
func again(call func(int, []byte) (int, error), fd int, b []byte) error {
	for {
		n, err := call(fd, b)
		if err == nil && n == 0 {
			return io.EOF
		}
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// serveIperf runs an iperf3 server in a namespace until the end of the test.
func serveIperf(t testing.TB, ns kit.Netns) {
	t.Helper()
	cmd := exec.Command("iperf3", "-s", "-p", fmt.Sprint(iperfPort), "--forceflush")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = ns.Run(cmd.Start)
	}
	if err != nil {
		t.Error(err)
		return
	}
	ready := make(chan bool, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		lines := bufio.NewScanner(out)
		told := false
		for lines.Scan() {
			if !told && strings.Contains(lines.Text(), "listening") {
				told = true
				ready <- true
			}
		}
		if !told {
			ready <- false
		}
		cmd.Wait()
	}()
	t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	select {
	case ok := <-ready:
		if !ok {
			t.Error("the iperf3 server has exited")
		}
	case <-time.After(10 * time.Second):
		t.Error("the iperf3 server did not report that it listens")
	}
}

// iperf returns the rate that the receiver measured, in GB per second.
func iperf(from kit.Netns, address string, size []string) (float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	address, port, _ := net.SplitHostPort(address)
	cmd := exec.CommandContext(ctx, "iperf3", append([]string{"-c", address, "-p", port, "-J", "-A", fmt.Sprintf("%d,%d", clientCPU, serverCPU)}, size...)...)
	var text []byte
	err := from.Run(func() (err error) { text, err = cmd.Output(); return err })
	var report struct {
		Error string
		End   struct {
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if json.Unmarshal(text, &report) == nil && report.Error != "" {
		return 0, errors.New("iperf3: " + report.Error)
	}
	if err != nil {
		return 0, fmt.Errorf("iperf3: %w", err)
	}
	if report.End.Received.BitsPerSecond == 0 {
		return 0, errors.New("iperf3: nothing was received")
	}
	return report.End.Received.BitsPerSecond / 8e9, nil
}
