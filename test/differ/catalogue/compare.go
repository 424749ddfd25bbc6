// SPDX-License-Identifier: Apache-2.0

package catalogue

import (
	"sort"
	"strings"
)

// Answer is one answer of an engine, in the order of the steps.
type Answer struct {
	// Place names it, such as "step 2 stdout", "container web" or "events".
	Place string
	// About is the step or the question, to be shown with a difference.
	About string
	Text  string
}

// Difference is a place in which the engines differ.
type Difference struct {
	// Place is the answer's place, followed by the path of a value if it is
	// JSON.
	Place string
	About string
	// Lines are a unified diff from Docker's answer to ours.
	Lines []string
}

// Compare returns the differences between the normalised answers of two
// engines.
func Compare(docker, ours []Answer, kd, ko *Known) []Difference {
	var places []string
	about := map[string]string{}
	byPlace := func(answers []Answer) map[string]string {
		m := map[string]string{}
		for _, a := range answers {
			if _, ok := about[a.Place]; !ok {
				places = append(places, a.Place)
				about[a.Place] = a.About
			}
			m[a.Place] = a.Text
		}
		return m
	}
	d, o := byPlace(docker), byPlace(ours)
	var out []Difference
	for _, p := range places {
		dt, inD := d[p]
		ot, inO := o[p]
		switch {
		case !inO:
			out = append(out, Difference{p, about[p], []string{"-" + first(kd.Line(dt)), "+nothing"}})
			continue
		case !inD:
			out = append(out, Difference{p, about[p], []string{"-nothing", "+" + first(ko.Line(ot))}})
			continue
		}
		fd, fo := kd.Flatten(dt), ko.Flatten(ot)
		if fd.JSON && fo.JSON {
			out = append(out, values(p, about[p], fd, fo)...)
			continue
		}
		if fd.JSON || fo.JSON {
			fd = Flat{Lines: strings.Split(kd.Line(dt), "\n")}
			fo = Flat{Lines: strings.Split(ko.Line(ot), "\n")}
		}
		if lines := Unified(fd.Lines, fo.Lines); lines != nil {
			out = append(out, Difference{p, about[p], lines})
		}
	}
	return out
}

func first(s string) string {
	if line, _, more := strings.Cut(s, "\n"); more {
		return line + " …"
	}
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

func values(place, about string, d, o Flat) []Difference {
	var out []Difference
	paths := append([]string{}, d.Paths...)
	for _, p := range o.Paths {
		if _, ok := d.Value[p]; !ok {
			paths = append(paths, p)
		}
	}
	sort.Strings(paths)
	show := func(v string, ok bool) string {
		if !ok {
			return "nothing"
		}
		return v
	}
	for _, p := range paths {
		dv, inD := d.Value[p]
		ov, inO := o.Value[p]
		if inD == inO && dv == ov {
			continue
		}
		out = append(out, Difference{place + " " + p, about, []string{"-" + show(dv, inD), "+" + show(ov, inO)}})
	}
	return out
}

// Unified returns the differences of two texts with two lines of context, or
// nil.
func Unified(a, b []string) []string {
	same := len(a) == len(b)
	for i := 0; same && i < len(a); i++ {
		same = a[i] == b[i]
	}
	if same {
		return nil
	}
	// Answers are short, so the quadratic table of a longest common subsequence
	// is fast enough.
	const most = 2000
	if len(a) > most || len(b) > most {
		i := 0
		for i < len(a) && i < len(b) && a[i] == b[i] {
			i++
		}
		at := func(s []string) string {
			if i < len(s) {
				return s[i]
			}
			return "the end"
		}
		return []string{"-" + at(a), "+" + at(b), " (and what follows)"}
	}
	n := make([][]int, len(a)+1)
	for i := range n {
		n[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				n[i][j] = n[i+1][j+1] + 1
			} else {
				n[i][j] = max(n[i+1][j], n[i][j+1])
			}
		}
	}
	var all []string
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			all = append(all, " "+a[i])
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && n[i+1][j] >= n[i][j+1]:
			all = append(all, "-"+a[i])
			i++
		default:
			all = append(all, "+"+b[j])
			j++
		}
	}
	const context = 2
	var out []string
	last := -1
	for i, l := range all {
		near := false
		for k := max(0, i-context); k <= min(len(all)-1, i+context); k++ {
			near = near || all[k][0] != ' '
		}
		if !near {
			continue
		}
		if last >= 0 && i > last+1 {
			out = append(out, "…")
		}
		if l[0] != ' ' || strings.TrimSpace(l) != "" {
			out = append(out, l)
		}
		last = i
	}
	return out
}
