// SPDX-License-Identifier: Apache-2.0

package daemonless

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"

	"golang.org/x/sys/unix"
)

// loop exits at once on SIGTERM, and with 7 on SIGUSR1.
const loop = `trap 'exit 0' TERM; trap 'exit 7' USR1; while :; do sleep 0.05; done`

func TestStoppedWithoutADaemonStaysStopped(t *testing.T) {
	d := start(t, kit.Options{})
	for name, policy := range map[string]string{"unless": "unless-stopped", "failure": "on-failure", "always": "always"} {
		d.Holdfast("run", "-d", "--name", name, "--restart", policy, "busybox", "sh", "-c", loop)
	}
	d.Holdfast("run", "-d", "--name", "killed", "--restart", "unless-stopped", "busybox", "sh", "-c", loop)
	d.Kill9()
	for _, name := range []string{"unless", "failure", "always"} {
		if got := ok(t, d, "stop", name); got != name {
			t.Errorf("stop printed %q", got)
		}
	}
	ok(t, d, "kill", "killed")
	if got := ok(t, d, "ps", "-q"); got != "" {
		t.Errorf("after the stop ps shows %q", got)
	}
	if got := ok(t, d, "inspect", "-f", "{{.State.ExitCode}} {{.RestartCount}}", "unless", "killed"); got != "0 0\n137 0" {
		t.Errorf("exit codes and restarts are %q", got)
	}
	d.Start()
	// As in Docker, the policy always also restarts the container when the
	// daemon starts.
	kit.Eventually(t, "the container with the policy always runs again", func() bool { return d.Holdfast("ps", "--format", "{{.Names}}") != "" })
	if got := d.Holdfast("ps", "--format", "{{.Names}}"); got != "always" {
		t.Errorf("after the daemon's start %q run", got)
	}
	d.Restart()
	kit.Eventually(t, "the container with the policy always runs again", func() bool { return d.Holdfast("ps", "--format", "{{.Names}}") != "" })
	if got := d.Holdfast("ps", "--format", "{{.Names}}"); got != "always" {
		t.Errorf("after another start %q run", got)
	}
}

func TestStopTakesItsTimeAndThenKills(t *testing.T) {
	d := start(t, kit.Options{})
	d.Holdfast("run", "-d", "--name", "deaf", "busybox", "sh", "-c", "trap '' TERM; while :; do sleep 0.05; done")
	d.Kill9()
	before := time.Now()
	ok(t, d, "stop", "-t", "1", "deaf")
	if took := time.Since(before); took < time.Second || took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	if got := ok(t, d, "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "deaf"); got != "exited 137" {
		t.Error(got)
	}
	if got := ok(t, d, "wait", "deaf"); got != "137" {
		t.Error(got)
	}
}

// The shim that waits to send SIGKILL is killed, and there is no daemon that could
// start another.
func TestStopEndsThoughTheShimIsKilledMeanwhile(t *testing.T) {
	d := start(t, kit.Options{})
	id := d.Holdfast("run", "-d", "--name", "deaf", "busybox", "sh", "-c", "trap 'echo heard' TERM; while :; do sleep 0.05; done")
	pid := d.Inspect("deaf").State.Pid
	d.Kill9()
	stopped := make(chan kit.Result, 1)
	go func() { stopped <- d.TryHoldfast("stop", "-t", "2", "deaf") }()
	kit.Eventually(t, "the container has got the signal", func() bool { return strings.Contains(ok(t, d, "logs", "deaf"), "heard") })
	for _, shim := range kit.Shims(t, id) {
		if err := unix.Kill(shim, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case r := <-stopped:
		if r.Code != 0 {
			t.Errorf("%+v", r)
		}
	case <-time.After(patience):
		t.Fatal("the stop does not end")
	}
	if kit.Alive(pid) {
		t.Error("the container's process still runs")
	}
	d.Start()
	if s := d.Inspect("deaf").State; s.Status != "exited" {
		t.Errorf("%+v", s)
	}
}

// A frozen process receives no signal, and there is neither a shim nor a daemon that would
// thaw it. What the command has begun ends with the command.
func TestPausedContainerIsStoppedWithoutAnyShim(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   []string
	}{
		{"stop", []string{"stop", "-t", "1", "still"}},
		{"stop with a signal that it handles", []string{"stop", "-t", "60", "-s", "TERM", "still"}},
		{"kill", []string{"kill", "still"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := start(t, kit.Options{})
			id := d.Holdfast("run", "-d", "--name", "still", "busybox", "sh", "-c", strings.Replace(loop, "exit 0", "exit 7", 1))
			pid := d.Inspect("still").State.Pid
			d.Holdfast("pause", "still")
			d.Kill9()
			for _, shim := range kit.Shims(t, id) {
				kit.Kill(t, shim)
			}
			if r := alone(t, d, tt.do...); r.Code != 0 {
				t.Errorf("%+v", r)
			}
			kit.Eventually(t, "the container's process has ended", func() bool { return !kit.Alive(pid) })
			d.Start()
			if s := d.Inspect("still").State; s.Status != "exited" {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestWaitAndFollowedLogEndWithTheContainer(t *testing.T) {
	d := start(t, kit.Options{})
	d.Holdfast("run", "-d", "--name", "web", "busybox", "sh", "-c", "echo begun; "+loop)
	d.Kill9()
	wait := d.HoldfastCommand(context.Background(), "wait", "web")
	var code, lines bytes.Buffer
	wait.Stdout = &code
	follow := d.HoldfastCommand(context.Background(), "logs", "-f", "web")
	out, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []interface{ Start() error }{wait, follow} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	scan := bufio.NewScanner(out)
	for i := 0; scan.Scan(); i++ {
		lines.WriteString(scan.Text() + "\n")
		if i == 0 {
			// The log is followed: new lines are shown as well.
			if r := alone(t, d, "exec", "web", "sh", "-c", "echo more > /proc/1/fd/1"); r.Code != 0 {
				t.Errorf("%+v", r)
			}
		} else {
			ok(t, d, "kill", "-s", "USR1", "web")
		}
	}
	if err := follow.Wait(); err != nil || lines.String() != "begun\nmore\n" {
		t.Errorf("logs -f showed %q and ended with %v", &lines, err)
	}
	if err := wait.Wait(); err != nil || code.String() != "7\n" {
		t.Errorf("wait printed %q and ended with %v", &code, err)
	}
}

// Nobody can tell how a container has ended that was killed together with its shim. The
// client that waits is answered all the same, as the next daemon will answer.
func TestWaitEndsThoughShimAndContainerAreKilledTogether(t *testing.T) {
	d := start(t, kit.Options{})
	id := d.Holdfast("run", "-d", "--name", "web", "busybox", "sh", "-c", loop)
	pid := d.Inspect("web").State.Pid
	d.Kill9()
	code := waiting(t, d, "web")
	for _, shim := range kit.Shims(t, id) {
		unix.Kill(shim, unix.SIGSTOP) // so that it can't record the end
		unix.Kill(pid, unix.SIGKILL)
		kit.Kill(t, shim)
	}
	if got := code(); got != "255\n" {
		t.Errorf("wait printed %q", got)
	}
	d.Start()
	if got := d.Inspect("web").State.ExitCode; got != 255 {
		t.Errorf("the daemon says %d", got)
	}
}

// A daemon that starts gives the container a new shim, which knows how it ends, also for a
// client that has begun to wait before.
func TestWaitHasTheCodeThatANewShimKnows(t *testing.T) {
	d := start(t, kit.Options{})
	id := d.Holdfast("run", "-d", "--name", "web", "busybox", "sh", "-c", loop)
	pid := d.Inspect("web").State.Pid
	d.Kill9()
	code := waiting(t, d, "web")
	d.Start()
	d.Signal(unix.SIGSTOP) // meanwhile it starts no shim
	for _, shim := range kit.Shims(t, id) {
		kit.Kill(t, shim)
	}
	<-time.After(300 * time.Millisecond)
	unix.Kill(pid, unix.SIGKILL)
	<-time.After(300 * time.Millisecond)
	d.Signal(unix.SIGCONT)
	if got := code(); got != "137\n" {
		t.Errorf("wait printed %q", got)
	}
	if got := d.Inspect("web").State.ExitCode; got != 137 {
		t.Errorf("the daemon says %d", got)
	}
}

// waiting begins to wait for a container, and returns what waits for the answer.
func waiting(t *testing.T, d *kit.Daemon, name string) func() string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	cmd := d.HoldfastCommand(ctx, "wait", name)
	var code bytes.Buffer
	cmd.Stdout = &code
	told, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(told)
	if line, err := lines.ReadString('\n'); err != nil || !note.MatchString(line) {
		t.Fatalf("%q %v", line, err)
	}
	<-time.After(500 * time.Millisecond) // until it waits
	return func() string {
		rest, _ := io.ReadAll(lines)
		if err := cmd.Wait(); err != nil {
			t.Errorf("wait: %v: %s", err, rest)
		}
		return code.String()
	}
}

func TestTerminalsWorkWithoutADaemon(t *testing.T) {
	d := start(t, kit.Options{})
	d.Holdfast("run", "-dit", "--name", "shell", "busybox", "sh")
	// Docker decides how the client ends after its detach keys.
	detached := inTerminal(t, d, "attach", "shell")
	detached.Type("echo ear''ly\r")
	detached.Shows("early")
	detached.Type("\x10\x11")
	want := detached.ExitCode()
	d.Kill9()

	exec := inTerminal(t, d, "exec", "-it", "shell", "sh")
	exec.Shows("/ # ")
	exec.Type("echo $((6*7))\r")
	exec.Shows("42")
	exec.Type("stty size\r")
	exec.Shows("30 100")
	exec.Resize(20, 77)
	kit.Eventually(t, "the new size", func() bool {
		return strings.Contains(ok(t, d, "exec", "shell", "sh", "-c", "for p in /proc/[0-9]*; do stty size < $p/fd/0; done 2>/dev/null"), "20 77")
	})
	exec.Type("exit 9\r")
	if code := exec.ExitCode(); code != 9 {
		t.Errorf("exec ended with %d", code)
	}

	attach := inTerminal(t, d, "attach", "shell")
	attach.Type("echo att''ached\r")
	attach.Shows("attached")
	attach.Type("\x10\x11")
	if code := attach.ExitCode(); code != want {
		t.Errorf("after the detach keys attach exited with %d; with a daemon it exits with %d", code, want)
	}
	attach = inTerminal(t, d, "attach", "shell")
	attach.Type("exit 4\r")
	if code := attach.ExitCode(); code != 4 {
		t.Errorf("attach ended with %d", code)
	}
	if got := ok(t, d, "inspect", "-f", "{{.State.ExitCode}}", "shell"); got != "4" {
		t.Errorf("the container exited with %s", got)
	}
}

func TestInputGoesToAnExecWithoutADaemon(t *testing.T) {
	d := start(t, kit.Options{})
	d.Holdfast("run", "-d", "--name", "web", "busybox", "sleep", "1000")
	d.Kill9()
	cmd := d.HoldfastCommand(context.Background(), "exec", "-i", "web", "wc", "-c")
	cmd.Stdin = strings.NewReader(strings.Repeat("x", 1<<20))
	out, err := cmd.Output()
	if err != nil || strings.TrimSpace(string(out)) != strconv.Itoa(1<<20) {
		t.Errorf("%q %v", out, err)
	}
}

func TestPausedAndResumedWithoutADaemon(t *testing.T) {
	d := start(t, kit.Options{})
	d.Holdfast("run", "-d", "--name", "web", "busybox", "sleep", "1000")
	d.Kill9()
	ok(t, d, "pause", "web")
	if got := ok(t, d, "inspect", "-f", "{{.State.Status}}", "web"); got != "paused" {
		t.Error(got)
	}
	ok(t, d, "unpause", "web")
	d.Start()
	if got := d.Holdfast("inspect", "-f", "{{.State.Status}}", "web"); got != "running" {
		t.Error(got)
	}
}

func TestRemovedByItselfIsGoneWithoutADaemon(t *testing.T) {
	d := start(t, kit.Options{})
	d.Holdfast("run", "-d", "--rm", "--name", "once", "busybox", "sh", "-c", loop)
	log := d.Holdfast("inspect", "-f", "{{.LogPath}}", "once")
	d.Kill9()
	ok(t, d, "stop", "once")
	kit.Eventually(t, "the shim to remove the log", func() bool {
		_, err := os.Stat(log)
		return os.IsNotExist(err)
	})
	if got := ok(t, d, "ps", "-aq"); got != "" {
		t.Errorf("ps -a still shows %q", got)
	}
	d.Start()
	kit.Eventually(t, "the daemon clears what was left", func() bool { return d.Holdfast("ps", "-aq") == "" })
}

func TestEventsAreToldWithoutADaemon(t *testing.T) {
	d := start(t, kit.Options{})
	d.Holdfast("run", "-d", "--name", "web", "busybox", "sh", "-c", loop)
	history := func(run func(...string) string) string {
		return run("events", "--since", "2020-01-01", "--until", strconv.FormatFloat(float64(time.Now().UnixMilli())/1000, 'f', 3, 64), "--filter", "type=container", "--format", "{{.Action}} {{.Actor.Attributes.name}} {{.TimeNano}}")
	}
	before := history(d.Holdfast)
	d.Kill9()
	follow := d.HoldfastCommand(context.Background(), "events", "--since", "2020-01-01", "--filter", "event=die", "--format", "{{.Actor.Attributes.exitCode}}")
	out, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	ok(t, d, "kill", "-s", "USR1", "web")
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "7\n" {
		t.Errorf("followed: %q %v", line, err)
	}
	follow.Process.Kill()
	follow.Wait()
	got := history(func(args ...string) string { return ok(t, d, args...) })
	if !strings.HasPrefix(got, before+"\n") || !strings.Contains(got, "\ndie web ") {
		t.Errorf("with a daemon:\n%s\nwithout:\n%s", before, got)
	}
}

func TestObserverLeavesNoTrace(t *testing.T) {
	d := start(t, kit.Options{})
	d.Holdfast("run", "-d", "--name", "web", "busybox", "sleep", "1000")
	d.TryHoldfast("run", "--name", "failed", "busybox", "false")
	d.Kill9()
	before := tree(t, d.DataRoot) + tree(t, d.ExecRoot)
	for _, c := range []string{"ps -as", "inspect web failed", "logs failed", "stats --no-stream", "top web", "daemon timeline"} {
		ok(t, d, strings.Fields(c)...)
	}
	if after := tree(t, d.DataRoot) + tree(t, d.ExecRoot); after != before {
		t.Errorf("files changed:\n%s\nwere:\n%s", after, before)
	}
}

// tree lists the files that a daemon and shims write, with their sizes and
// modification times.
func tree(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	for _, dir := range []string{"containers", "networks", "events", "shim", "."} {
		entries, err := os.ReadDir(root + "/" + dir)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				t.Fatal(err)
			}
			b.WriteString(dir + "/" + e.Name() + " " + info.ModTime().String() + "\n")
			if e.IsDir() && dir != "." {
				inner, err := os.ReadDir(root + "/" + dir + "/" + e.Name())
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range inner {
					info, err := f.Info()
					if err != nil {
						t.Fatal(err)
					}
					b.WriteString("  " + f.Name() + " " + info.ModTime().String() + " " + strconv.FormatInt(info.Size(), 10) + "\n")
				}
			}
		}
	}
	return b.String()
}
