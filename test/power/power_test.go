// SPDX-License-Identifier: Apache-2.0

package power

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"holdfast/test/kit"
	"holdfast/test/power/disk"
)

var (
	seedFlag = flag.Uint64("seed", 0, "seed of what clients do and of the cuts; 0 takes one of the clock")
	timeFlag = flag.Duration("time", 25*time.Second, "how long to record and cut")
	fsFlag   = flag.String("fs", "ext4", "file system of the disk; all of them in turns if empty")
	opsFlag  = flag.Int("ops", 36, "operations in a recording")
	cutsFlag = flag.Int("cuts", 60, "cuts of a recording")
	keepFlag = flag.String("keep", "", "folder for the disks of cuts that fail")
	playFlag = flag.String("replay", "", "only play a cut that was kept: the path of its .json")
)

const baseTag = "base:1"

// recording is a run of clients on a machine.
type recording struct {
	log    *disk.Log
	ledger *ledger
	known  contents
}

// trouble is how a disk fails after a third of a recording's operations: so many of a
// hundred writes, for some time or for good.
type trouble struct {
	percent int
	lasts   time.Duration // 0 is for good
}

// record runs clients on a machine and records what reaches the disk, which may fail.
func (m *machine) record(r *rand.Rand, operations int, fails trouble) *recording {
	t := m.t
	t.Helper()
	path := m.d.Root + "/empty"
	m.fs.make(t, path)
	rec, err := disk.Record(path, m.fs.whole)
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	shut := func() {
		if closed {
			return
		}
		closed = true
		m.off()
		if err := rec.Close(); err != nil {
			t.Errorf("close the recorder: %v", err)
		}
	}
	t.Cleanup(shut)
	if err := m.boot(rec.Device()); err != nil {
		t.Fatal(err)
	}
	l := newLedger(rec.Position)
	shared := &contentTable{byID: contents{}, tags: map[string]string{}}
	api := m.d.Client()
	ctx := context.Background()

	img, f := newImage(t, r, "base")
	const workers = 3
	o := l.ask("tag "+baseTag, anything)
	if err := load(ctx, api, kit.Archive(t, baseTag, img)); err != nil {
		t.Fatal(err)
	}
	first := &worker{t: t, api: api, shared: shared, l: l}
	if err := first.hasImage(ctx, o, baseTag, f); err != nil {
		t.Fatal(err)
	}
	if fails.percent > 0 {
		first.r, first.name = rand.New(rand.NewPCG(r.Uint64(), workers)), "z"
		for running := false; !running; _, running = first.runner() {
			if err := errors.Join(first.create(ctx), first.start(ctx)); err != nil {
				t.Fatal(err)
			}
		}
	}
	registry := kit.StartRegistry(t, nil)
	defer m.forward(registry.Host).Close()
	users := []*worker{first}
	var wg sync.WaitGroup
	var failed, troubled atomic.Bool
	var steps, refused atomic.Int64
	for n := range workers {
		w := &worker{t: t, api: api, shared: shared, l: l, r: rand.New(rand.NewPCG(r.Uint64(), uint64(n))), name: string(rune('a' + n)), from: registry, troubled: &troubled}
		users = append(users, w)
		wg.Go(func() {
			for range operations / workers {
				if steps.Add(1) == int64(operations/3) && fails.percent > 0 {
					troubled.Store(true)
					rec.Fail(fails.percent)
					if fails.lasts > 0 {
						time.AfterFunc(fails.lasts, func() { rec.Fail(0) })
					}
				}
				err := w.step(ctx)
				if err != nil && troubled.Load() && !errors.Is(err, context.DeadlineExceeded) {
					refused.Add(1)
					continue
				}
				if err != nil {
					t.Errorf("client %s: %v", w.name, err)
					failed.Store(true)
					return
				}
			}
		})
	}
	wg.Wait()
	if troubled.Load() {
		t.Logf("%d writes failed, and %d operations were refused", rec.Failed(), refused.Load())
		if rec.Failed() == 0 {
			t.Error("no write failed")
		}
		m.survived(users)
	}
	out := &recording{log: rec.Log(), ledger: l, known: shared.byID}
	shut()
	// Cuts that failed before do not matter here.
	if failed.Load() {
		t.FailNow()
	}
	return out
}

// survived checks that containers can be seen and stopped although the disk has failed.
func (m *machine) survived(users []*worker) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, w := range users {
		if _, err := w.api.ContainerList(ctx, client.ContainerListOptions{}); err != nil {
			m.t.Errorf("the daemon has not survived its disk: %v\n%s", err, m.d.Log())
			return
		}
		c, ok := w.runner()
		if w == users[0] && !ok {
			m.t.Error("no container runs that could be stopped")
		}
		if !ok {
			continue
		}
		w.l.ask(c.is("life"), anything, c.is("exit"), anything, c.is("finished"), anything)
		if _, err := w.api.ContainerStop(ctx, c.id, client.ContainerStopOptions{}); err != nil && !errdefs.IsNotFound(err) {
			m.t.Errorf("a container can't be stopped: %v", err)
		}
	}
}

// cut is a place where the power is lost, and what is lost with it.
type cut struct {
	at   int
	fate disk.Fate
}

// cuts picks n places: after answers, at flushes and anywhere.
func (rec *recording) cuts(r *rand.Rand, n int) []cut {
	answers := rec.ledger.answers()
	var flushes []int
	for i, q := range rec.log.Requests {
		if q.IsFlush() {
			flushes = append(flushes, i, i+1)
		}
	}
	var out []cut
	for len(out) < n {
		c := cut{r.IntN(len(rec.log.Requests) + 1), disk.AnyFate(r)}
		switch r.IntN(3) {
		case 0:
			// What was promised just now must be there.
			c.at, _ = pick(r, answers)
			if r.IntN(2) == 0 {
				c.fate = disk.DropAll
			}
		case 1:
			c.at, _ = pick(r, flushes)
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b cut) int { return a.at - b.at })
	return out
}

// play boots a machine with a content of the disk, and returns what is not as
// clients know it.
func (m *machine) play(c disk.Content, size int64, want expectation, known contents) (found []string, err error) {
	img, err := disk.Load(c, size)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	defer m.off()
	if err := m.boot(img.Device()); err != nil {
		return []string{fmt.Sprintf("the daemon does not start: %v", err)}, nil
	}
	api, err := client.New(client.WithHost(m.d.Host))
	if err != nil {
		return nil, err
	}
	defer api.Close()
	i := &inspection{m: m, api: api, want: want, known: known}
	if err := i.all(context.Background()); err != nil {
		i.wrong("the daemon can't be asked: %v", err)
	}
	if len(i.found) > 0 {
		m.t.Logf("log of the daemon:\n%s", m.d.Log())
	}
	return i.found, nil
}

// kept is a cut that failed, for a replay. The disk is beside it.
type kept struct {
	Filesystem string
	Seed       uint64
	At         int
	Fate       string
	Want       expectation
	Known      contents
	Found      []string
}

// keep stores a cut with its disk.
func (k kept) keep(t testing.TB, c disk.Content, size int64) {
	t.Helper()
	base := filepath.Join(*keepFlag, fmt.Sprintf("%s-%d-%d", k.Filesystem, k.Seed, k.At))
	text, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(os.MkdirAll(*keepFlag, 0o700), os.WriteFile(base+".json", text, 0o600), c.Store(base+".img", size))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("kept as %s.json", base)
}

// keptMost bounds how many disks a run keeps.
const keptMost = 5

// TestNothingAcknowledgedIsLostWithThePower records what reaches the disk while
// clients work, and starts a daemon on what the disk may hold when the power is
// lost at any moment.
func TestNothingAcknowledgedIsLostWithThePower(t *testing.T) {
	if *playFlag != "" {
		replay(t, *playFlag)
		return
	}
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	on := chosen(t)
	for _, fs := range on {
		t.Run(fs.name, func(t *testing.T) {
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			m := newMachine(t, fs, nil)
			s := &session{m: m, seed: seed, kinds: map[string]int{}, until: time.Now().Add(*timeFlag / time.Duration(len(on)))}
			for first := true; first || time.Now().Before(s.until); first = false {
				s.round(r, first)
			}
			t.Logf("%d cuts of %d recordings with %d requests played", s.played, s.recordings, s.requests)
			for _, k := range slices.Sorted(maps.Keys(s.kinds)) {
				t.Logf("%3d × %s", s.kinds[k], k)
			}
		})
	}
}

// TestNothingAcknowledgedIsLostWithAFailingDisk lets writes fail with EIO while clients
// work: the daemon lives on and says what can't be done, and all that it has
// acknowledged is there when the machine boots again.
func TestNothingAcknowledgedIsLostWithAFailingDisk(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	for _, fs := range chosen(t) {
		for _, fails := range []trouble{{100, 0}, {100, 300 * time.Millisecond}, {30, time.Second}} {
			t.Run(fmt.Sprintf("%s, %d%% of the writes for %s", fs.name, fails.percent, fails.lasts), func(t *testing.T) {
				t.Logf("seed %d", seed)
				r := rand.New(rand.NewPCG(seed, 0))
				s := &session{m: newMachine(t, fs, nil), seed: seed, kinds: map[string]int{}}
				rec := s.m.record(r, *opsFlag, fails)
				end := cut{len(rec.log.Requests), disk.KeepAll}
				s.cut(rec, end, disk.NewCutter(rec.log).Cut(end.at, end.fate, r))
			})
		}
	}
}

// chosen returns the file systems that -fs names.
func chosen(t *testing.T) (on []filesystem) {
	t.Helper()
	for _, fs := range filesystems {
		if *fsFlag == "" || *fsFlag == fs.name {
			on = append(on, fs)
		}
	}
	if len(on) == 0 {
		t.Fatalf("there is no file system %q", *fsFlag)
	}
	return on
}

// session plays cuts of recordings, one after the other.
type session struct {
	m     *machine
	seed  uint64
	until time.Time

	played, recordings, requests int
	kinds                        map[string]int // what was found, and how often
	kept                         int
}

// batch is how many cuts are played in the order of the log, before it begins
// again.
const batch = 8

// round makes a recording and plays cuts of it. The first recording gets a batch
// however late it is.
func (s *session) round(r *rand.Rand, first bool) {
	rec := s.m.record(r, *opsFlag, trouble{})
	s.recordings++
	s.requests += len(rec.log.Requests)
	for n := 0; n < *cutsFlag; n += batch {
		cutter := disk.NewCutter(rec.log)
		for _, c := range rec.cuts(r, batch) {
			if time.Now().After(s.until) && (!first || n > 0) {
				return
			}
			s.cut(rec, c, cutter.Cut(c.at, c.fate, r))
		}
	}
}

// cut plays one cut, which has left content on the disk.
func (s *session) cut(rec *recording, c cut, content disk.Content) {
	t := s.m.t
	want := rec.ledger.at(c.at)
	found, err := s.m.play(content, rec.log.Size, want, rec.known)
	if err != nil {
		t.Fatal(err)
	}
	s.played++
	for _, f := range found {
		t.Errorf("power lost after %d requests, %s: %s", c.at, c.fate, f)
		s.kinds[f]++
	}
	if len(found) > 0 && *keepFlag != "" && s.kept < keptMost {
		s.kept++
		kept{s.m.fs.name, s.seed, c.at, c.fate.String(), want, rec.known, found}.keep(t, content, rec.log.Size)
	}
}

// replay plays a cut that was kept.
func replay(t *testing.T, path string) {
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var k kept
	if err := json.Unmarshal(text, &k); err != nil {
		t.Fatal(err)
	}
	content, size, err := disk.Read(strings.TrimSuffix(path, ".json") + ".img")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(filesystems, func(f filesystem) bool { return f.name == k.Filesystem })
	if i < 0 {
		t.Fatalf("there is no file system %q", k.Filesystem)
	}
	found, err := newMachine(t, filesystems[i], nil).play(content, size, k.Want, k.Known)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		t.Errorf("power lost after %d requests, %s: %s", k.At, k.Fate, f)
	}
}
