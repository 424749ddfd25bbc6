// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
)

// The file has every key of version 1 of the state, as the releases wrote it that
// had one struct for all. A shim must read all of it, and write it so that those
// releases can read it.
func TestHandoverStateIsThatOfEarlierReleases(t *testing.T) {
	frozen, err := os.ReadFile("testdata/handover-1.json")
	if err != nil {
		t.Fatal(err)
	}
	h := &handoverState{}
	strict := json.NewDecoder(bytes.NewReader(frozen))
	strict.DisallowUnknownFields()
	if err := strict.Decode(h); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	var got, want map[string]any
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(frozen, &want); err != nil {
		t.Fatal(err)
	}
	for key := range want {
		if !reflect.DeepEqual(got[key], want[key]) {
			t.Errorf("%s:\n%v\nwant\n%v", key, got[key], want[key])
		}
	}
	// Those of the file, which were counted before the state had sections.
	if n := len(h.allDescriptors()); n != 31 {
		t.Errorf("%d descriptors are inherited, want 31", n)
	}
}

// encoding/json leaves a key out without an error if two sections have it.
func TestHandoverSectionsAreAllListedAndShareNoKey(t *testing.T) {
	h := &handoverState{}
	listed := map[string]bool{}
	for _, sec := range h.sections() {
		listed[reflect.TypeOf(sec).Elem().Name()] = true
	}
	owners := map[string]string{}
	var keys func(owner string, of reflect.Type)
	keys = func(owner string, of reflect.Type) {
		for i := range of.NumField() {
			f := of.Field(i)
			if f.Anonymous {
				keys(owner, f.Type)
				continue
			}
			key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if !f.IsExported() {
				continue
			}
			if key == "" {
				t.Errorf("%s.%s has no key", owner, f.Name)
			}
			if other := owners[key]; other != "" {
				t.Errorf("%s belongs to %s and to %s", key, other, owner)
			}
			owners[key] = owner
		}
	}
	for i := range reflect.TypeOf(*h).NumField() {
		f := reflect.TypeOf(*h).Field(i)
		if !f.Anonymous {
			continue // the version
		}
		if !listed[f.Name] {
			t.Errorf("sections does not return %s", f.Name)
		}
		keys(f.Name, f.Type)
	}
	if len(owners) < 25 {
		t.Errorf("only %d keys were found", len(owners))
	}
}
