// SPDX-License-Identifier: Apache-2.0

package life

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func containerPid(t *testing.T, e engine, id string) string {
	t.Helper()
	b, err := os.ReadFile(e.ExecRoot + "/shim/" + id + "/init.pid")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// seen is the state that a shim wrote last.
type seen struct {
	Pid     int
	ShimPid int
	Status  string
}

func (e engine) seen(t *testing.T, id string) (s seen) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(e.ExecRoot, "shim", id, "state.json"))
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// killContainers kills all containers and their shims, as a power failure
// would.
func (e engine) killContainers(t *testing.T) {
	t.Helper()
	ids, err := os.ReadDir(filepath.Join(e.ExecRoot, "shim"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range ids {
		s := e.seen(t, d.Name())
		switch s.Status {
		case "running", "paused", "restarting":
			kill(t, s.ShimPid)
		default:
			continue // other processes may have its pids by now
		}
		if s.Pid > 0 {
			_ = unix.Kill(s.Pid, unix.SIGKILL) // a container in another's pid namespace died with that one
		}
	}
}

// runsAnew waits, while no daemon lives, until a container runs in a new
// process.
func (e engine) runsAnew(t *testing.T, name string, before int) {
	t.Helper()
	eventually(t, func() (bool, string) {
		ids, err := os.ReadDir(filepath.Join(e.ExecRoot, "shim"))
		if err != nil {
			return false, err.Error()
		}
		for _, d := range ids {
			b, err := os.ReadFile(filepath.Join(e.ExecRoot, "shim", d.Name(), "bootstrap.json"))
			if err != nil || !strings.Contains(string(b), `"name":"`+name+`"`) {
				continue
			}
			if s := e.seen(t, d.Name()); s.Status == "running" && s.Pid != before {
				return true, ""
			}
		}
		return false, name + " does not run anew"
	})
}
