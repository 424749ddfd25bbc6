// SPDX-License-Identifier: Apache-2.0

// Package adopt tests that a container survives the death of its shim, of the
// daemon, or of both, and an upgrade of its shim. The container, its log and
// its ports stay intact, and later requests about it succeed. It needs root.
package adopt

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
	"holdfast/test/kit"
)

func TestMain(m *testing.M) {
	kit.ReapOrphans()
	kit.Main(m)
}

const image = "busybox:test"

func live(t *testing.T, config map[string]any) *kit.Daemon {
	t.Helper()
	d := kit.Start(t, kit.Options{LiveRestore: true, Config: config})
	d.Load(image, kit.Busybox(t, nil))
	return d
}

// identity returns the properties that must not change while a container runs.
func identity(t *testing.T, d *kit.Daemon, ref string) string {
	t.Helper()
	return d.Holdfast("inspect", "-f", "{{.State.Status}} {{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}} {{json .NetworkSettings.Ports}}", ref)
}

// killShim kills a container's shim, waits until it has died, and returns its
// pid.
func killShim(t *testing.T, d *kit.Daemon, id string) int {
	t.Helper()
	pid := d.ShimState(id).ShimPid
	kit.Kill(t, pid)
	return pid
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

// The shim dies alone, before the daemon or after it. Afterwards every
// operation on the container works.
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
				old := d.ShimState(id).ShimPid
				c.die(t, d, id)
				// The request waits for the new shim.
				if got := d.Holdfast("exec", "web", "echo", "works"); got != "works" {
					t.Errorf("exec: %q", got)
				}
				if now := d.ShimState(id); now.ShimPid == old || now.Status != proto.StatusRunning {
					t.Errorf("no new shim: %+v", now)
				}
				if after := identity(t, d, "web"); after != before {
					t.Errorf("was %s\nis  %s", before, after)
				}
				throughShim(t, port)
				if l, err := net.Listen("tcp4", "0.0.0.0:"+port); err == nil {
					l.Close()
					t.Error("another process can bind the container's port")
				}
			}
			noFailure(t, p)
			kit.Eventually(t, "health checks go on", func() bool {
				h := d.Inspect("web").State.Health
				return h.Status == "healthy" && len(h.Log) > 1
			})
			d.Holdfast("stop", "web")
			s := d.Inspect("web").State
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

// throughShim connects to the port over an IPv6 address of the host. The kernel
// does not translate such a connection; the shim forwards it.
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

// A container writes 100 MB of numbered lines while its shim is killed again
// and again, and the daemon replaces it each time.
func TestLogHasNoGapAndNoDoubleOverTheDeathsOfItsShim(t *testing.T) {
	t.Parallel()
	const lines = 1_000_000
	d := live(t, nil)
	id := d.Holdfast("run", "-d", "--name", "writer", image, "sh", "-c",
		fmt.Sprintf(`busybox awk 'BEGIN { for (i = 1; i <= %d; i++) printf "%%-99d\n", i }' || exit 1; exit 7`, lines))
	path := d.Holdfast("inspect", "-f", "{{.LogPath}}", "writer")
	kills := 0
	for grown := int64(10 << 20); waitGrown(t, path, grown, d.Inspect("writer").State.Pid); grown += 10 << 20 {
		killShim(t, d, id)
		kills++
		d.TryHoldfast("exec", "writer", "true") // the container may end at this moment
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

// waitGrown waits until a file has a size, and returns false if the process
// ends before.
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
	return kit.WaitGrown(t, path, size, pidfd)
}
