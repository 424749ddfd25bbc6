package shim

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/internal/shim/proto"
)

// memory reads sizes in kB of a process.
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

// Twenty shims, each with a running container that has written a line and was
// asked for its state, with the daemon connected and subscribed.
func TestIdleShimIsSmall(t *testing.T) {
	const copies, limit = 20, 1100 // kB
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
		t.Errorf("a shim takes %d kB, want at most %d", pss[copies/2], limit)
	}
}

// BenchmarkRunTrue is a container's whole life: shim, start, exit, exited.
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
