// SPDX-License-Identifier: Apache-2.0

package timeline

import (
	"fmt"
	"time"

	"holdfast/internal/event"
)

// when formats a time.
func when(t time.Time) string { return t.Format("2006-01-02 15:04:05") }

// title describes a life beyond what its bar shows.
func (l Life) title(t Timeline) string {
	s := fmt.Sprintf("holdfastd %s, pid %d, from %s", l.Release, l.Pid, when(l.Start.In(t.From.Location())))
	end := func(at time.Time) string { return when(at.In(t.From.Location())) }
	switch l.How {
	case "":
		return s + ": lives"
	case event.EndClean:
		return s + " to " + end(l.End) + ": stopped"
	case event.EndHandover:
		return s + " to " + end(l.End) + ": handed over to the next"
	}
	what := "crashed"
	if l.How == event.EndReboot {
		what = "ended with the machine"
	}
	if l.End.IsZero() {
		return s + ": " + what + " after " + end(l.Seen)
	}
	return s + ": " + what + " between " + end(l.Seen) + " and " + end(l.End)
}

// title describes a run beyond what its bar shows.
func (r Run) title(c Container, t Timeline) string {
	s := fmt.Sprintf("%s: run from %s", c.Name, when(r.Start.In(t.From.Location())))
	if r.End.IsZero() {
		return s + ", up " + span(t.To.Sub(r.Start)) + under(r.Lives)
	}
	s += " to " + when(r.End.In(t.From.Location())) + fmt.Sprintf(", exit code %d", r.ExitCode)
	if r.OOM {
		s += ", out of memory"
	}
	return s + under(r.Lives)
}

func under(lives int) string {
	switch lives {
	case 0:
		return ", without a daemon"
	case 1:
		return ", under 1 daemon"
	}
	return fmt.Sprintf(", under %d daemons", lives)
}

// summary describes a container in a few words.
func (c Container) summary(now time.Time) string {
	r := c.last()
	s := ""
	switch {
	case r.End.IsZero():
		s = "up " + span(now.Sub(r.Start)) + under(r.Lives)
	case r.OOM:
		s = fmt.Sprintf("out of memory, exit %d", r.ExitCode)
	default:
		s = fmt.Sprintf("exit %d", r.ExitCode)
	}
	if n := len(c.Runs); n > 1 {
		s += ", " + plural(n, "run", "runs")
	}
	if !c.Removed.IsZero() {
		s += ", removed"
	}
	return s
}

// summary describes the daemon in a few words.
func (t Timeline) summary() string {
	n := len(t.Daemon)
	if n == 0 {
		return "no daemon"
	}
	crashes, upgrades := 0, 0
	for _, l := range t.Daemon {
		if l.Unseen() {
			crashes++
		}
		if l.Upgraded {
			upgrades++
		}
	}
	s := plural(n, "life", "lives")
	if crashes > 0 {
		s += ", " + plural(crashes, "crash", "crashes")
	}
	if upgrades > 0 {
		s += ", " + plural(upgrades, "upgrade", "upgrades")
	}
	if t.DaemonAway {
		s += ", away now"
	}
	return s
}

// in converts all times to a time zone.
func (t Timeline) in(zone *time.Location) Timeline {
	t.From, t.To = t.From.In(zone), t.To.In(zone)
	return t
}
