package server

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"os"
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

// A writer puts without ever waiting, a reader takes at its own pace: what
// comes out is what went in, through memory and file and back to memory.
func TestBacklogKeepsAllBytesInOrder(t *testing.T) {
	dir := t.TempDir()
	b := newBacklog(dir)
	in, out := sha256.New(), sha256.New()
	rnd := rand.New(rand.NewPCG(1, 2))
	total := 0
	chunk := make([]byte, 64<<10)
	put := func(bytes int) {
		for end := total + bytes; total < end; {
			p := chunk[:1+rnd.IntN(len(chunk))]
			for i := range p {
				p[i] = byte(total + i)
			}
			if err := b.put([]byte("head"), p); err != nil {
				t.Fatal(err)
			}
			in.Write([]byte("head"))
			in.Write(p)
			total += len(p)
		}
	}
	var spent []byte
	take := func(n int) {
		for range n {
			spent = b.take(spent)
			out.Write(spent)
		}
	}
	put(8 << 20)
	if b.wr == 0 || len(b.mem) > backlogMemory {
		t.Fatalf("nothing went to the file: %d bytes in memory", len(b.mem))
	}
	take(20)
	put(1 << 20) // still through the file
	for b.wr > 0 {
		take(1)
	}
	put(200 << 10)
	if b.wr != 0 {
		t.Error("a reader that caught up is still served through the file")
	}
	b.last([]byte("end"))
	in.Write([]byte("end"))
	if err := b.put(nil, []byte("late")); err == nil {
		t.Error("took bytes after the end")
	}
	for spent = b.take(spent); spent != nil; spent = b.take(spent) {
		out.Write(spent)
	}
	if !bytes.Equal(in.Sum(nil), out.Sum(nil)) {
		t.Error("other bytes came out than went in")
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left in the directory: %v", left)
	}
}

func TestBacklogThatCannotSpillRefuses(t *testing.T) {
	b := newBacklog("/nonexistent")
	p := make([]byte, 300<<10)
	for range 3 {
		if err := b.put(nil, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.put(nil, p); err == nil {
		t.Fatal("took more than memory holds without a file")
	}
	b.last([]byte("farewell"))
	n := 0
	for q := b.take(nil); q != nil; q = b.take(q) {
		n += len(q)
	}
	if want := 3*len(p) + len("farewell"); n != want {
		t.Errorf("%d bytes came out, want %d", n, want)
	}
}

// take waits for bytes; nil is the end.
func (b *backlog) take(spent []byte) []byte {
	if !b.wait(false) {
		return nil
	}
	return b.next(spent)
}
