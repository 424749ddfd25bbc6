// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"
)

func TestFailingTargetIsNamedWithItsInput(t *testing.T) {
	dir := kit.Files(t, map[string]string{
		"go.mod":      "module example\n\ngo 1.26\n",
		"good/a.go":   "package good\n",
		"good/a_test": "package good\n\nfunc FuzzNothing(f *testing.F) {}\n",
		"good/a_test.go": `package good

import (
	"os"
	"testing"
)

// TestMain is in the module to check that workers run it, too.
func TestMain(m *testing.M) { os.Exit(m.Run()) }

func FuzzGood(f *testing.F) { f.Fuzz(func(*testing.T, []byte) {}) }

`,
		"bad/deep/b_test.go": `package deep_test

import "testing"

func FuzzBad(f *testing.F) {
	f.Add("harmless")
	f.Fuzz(func(t *testing.T, s string) {
		if s != "harmless" {
			t.Error("not harmless")
		}
	})
}
`,
	})
	var out strings.Builder
	ok, err := run(context.Background(), &out, dir, time.Second, "", 2, nil)
	if err != nil {
		t.Fatal(err)
	}
	if ok {
		t.Error("a failing target passed")
	}
	said := out.String()
	for _, want := range []string{"good.FuzzGood", "bad/deep.FuzzBad", "FAIL: an input fails", "keep it: bad/deep/testdata/fuzz/FuzzBad/", "1 of 2 targets failed"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not in\n%s", want, said)
		}
	}
	kept, err := filepath.Glob(filepath.Join(dir, "bad/deep/testdata/fuzz/FuzzBad/*"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("kept %v, %v", kept, err)
	}

	// From then on the input fails as a seed. It must be named all the same.
	out.Reset()
	ok, err = run(context.Background(), &out, dir, time.Second, "FuzzBad", 1, []string{"./bad/..."})
	if name, _ := filepath.Rel(dir, kept[0]); ok || err != nil || !strings.Contains(out.String(), "keep it: "+name) {
		t.Errorf("%v, %v: %s", ok, err, &out)
	}
	if _, err := run(context.Background(), &out, dir, time.Second, "Absent", 1, nil); err == nil {
		t.Error("a target that does not exist passed")
	}
}

func TestOutputOfARunIsUnderstood(t *testing.T) {
	const run = "fuzz: elapsed: 3s, execs: 100 (33/sec), new interesting: 1 (total: 8)\nfuzz: elapsed: 6s, execs: 250 (50/sec), new interesting: 4 (total: 11)\n"
	status := errors.New("exit status 1")
	for name, tc := range map[string]struct {
		text    string
		err     error
		failure string
		files   []string
	}{
		"passed":         {run + "PASS\n", nil, "", nil},
		"time was over":  {run + "--- FAIL: FuzzX (10.05s)\n    context deadline exceeded\nFAIL\n", status, "", nil},
		"cut before any": {"--- FAIL: FuzzX (10.05s)\n    context deadline exceeded\nFAIL\n", status, "exit status 1", nil},
		"time and input": {run + "--- FAIL: FuzzX (10.05s)\n    context deadline exceeded\n    Failing input written to testdata/fuzz/FuzzX/0123\nFAIL\n", status, "an input fails", []string{"testdata/fuzz/FuzzX/0123"}},
		"a seed fails":   {"--- FAIL: FuzzX (0.05s)\n    --- FAIL: FuzzX/0123456789abcdef (0.00s)\nFAIL\n", status, "an input fails", []string{"testdata/fuzz/FuzzX/0123456789abcdef"}},
		"no such test":   {"panic: x\n", status, "exit status 1", nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := judge(tc.text, tc.err)
			if r.failure != tc.failure || !slices.Equal(r.files, tc.files) {
				t.Errorf("%q with %v, want %q with %v", r.failure, r.files, tc.failure, tc.files)
			}
			if strings.HasPrefix(tc.text, run) && (r.execs != 250 || r.found != 4) {
				t.Errorf("%d execs, %d new", r.execs, r.found)
			}
		})
	}
}

func TestTargetsOfThisModuleAreFound(t *testing.T) {
	_, targets, err := find(context.Background(), "../..", nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, t := range targets {
		names = append(names, t.String())
	}
	for _, want := range []string{"internal/archive.FuzzUnpackStaysInTheTree", "internal/config.FuzzDaemonJSON", "internal/shim/proto.FuzzSplitFrame"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not among %v", want, names)
		}
	}
}
