// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const messages = `{"config":{"scan_mode":"binary"}}
{"progress":{"message":"Scanning"}}
{"osv":{"id":"GO-2026-0001","summary":"a fault"}}
{"osv":{"id":"GO-2026-0002","summary":"another"}}
{"finding":{"osv":"GO-2026-0001","fixed_version":"v1.2.3","trace":[{"module":"m","version":"v1.0.0"}]}}
{"finding":{"osv":"GO-2026-0001","fixed_version":"v1.2.3","trace":[{"module":"m","version":"v1.0.0","package":"m/p","receiver":"*T","function":"F"}]}}
{"finding":{"osv":"GO-2026-0002","trace":[{"module":"n","version":"v1.0.0","package":"n"}]}}
`

func collected(t *testing.T, binaries ...string) []finding {
	t.Helper()
	all := map[string]*finding{}
	for _, b := range binaries {
		if err := collect(all, b, []byte(messages)); err != nil {
			t.Fatal(err)
		}
	}
	var found []finding
	for _, f := range all {
		found = append(found, *f)
	}
	return found
}

func TestOnlyLinkedFunctionsCount(t *testing.T) {
	found := collected(t, "a", "b")
	if len(found) != 1 || found[0].ID != "GO-2026-0001" || found[0].Function != "m/p.*T.F" || strings.Join(found[0].Binaries, " ") != "a b" {
		t.Errorf("%+v", found)
	}
}

func TestOutputThatIsNoScanIsAnError(t *testing.T) {
	for _, text := range []string{"", `{"config":{"scan_mode":"source"}}`, messages + "{"} {
		if err := collect(map[string]*finding{}, "a", []byte(text)); err == nil {
			t.Errorf("%q passed", text)
		}
	}
}

func TestListAndFindingsMustAgree(t *testing.T) {
	found := collected(t, "a")
	for name, tc := range map[string]struct {
		found    []finding
		accepted []acceptance
		newest   bool
		status   int
		says     string
	}{
		"clean":                     {nil, nil, true, 0, "nothing that isn't accepted"},
		"found":                     {found, nil, true, exitFound, "FOUND: GO-2026-0001 in a: a fault"},
		"accepted":                  {found, []acceptance{{"GO-2026-0001", "it is unreachable"}}, true, 0, "because it is unreachable"},
		"another accepted":          {found, []acceptance{{"GO-2026-0009", "x"}}, true, exitFound, "FOUND: GO-2026-0001"},
		"no longer found":           {nil, []acceptance{{"GO-2026-0001", "x"}}, true, exitFound, "NO LONGER FOUND: GO-2026-0001"},
		"no longer found, long ago": {nil, []acceptance{{"GO-2026-0001", "x"}}, false, 0, "nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			if status := report(&out, tc.found, tc.accepted, "v1", tc.newest); status != tc.status || !strings.Contains(out.String(), tc.says) {
				t.Errorf("status %d, want %d: %s", status, tc.status, &out)
			}
		})
	}
}

func TestWhatAnOlderGoHasIsNotTheSources(t *testing.T) {
	found := []finding{
		{ID: "GO-1", Module: "stdlib", Version: "v1.26.8", Fixed: "v1.26.9"},
		{ID: "GO-2", Module: "stdlib", Version: "v1.26.8", Fixed: "v1.26.11"},
		{ID: "GO-3", Module: "stdlib", Version: "v1.26.8"},
		{ID: "GO-4", Module: "m", Version: "v1.26.8", Fixed: "v1.26.9"},
	}
	rest, old := older(found, "go1.26.10")
	if got := strings.Join(ids(rest), " ") + ", old " + strings.Join(ids(old), " "); got != "GO-2 GO-3 GO-4, old GO-1" {
		t.Error(got)
	}
	asked, err := toolchain(t.Context())
	if err != nil || !strings.HasPrefix(asked, "go1.") {
		t.Errorf("%q, %v", asked, err)
	}
}

func TestListNeedsReasons(t *testing.T) {
	for text, want := range map[string]string{
		"":                                       "",
		"# nothing\n\n":                          "",
		"GO-2026-0001 a reason\n":                "",
		"GO-2026-0001\n":                         "a reason",
		"GO-2026-0001   \n":                      "a reason",
		"CVE-2026-1 a reason\n":                  "an ID",
		"GO-2026-0001 a\nGO-2026-0001 b twice\n": "listed twice",
	} {
		path := filepath.Join(t.TempDir(), "list")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readAccepted(path); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if list, err := readAccepted("accepted.txt"); err != nil {
		t.Errorf("%v, %v", list, err)
	}
}

// If the network is not available, the result is unknown and not a success.
func TestWithoutTheDatabaseNothingIsKnown(t *testing.T) {
	t.Setenv("GOPROXY", "off")
	t.Setenv("GOFLAGS", "-modcacherw")
	t.Setenv("GOMODCACHE", t.TempDir())
	var out strings.Builder
	if status := run(t.Context(), &out, "accepted.txt", t.TempDir(), nil); status != exitUnknown || !strings.Contains(out.String(), "NOT CHECKED") {
		t.Errorf("status %d: %s", status, &out)
	}
}
