// SPDX-License-Identifier: Apache-2.0

//go:build linux

package demo

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/moby/moby/api/types/container"
)

// report is what the demo has observed.
type report struct {
	before, after                 container.State
	restartsBefore, restartsAfter int
	daemonBefore, daemonAfter     int       // pids
	killed, ready                 time.Time // begin and end of the downtime
	requests                      []request
	log                           []logLine
	followed                      followed
}

// finding is one line of the report. broken is nil if the promise was kept.
type finding struct {
	what, seen string
	broken     error
}

// downtime reports whether no daemon was running at a time.
func (r *report) downtime(t time.Time) bool {
	return t.After(r.killed) && t.Before(r.ready)
}

func same[T comparable](what string, before, after T) finding {
	if before != after {
		return finding{what, fmt.Sprintf("%v before, %v after", before, after), errors.New("changed")}
	}
	return finding{what, fmt.Sprintf("%v before and after", after), nil}
}

func (r *report) findings() []finding {
	list := []finding{
		same("start time", r.before.StartedAt, r.after.StartedAt),
		same("pid", r.before.Pid, r.after.Pid),
		same("status", string(r.before.Status), string(r.after.Status)),
		same("restarts", r.restartsBefore, r.restartsAfter),
		r.logged(),
		r.follow(),
		r.asked(),
	}
	if r.daemonBefore == r.daemonAfter {
		list = append(list, finding{"daemon", fmt.Sprintf("pid %d before and after", r.daemonAfter), errors.New("the daemon was not replaced, so the demo has shown nothing")})
	}
	return list
}

func (r *report) logged() finding {
	during := 0
	for _, l := range r.log {
		if r.downtime(l.time) {
			during++
		}
	}
	f := finding{what: "log", seen: fmt.Sprintf("%d lines, numbered without a gap; %d of them from the downtime", len(r.log), during)}
	if f.broken = checkNumbers(r.log); f.broken != nil {
		f.seen = fmt.Sprintf("%d lines", len(r.log))
	} else if during == 0 {
		f.broken = errors.New("no line was logged while no daemon was running")
	}
	return f
}

func (r *report) follow() finding {
	how := "followed again after the restart"
	if r.followed.survived {
		how = "over one connection, which outlasted the daemon"
	}
	return finding{"logs -f", fmt.Sprintf("%d lines seen in order, %s", r.followed.lines, how), r.followed.gap}
}

func (r *report) asked() finding {
	var all, during count
	var first error
	program := ""
	for _, q := range r.requests {
		all.add(q)
		if r.downtime(q.start) && r.downtime(q.end) {
			during.add(q)
		}
		switch {
		case q.err != nil:
			if first == nil {
				first = fmt.Errorf("a request failed %s after the kill: %w", q.start.Sub(r.killed).Round(time.Millisecond), q.err)
			}
		case program == "":
			program = q.started
		case program != q.started && first == nil:
			first = fmt.Errorf("the program reports that it started at %s, but reported %s before", q.started, program)
		}
	}
	if first == nil && during.answered == 0 {
		first = errors.New("no request was answered while no daemon was running")
	}
	return finding{"HTTP", fmt.Sprintf("%d requests answered, %d failed; in the downtime %d answered, %d failed",
		all.answered, all.failed, during.answered, during.failed), first}
}

// print writes the report. Its error names the broken promises.
func (r *report) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "daemon\tpid %d killed, pid %d ready %.2f s later\n", r.daemonBefore, r.daemonAfter, r.ready.Sub(r.killed).Seconds())
	var broken []error
	for _, f := range r.findings() {
		verdict := "kept"
		if f.broken != nil {
			verdict = "BROKEN: " + f.broken.Error()
			broken = append(broken, fmt.Errorf("%s: %w", f.what, f.broken))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.what, f.seen, verdict)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(broken) > 0 {
		return fmt.Errorf("the container noticed the daemon: %w", errors.Join(broken...))
	}
	_, err := fmt.Fprint(out, "\nThe container did not notice the daemon's death.\n")
	return err
}
