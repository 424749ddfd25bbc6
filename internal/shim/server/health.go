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

// withDefaults fills in what was not given.
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

// nextHealth is the status after one more result. It is pure: Docker's rules.
// During the start period failures don't count, until the first success.
func nextHealth(h proto.Health, now *proto.HealthState, started time.Time, res proto.HealthResult) *proto.HealthState {
	next := &proto.HealthState{Status: now.Status, FailingStreak: now.FailingStreak}
	next.Log = append(next.Log, now.Log[max(0, len(now.Log)-healthResults+1):]...)
	next.Log = append(next.Log, res)
	if res.ExitCode == 0 {
		next.Status, next.FailingStreak = healthHealthy, 0
		return next
	}
	if now.Status == healthStarting && res.Start.Sub(started) < h.StartPeriod {
		return next
	}
	if next.FailingStreak++; next.FailingStreak >= h.Retries {
		next.Status = healthUnhealthy
	}
	return next
}

// healthPause is the time until the next check.
func healthPause(h proto.Health, now *proto.HealthState, sinceStart time.Duration) time.Duration {
	if now.Status == healthStarting && sinceStart < h.StartPeriod {
		return min(h.StartInterval, h.Interval)
	}
	return h.Interval
}

// watchHealth checks the container's health until its process has exited.
func (s *Shim) watchHealth(h proto.Health, started time.Time, exited <-chan struct{}) {
	h = withDefaults(h)
	timer := time.NewTimer(0)
	<-timer.C
	defer timer.Stop()
	for {
		st := s.rec.snapshot()
		last := started
		if n := len(st.Health.Log); n > 0 {
			last = st.Health.Log[n-1].End // perhaps seen by another shim
		}
		timer.Reset(max(healthPause(h, st.Health, time.Since(started))-time.Since(last), 0))
		select {
		case <-timer.C:
		case <-exited:
			return
		}
		// A paused container can't answer.
		st, ok := s.rec.until(exited, func(st *proto.State) bool { return st.Status == proto.StatusRunning })
		if !ok {
			return
		}
		if !s.checkHealth(h, st.Health, started, exited) {
			return
		}
	}
}

// checkHealth checks once, and reports false when the container has ended.
func (s *Shim) checkHealth(h proto.Health, now *proto.HealthState, started time.Time, exited <-chan struct{}) bool {
	s.gate.enter()
	defer s.gate.leave()
	res, done := s.probe(h, exited)
	select {
	case <-exited:
		return false // says nothing about the container's health
	default:
	}
	if !done {
		return true // again, soon
	}
	next := nextHealth(h, now, started, res)
	var notes []note
	if next.Status != now.Status {
		notes = append(notes, note{proto.ActionHealth, map[string]string{"health": next.Status}})
	}
	s.rec.change(func(st *proto.State) { st.Health = next }, notes...)
	return true
}

// probe runs the check once. Only an exit code of 0 is healthy; -1 is a check
// that could not be run or took too long. It is not done when the shim is about
// to go on as another binary, which begins it anew.
func (s *Shim) probe(h proto.Health, exited <-chan struct{}) (res proto.HealthResult, done bool) {
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
		// The runtime makes it the leader of a session: its children go too.
		unix.Kill(-proc.pid, unix.SIGKILL)
		proc.signal(syscall.SIGKILL)
		<-proc.exited
		proc.forget()
	}
	select {
	case <-proc.exited:
		res.ExitCode = proc.exitCode()
	case <-exited: // and with it the check
		<-proc.exited
	case <-s.gate.wanted():
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
	proc.forget()
	res.End = time.Now().UTC()
	res.Output = collect()
	return res, true
}

func outputPipe() (child int, ours *os.File, err error) {
	return pipe(proto.ExecCreate{}, false)
}

// readLimited reads until the end or the deadline and keeps the first bytes.
// What was written before the deadline was set is read also after it.
func readLimited(f *os.File, limit int) string {
	var kept []byte
	buf := make([]byte, 4<<10)
	keep := func(p []byte) { kept = append(kept, p[:min(len(p), limit-len(kept))]...) }
	for {
		n, err := f.Read(buf)
		keep(buf[:max(n, 0)])
		if err == nil {
			continue
		}
		if raw, rerr := f.SyscallConn(); rerr == nil && os.IsTimeout(err) {
			raw.Control(func(fd uintptr) {
				for left := drainLimit; left > 0; left -= n {
					if n, err = unix.Read(int(fd), buf); n <= 0 {
						return
					}
					keep(buf[:n])
				}
			})
		}
		return string(kept)
	}
}
