// SPDX-License-Identifier: Apache-2.0

package event

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// journalSeeds are segments as a crash, a full disk, a newer release or an
// attacker may have left them.
func journalSeeds(f *testing.F) []string {
	dir := f.TempDir()
	j := open(f, dir, 0)
	for i := range 3 {
		m := numbered(i)
		m.Source = fmt.Sprintf("c/1:%d", i)
		put(f, j, m)
	}
	whole, err := os.ReadFile(filepath.Join(dir, "00000001.jsonl"))
	if err != nil {
		f.Fatal(err)
	}
	seeds := []string{
		"", "\n", "\n\n\x00\n", "{}\n", "null\n[]\n", "{\"schema\":2}\n", "{\"schema\":1e99}\n{\"Type\":1}\n",
		`{"schema":1,"sources":{"c/1":[{"First":9,"Last":2},{"First":0,"Last":18446744073709551615}],"":null}}` + "\n",
		`{"schema":1}` + "\n" + `{"Type":"container","Action":"start","Actor":{"ID":"x"},"time":9223372036854775807,"source":"c/1:18446744073709551615"}` + "\n",
		`{"Type":"x","time":-9223372036854775808,"timeNano":-9223372036854775808,"source":":"}` + "\n",
		`{"Type":"container","Actor":{"Attributes":{"a":"\ud800"}},"source":"a\u0000b:7"}` + "\n",
		strings.Repeat("[", 20000) + "\n",
	}
	for n := 0; n < len(whole); n += 41 {
		seeds = append(seeds, string(whole[:n]))
	}
	return append(seeds, string(whole), string(whole)+string(whole))
}

// FuzzJournal opens a journal of which two segments have any content. Open may
// refuse it as a newer release's, and then leaves it unchanged. Otherwise
// readable events are replayed in order of time, and a new event is recorded
// exactly once.
func FuzzJournal(f *testing.F) {
	seeds := journalSeeds(f)
	for i, s := range seeds {
		f.Add([]byte(s), []byte(seeds[(i+5)%len(seeds)]))
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		dir := t.TempDir()
		for name, content := range map[string][]byte{"00000001.jsonl": first, "00000007.jsonl": second} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		j, err := Open(dir, Options{})
		if err != nil {
			if !strings.Contains(err.Error(), "newer release") {
				t.Fatalf("refused: %v", err)
			}
			for name, content := range map[string][]byte{"00000001.jsonl": first, "00000007.jsonl": second} {
				if now, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(now, content) {
					t.Errorf("%s of a newer release was changed: %v", name, err)
				}
			}
			return
		}
		defer j.Close()
		here := numbered(1)
		here.Source = "mine/1:5"
		once, err := j.Append(here)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := j.Append(here); err != nil || again {
			t.Errorf("recorded twice: %v, %v", again, err)
		}
		sub := j.Subscribe(time.Time{}, time.Unix(0, math.MaxInt64), nil)
		sub.past = true
		var replayed []Message
		for {
			m, err := sub.Next(context.Background())
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			replayed = append(replayed, m)
		}
		sub.Close()
		sorted := slices.IsSortedFunc(replayed, func(a, b Message) int {
			return int(max(-1, min(1, a.At().UnixNano()/2-b.At().UnixNano()/2)))
		})
		if !sorted {
			t.Errorf("not in the order of time: %v", replayed)
		}
		found := slices.ContainsFunc(replayed, func(m Message) bool { return m.Source == here.Source && m.Actor.ID == here.Actor.ID })
		if once && !found {
			t.Error("what was recorded is not replayed")
		}

		// A reader without an open journal finds the same events.
		read, err := ReadHistory(dir, time.Time{}, func(Message) bool { return true })
		if err != nil || len(read) < len(replayed) {
			t.Errorf("read %d events, replayed %d: %v", len(read), len(replayed), err)
		}
		// The next daemon knows exactly the sources that were recorded.
		seen := j.seen
		j.Close()
		next, err := Open(dir, Options{})
		if err != nil {
			t.Fatalf("open again: %v", err)
		}
		defer next.Close()
		if again, err := next.Append(here); err != nil || again {
			t.Errorf("recorded in another life: %v, %v", again, err)
		}
		if fmt.Sprint(seen) != fmt.Sprint(next.seen) {
			t.Errorf("sources were\n%v\nand are\n%v", seen, next.seen)
		}
	})
}

// FuzzLives opens a record of lives with any content.
func FuzzLives(f *testing.F) {
	for _, s := range []string{
		"", "{", `{"schema":1,"lives":[{"number":1,"start":"2026-01-01T00:00:00Z"}]}`, `{"schema":2,"lives":7}`, `{"schema":1,"lives":null}`,
		`{"schema":1,"lives":[{"number":18446744073709551615,"start":"9999-12-31T23:59:59Z","how":"?"}]}`, `[]`, `{"schema":"x"}`, `{"schema":-1}`,
		`{"schema":1,"lives":[{},{},{"pid":-1}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, LivesFile)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		read, readErr := ReadLives(dir)
		l, err := OpenLives(dir)
		if (err == nil) != (readErr == nil) {
			t.Errorf("open says %v, read says %v", err, readErr)
		}
		if err != nil {
			if now, _ := os.ReadFile(path); !bytes.Equal(now, text) {
				t.Error("a refused record was changed")
			}
			return
		}
		if a, b := fmt.Sprint(read.List()), fmt.Sprint(l.List()); a != b {
			t.Errorf("read %s, opened %s", a, b)
		}
		life, err := l.Begin(Life{Release: "1", Pid: 1, Start: noon})
		if err != nil || life.Number == 0 {
			t.Fatalf("%+v, %v", life, err)
		}
		for i, before := range l.List()[:len(l.List())-1] {
			if before.Number == life.Number {
				t.Errorf("the number %d is used again, first at %d", life.Number, i)
			}
		}
		if again, err := OpenLives(dir); err != nil || fmt.Sprint(again.List()) != fmt.Sprint(l.List()) {
			t.Errorf("written %v, read %v, %v", l.List(), again, err)
		}
	})
}
