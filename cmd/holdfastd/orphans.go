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

// The processes of a container whose shim was killed get another parent: the
// daemon, if it lives, and else the host's first process, which may be one that
// never asks for its children. That would matter: a container's first process
// does not end before all others of its pid namespace are reaped. And a first
// process that is not reaped at once keeps its exit code for the next shim, on
// any kernel.

// orphanTime is how long a child that has ended may wait for whoever knows it.
const orphanTime = 10 * time.Second

// reapOrphans makes the daemon the parent of orphans, and waits for them.
func reapOrphans(log *slog.Logger) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		log.Warn("orphans of killed shims go to the host's first process", "error", err)
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

// sweepOrphans reaps what nobody else will: at once a process of a container
// that is not its first, and after a while whatever is left. seen is since when
// others wait.
func sweepOrphans(seen map[int]time.Time, now time.Time) {
	there := map[int]bool{}
	for _, pid := range children() {
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

// children are the daemon's, of all its threads.
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

// zombieOf tells of a child whether it has ended, in how many pid namespaces
// it is, and its number in the innermost.
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
