// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// When a shim is killed, the processes of its container get another parent: the
// daemon if it is running, else the host's first process, which may never reap
// its children. That matters, because a container's first process does not end
// before all others of its pid namespace are reaped. The first process itself
// is not reaped at once: as a zombie it keeps its exit code for the next shim,
// on any kernel.

// orphanTime is how long an ended child is left for another part of the daemon
// to reap.
const orphanTime = 10 * time.Second

// reapOrphans makes the daemon the parent of orphans, and reaps them.
func reapOrphans(log *slog.Logger) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		log.Warn("the daemon can't become the parent of orphaned processes: those of killed shims go to the host's first process", "error", err)
		return
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	go func() {
		seen := map[int]time.Time{}
		later := time.NewTimer(orphanTime)
		for {
			select {
			case <-ended:
			case <-later.C:
			}
			sweepOrphans(seen, time.Now())
			if len(seen) > 0 {
				later.Reset(orphanTime)
			}
		}
	}()
}

// sweepOrphans reaps children that no other part of the daemon waits for: at
// once a container's process that is not its first, and any other after
// orphanTime. seen has the times since when others wait.
//
// A sweep follows the end of every child, and there is a child for each running
// container. So it asks the kernel which of them have ended, and reads the files of
// those only.
func sweepOrphans(seen map[int]time.Time, now time.Time) {
	if !hasEnded(unix.P_ALL, 0) {
		clear(seen)
		return
	}
	there := map[int]bool{}
	for _, pid := range children() {
		if !hasEnded(unix.P_PID, pid) {
			continue
		}
		zombie, depth, inner := zombieOf(pid)
		if !zombie {
			continue
		}
		since, known := seen[pid]
		switch {
		case depth > 1 && inner != 1, known && now.Sub(since) >= orphanTime:
			unix.Wait4(pid, nil, unix.WNOHANG, nil)
		case !known:
			seen[pid] = now
			fallthrough
		default:
			there[pid] = true
		}
	}
	for pid := range seen {
		if !there[pid] {
			delete(seen, pid)
		}
	}
}

// children returns the pids of the daemon's children, of all its threads.
func children() []int {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	var pids []int
	for _, task := range tasks {
		b, err := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		if err != nil {
			continue
		}
		for _, f := range bytes.Fields(b) {
			if pid, err := strconv.Atoi(string(f)); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// hasEnded reports whether a child, or any child with P_ALL, has ended and waits to
// be reaped. It does not reap it (waitid(2)).
func hasEnded(kind, pid int) bool {
	var info unix.Siginfo
	for {
		err := unix.Waitid(kind, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return err == nil && info.Signo != 0
		}
	}
}

// zombieOf returns whether a child has ended, the number of pid namespaces that
// it is in, and its pid in the innermost one.
func zombieOf(pid int) (zombie bool, depth, inner int) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false, 0, 0
	}
	return parseStatus(b)
}

func parseStatus(b []byte) (zombie bool, depth, inner int) {
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch string(f[0]) {
		case "State:":
			zombie = string(f[1]) == "Z"
		case "NSpid:":
			depth = len(f) - 1
			inner, _ = strconv.Atoi(string(f[len(f)-1]))
		}
	}
	return zombie, depth, inner
}
