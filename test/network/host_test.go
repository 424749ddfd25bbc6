// SPDX-License-Identifier: Apache-2.0

// Package network_test tests the engine's networking with the kernel. The tests
// need root. The test process runs in network and mount namespaces of its own,
// which stand for a host. Other namespaces stand for containers and for a
// machine on the host's network. The kernel removes them all when the process
// ends.
package network_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	apinet "github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/network"
	"holdfast/internal/network/bridge"
	"holdfast/internal/network/dump"
	"holdfast/test/kit"
)

func TestMain(m *testing.M) {
	kit.Isolate(unix.CLONE_NEWNS)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fmt.Fprintln(os.Stderr, "make the host's mounts private:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// The network between the host and the machine beside it.
const (
	hostAddr  = "192.0.2.1"
	lanAddr   = "192.0.2.9"
	hostAddr6 = "2001:db8::1"
	lanAddr6  = "2001:db8::9"
)

// host is an engine's networking on a host with a neighbour.
type host struct {
	t    *testing.T
	opts network.Options
	m    *network.Manager
	lan  string // path of the neighbour's namespace
	log  *logBuffer
	n    int
	// zones is the directory of firewalld's configuration.
	zones string
}

func newHost(t *testing.T, change func(*network.Options)) *host {
	t.Helper()
	dir := t.TempDir()
	h := &host{t: t, lan: filepath.Join(dir, "lan"), log: &logBuffer{}}
	h.opts = network.Options{
		Root: filepath.Join(dir, "networks"), ExecRoot: filepath.Join(dir, "run"),
		BridgeName: "hft0", ICC: true, IPMasq: true, IPForward: true,
		Iptables: true, Ip6tables: true, UserlandProxy: true,
		Log: slog.New(slog.NewTextHandler(h.log, nil)),
	}
	if change != nil {
		change(&h.opts)
	}
	t.Cleanup(h.cleanUp)
	h.addLAN()
	h.open(nil)
	return h
}

// addLAN makes the neighbour. A veth pair connects it to the host, where the
// interface is lan0.
func (h *host) addLAN() {
	h.t.Helper()
	h.ok(bridge.Join(bridge.Sandbox{Path: h.lan}))
	ns, err := os.Open(h.lan)
	h.ok(err)
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "lan0"
	h.ok(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.Fd())}))
	setUp := func(name string, addrs ...string) {
		link, err := netlink.LinkByName(name)
		h.ok(err)
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			h.ok(err)
			addr.Flags = unix.IFA_F_NODAD
			h.ok(netlink.AddrAdd(link, addr))
		}
		h.ok(netlink.LinkSetUp(link))
	}
	setUp("lan0", hostAddr+"/24", hostAddr6+"/64")
	h.in(h.lan, func() { setUp("eth0", lanAddr+"/24", lanAddr6+"/64") })
}

func (h *host) open(sandboxes map[string]network.Sandbox) {
	h.t.Helper()
	if h.m != nil {
		h.ok(h.m.Close())
	}
	m, err := network.Open(context.Background(), h.opts)
	h.ok(err)
	h.m = m
	h.ok(m.Restore(context.Background(), sandboxes, nil))
}

func (h *host) cleanUp() {
	if h.m != nil {
		h.m.Close()
	}
	paths, _ := filepath.Glob(filepath.Join(h.opts.ExecRoot, "shim", "*", "netns"))
	for _, p := range append(paths, h.lan) {
		if err := bridge.Leave(p); err != nil {
			h.t.Error(err)
		}
	}
	links, _ := dump.Interfaces()
	for _, l := range links {
		if l.Attrs().Name != "lo" {
			_ = netlink.LinkDel(l) // the other end of a veth pair may have been removed with it
		}
	}
	table := h.opts.Table
	if table == "" {
		table = "holdfast-" + h.opts.BridgeName
	}
	removeTable(h.t, table)
}

func (h *host) ok(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// in runs f on a thread in the namespace that is mounted at path. An empty path
// is the host's namespace.
func (h *host) in(path string, f func()) {
	h.t.Helper()
	if path == "" {
		f()
		return
	}
	h.ok(kit.InNetns(path, func() error {
		f()
		return nil
	}))
}

// container is a container with endpoints and published ports.
type container struct {
	network.Sandbox
	reserved []network.Reserved
}

func (c *container) ip() string { return c.Endpoints[0].IPv4.Address.Addr().String() }

func (h *host) id() string {
	h.n++
	return fmt.Sprintf("%064x", h.n)
}

// request is a request to publish the given ports, each as docker run -p takes
// it, but always with the container's port and protocol:
// [ip:][port]:port/proto.
func (h *host) request(ports ...string) network.Request {
	h.t.Helper()
	r := network.Request{ID: h.id(), PortBindings: apinet.PortMap{}}
	r.Name = "c" + r.ID[60:]
	for _, spec := range ports {
		i := strings.LastIndex(spec, ":")
		p := apinet.MustParsePort(spec[i+1:])
		b := apinet.PortBinding{HostPort: spec[:i]}
		if j := strings.LastIndex(spec[:i], ":"); j >= 0 {
			b.HostIP = netip.MustParseAddr(strings.Trim(spec[:j], "[]"))
			b.HostPort = spec[j+1 : i]
		}
		r.PortBindings[p] = append(r.PortBindings[p], b)
	}
	return r
}

func (h *host) run(r network.Request) *container {
	h.t.Helper()
	ctx := context.Background()
	s, reserved, err := h.m.Prepare(ctx, r)
	h.ok(err)
	c := &container{s, reserved}
	h.t.Cleanup(c.closePorts)
	h.ok(h.m.Join(ctx, s))
	h.ok(h.m.Publish(ctx, s))
	return c
}

func (c *container) closePorts() {
	for _, r := range c.reserved {
		r.File.Close()
	}
}

// serve runs a server in a namespace. It answers with its own name and the
// address that it sees the client at. No process accepts connections on the
// host's reserved sockets, so an answer proves that the kernel translated the
// address.
func (h *host) serve(path, network, addr, name string) {
	h.t.Helper()
	h.in(path, func() {
		if strings.HasPrefix(network, "udp") {
			c, err := net.ListenPacket(network, addr)
			if err != nil {
				h.t.Error(err)
				return
			}
			h.t.Cleanup(func() { c.Close() })
			go func() {
				buf := make([]byte, 1500)
				for {
					n, from, err := c.ReadFrom(buf)
					if err != nil {
						return
					}
					_, _ = c.WriteTo(fmt.Appendf(nil, "%s %s %s", name, host1(from), buf[:n]), from)
				}
			}()
			return
		}
		l, err := net.Listen(network, addr)
		if err != nil {
			h.t.Error(err)
			return
		}
		h.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(c, "%s %s", name, host1(c.RemoteAddr()))
				c.Close()
			}
		}()
	})
}

func host1(a net.Addr) string {
	host, _, _ := net.SplitHostPort(a.String())
	return host
}

// ask returns the words of the answer, or an error. patience limits the time
// until an answer must come.
func (h *host) ask(path, network, addr string, patience time.Duration) (answer []string, err error) {
	h.t.Helper()
	h.in(path, func() {
		var c net.Conn
		if c, err = net.DialTimeout(network, addr, patience); err != nil {
			return
		}
		defer c.Close()
		if err = c.SetDeadline(time.Now().Add(patience)); err != nil {
			return
		}
		if strings.HasPrefix(network, "udp") {
			if _, err = c.Write([]byte("hello")); err != nil {
				return
			}
		}
		buf := make([]byte, 1500)
		var n int
		if n, err = c.Read(buf); err == nil {
			answer = strings.Fields(string(buf[:n]))
		}
	})
	return answer, err
}

const (
	soon    = 5 * time.Second        // limit for an answer that must come
	silence = 300 * time.Millisecond // limit for an answer that must not come; on one host that is long enough
)

func (h *host) answers(path, network, addr, name, seenAs string) {
	h.t.Helper()
	got, err := h.ask(path, network, addr, soon)
	if err != nil || got[0] != name || seenAs != "" && got[1] != seenAs {
		h.t.Errorf("%s %s: got %q, %v; want %s, seen as %s", network, addr, got, err, name, seenAs)
	}
}

func (h *host) silent(path, network, addr string) {
	h.t.Helper()
	if got, err := h.ask(path, network, addr, silence); err == nil {
		h.t.Errorf("%s %s: got an answer: %q", network, addr, got)
	}
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// take returns the messages that were logged since the last call.
func (l *logBuffer) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.b.String()
	l.b.Reset()
	return s
}
