// SPDX-License-Identifier: Apache-2.0

package timeline

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/html"

	"holdfast/internal/event"
)

// FuzzPictureShowsNamesAsText draws histories with hostile names. A name must
// never become markup of the page or a command to the terminal: the page must
// have the same elements and attributes, and the text the same lines, as with
// harmless names of the same length.
//
// A history has one line per item:
//
//	minute|action|id|name|image|exit code
//	minute|life|release|end's minute|how|pid
//	minute|present|id|name|image|finished minute
func FuzzPictureShowsNamesAsText(f *testing.F) {
	for _, s := range []string{
		"0|life|1.0|40|crash|7\n40|life|<b>|0||8\n1|create|x|web|img|\n1|start|x|web|img|\n9|die|x|web|img|137\n9|start|x|web|img|",
		"0|life|1|9|clean|1\n1|start|a|<script>alert(1)</script>|\"><img src=x>|\n2|oom|a|||\n3|health_status: unhealthy\" onload=\"x|a|||",
		"0|life|\x1b[31m|0||1\n1|start|a|\x1b]0;title\x07|\x9b2J|\n2|pause|a|||\n3|unpause|a|||",
		"1|start|a|a\nb|c|\n2|die|a|\r\t\x00\u2028\u202e\ufeff|&lt;&#60;|-1\n9|destroy|a|||",
		"-999999999|start|a|x|y|\n999999999999|life|r|-5|reboot|2\n3|present|a|n|i|9\n4|present|b|\xff\xfe|i|0",
		"0|life|" + strings.Repeat("long", 40) + "|0||1\n0|start|a|" + strings.Repeat("名", 60) + "|i|\n0|die|a||i|1",
		"5|unpause|a|||\n5|pause|a|||\n4|die|a|||\n3|start|a|||\n2|start|a|||\n2|pause|a|||\n1|pause|a|||",
		"1|start|a|]]>--></title></style></svg>|i|\n2|start|b|{{.}}%s%d|i|",
	} {
		f.Add(s, 80, int64(0), int64(60))
		f.Add(s, 1, int64(-30), int64(60*24*400))
	}
	f.Fuzz(func(t *testing.T, script string, width int, since, now int64) {
		if len(script) > 2<<10 || width > 1000 {
			return
		}
		minute := func(n int64) time.Time {
			const most = 60 * 24 * 366 * 200 // a journal spans years
			return noon.Add(time.Duration(max(-most, min(most, n))) * time.Minute)
		}
		build := func(name func(string) string) Timeline {
			lives, events, present := history(script, minute, name)
			return Build(lives, events, present, minute(since), minute(now), false)
		}
		asIs, tame := build(func(s string) string { return s }), build(harmless())
		// Containers that begin and end together are sorted by name.
		slices.SortStableFunc(asIs.Containers, func(a, b Container) int { return strings.Compare(a.ID, b.ID) })
		slices.SortStableFunc(tame.Containers, func(a, b Container) int { return strings.Compare(a.ID, b.ID) })

		if got, want := skeleton(t, HTML(asIs, nil)), skeleton(t, HTML(tame, nil)); got != want {
			t.Errorf("the page is\n%s\nand with harmless names\n%s", got, want)
		}
		text := Text(asIs, TextOptions{Width: width})
		for _, r := range text {
			if r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r)) {
				t.Fatalf("the text has %U in it: %q", r, text)
			}
		}
		if got, want := strings.Count(text, "\n"), strings.Count(Text(tame, TextOptions{Width: width}), "\n"); got != want {
			t.Errorf("the text has %d lines, with harmless names %d", got, want)
		}
	})
}

// harmless returns a function that replaces a name by a harmless one of the same
// length. Different names stay different as long as there are enough letters.
func harmless() func(string) string {
	known := map[string]string{"oom": "oom"} // a kind of mark, not a name
	return func(s string) string {
		length := utf8.RuneCountInString(s)
		if strings.TrimSpace(Plain(s)) == "" {
			return s // harmless already; a label without it is left out
		}
		if _, ok := known[s]; !ok {
			b := []byte(strings.Repeat("a", length))
			for i, n := 0, len(known); i < length; i, n = i+1, n/26 {
				b[i] += byte(n % 26)
			}
			known[s] = string(b)
		}
		return known[s]
	}
}

func history(script string, minute func(int64) time.Time, name func(string) string) (lives []event.Life, events []event.Message, present []Present) {
	for line := range strings.Lines(script) {
		field := append(strings.SplitN(strings.TrimSuffix(line, "\n"), "|", 6), make([]string, 6)...)
		number := func(i int) int64 { n, _ := strconv.ParseInt(field[i], 10, 64); return n }
		end := func(i int) time.Time {
			if number(i) == 0 {
				return time.Time{}
			}
			return minute(number(i))
		}
		at := minute(number(0))
		switch field[1] {
		case "life":
			lives = append(lives, event.Life{Release: name(field[2]), Pid: int(number(5)), Start: at, End: end(3), How: field[4]})
		case "present":
			p := Present{ID: field[2], Name: name(field[3]), Image: name(field[4]), Created: at, Started: at, Finished: end(5), Running: number(5) == 0}
			present = append(present, p)
		default:
			attributes := map[string]string{"name": name(field[3]), "image": name(field[4]), "exitCode": field[5]}
			action, detail, said := strings.Cut(field[1], ": ")
			if said {
				action += ": " + name(detail)
			}
			events = append(events, event.New("container", action, field[2], attributes, at))
		}
	}
	slices.SortStableFunc(lives, func(a, b event.Life) int { return a.Start.Compare(b.Start) })
	slices.SortStableFunc(events, func(a, b event.Message) int { return a.At().Compare(b.At()) })
	return lives, events, present
}

// skeleton returns a page's elements and attribute names as a browser parses
// them, without text and attribute values.
func skeleton(t *testing.T, page string) string {
	t.Helper()
	doc, err := html.Parse(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for n := range doc.Descendants() {
		switch n.Type {
		case html.ElementNode:
			b.WriteString("<" + n.Namespace + ":" + n.Data)
			for _, a := range n.Attr {
				b.WriteString(" " + a.Key)
			}
			b.WriteString(">")
		case html.CommentNode, html.DoctypeNode:
			fmt.Fprintf(&b, "<!%d>", n.Type)
		}
	}
	return b.String()
}
