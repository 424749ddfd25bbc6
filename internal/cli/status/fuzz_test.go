// SPDX-License-Identifier: Apache-2.0

package status

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode"
)

// FuzzPrint prints the answer of a daemon that may be anyone's: the output
// contains only text, and each container has one line.
func FuzzPrint(f *testing.F) {
	for _, s := range []string{
		`{"daemon":{"version":"1\u001b[2J","pid":-1,"started":"0001-01-01T00:00:00Z","dataRoot":"\u009b31m","execRoot":"/a\nb"},"containers":null}`,
		`{"error":"\u001b]0;x\u0007","lives":[{"started":"9999-12-31T23:59:59Z","how":"\r\t\u0000"},{},{"ended":"2026-01-01T00:00:00Z"}],"containers":[]}`,
		`{"daemon":{},"containers":[{"id":"\u202e\u2028","name":"\u001b[8m","status":"a\tb","pid":1,"shimVersion":"\n\n","note":"\b\u007f","lives":-1},{"id":"0123456789abcdef"}]}`,
		`{}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		var s Status
		if json.Unmarshal(answer, &s) != nil {
			return
		}
		var b strings.Builder
		if err := Print(&b, s, time.Unix(1e9, 0)); err != nil {
			t.Fatal(err)
		}
		for _, r := range b.String() {
			if r != '\n' && (unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp)) {
				t.Fatalf("%U in %q", r, b.String())
			}
		}
		lines := 3 + len(s.Containers) // with a blank line and the head of the table
		if s.Daemon != nil {
			lines += 3
		}
		if n := len(s.Lives); n > 1 {
			lines += 2 + min(n, recentLives)
		}
		for _, c := range s.Containers {
			if c.Note != "" {
				lines += 2
			}
		}
		if got := strings.Count(b.String(), "\n"); got != lines {
			t.Errorf("%d lines, want %d: %q", got, lines, b.String())
		}
	})
}
