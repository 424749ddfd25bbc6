// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
)

// Kill kills a process with SIGKILL and returns when it has exited. It may
// remain a zombie.
func Kill(t testing.TB, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	if err := WaitReadable(fd, time.Minute); err != nil {
		t.Fatalf("process %d did not exit: %v", pid, err)
	}
}

// Alive reports whether a process runs. A zombie does not.
func Alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil || pid <= 0 {
		return false
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	return len(f) > 0 && f[0] != "Z" && f[0] != "X"
}

// Shims returns the pids of the running shims of a container, by its full ID.
// There should be exactly one while the container runs.
func Shims(t testing.TB, id string) (pids []int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, _ := os.ReadFile(f); string(b) != "holdfast-shim\x00"+id+"\x00" {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(f, "/proc/%d/", &pid); err == nil && Alive(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// ShimState returns the state that a container's shim wrote last to its run
// directory. id is the full ID.
func (d *Daemon) ShimState(id string) (st proto.State) {
	d.t.Helper()
	b, err := os.ReadFile(filepath.Join(d.ExecRoot, "shim", id, proto.StateFile))
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return st
}

// Inspect returns a container as the API shows it.
func (d *Daemon) Inspect(ref string) (c container.InspectResponse) {
	d.t.Helper()
	if err := json.Unmarshal([]byte(d.Holdfast("inspect", "-f", "{{json .}}", ref)), &c); err != nil {
		d.t.Fatal(err)
	}
	return c
}

// ReapOrphans makes the test process a subreaper, so that orphans become its
// children, also when the daemon is dead. It reaps processes of containers among
// them, because a container's end waits for that and PID 1 of the machine may
// reap nothing.
func ReapOrphans() {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	go func() {
		for range ended {
			lists, _ := filepath.Glob("/proc/self/task/*/children")
			for _, path := range lists {
				list, _ := os.ReadFile(path)
				for pid := range strings.FieldsSeq(string(list)) {
					status, _ := os.ReadFile("/proc/" + pid + "/status")
					_, ns, _ := strings.Cut(string(status), "\nNSpid:")
					ns, _, _ = strings.Cut(ns, "\n")
					if f := strings.Fields(ns); strings.Contains(string(status), "\nState:\tZ") && len(f) > 1 && f[len(f)-1] != "1" {
						n, _ := strconv.Atoi(pid)
						unix.Wait4(n, nil, unix.WNOHANG, nil)
					}
				}
			}
		}
	}()
}
