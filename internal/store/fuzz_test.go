// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"holdfast/internal/container"
)

// specSeeds are versions of spec.json: complete, truncated, with wrong types and
// of other releases.
func specSeeds(f *testing.F) []string {
	whole, err := os.ReadFile("testdata/v1/spec.json")
	if err != nil {
		f.Fatal(err)
	}
	var id struct{ ID string }
	if err := json.Unmarshal(whole, &id); err != nil {
		f.Fatal(err)
	}
	text := strings.ReplaceAll(string(whole), id.ID, "x")
	seeds := []string{
		text, text + text, "", "null", "[]", "{}", `{"schema":1}`, `{"schema":0,"id":"x"}`, `{"schema":-1,"id":"x"}`, `{"schema":2,"id":7}`,
		`{"schema":"1","id":"x"}`, `{"schema":1.5,"id":"x"}`, `{"schema":1e2,"id":"x"}`, `{"id":"x","schema":1}`, `{"schema":1,"schema":2,"id":"x"}`,
		`{"id":"x","schema":3,"schema":1}`, `{"schema":1,"ID":"x","id":"y"}`, `{"schema":1,"id":"x","execRoot":"/elsewhere"}`, `{"schema":1,"id":"../x"}`,
		`{"schema":null,"id":"x"}`, `{"SCHEMA":1,"id":"x"}`, "\ufeff" + text, strings.Repeat(`{"schema":`, 5000),
	}
	for n := 0; n < len(text); n += 97 {
		seeds = append(seeds, text[:n])
	}
	return seeds
}

// FuzzSpec reads a spec.json with arbitrary content. Either an error names the
// file and the file is left alone, or the spec is the same after it was written
// and read again.
func FuzzSpec(f *testing.F) {
	for _, s := range specSeeds(f) {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := Open(t.TempDir(), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(s.ContainerDir("x"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.SpecPath("x"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		spec, err := s.ReadSpec("x")
		specs, broken, listErr := s.LoadAll()
		if listErr != nil || len(specs)+len(broken) != 1 || (len(specs) == 1) != (err == nil) {
			t.Errorf("read %v, listed %v and %v, %v", err, specs, broken, listErr)
		}
		if now, readErr := os.ReadFile(s.SpecPath("x")); readErr != nil || !bytes.Equal(now, text) {
			t.Errorf("reading changed the file: %v", readErr)
		}
		if err != nil {
			if !errdefs.IsDataLoss(err) && !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), s.SpecPath("x")) {
				t.Errorf("refused without its kind or the file's name: %v", err)
			}
			return
		}
		if spec.Schema != container.SpecSchema {
			t.Errorf("taken with the schema %d", spec.Schema)
		}
		if err := s.WriteSpec(spec); err != nil {
			t.Fatal(err)
		}
		if again, err := s.ReadSpec("x"); err != nil || !alike(t, spec, again) {
			t.Errorf("written\n%+v\nread\n%+v, %v", spec, again, err)
		}
	})
}

// alike compares values as files do, which have no difference between nil and an
// empty list.
func alike(t *testing.T, a, b any) bool {
	t.Helper()
	x, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(x, y)
}

// FuzzMigration migrates objects of an older schema to a newer one. Each step
// runs once, however the number is written.
func FuzzMigration(f *testing.F) {
	for _, s := range specSeeds(f) {
		f.Add([]byte(s))
	}
	f.Add([]byte(`{"schema":2,"steps":"x"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		step := func(n int) migration {
			return func(o map[string]json.RawMessage) error {
				o["steps"], _ = json.Marshal(append(stepsOf(o["steps"]), n))
				return nil
			}
		}
		var v struct {
			Schema int
			Steps  []int
		}
		err := decode("file", text, 4, []migration{step(1), step(2), step(3)}, &v, &v.Schema)
		if err != nil {
			if !errdefs.IsDataLoss(err) && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("no kind: %v", err)
			}
			return
		}
		if v.Schema != 4 {
			t.Errorf("it is of schema %d", v.Schema)
		}
		var before struct {
			Schema int
			Steps  json.RawMessage
		}
		if json.Unmarshal(text, &before) != nil || before.Schema < 1 || before.Schema > 4 {
			t.Fatalf("taken: %s", text)
		}
		want := stepsOf(before.Steps)
		for n := before.Schema; n < 4; n++ {
			want = append(want, n)
		}
		if before.Schema < 4 && !reflect.DeepEqual(v.Steps, want) {
			t.Errorf("from %s the steps %v, want %v", text, v.Steps, want)
		}
	})
}

func stepsOf(raw json.RawMessage) (list []int) {
	if json.Unmarshal(raw, &list) != nil {
		return nil
	}
	return list
}

// FuzzRoots reads a roots.json with arbitrary content.
func FuzzRoots(f *testing.F) {
	for _, s := range []string{
		"", "{", "null", `{"schema":1,"dataRoot":"/d","execRoot":"/e","sockets":["/s"],"release":"1"}`, `{"schema":2}`, `{"schema":1,"sockets":{}}`,
		`{"schema":1,"dataRoot":"../x\u0000"}`, `{"dataRoot":"/d","schema":1}`, `{"schema":1,"sockets":null}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, RootsFile), text, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := ReadRoots(dir)
		if err != nil {
			if !errdefs.IsDataLoss(err) && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("no kind: %v", err)
			}
			return
		}
		r.DataRoot, r.ExecRoot = "/data", dir
		if err := WriteRoots(r); err != nil {
			t.Fatal(err)
		}
		if again, err := ReadRoots(dir); err != nil || !alike(t, r, again) {
			t.Errorf("written %+v, read %+v, %v", r, again, err)
		}
	})
}
