// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bytes"
	"os"
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
// the heap. The shim collects it long before Go would do so by itself.
func TestShimStaysSmallWhoeverComesAndGoes(t *testing.T) {
	const times, limit = 600, 3600 // limit in kB
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
	after := memory(t, s.Hello().Pid)["Pss_Anon"]
	t.Logf("anonymous memory %d kB, after %d connections %d kB", before, times, after)
	if after > limit {
		t.Errorf("a shim that served %d connections uses %d kB, want at most %d", times, after, limit)
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
