// SPDX-License-Identifier: Apache-2.0

package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/shim/proto"
)

func TestJournalSurvivesATornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	whole := `{"seq":1,"time":"2026-01-01T00:00:00Z","action":"start"}` + "\n"
	if err := os.WriteFile(path, []byte(whole+`{"seq":2,"ti`), 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := openJournal(path, true)
	if err != nil {
		t.Fatal(err)
	}
	e := proto.Entry{Action: "die"}
	if err := j.append(&e); err != nil || e.Seq != 2 {
		t.Fatalf("append: number %d, %v", e.Seq, err)
	}
	got := j.after(0)
	if len(got) != 2 || got[0].Action != "start" || got[1].Action != "die" {
		t.Errorf("entries: %+v", got)
	}
	if got := j.after(1); len(got) != 1 || got[0].Seq != 2 {
		t.Errorf("after 1: %+v", got)
	}
}

func TestJournalOfAnotherLifeIsNotContinued(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	if err := os.WriteFile(path, []byte(`{"seq":7,"action":"exited"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := openJournal(path, false)
	if err != nil {
		t.Fatal(err)
	}
	e := proto.Entry{Action: "start"}
	if err := j.append(&e); err != nil || e.Seq != 1 || len(j.after(0)) != 1 {
		t.Errorf("number %d, %v, entries %+v", e.Seq, err, j.after(0))
	}
}

func TestJournalGivesUpItsOlderHalfWhenItIsTooLong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, err := openJournal(path, false)
	if err != nil {
		t.Fatal(err)
	}
	pad := strings.Repeat("x", 10_000)
	const n = 1000 // more than twice the limit
	for range n {
		if err := j.append(&proto.Entry{Action: "exec_die", Attributes: map[string]string{"pad": pad}}); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Size() > journalLimit || st.Size() != j.size {
		t.Fatalf("size: %v, %v", st, err)
	}
	got := j.after(0)
	if len(got) < 100 || got[len(got)-1].Seq != n {
		t.Fatalf("%d entries", len(got))
	}
	for i, e := range got[1:] {
		if e.Seq != got[i].Seq+1 {
			t.Fatalf("entry %d follows %d", e.Seq, got[i].Seq)
		}
	}
}

// A journal that a daemon has read stays short. What the next daemon needs is still in
// it: entries that no daemon has recorded, and the last start or end of a run, from which
// it is known whether the end of a killed shim's run was reported.
func TestJournalGivesUpWhatADaemonHas(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, err := openJournal(path, false)
	if err != nil {
		t.Fatal(err)
	}
	add := func(action string) uint64 {
		t.Helper()
		e := proto.Entry{Action: action, Attributes: map[string]string{"pad": strings.Repeat("x", 200)}}
		if err := j.append(&e); err != nil {
			t.Fatal(err)
		}
		return e.Seq
	}
	add(proto.ActionStart)
	died := add(proto.ActionDie)
	for range 1000 {
		seq := add("exec_die")
		if err := j.discard(seq - 2); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(path); err != nil || st.Size() != j.size || st.Size() > 2*journalTidy {
			t.Fatalf("after entry %d: %v, %v", seq, st, err)
		}
	}
	check := func(j *journal) {
		t.Helper()
		got := j.after(0)
		if len(got) < 3 || got[0].Seq != died || got[0].Action != proto.ActionDie || got[len(got)-1].Seq != 1002 {
			t.Fatalf("%d entries: %+v", len(got), got)
		}
		for i, e := range got[2:] {
			if e.Seq != got[i+1].Seq+1 {
				t.Errorf("entry %d follows %d", e.Seq, got[i+1].Seq)
			}
		}
	}
	check(j)
	before := j.size
	for _, seq := range []uint64{0, 900, 5000} {
		if err := j.discard(seq); err != nil || j.size != before {
			t.Errorf("discard(%d) in a journal of %d entries: %d bytes are left of %d, %v", seq, j.seq, j.size, before, err)
		}
	}
	again, err := openJournal(path, true)
	if err != nil || again.seq != j.seq {
		t.Fatalf("opened again: %v", err)
	}
	check(again)
}

// A new shim of a life never gives a number twice, because the next daemon would take the
// second entry for the first.
func TestNumbersOfAJournalThatLostItsEndGoOn(t *testing.T) {
	dir := t.TempDir()
	boot := &proto.Bootstrap{ID: "abc", Life: 3, RunDir: dir}
	state, err := proto.Marshal(&proto.State{Schema: proto.StateSchema, ID: "abc", Life: 3, Seq: 7})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, proto.StateFile), state, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, adopt := range []*proto.Adopt{nil, {}} {
		boot.Adopt = adopt
		r, err := newRecord(boot)
		if err != nil {
			t.Fatal(err)
		}
		want := r.st.Seq + 1
		if got := r.change(func(*proto.State) {}, note{action: "pause"}).Seq; r.st.Seq < 8 || got != want {
			t.Errorf("after entry 7, with adopt %v: entry %d", adopt != nil, got)
		}
	}
}

func TestExitCodeOfAStartThatFailed(t *testing.T) {
	for msg, want := range map[string]int{
		`unable to start container process: exec: "x": executable file not found in $PATH`:  127,
		`unable to start container process: exec: "/x": stat /x: no such file or directory`: 127,
		`unable to start container process: exec: "/x": permission denied`:                  126,
		`unable to start container process: exec: "/x": is a directory`:                     126,
		`exec /x: exec format error`:                                    126,
		`unable to apply cgroup configuration: device or resource busy`: 125,
	} {
		if got := startExitCode(msg); got != want {
			t.Errorf("%s: %d, want %d", msg, got, want)
		}
	}
}

func TestRuntimesLastErrorIsTheMessage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log := `{"level":"warning","msg":"cgroup is odd"}
{"level":"error","msg":"first"}
not json
{"level":"error","msg":"runc run failed: last\n"}
{"level":"info","msg":"bye"}
{"level":"err`
	if err := os.WriteFile(path, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := lastError(path); got != "runc run failed: last" {
		t.Errorf("got %q", got)
	}
}

func TestOnlyAPidNamespaceOfItsOwnIsPrivate(t *testing.T) {
	for config, want := range map[string]bool{
		`{"linux":{"namespaces":[{"type":"pid"},{"type":"mount"}]}}`:           true,
		`{"namespaces": [{"type": "network", "path": "/n"}, {"type": "pid"}]}`: true,
		`{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}`:              false,
		`{"namespaces":[{"path":"/proc/1/ns/pid","type":"pid"}]}`:              false,
		`{"namespaces":[{"type":"mount"}]}`:                                    false,
		`{"type":"pid"`:                                                        false,
		``:                                                                     false,
	} {
		if got := privatePids([]byte(config)); got != want {
			t.Errorf("%s: %v", config, got)
		}
	}
}

func TestStartTimeIsFoundBehindAnyCommandName(t *testing.T) {
	stat := "77 (a) b (c) S 1 77 77 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 123456 0 0"
	if got := parseStartTime([]byte(stat)); got != 123456 {
		t.Errorf("got %d", got)
	}
	if got := parseStartTime([]byte("77 (x) S 1")); got != 0 {
		t.Errorf("of a short line: %d", got)
	}
	if startTime(os.Getpid()) == 0 {
		t.Error("of this process: 0")
	}
}
