// SPDX-License-Identifier: Apache-2.0

package timeline

import (
	"fmt"
	"time"
)

// steps are the possible distances between the ticks of an axis.
var steps = []time.Duration{
	time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond,
	time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 15 * time.Second, 30 * time.Second,
	time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 15 * time.Minute, 30 * time.Minute,
	time.Hour, 2 * time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour,
	day, 2 * day, 7 * day, 14 * day, 28 * day, 84 * day, 364 * day,
}

const day = 24 * time.Hour

// ticks returns round times within a span, at most max of them, and the distance
// between them.
func ticks(from, to time.Time, max int) (at []time.Time, step time.Duration) {
	step = steps[len(steps)-1]
	for _, s := range steps {
		if int(to.Sub(from)/s) < max {
			step = s
			break
		}
	}
	// Round to hours and days of the time zone.
	_, offset := from.Zone()
	shift := time.Duration(offset) * time.Second
	t := from.Add(shift).Truncate(step).Add(-shift)
	for ; !t.After(to); t = t.Add(step) {
		if !t.Before(from) {
			at = append(at, t)
		}
	}
	return at, step
}

// clock returns a tick's label.
func clock(t time.Time, step time.Duration) string {
	switch {
	case step >= day:
		return t.Format("2 Jan")
	case step >= time.Minute:
		return t.Format("15:04")
	case step >= time.Second:
		return t.Format("15:04:05")
	}
	return t.Format("05.000")
}

// span formats a duration with its two largest units.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return two(int(d.Minutes()), "min", int(d.Seconds())%60, "s")
	case d < 2*day:
		return two(int(d.Hours()), "h", int(d.Minutes())%60, "min")
	}
	return two(int(d.Hours())/24, "d", int(d.Hours())%24, "h")
}

func two(a int, unitA string, b int, unitB string) string {
	if b == 0 {
		return fmt.Sprintf("%d %s", a, unitA)
	}
	return fmt.Sprintf("%d %s %d %s", a, unitA, b, unitB)
}

// plural formats a count.
func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
