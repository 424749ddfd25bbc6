// SPDX-License-Identifier: Apache-2.0

// Package overlay_test sends packets over the data plane of overlay networks:
// between hosts, which are network namespaces on one switch, and containers, which
// are namespaces with nothing but what the code under test made. No process belongs
// to the data plane: what is tested is the state of the kernel.
package overlay_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/overlay"
	"holdfast/internal/network/overlay/kernel"
	"holdfast/test/kit"
)

func TestMain(m *testing.M) {
	kit.Isolate(unix.CLONE_NEWNS)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fmt.Fprintln(os.Stderr, "make mounts private:", err)
		os.Exit(1)
	}
	kit.Main(m)
}

var ports int

// lab is a switch with hosts.
type lab struct {
	t     *testing.T
	dir   string
	name  string // of the switch
	lan   netip.Prefix
	tasks int
}

// host is a host on the switch.
type host struct {
	*lab
	kit.Netns
	addr netip.Addr
	data kernel.Host
}

func newLab(t *testing.T, lan string) *lab {
	l := &lab{t: t, dir: t.TempDir(), name: "switch", lan: netip.MustParsePrefix(lan)}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = l.name
	sw := &netlink.Bridge{LinkAttrs: attrs}
	must(t, netlink.LinkAdd(sw))
	t.Cleanup(func() { must(t, netlink.LinkDel(sw)) })
	must(t, netlink.LinkSetUp(sw))
	return l
}

// machine adds a namespace with an address to the switch.
func (l *lab) machine(last byte) (kit.Netns, netip.Addr) {
	l.t.Helper()
	n := kit.NewNetns(l.t)
	a := l.lan.Addr().As4()
	a[3] = last
	addr := netip.AddrFrom4(a)
	sw, err := netlink.LinkByName(l.name)
	must(l.t, err)
	attrs := netlink.NewLinkAttrs()
	ports++ // a former lab's port may exist until the kernel has removed its namespace
	attrs.Name, attrs.MasterIndex = fmt.Sprintf("port%d", ports), sw.Attrs().Index
	must(l.t, n.Run(func() error {
		// The other end is made in the switch's namespace, which is the process's.
		ns, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		defer ns.Close()
		done := make(chan error, 1)
		go func() {
			done <- netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.Fd())})
		}()
		return <-done
	}))
	port, err := netlink.LinkByName(attrs.Name)
	must(l.t, err)
	must(l.t, netlink.LinkSetUp(port))
	must(l.t, n.Run(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		ip := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(l.lan.Bits(), 32)}
		if err := netlink.AddrAdd(eth0, &netlink.Addr{IPNet: ip}); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(eth0); err != nil {
			return err
		}
		_, err = bridge.Forward(false)
		return err
	}))
	return n, addr
}

func (l *lab) host(last byte) *host {
	l.t.Helper()
	h := &host{lab: l, data: kernel.Host{Dir: filepath.Join(l.dir, fmt.Sprint("host", last))}}
	h.Netns, h.addr = l.machine(last)
	l.t.Cleanup(func() {
		networks, err := h.data.Networks()
		must(l.t, err)
		for _, n := range networks {
			endpoints, err := h.data.Endpoints(n)
			must(l.t, err)
			for _, e := range endpoints {
				must(l.t, h.data.RemoveEndpoint(n, e))
			}
			must(l.t, h.data.Remove(n))
		}
	})
	return h
}

func (h *host) ensure(n overlay.Network) (changed bool) {
	h.t.Helper()
	must(h.t, h.Run(func() (err error) {
		changed, err = h.data.Ensure(n)
		return err
	}))
	return changed
}

func (h *host) peers(n overlay.Network, complete bool, tasks ...*task) overlay.Changes {
	h.t.Helper()
	var peers []overlay.Peer
	for _, k := range tasks {
		if k.host != h {
			for _, e := range k.on {
				peers = append(peers, overlay.Peer{Addr: e.Addr.Addr(), MAC: e.MAC, Host: k.host.addr})
			}
		}
	}
	c, err := h.data.SetPeers(n, peers, complete)
	must(h.t, err)
	return c
}

// task is a container on a host.
type task struct {
	*host
	name string
	path string // of its network namespace
	on   []kernel.Endpoint
}

func (h *host) task(name string) *task {
	h.t.Helper()
	h.tasks++
	k := &task{host: h, name: name, path: filepath.Join(h.dir, fmt.Sprintf("task%d", h.tasks))}
	must(h.t, bridge.Join(bridge.Sandbox{Path: k.path}))
	path := k.path
	h.t.Cleanup(func() { must(h.t, bridge.Leave(path)) })
	return k
}

// join connects the task to a network.
func (k *task) join(n overlay.Network, addr string, mac overlay.MAC) *task {
	k.t.Helper()
	p := netip.MustParsePrefix(addr)
	if mac == (overlay.MAC{}) {
		mac = overlay.MACOf(p.Addr())
	}
	k.on = append(k.on, kernel.Endpoint{ID: fmt.Sprintf("%s%s", k.name, strings.Repeat("0", 20)), Netns: k.path, Name: fmt.Sprintf("eth%d", len(k.on)), Addr: p, MAC: mac})
	k.add(n)
	return k
}

func (k *task) add(n overlay.Network) {
	k.t.Helper()
	must(k.t, k.Run(func() error { return k.data.AddEndpoint(n, k.on[len(k.on)-1]) }))
}

func (k *task) addr() netip.Addr { return k.on[0].Addr.Addr() }

func (k *task) inside(fn func() error) {
	k.t.Helper()
	must(k.t, kit.InNetns(k.path, fn))
}

// serve answers each tcp connection and each datagram to port 80 with the task's name
// and the client's address, and then goes on to echo lines.
func (k *task) serve() *task {
	k.t.Helper()
	var l net.Listener
	var c net.PacketConn
	k.inside(func() (err error) {
		if l, err = net.Listen("tcp4", ":80"); err != nil {
			return err
		}
		c, err = net.ListenPacket("udp4", ":80")
		return err
	})
	k.t.Cleanup(func() { l.Close(); c.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				fmt.Fprintf(conn, "%s %s\n", k.name, host0(conn.RemoteAddr()))
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	go func() {
		b := make([]byte, 100)
		for {
			_, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo([]byte(fmt.Sprintf("%s %s\n", k.name, host0(from))), from)
		}
	}()
	return k
}

func host0(a net.Addr) string {
	h, _, _ := net.SplitHostPort(a.String())
	return h
}

// within is the time in which every answer of a working network arrives.
const within = 3 * time.Second

// ask connects and returns the line that the server begins with.
func ask(network, to string) (string, error) {
	c, err := net.DialTimeout(network, to, within)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return line(c, network == "udp4")
}

// line returns a line of the connection, after sending one if asked to.
func line(c net.Conn, send bool) (string, error) {
	must := c.SetDeadline(time.Now().Add(within))
	if must != nil {
		return "", must
	}
	if send {
		if _, err := c.Write([]byte("?\n")); err != nil {
			return "", err
		}
	}
	b := make([]byte, 100)
	n := 0
	for n == 0 || b[n-1] != '\n' {
		m, err := c.Read(b[n:])
		if err != nil {
			return "", err
		}
		n += m
	}
	return strings.TrimSpace(string(b[:n])), nil
}

// wants fails the test unless the task gets that answer.
func (k *task) wants(network, to, answer string) {
	k.t.Helper()
	var got string
	err := kit.InNetns(k.path, func() (err error) {
		got, err = ask(network, to)
		return err
	})
	if err != nil || got != answer {
		k.t.Errorf("%s asks %s at %s: got %q, %v; want %q", k.name, network, to, got, err, answer)
	}
}

// asks returns the number of answers by the name of the task that answered.
func (k *task) asks(network, to string, times int) map[string]int {
	k.t.Helper()
	by := map[string]int{}
	k.inside(func() error {
		for range times {
			got, err := ask(network, to)
			if err != nil {
				return err
			}
			name, _, _ := strings.Cut(got, " ")
			by[name]++
		}
		return nil
	})
	return by
}

// cannot fails the test if the task reaches an address.
func (k *task) cannot(network, to string) {
	k.t.Helper()
	err := kit.InNetns(k.path, func() error {
		c, err := net.DialTimeout(network, to, 500*time.Millisecond)
		if err != nil {
			return err
		}
		return errors.Join(c.Close(), errReached)
	})
	if err == nil || errors.Is(err, errReached) {
		k.t.Errorf("%s reaches %s", k.name, to)
	}
}

var errReached = errors.New("reached")

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
