// SPDX-License-Identifier: Apache-2.0

package daemonless

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"holdfast/test/kit"
)

// The IDs of a group and of users that need not exist on this machine.
const (
	apiGroup = 48211
	member   = 48212
	stranger = 48213
)

func TestWhoMayUseTheAPIMayUseTheShimsAndNobodyElse(t *testing.T) {
	d := start(t, kit.Options{Flags: []string{"--group", "48211"}})
	d.Holdfast("run", "-d", "--name", "web", "busybox", "sh", "-c", "echo hello; exec sleep 1000")
	d.Holdfast("run", "-d", "--name", "local", "--log-driver", "local", "busybox", "sh", "-c", "echo there; exec sleep 1000")
	d.TryHoldfast("run", "--name", "failed", "busybox", "sh", "-c", "echo bye; exit 3")
	d.Restart()
	d.Holdfast("run", "-d", "--name", "later", "busybox", "sh", "-c", loop)
	kit.Eventually(t, "logs", func() bool {
		return d.Holdfast("logs", "web") == "hello" && d.Holdfast("logs", "local") == "there"
	})
	if got := d.Holdfast("exec", "web", "sh", "-c", "ls -ldn / /etc /dev /dev/shm /etc/hosts | awk '{print $4}' | sort -u"); got != "0" {
		t.Errorf("a file in the container belongs to group %s", got)
	}
	d.Kill9()

	// Copies of the programs that any user can execute.
	bin := filepath.Join(d.Root, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"holdfast", "holdfastd"} {
		copyProgram(t, kit.Binary(t, name), filepath.Join(bin, name))
	}
	as := func(uid, gid uint32, args ...string) (string, string) {
		t.Helper()
		cmd := d.HoldfastCommand(context.Background(), args...)
		cmd.Path = filepath.Join(bin, "holdfast")
		cmd.Env = append(cmd.Env, "DOCKER_CONFIG=/nonexistent", "HOME=/nonexistent")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{gid}}}
		cmd.Dir = "/"
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		cmd.Run()
		return strings.TrimSpace(out.String()), errs.String()
	}
	for _, c := range []struct{ args, want string }{
		{"ps -a --format {{.Names}}:{{.State}}", "later:running\nfailed:exited\nlocal:running\nweb:running"},
		{"logs web", "hello"},
		{"logs local", "there"},
		{"logs failed", "bye"},
		{"wait failed", "3"},
		{"exec web id -u", "0"},
		{"exec later id -u", "0"},
		{"inspect -f {{.State.Running}}{{.NetworkSettings.Networks.bridge.NetworkID}} web", ""},
		{"stats --no-stream --format {{.Name}} web", "web"},
		{"exec web ps -o args", "COMMAND\nsleep 1000\nps -o args"},
		{"stop later", "later"},
		{"ps -q --filter name=later", ""},
	} {
		out, errs := as(member, apiGroup, strings.Fields(c.args)...)
		if c.want == "" && strings.HasPrefix(c.args, "inspect") {
			if !strings.HasPrefix(out, "true") || len(out) != 4+64 {
				t.Errorf("%s: %q %q", c.args, out, errs)
			}
			continue
		}
		if out != c.want || !note.MatchString(errs) {
			t.Errorf("a member of the group, %s: %q %q; want %q", c.args, out, errs, c.want)
		}
	}
	for _, args := range []string{"ps -a", "logs web", "exec web id", "stop web"} {
		if out, errs := as(stranger, stranger, strings.Fields(args)...); out != "" || !strings.Contains(errs, "permission denied") || note.MatchString(errs) {
			t.Errorf("a stranger, %s: %q %q", args, out, errs)
		}
	}
}

func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		t.Fatal(err)
	}
}
