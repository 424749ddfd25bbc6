// SPDX-License-Identifier: Apache-2.0

package timeline

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"holdfast/internal/event"
)

// TextOptions configure Text.
type TextOptions struct {
	Width  int // columns; less than 40 counts as 40
	Colour bool
	Zone   *time.Location
}

// Signs in the cells of a bar. Without colour they must be enough.
const (
	signNone    = ' '
	signLives   = '█'
	signUnknown = '░' // the daemon's end was not recorded
	signPaused  = '▒'
	signEnd     = '▌' // a normal end
	signBroken  = '✗' // crash, or an exit code other than 0
	signUpgrade = '▲'
	signGoesOn  = '▶'
)

// colours of the signs in terminals
var colours = map[rune]string{
	signLives: "32", signUnknown: "90", signPaused: "33", signEnd: "32", signBroken: "1;31", signUpgrade: "1;36", signGoesOn: "32",
}

// Text draws the timeline for a terminal, with a line for each container.
func Text(t Timeline, o TextOptions) string {
	if o.Zone == nil {
		o.Zone = time.UTC
	}
	t = t.in(o.Zone)
	d := drawing{t: t, o: o}
	d.layout()

	var b strings.Builder
	b.WriteString("Holdfast from " + when(t.From) + " to " + when(t.To) + " " + t.To.Format("MST") + " (" + span(t.To.Sub(t.From)) + ")\n\n")
	d.axis(&b)
	d.row(&b, "daemon", d.daemon(), t.summary())
	if labels := d.releases(); strings.TrimSpace(labels) != "" {
		d.row(&b, "", []rune(labels), "")
	}
	if len(t.Containers) > 0 {
		b.WriteString("\n")
	}
	for _, c := range t.Containers {
		d.row(&b, c.Name, d.container(c), c.summary(t.To))
	}
	b.WriteString("\n" + d.legend())
	return b.String()
}

// drawing is the state of Text.
type drawing struct {
	t              Timeline
	o              TextOptions
	name, bar, tip int // columns; tip is 0 if there is no room for it
}

// layout divides the width into columns.
func (d *drawing) layout() {
	width := max(d.o.Width, 40)
	d.name = len("daemon")
	d.tip = utf8.RuneCountInString(d.t.summary())
	for _, c := range d.t.Containers {
		d.name = max(d.name, utf8.RuneCountInString(c.Name))
		d.tip = max(d.tip, utf8.RuneCountInString(c.summary(d.t.To)))
	}
	d.name = min(d.name, 20, width/3)
	d.bar = width - d.name - 2 - d.tip - 2
	if d.bar < 24 {
		d.tip = 0
		d.bar = width - d.name - 2
	}
}

// cell returns the column of a time. Times outside the picture are at its border.
func (d *drawing) cell(at time.Time) int {
	all := d.t.To.Sub(d.t.From)
	if all <= 0 {
		return 0
	}
	n := int(float64(at.Sub(d.t.From)) / float64(all) * float64(d.bar))
	return max(0, min(n, d.bar-1))
}

// fill draws the sign from one time to another. A zero end means the end of the
// picture.
func (d *drawing) fill(bar []rune, from, to time.Time, sign rune) {
	if to.IsZero() {
		to = d.t.To
	}
	for i := d.cell(from); i <= d.cell(to); i++ {
		bar[i] = sign
	}
}

func (d *drawing) empty() []rune { return []rune(strings.Repeat(string(signNone), d.bar)) }

func (d *drawing) daemon() []rune {
	bar := d.empty()
	for _, l := range d.t.Daemon {
		switch {
		case l.Unseen():
			d.fill(bar, l.Seen, l.End, signUnknown)
			d.fill(bar, l.Start, l.Seen, signLives)
		default:
			d.fill(bar, l.Start, l.End, signLives)
		}
	}
	for _, l := range d.t.Daemon { // over the neighbours' bars
		switch {
		case l.Unseen():
			bar[d.cell(l.Seen)] = signBroken
		case l.How == event.EndClean:
			bar[d.cell(l.End)] = signEnd
		case l.How == "":
			bar[d.bar-1] = signGoesOn
		}
	}
	for _, l := range d.t.Daemon {
		if l.Upgraded && !l.Start.Before(d.t.From) {
			bar[d.cell(l.Start)] = signUpgrade
		}
	}
	return bar
}

// releases writes the daemon's releases below its bar, where they change.
func (d *drawing) releases() string {
	line := d.empty()
	free := 0
	for i, l := range d.t.Daemon {
		if i > 0 && !l.Upgraded {
			continue
		}
		label := []rune(Plain(l.Release))
		at := d.cell(l.Start)
		if l.Start.Before(d.t.From) {
			at = 0
		}
		at = min(at, d.bar-len(label))
		if at < free {
			continue
		}
		copy(line[at:], label)
		free = at + len(label) + 1
	}
	return string(line)
}

func (d *drawing) container(c Container) []rune {
	bar := d.empty()
	for _, r := range c.Runs {
		d.fill(bar, r.Start, r.End, signLives)
		for _, p := range r.Paused {
			d.fill(bar, p.Start, p.End, signPaused)
		}
	}
	for _, r := range c.Runs {
		switch {
		case r.End.IsZero():
			bar[d.bar-1] = signGoesOn
		case r.ExitCode != 0:
			bar[d.cell(r.End)] = signBroken
		default:
			bar[d.cell(r.End)] = signEnd
		}
	}
	return bar
}

// axis draws the clock above the bars.
func (d *drawing) axis(b *strings.Builder) {
	at, step := ticks(d.t.From, d.t.To, max(2, d.bar/14))
	labels, line := d.empty(), []rune(strings.Repeat("─", d.bar))
	free := 0
	for _, t := range at {
		i := d.cell(t)
		line[i] = '┬'
		label := []rune(clock(t, step))
		if i >= free && i+len(label) <= d.bar {
			copy(labels[i:], label)
			free = i + len(label) + 1
		}
	}
	d.row(b, "", labels, "")
	d.row(b, "", line, "")
}

// row writes a line: name, bar and summary.
func (d *drawing) row(b *strings.Builder, name string, bar []rune, tip string) {
	line := fit(name, d.name) + "  " + d.paint(bar)
	if d.tip > 0 && tip != "" {
		line += "  " + tip
	}
	b.WriteString(strings.TrimRight(line, " ") + "\n")
}

// paint adds the signs' colours.
func (d *drawing) paint(bar []rune) string {
	if !d.o.Colour {
		return string(bar)
	}
	var b strings.Builder
	last := ""
	for _, r := range bar {
		if c := colours[r]; c != last {
			b.WriteString("\x1b[0m")
			if c != "" {
				b.WriteString("\x1b[" + c + "m")
			}
			last = c
		}
		b.WriteRune(r)
	}
	if last != "" {
		b.WriteString("\x1b[0m")
	}
	return b.String()
}

// legend explains the signs that were used, on as many lines as needed.
func (d *drawing) legend() string {
	used := map[rune]bool{}
	for _, r := range d.daemon() {
		used[r] = true
	}
	for _, c := range d.t.Containers {
		for _, r := range d.container(c) {
			used[r] = true
		}
	}
	var b strings.Builder
	column := 0
	for _, e := range []struct {
		sign rune
		what string
	}{
		{signLives, "runs"}, {signGoesOn, "goes on"}, {signPaused, "paused"}, {signEnd, "ended well"},
		{signBroken, "crashed, or exit code not 0"}, {signUnknown, "its end was not seen"}, {signUpgrade, "another release"},
	} {
		if !used[e.sign] {
			continue
		}
		entry := d.paint([]rune{e.sign}) + " " + e.what
		n := utf8.RuneCountInString(e.what) + 2
		if column > 0 && column+3+n > max(d.o.Width, 40) {
			b.WriteString("\n")
			column = 0
		}
		if column > 0 {
			b.WriteString("   ")
			column += 3
		}
		b.WriteString(entry)
		column += n
	}
	return b.String() + "\n"
}

// fit pads or cuts a text to the width of a column.
func fit(s string, width int) string {
	s = Plain(s)
	r := []rune(s)
	if len(r) > width {
		return string(r[:width-1]) + "…"
	}
	return s + strings.Repeat(" ", width-len(r))
}

// Plain returns a text that is safe for a terminal. It replaces by U+FFFD each
// rune that would move the cursor, hide or reorder text, or control the terminal
// in another way. The number of runes stays the same.
func Plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) {
			return utf8.RuneError
		}
		return r
	}, s)
}
