// SPDX-License-Identifier: Apache-2.0

package server

import (
	"time"

	"holdfast/internal/logs/format"
	"holdfast/internal/shim/cgroup"
	"holdfast/internal/shim/descriptor"
	"holdfast/internal/shim/proto"
)

// logSection has the log's unfinished lines, for a shim without a ledger. With one,
// the next binary reads them from there.
type logSection struct {
	Log []byte `json:"log,omitempty"`
}

func (sec *logSection) descriptors() []*int { return nil }

func (sec *logSection) save(s *Shim) {
	o := s.out
	o.mu.Lock()
	defer o.mu.Unlock()
	sec.Log = o.log.AppendState(nil)
	if o.ledger != nil {
		o.ledger.shorten()
	}
}

// restore has nothing to do: a shim is built with its log.
func (sec *logSection) restore(*Shim) {}

// build opens the log again.
func (sec *logSection) build(s *Shim) error {
	if err := s.out.openLog(s.boot.Log, s.boot.RunDir, true); err != nil {
		return err
	}
	if s.out.ledger == nil {
		if err := s.out.log.SetState(sec.Log); err != nil {
			logf("an unfinished log line is lost: %v", err)
		}
	}
	return nil
}

// runSection has the container's run and what the next one needs.
type runSection struct {
	Delay time.Duration `json:"delay,omitempty"`
	Rows  uint          `json:"rows,omitempty"`
	Cols  uint          `json:"cols,omitempty"`
	Run   *handoverRun  `json:"run,omitempty"`
}

// handoverRun is a run in the handover state.
type handoverRun struct {
	Process savedProcess `json:"process"`
	Started time.Time    `json:"started"`
	Master  int          `json:"master"`
	Stdin   int          `json:"stdin"`
	Stdout  int          `json:"stdout"`
	Stderr  int          `json:"stderr"`
}

func (sec *runSection) descriptors() []*int {
	if r := sec.Run; r != nil {
		return []*int{&r.Process.Pidfd, &r.Master, &r.Stdin, &r.Stdout, &r.Stderr}
	}
	return nil
}

func (sec *runSection) save(s *Shim) {
	v := s.life
	v.mu.Lock()
	current := v.current
	sec.Delay, sec.Rows, sec.Cols = v.delay, v.rows, v.cols
	v.mu.Unlock()
	if current == nil {
		return
	}
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	r := &handoverRun{Process: current.proc.save(), Started: current.started, Master: descriptor.Number(current.io.master), Stdin: -1, Stdout: -1, Stderr: -1}
	if !s.out.in.closed {
		r.Stdin = descriptor.Number(current.io.stdin)
	}
	for _, p := range current.io.pumps {
		switch {
		case p.terminal:
		case p.src == format.Stdout:
			r.Stdout = descriptor.Number(p.f)
		default:
			r.Stderr = descriptor.Number(p.f)
		}
	}
	sec.Run = r
}

// restore continues the run, or the wait for the next one.
func (sec *runSection) restore(s *Shim) {
	b, v := s.boot, s.life
	v.delay, v.rows, v.cols = sec.Delay, sec.Rows, sec.Cols
	if !bundlePrivatePids(b.Bundle+"/config.json") || b.Health != nil {
		s.reaper.listenSIGCHLD()
	}
	var r *run
	if i := sec.Run; i != nil {
		st := s.rec.snapshot()
		proc, err := i.Process.restore(s.reaper)
		if err != nil {
			logf("process %d: %v", i.Process.Pid, err)
			proc = foreign(i.Process.Pid, st.PidStart, -1)
		}
		r = resumedRun(proc, s.out.restoreRunIO(i), cgroup.WatchOOM(b.OOMFile, b.OOMKey), i.Started, st.PidStart)
		v.current = r
		if st.Status == proto.StatusPaused {
			s.stops.watchDoomed(r)
		}
		r.io.run(b)
		if b.Health != nil && st.Health != nil {
			go newHealthChecker(s, r).run()
		}
	}
	go v.supervise(r, sec.Delay)
}
