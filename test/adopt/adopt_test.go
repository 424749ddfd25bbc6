// Package adopt tests that no single death loses a container: its shim is
// killed, also together with the daemon, or goes on as another binary, and the
// container, its log, its ports and what is asked of it go on. It needs root.
package adopt

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	moby "github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
	"holdfast/test/kit"
)

func TestMain(m *testing.M) {
	beInit()
	kit.Main(m)
}

// beInit makes this process the one that orphans go to when the daemon is dead
// too, and reaps those that a container's end would wait for: the machine's
// first process may be one that reaps nothing.
func beInit() {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	go func() {
		for range ended {
			lists, _ := filepath.Glob("/proc/self/task/*/children")
			for _, path := range lists {
				b, _ := os.ReadFile(path)
				for pid := range strings.FieldsSeq(string(b)) {
					status, _ := os.ReadFile("/proc/" + pid + "/status")
					_, ns, _ := strings.Cut(string(status), "\nNSpid:")
					ns, _, _ = strings.Cut(ns, "\n")
					if f := strings.Fields(ns); strings.Contains(string(status), "\nState:\tZ") && len(f) > 1 && f[len(f)-1] != "1" {
						n, _ := strconv.Atoi(pid)
						unix.Wait4(n, nil, unix.WNOHANG, nil)
					}
				}
			}
		}
	}()
}

const image = "busybox:test"

func live(t *testing.T, config map[string]any) *kit.Daemon {
	t.Helper()
	d := kit.Start(t, kit.Options{LiveRestore: true, Config: config})
	d.Load(image, kit.Busybox(t, nil))
	return d
}

func inspect(t *testing.T, d *kit.Daemon, ref string) moby.InspectResponse {
	t.Helper()
	var c moby.InspectResponse
	if err := json.Unmarshal([]byte(d.Holdfast("inspect", "-f", "{{json .}}", ref)), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// identity is what must not change of a running container.
func identity(t *testing.T, d *kit.Daemon, ref string) string {
	t.Helper()
	return d.Holdfast("inspect", "-f", "{{.State.Status}} {{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}} {{json .NetworkSettings.Ports}}", ref)
}

// record is what the container's shim wrote last.
func record(t *testing.T, d *kit.Daemon, id string) (st proto.State) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.ExecRoot, "shim", id, proto.StateFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &st); err != nil {
		t.Fatal(err)
	}
	return st
}

// killShim kills a container's shim, and returns when it is gone.
func killShim(t *testing.T, d *kit.Daemon, id string) int {
	t.Helper()
	pid := record(t, d, id).ShimPid
	kill(t, pid)
	return pid
}

// kill kills a process and returns when it is gone, if only as a zombie.
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
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20_000); n != 1 {
		t.Fatalf("process %d does not die: %v", pid, err)
	}
}

func noFailure(t *testing.T, p *kit.Prober) {
	t.Helper()
	if r := p.Stop(); len(r.Failures) > 0 || r.Answered == 0 {
		t.Error(r)
	}
}

func events(d *kit.Daemon, id string) string {
	return d.Holdfast("events", "--since", "1", "--until", strconv.FormatInt(time.Now().Unix()+1, 10), "--filter", "container="+id,
		"--format", "{{.Action}} {{.Actor.Attributes.exitCode}}")
}

// eventually asks again and again until it is so: for what nothing tells of.
func eventually(t *testing.T, what string, fn func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(20 * time.Second)
	for !fn() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("not in time: " + what)
		}
	}
}

// However the shim dies, alone or with the daemon, everything works afterwards.
func TestContainerNeverNoticesTheDeathOfItsShim(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		die  func(t *testing.T, d *kit.Daemon, id string)
	}{
		{"the shim alone", func(t *testing.T, d *kit.Daemon, id string) { killShim(t, d, id) }},
		{"the daemon, then the shim", func(t *testing.T, d *kit.Daemon, id string) {
			d.Kill9()
			killShim(t, d, id)
			d.Start()
		}},
		{"the shim, then the daemon", func(t *testing.T, d *kit.Daemon, id string) {
			killShim(t, d, id)
			d.Kill9()
			d.Start()
		}},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			d := live(t, nil)
			port := freePort(t)
			id := d.Holdfast("run", "-d", "--name", "web", "-p", port+":80", "--health-cmd", "true", "--health-interval", "200ms",
				image, "sh", "-c", "echo first; trap 'echo stopped; exit 9' TERM; httpd -h /www -p 80; while :; do sleep 0.05; done")
			p := kit.Probe(t, "http://127.0.0.1:"+port+"/index.html")
			p.WaitAnswer(t)
			throughShim(t, port)
			before := identity(t, d, "web")
			for range 3 {
				old := record(t, d, id).ShimPid
				c.die(t, d, id)
				// What is asked waits for the new shim.
				if got := d.Holdfast("exec", "web", "echo", "works"); got != "works" {
					t.Errorf("exec: %q", got)
				}
				if now := record(t, d, id); now.ShimPid == old || now.Status != proto.StatusRunning {
					t.Errorf("no new shim: %+v", now)
				}
				if after := identity(t, d, "web"); after != before {
					t.Errorf("was %s\nis  %s", before, after)
				}
				throughShim(t, port)
				if l, err := net.Listen("tcp4", "0.0.0.0:"+port); err == nil {
					l.Close()
					t.Error("somebody else can take the port")
				}
			}
			noFailure(t, p)
			eventually(t, "health checks go on", func() bool {
				h := inspect(t, d, "web").State.Health
				return h.Status == "healthy" && len(h.Log) > 1
			})
			d.Holdfast("stop", "web")
			s := inspect(t, d, "web").State
			if s.ExitCode != 9 || s.Error != "" || s.Status != "exited" {
				t.Errorf("%+v", s)
			}
			if got := d.Holdfast("logs", "web"); got != "first\nstopped" {
				t.Errorf("logs: %q", got)
			}
			if got := events(d, id); strings.Count(got, "die 9") != 1 || strings.Count(got, "start ") != 1 {
				t.Errorf("events: %s", got)
			}
		})
	}
}

// throughShim asks the port over a connection that the kernel can't translate
// and the shim forwards.
func throughShim(t *testing.T, port string) {
	t.Helper()
	conn, err := net.Dial("tcp", "[::1]:"+port)
	if err != nil {
		t.Fatalf("the port is not reserved: %v", err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprint(conn, "GET /index.html HTTP/1.0\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || resp.StatusCode != 200 {
		t.Errorf("through [::1]: %v %v", resp, err)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// 100 MB of numbered lines, while the shim is killed and replaced by the daemon
// again and again.
func TestLogHasNoGapAndNoDoubleOverTheDeathsOfItsShim(t *testing.T) {
	t.Parallel()
	const lines = 1_000_000
	d := live(t, nil)
	id := d.Holdfast("run", "-d", "--name", "writer", image, "sh", "-c",
		fmt.Sprintf(`busybox awk 'BEGIN { for (i = 1; i <= %d; i++) printf "%%-99d\n", i }' || exit 1; exit 7`, lines))
	path := d.Holdfast("inspect", "-f", "{{.LogPath}}", "writer")
	kills := 0
	for grown := int64(10 << 20); waitGrown(t, path, grown, inspect(t, d, "writer").State.Pid); grown += 10 << 20 {
		killShim(t, d, id)
		kills++
		d.TryHoldfast("exec", "writer", "true") // it may end just now
	}
	if got := d.Holdfast("wait", "writer"); got != "7" {
		t.Errorf("exit code %s", got)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	next := 1
	for line := range bytes.Lines(data) {
		if !bytes.HasPrefix(line, []byte(`{"log":"`+strconv.Itoa(next)+" ")) || !bytes.HasSuffix(line, []byte("\"}\n")) {
			t.Fatalf("after line %d comes %.60q", next-1, line)
		}
		next++
	}
	if next-1 != lines || kills < 5 {
		t.Errorf("%d lines, %d were written; %d kills", next-1, lines, kills)
	}
	t.Logf("%d kills", kills)
}

// waitGrown waits until a file has a size, or the process has ended.
func waitGrown(t *testing.T, path string, size int64, pid int) bool {
	t.Helper()
	if pid == 0 {
		return false
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(pidfd)
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		t.Fatal(err)
	}
	var buf [4096]byte
	for {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Size() >= size {
			return true
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(pidfd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 60_000); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		if fds[1].Revents != 0 {
			return false
		}
		unix.Read(fd, buf[:])
	}
}
