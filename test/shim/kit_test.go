// SPDX-License-Identifier: Apache-2.0

// Package shim runs real containers under the real shim binary. It needs root,
// runc and a static busybox. Every test has its own directory, runtime root and
// cgroup, and fails if it leaves anything behind.
package shim

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/client"
	"holdfast/internal/shim/proto"
	"holdfast/test/kit"
)

const busybox = "/bin/busybox"

var shimBinary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make containers and need root")
		return 1
	}
	dir, err := os.MkdirTemp("", "holdfast-shim-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	shimBinary = filepath.Join(dir, "holdfast-shim")
	if err := kit.BuildProgram(shimBinary, "holdfast/cmd/holdfast-shim", ""); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// box is a container with its directories and shims.
type box struct {
	t      testing.TB
	dir    string
	id     string
	cgroup string
	boot   proto.Bootstrap
	ports  []*os.File
	spec   map[string]any
	shims  []*client.Shim
	pids   map[int]uint64 // shims started, with their start times
}

// newBox prepares a container that runs sh -c script.
func newBox(t testing.TB, script string) *box {
	t.Helper()
	return newBoxArgs(t, "sh", "-c", script)
}

func newBoxArgs(t testing.TB, args ...string) *box {
	t.Helper()
	dir, err := os.MkdirTemp("", "holdfast-shim-")
	if err != nil {
		t.Fatal(err)
	}
	b := &box{t: t, dir: dir, id: filepath.Base(dir), pids: map[int]uint64{}}
	b.cgroup = "/" + b.id
	t.Cleanup(b.cleanup)
	for _, sub := range []string{"run", "data", "rootfs/bin", "rootfs/proc", "rootfs/dev", "rootfs/tmp", "rootfs/etc"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rootfs/bin/busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "cat", "sleep", "echo", "seq", "stty", "head", "true", "false", "id", "kill", "ls", "rm", "touch", "dd", "tail", "test", "mkdir"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "rootfs/bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	b.spec = map[string]any{
		"ociVersion": "1.0.2",
		"process":    process(args...),
		"root":       map[string]any{"path": filepath.Join(dir, "rootfs")},
		"hostname":   "box",
		"mounts": []any{
			map[string]any{"destination": "/proc", "type": "proc", "source": "proc"},
			map[string]any{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755", "size=65536k"}},
			map[string]any{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		"linux": map[string]any{
			"namespaces":  []any{ns("pid"), ns("mount"), ns("ipc"), ns("uts"), ns("network")},
			"cgroupsPath": b.cgroup,
		},
	}
	b.boot = proto.Bootstrap{
		ID: b.id, Life: 1, RunDir: filepath.Join(dir, "run"), DataDir: filepath.Join(dir, "data"), Bundle: filepath.Join(dir, "run"),
		Runtime:    proto.Runtime{Path: "runc", Args: []string{"--root", filepath.Join(dir, "runc")}},
		Log:        proto.Log{Driver: "json-file", Path: filepath.Join(dir, "data", b.id+"-json.log")},
		StopSignal: 15, StopTimeout: 10,
		Attributes: map[string]string{"name": "box", "image": "busybox"},
	}
	return b
}

func ns(kind string) any { return map[string]any{"type": kind} }

func process(args ...string) map[string]any {
	return map[string]any{
		"args": args, "cwd": "/", "env": []string{"PATH=/bin", "TERM=xterm"},
		"user": map[string]any{"uid": 0, "gid": 0},
		"capabilities": map[string]any{
			"bounding": []string{"CAP_KILL", "CAP_DAC_OVERRIDE"}, "effective": []string{"CAP_KILL", "CAP_DAC_OVERRIDE"}, "permitted": []string{"CAP_KILL", "CAP_DAC_OVERRIDE"},
		},
	}
}

func raw(t testing.TB, v any) json.RawMessage {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// spawn writes the bundle and starts the shim, but not the container.
func (b *box) spawn() *client.Shim {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.boot.Bundle, "config.json"), raw(b.t, b.spec), 0o644); err != nil {
		b.t.Fatal(err)
	}
	s, err := client.Spawn(ctx(b.t), client.Options{Binary: shimBinary, Bootstrap: b.boot, Ports: b.ports, Release: "test"})
	if err != nil {
		b.t.Fatal(err)
	}
	b.pids[s.Hello().Pid] = startTime(s.Hello().Pid)
	b.shims = append(b.shims, s)
	return s
}

func (b *box) dial() *client.Shim {
	b.t.Helper()
	s, err := client.Dial(ctx(b.t), b.boot.RunDir, "test")
	if err != nil {
		b.t.Fatal(err)
	}
	b.shims = append(b.shims, s)
	return s
}

// started spawns a shim, subscribes to it and starts the container.
func (b *box) started() (*client.Shim, *events) {
	b.t.Helper()
	s := b.spawn()
	ev := b.subscribe(s, 0)
	if _, err := s.Start(ctx(b.t)); err != nil {
		b.t.Fatal(err)
	}
	return s, ev
}

func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return c
}

// events collects the events that a subscriber receives.
type events struct {
	t    testing.TB
	mu   sync.Mutex
	list []proto.Event
	more chan struct{}
}

func (b *box) subscribe(s *client.Shim, after uint64) *events {
	b.t.Helper()
	ev := &events{t: b.t, more: make(chan struct{})}
	if err := s.Subscribe(ctx(b.t), after, func(e proto.Event) {
		ev.mu.Lock()
		ev.list = append(ev.list, e)
		close(ev.more)
		ev.more = make(chan struct{})
		ev.mu.Unlock()
	}); err != nil {
		b.t.Fatal(err)
	}
	return ev
}

// wait returns the first event for which fn returns true.
func (ev *events) wait(what string, fn func(proto.Event) bool) proto.Event {
	ev.t.Helper()
	timeout := time.After(time.Minute)
	for {
		ev.mu.Lock()
		for _, e := range ev.list {
			if fn(e) {
				ev.mu.Unlock()
				return e
			}
		}
		more := ev.more
		ev.mu.Unlock()
		select {
		case <-more:
		case <-timeout:
			ev.t.Fatalf("no event: %s; heard: %s", what, strings.Join(ev.actions(), " "))
		}
	}
}

func (ev *events) action(action string) proto.Event {
	ev.t.Helper()
	return ev.wait(action, func(e proto.Event) bool { return e.Action == action })
}

// actions returns the actions of the journalled events, in order.
func (ev *events) actions() []string {
	ev.mu.Lock()
	defer ev.mu.Unlock()
	var list []string
	for _, e := range ev.list {
		if e.Seq > 0 {
			list = append(list, e.Action)
		}
	}
	return list
}

// ended waits until the shim exits after the container's end.
func (b *box) ended(s *client.Shim) proto.State {
	b.t.Helper()
	select {
	case <-s.Done():
	case <-time.After(time.Minute):
		b.t.Fatalf("the shim did not exit\n%s", b.shimLog())
	}
	st, err := client.ReadState(b.boot.RunDir)
	if err != nil {
		b.t.Fatal(err)
	}
	return st
}

// exited waits until the process with this start time has exited. A zombie
// counts as exited.
func exited(pid int, start uint64) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	if startTime(pid) != start {
		return true
	}
	return kit.WaitReadable(fd, time.Minute) == nil
}

func startTime(pid int) uint64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	n, _ := strconv.ParseUint(f[19], 10, 64)
	return n
}

func (b *box) shimLog() string {
	data, _ := os.ReadFile(filepath.Join(b.boot.RunDir, proto.LogFile))
	return string(data)
}

// cleanup stops all processes that still run, and then checks that nothing is
// left behind.
func (b *box) cleanup() {
	t := b.t
	for _, s := range b.shims {
		s.Close()
	}
	if s, err := client.Dial(ctx(t), b.boot.RunDir, ""); err == nil {
		s.Stop(ctx(t), proto.Stop{Signal: 9})
		s.Shutdown(ctx(t))
		s.Close()
	}
	for pid, start := range b.pids {
		if !exited(pid, start) {
			t.Errorf("shim %d still runs", pid)
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	if t.Failed() {
		t.Logf("shim log:\n%s", b.shimLog())
	}
	out, err := exec.Command("runc", append(b.boot.Runtime.Args, "list", "-q")...).Output()
	if err == nil && len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("containers left: %s", out)
		exec.Command("runc", append(b.boot.Runtime.Args, "delete", "--force", b.id)...).Run()
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, b.dir+"/") {
				t.Errorf("mount left: %s", line)
				unix.Unmount(strings.Fields(line)[4], unix.MNT_DETACH)
			}
		}
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*" + b.cgroup)
	one, _ := filepath.Glob("/sys/fs/cgroup" + b.cgroup)
	for _, g := range append(groups, one...) {
		t.Errorf("cgroup left: %s", g)
		os.Remove(g)
	}
	if err := os.RemoveAll(b.dir); err != nil {
		t.Error(err)
	}
}

// logLines returns the lines of the container's log, by stream.
func (b *box) logLines(stream string) string {
	b.t.Helper()
	data, err := os.ReadFile(b.boot.Log.Path)
	if err != nil {
		b.t.Fatal(err)
	}
	var out strings.Builder
	for line := range bytes.Lines(data) {
		var l struct{ Log, Stream string }
		if err := json.Unmarshal(line, &l); err != nil {
			b.t.Fatalf("log line %q: %v", line, err)
		}
		if l.Stream == stream {
			out.WriteString(l.Log)
		}
	}
	return out.String()
}

// terminal is the client's end of an attached connection.
type terminal struct {
	t    testing.TB
	conn *net.UnixConn
}

// clientPair makes a client's connection, and the file of the other end for the
// shim.
func clientPair(t testing.TB) (*terminal, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "client")
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return &terminal{t, c.(*net.UnixConn)}, os.NewFile(uintptr(fds[1]), "theirs")
}

func (b *box) attach(s *client.Shim, a proto.Attach) *terminal {
	b.t.Helper()
	c, theirs := clientPair(b.t)
	defer theirs.Close()
	if err := s.Attach(ctx(b.t), a, theirs); err != nil {
		b.t.Fatal(err)
	}
	return c
}

// all reads to the end and splits the frames by stream.
func (c *terminal) all() (stdout, stderr string) {
	c.t.Helper()
	var out, errs strings.Builder
	for {
		var h [8]byte
		if _, err := io.ReadFull(c.conn, h[:]); err == io.EOF {
			return out.String(), errs.String()
		} else if err != nil {
			c.t.Fatalf("frame header: %v", err)
		}
		w := &out
		if h[0] == 2 {
			w = &errs
		}
		if _, err := io.CopyN(w, c.conn, int64(binary.BigEndian.Uint32(h[4:]))); err != nil {
			c.t.Fatalf("frame: %v", err)
		}
	}
}

// until reads raw bytes until they contain want.
func (c *terminal) until(want string) string {
	c.t.Helper()
	var got strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(got.String(), want) {
		n, err := c.conn.Read(buf)
		got.Write(buf[:n])
		if err != nil {
			c.t.Fatalf("want %q, got %q and %v", want, got.String(), err)
		}
	}
	return got.String()
}

func (c *terminal) write(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.conn, s); err != nil {
		c.t.Fatal(err)
	}
}
