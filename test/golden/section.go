// SPDX-License-Identifier: Apache-2.0

package golden

import (
	"os"
	"strings"
	"testing"
)

// Section is the part of a page between two lines. Both lines end with a line
// break.
type Section struct {
	Path       string // of the page, relative to the test's directory
	Begin, End string
	// Command is the command that rewrites the section.
	Command string
}

// Keep compares the section with want, or rewrites it.
func (s Section) Keep(t *testing.T, want string) {
	t.Helper()
	raw, err := os.ReadFile(s.Path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(raw), s.Begin)
	got, after, ended := strings.Cut(rest, s.End)
	switch {
	case !found || !ended:
		t.Fatalf("%s has no lines %q and %q", s.Path, s.Begin, s.End)
	case got == want:
	case !*Update:
		t.Fatalf("%s differs from the code: run %s\n%s", s.Path, s.Command, want)
	default:
		if err := os.WriteFile(s.Path, []byte(before+s.Begin+want+s.End+after), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
