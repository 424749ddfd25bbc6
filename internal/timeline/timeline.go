// SPDX-License-Identifier: Apache-2.0

// Package timeline draws the history of an engine: the daemon's lives above those
// of the containers. It turns events into spans of time, and these into text and
// a page. It reads neither files nor the clock: events and times are arguments.
package timeline

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/event"
)

// Timeline is the history between From and To.
type Timeline struct {
	From       time.Time   `json:"from"`
	To         time.Time   `json:"to"`
	Daemon     []Life      `json:"daemon"`     // oldest first
	Containers []Container `json:"containers"` // running ones first, then the latest
	// DaemonAway: no daemon runs at To.
	DaemonAway bool `json:"daemonAway,omitempty"`
}

// Life is the time between a start and an end of the daemon.
type Life struct {
	Release string    `json:"release"`
	Pid     int       `json:"pid"`
	Start   time.Time `json:"start"`
	// End is zero while the daemon runs. If How is crash or reboot the end was not
	// recorded: it was between Seen and End.
	End time.Time `json:"end,omitzero"`
	// Seen is the last sign of life, if the end was not recorded.
	Seen time.Time `json:"seen,omitzero"`
	// How is empty while the daemon runs; otherwise event.EndClean or one of the
	// others.
	How string `json:"how,omitempty"`
	// Upgraded: the release differs from that of the previous life.
	Upgraded bool `json:"upgraded,omitempty"`
}

// Unseen reports whether the end was not recorded.
func (l Life) Unseen() bool { return l.How == event.EndCrash || l.How == event.EndReboot }

// Container is the history of one container.
type Container struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Image   string    `json:"image"`
	Created time.Time `json:"created,omitzero"`
	Removed time.Time `json:"removed,omitzero"`
	Runs    []Run     `json:"runs"` // oldest first
	Marks   []Mark    `json:"marks,omitempty"`
}

// Run is one run of a container's process.
type Run struct {
	Start time.Time `json:"start"`
	End   time.Time `json:"end,omitzero"` // zero while it runs
	// ExitCode is set if the run has ended.
	ExitCode int    `json:"exitCode"`
	OOM      bool   `json:"oom,omitempty"`
	Paused   []Span `json:"paused,omitempty"`
	// Lives is the number of the daemon's lives during the run.
	Lives int `json:"lives"`
}

// Span is a span of time. A zero End means that it has not ended.
type Span struct {
	Start time.Time `json:"start"`
	End   time.Time `json:"end,omitzero"`
}

// Mark is a notable moment.
type Mark struct {
	Time time.Time `json:"time"`
	What string    `json:"what"` // oom, healthy, unhealthy
}

// Present is a container's current state. It fills in what no event reports.
type Present struct {
	ID, Name, Image string
	Created         time.Time
	Running         bool
	Started         time.Time
	Finished        time.Time // of the last run, if it does not run
	ExitCode        int
}

// Wanted reports whether the timeline uses an event.
func Wanted(m event.Message) bool {
	if m.Source == "" {
		return true // a sign of life of the daemon
	}
	return m.Type == "container"
}

// Build builds the timeline from since, or from the first record if that is
// later, to now. The last of lives is the running daemon's, unless away says that
// none runs. Events are sorted by time.
func Build(lives []event.Life, events []event.Message, present []Present, since, now time.Time, away bool) Timeline {
	t := Timeline{From: since, To: now, DaemonAway: away, Daemon: daemonLives(lives, events, away), Containers: []Container{}}
	all := containers(events, present)
	if first := t.first(all, now); t.From.Before(first) {
		t.From = first
	}
	t.Daemon = slices.DeleteFunc(t.Daemon, func(l Life) bool { return !l.End.IsZero() && l.End.Before(t.From) || l.Start.After(now) })
	for _, c := range all {
		c.Runs = slices.DeleteFunc(c.Runs, func(r Run) bool { return !r.End.IsZero() && r.End.Before(t.From) || r.Start.After(now) })
		c.Marks = slices.DeleteFunc(c.Marks, func(m Mark) bool { return m.Time.Before(t.From) || m.Time.After(now) })
		if len(c.Runs) == 0 {
			continue
		}
		for i := range c.Runs {
			c.Runs[i].Lives = t.livesOf(c.Runs[i], lives)
		}
		t.Containers = append(t.Containers, c)
	}
	slices.SortStableFunc(t.Containers, func(a, b Container) int {
		return cmp.Or(b.last().order(now).Compare(a.last().order(now)), a.Runs[0].Start.Compare(b.Runs[0].Start), strings.Compare(a.Name, b.Name))
	})
	return t
}

// first returns the earliest time of any record.
func (t Timeline) first(all []Container, now time.Time) time.Time {
	first := now
	if len(t.Daemon) > 0 {
		first = t.Daemon[0].Start
	}
	for _, c := range all {
		if len(c.Runs) > 0 && c.Runs[0].Start.Before(first) {
			first = c.Runs[0].Start
		}
	}
	return first
}

func (c Container) last() Run { return c.Runs[len(c.Runs)-1] }

// order returns the sort key: running ones come first, then the latest end.
func (r Run) order(now time.Time) time.Time {
	if r.End.IsZero() {
		return now
	}
	return r.End
}

// livesOf counts the daemon's lives during a run.
func (t Timeline) livesOf(r Run, lives []event.Life) int {
	n := 0
	for _, l := range lives {
		if (r.End.IsZero() || l.Start.Before(r.End)) && (l.How == "" || l.End.After(r.Start)) {
			n++
		}
	}
	return n
}

func daemonLives(lives []event.Life, events []event.Message, away bool) []Life {
	out := []Life{}
	for i, l := range lives {
		life := Life{Release: l.Release, Pid: l.Pid, Start: l.Start, End: l.End, How: l.How}
		if i > 0 && lives[i-1].Release != l.Release {
			life.Upgraded = true
		}
		if away && i == len(lives)-1 && l.How == "" {
			life.How = event.EndCrash // no later daemon has recorded the end
		}
		if life.Unseen() {
			life.Seen = life.Start
		}
		out = append(out, life)
	}
	for _, m := range events {
		if m.Source != "" {
			continue
		}
		for i := range out {
			l := &out[i]
			if at := m.At(); l.Unseen() && at.After(l.Seen) && (l.End.IsZero() || at.Before(l.End)) && at.After(l.Start) {
				l.Seen = at
			}
		}
	}
	return out
}

// containers builds each container's history from its events.
func containers(events []event.Message, present []Present) []Container {
	byID := map[string]*Container{}
	var order []string
	get := func(id string) *Container {
		c := byID[id]
		if c == nil {
			c = &Container{ID: id}
			byID[id] = c
			order = append(order, id)
		}
		return c
	}
	for _, m := range events {
		if m.Type != "container" {
			continue
		}
		c := get(m.Actor.ID)
		if name := m.Actor.Attributes["name"]; name != "" {
			c.Name = name
		}
		if image := m.Actor.Attributes["image"]; image != "" {
			c.Image = image
		}
		c.take(m)
	}
	for _, p := range present {
		c := get(p.ID)
		c.Name, c.Image, c.Created = p.Name, p.Image, p.Created
		c.reconcile(p)
	}
	out := make([]Container, 0, len(order))
	for _, id := range order {
		if c := byID[id]; !slices.ContainsFunc(present, func(p Present) bool { return p.ID == id }) {
			c.close(c.Removed, 0) // no journal has its end any more
			out = append(out, *c)
		} else {
			out = append(out, *c)
		}
	}
	return out
}

// running returns the run that has not ended, or nil.
func (c *Container) running() *Run {
	if n := len(c.Runs); n > 0 && c.Runs[n-1].End.IsZero() {
		return &c.Runs[n-1]
	}
	return nil
}

// close ends the run that has not ended, if there is one.
func (c *Container) close(at time.Time, code int) {
	r := c.running()
	if r == nil || at.IsZero() {
		return
	}
	r.End, r.ExitCode = at, code
	if n := len(r.Paused); n > 0 && r.Paused[n-1].End.IsZero() {
		r.Paused[n-1].End = at
	}
}

// take applies one event.
func (c *Container) take(m event.Message) {
	at := m.At()
	action, detail, _ := strings.Cut(m.Action, ": ")
	switch action {
	case "create":
		c.Created = at
	case "start":
		c.close(at, 0)
		c.Runs = append(c.Runs, Run{Start: at})
	case "die":
		code, _ := strconv.Atoi(m.Actor.Attributes["exitCode"])
		c.close(at, code)
	case "pause":
		if r := c.running(); r != nil {
			r.Paused = append(r.Paused, Span{Start: at})
		}
	case "unpause":
		if r := c.running(); r != nil {
			if n := len(r.Paused); n > 0 {
				r.Paused[n-1].End = at
			}
		}
	case "oom":
		c.Marks = append(c.Marks, Mark{at, "oom"})
		if r := c.running(); r != nil {
			r.OOM = true
		}
	case "health_status":
		c.Marks = append(c.Marks, Mark{at, detail})
	case "destroy":
		c.close(at, 0)
		c.Removed = at
	}
}

// reconcile adjusts the history to the container's current state.
func (c *Container) reconcile(p Present) {
	r := c.running()
	switch {
	case p.Running && (r == nil || r.Start.Add(time.Second).Before(p.Started)):
		c.close(p.Started, 0)
		c.Runs = append(c.Runs, Run{Start: p.Started})
	case !p.Running && r != nil:
		c.close(p.Finished, p.ExitCode)
	case !p.Running && len(c.Runs) == 0 && !p.Started.IsZero() && !p.Finished.IsZero():
		c.Runs = append(c.Runs, Run{Start: p.Started, End: p.Finished, ExitCode: p.ExitCode})
	}
}
