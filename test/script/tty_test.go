// SPDX-License-Identifier: Apache-2.0

package script

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"
)

// patience is the time limit for operations that should take milliseconds.
const patience = 30 * time.Second

// clients runs a test with each client, on a daemon of its own.
func clients(t *testing.T, test func(t *testing.T, d *kit.Daemon, run func(args ...string) *exec.Cmd)) {
	t.Parallel()
	for _, name := range []string{"docker", "holdfast"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := kit.Start(t, kit.Options{LiveRestore: true})
			d.Load(image, kit.Busybox(t, nil))
			test(t, d, func(args ...string) *exec.Cmd {
				if name == "docker" {
					return d.DockerCommand(context.Background(), args...)
				}
				return d.HoldfastCommand(context.Background(), args...)
			})
		})
	}
}

func atTerminal(t *testing.T, cmd *exec.Cmd, rows, columns uint16) *kit.Terminal {
	t.Helper()
	cmd.Env = append(cmd.Env, "TERM=xterm")
	return kit.InTerminal(t, cmd, rows, columns)
}

func TestShellAtATerminalKnowsItsSizeAndItsEnd(t *testing.T) {
	clients(t, func(t *testing.T, d *kit.Daemon, run func(...string) *exec.Cmd) {
		s := atTerminal(t, run("run", "--rm", "-it", "--name", "shell", image), 33, 101)
		s.Next("# ")
		s.Type("tty; stty size; echo $TERM\r")
		s.Next("/dev/")
		s.Next("33 101")
		s.Next("xterm")
		s.Resize(20, 60)
		s.Type("until [ \"$(stty size)\" = '20 60' ]; do :; done; echo re''sized\r")
		s.Next("resized")
		// Ctrl-C is sent to the container.
		s.Type("sh -c 'echo beg\"\"un; exec sleep 1000'\r")
		s.Next("begun")
		s.Type("\x03")
		s.Next("# ")
		s.Type("echo inter''rupted\r")
		s.Next("interrupted")
		s.Type("exit 9\r")
		if code := s.ExitCode(); code != 9 {
			t.Errorf("exit code %d", code)
		}
	})
}

func TestTerminalsAreLeftByTheirKeysAndTheContainerStays(t *testing.T) {
	clients(t, func(t *testing.T, d *kit.Daemon, run func(...string) *exec.Cmd) {
		s := atTerminal(t, run("run", "-it", "--name", "shell", image), 24, 80)
		s.Next("# ")
		s.Type("\x10\x11")
		if code := s.ExitCode(); code != 0 {
			t.Errorf("detached: exit code %d", code)
		}
		s = atTerminal(t, run("attach", "--detach-keys", "ctrl-x,x", "shell"), 24, 80)
		s.Type("echo aft''er\r")
		s.Next("after")
		s.Type("\x18x")
		if code := s.ExitCode(); code != 0 && code != 1 {
			t.Errorf("detached by other keys: exit code %d", code)
		}
		s = atTerminal(t, run("exec", "-it", "shell", "sh"), 24, 80)
		s.Next("# ")
		s.Type("\x10\x11")
		s.ExitCode()
		if got := d.Docker("inspect", "-f", "{{.State.Running}} {{len .ExecIDs}}", "shell"); got != "true 1" {
			t.Errorf("%s", got)
		}
		// Two clients attached to one terminal see the same output.
		one := atTerminal(t, run("attach", "shell"), 24, 80)
		two := atTerminal(t, run("attach", "shell"), 24, 80)
		two.Type("\r")
		two.Next("# ")
		one.Next("# ")
		one.Type("echo fr''om one\r")
		two.Next("from one")
		one.Type("exit 3\r")
		if one, two := one.ExitCode(), two.ExitCode(); one != 3 || two != 3 {
			t.Errorf("exit codes %d and %d", one, two)
		}
	})
}

func TestExecAtATerminalTellsItsExitCode(t *testing.T) {
	clients(t, func(t *testing.T, d *kit.Daemon, run func(...string) *exec.Cmd) {
		d.Docker("run", "-d", "--name", "host", image, "sleep", "1000")
		s := atTerminal(t, run("exec", "-it", "-u", "app", "-w", "/tmp", "-e", "COLOUR=blue", "host", "sh"), 40, 90)
		s.Next("$ ")
		s.Type("id -un; pwd; echo $COLOUR; stty size\r")
		s.Next("app")
		s.Next("/tmp")
		s.Next("blue")
		s.Next("40 90")
		s.Type("exit 12\r")
		if code := s.ExitCode(); code != 12 {
			t.Errorf("exit code %d", code)
		}
	})
}

func TestPullDrawsItsProgress(t *testing.T) {
	clients(t, func(t *testing.T, d *kit.Daemon, run func(...string) *exec.Cmd) {
		reg := kit.StartRegistry(t, nil)
		ref := reg.Push("team/app:1", kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t, kit.File{Name: "noise", Body: noise(1 << 20)})))
		s := atTerminal(t, run("pull", ref), 24, 80)
		code := s.ExitCode()
		screen := s.End()
		for _, want := range []string{"1: Pulling from team/app", "Pulling fs layer", "Pull complete", "Digest: sha256:", "Status: Downloaded newer image for " + ref} {
			if !strings.Contains(screen, want) {
				t.Errorf("no %q in %q", want, screen)
			}
		}
		if code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
}

// noise is data that does not compress. It is the same each time.
func noise(n int) []byte {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

// follow runs a client that never ends by itself, and returns its output.
func follow(t *testing.T, cmd *exec.Cmd) *bufio.Reader {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	t.Cleanup(func() {
		late.Stop()
		cmd.Process.Kill()
		cmd.Wait()
	})
	return bufio.NewReader(out)
}

func TestEventsLogsAndStatsArriveAsTheyHappen(t *testing.T) {
	clients(t, func(t *testing.T, d *kit.Daemon, run func(...string) *exec.Cmd) {
		events := follow(t, run("events", "--since", "1m", "--filter", "type=container", "--filter", "event=start", "--filter", "event=die", "--format", "{{.Action}} {{.Actor.Attributes.name}}"))
		d.Docker("run", "-d", "-i", "--name", "talk", image, "sh", "-c", "echo first; while read line; do echo $line; done; exec sleep 1000")
		expect(t, events, "start talk")

		logs := follow(t, run("logs", "-f", "talk"))
		expect(t, logs, "first")
		attach := run("attach", "talk")
		in, err := attach.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := attach.Start(); err != nil {
			t.Fatal(err)
		}
		defer attach.Wait()
		defer in.Close()
		for i := range 3 {
			fmt.Fprintf(in, "line %d\n", i)
			expect(t, logs, fmt.Sprintf("line %d", i))
		}

		stats := follow(t, run("stats", "--format", "json", "talk"))
		for range 3 { // the second and third lines are a second apart
			line, err := stats.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(line, `"Name":"talk"`) && strings.TrimSpace(line) != "" && !strings.Contains(line, "\x1b") {
				t.Errorf("%q", line)
			}
		}
		d.Docker("kill", "talk")
		expect(t, events, "die talk")
		if rest, err := io.ReadAll(logs); err != nil || len(rest) > 0 {
			t.Errorf("logs -f does not end with the container: %q %v", rest, err)
		}
	})
}

func expect(t *testing.T, r *bufio.Reader, want string) {
	t.Helper()
	got, err := r.ReadString('\n')
	if strings.TrimSuffix(got, "\n") != want {
		t.Fatalf("%q instead of %q, %v", got, want, err)
	}
}
