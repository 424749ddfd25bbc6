// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/logs/format"
	"holdfast/internal/shim/proto"
)

// text returns the lines of a log and its rotated files, without timestamps.
func text(t *testing.T, path string) string {
	t.Helper()
	var out strings.Builder
	dec := format.NewDecoder("json-file", nil)
	for _, p := range []string{path + ".6", path + ".5", path + ".4", path + ".3", path + ".2", path + ".1", path} {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		for len(b) > 0 {
			n, err := dec.Record(b)
			if err != nil || n == 0 {
				t.Fatalf("%s: %q %v", p, b, err)
			}
			line, _ := dec.Decode(b[:n])
			out.Write(line.Line)
			b = b[n:]
		}
	}
	return out.String()
}

// If the shim is killed at any instruction of a move, every byte is logged exactly
// once.
func TestLedgerGoesOnAfterAKillInAnyPhase(t *testing.T) {
	const before, end = "one\nbeg", "two\nthree\nhalf"
	chunks := map[int64]string{0: "un\n" + end, 120: "un\n" + end, // a rotation within the chunk
		-1: "un\n" + strings.Repeat("a line of a burst\n", 5000) + end, 100_000: "un\n" + strings.Repeat("a line of a burst\n", 5000) + end}
	for _, terminal := range []bool{false, true} {
		for maxSize, chunk := range chunks {
			for _, at := range []string{"idle", "taking", "read", "taken", "written in part", "written", "torn", "committed"} {
				t.Run(fmt.Sprintf("%s terminal=%v max=%d", at, terminal, maxSize), func(t *testing.T) {
					dir := t.TempDir()
					cfg := format.Config{Path: filepath.Join(dir, "log"), MaxSize: maxSize, MaxFiles: 7}
					log, err := format.Open(cfg)
					if err != nil {
						t.Fatal(err)
					}
					l, err := openLedger(dir, false)
					if err != nil {
						t.Fatal(err)
					}
					now := time.Unix(1_700_000_000, 5)
					move := func(p string, until string) {
						inode, size := log.Position()
						room := l.begin(format.Stdout, len(p), now, inode, size, terminal)
						if until == "taking" {
							return
						}
						copy(room, p)
						if until == "read" {
							return
						}
						l.took(len(p))
						if until == "taken" {
							return
						}
						if until == "written in part" {
							// These are the first records of the whole chunk.
							log.Write(format.Stdout, now, []byte(p[:strings.Index(p, "three")]))
							return
						}
						log.Write(format.Stdout, now, []byte(p))
						if until == "torn" {
							f, _ := os.OpenFile(cfg.Path, os.O_WRONLY|os.O_APPEND, 0)
							f.WriteString(`{"log":"th`)
							f.Close()
						}
						if until != "committed" && until != "" {
							return
						}
						l.commit(log)
					}
					move(before, "")
					if at != "idle" {
						move(chunk, at)
					}
					// The kill: nothing is flushed or closed. What follows is the next
					// shim.
					again, err := format.Open(cfg)
					if err != nil {
						t.Fatal(err)
					}
					l2, err := openLedger(dir, true)
					if err != nil {
						t.Fatal(err)
					}
					if err := l2.restore(again); err != nil {
						t.Fatal(err)
					}
					want := before
					if at != "idle" && at != "taking" {
						want += chunk
					}
					again.Write(format.Stdout, now, []byte(" end\n"))
					if got := text(t, cfg.Path); got != want+" end\n" {
						t.Errorf("got %q, want %q", got, want+" end\n")
					}
					l.close()
					l2.close()
				})
			}
		}
	}
}

// A read of a terminal may return fewer bytes than were available.
func TestLedgerFindsOutHowMuchATerminalGave(t *testing.T) {
	l, err := openLedger(t.TempDir(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	p := l.begin(format.Stdout, 1000, time.Now(), 0, 0, true)
	copy(p, "only these")
	if got := l.unfinished(); string(got) != "only these" {
		t.Errorf("%q", got)
	}
}

func TestLedgerGivesBackWhatABurstTook(t *testing.T) {
	dir := t.TempDir()
	l, err := openLedger(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	blocks := func() int64 {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, proto.LedgerFile), &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	small := blocks()
	for _, size := range []int{readSize, burstSize} {
		p := l.begin(format.Stdout, size, time.Now(), 0, 0, false)
		if len(p) != size {
			t.Fatal(len(p))
		}
		copy(p, bytes.Repeat([]byte("x"), len(p)))
		l.took(len(p))
		if blocks() < small+int64(size)/2 {
			t.Fatal("no blocks were allocated")
		}
		l.setPhase(l.valid(), phaseIdle)
		l.shrink()
		if got := blocks(); got != small {
			t.Errorf("%d bytes are allocated, want %d", got, small)
		}
		// Releases without long entries accept only this size.
		if st, err := os.Stat(filepath.Join(dir, proto.LedgerFile)); err != nil || st.Size() != ledgerSize {
			t.Errorf("%d bytes long, want %d: %v", st.Size(), ledgerSize, err)
		}
	}
}

func TestDamagedLedgerIsNotUsed(t *testing.T) {
	for name, content := range map[string]string{"cut short": ledgerMagic, "of another kind": strings.Repeat("x", ledgerSize), "empty": ""} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, proto.LedgerFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err := openLedger(dir, true); err == nil {
			l.close()
			t.Errorf("%s: opened", name)
		}
	}
	// An entry with invalid numbers is ignored.
	l, err := openLedger(t.TempDir(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	l.begin(format.Stdout, 10, time.Now(), 0, 0, false)
	l.took(5)
	l.put(atGot, 1<<40)
	if p := l.unfinished(); p != nil {
		t.Errorf("%d bytes", len(p))
	}
	l.put(atWant, 1<<40)
	if p := l.unfinished(); p != nil {
		t.Errorf("%d bytes", len(p))
	}
}

func TestZombieTellsItsExitStatus(t *testing.T) {
	stat := func(state, code string) []byte {
		return []byte("12 (a ) b) " + state + " 1 12 12 0 -1 4194316 0 0 0 0 0 0 0 0 20 0 1 0 777 0 0 18446744073709551615 0 0 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 " + code + "\n")
	}
	if st, ok := parseZombie(stat("Z", "1792")); !ok || st.ExitStatus() != 7 {
		t.Errorf("%v %v", st, ok)
	}
	if st, ok := parseZombie(stat("Z", "9")); !ok || !st.Signaled() || st.Signal() != 9 {
		t.Errorf("%v %v", st, ok)
	}
	if _, ok := parseZombie(stat("S", "0")); ok {
		t.Error("a living process has an exit status")
	}
	if got := parseStartTime(stat("Z", "0")); got != 777 {
		t.Errorf("start %d", got)
	}
}

func TestGateLetsThoseInsideOutAndNobodyIn(t *testing.T) {
	g := newGate()
	g.enter()
	shut := make(chan bool)
	go func() { shut <- g.close(10 * time.Second) }()
	<-g.closing()
	entered := make(chan struct{})
	go func() { g.enter(); close(entered) }()
	g.leave()
	if !<-shut {
		t.Fatal("not shut")
	}
	select {
	case <-entered:
		t.Fatal("entered a shut gate")
	default:
	}
	if g.close(time.Second) {
		t.Error("a shut gate was shut again")
	}
	g.open()
	<-entered
	if g.close(time.Millisecond) {
		t.Error("the gate was shut with an operation inside")
	}
	g.enter() // a failed close leaves the gate open
}
