// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/internal/shim/client"
	"holdfast/internal/shim/proto"
)

// memory returns sizes of a process in kB.
func memory(t testing.TB, pid int) map[string]int {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]int{}
	for line := range bytes.Lines(b) {
		if f := strings.Fields(string(line)); len(f) == 3 && f[2] == "kB" {
			m[strings.TrimSuffix(f[0], ":")], _ = strconv.Atoi(f[1])
		}
	}
	return m
}

// Twenty shims, each with a running container that has written a line and whose
// state was requested, and with a connected and subscribed daemon.
func TestIdleShimIsSmall(t *testing.T) {
	const copies, limit = 20, 1000 // limit in kB
	var pids []int
	for range copies {
		b := newBox(t, "echo started; sleep 1000")
		s, ev := b.started()
		ev.action(proto.ActionStart)
		if _, err := s.State(ctx(t)); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, s.Hello().Pid)
	}
	var pss, anon, uss []int
	for _, pid := range pids {
		m := memory(t, pid)
		pss = append(pss, m["Pss"])
		anon = append(anon, m["Pss_Anon"])
		uss = append(uss, m["Private_Clean"]+m["Private_Dirty"])
	}
	for _, list := range [][]int{pss, anon, uss} {
		slices.Sort(list)
	}
	t.Logf("median of %d: PSS %d kB, anonymous %d kB, private %d kB", copies, pss[copies/2], anon[copies/2], uss[copies/2])
	if pss[copies/2] > limit {
		t.Errorf("a shim uses %d kB, want at most %d", pss[copies/2], limit)
	}
}

// Every connection, of daemons, health checks or sessions, leaves garbage on
// the heap, and every exec an entry in the journal. The shim collects the garbage long
// before Go would do so by itself, and discards entries that the daemon has.
func TestShimStaysSmallWhoeverComesAndGoes(t *testing.T) {
	const times, execs = 600, 100
	const limit, execLimit = 2200, 3600 // in kB; the shim remembers 64 execs
	b := newBox(t, "sleep 1000")
	s, ev := b.started()
	ev.action(proto.ActionStart)
	before := memory(t, s.Hello().Pid)["Pss_Anon"]
	for range times {
		guest, err := client.DialGuest(ctx(t), b.boot.RunDir)
		if err != nil {
			t.Fatal(err)
		}
		if err := guest.Subscribe(ctx(t), 0, func(proto.Event) {}); err != nil {
			t.Fatal(err)
		}
		if _, err := guest.State(ctx(t)); err != nil {
			t.Fatal(err)
		}
		guest.Close()
	}
	between := memory(t, s.Hello().Pid)["Pss_Anon"]
	for i := range execs {
		if err := s.ExecCreate(ctx(t), proto.ExecCreate{Exec: itoa(i), Process: raw(t, process("true"))}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ExecStart(ctx(t), proto.ExecStart{Exec: itoa(i)}, nil); err != nil {
			t.Fatal(err)
		}
		seq := ev.wait("end of exec "+itoa(i), func(e proto.Event) bool {
			return e.Action == proto.ActionExecDie && e.Attributes["execID"] == itoa(i)
		}).Seq
		s.Heard(seq, seq)
	}
	after := memory(t, s.Hello().Pid)["Pss_Anon"]
	t.Logf("anonymous memory %d kB, after %d connections %d kB, after %d execs %d kB", before, times, between, execs, after)
	if between > limit || after > execLimit {
		t.Errorf("a shim that served %d connections uses %d kB, want at most %d; after %d execs %d kB, want at most %d", times, between, limit, execs, after, execLimit)
	}
	if st, err := os.Stat(filepath.Join(b.boot.RunDir, proto.JournalFile)); err != nil || st.Size() > 10<<10 {
		t.Errorf("the journal, of which all is recorded elsewhere: %v, %v", st, err)
	}
	if err := s.Kill(ctx(t), proto.Kill{Signal: 9}); err != nil {
		t.Fatal(err)
	}
	if n := ev.action(proto.ActionDie).Seq; n != execs+2 {
		t.Errorf("the end is entry %d, want %d", n, execs+2)
	}
}

// BenchmarkRunTrue measures a container's whole life: shim, start, exit, exit
// record.
func BenchmarkRunTrue(b *testing.B) {
	var spawned, running, died, gone time.Duration
	for b.Loop() {
		x := newBoxArgs(b, "true")
		began := time.Now()
		s := x.spawn()
		spawned += time.Since(began)
		ev := x.subscribe(s, 0)
		if _, err := s.Start(ctx(b)); err != nil {
			b.Fatal(err)
		}
		running += time.Since(began)
		ev.action(proto.ActionDie)
		died += time.Since(began)
		ev.action(proto.ActionExited)
		gone += time.Since(began)
	}
	for name, d := range map[string]time.Duration{"spawned": spawned, "running": running, "died": died, "exited": gone} {
		b.ReportMetric(float64(d.Microseconds())/1000/float64(b.N), name+"-ms/op")
	}
}
