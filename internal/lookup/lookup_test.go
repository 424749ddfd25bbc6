// SPDX-License-Identifier: Apache-2.0

package lookup

import (
	"errors"
	"maps"
	"testing"
)

func TestWholeIDThenNameThenBeginningOfAnID(t *testing.T) {
	const a, b, c = "aa00", "aa11", "bb22"
	ids := map[string]string{a: "a", b: "b", c: "c"}
	names := map[string]string{
		"web": "a",
		"bb":  "a", // the beginning of c's ID
		b:     "a", // b's whole ID
	}
	in := In[string]{
		ID:   func(id string) (string, bool) { v, ok := ids[id]; return v, ok },
		Name: func(n string) (string, bool) { v, ok := names[n]; return v, ok },
		All:  maps.All(ids),
	}
	for ref, want := range map[string]string{
		"web": "a", a: "a", b: "b", c: "c", "bb": "a", "bb2": "c", "aa0": "a", "aa1": "b", "b": "c",
	} {
		if got, err := Find(ref, in); err != nil || got != want {
			t.Errorf("%s: got %q, %v; want %q", ref, got, err, want)
		}
	}
	for ref, want := range map[string]error{"aa": ErrSeveral, "a": ErrSeveral, "": ErrNone, "web0": ErrNone, "aa000": ErrNone} {
		if got, err := Find(ref, in); !errors.Is(err, want) || got != "" {
			t.Errorf("%q: got %q, %v; want %v", ref, got, err, want)
		}
	}
	in.All = nil
	if _, err := Find("bb2", in); !errors.Is(err, ErrNone) {
		t.Errorf("by the beginning of an ID, where that is not enough: %v", err)
	}
	in.Name = nil
	if _, err := Find("web", in); !errors.Is(err, ErrNone) {
		t.Errorf("by a name, where there are none: %v", err)
	}
}
