// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"testing"
)

func TestDetachKeysAreFoundAndNothingElseIsLost(t *testing.T) {
	const ctrlP, ctrlQ = "\x10", "\x11"
	tests := []struct {
		name     string
		keys     string
		typed    []string
		want     string
		held     string
		detached bool
	}{
		{"no keys", "", []string{"a\x10\x11"}, "a\x10\x11", "", false},
		{"whole sequence", ctrlP + ctrlQ, []string{"ab" + ctrlP + ctrlQ + "c"}, "ab", "", true},
		{"sequence in two reads", ctrlP + ctrlQ, []string{"a" + ctrlP, ctrlQ}, "a", "", true},
		{"half a sequence is passed on", ctrlP + ctrlQ, []string{"a" + ctrlP, "b"}, "a" + ctrlP + "b", "", false},
		{"first key twice", ctrlP + ctrlQ, []string{ctrlP + ctrlP + ctrlQ}, ctrlP, "", true},
		{"first key last", ctrlP + ctrlQ, []string{"a" + ctrlP}, "a", ctrlP, false},
		{"one key", "q", []string{"abq"}, "ab", "", true},
		{"three keys", "abc", []string{"ab", "abx", "c"}, "ababxc", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := escape{keys: []byte(tt.keys)}
			var got []byte
			detached := false
			for _, s := range tt.typed {
				clean, d := e.filter([]byte(s))
				got = append(got, clean...)
				if detached = d; d {
					break
				}
			}
			if string(got) != tt.want || detached != tt.detached || string(e.held()) != tt.held {
				t.Errorf("got %q %v held %q, want %q %v %q", got, detached, e.held(), tt.want, tt.detached, tt.held)
			}
		})
	}
}

func FuzzEscape(f *testing.F) {
	f.Add([]byte("ab"), []byte("xaaby"), 2)
	f.Add([]byte("aab"), []byte("aaab"), 1)
	f.Fuzz(func(t *testing.T, keys, typed []byte, cut int) {
		if len(keys) == 0 || len(keys) > 8 {
			return
		}
		cut = min(max(cut, 0), len(typed))
		e := escape{keys: keys}
		var got []byte
		for _, p := range [][]byte{typed[:cut], typed[cut:]} {
			clean, detached := e.filter(p)
			got = append(got, clean...)
			if detached {
				if !bytes.Contains(typed, keys) || !bytes.HasPrefix(typed, append(got, keys...)) {
					t.Fatalf("keys %q, typed %q: detached after %q", keys, typed, got)
				}
				return
			}
		}
		if all := append(got, e.held()...); !bytes.Equal(all, typed) {
			t.Fatalf("keys %q: %q became %q", keys, typed, all)
		}
	})
}
