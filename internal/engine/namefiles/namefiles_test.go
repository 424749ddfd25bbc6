// SPDX-License-Identifier: Apache-2.0

package namefiles

import (
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

func testFiles(dir string) *Files {
	subnets := func(id string) []netip.Prefix {
		return []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
	}
	return New(dir, subnets, slog.New(slog.NewTextHandler(io.Discard, nil)))
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

// TestFilesFollowPlaces: nothing is written before Begin, files of networks without a
// place are removed, and the members of a network are ordered by name.
func TestFilesFollowPlaces(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale.json")
	for _, path := range []string{stale, filepath.Join(dir, "half.json.tmp")} {
		if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	places := []Place{
		{Network: "n1", Name: "front", Container: "web", Names: []string{"www"}, Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.3")}},
		{Network: "n1", Name: "front", Container: "db"},
	}
	all := func() []Place { return places }
	f := testFiles(dir)
	f.Update(all)
	if got := content(t, f.Path("n1")); got != "" {
		t.Errorf("before Begin there is a file: %s", got)
	}
	f.Begin(true, all)
	want := `{"schema":1,"name":"front","subnets":["10.1.0.0/16"],"members":[{"name":"db"},{"name":"web","names":["www"],"addresses":["10.1.0.3"]}]}`
	if got := content(t, f.Path("n1")); got != want {
		t.Errorf("the file of n1:\n%s\nwant:\n%s", got, want)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("files of an earlier daemon are left: %v %v", entries, err)
	}
	places = nil
	f.Update(all)
	if got := content(t, f.Path("n1")); got != "" {
		t.Errorf("the file of a network without containers is left: %s", got)
	}
}

// TestBeginKeepsFilesOfUnreadContainers: without clean, files that no place needs stay.
func TestBeginKeepsFilesOfUnreadContainers(t *testing.T) {
	dir := t.TempDir()
	f := testFiles(dir)
	if err := os.WriteFile(f.Path("other"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.Begin(false, func() []Place { return nil })
	if got := content(t, f.Path("other")); got != "{}" {
		t.Errorf("the file was removed or changed: %q", got)
	}
}

// TestViewNamesFilesAndServers: the view has the paths of the networks' files, and the
// last link with an alias.
func TestViewNamesFilesAndServers(t *testing.T) {
	f := testFiles(t.TempDir())
	path := filepath.Join(t.TempDir(), "names.json")
	err := f.WriteView(path, View{
		Networks: []string{f.Path("n1")}, Links: []string{"one:db", "/two:/web/db", "cache"},
		Upstream: []netip.Addr{netip.MustParseAddr("fd00::1")},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"schema":1,"networks":["` + f.Path("n1") + `"],"links":{"cache":"cache","db":"two"},"upstream":["[fd00::1]:53"]}`
	if got := content(t, path); got != want {
		t.Errorf("the view:\n%s\nwant:\n%s", got, want)
	}
}
