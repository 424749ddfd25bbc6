// SPDX-License-Identifier: Apache-2.0

package format

import (
	"net/url"
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
