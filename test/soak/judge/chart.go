// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Mark is a moment that the picture shows in each panel.
type Mark struct {
	At   float64 // seconds since the soak began
	Name string
}

const (
	columns     = 4
	panelWidth  = 290
	panelHeight = 132
	margin      = 14
	plotLeft    = 46
	plotTop     = 24
	plotWidth   = panelWidth - plotLeft - 12
	plotHeight  = panelHeight - plotTop - 26
	headHeight  = 46
	groupHeight = 26
)

// The colours follow the reader's choice of a light or a dark page. The lines are
// told apart from marks by their strength, not by the hue alone.
const style = `
:root { color-scheme: light dark; }
.page { fill: #ffffff; } .panel { fill: #f6f8fa; } .half { fill: #eaeef2; }
text { font: 11px sans-serif; fill: #1f2328; } .title { font-size: 17px; font-weight: bold; } .group { font-size: 13px; font-weight: bold; }
.name { font-weight: bold; } .faint { fill: #59636e; } .axis { stroke: #c3c9d0; } .mark { stroke: #bf8700; stroke-dasharray: 2 3; opacity: .75; }
.line { fill: none; stroke: #0969da; stroke-width: 1.6; stroke-linejoin: round; } .dot { fill: #0969da; }
.rises .line { stroke: #cf222e; } .rises .dot { fill: #cf222e; } .bad { fill: #cf222e; font-weight: bold; }
@media (prefers-color-scheme: dark) {
.page { fill: #0d1117; } .panel { fill: #161b22; } .half { fill: #21262d; }
text { fill: #e6edf3; } .faint { fill: #9198a1; } .axis { stroke: #3d444d; } .mark { stroke: #d29922; }
.line { stroke: #4493f8; } .dot { fill: #4493f8; } .rises .line { stroke: #f85149; } .rises .dot { fill: #f85149; } .bad { fill: #f85149; }
}`

// Chart draws the series as a picture in SVG, a panel each. marks are shown as
// vertical lines.
func Chart(title, subtitle string, list []Series, marks []Mark) string {
	var b strings.Builder
	var body strings.Builder
	y, column := headHeight, 0
	group, end := "", 0.0
	for _, s := range list {
		for _, p := range s.Points {
			end = math.Max(end, p.At)
		}
	}
	for _, s := range list {
		if s.Group != group {
			if group != "" {
				y += panelHeight + margin
			}
			column, group = 0, s.Group
			fmt.Fprintf(&body, "<text class=\"group\" x=\"%d\" y=\"%d\">%s</text>\n", margin, y+17, html.EscapeString(group))
			y += groupHeight
		} else if column == columns {
			y, column = y+panelHeight+margin, 0
		}
		s.draw(&body, margin+column*(panelWidth+margin), y, end, marks)
		column++
	}
	width, height := margin+columns*(panelWidth+margin), y+panelHeight+margin
	fmt.Fprintf(&b, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" role=\"img\">\n", width, height, width, height)
	fmt.Fprintf(&b, "<!-- SPDX-License-Identifier: Apache-2.0 -->\n<title>%s</title>\n<style>%s\n</style>\n", html.EscapeString(title), style)
	fmt.Fprintf(&b, "<rect class=\"page\" width=\"%d\" height=\"%d\"/>\n", width, height)
	fmt.Fprintf(&b, "<text class=\"title\" x=\"%d\" y=\"22\">%s</text>\n", margin, html.EscapeString(title))
	fmt.Fprintf(&b, "<text class=\"faint\" x=\"%d\" y=\"39\">%s</text>\n", margin, html.EscapeString(subtitle))
	b.WriteString(body.String())
	b.WriteString("</svg>\n")
	return b.String()
}

// draw draws a panel. The x axis ends at end. The y axis begins at 0, so that a small
// change looks small.
func (s Series) draw(b *strings.Builder, x, y int, end float64, marks []Mark) {
	v := s.Judge()
	class, note := "flat", ""
	switch {
	case v.Rises != "":
		class, note = "rises", "rises"
	case !v.Judged:
		note = "not judged"
	}
	fmt.Fprintf(b, "<g class=\"%s\" transform=\"translate(%d %d)\">\n", class, x, y)
	fmt.Fprintf(b, "<rect class=\"panel\" width=\"%d\" height=\"%d\" rx=\"4\"/>\n", panelWidth, panelHeight)
	fmt.Fprintf(b, "<text class=\"name\" x=\"8\" y=\"16\">%s%s</text>\n", html.EscapeString(s.Name), html.EscapeString(unit(s.Unit)))
	if note != "" {
		fmt.Fprintf(b, "<text class=\"%s\" x=\"%d\" y=\"16\" text-anchor=\"end\">%s</text>\n", map[bool]string{true: "bad", false: "faint"}[v.Rises != ""], panelWidth-8, note)
	}
	defer b.WriteString("</g>\n")
	if len(s.Points) == 0 {
		return
	}
	top := 0.0
	for _, p := range s.Points {
		top = math.Max(top, p.Value)
	}
	top = roundUp(top)
	px := func(at float64) float64 { return plotLeft + at/math.Max(end, 1)*plotWidth }
	py := func(value float64) float64 { return plotTop + plotHeight*(1-value/top) }
	fmt.Fprintf(b, "<rect class=\"half\" x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\"/>\n", px(end/2), plotTop, px(end)-px(end/2), plotHeight)
	for _, m := range marks {
		if m.At <= end {
			fmt.Fprintf(b, "<line class=\"mark\" x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\"/>\n", px(m.At), plotTop, px(m.At), plotTop+plotHeight)
		}
	}
	for _, tick := range []float64{0, top / 2, top} {
		fmt.Fprintf(b, "<line class=\"axis\" x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\"/>\n", plotLeft, py(tick), plotLeft+plotWidth, py(tick))
		fmt.Fprintf(b, "<text class=\"faint\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n", plotLeft-5, py(tick)+4, Figure(tick))
	}
	fmt.Fprintf(b, "<text class=\"faint\" x=\"%d\" y=\"%d\">0</text>\n", plotLeft, panelHeight-9)
	fmt.Fprintf(b, "<text class=\"faint\" x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", plotLeft+plotWidth, panelHeight-9, minutes(end))
	path, life := "", 0
	for i, p := range s.Points {
		command := "L"
		if i == 0 || p.Life != life {
			command, life = "M", p.Life
			fmt.Fprintf(b, "<circle class=\"dot\" cx=\"%.1f\" cy=\"%.1f\" r=\"1.4\"/>\n", px(p.At), py(p.Value))
		}
		path += fmt.Sprintf("%s%.1f %.1f", command, px(p.At), py(p.Value))
	}
	fmt.Fprintf(b, "<path class=\"line\" d=\"%s\"/>\n", path)
}

func unit(u string) string {
	if u == "" {
		return ""
	}
	return " (" + u + ")"
}

func minutes(seconds float64) string {
	if seconds < 120 {
		return fmt.Sprintf("%.0f s", seconds)
	}
	return fmt.Sprintf("%.0f min", seconds/60)
}

// roundUp returns the next number that is 1, 2, 2.5, 4, 5, 6 or 8 times a power of ten.
func roundUp(v float64) float64 {
	if v <= 0 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 2.5, 4, 5, 6, 8, 10} {
		if m*power >= v*1.02 {
			return m * power
		}
	}
	return 20 * power
}

// Table is the result as a table in Markdown.
func Table(list []Series) string {
	var b strings.Builder
	b.WriteString("| what | second quarter | last quarter | growth by the trend | tolerated | |\n|---|---|---|---|---|---|\n")
	for _, s := range list {
		v := s.Judge()
		result, growth := "flat", fmt.Sprintf("%s (z %.1f)", Figure(v.Growth), v.Z)
		switch {
		case v.Rises != "":
			result = "**rises: " + v.Rises + "**"
		case !v.Judged:
			result, growth = "not judged: too short", "–"
		case s.Most > 0:
			result, growth = "bounded", "–"
		}
		fmt.Fprintf(&b, "| %s: %s%s | %s | %s | %s | %s | %s |\n", s.Group, s.Name, unit(s.Unit), Figure(v.First), Figure(v.Last), growth, Figure(v.Tolerated), result)
	}
	return b.String()
}
