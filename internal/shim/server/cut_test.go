// SPDX-License-Identifier: Apache-2.0

package server

import (
	"os"
	"path/filepath"
	"testing"

	"holdfast/internal/shim/proto"
)

// FuzzJournalCutAnywhere starts a record on an arbitrary journal and state. Entries
// appended to them must be readable, with increasing numbers.
func FuzzJournalCutAnywhere(f *testing.F) {
	const entry = `{"seq":7,"time":"2026-01-01T00:00:00Z","action":"start","attributes":{"name":"x"}}` + "\n"
	const state = `{"schema":1,"id":"c","life":1,"status":"running","pid":7,"seq":7}`
	for cut := 0; cut <= len(entry); cut += 9 {
		f.Add([]byte(entry+entry[:cut]), []byte(state[:min(cut, len(state))]))
	}
	f.Add([]byte(`{"seq":18446744073709551615,"action":"x"}`+"\n"), []byte(state))
	f.Add([]byte("\n\n\x00\n{}\nnull\n[]\n"), []byte("null"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, journal, state []byte) {
		for name, data := range map[string][]byte{proto.JournalFile: journal, proto.StateFile: state} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, adopt := range []*proto.Adopt{nil, {}} {
			rec, err := newRecord(&proto.Bootstrap{ID: "c", Life: 1, RunDir: dir, Adopt: adopt})
			if err != nil {
				if adopt == nil {
					t.Fatal(err)
				}
				continue // the state is not this container's
			}
			before := rec.journal.seq
			rec.change(func(*proto.State) {}, note{action: "one"}, note{action: "two"})
			got := rec.journal.after(before)
			if len(got) != 2 || got[0].Action != "one" || got[1].Action != "two" || got[1].Seq != got[0].Seq+1 {
				t.Fatalf("after %d: %+v", before, got)
			}
			rec.journal.f.Close()
		}
	})
}
