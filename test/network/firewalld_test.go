// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=SOCKET</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
`

// begin starts a program that runs until stop or the end of the test.
func (h *host) begin(name string, args ...string) (stop func()) {
	h.t.Helper()
	cmd := h.command(name, args...)
	cmd.Stderr = os.Stderr
	h.ok(cmd.Start())
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				h.t.Error(err)
			}
			cmd.Wait()
		}
	}
	h.t.Cleanup(stop)
	return stop
}

// bus starts a system bus in the host's namespace and connects to it.
func (h *host) bus() *dbus.Conn {
	h.t.Helper()
	// A socket's path must be short, so t.TempDir is not suitable.
	dir, err := os.MkdirTemp("", "hfbus")
	h.ok(err)
	h.t.Cleanup(func() { os.RemoveAll(dir) })
	socket, config := filepath.Join(dir, "sock"), filepath.Join(dir, "conf")
	h.ok(os.WriteFile(config, []byte(strings.Replace(busConfig, "SOCKET", socket, 1)), 0o600))
	ready, w, err := os.Pipe()
	h.ok(err)
	defer ready.Close()
	cmd := exec.Command("dbus-daemon", "--config-file="+config, "--nofork", "--nopidfile", "--print-address=3")
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stderr = os.Stderr
	h.ok(cmd.Start())
	h.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	w.Close()
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		h.t.Fatal("the bus did not start:", err)
	}
	h.zones = h.t.TempDir()
	h.t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+socket)
	conn, err := dbus.ConnectSystemBus()
	h.ok(err)
	h.t.Cleanup(func() { conn.Close() })
	return conn
}

// firewalld starts firewalld and waits until it answers.
func (h *host) firewalld(conn *dbus.Conn) (stop func()) {
	h.t.Helper()
	const name = "org.fedoraproject.FirewallD1"
	h.ok(conn.AddMatchSignal(dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, name)))
	owners := make(chan *dbus.Signal, 8)
	conn.Signal(owners)
	defer conn.RemoveSignal(owners)
	args := []string{"--nofork", "--nopid", "--log-target=console", "--system-config", h.zones}
	if unpacked := filepath.Join(debian, "usr/lib/firewalld"); exists(unpacked) {
		args = append(args, "--default-config", unpacked)
	}
	stop = h.begin("firewalld", args...)
	select {
	case <-owners:
	case <-time.After(time.Minute):
		h.t.Fatal("firewalld did not start")
	}
	var zones []string
	h.ok(conn.Object(name, "/org/fedoraproject/FirewallD1").Call(name+".zone.getZones", 0).Store(&zones))
	return stop
}

func TestEverythingWorksBesideFirewalld(t *testing.T) {
	clean(t)
	h := newHost(t, sixes)
	h.filterFrames()
	h.ok(h.m.Close())
	conn := h.bus()
	stop := h.firewalld(conn)
	zone := func(bridge string) string {
		return strings.TrimSpace(h.do("", "firewall-cmd", "--get-zone-of-interface="+bridge))
	}

	h.open(nil)
	h.says("firewalld accepts")
	w := newCrowd(h)
	w.works()
	if a, b := zone("hft0"), zone("hft9"); a != "trusted" || b != "trusted" {
		t.Errorf("zones: %s, %s", a, b)
	}
	if got := h.do("", "nft", "list", "table", "inet", "firewalld"); strings.Contains(got, "holdfast") {
		t.Error("firewalld's table was changed")
	}

	// The packets pass without a daemon too, and the next daemon changes
	// nothing.
	h.ok(h.m.Close())
	w.works()
	before := generation(t)
	h.log.take()
	h.open(h.stored(w.a, w.b, w.c))
	if now := generation(t); now != before {
		t.Errorf("the next daemon made firewalld change its rules %d times", now-before)
	}
	if got := h.log.take(); got != "" {
		t.Errorf("the next daemon said: %s", got)
	}

	for range 2 {
		h.do("", "firewall-cmd", "--reload")
		h.says("firewalld accepts")
		w.works()
	}
	stop()
	w.works()
	h.firewalld(conn)
	h.says("firewalld accepts")
	w.works()

	// The interface of a removed container is removed from firewalld, too.
	h.ok(h.m.Release(context.Background(), w.c.Sandbox))
	_, err := h.m.Remove(context.Background(), w.network)
	h.ok(err)
	if got := h.do("", "firewall-cmd", "--zone=trusted", "--list-interfaces"); strings.Contains(got, "hft9") {
		t.Errorf("in the zone: %s", got)
	}
	for _, c := range []*container{w.a, w.b} {
		h.ok(h.m.Release(context.Background(), c.Sandbox))
	}
	h.opts.Iptables, h.opts.Ip6tables = false, false
	h.open(nil)
	if got := h.do("", "firewall-cmd", "--zone=trusted", "--list-interfaces"); strings.Contains(got, "hft0") {
		t.Errorf("interfaces in the zone while the packet filter is disabled: %s", got)
	}
}

// An administrator who wants other rules for containers assigns a zone.
func TestZonesOfTheAdministratorsAreUsed(t *testing.T) {
	clean(t)
	h := newHost(t, nil)
	h.ok(h.m.Close())
	h.firewalld(h.bus())
	h.do("", "firewall-cmd", "--permanent", "--new-zone=holdfast")
	h.do("", "firewall-cmd", "--reload")
	h.do("", "firewall-cmd", "--zone=dmz", "--add-interface=hft9")
	h.open(nil)
	h.says("firewalld accepts")
	newCrowd(h)
	for bridge, want := range map[string]string{"hft0": "holdfast", "hft9": "dmz"} {
		if got := strings.TrimSpace(h.do("", "firewall-cmd", "--get-zone-of-interface="+bridge)); got != want {
			t.Errorf("%s is in the zone %s, want %s", bridge, got, want)
		}
	}
}
