// SPDX-License-Identifier: Apache-2.0

// Package crash tests the promises of live restore with real containers under a
// real daemon. The daemon is stopped, killed, or dies at a failpoint. A
// container never notices, and no state is lost, left behind or applied twice.
// It needs root.
package crash

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"holdfast/internal/shim/proto"
	"holdfast/test/kit"
)

func TestMain(m *testing.M) { kit.Main(m) }

// image is the name of the image in every daemon here.
const image = "busybox:test"

// start starts a daemon that has the image.
func start(t *testing.T, o kit.Options) *kit.Daemon {
	t.Helper()
	d := kit.Start(t, o)
	d.Load(image, kit.Busybox(t, nil))
	return d
}

func live(t *testing.T) *kit.Daemon {
	t.Helper()
	return start(t, kit.Options{LiveRestore: true})
}

// identity returns the properties that must not change while a container runs,
// in one line.
func identity(t *testing.T, d *kit.Daemon, ref string) string {
	t.Helper()
	c := d.Inspect(ref)
	var net []string
	for name, e := range c.NetworkSettings.Networks {
		net = append(net, fmt.Sprintf("%s %s %s", name, e.IPAddress, e.MacAddress))
	}
	ports, _ := json.Marshal(c.NetworkSettings.Ports)
	return fmt.Sprintf("%s pid %d started %s restarts %d network %v ports %s", c.State.Status, c.State.Pid, c.State.StartedAt, c.RestartCount, net, ports)
}

// web runs a container that serves /www on a port of 127.0.0.1, and returns the
// page's URL.
func web(t *testing.T, d *kit.Daemon, name string, more ...string) string {
	t.Helper()
	args := append([]string{"run", "-d", "--name", name, "-p", ownPort(t) + ":80"}, more...)
	d.Holdfast(append(args, image, "httpd", "-f", "-h", "/www")...)
	return page(d, name)
}

// ownPort returns a free port of 127.0.0.1 below the range that daemons
// allocate from. So no other daemon takes the port while it is unbound because
// the shim that reserved it was killed.
func ownPort(t *testing.T) string {
	t.Helper()
	for range 100 {
		address := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(10000))
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			return address
		}
	}
	t.Fatal("no free port from 20000 to 29999")
	return ""
}

func page(d *kit.Daemon, name string) string {
	return "http://" + strings.TrimSpace(d.Holdfast("port", name, "80/tcp")) + "/index.html"
}

// noFailure stops a prober and fails the test if a request failed.
func noFailure(t *testing.T, p *kit.Prober) {
	t.Helper()
	if r := p.Stop(); len(r.Failures) > 0 || r.Answered == 0 {
		t.Error(r)
	}
}

// record reads the state that a shim wrote last from its files, as a new daemon
// would.
func record(d *kit.Daemon, id string) (st proto.State) {
	for _, path := range []string{d.ExecRoot + "/shim/" + id + "/" + proto.StateFile, d.DataRoot + "/containers/" + id + "/" + proto.ExitFile} {
		if b, err := os.ReadFile(path); err == nil && json.Unmarshal(b, &st) == nil {
			return st
		}
	}
	return st
}

// rules returns the daemon's nftables tables as nft lists them, without
// counters.
func rules(t *testing.T, d *kit.Daemon) string {
	t.Helper()
	var out strings.Builder
	list, err := exec.Command("nft", "list", "tables").Output()
	if err != nil {
		t.Fatalf("nft list tables: %v", err)
	}
	for line := range strings.Lines(string(list)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != d.Table {
			continue
		}
		// With -a nft prints handles, so that a rule shows which was deleted
		// and added again.
		table, err := exec.Command("nft", "-a", "--stateless", "list", "table", f[1], f[2]).Output()
		if err != nil {
			t.Fatalf("nft list table: %v", err)
		}
		out.Write(table)
	}
	if out.Len() == 0 {
		t.Fatalf("no nftables table %s", d.Table)
	}
	return out.String()
}

// message is an event as `events --format json` prints it.
type message struct {
	Type     string
	Action   string
	TimeNano int64
	Actor    struct {
		ID         string
		Attributes map[string]string
	}
}

// events returns the events between a time and now, filtered by kind.
func events(t *testing.T, d *kit.Daemon, since time.Time, filters ...string) []message {
	t.Helper()
	args := []string{"events", "--format", "{{json .}}", "--since", stamp(since), "--until", stamp(time.Now())}
	for _, f := range filters {
		args = append(args, "--filter", f)
	}
	var out []message
	for line := range strings.Lines(d.Holdfast(args...)) {
		var m message
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		out = append(out, m)
	}
	return out
}

func stamp(at time.Time) string { return fmt.Sprintf("%d.%09d", at.Unix(), at.Nanosecond()) }

// count counts the events of an action.
func count(ms []message, action string) int {
	n := 0
	for _, m := range ms {
		if m.Action == action {
			n++
		}
	}
	return n
}

// background starts a command of the client that runs while the test continues.
func background(t *testing.T, d *kit.Daemon, args ...string) (*exec.Cmd, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return d.HoldfastCommand(ctx, args...), cancel
}
