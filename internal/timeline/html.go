// SPDX-License-Identifier: Apache-2.0

package timeline

import (
	"fmt"
	"html"
	"strings"
	"time"

	"holdfast/internal/event"
)

// Measures of the page's picture, in its own units.
const (
	pageLeft   = 190 // where the bars begin
	pageBars   = 860 // width of the bars
	pageRight  = 270 // room for the summary of each row
	pageTop    = 44  // room for the clock
	rowHeight  = 34
	barHeight  = 16
	daemonRoom = 62 // the daemon's row, with its releases below
)

// HTML draws the timeline as one self-contained page: no script, no font, no
// other file. Every bar also has a text that describes it.
func HTML(t Timeline, zone *time.Location) string {
	if zone == nil {
		zone = time.UTC
	}
	p := page{t: t.in(zone)}
	return p.draw()
}

type page struct {
	t Timeline
	b strings.Builder
}

func (p *page) printf(format string, args ...any) { fmt.Fprintf(&p.b, format, args...) }

func (p *page) draw() string {
	t := p.t
	p.printf(`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Holdfast timeline</title>
<style>%s</style>
</head>
<body>
<main>
<header>
<h1>Holdfast timeline</h1>
<p>%s to %s %s <span class="faint">(%s)</span></p>
</header>
`, style, esc(when(t.From)), esc(when(t.To)), esc(t.To.Format("MST")), esc(span(t.To.Sub(t.From))))
	p.facts()
	p.picture()
	p.legend()
	p.table()
	p.printf("</main>\n</body>\n</html>\n")
	return p.b.String()
}

// facts writes the figures above the picture.
func (p *page) facts() {
	running, runs, kept := 0, 0, 0
	for _, c := range p.t.Containers {
		runs += len(c.Runs)
		if c.last().End.IsZero() {
			running++
		}
		for _, r := range c.Runs {
			if r.Lives > 1 {
				kept++
				break
			}
		}
	}
	p.printf("<dl class=\"facts\">\n")
	for _, f := range []struct{ what, value string }{
		{"Daemon", p.t.summary()},
		{"Containers", fmt.Sprintf("%d, %d running", len(p.t.Containers), running)},
		{"Runs", fmt.Sprint(runs)},
		{"Kept over a change of the daemon", plural(kept, "container", "containers")},
	} {
		p.printf("<div><dt>%s</dt><dd>%s</dd></div>\n", esc(f.what), esc(f.value))
	}
	p.printf("</dl>\n")
}

// x returns the position of a time. Times outside the picture are at its border.
func (p *page) x(at time.Time) float64 {
	all := p.t.To.Sub(p.t.From)
	if all <= 0 {
		return pageLeft
	}
	return pageLeft + pageBars*max(0, min(1, float64(at.Sub(p.t.From))/float64(all)))
}

// end returns a span's end, or the picture's if the span has not ended.
func (p *page) end(at time.Time) time.Time {
	if at.IsZero() {
		return p.t.To
	}
	return at
}

func (p *page) height() float64 {
	return pageTop + daemonRoom + float64(len(p.t.Containers))*rowHeight + 14
}

func (p *page) picture() {
	width := pageLeft + pageBars + pageRight
	p.printf(`<div class="scroll" tabindex="0" role="region" aria-label="Picture; it can be scrolled sideways">
<svg viewBox="0 0 %d %.0f" width="%d" height="%.0f" role="img" aria-labelledby="what">
<title id="what">Lives of the daemon above the lives of %s</title>
<defs><pattern id="unseen" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="2.4" height="6" class="hatch"/></pattern></defs>
`, width, p.height(), width, p.height(), plural(len(p.t.Containers), "container", "containers"))
	p.away()
	p.axis()
	p.daemon()
	for i, c := range p.t.Containers {
		p.container(c, pageTop+daemonRoom+float64(i)*rowHeight)
	}
	p.printf("</svg>\n</div>\n")
}

// away shades the times without a daemon over the whole height, so that one sees
// which containers ran during them.
func (p *page) away() {
	shade := func(from, to time.Time) {
		if a, b := p.x(from), p.x(to); b > a {
			p.printf("<rect class=\"away\" x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%.0f\"><title>%s</title></rect>\n",
				a, pageTop-8, max(b-a, 1.5), p.height()-pageTop+2, esc("no daemon from "+when(from.In(p.t.From.Location()))+" for at most "+span(to.Sub(from))))
		}
	}
	for i, l := range p.t.Daemon {
		gone := l.End
		if l.Unseen() {
			gone = l.Seen
		}
		if gone.IsZero() {
			continue
		}
		next := p.t.To
		if i+1 < len(p.t.Daemon) {
			next = p.t.Daemon[i+1].Start
		}
		if gone.Before(p.t.From) {
			gone = p.t.From
		}
		shade(gone, next)
	}
}

func (p *page) axis() {
	at, step := ticks(p.t.From, p.t.To, 10)
	for _, t := range at {
		x := p.x(t)
		p.printf("<line class=\"tick\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%.0f\"/>\n", x, x, pageTop-8, p.height()-6)
		p.printf("<text class=\"clock\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", x, pageTop-16, esc(clock(t, step)))
	}
}

// bar draws one box with its text.
func (p *page) bar(class string, from, to time.Time, y float64, title string) {
	a, b := p.x(from), p.x(to)
	p.printf("<rect class=\"bar %s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" rx=\"3\" role=\"img\" aria-label=\"%s\"><title>%s</title></rect>\n",
		class, a, y, max(b-a, 2), barHeight, esc(title), esc(title))
}

func (p *page) name(name, class string, y float64) {
	short := name
	if r := []rune(name); len(r) > 24 {
		short = string(r[:23]) + "…"
	}
	p.printf("<text class=\"name %s\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s<title>%s</title></text>\n", class, pageLeft-16, y+barHeight-3.5, esc(short), esc(name))
}

func (p *page) note(text, class string, y float64) {
	p.printf("<text class=\"note %s\" x=\"%d\" y=\"%.1f\">%s</text>\n", class, pageLeft+pageBars+16, y+barHeight-3.5, esc(text))
}

func (p *page) daemon() {
	const y = pageTop + 2
	p.name("daemon", "strong", y)
	p.note(p.t.summary(), "strong", y)
	labelled := 0.0
	for i, l := range p.t.Daemon {
		title := l.title(p.t)
		if l.Unseen() {
			p.bar("unseen", l.Seen, p.end(l.End), y, title)
			p.bar("daemon", l.Start, l.Seen, y, title)
			p.cross(p.x(l.Seen), y, "crash")
		} else {
			p.bar("daemon", l.Start, p.end(l.End), y, title)
		}
		if i > 0 && !l.Upgraded {
			continue
		}
		x := p.x(l.Start)
		if l.Upgraded {
			p.printf("<path class=\"upgrade\" d=\"M%.1f %d l5 8 l-10 0 z\"><title>%s</title></path>\n", x, y+barHeight+3, esc("upgrade to "+l.Release))
		}
		if x >= labelled {
			p.printf("<text class=\"release\" x=\"%.1f\" y=\"%d\">%s</text>\n", x+7, y+barHeight+12, esc(l.Release))
			labelled = x + 14 + 6.5*float64(len(l.Release))
		}
	}
	p.printf("<line class=\"rule\" x1=\"0\" x2=\"%d\" y1=\"%d\" y2=\"%d\"/>\n", pageLeft+pageBars+pageRight, pageTop+daemonRoom-16, pageTop+daemonRoom-16)
}

// cross marks an unwanted end.
func (p *page) cross(x, y float64, class string) {
	m := y + barHeight/2
	p.printf("<g class=\"cross %s\" aria-hidden=\"true\"><circle cx=\"%.1f\" cy=\"%.1f\" r=\"7\"/><path d=\"M%.1f %.1f l6 6 m0 -6 l-6 6\"/></g>\n", class, x, m, x-3, m-3)
}

func (p *page) container(c Container, y float64) {
	last := c.last()
	class := ""
	if !last.End.IsZero() {
		class = "faint"
	}
	p.name(c.Name, class, y)
	p.note(c.summary(p.t.To), class, y)
	for _, r := range c.Runs {
		title := r.title(c, p.t)
		kind := "run"
		if !r.End.IsZero() {
			kind = "run ended"
		}
		p.bar(kind, r.Start, p.end(r.End), y, title)
		for _, s := range r.Paused {
			p.bar("paused", s.Start, p.end(s.End), y, c.Name+": paused for "+span(p.end(s.End).Sub(s.Start)))
		}
	}
	for _, r := range c.Runs {
		if !r.End.IsZero() && r.ExitCode != 0 {
			p.cross(p.x(r.End), y, "failed")
		}
	}
	for _, m := range c.Marks {
		if m.What != "oom" {
			p.printf("<circle class=\"mark %s\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"><title>%s</title></circle>\n",
				esc(m.What), p.x(m.Time), y+barHeight+5, esc(c.Name+": "+m.What+" at "+when(m.Time.In(p.t.From.Location()))))
		}
	}
}

func (p *page) legend() {
	p.printf("<ul class=\"legend\" aria-label=\"Legend\">\n")
	for _, e := range []struct{ class, what string }{
		{"daemon", "a life of the daemon"}, {"unseen", "its end was not seen"}, {"away", "no daemon"},
		{"run", "container runs"}, {"ended", "a run that has ended"}, {"paused", "paused"}, {"failed", "crash, or exit code not 0"},
		{"upgraded", "another release"}, {"unhealthy", "became unhealthy"}, {"healthy", "became healthy"},
	} {
		p.printf("<li><i class=\"key %s\" aria-hidden=\"true\"></i>%s</li>\n", e.class, esc(e.what))
	}
	p.printf("</ul>\n")
}

// table writes everything once more as text.
func (p *page) table() {
	zone := p.t.From.Location()
	at := func(t time.Time) string {
		if t.IsZero() {
			return "–"
		}
		return when(t.In(zone))
	}
	p.printf("<details>\n<summary>The same in words</summary>\n")
	p.printf("<table>\n<caption>Lives of the daemon</caption>\n<thead><tr><th scope=\"col\">Release</th><th scope=\"col\">Pid</th><th scope=\"col\">From</th><th scope=\"col\">To</th><th scope=\"col\">End</th></tr></thead>\n<tbody>\n")
	for _, l := range p.t.Daemon {
		how := map[string]string{"": "lives", event.EndClean: "stopped", event.EndHandover: "handed over", event.EndCrash: "crash", event.EndReboot: "reboot"}[l.How]
		p.printf("<tr><td>%s</td><td>%d</td><td>%s</td><td>%s</td><td>%s</td></tr>\n", esc(l.Release), l.Pid, esc(at(l.Start)), esc(at(l.End)), esc(how))
	}
	p.printf("</tbody>\n</table>\n<table>\n<caption>Runs of the containers</caption>\n<thead><tr><th scope=\"col\">Container</th><th scope=\"col\">Image</th><th scope=\"col\">From</th><th scope=\"col\">To</th><th scope=\"col\">End</th><th scope=\"col\">Daemons</th></tr></thead>\n<tbody>\n")
	for _, c := range p.t.Containers {
		for _, r := range c.Runs {
			end := "runs"
			if !r.End.IsZero() {
				end = fmt.Sprintf("exit %d", r.ExitCode)
				if r.OOM {
					end += ", out of memory"
				}
			}
			p.printf("<tr><th scope=\"row\">%s</th><td>%s</td><td>%s</td><td>%s</td><td>%s</td><td>%d</td></tr>\n",
				esc(c.Name), esc(c.Image), esc(at(r.Start)), esc(at(r.End)), esc(end), r.Lives)
		}
	}
	p.printf("</tbody>\n</table>\n</details>\n")
}

func esc(s string) string { return html.EscapeString(Plain(s)) }

const style = `
:root{--paper:#fbfaf7;--card:#fff;--ink:#1d2430;--faint:#5d6775;--line:#e4e1d9;--daemon:#3b5bdb;--run:#2b8a5a;--ended:#a9cdb9;--paused:#e8b339;--bad:#c92a2a;--away:#f1e3d3;--upgrade:#7048e8}
@media (prefers-color-scheme:dark){:root{--paper:#12161d;--card:#1a2029;--ink:#e8ebf0;--faint:#9aa5b4;--line:#2c3441;--daemon:#7c9bff;--run:#4fc38a;--ended:#2f5c48;--paused:#d9a52e;--bad:#ff7b72;--away:#3a2f25;--upgrade:#b197fc}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1400px;margin:0 auto;padding:32px 28px 48px}
h1{margin:0;font-size:26px;letter-spacing:-.01em}
header p{margin:2px 0 20px;font-variant-numeric:tabular-nums}
.faint{color:var(--faint)}
.facts{display:flex;flex-wrap:wrap;gap:12px;margin:0 0 18px}
.facts div{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:9px 16px}
.facts dt{color:var(--faint);font-size:12.5px}
.facts dd{margin:0;font-weight:600}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:12px;padding:6px 10px}
svg{display:block;width:100%;min-width:860px;height:auto;font-size:13px}
svg text{fill:var(--ink)}
svg .clock,svg .release{fill:var(--faint);font-size:12px;font-variant-numeric:tabular-nums}
svg .faint,svg .note{fill:var(--faint)}
svg .strong{fill:var(--ink);font-weight:600}
.tick{stroke:var(--line)}
.rule{stroke:var(--line);stroke-width:1.5}
.away{fill:var(--away);opacity:.75}
.bar.daemon{fill:var(--daemon)}
.bar.run{fill:var(--run)}
.bar.ended{fill:var(--ended)}
.bar.paused{fill:var(--paused)}
.bar.unseen{fill:url(#unseen);stroke:var(--daemon);stroke-opacity:.5}
.hatch{fill:var(--daemon);opacity:.55}
.upgrade{fill:var(--upgrade)}
.cross circle{fill:var(--card);stroke:var(--bad);stroke-width:1.6}
.cross path{stroke:var(--bad);stroke-width:2;stroke-linecap:round;fill:none}
.mark.unhealthy{fill:var(--bad)}
.mark.healthy{fill:var(--run)}
.legend{display:flex;flex-wrap:wrap;gap:6px 20px;list-style:none;margin:14px 4px 22px;padding:0;color:var(--faint);font-size:13px}
.key{display:inline-block;width:22px;height:11px;border-radius:3px;margin-right:7px}
.key.daemon{background:var(--daemon)}
.key.unseen{background:repeating-linear-gradient(45deg,var(--daemon) 0 2px,transparent 2px 5px);border:1px solid var(--daemon)}
.key.away{background:var(--away)}
.key.run{background:var(--run)}
.key.ended{background:var(--ended)}
.key.paused{background:var(--paused)}
.key.failed{width:12px;height:12px;border-radius:50%;border:2px solid var(--bad);vertical-align:-1px}
.key.upgraded{width:0;height:0;border-radius:0;border:6px solid transparent;border-top:0;border-bottom:9px solid var(--upgrade)}
.key.unhealthy,.key.healthy{width:8px;height:8px;border-radius:50%;background:var(--bad);vertical-align:1px}
.key.healthy{background:var(--run)}
summary{cursor:pointer;color:var(--faint)}
table{border-collapse:collapse;margin:14px 0 22px;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:4px 0}
th,td{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid var(--line);font-weight:400}
thead th{color:var(--faint);font-size:12.5px}
tbody th{font-weight:600}
@media print{.scroll{overflow:visible}details{display:none}}
`
