// Package crash tests what live restore promises, on real containers under a
// real daemon that is stopped, killed, or dies at a named point of its own
// code: a container never notices the daemon, and nothing is lost, left behind
// or done twice. It needs root.
package crash

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	moby "github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

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

// inspect is a container as the API shows it.
func inspect(t *testing.T, d *kit.Daemon, ref string) moby.InspectResponse {
	t.Helper()
	var c moby.InspectResponse
	if err := json.Unmarshal([]byte(d.Holdfast("inspect", "-f", "{{json .}}", ref)), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// identity is what must not change of a running container, in one line.
func identity(t *testing.T, d *kit.Daemon, ref string) string {
	t.Helper()
	c := inspect(t, d, ref)
	var net []string
	for name, e := range c.NetworkSettings.Networks {
		net = append(net, fmt.Sprintf("%s %s %s", name, e.IPAddress, e.MacAddress))
	}
	ports, _ := json.Marshal(c.NetworkSettings.Ports)
	return fmt.Sprintf("%s pid %d started %s restarts %d network %v ports %s", c.State.Status, c.State.Pid, c.State.StartedAt, c.RestartCount, net, ports)
}

// web runs a container that serves /www on a port of 127.0.0.1, and gives the
// page's URL.
func web(t *testing.T, d *kit.Daemon, name string, more ...string) string {
	t.Helper()
	args := append([]string{"run", "-d", "--name", name, "-p", ownPort(t) + ":80"}, more...)
	d.Holdfast(append(args, image, "httpd", "-f", "-h", "/www")...)
	return page(d, name)
}

// ownPort is a free port of 127.0.0.1 that no other daemon picks by itself: it
// is below those that daemons count up from, so that it stays this test's also
// when a shim that kept it was killed.
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

// noFailure ends a prober that must not have seen one.
func noFailure(t *testing.T, p *kit.Prober) {
	t.Helper()
	if r := p.Stop(); len(r.Failures) > 0 || r.Answered == 0 {
		t.Error(r)
	}
}

// eventually waits for what nothing tells of.
func eventually(t *testing.T, what string, fn func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	for !fn() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		<-tick.C
	}
}

// record is what a shim wrote last, read from its files as a daemon would that
// was dead meanwhile.
func record(d *kit.Daemon, id string) (st proto.State) {
	for _, path := range []string{d.ExecRoot + "/shim/" + id + "/" + proto.StateFile, d.DataRoot + "/containers/" + id + "/" + proto.ExitFile} {
		if b, err := os.ReadFile(path); err == nil && json.Unmarshal(b, &st) == nil {
			return st
		}
	}
	return st
}

// alive reports whether a process lives, which a zombie does not.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil || pid <= 0 {
		return false
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	return len(f) > 0 && f[0] != "Z" && f[0] != "X"
}

// shimsOf are the pids of a container's shims: one, if all is well.
func shimsOf(t testing.TB, id string) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, f := range files {
		b, _ := os.ReadFile(f)
		if string(b) == "holdfast-shim\x00"+id+"\x00" {
			var pid int
			fmt.Sscanf(f, "/proc/%d/", &pid)
			if alive(pid) {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// kill kills a process that the test's daemon started.
func kill(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 30_000)
		if err == unix.EINTR {
			continue
		}
		if n == 0 || err != nil {
			t.Fatalf("process %d does not die: %v", pid, err)
		}
		return
	}
}

// rules are the daemon's nftables tables as nft lists them, but for counters.
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
		// With handles: a rule that was deleted and made again shows.
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

// events are those of the journal since a time, up to now, of one kind.
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

// background starts a command of the client that goes on beside the test.
func background(t *testing.T, d *kit.Daemon, args ...string) (*exec.Cmd, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return d.HoldfastCommand(ctx, args...), cancel
}
