// SPDX-License-Identifier: Apache-2.0

package clock

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

func TestMain(m *testing.M) {
	kit.ReapOrphans()
	kit.Main(m)
}

const image = "clock:base"

// programs builds a daemon and a shim with a clock of their own, and returns the
// folder with them.
func programs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	std := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	text, err := os.ReadFile(filepath.Join(std, "time.go"))
	if err != nil {
		t.Fatal(err)
	}
	const call = "sec, nsec, mono := runtimeNow()"
	if n := strings.Count(string(text), call); n == 0 {
		t.Fatalf("time.Now of this Go does not call %q: the test has to follow it", call)
	}
	moved, err := filepath.Abs("testdata/moved.go.txt")
	if err != nil {
		t.Fatal(err)
	}
	changed := filepath.Join(dir, "time.go")
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{
		filepath.Join(std, "time.go"): changed, filepath.Join(std, "moved.go"): moved,
	}})
	if err != nil {
		t.Fatal(err)
	}
	for path, b := range map[string][]byte{
		changed:                            []byte(strings.ReplaceAll(string(text), call, "sec, nsec, mono := movedNow()")),
		filepath.Join(dir, "overlay.json"): overlay,
		filepath.Join(dir, "clock"):        make([]byte, 8),
	} {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "build", "-trimpath", "-overlay", filepath.Join(dir, "overlay.json"), "-o", dir+"/", "holdfast/cmd/holdfastd", "holdfast/cmd/holdfast-shim")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build programs with another clock: %v\n%s", err, out)
	}
	return dir
}

// hand sets how far a clock is from the machine's.
type hand struct {
	t    *testing.T
	file *os.File
}

func newHand(t *testing.T, dir string) *hand {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "clock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &hand{t, f}
}

func (h *hand) set(by time.Duration) {
	h.t.Helper()
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], uint64(int64(by/time.Second)))
	if _, err := h.file.WriteAt(b[:], 0); err != nil {
		h.t.Fatal(err)
	}
}

// TestJumpsOfTheClockChangeNothingThatRuns: logs, restarts, health checks, stops,
// streams and adoption go on at their own pace.
func TestJumpsOfTheClockChangeNothingThatRuns(t *testing.T) {
	dir := programs(t)
	h := newHand(t, dir)
	d := kit.Start(t, kit.Options{LiveRestore: true, Binary: filepath.Join(dir, "holdfastd")})
	d.Load(image, kit.Busybox(t, nil))
	for i, jump := range []struct {
		name string
		from time.Duration
		to   time.Duration
	}{
		{"a day forward", 0, 24 * time.Hour},
		{"back by fifty years", 0, -50 * 365 * 24 * time.Hour},
		{"from the first day of a clock without a battery to now", -50 * 365 * 24 * time.Hour, 0},
	} {
		t.Run(jump.name, func(t *testing.T) {
			h.set(jump.from)
			// A daemon that begins with this clock.
			d.Kill9()
			d.Start()
			(&house{t, d, i + 1}).play(func() { h.set(jump.to) })
			h.set(0)
		})
	}
}

// house are the containers of one jump.
type house struct {
	t *testing.T
	d *kit.Daemon
	// plays is how many houses the daemon has had with this one.
	plays int
}

const counting = `i=0; while :; do echo line $i; i=$((i+1)); usleep 20000; done`

// slack is what anything may take on a busy machine beyond the time that it was asked to
// take. It is far less than any jump.
const slack = 30 * time.Second

func (o *house) play(jump func()) {
	t, d := o.t, o.d
	d.Holdfast("run", "-d", "--name", "steady", "--log-opt", "max-size=20k", "--log-opt", "max-file=100", image, "sh", "-c", counting)
	d.Holdfast("run", "-d", "--name", "checked", "--health-interval", "300ms", "--health-cmd", "echo x >> /checks", image, "sleep", "1d")
	d.Holdfast("run", "-d", "--name", "stubborn", "--stop-timeout", "3", image, "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
	follow := o.follow("logs", "-f", "steady")
	attach := o.follow("attach", "--no-stdin", "--sig-proxy=false", "steady")
	kit.Eventually(t, "the streams and the health checks have begun", func() bool {
		return follow.Load() > 0 && attach.Load() > 0 && o.checks() > 0
	})
	// What the jump must meet is begun last, so that it has not ended on a slow machine.
	d.Holdfast("run", "-d", "--name", "job", "--rm", image, "sh", "-c", "sleep 4; exit 5")
	waited := o.begin("wait", "job")
	d.Holdfast("run", "-d", "--name", "ill", "--health-interval", "300ms", "--health-start-period", "4s", "--health-start-interval", "300ms",
		"--health-retries", "1", "--health-cmd", "false", image, "sleep", "1d")
	d.Holdfast("run", "-d", "--name", "again", "--restart", "always", image, "sh", "-c", "usleep 100000; exit 3")
	kit.Eventually(t, "a restart", func() bool { return o.restarts() > 0 })
	ran := o.begin("exec", "steady", "sh", "-c", "sleep 3; echo done; exit 9")
	stopped := o.begin("stop", "stubborn")
	kit.Eventually(t, "the stop has begun", func() bool { return d.ShimState(o.id("stubborn")).Manual })
	before := map[string]string{}
	for _, name := range []string{"steady", "checked"} {
		before[name] = o.identity(name)
	}
	lines, joined, restarts, checks := follow.Load(), attach.Load(), o.restarts(), o.checks()

	jump()

	o.within("the streams go on", slack, func() bool { return follow.Load() > lines+50 && attach.Load() > joined+50 })
	o.within("the health checks go on", slack, func() bool { return o.checks() > checks+3 })
	o.within("the restarts go on", pause(restarts)+slack, func() bool { return o.restarts() > restarts })
	o.within("the start period ends", slack, func() bool { return d.Inspect("ill").State.Health.Status == "unhealthy" })
	if r := <-stopped; r.Code != 0 || r.took < 2*time.Second || r.took > slack {
		t.Errorf("the stop took %s: %+v", r.took, r.Result)
	}
	if r := <-ran; r.Code != 9 || r.Stdout != "done\n" {
		t.Errorf("the exec: %+v", r.Result)
	}
	if r := <-waited; r.Stdout != "5\n" {
		t.Errorf("the wait: %+v", r.Result)
	}
	if r := d.TryHoldfast("inspect", "job"); r.Code == 0 {
		t.Errorf("--rm was not carried out: %s", r.Stdout)
	}

	// The next daemon and the next shims.
	for _, name := range []string{"steady", "checked"} {
		kit.Kill(t, d.ShimState(o.id(name)).ShimPid)
	}
	d.Kill9()
	d.Start()
	for name, was := range before {
		if now := o.identity(name); now != was {
			t.Errorf("%s was %s and is %s", name, was, now)
		}
	}
	restarts, checks = o.restarts(), o.checks()
	o.within("the health checks go on after the restart", slack, func() bool { return o.checks() > checks+1 })
	o.within("the restarts go on after the restart", pause(restarts)+slack, func() bool { return o.restarts() > restarts })
	if h := d.Inspect("checked").State.Health; h == nil || h.Status != "healthy" {
		t.Errorf("the health is %+v", h)
	}
	for line := range strings.Lines(d.Holdfast("ps", "-a", "--format", "{{.Names}}: {{.Status}}")) {
		if strings.Contains(line, "-") {
			t.Errorf("a time is negative: %s", line)
		}
	}
	o.contiguous("logs", d.TryHoldfast("logs", "steady").Stdout)
	if tail := d.TryHoldfast("logs", "--tail", "5", "steady").Stdout; strings.Count(tail, "\n") != 5 {
		t.Errorf("five lines of the log are %q", tail)
	}
	d.Holdfast("rm", "-f", "steady", "again", "checked", "stubborn", "ill")
	o.judgeEvents()
}

// pause is how long the restart policy waits before the restart that follows so many. It
// doubles with each, as none of the runs lasts ten seconds.
func pause(restarts int) time.Duration {
	return min(100*time.Millisecond<<min(restarts, 20), time.Minute)
}

// within fails the test if something takes longer than it may.
func (o *house) within(what string, most time.Duration, holds func() bool) {
	o.t.Helper()
	began := time.Now()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for !holds() {
		if took := time.Since(began); took > most {
			o.t.Fatalf("not after %s: %s", took, what)
		}
		<-again.C
	}
}

func (o *house) restarts() int { return o.d.Inspect("again").RestartCount }

func (o *house) id(name string) string { return o.d.Inspect(name).ID }

func (o *house) identity(name string) string {
	c := o.d.Inspect(name)
	return fmt.Sprint(c.State.Pid, " since ", c.State.StartedAt)
}

func (o *house) checks() int {
	return strings.Count(o.d.TryHoldfast("exec", "checked", "cat", "/checks").Stdout, "x")
}

type timed struct {
	kit.Result
	took time.Duration
}

// begin runs a command in the background.
func (o *house) begin(args ...string) <-chan timed {
	done := make(chan timed, 1)
	began := time.Now()
	cmd := o.d.HoldfastCommand(context.Background(), args...)
	go func() { done <- timed{o.d.Run(cmd), time.Since(began)} }()
	return done
}

// follow reads a stream of numbered lines, and counts those that follow one another.
func (o *house) follow(args ...string) *atomic.Int64 {
	t := o.t
	t.Helper()
	cmd := o.d.HoldfastCommand(context.Background(), args...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(unix.SIGKILL)
		cmd.Wait()
	})
	seen := &atomic.Int64{}
	go func() {
		last := -1
		for in := bufio.NewScanner(out); in.Scan(); {
			n, err := strconv.Atoi(strings.TrimPrefix(in.Text(), "line "))
			if err != nil || last >= 0 && n != last+1 {
				t.Errorf("%v: %q comes after line %d", args, in.Text(), last)
			}
			last = n
			seen.Add(1)
		}
	}()
	return seen
}

func (o *house) contiguous(what, text string) {
	next := 0
	for line := range strings.Lines(text) {
		if line != fmt.Sprintf("line %d\n", next) {
			o.t.Errorf("%s: %q instead of line %d", what, line, next)
			return
		}
		next++
	}
	if next < 100 {
		o.t.Errorf("%s: %d lines", what, next)
	}
}

// names are those of all containers.
var names = []string{"steady", "again", "checked", "stubborn", "job", "ill"}

// judgeEvents: each container was created once and removed once, each start has one end,
// and a run lasted as long as it did, whatever the clock showed.
func (o *house) judgeEvents() {
	type event struct {
		Action string
		Actor  struct{ Attributes map[string]string }
	}
	// All times, whichever the clock showed: a stream without an end.
	ctx, cancel := context.WithTimeout(context.Background(), slack)
	defer cancel()
	cmd := o.d.HoldfastCommand(ctx, "events", "--since", "1", "--filter", "type=container", "--format", "json")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		o.t.Fatal(err)
	}
	defer func() {
		cancel()
		cmd.Wait()
	}()
	count := map[string]map[string]int{}
	left := o.plays * len(names) // the event that is the last by any clock is a removal
	for in := bufio.NewScanner(out); left > 0 && in.Scan(); {
		var e event
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			o.t.Fatal(err)
		}
		name := e.Actor.Attributes["name"]
		if count[name] == nil {
			count[name] = map[string]int{}
		}
		count[name][e.Action]++
		if e.Action == "destroy" {
			left--
		}
		if e.Action == "die" {
			if d, err := strconv.Atoi(e.Actor.Attributes["execDuration"]); err != nil || d < 0 || d > 1000 {
				o.t.Errorf("a run of %s lasted %q seconds", name, e.Actor.Attributes["execDuration"])
			}
		}
	}
	for _, name := range names {
		c := count[name]
		if c["create"] != o.plays || c["destroy"] != o.plays || c["start"] != c["die"] || c["start"] < o.plays {
			o.t.Errorf("%s has the events %v", name, c)
		}
	}
}
