// SPDX-License-Identifier: Apache-2.0

package adopt

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
	"holdfast/test/kit"
)

// session is a command of the client whose input and output the test controls.
type session struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	errs strings.Builder
}

func talk(t *testing.T, d *kit.Daemon, args ...string) *session {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	s := &session{t: t, cmd: d.HoldfastCommand(ctx, args...)}
	var err error
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.out = bufio.NewReader(out)
	s.cmd.Stderr = &s.errs
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		s.cmd.Wait()
	})
	return s
}

func (s *session) say(line string) {
	s.t.Helper()
	if _, err := io.WriteString(s.in, line+"\n"); err != nil {
		s.t.Fatal(err)
	}
}

// hear reads lines until one contains the text.
func (s *session) hear(text string) {
	s.t.Helper()
	for {
		line, err := s.out.ReadString('\n')
		if strings.Contains(line, text) {
			return
		}
		if err != nil {
			s.t.Fatalf("%v: no %q, but %v; stderr: %s", s.cmd.Args, text, err, s.errs.String())
		}
	}
}

// rest reads the remaining output and returns it with the exit code.
func (s *session) rest() (string, int) {
	out, _ := io.ReadAll(s.out)
	s.cmd.Wait()
	return string(out), s.cmd.ProcessState.ExitCode()
}

// wire attaches to a container through the API directly, because the client
// would require a terminal.
func wire(t *testing.T, d *kit.Daemon, ref string) *bufio.ReadWriter {
	t.Helper()
	conn, err := net.Dial("unix", d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute))
	c := bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))
	c.WriteString("POST /containers/" + ref + "/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: x\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n\r\n")
	c.Flush()
	resp, err := http.ReadResponse(c.Reader, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("attach: %v %v", resp, err)
	}
	return c
}

// until reads until the text has arrived.
func until(t *testing.T, c *bufio.ReadWriter, text string) {
	t.Helper()
	var got []byte
	for !bytes.Contains(got, []byte(text)) {
		b, err := c.ReadByte()
		if err != nil {
			t.Fatalf("want %q, got %q and %v", text, got, err)
		}
		got = append(got, b)
	}
}

// A terminal, and a standard input that no client may close, outlive the shim:
// the daemon holds descriptors of them, too.
func TestTerminalAndOpenInputOutliveTheirShim(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"-dit", "-di"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			d := live(t, nil)
			id := d.Holdfast("run", how, "--name", "sh", image, "sh", "-c", "trap 'echo hung up' HUP; while read x; do echo \"<$x>\"; done; echo over; exit 6")
			before := identity(t, d, "sh")
			for _, word := range []string{"one", "two", "three"} {
				c := wire(t, d, "sh")
				c.WriteString(word + "\n")
				c.Flush()
				until(t, c, "<"+word+">")
				killShim(t, d, id)
				if rest, err := io.ReadAll(c); err != nil && !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("the attached client got %q and %v", rest, err)
				}
			}
			c := wire(t, d, "sh")
			c.WriteString("last\n")
			c.Flush()
			until(t, c, "<last>")
			if after := identity(t, d, "sh"); after != before {
				t.Errorf("was %s\nis  %s", before, after)
			}
			if log := d.Holdfast("logs", "sh"); strings.Contains(log, "hung up") || strings.Contains(log, "over") || strings.Count(log, "<") != 4 {
				t.Errorf("log: %q", log)
			}
		})
	}
}

// Attach and exec sessions end with their shim, and their clients get an error.
func TestSessionsOfAKilledShimEnd(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	id := d.Holdfast("run", "-d", "--name", "box", image, "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done")
	attached := wire(t, d, "box")
	in := talk(t, d, "exec", "-i", "box", "sh", "-c", "echo ready; cat")
	in.hear("ready")
	var execs []proto.ExecState
	kit.Eventually(t, "the exec is recorded", func() bool { execs = d.ShimState(id).Execs; return len(execs) == 1 && execs[0].Running })
	killShim(t, d, id)
	if out, code := in.rest(); code == 0 {
		t.Errorf("the exec's client ended with success: %q", out)
	}
	if rest, err := io.ReadAll(attached); err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the attached client got %q and %v", rest, err)
	}
	if got := d.Holdfast("exec", "box", "echo", "again"); got != "again" {
		t.Errorf("%q", got)
	}
	for _, x := range d.ShimState(id).Execs {
		if x.Exec == execs[0].Exec && (x.Running || x.ExitCode != 255) {
			t.Errorf("%+v", x)
		}
	}
	d.Holdfast("stop", "box")
	if s := d.Inspect("box").State; s.ExitCode != 3 {
		t.Errorf("%+v", s)
	}
	if got := events(d, id); !strings.Contains(got, "exec_die 255") {
		t.Errorf("%s", got)
	}
}

// The container's process dies while the container has no shim.
func TestExitCodeOfAContainerThatDiesWithItsShimIsExact(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	id := d.Holdfast("run", "-d", "--name", "box", image, "sh", "-c", "echo first; sleep 1000; echo last; exit 42")
	c := d.Inspect("box")
	kit.Eventually(t, "the output is in the log", func() bool { return d.Holdfast("logs", "box") == "first" })
	kit.Kill(t, d.ShimState(id).ShimPid)
	unix.Kill(c.State.Pid, unix.SIGKILL)
	if got := d.Holdfast("wait", "box"); got != "137" {
		t.Errorf("exit code %s", got)
	}
	s := d.Inspect("box").State
	if s.ExitCode != 137 || s.Error != "" {
		t.Errorf("%+v", s)
	}
	if got := d.Holdfast("logs", "box"); got != "first" {
		t.Errorf("logs: %q", got)
	}
}

// The shim is killed during the backoff before a restart.
func TestRestartThatWaitsSurvivesItsShim(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	id := d.Holdfast("run", "-d", "--name", "box", "--restart", "on-failure:4", image, "false")
	kit.Eventually(t, "the container waits for its restart", func() bool {
		st := d.ShimState(id)
		return st.Status == proto.StatusRestarting && st.RestartCount == 3
	})
	killShim(t, d, id)
	if got := d.Holdfast("wait", "box"); got != "1" {
		t.Errorf("exit code %s", got)
	}
	kit.Eventually(t, "the restarts have ended", func() bool { return d.Inspect("box").State.Status == "exited" })
	if n := d.Inspect("box").RestartCount; n != 4 {
		t.Errorf("%d restarts", n)
	}
	if got := events(d, id); strings.Count(got, "start ") != 5 || strings.Count(got, "die 1") != 5 {
		t.Errorf("events: %s", got)
	}
}

// No new shim can be started. The container can still be stopped and removed.
func TestContainerWithoutAnyShimCanBeStopped(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	shim := filepath.Join(dir, "holdfast-shim")
	b, err := os.ReadFile(kit.Binary(t, "holdfast-shim"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(shim, b, 0o755); err != nil {
		t.Fatal(err)
	}
	d := kit.Start(t, kit.Options{LiveRestore: true, Shim: shim})
	d.Load(image, kit.Busybox(t, nil))
	id := d.Holdfast("run", "-d", "--name", "box", image, "sleep", "1000")
	if err := os.Rename(shim, shim+".away"); err != nil {
		t.Fatal(err)
	}
	killShim(t, d, id)
	pid := d.Inspect("box").State.Pid
	d.Holdfast("stop", "-t", "0", "box") // waits for a shim, then stops the container without one
	if s := d.Inspect("box").State; s.Status != "exited" {
		t.Errorf("%+v", s)
	}
	if b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); err == nil && !strings.Contains(string(b), ") Z ") {
		t.Errorf("the process still runs: %s", b)
	}
	if err := os.Rename(shim+".away", shim); err != nil {
		t.Fatal(err)
	}
	d.Holdfast("start", "box")
	// A shim binary that is missing only for a moment does no harm.
	if err := os.Rename(shim, shim+".away"); err != nil {
		t.Fatal(err)
	}
	killShim(t, d, id)
	if err := os.Rename(shim+".away", shim); err != nil {
		t.Fatal(err)
	}
	if got := d.Holdfast("exec", "box", "echo", "works"); got != "works" {
		t.Errorf("%q", got)
	}
}

// The same for a stop that the killed shim had begun.
func TestStopThatAKilledShimHadBegunEndsWithoutAnyShim(t *testing.T) {
	t.Parallel()
	shim := filepath.Join(t.TempDir(), "holdfast-shim")
	b, err := os.ReadFile(kit.Binary(t, "holdfast-shim"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(shim, b, 0o755); err != nil {
		t.Fatal(err)
	}
	d := kit.Start(t, kit.Options{LiveRestore: true, Shim: shim})
	d.Load(image, kit.Busybox(t, nil))
	id := d.Holdfast("run", "-d", "--name", "box", image, "sh", "-c", "trap 'echo heard' TERM; while :; do sleep 0.05; done")
	if err := os.Rename(shim, shim+".away"); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan kit.Result, 1)
	go func() { stopped <- d.TryHoldfast("stop", "-t", "2", "box") }()
	kit.Eventually(t, "the container has got the signal", func() bool { return strings.Contains(d.Holdfast("logs", "box"), "heard") })
	killShim(t, d, id)
	select {
	case r := <-stopped:
		if r.Code != 0 {
			t.Errorf("%+v", r)
		}
	case <-time.After(time.Minute):
		t.Fatal("the stop does not end")
	}
	if s := d.Inspect("box").State; s.Status != "exited" {
		t.Errorf("%+v", s)
	}
}

// Shims are upgraded in place. Clients that are connected meanwhile do not
// notice it.
func TestShimsAreUpgradedUnderRunningContainers(t *testing.T) {
	t.Parallel()
	next := kit.Shim(t, "99.0")
	said, err := exec.Command(kit.Binary(t, "holdfast-shim"), "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	own := strings.TrimPrefix(strings.TrimSpace(string(said)), "holdfast-shim ")
	d := live(t, nil)
	port := freePort(t)
	id := d.Holdfast("run", "-d", "--name", "web", "-p", port+":80", "--health-cmd", "true", "--health-interval", "100ms", image, "sh", "-c",
		"trap 'echo stopped; exit 9' TERM; httpd -h /www -p 80; i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done")
	tty := d.Holdfast("run", "-dit", "--name", "tty", image, "sh", "-c", "while read x; do echo \"<$x>\"; done")
	p := kit.Probe(t, "http://127.0.0.1:"+port+"/index.html")
	p.WaitAnswer(t)
	// Connections that the shim forwards must survive the upgrades.
	conn, err := net.Dial("tcp", "[::1]:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	io.WriteString(conn, "GET /index.html HT")

	logs := talk(t, d, "logs", "-f", "web")
	waits := talk(t, d, "wait", "web")
	attached := talk(t, d, "attach", "--no-stdin", "--sig-proxy=false", "web")
	shell := talk(t, d, "exec", "-i", "web", "sh", "-c", "while read x; do echo got $x; done; exit 4")
	terminal := wire(t, d, "tty")
	before := identity(t, d, "web")
	pids := [2]int{d.ShimState(id).ShimPid, d.ShimState(tty).ShimPid}
	for i := range 20 {
		path, release := next, "99.0"
		args := []string{"daemon", "upgrade", "--shims", "--binary", path}
		if i%2 == 1 {
			args, release = args[:3], own
		}
		got := d.Holdfast(args...)
		if strings.Count(got, "its shim is now version "+release+" ") != 2 {
			t.Fatalf("%s", got)
		}
		word := "word" + strconv.Itoa(i)
		shell.say(word)
		shell.hear("got " + word)
		terminal.WriteString(word + "\n")
		terminal.Flush()
		until(t, terminal, "<"+word+">")
		if i == 0 {
			if got := d.Holdfast("daemon", "status"); strings.Count(got, "99.0") != 2 {
				t.Errorf("status: %s", got)
			}
		}
	}
	if got := [2]int{d.ShimState(id).ShimPid, d.ShimState(tty).ShimPid}; got != pids {
		t.Errorf("the shims were %v and are %v", pids, got)
	}
	if after := identity(t, d, "web"); after != before {
		t.Errorf("was %s\nis  %s", before, after)
	}
	io.WriteString(conn, "TP/1.0\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("a connection over the upgrades: %v %v", resp, err)
	}
	noFailure(t, p)
	shell.in.Close()
	if out, code := shell.rest(); code != 4 {
		t.Errorf("exec: %q, %d: %s", out, code, shell.errs.String())
	}
	kit.Eventually(t, "health checks go on", func() bool { return d.Inspect("web").State.Health.Status == "healthy" })

	// The upgrade refuses a binary that is not a shim, and changes nothing.
	if r := d.TryHoldfast("daemon", "upgrade", "--shims", "--binary", "/bin/true"); r.Code != 1 || strings.Count(r.Stderr, "is no shim") != 2 {
		t.Errorf("%+v", r)
	}

	d.Holdfast("stop", "web")
	if out, code := waits.rest(); code != 0 || out != "9\n" {
		t.Errorf("wait: %q, %d: %s", out, code, waits.errs.String())
	}
	followed, _ := logs.rest()
	seen, code := attached.rest()
	if code != 9 {
		t.Errorf("attach ended with %d", code)
	}
	for name, text := range map[string]string{"logs -f": followed, "attach": seen} {
		lines := strings.Split(strings.TrimSpace(text), "\n")
		first, _ := strconv.Atoi(lines[0])
		for i, line := range lines[:len(lines)-1] {
			if line != strconv.Itoa(first+i) {
				t.Fatalf("%s: line %d is %q, want %d", name, i, line, first+i)
			}
		}
		if last := lines[len(lines)-1]; last != "stopped" {
			t.Errorf("%s ends with %q", name, last)
		}
	}
	if whole := d.Holdfast("logs", "web"); strings.TrimSpace(followed) != whole {
		t.Errorf("logs -f gave %d bytes of %d", len(followed), len(whole))
	}
	if got := events(d, id); strings.Count(got, "die 9") != 1 || strings.Count(got, "start ") != 1 {
		t.Errorf("events: %s", got)
	}
}

// A container ends only when all its processes are reaped. That includes exec
// processes whose parent was the killed shim.
func TestExecsThatAKilledShimLeftDontHoldUpTheEnd(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	id := d.Holdfast("run", "-d", "--name", "box", image, "sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done")
	kit.Eventually(t, "the container is up", func() bool { return d.Holdfast("logs", "box") == "up" })
	d.Holdfast("exec", "-d", "box", "sleep", "1000")
	var pid int
	kit.Eventually(t, "the exec runs", func() bool {
		for _, x := range d.ShimState(id).Execs {
			pid = x.Pid
		}
		return pid != 0
	})
	killShim(t, d, id)
	d.Holdfast("exec", "box", "true") // a new shim serves the container
	kit.Kill(t, pid)
	d.Holdfast("stop", "box")
	if s := d.Inspect("box").State; s.ExitCode != 3 || s.Error != "" {
		t.Errorf("%+v", s)
	}
	d.Holdfast("rm", "box")
}

// The shim is killed after the runtime has executed the command and before the
// shim has answered.
func TestExecIsNeverRunTwice(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	runtime := filepath.Join(dir, "runtime")
	script := "#!/bin/sh\nrunc \"$@\"; code=$?\ncase \" $* \" in *\" exec \"*) mkdir " + filepath.Join(dir, "once") + " && kill -9 $PPID;; esac\nexit $code\n"
	if err := os.WriteFile(runtime, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	d := live(t, map[string]any{"default-runtime": "fatal", "runtimes": map[string]any{"fatal": map[string]any{"path": runtime}}})
	d.Holdfast("run", "-d", "--name", "box", image, "sleep", "1000")
	for _, how := range []string{"-d", "-i"} {
		os.Remove(filepath.Join(dir, "once"))
		s := talk(t, d, "exec", how, "box", "sh", "-c", "echo ran "+how+" >/proc/1/fd/1")
		if out, code := s.rest(); code == 0 {
			t.Errorf("exec %s whose shim was killed ended with success: %q", how, out)
		}
		d.Holdfast("exec", "box", "sh", "-c", "echo after "+how+" >/proc/1/fd/1")
	}
	kit.Eventually(t, "all has been written", func() bool { return strings.Contains(d.Holdfast("logs", "box"), "after -i") })
	log := d.Holdfast("logs", "box")
	for _, how := range []string{"-d", "-i"} {
		if n := strings.Count(log, "ran "+how); n != 1 {
			t.Errorf("exec %s was run %d times", how, n)
		}
	}
}

// The shim is killed after the runtime has frozen or thawed the container, and
// before the shim has recorded it. The next shim reads the state from the
// kernel.
func TestContainerIsNeverLeftFrozenByTheDeathOfItsShim(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	id := d.Holdfast("run", "-d", "--name", "box", image, "sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.05; done")
	runtime := func(verb string) {
		t.Helper()
		if out, err := exec.Command("runc", "--root", d.ExecRoot+"/runtime/runc", verb, id).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	status := func() string { return d.Holdfast("inspect", "-f", "{{.State.Status}}", "box") }
	replaced := func(want string) {
		t.Helper()
		old := killShim(t, d, id)
		kit.Eventually(t, "a new shim", func() bool { st := d.ShimState(id); return st.ShimPid != old && st.Status == want })
		kit.Eventually(t, "the daemon knows the new shim", func() bool { return status() == want })
	}
	runtime("pause")
	replaced(proto.StatusPaused)
	d.Holdfast("unpause", "box")
	if got := d.Holdfast("exec", "box", "echo", "works"); got != "works" {
		t.Errorf("exec after unpause: %q", got)
	}
	d.Holdfast("pause", "box")
	runtime("resume")
	replaced(proto.StatusRunning)
	d.Holdfast("pause", "box")
	d.Holdfast("unpause", "box")

	// The container is frozen although no record says so. It can be stopped,
	// with its own exit code, and removed.
	runtime("pause")
	d.Holdfast("stop", "box")
	if got := d.Holdfast("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "box"); got != "exited 9" {
		t.Errorf("after the stop of a frozen container: %s", got)
	}
	d.Holdfast("start", "box")
	runtime("pause")
	d.Holdfast("rm", "-f", "box")
}

// The exec root is cleared while no daemon lives. A shim that waits for the
// next restart then has no bundle to start, so it must give up.
func TestShimWhoseFolderIsGoneDoesNotRestartForEver(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	id := d.Holdfast("run", "-d", "--name", "box", "--restart", "always", image, "false")
	kit.Eventually(t, "the container waits for its restart", func() bool { return d.ShimState(id).Status == proto.StatusRestarting })
	shim := d.ShimState(id).ShimPid
	fd, err := unix.PidfdOpen(shim, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	d.Kill9()
	run := filepath.Join(d.ExecRoot, "shim", id)
	// Try repeatedly: a restart that is under way may create files in the
	// folder.
	kit.Eventually(t, "the folder is gone", func() bool {
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(run))
		for _, m := range mounts {
			err = errors.Join(err, unix.Unmount(m.Mountpoint, unix.MNT_DETACH))
		}
		return err == nil && os.RemoveAll(run) == nil
	})
	if err := kit.WaitReadable(fd, time.Minute); err != nil {
		t.Fatalf("the shim stays: %v", err)
	}
	d.Start()
	kit.Eventually(t, "the next daemon starts it", func() bool { return d.Inspect("box").State.Status == "restarting" })
	d.Holdfast("rm", "-f", "box")
}
