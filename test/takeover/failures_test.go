// SPDX-License-Identifier: Apache-2.0

package takeover

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"
)

// running is a daemon with a web server, and the properties of it that must not
// change.
type running struct {
	*kit.Daemon
	t      *testing.T
	probe  *kit.Prober
	before string
}

const identity = "{{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}} {{json .NetworkSettings.Networks}} {{json .NetworkSettings.Ports}}"

func start(t *testing.T, o kit.Options) *running {
	t.Helper()
	d := kit.Start(t, o)
	d.Load(image, kit.Busybox(t, nil))
	d.Holdfast("run", "-d", "--name", "web", "-p", "127.0.0.1::80", image, "httpd", "-f", "-h", "/www")
	p := kit.Probe(t, "http://"+d.Holdfast("port", "web", "80/tcp")+"/index.html")
	p.WaitAnswer(t)
	return &running{d, t, p, d.Holdfast("inspect", "-f", identity, "web")}
}

// unchanged checks that a daemon answers and manages containers, and that the
// container was not affected.
func (r *running) unchanged() {
	r.t.Helper()
	if after := r.Holdfast("inspect", "-f", identity, "web"); after != r.before {
		r.t.Errorf("\nbefore %s\nafter  %s", r.before, after)
	}
	if out := r.Holdfast("exec", "web", "echo", "hello"); out != "hello" {
		r.t.Errorf("exec: %q", out)
	}
	if out := r.Holdfast("run", "--rm", image, "echo", "new"); out != "new" {
		r.t.Errorf("run: %q", out)
	}
}

func (r *running) end() {
	r.t.Helper()
	if p := r.probe.Stop(); len(p.Failures) > 0 || p.Answered == 0 {
		r.t.Error(p)
	}
}

// lives lists how the daemon's lives ended, in their order.
func lives(t *testing.T, d *kit.Daemon) string {
	t.Helper()
	var s struct{ Lives []struct{ How string } }
	if err := json.Unmarshal([]byte(d.Holdfast("daemon", "status", "-f", "json")), &s); err != nil {
		t.Fatal(err)
	}
	var how []string
	for _, l := range s.Lives {
		how = append(how, l.How)
	}
	return strings.Join(how, ",")
}

func pidfile(t *testing.T, d *kit.Daemon) int {
	t.Helper()
	b, err := os.ReadFile(d.ExecRoot + "/holdfastd.pid")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(b))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return sysStat(st)
}

func TestOldDaemonServesOnWhereverTheNewOneDies(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"takeover.welcomed", "takeover.taken", "takeover.composed", "takeover.restored", "takeover.go", "takeover.serving"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			// Live restore is off: a failed handover must not be treated as a
			// crash either.
			d := start(t, kit.Options{LiveRestore: strings.HasSuffix(point, "d")})
			pid, socket := d.Pid(), inode(t, d.Socket)
			events := values[struct{ Action string }](open(t, d.Daemon, "GET", `/events?filters={"type":["volume"]}`))
			c := &plain{d: d.Daemon}
			if _, _, err := c.do("GET", "/_ping"); err != nil {
				t.Fatal(err)
			}
			asked := &loop{}
			ctx, stop := contextOf(t)
			over := make(chan struct{})
			go func() {
				defer close(over)
				asked.run(ctx, func() error { return call(client(d.Daemon, false), "GET", "http://h/containers/json", "") })
			}()
			if err := d.TryTakeover("HOLDFAST_FAILPOINT=" + point); err == nil {
				t.Fatal("the takeover succeeded")
			}
			if d.Pid() != pid || !d.Running() {
				t.Fatal("the old daemon has exited")
			}
			d.unchanged()
			stop()
			<-over
			// Connections that the new daemon had accepted just before its end
			// died with it.
			if len(asked.failed) > 0 && point != "takeover.serving" {
				t.Errorf("%d of %d requests failed:\n%s", len(asked.failed), asked.asked, strings.Join(asked.failed, "\n"))
			}
			if status, closed, err := c.do("GET", "/_ping"); status != 200 || closed || err != nil {
				t.Errorf("on the persistent connection: %d %v %v", status, closed, err)
			}
			d.Holdfast("volume", "create", "vv")
			await(t, "the event", events)
			if got := lives(t, d.Daemon); got != "" {
				t.Errorf("the lives ended %q", got)
			}
			if got := pidfile(t, d.Daemon); got != pid {
				t.Errorf("the pid file says %d, the daemon is %d", got, pid)
			}
			if inode(t, d.Socket) != socket {
				t.Error("the socket's file was replaced")
			}
			// The next takeover succeeds.
			d.Takeover()
			d.unchanged()
			if got := lives(t, d.Daemon); got != "handover," {
				t.Errorf("the lives ended %q", got)
			}
			d.end()
		})
	}
}

func TestNewDaemonServesWhereverTheOldOneDies(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"handover.welcomed", "handover.asked", "handover.paused", "handover.retired", "handover.given", "handover.ready", "handover.serving"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			d := start(t, kit.Options{LiveRestore: true, Env: []string{"HOLDFAST_FAILPOINT=" + point}})
			socket := inode(t, d.Socket)
			d.SetEnv()
			asked := &loop{}
			ctx, stop := contextOf(t)
			over := make(chan struct{})
			go func() {
				defer close(over)
				asked.run(ctx, func() error { return call(client(d.Daemon, false), "GET", "http://h/containers/json", "") })
			}()
			d.Takeover()
			old := d.Predecessors()[0]
			select {
			case <-old.Exited:
			case <-time.After(patience):
				t.Fatal("the old daemon still runs")
			}
			if old.Code != -1 {
				t.Errorf("the old daemon was not killed but ended with %d", old.Code)
			}
			d.unchanged()
			stop()
			<-over
			// Only requests that the old daemon had accepted may fail, and no
			// connection is refused.
			for _, f := range asked.failed {
				if strings.Contains(f, "refused") || strings.Contains(f, "no such file") {
					t.Error(f)
				}
			}
			if inode(t, d.Socket) != socket {
				t.Error("the socket's file was replaced")
			}
			if got := pidfile(t, d.Daemon); got != d.Pid() {
				t.Errorf("the pid file says %d, the daemon is %d", got, d.Pid())
			}
			d.Takeover()
			d.end()
		})
	}
}

func TestTakeoverWithoutADaemonIsAStart(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{LiveRestore: true})
	d.Kill9()
	d.SetFlags("--takeover")
	d.Start()
	d.SetFlags()
	d.unchanged()
	d.end()
}

func TestUpgradeStartsTheOtherDaemonAndSaysWhatBecameOfIt(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{LiveRestore: true})
	status := func() int {
		t.Helper()
		pid, err := strconv.Atoi(d.Holdfast("daemon", "status", "-f", "{{.Daemon.Pid}}"))
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	old := status()

	// A binary that is not a daemon is refused before anything happens.
	script := filepath.Join(d.Root, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho nonsense\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for binary, want := range map[string]string{
		"/no/such/holdfastd": "no such file", script: "it is no holdfastd", d.ConfigFile(): "can't be the next daemon",
	} {
		r := d.TryHoldfast("daemon", "upgrade", "--binary", binary)
		if r.Code != 1 || !strings.Contains(r.Stderr, want) || !strings.Contains(r.Stderr, binary) {
			t.Errorf("%s: %+v", binary, r)
		}
	}
	d.WriteConfig(map[string]any{"live-restore": "what"})
	if r := d.TryHoldfast("daemon", "upgrade"); r.Code != 1 || !strings.Contains(r.Stderr, "live-restore") {
		t.Errorf("%+v", r)
	}
	d.WriteConfig(map[string]any{"live-restore": true, "seccomp-profile": "/no/such/profile"})
	if r := d.TryHoldfast("daemon", "upgrade"); r.Code != 1 || !strings.Contains(r.Stderr, "can't be the next daemon") || !strings.Contains(r.Stderr, "/no/such/profile") {
		t.Errorf("%+v", r)
	}
	// A new daemon that fails at its start makes the takeover fail, and the old
	// daemon continues.
	d.WriteConfig(map[string]any{"live-restore": true, "hosts": []string{d.Host, "unix:///proc/nothing/x.sock"}})
	if r := d.TryHoldfast("daemon", "upgrade"); r.Code != 1 || !strings.Contains(r.Stderr, "the daemon is the one from before") || !strings.Contains(r.Stderr, "/proc/nothing") {
		t.Errorf("%+v", r)
	}
	if status() != old {
		t.Error("another daemon runs after a failed upgrade")
	}
	d.WriteConfig(map[string]any{"live-restore": true})
	d.unchanged()

	for range 2 {
		out := d.Holdfast("daemon", "upgrade", "--binary", kit.Binary(t, "holdfastd"))
		now := status()
		if now == old || !strings.Contains(out, "pid "+strconv.Itoa(now)) {
			t.Errorf("the daemon is process %d, but before it was %d: %s", now, old, out)
		}
		d.Became(now)
		old = now
		d.unchanged()
	}
	for _, p := range d.Predecessors() {
		<-p.Exited
	}
	if got := lives(t, d.Daemon); got != "handover,handover," {
		t.Errorf("the lives ended %q", got)
	}
	d.end()
}

func TestRequestUnderWayIsWaitedForWhileOthersAreAnswered(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{LiveRestore: true})
	d.Holdfast("run", "-d", "--name", "slow", image, "sh", "-c", "trap '' TERM; echo up; while :; do usleep 10000; done")
	stopping := make(chan kit.Result, 1)
	go func() { stopping <- d.TryHoldfast("stop", "-t", "4", "slow") }()
	// The stop is under way when its event has arrived.
	for e := range values[struct{ Action string }](open(t, d.Daemon, "GET", `/events?since=1&filters={"container":["slow"]}`)) {
		if e.Action == "kill" {
			break
		}
	}
	// This takeover waits for too short a time.
	r := d.TryHoldfast("daemon", "upgrade", "--wait", "1")
	if r.Code != 1 || !strings.Contains(r.Stderr, "too busy to hand over") || !strings.Contains(r.Stderr, "/containers/slow/stop") {
		t.Errorf("%+v", r)
	}
	asked := &loop{}
	ctx, stop := contextOf(t)
	over := make(chan struct{})
	go func() {
		defer close(over)
		asked.run(ctx, func() error { return call(client(d.Daemon, false), "GET", "http://h/_ping", "") })
	}()
	d.Takeover()
	if r := await(t, "the end of the stop", stopping); r.Code != 0 {
		t.Errorf("stop: %+v", r)
	}
	stop()
	<-over
	if len(asked.failed) > 0 || asked.slowest > 2500*time.Millisecond {
		t.Errorf("%d of %d failed, slowest %s", len(asked.failed), asked.asked, asked.slowest)
	}
	if got := d.Holdfast("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "slow"); got != "exited 137" {
		t.Error(got)
	}
	d.end()
}

func TestOnlyTheSameRootsAreHandedOver(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{Flags: []string{}})
	d.SetFlags("--data-root", d.Root+"/other")
	if err := d.TryTakeover(); err == nil || !strings.Contains(err.Error(), "a takeover can't change it") {
		t.Errorf("got %v", err)
	}
	d.SetFlags()
	if st, err := os.Stat(d.ExecRoot + "/handoff.sock"); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the handoff socket: %v %v", st, err)
	}
	resp, err := d.HTTP().Get("http://h/_ping")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
}

// A daemon holds each descriptor of its containers once, however many takeovers
// have failed.
func TestFailedTakeoversLeaveNoDescriptorsBehind(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	id := d.Holdfast("run", "-d", "--name", "box", image, "sleep", "1000")
	held := func() (n int) {
		links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", d.Pid()))
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			if to, err := os.Readlink(l); err == nil && strings.HasSuffix(to, id+"/stdout") {
				n++
			}
		}
		return n
	}
	if n := held(); n != 1 {
		t.Fatalf("the container's output is held %d times", n)
	}
	for range 3 {
		if err := d.TryTakeover("HOLDFAST_FAILPOINT=takeover.restored"); err == nil {
			t.Fatal("the takeover did not fail")
		}
	}
	// The descriptors of the last failed handover are closed in the background.
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for held() != 1 {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("after failed takeovers the container's output is held %d times", held())
		}
	}
}
