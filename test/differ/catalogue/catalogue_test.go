// SPDX-License-Identifier: Apache-2.0

package catalogue

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// Entries that can't be parsed, and duplicates, are found without root.
func TestTheCatalogueCanBeReadAndIsLarge(t *testing.T) {
	c, err := Load(os.DirFS("../testdata"))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Entries) < 600 {
		t.Errorf("%d entries", len(c.Entries))
	}
	t.Logf("%d entries", len(c.Entries))
}

func TestAnEntryWithATableBecomesOneOfEachRow(t *testing.T) {
	entries, reasons, err := Parse("area.txt", `
differs: *.Size: sizes count folders.

== stop *
each: name | flags
  zero | -t 0
  none |
differs: zero step 2 {stdout,stderr}: one says it.
$ docker run -d \
    busybox
! until ^x $ docker stop {flags} web
> POST /containers/create?name=a {"a":1}
keep ID .Id
> PUT /x
  X-Name: value
  body
`)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 || len(reasons) != 1 {
		t.Fatalf("%d entries, %d reasons", len(entries), len(reasons))
	}
	e := entries[0]
	if e.Name != "area/stop/zero" || !e.Always || len(e.Steps) != 5 {
		t.Fatalf("%+v", e)
	}
	if s := e.Steps[0]; s.Kind != Shell || s.Line != "docker run -d \\\n  busybox" {
		t.Errorf("%+v", s)
	}
	if s := e.Steps[1]; s.Kind != Until || !s.Fails || s.Line != "docker stop -t 0 web" {
		t.Errorf("%+v", s)
	}
	if s := e.Steps[2]; s.Kind != Request || s.Method != "POST" || s.Body != `{"a":1}` {
		t.Errorf("%+v", s)
	}
	if s := e.Steps[4]; len(s.Headers) != 1 || s.Headers[0] != [2]string{"X-Name", "value"} || s.Body != "body" {
		t.Errorf("%+v", s)
	}
	r := e.Reasons[0]
	for place, want := range map[string]bool{"step 2 stdout": true, "step 2 stderr": true, "step 2 exit": false, "step 12 stdout": false} {
		if r.Covers(e.Name, place) != want || r.Covers(entries[1].Name, place) {
			t.Errorf("%s: covered %v, in the other row %v", place, r.Covers(e.Name, place), r.Covers(entries[1].Name, place))
		}
	}
	if !reasons[0].Covers(e.Name, "container web .Size") {
		t.Error("the file's reason does not cover the place")
	}
}

func TestMistakesInAnEntryAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		"$ true":                                 "a.txt:1: this belongs to no entry",
		"== x":                                   "has no step",
		"== x\ntrue":                             "no step begins like this: true",
		"== x\n$ true\ndiffers: step 1: because": "a sentence that says why",
		"== x\n$ true\nsometimes: step 1: because": "want sometimes: PLACE: a sentence",
		"== x\neach: a | b\n  one\n$ true":         "1 cells for 2 columns",
		"== x\n! keep ID .Id":                      "this can't fail",
		"== x\n> FETCH /":                          "no request",
		"== A b\n$ true":                           "is no name of an entry",
	} {
		if _, _, err := Parse("a.txt", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestWhatChangesWithEachRunIsReplaced(t *testing.T) {
	id := strings.Repeat("ab12", 16)
	k := &Known{Text: "docker run --ip 172.18.0.9", IDs: map[string]string{id: "container web"}, Names: map[string]string{"/tmp/x": "<root>"}}
	for in, want := range map[string]string{
		id:                             "<container web>",
		id[:12]:                        "<container web:12>",
		strings.Repeat("0f", 32):       "<64 hex>",
		"2026-01-02T03:04:05.123Z":     "<time>",
		"0001-01-01T00:00:00Z":         "0001-01-01T00:00:00Z",
		"Exited (0) 2 seconds ago":     "Exited (0) <time> ago",
		"Up 3 minutes (healthy)":       "Up <time> (healthy)",
		"172.17.0.5/16 via 172.17.0.1": "172.17.0.<host>/16 via 172.17.0.1",
		"172.18.0.9":                   "172.18.0.9",
		"172.17.1.1":                   "172.17.0.<host>",
		"172.17.255.255":               "172.17.255.255",
		"0.0.0.0:32770->80/tcp":        "0.0.0.0:<port>->80/tcp",
		"0.0.0.0:8080->80/tcp":         "0.0.0.0:8080->80/tcp",
		"02:42:ac:11:00:02":            "<mac>",
		"/tmp/x/data":                  "<root>/data",
		"123456789012":                 "123456789012",
	} {
		if got := k.Line(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestDifferencesHaveTheirPlace(t *testing.T) {
	k := &Known{}
	answer := func(place, text string) Answer { return Answer{Place: place, Text: text} }
	docker := []Answer{
		answer("step 1 stdout", "one\ntwo\nthree"), answer("container web", `{"A":1,"B":["x"],"Mounts":[{"Destination":"/b"},{"Destination":"/a"}]}`), answer("events", "x"),
	}
	ours := []Answer{
		answer("step 1 stdout", "one\n2\nthree"), answer("container web", `{"A":2,"B":["x","y"],"Mounts":[{"Destination":"/a"},{"Destination":"/b"}]}`),
	}
	var got []string
	for _, d := range Compare(docker, ours, k, k) {
		got = append(got, d.Place+" "+strings.Join(d.Lines, "|"))
	}
	want := []string{
		"step 1 stdout  one|-two|+2| three",
		"container web .A -1|+2",
		`container web .B[1] -nothing|+"y"`,
		"events -x|+nothing",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if d := Compare(docker, docker, k, k); d != nil {
		t.Errorf("%v", d)
	}
}
