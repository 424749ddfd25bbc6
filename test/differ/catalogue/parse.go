// SPDX-License-Identifier: Apache-2.0

package catalogue

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strings"
)

// Entry is one job that both engines run.
type Entry struct {
	// Name is FILE/NAME, or FILE/NAME/ROW of an entry with a table.
	Name string
	// Where is FILE:LINE.
	Where string
	// Always is set for entries that are part of every sample.
	Always bool
	Steps  []Step
	// Reasons are the reasons of the entry and of its file.
	Reasons []*Reason
	// Text is the whole text of the entry. Whatever appears in it literally,
	// such as a requested address, is not normalised.
	Text string
}

// Kind is the kind of a step.
type Kind int

// The kinds of steps.
const (
	Shell   Kind = iota // a shell command
	TTY                 // a shell command with a terminal
	Until               // a shell command, repeated until its output matches
	Keep                // a shell command whose output becomes a variable
	Request             // an API request
	Pick                // a field of the last request's body becomes a variable
)

// Step is one line of an entry.
type Step struct {
	Kind Kind
	// Line is the shell command, or the field to pick.
	Line string
	// Name is the variable to set.
	Name string
	// Fails is set if the step must not succeed.
	Fails bool
	// Match is the pattern that the output must match.
	Match *regexp.Regexp

	Method, Path, Body string
	Headers            [][2]string
}

// String is the step as written in the file, shortened to one line.
func (s Step) String() string {
	line, _, more := strings.Cut(s.Line, "\n")
	if more {
		line += " …"
	}
	switch s.Kind {
	case Request:
		return strings.TrimSpace(s.Method + " " + s.Path + " " + s.Body)
	case Pick, Keep:
		return s.Name + " = " + line
	}
	return line
}

// Reason explains why the engines differ in a place on purpose.
type Reason struct {
	Where string // FILE:LINE
	// Place is where they differ: * matches anything, {a,b} matches a or b. In
	// an entry with a table it may begin with the row's name.
	Place string
	Why   string
	// Sometimes: Docker's answer varies, so there may be no difference.
	Sometimes bool

	re *regexp.Regexp
}

// Covers reports whether the reason applies to a place of an entry.
func (r *Reason) Covers(entry, place string) bool {
	row := entry[strings.LastIndexByte(entry, '/')+1:]
	return r.re.MatchString(place) || r.re.MatchString(row+" "+place)
}

// Same is text that has the same meaning on both sides, though it differs.
type Same struct {
	Where string // FILE:LINE
	Text  *regexp.Regexp
	As    string // the replacement for both
	Why   string
}

// Catalogue has all entries.
type Catalogue struct {
	Entries []*Entry
	// Everywhere are the reasons that apply to every entry.
	Everywhere []*Reason
	Same       []*Same
}

// everywhere is the file whose reasons apply to all entries.
const everywhere = "everywhere.txt"

// Load parses all *.txt of a directory.
func Load(dir fs.FS) (*Catalogue, error) {
	names, err := fs.Glob(dir, "*.txt")
	if err != nil {
		return nil, err
	}
	c := &Catalogue{}
	seen := map[string]string{}
	var errs []error
	for _, name := range names {
		text, err := fs.ReadFile(dir, name)
		if err != nil {
			return nil, err
		}
		if name == everywhere {
			var general string
			if c.Same, general, err = parseSame(name, string(text)); err != nil {
				errs = append(errs, err)
			}
			if _, c.Everywhere, err = Parse(name, general); err != nil {
				errs = append(errs, err)
			}
			continue
		}
		entries, _, err := Parse(name, string(text))
		if err != nil {
			errs = append(errs, err)
		}
		for _, e := range entries {
			if at := seen[e.Name]; at != "" {
				errs = append(errs, fmt.Errorf("%s: %s is there already, in %s", e.Where, e.Name, at))
			}
			seen[e.Name] = e.Where
			c.Entries = append(c.Entries, e)
		}
	}
	return c, errors.Join(errs...)
}

var (
	named   = regexp.MustCompile(`^[a-z0-9{}][a-z0-9.{}+-]*$`)
	request = regexp.MustCompile(`^(GET|HEAD|POST|PUT|DELETE|PATCH|OPTIONS) (\S+)(?: (.+))?$`)
	header  = regexp.MustCompile(`^([A-Z][A-Za-z]*(?:-[A-Z][A-Za-z]*)*): (.*)$`)
	// The form that QuoteMeta gives to {a,b}.
	alternatives = regexp.MustCompile(`\\\{[^{}]*,[^{}]*\\\}`)
	variable     = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)
)

// parseSame cuts lines of the following form out of a file:
//
//	same: /REGULAR EXPRESSION/TEXT/: a sentence that says why.
func parseSame(file, text string) ([]*Same, string, error) {
	var out []*Same
	var errs []error
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		rest, ok := strings.CutPrefix(line, "same: /")
		if !ok {
			continue
		}
		lines[i] = ""
		where := fmt.Sprintf("%s:%d", file, i+1)
		part := strings.SplitN(strings.ReplaceAll(rest, `\/`, "\x00"), "/", 3)
		if len(part) != 3 || !strings.HasPrefix(part[2], ": ") || !strings.HasSuffix(part[2], ".") {
			errs = append(errs, fmt.Errorf("%s: want same: /PATTERN/TEXT/: a sentence that says why", where))
			continue
		}
		re, err := regexp.Compile(strings.ReplaceAll(part[0], "\x00", "/"))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", where, err))
			continue
		}
		out = append(out, &Same{where, re, strings.ReplaceAll(part[1], "\x00", "/"), part[2][2:]})
	}
	return out, strings.Join(lines, "\n"), errors.Join(errs...)
}

// table has the rows of an entry.
type table struct {
	columns []string
	rows    [][]string
}

// Parse parses one file. It returns the reasons above the first entry
// separately.
func Parse(file, text string) ([]*Entry, []*Reason, error) {
	area := strings.TrimSuffix(path.Base(file), ".txt")
	var (
		out  []*Entry
		own  []*Reason // the file's
		errs []error
		cur  *Entry
		tab  *table
		raw  []string // lines of the current entry, each step in one
	)
	fail := func(line int, format string, a ...any) {
		errs = append(errs, fmt.Errorf("%s:%d: %s", file, line, fmt.Sprintf(format, a...)))
	}
	finish := func() {
		if cur == nil {
			return
		}
		rows := [][]string{nil}
		if tab != nil {
			rows = tab.rows
		}
		for _, row := range rows {
			e := &Entry{Name: cur.Name, Where: cur.Where, Always: cur.Always}
			fill := strings.NewReplacer()
			if row != nil {
				var pairs []string
				for i, c := range tab.columns {
					pairs = append(pairs, "{"+c+"}", row[i])
				}
				fill = strings.NewReplacer(pairs...)
				e.Name += "/" + row[0]
			}
			e.Reasons = append(e.Reasons, cur.Reasons...)
			e.Reasons = append(e.Reasons, own...)
			for _, r := range raw {
				r = fill.Replace(r)
				s, err := parseStep(r)
				if err != nil {
					errs = append(errs, fmt.Errorf("%s: %s: %w", e.Where, e.Name, err))
					continue
				}
				e.Steps = append(e.Steps, s)
				e.Text += r + "\n"
			}
			if len(e.Steps) == 0 {
				errs = append(errs, fmt.Errorf("%s: %s has no step", e.Where, e.Name))
			}
			out = append(out, e)
		}
		cur, tab, raw = nil, nil, nil
	}
	const ( // the context of an indented line
		nothing = iota
		step
		row
	)
	into := nothing
	for i, line := range strings.Split(text, "\n") {
		n := i + 1
		where := fmt.Sprintf("%s:%d", file, n)
		switch {
		case strings.HasPrefix(line, "  ") && into == step:
			raw[len(raw)-1] += "\n" + strings.TrimPrefix(line, "  ")
		case strings.HasPrefix(line, "  ") && into == row:
			cells := strings.Split(line+" ", " | ") // the last cell may be empty
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			if len(cells) != len(tab.columns) {
				fail(n, "%d cells for %d columns", len(cells), len(tab.columns))
				continue
			}
			if !named.MatchString(cells[0]) {
				fail(n, "%q is no name of a row", cells[0])
			}
			tab.rows = append(tab.rows, cells)
		case strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#"):
			into = nothing
		case strings.HasPrefix(line, "== "):
			finish()
			name, always := strings.CutSuffix(strings.TrimSpace(line[3:]), " *")
			if !named.MatchString(name) {
				fail(n, "%q is no name of an entry", name)
			}
			cur = &Entry{Name: area + "/" + name, Where: where, Always: always}
			into = nothing
		case strings.HasPrefix(line, "differs: "), strings.HasPrefix(line, "sometimes: "):
			kind, rest, _ := strings.Cut(line, ": ")
			place, why, ok := strings.Cut(rest, ": ")
			if !ok || !strings.HasSuffix(why, ".") {
				fail(n, "want %s: PLACE: a sentence that says why.", kind)
				continue
			}
			r := NewReason(where, place, why)
			r.Sometimes = kind == "sometimes"
			if cur == nil {
				own = append(own, r)
			} else {
				cur.Reasons = append(cur.Reasons, r)
			}
			into = nothing
		case cur == nil:
			fail(n, "this belongs to no entry: %s", line)
		case strings.HasPrefix(line, "each: "):
			tab = &table{}
			for c := range strings.SplitSeq(strings.TrimPrefix(line, "each: "), " | ") {
				tab.columns = append(tab.columns, strings.TrimSpace(c))
			}
			into = row
		default:
			raw = append(raw, line)
			into = step
		}
	}
	finish()
	return out, own, errors.Join(errs...)
}

// NewReason makes a reason from its parts.
func NewReason(where, place, why string) *Reason {
	quoted := strings.ReplaceAll(regexp.QuoteMeta(place), `\*`, `.*`)
	quoted = alternatives.ReplaceAllStringFunc(quoted, func(m string) string {
		return "(?:" + strings.ReplaceAll(m[2:len(m)-2], ",", "|") + ")"
	})
	return &Reason{Where: where, Place: place, Why: why, re: regexp.MustCompile("^(?s:" + quoted + ")$")}
}

func parseStep(text string) (Step, error) {
	if rest, ok := strings.CutPrefix(text, "! "); ok {
		s, err := parseStep(rest)
		s.Fails = true
		if err == nil && s.Kind == Pick {
			err = errors.New("this can't fail")
		}
		return s, err
	}
	if rest, ok := strings.CutPrefix(text, "> "); ok {
		first, more, _ := strings.Cut(rest, "\n")
		m := request.FindStringSubmatch(strings.TrimSpace(first))
		if m == nil {
			return Step{}, fmt.Errorf("no request: %s", first)
		}
		s := Step{Kind: Request, Method: m[1], Path: m[2], Body: m[3]}
		if more != "" {
			for line := range strings.SplitSeq(more, "\n") {
				if h := header.FindStringSubmatch(line); h != nil && s.Body == "" {
					s.Headers = append(s.Headers, [2]string{h[1], h[2]})
					continue
				}
				s.Body += line + "\n"
			}
			s.Body = strings.TrimSuffix(s.Body, "\n")
		}
		return s, nil
	}
	if rest, ok := strings.CutPrefix(text, "$ "); ok {
		return Step{Kind: Shell, Line: rest}, nil
	}
	if rest, ok := strings.CutPrefix(text, "tty $ "); ok {
		return Step{Kind: TTY, Line: rest}, nil
	}
	if rest, ok := strings.CutPrefix(text, "until "); ok {
		match, line, ok := strings.Cut(rest, " $ ")
		if !ok {
			return Step{}, errors.New("want until PATTERN $ COMMAND")
		}
		re, err := regexp.Compile("(?m)" + match)
		return Step{Kind: Until, Line: line, Match: re}, err
	}
	if rest, ok := strings.CutPrefix(text, "keep "); ok {
		name, line, _ := strings.Cut(rest, " ")
		if !variable.MatchString(name) {
			return Step{}, fmt.Errorf("%q is no variable", name)
		}
		if shell, ok := strings.CutPrefix(line, "$ "); ok {
			return Step{Kind: Keep, Name: name, Line: shell}, nil
		}
		if strings.HasPrefix(line, ".") {
			return Step{Kind: Pick, Name: name, Line: line}, nil
		}
		return Step{}, errors.New("want keep NAME $ COMMAND or keep NAME .Field")
	}
	return Step{}, fmt.Errorf("no step begins like this: %s", text)
}
