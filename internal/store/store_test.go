// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"holdfast/internal/container"
)

func open(t testing.TB) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "exec"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func spec(id string) *container.Spec {
	return &container.Spec{ID: id, Name: "name-" + id, Desired: container.DesiredCreated, Created: time.Unix(1, 2).UTC(), API: json.RawMessage(`{}`)}
}

func write(t testing.TB, s *Store, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if err := s.WriteSpec(spec(id)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSpecComesBackAsItWasWritten(t *testing.T) {
	s := open(t)
	write(t, s, "abc")
	got, err := s.ReadSpec("abc")
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != "name-abc" || got.Schema != container.SpecSchema || !got.Created.Equal(time.Unix(1, 2)) {
		t.Errorf("got %+v", got)
	}
	entries, _ := os.ReadDir(s.ContainerDir("abc"))
	if len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
	if _, err := s.ReadSpec("none"); !errdefs.IsNotFound(err) {
		t.Errorf("missing spec: %v", err)
	}
	for _, id := range []string{"", "..", "../abc", "a/b", ".removing-abc"} {
		if _, err := s.ReadSpec(id); !errdefs.IsInvalidArgument(err) {
			t.Errorf("ID %q: %v", id, err)
		}
	}
}

// Each schema's frozen example can be read and, written with the present schema,
// loses nothing.
func TestFrozenExamplesAreStillRead(t *testing.T) {
	examples, err := filepath.Glob("testdata/v*/spec.json")
	if err != nil || len(examples) != container.SpecSchema {
		t.Fatalf("%d examples for %d schemas, %v", len(examples), container.SpecSchema, err)
	}
	for _, path := range examples {
		t.Run(path, func(t *testing.T) {
			frozen, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var top struct{ ID string }
			if err := json.Unmarshal(frozen, &top); err != nil {
				t.Fatal(err)
			}
			s := open(t)
			if err := os.Mkdir(s.ContainerDir(top.ID), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(s.SpecPath(top.ID), frozen, 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := s.ReadSpec(top.ID)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.WriteSpec(got); err != nil {
				t.Fatal(err)
			}
			again, err := os.ReadFile(s.SpecPath(top.ID))
			if err != nil {
				t.Fatal(err)
			}
			if path == fmt.Sprintf("testdata/v%d/spec.json", container.SpecSchema) && !bytes.Equal(frozen, again) {
				t.Errorf("written as\n%s\nread from\n%s", again, frozen)
			}
		})
	}
}

func TestMigrationsRunInOrderFromTheFilesSchema(t *testing.T) {
	steps := []migration{
		func(o map[string]json.RawMessage) error { o["trace"] = append(o["trace"], `"1to2`...); return nil },
		func(o map[string]json.RawMessage) error { o["trace"] = append(o["trace"], `,2to3"`...); return nil },
	}
	var v struct {
		Schema int
		Trace  string
	}
	if err := decode("f", []byte(`{"schema":1}`), 3, steps, &v, &v.Schema); err != nil || v.Schema != 3 || v.Trace != "1to2,2to3" {
		t.Errorf("got %+v, %v", v, err)
	}
	failing := []migration{func(map[string]json.RawMessage) error { return errors.New("no such luck") }}
	if err := decode("f", []byte(`{"schema":1}`), 2, failing, &v, &v.Schema); err == nil || !strings.Contains(err.Error(), "bring f from schema 1 to 2: no such luck") {
		t.Errorf("got %v", err)
	}
	if len(specMigrations) != container.SpecSchema-1 {
		t.Errorf("%d migrations of the spec for schema %d", len(specMigrations), container.SpecSchema)
	}
}

func TestDamagedAndNewerSpecsAreListedAndLeftAlone(t *testing.T) {
	s := open(t)
	write(t, s, "good", "cut", "newer", "other", "logged", "binary")
	whole, err := os.ReadFile(s.SpecPath("cut"))
	if err != nil {
		t.Fatal(err)
	}
	bad := map[string]struct {
		text string
		says string
		kind func(error) bool
	}{
		"cut":    {string(whole[:40]), "it ends after 40 bytes", errdefs.IsDataLoss},
		"newer":  {`{"schema":99,"id":"newer"}`, "its schema is 99, this release reads up to 1", errdefs.IsFailedPrecondition},
		"other":  {`{"schema":1,"id":"x"}`, `it has the ID "x"`, errdefs.IsDataLoss},
		"binary": {"\x00\x00\x00", "is damaged", errdefs.IsDataLoss},
	}
	for id, b := range bad {
		if err := os.WriteFile(s.SpecPath(id), []byte(b.text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A directory with a log but without a spec is kept as broken; an empty one is
	// removed.
	if err := os.Remove(s.SpecPath("logged")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.LogPath("logged", "json-file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(s.ContainerDir("empty"), 0o700); err != nil {
		t.Fatal(err)
	}

	specs, broken, err := s.LoadAll()
	if err != nil {
		t.Fatal(err)
	}
	if len(specs) != 1 || specs[0].ID != "good" {
		t.Errorf("specs: %v", specs)
	}
	var ids []string
	for _, b := range broken {
		ids = append(ids, b.ID)
		want, ok := bad[b.ID]
		if !ok {
			continue
		}
		if !want.kind(b.Err) || !strings.Contains(b.Err.Error(), want.says) || !strings.Contains(b.Err.Error(), s.SpecPath(b.ID)) {
			t.Errorf("%s: %v", b.ID, b.Err)
		}
		if text, _ := os.ReadFile(s.SpecPath(b.ID)); string(text) != want.text {
			t.Errorf("%s was changed", b.ID)
		}
	}
	slices.Sort(ids)
	if got := strings.Join(ids, " "); got != "binary cut logged newer other" {
		t.Errorf("broken: %s", got)
	}
	if _, err := os.Stat(s.ContainerDir("empty")); err == nil {
		t.Error("an empty folder is left")
	}
}

func TestLoadAllReadsEveryContainer(t *testing.T) {
	s := open(t)
	var want []string
	for i := range 100 {
		want = append(want, fmt.Sprintf("c%03d", i))
	}
	write(t, s, want...)
	specs, broken, err := s.LoadAll()
	if err != nil || len(broken) != 0 {
		t.Fatalf("%v, %v", broken, err)
	}
	var got []string
	for _, s := range specs {
		got = append(got, s.ID)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestRemovalThatHasBegunIsFinishedAtOpen(t *testing.T) {
	s := open(t)
	write(t, s, "a", "b")
	if err := os.MkdirAll(s.Rootfs("a"), 0o700); err != nil {
		t.Fatal(err)
	}
	// As after a crash while the directory was deleted.
	half := filepath.Join(s.ContainersDir(), removing+"b")
	if err := os.Rename(s.ContainerDir("b"), half); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(half, SpecFile)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.RemoveContainer("a"); err != nil {
			t.Fatal(err)
		}
	}
	if specs, broken, err := s.LoadAll(); err != nil || len(specs)+len(broken) != 0 {
		t.Errorf("%v, %v, %v", specs, broken, err)
	}
	if _, err := os.Stat(s.RunDir("a")); err == nil {
		t.Error("the run directory is left")
	}
	if _, err := Open(s.DataRoot(), s.ExecRoot()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(half); err == nil {
		t.Error("half a removal is left")
	}
}

func TestContainerThatWasSetAsideIsReturnedUntilItIsDeleted(t *testing.T) {
	s := open(t)
	write(t, s, "a", "b")
	if err := s.SetAside("a"); err != nil {
		t.Fatal(err)
	}
	s, err := Open(s.DataRoot(), s.ExecRoot())
	if err != nil {
		t.Fatal(err)
	}
	if specs, _, err := s.LoadAll(); err != nil || len(specs) != 1 || specs[0].ID != "b" {
		t.Errorf("%v, %v", specs, err)
	}
	aside, err := s.Aside()
	if err != nil || len(aside) != 1 || aside[0].Spec.ID != "a" {
		t.Fatalf("%v, %v", aside, err)
	}
	if _, err := os.Stat(filepath.Join(aside[0].Dir, SpecFile)); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := s.DeleteAside("a"); err != nil {
			t.Fatal(err)
		}
	}
	if aside, err := s.Aside(); err != nil || len(aside) != 0 {
		t.Errorf("%v, %v", aside, err)
	}
}

func TestTemporaryFileOfADeadWriterIsReplacedByTheNext(t *testing.T) {
	s := open(t)
	write(t, s, "a")
	// As after a crash or a loss of power right before the rename.
	temp := filepath.Join(s.ContainerDir("a"), "."+SpecFile+".tmp")
	if err := os.WriteFile(temp, bytes.Repeat([]byte("x"), 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, s, "a")
	if _, err := s.ReadSpec("a"); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(s.ContainerDir("a"))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func BenchmarkWriteSpec(b *testing.B) {
	s := open(b)
	for b.Loop() {
		write(b, s, "a")
	}
}

func BenchmarkLoadAll200(b *testing.B) {
	s := open(b)
	for i := range 200 {
		write(b, s, fmt.Sprintf("c%03d", i))
	}
	for b.Loop() {
		if specs, _, err := s.LoadAll(); err != nil || len(specs) != 200 {
			b.Fatal(len(specs), err)
		}
	}
}

func TestDamagedIDOfTheEngineIsSetAside(t *testing.T) {
	for _, text := range []string{"", "3f2b8c1e-77aa", "\x00\x00\x00\x00", "3f2b8c1e-77aa-4d\x00\x00\x00\x00"} {
		data := t.TempDir()
		s, err := Open(data, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(data, engineIDFile)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		id, err := s.DaemonID()
		if err != nil || s.DamagedID() != path+".damaged" {
			t.Fatalf("%q: %v, set aside as %q", text, err, s.DamagedID())
		}
		if aside, err := os.ReadFile(s.DamagedID()); err != nil || string(aside) != text {
			t.Errorf("%q: %q, %v", text, aside, err)
		}
		again, err := Open(data, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if next, err := again.DaemonID(); err != nil || next != id || again.DamagedID() != "" {
			t.Errorf("%q: %q, then %q, %v", text, id, next, err)
		}
	}
}
