// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
)

// Statuses of a health check.
const (
	healthStarting  = "starting"
	healthHealthy   = "healthy"
	healthUnhealthy = "unhealthy"
)

// Docker's defaults and limits.
const (
	healthInterval      = 30 * time.Second
	healthTimeout       = 30 * time.Second
	healthStartInterval = 5 * time.Second
	healthRetries       = 3
	healthResults       = 5
	healthOutput        = 4096 // bytes
)

// withDefaults fills in missing values.
func withDefaults(h proto.Health) proto.Health {
	if h.Interval <= 0 {
		h.Interval = healthInterval
	}
	if h.Timeout <= 0 {
		h.Timeout = healthTimeout
	}
	if h.StartInterval <= 0 {
		h.StartInterval = healthStartInterval
	}
	if h.Retries <= 0 {
		h.Retries = healthRetries
	}
	return h
}

// nextHealth returns the status after another result, by Docker's rules. It is
// pure. During the start period failures don't count, until the first success; age is
// how long the run had lasted when the check began.
func nextHealth(h proto.Health, now *proto.HealthState, age time.Duration, res proto.HealthResult) *proto.HealthState {
	next := &proto.HealthState{Status: now.Status, FailingStreak: now.FailingStreak}
	next.Log = append(next.Log, now.Log[max(0, len(now.Log)-healthResults+1):]...)
	next.Log = append(next.Log, res)
	if res.ExitCode == 0 {
		next.Status, next.FailingStreak = healthHealthy, 0
		return next
	}
	if now.Status == healthStarting && age < h.StartPeriod {
		return next
	}
	if next.FailingStreak++; next.FailingStreak >= h.Retries {
		next.Status = healthUnhealthy
	}
	return next
}

// firstHealth returns the status at the begin of a run. The results of earlier runs
// are shown until there are newer ones; log has those of an earlier life.
func firstHealth(last *proto.HealthState, log []proto.HealthResult) *proto.HealthState {
	if last != nil {
		log = last.Log
	}
	return &proto.HealthState{Status: healthStarting, Log: log}
}

// healthPause returns the time until the next check.
func healthPause(h proto.Health, now *proto.HealthState, sinceStart time.Duration) time.Duration {
	if now.Status == healthStarting && sinceStart < h.StartPeriod {
		return min(h.StartInterval, h.Interval)
	}
	return h.Interval
}

// healthChecker checks the container's health during one run.
type healthChecker struct {
	shim   *Shim
	health proto.Health
	began  time.Time       // the run, on the monotonic clock
	exited <-chan struct{} // closed when the container's process has exited
}

func newHealthChecker(s *Shim, r *run) *healthChecker {
	return &healthChecker{shim: s, health: withDefaults(*s.boot.Health), began: r.began, exited: r.proc.exited}
}

// run checks until the container's process has exited.
func (c *healthChecker) run() {
	rec := c.shim.rec
	timer := time.NewTimer(0)
	<-timer.C
	defer timer.Stop()
	var last time.Time
	for {
		timer.Reset(c.due(rec.snapshot().Health, last))
		select {
		case <-timer.C:
		case <-c.exited:
			return
		}
		// A paused container can't answer.
		st, ok := rec.waitFor(c.exited, func(st *proto.State) bool { return st.Status == proto.StatusRunning })
		if !ok {
			return
		}
		if !c.check(st.Health) {
			return
		}
		c.shim.server.collect()
		last = time.Now()
	}
}

// due returns how long to wait for the next check. last is the end of the last one, if
// this checker has made it. Otherwise an earlier shim may have checked, whose record
// has the time of day, and the clock may have been set since.
func (c *healthChecker) due(st *proto.HealthState, last time.Time) time.Duration {
	if last.IsZero() {
		last = c.began
		if n := len(st.Log); n > 0 {
			// The result may be of an earlier run.
			if end := st.Log[n-1].End; end.After(last) {
				last = end
			}
		}
	}
	pause := healthPause(c.health, st, time.Since(c.began))
	return min(max(pause-time.Since(last), 0), pause)
}

// check runs one check. It reports false if the container has ended.
func (c *healthChecker) check(now *proto.HealthState) bool {
	s := c.shim
	s.gate.enter()
	defer s.gate.leave()
	pauses := s.verbs.pauses.Load()
	age := time.Since(c.began)
	res, done := c.probe()
	select {
	case <-c.exited:
		return false // the check failed because the container ended
	default:
	}
	if !done || s.verbs.pauses.Load() != pauses {
		return true // discarded and repeated: the container was paused, or an upgrade began
	}
	next := nextHealth(c.health, now, age, res)
	var notes []note
	if next.Status != now.Status {
		notes = append(notes, note{proto.ActionHealth, map[string]string{"health": next.Status}})
	}
	s.rec.change(func(st *proto.State) { st.Health = next }, notes...)
	return true
}

// probe runs the check once. Exit code 0 is healthy; -1 means that the check could
// not be run or timed out. done is false if an upgrade interrupted it; the next
// binary repeats it.
func (c *healthChecker) probe() (res proto.HealthResult, done bool) {
	s, h := c.shim, c.health
	res = proto.HealthResult{Start: time.Now().UTC(), ExitCode: -1}
	fail := func(format string, args ...any) (proto.HealthResult, bool) {
		res.End = time.Now().UTC()
		res.Output = fmt.Sprintf(format, args...)
		return res, true
	}
	child, r, err := outputPipe()
	if err != nil {
		return fail("%v", err)
	}
	defer r.Close()
	timer := time.NewTimer(h.Timeout)
	defer timer.Stop()
	proc, _, err := s.runProcess("health-"+strconv.FormatUint(s.consoles.Add(1), 10), h.Process, false, 0, 0, stdio{-1, child, child})
	syscall.Close(child)
	if err != nil {
		return fail("OCI runtime exec failed: %v", err)
	}
	out := make(chan string, 1)
	go func() { out <- readLimited(r, healthOutput) }()
	collect := func() string {
		r.SetReadDeadline(time.Unix(1, 0))
		return strings.ToValidUTF8(<-out, "\uFFFD")
	}
	kill := func() {
		// The runtime makes the process a session leader. Its process group is killed
		// too.
		unix.Kill(-proc.pid, unix.SIGKILL)
		proc.signal(syscall.SIGKILL)
		<-proc.exited
		proc.closePidfd()
	}
	select {
	case <-proc.exited:
		res.ExitCode = proc.exitCode()
	case <-c.exited: // the check ends with the container
		<-proc.exited
	case <-s.gate.closing():
		kill()
		collect()
		return res, false
	case <-timer.C:
		kill()
		text := collect()
		if text != "" {
			text = ": " + text
		}
		return fail("Health check exceeded timeout (%v)%s", h.Timeout, text)
	}
	proc.closePidfd()
	res.End = time.Now().UTC()
	res.Output = collect()
	return res, true
}

func outputPipe() (child int, ours *os.File, err error) {
	return pipe(proto.ExecCreate{}, false)
}

// readLimited reads until EOF or the deadline and returns the first limit bytes.
// Bytes written before the deadline was set are still read after it.
func readLimited(f *os.File, limit int) string {
	var kept []byte
	buf := make([]byte, 4<<10)
	appendLimited := func(p []byte) { kept = append(kept, p[:min(len(p), limit-len(kept))]...) }
	for {
		n, err := f.Read(buf)
		appendLimited(buf[:max(n, 0)])
		if err == nil {
			continue
		}
		if raw, rerr := f.SyscallConn(); rerr == nil && os.IsTimeout(err) {
			raw.Control(func(fd uintptr) {
				for left := drainLimit; left > 0; left -= n {
					if n, err = unix.Read(int(fd), buf); n <= 0 {
						return
					}
					appendLimited(buf[:n])
				}
			})
		}
		return string(kept)
	}
}
