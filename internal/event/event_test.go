// SPDX-License-Identifier: Apache-2.0

package event

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

func open(t testing.TB, dir string, max int64) *Journal {
	t.Helper()
	j, err := Open(dir, Options{MaxBytes: max})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func numbered(i int) Message {
	return New("container", "start", fmt.Sprintf("c%d", i), map[string]string{"name": "web"}, noon.Add(time.Duration(i)*time.Second))
}

func put(t testing.TB, j *Journal, m Message) bool {
	t.Helper()
	ok, err := j.Append(m)
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// past reads a subscription to its end.
func past(t testing.TB, s *Subscription) (ids []string) {
	t.Helper()
	ctx := within(t)
	for {
		m, err := s.Next(ctx)
		if err == io.EOF {
			return ids
		}
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, m.Actor.ID)
	}
}

func next(t testing.TB, s *Subscription, id string) {
	t.Helper()
	m, err := s.Next(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if m.Actor.ID != id {
		t.Fatalf("got %s, want %s", m.Actor.ID, id)
	}
}

func expect(t testing.TB, got []string, want string) {
	t.Helper()
	if g := strings.Join(got, " "); g != want {
		t.Fatalf("got %q, want %q", g, want)
	}
}

func TestMessageHasTheAPIsForm(t *testing.T) {
	b, err := json.Marshal(numbered(1))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"Type":"container","Action":"start","Actor":{"ID":"c1","Attributes":{"name":"web"}},"scope":"local","time":1772625601,"timeNano":1772625601000000000}`
	if string(b) != want {
		t.Errorf("\n got %s\nwant %s", b, want)
	}
}

func TestReplayIsOrderedByTimeAndBounded(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, 0)
	for _, i := range []int{1, 2, 5, 6, 3, 4} { // 3 and 4 are recorded late
		put(t, j, numbered(i))
	}
	at := func(i int) time.Time { return noon.Add(time.Duration(i) * time.Second) }
	for range 2 {
		expect(t, past(t, j.Subscribe(at(0), at(10), nil)), "c1 c2 c3 c4 c5 c6")
		expect(t, past(t, j.Subscribe(at(2), at(4), nil)), "c2 c3 c4")
		expect(t, past(t, j.Subscribe(time.Time{}, at(2), nil)), "c1 c2")
		expect(t, past(t, j.Subscribe(at(1), at(9), func(m Message) bool { return m.Actor.ID != "c5" })), "c1 c2 c3 c4 c6")
		j.Close()
		j = open(t, dir, 0)
	}
}

func TestFollowBeginsWhereTheReplayEnds(t *testing.T) {
	j := open(t, t.TempDir(), 0)
	put(t, j, numbered(1))
	live := j.Subscribe(time.Time{}, time.Time{}, nil)
	defer live.Close()
	all := j.Subscribe(noon, time.Time{}, nil)
	defer all.Close()
	put(t, j, numbered(2))
	next(t, all, "c1")
	next(t, all, "c2")
	next(t, live, "c2")
	go j.Append(numbered(3))
	next(t, all, "c3")
	next(t, live, "c3")
}

func TestEachSourceIsRecordedOnce(t *testing.T) {
	dir := t.TempDir()
	from := func(seq int) Message {
		m := numbered(seq)
		m.Source = fmt.Sprintf("abc/1:%d", seq)
		return m
	}
	j := open(t, dir, 0)
	for _, seq := range []int{1, 2, 4} {
		if !put(t, j, from(seq)) {
			t.Errorf("%d was not recorded", seq)
		}
	}
	for range 2 {
		for _, seq := range []int{1, 2, 4} {
			if put(t, j, from(seq)) {
				t.Errorf("%d was recorded twice", seq)
			}
		}
		if n := j.Through("abc/1"); n != 2 {
			t.Errorf("1, 2 and 4 are recorded, and Through is %d", n)
		}
		if n := j.Through("abc/2"); n != 0 {
			t.Errorf("Through of a stream without entries is %d", n)
		}
		j.Close()
		j = open(t, dir, 0)
	}
	if !put(t, j, from(3)) || j.Through("abc/1") != 4 {
		t.Error("3 was not recorded")
	}
	expect(t, past(t, j.Subscribe(noon, noon.Add(time.Hour), nil)), "c1 c2 c3 c4")
}

func TestSourcesOutliveTheSegmentTheyAreIn(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, 20_000)
	m := numbered(0)
	m.Source = "abc/1:1"
	put(t, j, m)
	for i := 1; i < 1000; i++ {
		put(t, j, numbered(i))
	}
	j.Close()
	size := int64(0)
	files, _ := os.ReadDir(dir)
	for _, f := range files {
		st, _ := f.Info()
		size += st.Size()
	}
	if size > 25_000 {
		t.Errorf("%d bytes are kept", size)
	}
	j = open(t, dir, 20_000)
	ids := past(t, j.Subscribe(noon, noon.Add(time.Hour), nil))
	if len(ids) < 20 || ids[len(ids)-1] != "c999" || ids[0] == "c0" {
		t.Errorf("%d events are kept, %v", len(ids), ids[:min(len(ids), 3)])
	}
	if put(t, j, m) {
		t.Error("an event whose segment is gone was recorded again")
	}
	j.Forget("abc/")
	if !put(t, j, m) {
		t.Error("an event of a forgotten source was not recorded")
	}
}

func TestSlowSubscriberBlocksNoAppend(t *testing.T) {
	j := open(t, t.TempDir(), 1<<20)
	const subscribers, events = 5, 3000
	var subs []*Subscription
	for range subscribers {
		s := j.Subscribe(time.Time{}, time.Time{}, nil)
		defer s.Close()
		subs = append(subs, s)
	}
	// No subscriber reads yet.
	for i := range events {
		put(t, j, numbered(i))
	}
	for _, s := range subs {
		for i := range events {
			next(t, s, fmt.Sprintf("c%d", i))
		}
	}
}

func TestSubscribersSeeEachEventOnceOverSegments(t *testing.T) {
	j := open(t, t.TempDir(), 1<<20)
	const events = 5000
	ctx := within(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			seen := map[string]int{}
			var s *Subscription
			for len(seen) < events {
				if s == nil {
					s = j.Subscribe(noon, time.Time{}, nil)
				}
				m, err := s.Next(ctx)
				if err != nil {
					t.Errorf("after %d events: %v", len(seen), err)
					break
				}
				if seen[m.Actor.ID]++; seen[m.Actor.ID] > 1 {
					t.Errorf("%s came twice", m.Actor.ID)
					break
				}
				// Subscribe anew from time to time, while events are being
				// recorded.
				if rand.IntN(2000) == 0 {
					s.Close()
					s, seen = nil, map[string]int{}
				}
			}
			if s != nil {
				s.Close()
			}
		}()
	}
	for i := range events {
		put(t, j, numbered(i))
	}
	wg.Wait()
}

func TestSubscriptionEndsAtUntilWithContextAndWithTheJournal(t *testing.T) {
	j := open(t, t.TempDir(), 0)
	s := j.Subscribe(time.Time{}, time.Now().Add(time.Millisecond), nil)
	if _, err := s.Next(within(t)); err != io.EOF {
		t.Errorf("until: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s = j.Subscribe(time.Time{}, time.Time{}, nil)
	go cancel()
	if _, err := s.Next(ctx); err != context.Canceled {
		t.Errorf("context: %v", err)
	}
	go j.Close()
	if _, err := s.Next(within(t)); err != ErrClosed {
		t.Errorf("journal: %v", err)
	}
	if _, err := j.Append(numbered(1)); err != ErrClosed {
		t.Errorf("append: %v", err)
	}
}

func TestTornTailIsCutOff(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, 0)
	put(t, j, numbered(1))
	path := j.segments[0].path
	j.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := 0; cut < len(whole); cut++ {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		j := open(t, dir, 0)
		put(t, j, numbered(2))
		expect(t, past(t, j.Subscribe(noon, noon.Add(time.Hour), nil)), "c2")
		j.Close()
		for i := uint64(2); i < 5; i++ {
			os.Remove(filepath.Join(dir, fmt.Sprintf("%08d.jsonl", i)))
		}
	}
}

func TestNewerSegmentIsRefusedByName(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "00000001.jsonl")
	if err := os.WriteFile(path, []byte(`{"schema":7}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(dir, Options{})
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "schema is 7, this release reads up to 1") {
		t.Errorf("got %v", err)
	}
}

// TestKilledProcessLosesNoEvent: another process records events, acknowledges
// each, and is killed.
func TestKilledProcessLosesNoEvent(t *testing.T) {
	if dir := os.Getenv("EVENT_TEST_DIR"); dir != "" {
		j, err := Open(dir, Options{})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		for i := 0; ; i++ {
			if _, err := j.Append(numbered(i)); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			fmt.Println(i)
		}
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestKilledProcessLosesNoEvent$")
	cmd.Env = append(os.Environ(), "EVENT_TEST_DIR="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	last := -1
	for last < 500 {
		if _, err := fmt.Fscanln(out, &last); err != nil {
			t.Fatal(err)
		}
	}
	cmd.Process.Kill()
	for {
		if _, err := fmt.Fscanln(out, &last); err != nil {
			break
		}
	}
	cmd.Wait()
	ids := past(t, open(t, dir, 0).Subscribe(noon, noon.Add(24*time.Hour), nil))
	if len(ids) < last+1 {
		t.Fatalf("%d events, %d were acknowledged", len(ids), last+1)
	}
	for i, id := range ids {
		if id != fmt.Sprintf("c%d", i) {
			t.Fatalf("event %d is %s", i, id)
		}
	}
}

func TestLivesTellCleanEndsFromCrashes(t *testing.T) {
	dir := t.TempDir()
	begin := func(boot string, hour int) {
		t.Helper()
		l, err := OpenLives(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Begin(Life{BootID: boot, Pid: hour, Start: noon.Add(time.Duration(hour) * time.Hour)}); err != nil {
			t.Fatal(err)
		}
		if hour == 1 {
			if err := l.End(EndClean, noon.Add(90*time.Minute), false); err != nil {
				t.Fatal(err)
			}
		}
	}
	begin("a", 1)
	begin("a", 2)
	begin("a", 3)
	begin("b", 4)
	l, err := OpenLives(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, life := range l.List() {
		got = append(got, fmt.Sprintf("%d:%s", life.Number, life.How))
	}
	expect(t, got, "1:clean 2:crash 3:reboot 4:")
	if n := len(l.Since(noon.Add(150 * time.Minute))); n != 3 {
		t.Errorf("something that began in life 2 has seen %d lives, want 3", n)
	}
}

func TestDamagedRecordOfLivesIsKeptAside(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, LivesFile), []byte(`{"schema":1,"li`), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := OpenLives(dir)
	if err != nil || len(l.List()) != 0 {
		t.Fatalf("%v, %v", l, err)
	}
	aside := filepath.Join(dir, LivesFile+".damaged")
	if _, err := os.Stat(aside); err != nil || l.SetAside() != aside {
		t.Errorf("%v; set aside as %q", err, l.SetAside())
	}
	if l, err = OpenLives(dir); err != nil || l.SetAside() != "" {
		t.Errorf("%v; set aside as %q again", err, l.SetAside())
	}
}

func TestDamagedSegmentIsNamedAndItsEventsAreRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "00000001"+segmentSuffix)
	const head, line = `{"schema":1}` + "\n", `{"Type":"container","Action":"start","timeNano":5}` + "\n"
	for name, c := range map[string]struct {
		text    string
		damaged bool
	}{
		"whole":              {head + line + line, false},
		"without a head":     {line + line, true},
		"empty":              {"", true},
		"zeros in it":        {head + line + "\x00\x00\x00\n" + line, true},
		"zeros at its end":   {head + line + "\x00\x00\x00", true},
		"with half an event": {head + line + line[:20], true},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			j, err := Open(dir, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			if got := slices.Contains(j.Damaged(), path); got != c.damaged {
				t.Errorf("damaged %v, want %v", got, c.damaged)
			}
		})
		for _, extra := range []string{"00000002", "00000003"} {
			os.Remove(filepath.Join(dir, extra+segmentSuffix))
		}
	}
}

func FuzzSourcesAreASet(f *testing.F) {
	f.Add([]byte{1, 2, 3, 9, 8, 7, 5, 5, 4})
	f.Add([]byte{255, 0, 255, 1, 254, 253, 0})
	// Numbers at both ends of the range of uint64.
	number := func(b byte) uint64 { return uint64(int64(int8(b))) }
	f.Fuzz(func(t *testing.T, in []byte) {
		s, want := sources{}, map[uint64]bool{}
		for _, b := range in {
			s.add(fmt.Sprintf("a:%d", number(b)))
			want[number(b)] = true
		}
		for b := range 256 {
			if n := number(byte(b)); s.has(fmt.Sprintf("a:%d", n)) != want[n] {
				t.Fatalf("%d after %v: %v", n, in, s)
			}
		}
		for i := 1; i < len(s["a"]); i++ {
			if before := s["a"][i-1].Last; before == math.MaxUint64 || s["a"][i].First <= before+1 {
				t.Fatalf("not joined: %v", s)
			}
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	j := open(b, b.TempDir(), 0)
	for i := 0; b.Loop(); i++ {
		put(b, j, numbered(i))
	}
}
