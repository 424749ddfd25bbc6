// SPDX-License-Identifier: Apache-2.0

package networks

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"

	"golang.org/x/sys/unix"
)

// The shim forwards the connections that the kernel can't translate: here
// connections and datagrams to [::1].
func TestForwardedPortFollowsTheContainerToAnotherNetwork(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "one")
	h.d.Docker("network", "create", "two")
	h.run("ada", "--network", "one", "-p", "18090:80", "-p", "18090:53/udp", image, "sh", "-c", server)
	h.echo("ada", 53)
	answers := func() {
		t.Helper()
		for _, host := range []string{"127.0.0.1", "::1"} {
			at := net.JoinHostPort(host, "18090")
			h.equal(at, fetchHost("http://"+at+"/"), "ada")
			h.equal(at+" by udp", say(at), "ada")
		}
	}
	h.reaches("ada", "127.0.0.1", "ada")
	h.always(answers)
	h.d.Docker("network", "connect", "two", "ada")
	h.d.Docker("network", "disconnect", "one", "ada")
	h.always(answers)
	// A new shim knows the address as well.
	killShim(t, h, "ada")
	h.always(answers)
	h.d.Docker("network", "connect", "--gw-priority", "7", "one", "ada")
	h.always(answers)
	// Without any network the port remains reserved for the container and leads
	// nowhere, also when the next container gets the container's former
	// address.
	a := h.address("ada", "one")
	h.d.Docker("network", "disconnect", "two", "ada")
	h.d.Docker("network", "disconnect", "one", "ada")
	h.serve("bob", "--network", "one", "--ip", a)
	h.reaches("bob", "127.0.0.1", "bob")
	h.always(func() {
		for _, at := range []string{"127.0.0.1:18090", "[::1]:18090"} {
			if got := fetchHost("http://" + at + "/"); got == "ada" || got == "bob" {
				t.Errorf("%s: a container without a network: %q answers", at, got)
			}
		}
		if h.d.Running() {
			h.refused("port is already allocated", "run", "--rm", "-p", "18090:80", image)
		}
	})
	h.d.Docker("network", "connect", "two", "ada")
	h.always(answers)
}

// killShim kills a container's shim and waits for the next one.
func killShim(t *testing.T, h *house, name string) {
	t.Helper()
	var state struct{ ShimPid int }
	look := func() int {
		b, err := os.ReadFile(h.d.ExecRoot + "/shim/" + h.ids[name] + "/state.json")
		if err == nil {
			err = json.Unmarshal(b, &state)
		}
		if err != nil {
			t.Fatal(err)
		}
		return state.ShimPid
	}
	old := look()
	if err := unix.Kill(old, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	kit.Eventually(t, "a new shim is started", func() bool { return look() != old })
}

// echo starts a server in a container that answers datagrams with the
// container's name.
func (h *house) echo(name string, port int) {
	h.Helper()
	var f *os.File
	h.within(name, func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet6{Port: port})
		}
		f = os.NewFile(uintptr(fd), name)
		return err
	})
	c, err := net.FilePacketConn(f)
	f.Close()
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 1024)
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo([]byte(name), from)
		}
	}()
}

// say sends a datagram and returns the answer.
func say(to string) string {
	c, err := net.Dial("udp", to)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	buf := make([]byte, 1024)
	for range 5 {
		if _, err := c.Write([]byte("x\n")); err != nil {
			return err.Error()
		}
		c.SetReadDeadline(time.Now().Add(time.Second))
		n, rerr := c.Read(buf)
		if rerr == nil {
			return strings.TrimSpace(string(buf[:n]))
		}
		err = rerr
	}
	return fmt.Sprint(err)
}

func TestWithoutPacketFilterPortsFollowTheContainer(t *testing.T) {
	t.Parallel()
	h := newHouse(t, map[string]any{"iptables": false, "ip6tables": false})
	h.d.Docker("network", "create", "one")
	h.d.Docker("network", "create", "two")
	h.serve("ada", "--network", "one", "-p", "18091:80")
	h.reaches("ada", "127.0.0.1", "ada")
	check := func() { h.equal("published port", fetchHost("http://127.0.0.1:18091/"), "ada") }
	h.always(check)
	h.d.Docker("network", "connect", "two", "ada")
	h.d.Docker("network", "disconnect", "one", "ada")
	h.always(check)
}

func TestPortsArePublishedWhenTheFirstNetworkLeadsOut(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "--internal", "in")
	h.d.Docker("network", "create", "out")
	h.serve("ada", "--network", "in", "-p", "18092:80")
	h.serve("bob", "--network", "none", "-p", "18093-18099:80")
	h.equal("port", h.d.Docker("port", "ada"), "")
	h.d.Docker("network", "connect", "out", "ada")
	h.d.Docker("network", "connect", "out", "bob")
	h.has("port", h.d.Docker("port", "ada"), "80/tcp -> 0.0.0.0:18092", "80/tcp -> [::]:18092")
	h.reaches("ada", "127.0.0.1", "ada")
	h.always(func() {
		for _, at := range []string{"127.0.0.1", "::1"} {
			h.equal("port of ada", fetchHost("http://"+net.JoinHostPort(at, "18092")+"/"), "ada")
			h.equal("port of bob", fetchHost("http://"+net.JoinHostPort(at, "18093")+"/"), "bob")
		}
	})
	h.refused("port is already allocated", "run", "--rm", "-p", "18092:80", image)
}

// A port number that was allocated for IPv6 is kept when the container gets
// IPv4. A port that was requested for IPv6 alone stays there.
func TestPortsArePublishedOnIPv4WhenTheContainerGetsIt(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "--ipv4=false", "--ipv6", "six")
	h.d.Docker("network", "create", "four")
	h.serve("ada", "--network", "six", "-p", "80", "-p", "18194:80", "-p", "[::]:18195:80")
	h.serve("bob", "--network", "six", "-p", "18196:80")
	h.serve("eve", "-p", "127.0.0.1:18196:80")
	chosen := strings.TrimPrefix(strings.Fields(h.d.Docker("port", "ada", "80"))[0], "[::]:")
	for _, port := range []string{chosen, "18194"} {
		h.equal("before", fetchHost("http://[::1]:"+port+"/"), "ada")
	}
	h.d.Docker("network", "connect", "four", "ada")
	// Another container has the port: the connect fails, and both containers
	// stay as they are.
	h.refused("port is already allocated", "network", "connect", "four", "bob")
	h.always(func() {
		for _, at := range []string{"127.0.0.1", "[::1]"} {
			for _, port := range []string{chosen, "18194"} {
				h.equal(at+":"+port, fetchHost("http://"+at+":"+port+"/"), "ada")
			}
		}
		h.equal("IPv6 alone", fetchHost("http://[::1]:18195/"), "ada")
		if got := fetchHost("http://127.0.0.1:18195/"); got == "ada" {
			t.Error("a port published on IPv6 alone is open on IPv4")
		}
		h.equal("the other's", fetchHost("http://127.0.0.1:18196/"), "eve")
		h.equal("of the one that was refused", fetchHost("http://[::1]:18196/"), "bob")
		if l, err := net.Listen("tcp", "127.0.0.1:18194"); err == nil {
			l.Close()
			t.Error("another process can bind the port on IPv4")
		}
	})
	h.d.Docker("rm", "-f", "eve")
	delete(h.pids, "eve")
	h.d.Docker("network", "connect", "four", "bob")
	h.equal("when the other has gone", fetchHost("http://127.0.0.1:18196/"), "bob")
	h.d.Docker("rm", "-f", "ada", "bob")
	clear(h.pids)
	for _, at := range []string{"127.0.0.1:18194", "127.0.0.1:18196", "[::1]:18194"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Errorf("the port was not released: %v", err)
			continue
		}
		l.Close()
	}
}

// While no daemon lives the shim keeps the ports reserved: no other process can
// bind them.
func TestPortsAreHeldWhileNoDaemonLives(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "n")
	h.serve("ada", "--network", "n", "-p", "127.0.0.3:18100:80", "-p", "127.0.0.4:18100:80", "-p", "127.0.0.3:18100:53/udp", "-p", "127.0.0.5::80")
	h.echo("ada", 53)
	h.reaches("ada", "127.0.0.1", "ada")
	ports := strings.Fields(h.inspect("ada", `{{range index .NetworkSettings.Ports "80/tcp"}}{{.HostIp}}:{{.HostPort}} {{end}}`))
	h.equal("ports", fmt.Sprint(len(ports)), "3")
	h.always(func() {
		for _, at := range ports {
			h.equal(at, fetchHost("http://"+at+"/"), "ada")
			if l, err := net.Listen("tcp", at); err == nil {
				l.Close()
				t.Errorf("another process gets %s", at)
			}
		}
		h.equal("udp", say("127.0.0.3:18100"), "ada")
		if l, err := net.ListenPacket("udp", "127.0.0.3:18100"); err == nil {
			l.Close()
			t.Error("another process can bind the UDP port")
		}
	})
}
