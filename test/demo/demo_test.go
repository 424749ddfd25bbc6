// SPDX-License-Identifier: Apache-2.0

// Package demo runs "holdfast demo". The demo must keep its promises, and leave
// nothing behind even if it is interrupted. It needs root.
package demo

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// limit is the time limit for a whole demo.
const limit = 15 * time.Second

// holdfast is the program under test: in HOLDFAST_BIN, or in the repository's
// bin, where "make build" puts it.
func holdfast(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("HOLDFAST_BIN")
	if dir == "" {
		dir = filepath.Join("..", "..", "bin")
	}
	path, err := filepath.Abs(filepath.Join(dir, "holdfast"))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("no program to test: %v; run make build", err)
	}
	return path
}

// command returns a demo whose temporary folder belongs to the test, and the
// folder.
func command(t *testing.T, args ...string) (*exec.Cmd, string) {
	t.Helper()
	// A socket's path has at most 108 bytes, so t.TempDir is not suitable.
	tmp, err := os.MkdirTemp("/tmp", "hfdemo-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(tmp); err != nil {
			t.Error(err)
		}
	})
	cmd := exec.Command(holdfast(t), append([]string{"demo"}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	// A demo that hangs gets SIGTERM and not SIGKILL, so that it cleans up.
	timer := time.AfterFunc(2*limit, func() { cmd.Process.Signal(syscall.SIGTERM) })
	t.Cleanup(func() { timer.Stop() })
	return cmd, tmp
}

// leftovers lists the resources that a demo has left after its end.
func leftovers(t *testing.T, cmd *exec.Cmd, tmp string) []string {
	t.Helper()
	var left []string
	files, err := filepath.Glob(filepath.Join(tmp, "*"))
	if err != nil {
		t.Fatal(err)
	}
	left = append(left, files...)

	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, tmp) {
			left = append(left, "mount "+line)
		}
	}

	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range commands {
		// A process that has exited meanwhile can't be read.
		if line, err := os.ReadFile(path); err == nil && bytes.Contains(line, []byte(tmp)) {
			left = append(left, path+": "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}

	bridge := fmt.Sprintf("hfd%d", cmd.Process.Pid)
	if _, err := netlink.LinkByName(bridge); err == nil {
		left = append(left, "link "+bridge)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/" + bridge, "/sys/fs/cgroup/*/" + bridge} {
		cgroups, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, cgroups...)
	}
	tables, err := exec.Command("nft", "list", "tables").CombinedOutput()
	if err != nil {
		t.Fatalf("nft list tables: %v: %s", err, tables)
	}
	if strings.Contains(string(tables), bridge) {
		left = append(left, string(tables))
	}
	return left
}

func TestDemoKeepsItsPromisesAndLeavesNothing(t *testing.T) {
	cmd, tmp := command(t)
	begin := time.Now()
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > limit {
		t.Errorf("the demo took %s, and the limit is %s", took, limit)
	}
	for _, want := range []string{"numbered without a gap", ", 0 failed", "did not notice"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("the report does not contain %q", want)
		}
	}
	if left := leftovers(t, cmd, tmp); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestInterruptedDemoLeavesNothing(t *testing.T) {
	for _, moment := range []string{"starting a private daemon", "container running", "killed the daemon", "ready again"} {
		t.Run(moment, func(t *testing.T) {
			cmd, tmp := command(t)
			cmd.Stderr = os.Stderr
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			sent := false
			lines := bufio.NewScanner(stdout)
			for lines.Scan() {
				t.Log(lines.Text())
				if !sent && strings.Contains(lines.Text(), moment) {
					sent = true
					if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
						t.Error(err)
					}
				}
			}
			if err := lines.Err(); err != nil && !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			err = cmd.Wait()
			if !sent {
				t.Fatalf("the demo ended before it printed %q: %v", moment, err)
			}
			if got := cmd.ProcessState.ExitCode(); got != 130 {
				t.Errorf("exit code %d, want 130", got)
			}
			if left := leftovers(t, cmd, tmp); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

func TestDemoSaysWhatIsMissing(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		path string
		want string
	}{
		"daemon":  {[]string{"--daemon", "/nonexistent/holdfastd"}, os.Getenv("PATH"), "make build"},
		"runtime": {nil, "/nonexistent", "runc is not installed"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd, tmp := command(t, c.args...)
			cmd.Env = append(cmd.Env, "PATH="+c.path)
			out, err := cmd.CombinedOutput()
			if err == nil || !bytes.Contains(out, []byte(c.want)) {
				t.Errorf("error %v, output %q, want %q in it", err, out, c.want)
			}
			if left := leftovers(t, cmd, tmp); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}
