// SPDX-License-Identifier: Apache-2.0

package event

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSourceIsReadAsDecodingTheLineReadsIt(t *testing.T) {
	odd := []string{"", "c1/2:3", `"source":"x`, `x"}`, "<&>", "\u2028", `back\slash`, "a}", `x,"source`, `x"source`}
	for _, source := range odd {
		for _, value := range odd {
			m := New("container", "die", "c1", map[string]string{"source": value, "zource": source, source: value, value: `"source":"` + source}, noon)
			m.Source = source
			text, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			if got := sourceOf(append(text, '\n')); got != source {
				t.Errorf("%q was read of %s", got, text)
			}
		}
	}
	for _, line := range []string{"\n", "{}\n", `garbage,"source":"x"}` + "\n", `{"source":"x","Type":"t"}` + "\n", `{"Type":"t","source":5}` + "\n"} {
		var m struct{ Source string }
		if json.Unmarshal([]byte(line), &m) != nil {
			m.Source = ""
		}
		if got := sourceOf([]byte(line)); got != m.Source {
			t.Errorf("%q was read of %s", got, line)
		}
	}
}

func TestLineLongerThanTheBufferIsReadWhole(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, 0)
	long := numbered(1)
	long.Actor.Attributes["label"] = strings.Repeat("x", 100<<10)
	long.Source = "c1/1:7"
	put(t, j, long)
	put(t, j, numbered(2))
	j.Close()
	j = open(t, dir, 0)
	if put(t, j, long) {
		t.Error("the long entry is recorded twice")
	}
	if n := j.Through("c1/1"); n != 0 {
		t.Errorf("only 7 is recorded, and Through is %d", n)
	}
	expect(t, past(t, j.Subscribe(noon, noon.Add(1<<40), nil)), "c1 c2")
	st, err := os.Stat(filepath.Join(dir, "00000001.jsonl"))
	if err != nil || st.Size() < 100<<10 {
		t.Errorf("the journal: %v, %v", st, err)
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	j := open(b, dir, 0)
	for i := range 20000 {
		m := numbered(i)
		if i%4 == 0 {
			m.Source = "c1/1:" + strings.Repeat("1", 1+i%7)
		}
		if _, err := j.Append(m); err != nil {
			b.Fatal(err)
		}
	}
	j.Close()
	for b.Loop() {
		j, err := Open(dir, Options{})
		if err != nil {
			b.Fatal(err)
		}
		j.Close()
	}
}
