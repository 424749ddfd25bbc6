// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// patrol compares one container after the other with what it must be.
func (h *house) patrol() {
	every := min(time.Minute, h.length/3) / time.Duration(len(h.boxes))
	for round := 0; ; round++ {
		for _, b := range h.boxes {
			if !h.pause(every) {
				return
			}
			h.examine(b, round)
		}
	}
}

func (h *house) inspect(b *box) (container.InspectResponse, bool) {
	var r client.ContainerInspectResult
	err := h.patiently(h.ctx, func(ctx context.Context) (err error) {
		r, err = h.api.ContainerInspect(ctx, b.id, client.ContainerInspectOptions{})
		return err
	})
	if err != nil && h.ctx.Err() == nil {
		h.wrong("inspect %s: %v", b.name, err)
	}
	return r.Container, err == nil
}

// examine compares a container with what it must be.
func (h *house) examine(b *box, round int) {
	if steady(b) {
		h.examineSteady(b)
	} else {
		h.examineRuns(b)
	}
	// Lines are many, so not all logs are read each time.
	if (b.n+round)%4 == 0 {
		h.readLog(b)
	}
	if h.ctx.Err() == nil {
		h.count("examined")
	}
}

func (h *house) examineSteady(b *box) {
	c, ok := h.inspect(b)
	if !ok {
		return
	}
	s := c.State
	if !s.Running || s.StartedAt != b.started || s.Pid != b.pid || c.RestartCount != 0 {
		h.wrong("%s: running %v, started %s, pid %d, %d restarts; was %s, pid %d", b.name, s.Running, s.StartedAt, s.Pid, c.RestartCount, b.started, b.pid)
	}
	h.health(b, c)
	if b.port {
		run, err := hello(b)
		if h.ctx.Err() == nil && (err != nil || run != 1) {
			h.wrong("port of %s: run %d %v", b.name, run, err)
		}
	}
}

// health compares each result with what the check must have said at that time, and the
// health with the last result. On a busy machine a check may exceed its time, which is a
// failure, too.
func (h *house) health(b *box, c container.InspectResponse) {
	if b.check == 0 {
		return
	}
	s := c.State.Health
	if s == nil {
		h.wrong("%s has no health", b.name)
		return
	}
	if len(s.Log) == 0 {
		if time.Since(h.began) > bound+2*b.check {
			h.wrong("%s was never checked", b.name)
		}
		return
	}
	last := s.Log[len(s.Log)-1]
	if late := time.Since(last.End); late > 2*b.check+2*bound {
		h.wrong("%s was not checked for %s; last checks %s", b.name, late, checks(s))
	}
	want := container.Healthy
	if last.ExitCode != 0 {
		want = container.Unhealthy
	}
	if s.Status != want {
		h.wrong("%s is %s, want %s; last checks %s", b.name, s.Status, want, checks(s))
	}
	for _, r := range s.Log {
		if r.ExitCode == -1 && r.End.Sub(r.Start) >= bound {
			h.count("health checks that took too long")
			continue
		}
		if ill, sure := b.ill(r.Start, r.End); sure && ill != (r.ExitCode == 1) || r.ExitCode != 0 && r.ExitCode != 1 {
			h.wrong("%s: a check from %s to %s gave %d %q", b.name, r.Start, r.End, r.ExitCode, r.Output)
		}
	}
	h.count("health compared")
}

// ill reports what a check says that ran at some moment in a time. sure is false if the
// result changed meanwhile.
func (b *box) ill(from, to time.Time) (ill, sure bool) {
	if b.period == 0 {
		return false, true
	}
	first, last := from.Unix()/int64(b.period), to.Unix()/int64(b.period)
	return first%2 == 1, first == last
}

func checks(s *container.Health) (out string) {
	for _, r := range s.Log {
		out += fmt.Sprintf("[%s to %s: %d %q] ", r.Start.Format("15:04:05.0"), r.End.Format("15:04:05.0"), r.ExitCode, r.Output)
	}
	return out
}

// examineRuns compares the count of restarts with the run that the program counts
// itself. Between an end and the first line of the next run they may differ.
func (h *house) examineRuns(b *box) {
	var text string
	for late := time.Now().Add(bound); ; {
		c, ok := h.inspect(b)
		if !ok {
			return
		}
		run, err := h.lastRun(b)
		if b.port {
			run, err = hello(b)
		}
		after, ok := h.inspect(b)
		switch {
		case !ok:
			return
		case err == nil && c.RestartCount == after.RestartCount && after.State.Running && run == c.RestartCount+1:
			h.count("restart counts compared")
			return
		case !c.State.Running && !c.State.Restarting && !after.State.Running && !after.State.Restarting:
			h.wrong("%s is %s with policy %s", b.name, after.State.Status, b.policy)
			return
		}
		text = fmt.Sprintf("restarts %d and %d, %s, run %d %v", c.RestartCount, after.RestartCount, after.State.Status, run, err)
		if time.Now().After(late) {
			h.wrong("%s: %s", b.name, text)
			return
		}
		if !h.pause(300 * time.Millisecond) {
			return
		}
	}
}

// lastRun is the run of the last line of the log.
func (h *house) lastRun(b *box) (int, error) {
	var last line
	err := h.patiently(h.ctx, func(ctx context.Context) error {
		r, err := h.api.ContainerLogs(ctx, b.id, client.ContainerLogsOptions{ShowStdout: true, Tail: "1"})
		if err != nil {
			return err
		}
		defer r.Close()
		text, err := io.ReadAll(plain(b, r))
		if err != nil {
			return err
		}
		var ok bool
		if last, ok = parse(string(text)); !ok {
			return fmt.Errorf("last line %q", text)
		}
		return nil
	})
	return last.run, err
}

// readLog checks all lines that rotation has left.
func (h *house) readLog(b *box) {
	began := time.Now()
	var seq sequence
	bad := ""
	err := h.patiently(h.ctx, func(ctx context.Context) error {
		seq, bad = sequence{}, ""
		r, err := h.api.ContainerLogs(ctx, b.id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true})
		if err != nil {
			return err
		}
		defer r.Close()
		s := bufio.NewScanner(plain(b, r))
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			if text := seq.next(s.Text()); text != "" && bad == "" {
				bad = text
			}
		}
		return s.Err()
	})
	switch {
	case h.ctx.Err() != nil:
	case err != nil && h.disturbed(began): // the daemon that read it was killed
	case err != nil:
		h.wrong("logs of %s: %v", b.name, err)
	case bad != "":
		h.wrong("logs of %s: %s", b.name, bad)
	case seq.lines == 0:
		h.wrong("logs of %s are empty", b.name)
	default:
		h.mu.Lock()
		h.done["logs"]++
		h.done["lines read by logs"] += seq.lines
		h.mu.Unlock()
	}
}

// hello asks a published port, and returns the run of the program that answers.
func hello(b *box) (run int, err error) {
	c, err := net.DialTimeout("tcp", b.address, 20*time.Second)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	text, err := io.ReadAll(c)
	if err != nil {
		return 0, err
	}
	var name string
	if _, err := fmt.Sscanf(string(text), "%s %d", &name, &run); err != nil || name != b.name {
		return run, fmt.Errorf("answered by %q", text)
	}
	return run, nil
}

// balance compares the events with the counts of restarts, when all is quiet.
func (h *house) balance() {
	for _, b := range h.boxes {
		var text string
		for late := time.Now().Add(bound); ; {
			r, err := h.api.ContainerInspect(context.Background(), b.id, client.ContainerInspectOptions{})
			h.mu.Lock()
			starts, dies := h.starts[b.id], h.dies[b.id]
			h.mu.Unlock()
			if err == nil && r.Container.State.Running && starts == r.Container.RestartCount+1 && dies == r.Container.RestartCount {
				break
			}
			text = fmt.Sprintf("%d starts and %d ends in the events, %d restarts, %s, %v", starts, dies, r.Container.RestartCount, r.Container.State.Status, err)
			if time.Now().After(late) {
				h.wrong("%s: %s", b.name, text)
				break
			}
			h.pause(200 * time.Millisecond)
		}
	}
}
