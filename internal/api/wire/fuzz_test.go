// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzParameters: every reader of parameters accepts a value, or names the
// value that it refuses.
func FuzzParameters(f *testing.F) {
	for _, s := range []string{
		"since=1700000000.123456789&until=2006-01-02T15:04:05Z", "since=-1.5", "since=99999999999999999999", "since=.5", "until=1e9", "h=1&w=70000", "h=-1",
		`filters={"label":{"a":true}}`, `filters={"label":["a"]}`, `filters={"label":1}`, `filters=%00`, `filters=[`, `platform={"os":"linux"}`, "platform=linux/amd64/v1/x",
		"size=%ff", "limit=1.5", "limit=-1", "all=None", "since=9223372036854775807.999999999", "since=0.0000000001", "a%00=1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		q, err := url.ParseQuery(raw)
		if err != nil {
			return
		}
		r := &Request{Request: httptest.NewRequest("GET", "/", nil), Query: q}
		refused := NoNUL("/", q) != nil
		if has := strings.Contains(strings.Join(strings.Split(q.Encode(), "%00"), "\x00"), "\x00"); has != refused {
			t.Errorf("%q: a NUL byte is there: %v, and refused: %v", raw, has, refused)
		}
		for _, name := range []string{"since", "until"} {
			at, err := r.Time(name)
			blamed(t, err)
			if v := q.Get(name); err == nil && v != "" && v != "0" && at.IsZero() && !belowANanosecond(v) && !strings.HasPrefix(v, "0001-01-0") {
				t.Errorf("%s=%q is the zero time", name, v)
			}
		}
		_, _, err = r.Size()
		blamed(t, err)
		_, err = r.Int("limit")
		blamed(t, err)
		args, err := r.Filters()
		blamed(t, err)
		for term, values := range args {
			args.Exact(term, "a")
			args.Prefix(term, "a")
			args.Match(term, "a")
			args.KV(term, map[string]string{"a": "b"})
			_, _, _ = args.Bool(term)
			_ = args.Check(values...)
		}
		_, err = r.Platform()
		blamed(t, err)
		_, err = r.PlatformJSON()
		blamed(t, err)
		_, err = r.PlatformsJSON("platform")
		blamed(t, err)
		r.Bool("all")
	})
}

// belowANanosecond reports whether a time in seconds has no digit other than 0 before
// the tenth behind the point: such a time is 0, which is no bound.
func belowANanosecond(v string) bool {
	whole, fraction, _ := strings.Cut(v, ".")
	return strings.Trim(whole+fraction[:min(len(fraction), 9)], "-+0") == ""
}

func blamed(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if code := Status(err); code != http.StatusBadRequest {
		t.Errorf("%d %v", code, err)
	}
	w := httptest.NewRecorder()
	WriteError(w, err)
	if !utf8.Valid(w.Body.Bytes()) {
		t.Errorf("the message is not UTF-8: %q", w.Body)
	}
}
