// SPDX-License-Identifier: Apache-2.0

package format

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestDetailsAreEscapedAsInAQuery(t *testing.T) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for _, s := range []string{"", "plain-A_z.0~9", "a b&c=d,e+f%", "äöü→", string(all)} {
		if got, want := string(appendQuery(nil, s)), url.QueryEscape(s); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}

func TestOnlyTheFirstPartOfALineHasItsTime(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.FixedZone("", 3600))
	e := Encoder{Timestamps: true, Details: true}
	var got []byte
	for _, text := range []string{"long ", "line\n", "next\n"} {
		got = e.Append(got, Line{Time: at, Source: "stderr", Line: []byte(text), Attrs: map[string]string{"k": "v w", "a": "1"}})
	}
	const head = "2026-01-02T02:04:05.000006000Z a=1,k=v+w "
	want := "\x02\x00\x00\x00\x00\x00\x00\x2e" + head + "long " + "\x02\x00\x00\x00\x00\x00\x00\x05line\n" + "\x02\x00\x00\x00\x00\x00\x00\x2e" + head + "next\n"
	if string(got) != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// BenchmarkDecode decodes lines that were read from a container together, and
// lines that each have a time of their own.
func BenchmarkDecode(b *testing.B) {
	suffix := func(ns int) string {
		return fmt.Sprintf(`\n","stream":"stdout","time":"2026-03-04T12:00:00.%09dZ"}`+"\n", ns)
	}
	text := `{"log":"` + strings.Repeat("abcdefghi ", 10)[:99]
	for _, c := range []struct {
		name    string
		records [2]string
	}{
		{"burst", [2]string{text + suffix(1), text + suffix(1)}},
		{"times", [2]string{text + suffix(1), text + suffix(22)}},
	} {
		b.Run(c.name, func(b *testing.B) {
			var dec JSONDecoder
			records := [2][]byte{[]byte(c.records[0]), []byte(c.records[1])}
			b.SetBytes(100)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, ok := dec.Decode(records[i&1]); !ok {
					b.Fatal("not decoded")
				}
			}
		})
	}
}
