// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"os"
	"testing"
)

// The owner appends one read at a time while the queue is not full, and the writer
// takes at its own pace. The bytes must come out unchanged, and the queue must stay
// bounded however many bytes pass.
func TestQueueKeepsAllBytesInOrderAndIsBounded(t *testing.T) {
	const bound = 1 << 20
	q := &queue{}
	put := func(p []byte) { to := q.tail(); *to = append(*to, p...) }
	in, out := sha256.New(), sha256.New()
	rnd := rand.New(rand.NewPCG(1, 2))
	chunk := make([]byte, 256<<10)
	total, most := 0, 0
	for total < 64<<20 {
		for !q.full(bound) && rnd.IntN(8) > 0 {
			p := chunk[:1+rnd.IntN(len(chunk))]
			for i := range p {
				p[i] = byte(total + i)
			}
			put(p)
			in.Write(p)
			total += len(p)
			most = max(most, len(q.mem))
		}
		p := q.next()
		out.Write(p)
		giveBack(p)
	}
	if limit := bound + len(chunk); most > limit || most < bound {
		t.Errorf("the queue had %d bytes, want at least %d and at most %d", most, bound, limit)
	}
	// The output that is left at the process's exit is put without backpressure.
	for range 8 {
		put(chunk)
		in.Write(chunk)
	}
	q.closed = true
	if q.full(bound) {
		t.Error("full after the end")
	}
	for !q.empty() {
		out.Write(q.next())
	}
	if !bytes.Equal(in.Sum(nil), out.Sum(nil)) {
		t.Error("the bytes that came out differ from those that went in")
	}
}

// An earlier release kept the backlog of a slow client in a file.
func TestBacklogOfAnEarlierReleaseIsReadInOrder(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("read" + "file "); err != nil {
		t.Fatal(err)
	}
	q := &queue{mem: []byte("memory "), file: f, rd: int64(len("read")), wr: int64(len("readfile "))}
	if !q.full(1 << 20) {
		t.Error("the queue is not full while its file is unread")
	}
	for _, p := range []string{"later ", "last"} {
		to := q.tail()
		*to = append(*to, p...)
	}
	q.closed = true
	var got []byte
	for !q.empty() {
		got = append(got, q.next()...)
	}
	if string(got) != "memory file later last" {
		t.Errorf("got %q", got)
	}
	if _, err := f.Stat(); err == nil {
		t.Error("the file is still open")
	}
}

// A session of an earlier release continues: with its file, with one that was read
// to the end, and with detach keys that were honoured without a terminal.
func TestSessionOfAnEarlierReleaseContinues(t *testing.T) {
	for name, tt := range map[string]struct {
		image Image
		file  string
		want  string
		typed string
	}{
		"file":                          {image: Image{File: 0, Sending: []byte("a"), Memory: []byte("b"), Read: 1, Written: 2, Later: []byte("d")}, file: "xc", want: "abcd"},
		"file that was read to the end": {image: Image{File: 0, Sending: []byte("a"), Memory: []byte("b"), Read: 1, Written: 1, Later: []byte("d")}, file: "x", want: "abd"},
		"keys without a terminal":       {image: Image{File: -1, Typed: []byte("t"), Keys: 1}, typed: "t\x10"},
	} {
		t.Run(name, func(t *testing.T) {
			client, fd := connect(t, "unix")
			defer client.Close()
			tt.image.Socket = fd
			if tt.image.File >= 0 {
				f, err := os.CreateTemp(t.TempDir(), "")
				if err != nil {
					t.Fatal(err)
				}
				f.WriteString(tt.file)
				tt.image.File = duplicate(t, f)
			}
			s, err := Resume(Options{Keys: []byte("\x10\x11")}, tt.image)
			if err != nil {
				t.Fatal(err)
			}
			p := newProcess(t)
			go s.Join(&inputEnd{pipe: p.pipe}, nil)
			shut(t, client)
			if got := all(t, p.reader); got != tt.typed {
				t.Errorf("the process got %q, want %q", got, tt.typed)
			}
			s.EndOutput()
			if got := all(t, client); got != tt.want {
				t.Errorf("the client got %q, want %q", got, tt.want)
			}
			<-s.Done()
		})
	}
}
