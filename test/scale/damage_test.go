// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

// web starts a container that answers on a port.
func web(t *testing.T, d *kit.Daemon) (id, addr string, p *kit.Prober) {
	t.Helper()
	d.Load(image, kit.Busybox(t, nil))
	id = d.Docker("run", "-d", "--name", "web", "-p", "127.0.0.1::80", image, "httpd", "-f", "-h", "/www")
	addr = d.Docker("port", "web", "80/tcp")
	p = kit.Probe(t, "http://"+addr)
	p.WaitAnswer(t)
	return id, addr, p
}

func link(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// damage is what is done to the resources of one daemon. Other programs work on
// the host, so nothing else may change.
var damage = map[string]func(t *testing.T, d *kit.Daemon) error{
	"the packet filter is flushed": func(t *testing.T, d *kit.Daemon) error {
		return exec.Command("nft", "flush table inet "+d.Table).Run()
	},
	"the packet filter is deleted": func(t *testing.T, d *kit.Daemon) error {
		return exec.Command("nft", "delete table inet "+d.Table).Run()
	},
	"the bridge has no address": func(t *testing.T, d *kit.Daemon) error {
		return exec.Command("ip", "addr", "flush", "dev", d.Bridge).Run()
	},
	"the bridge is down": func(t *testing.T, d *kit.Daemon) error { return netlink.LinkSetDown(link(t, d.Bridge)) },
	"the container's interface is down": func(t *testing.T, d *kit.Daemon) error {
		return exec.Command("sh", "-c", "ip link set $(basename $(dirname $(echo /sys/class/net/"+d.Bridge+"/brif/veth*/state | cut -d' ' -f1))) down").Run()
	},
}

func TestPortAnswersAgainAfterDamageWhileTheDaemonIsDead(t *testing.T) {
	for name, do := range damage {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := kit.Start(t, kit.Options{LiveRestore: true})
			_, addr, p := web(t, d)
			d.Kill9()
			if err := do(t, d); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(name, "packet filter") {
				// The shim reserves the port, and answers on it without the
				// kernel's translation.
				answers(t, p)
			} else {
				p.Wait(t, func(r kit.Report) bool { return len(r.Failures) > 0 })
			}
			d.Start()
			answers(t, p)
			translated(t, d, addr)
		})
	}
}

func TestPortAnswersAgainAfterDamageWithoutARestart(t *testing.T) {
	for name, do := range damage {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := kit.Start(t, kit.Options{LiveRestore: true})
			_, addr, p := web(t, d)
			if err := do(t, d); err != nil {
				t.Fatal(err)
			}
			kit.Eventually(t, "the daemon reports it", func() bool { return strings.Contains(d.Log(), "set up again") })
			answers(t, p)
			translated(t, d, addr)
		})
	}
}

// translated waits until the kernel translates the port to the container's
// address.
func translated(t *testing.T, d *kit.Daemon, addr string) {
	t.Helper()
	_, port, _ := net.SplitHostPort(addr)
	out, err := exec.Command("nft", "list", "table", "inet", d.Table).CombinedOutput()
	if err != nil || !strings.Contains(string(out), ". "+port+" ") {
		t.Errorf("the table has no port %s: %v\n%s", port, err, out)
	}
}

// answers waits for ten answers without a failure.
func answers(t *testing.T, p *kit.Prober) {
	t.Helper()
	var last kit.Report
	var base int
	p.Wait(t, func(r kit.Report) bool {
		if len(r.Failures) != len(last.Failures) || base == 0 {
			base = r.Answered
		}
		last = r
		return r.Answered >= base+10
	})
}

func TestPortTakenWhileNobodyHeldItIsToldOnTheContainer(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{LiveRestore: true})
	id, addr, p := web(t, d)
	p.Stop()
	var state struct{ ShimPid int }
	text, err := os.ReadFile(d.ExecRoot + "/shim/" + id + "/state.json")
	if err == nil {
		err = json.Unmarshal(text, &state)
	}
	if err != nil || state.ShimPid == 0 {
		t.Fatalf("state: %v: %s", err, text)
	}
	d.Kill9()
	if err := unix.Kill(state.ShimPid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var thief net.Listener
	kit.Eventually(t, "the port is free", func() bool {
		thief, err = net.Listen("tcp4", addr)
		return err == nil
	})
	defer thief.Close()
	d.Start()
	kit.Eventually(t, "inspect reports the error", func() bool {
		return strings.Contains(d.Docker("inspect", "-f", "{{.State.Error}}", "web"), "the host port "+addr+"/tcp was taken by another process")
	})
	if got := d.Docker("inspect", "-f", "{{.State.Status}}", "web"); got != "running" {
		t.Errorf("the container is %s", got)
	}
	// As the message says: stop the other process, and restart the container.
	thief.Close()
	d.Docker("restart", "-t", "1", "web")
	if got := d.Docker("inspect", "-f", "{{.State.Error}}", "web"); got != "" {
		t.Errorf("after a restart: %s", got)
	}
	kit.Probe(t, "http://"+d.Docker("port", "web", "80/tcp")).WaitAnswer(t)
}
