// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"net/url"
	"testing"
	"time"
)

func TestTimes(t *testing.T) {
	for s, want := range map[string]time.Time{
		"":                                    {},
		"0":                                   {},
		"0.000":                               {},
		"1700000000":                          time.Unix(1700000000, 0),
		"1700000000.5":                        time.Unix(1700000000, 500_000_000),
		"1700000000.000000001":                time.Unix(1700000000, 1),
		"1.0000000019":                        time.Unix(1, 1),
		"-1.5":                                time.Unix(-1, -500_000_000),
		"2026-01-02T03:04:05.000000006+01:00": time.Date(2026, 1, 2, 2, 4, 5, 6, time.UTC),
	} {
		r := &Request{Query: url.Values{"since": {s}}}
		got, err := r.Time("since")
		if err != nil || !got.Equal(want) || got.IsZero() != want.IsZero() {
			t.Errorf("%q: %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"x", "1.x", "1.-5", "2026-01-02", "1e3", " 1"} {
		r := &Request{Query: url.Values{"since": {s}}}
		if got, err := r.Time("since"); err == nil {
			t.Errorf("%q is taken as %v", s, got)
		}
	}
}

func TestSwitches(t *testing.T) {
	for s, want := range map[string]bool{"": false, "0": false, "no": false, "False": false, "none": false, " ": false, "1": true, "true": true, "yes": true, "x": true} {
		r := &Request{Query: url.Values{"all": {s}}}
		if got := r.Bool("all"); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
		if got := r.BoolOr("other", true); !got {
			t.Error("an absent switch doesn't have its default")
		}
	}
}

func TestVersionsAreOrdered(t *testing.T) {
	order := []string{"0.9", "1.9", "1.24", "1.100", "2.0"}
	for i, a := range order {
		for j, b := range order {
			if got := MustParseVersion(a).Less(MustParseVersion(b)); got != (i < j) {
				t.Errorf("%s < %s: %v", a, b, got)
			}
		}
	}
}

func TestPlatforms(t *testing.T) {
	for s, want := range map[string]string{"linux/arm64": "linux/arm64/", "linux/arm/v7": "linux/arm/v7", `{"os":"linux","architecture":"amd64"}`: "linux/amd64/"} {
		r := &Request{Query: url.Values{"platform": {s}}}
		p, err := r.Platform()
		if err != nil || p.OS+"/"+p.Architecture+"/"+p.Variant != want {
			t.Errorf("%q: %+v, %v", s, p, err)
		}
	}
}
