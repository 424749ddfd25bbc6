// SPDX-License-Identifier: Apache-2.0

package status

import (
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"

	"holdfast/internal/timeline"
)

// recentLives is the number of the daemon's lives that are printed.
const recentLives = 5

// Print writes the status as tables. Ages are relative to now.
func Print(out io.Writer, s Status, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	if d := s.Daemon; d != nil {
		fmt.Fprintf(w, "Daemon:\tversion %s, pid %d, up %s\n", text(d.Version), d.Pid, age(now, d.Started))
		fmt.Fprintf(w, "Data root:\t%s\n", text(d.DataRoot))
		fmt.Fprintf(w, "Exec root:\t%s\n", text(d.ExecRoot))
		fmt.Fprintf(w, "Lives:\t%d\n", len(s.Lives))
	} else {
		fmt.Fprintf(w, "Daemon:\t%s\n", text(s.Error))
	}
	if err := w.Flush(); err != nil {
		return err
	}

	if lives := s.Lives; len(lives) > 1 {
		fmt.Fprint(w, "\nDAEMON STARTED\tLASTED\tENDED\n")
		for _, l := range lives[max(0, len(lives)-recentLives):] {
			lasted, how := "-", l.How
			switch {
			case !l.Ended.IsZero():
				lasted = units.HumanDuration(l.Ended.Sub(l.Started))
			case how == "":
				how = "running"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\n", l.Started.Local().Format(time.DateTime), lasted, text(how))
		}
	}

	fmt.Fprint(w, "\nCONTAINER ID\tNAME\tSTATUS\tPID\tUP\tSHIM PID\tSHIM VERSION\tDAEMON LIVES\n")
	for _, c := range s.Containers {
		up := "-"
		if c.Pid != 0 && !c.Started.IsZero() {
			up = age(now, c.Started)
		}
		fmt.Fprintf(w, "%.12s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", text(c.ID), text(c.Name), text(c.Status),
			number(c.Pid), up, number(c.ShimPid), text(c.ShimVersion), number(c.Lives))
	}
	for _, c := range s.Containers {
		if c.Note != "" {
			fmt.Fprintf(w, "\n%.12s: %s\n", text(c.ID), text(c.Note))
		}
	}
	return w.Flush()
}

func age(now, since time.Time) string {
	return units.HumanDuration(max(0, now.Sub(since)))
}

func number(n int) string {
	if n == 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

// text makes a string of a daemon or a shim safe for the terminal.
func text(s string) string {
	if s == "" {
		return "-"
	}
	return timeline.Plain(s)
}
