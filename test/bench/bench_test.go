// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"holdfast/test/kit"
)

// scale is how much is measured.
type scale struct {
	rounds   int // repetitions of single operations
	few      int // repetitions of operations that take seconds
	pairs    int // streams per engine; the engines take turns
	many     int // containers that are started, one after the other and all at once
	crowds   []int
	most     int // the largest crowd, which is only restarted
	restarts int
	blocks   int      // log size, in multiples of blockFile
	taken    int      // ports that are already published when another one is published
	turns    int      // turns of each engine in the measurement of round trips
	trips    int      // round trips over one connection in a turn
	stream   []string // iperf3's option for the size of a stream
	budget   *budget
	calm     time.Duration // time without a change before memory is measured
}

// budget is the time that all measurements may take. When it is over, the
// remaining ones are done with fewer rounds.
type budget struct {
	until time.Time
	over  bool
}

// done is called before each round. It reports whether the rounds so far must
// suffice.
func (b *budget) done(rounds int) bool {
	if rounds == 0 || time.Now().Before(b.until) {
		return false
	}
	b.over = true
	return true
}

// subject is an engine that is measured, with its client.
type subject struct {
	engine
	api *api
	ids []string // running containers
	one string   // published port of one of them
}

// waitUp waits until the API answers. It restarts a daemon that exited during
// its own start.
func (x *subject) waitUp() error {
	deadline := time.Now().Add(2 * patience)
	for {
		err := x.api.try("GET", "/_ping", nil, nil)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		x.again()
		<-time.After(500 * time.Microsecond)
	}
}

// TestEnginesSideBySide measures the engines. With -full it is the benchmark.
func TestEnginesSideBySide(t *testing.T) {
	s := scale{rounds: 2, few: 1, pairs: 1, many: 3, crowds: []int{0, 3}, most: 4, restarts: 1, blocks: 1, calm: 100 * time.Millisecond,
		taken: 20, turns: 1, trips: 20, stream: []string{"-n", "1M"}}
	if *full {
		s = scale{rounds: 21, few: 3, pairs: 60, many: 50, crowds: []int{0, 50, 200}, most: 500, restarts: 5, blocks: 10, calm: 2 * time.Second,
			taken: 1000, turns: 300, trips: 50, stream: []string{"-n", "128M"}}
	}
	s.budget = &budget{until: time.Now().Add(14 * time.Minute)}
	table := newTable()
	subjects := []*subject{{engine: newHoldfast(t)}}
	var pod *podman
	if beside() {
		if d := newDockerd(t, kit.Netns{}); d != nil {
			subjects = append(subjects, &subject{engine: d})
		}
		pod = newPodman(t)
	}
	for _, x := range subjects {
		x.api, _ = connect(x.socket())
		x.start()
		if err := x.waitUp(); err != nil {
			t.Fatalf("%s does not answer: %v", x.name(), err)
		}
		x.api.must(t, "POST", "/images/load?quiet=1", archive(t), nil)
		table.engines = append(table.engines, x.name())
		table.versions = append(table.versions, x.name()+" "+x.version())
	}
	if t.Failed() {
		return
	}
	if pod != nil {
		table.engines = append(table.engines, "podman")
		table.versions = append(table.versions, pod.run("--version"))
	}
	if part("run") {
		measureRun(t, s, table, subjects, pod)
	}
	if part("verbs") {
		measureVerbs(t, s, table, subjects)
	}
	if part("many") {
		measureMany(t, s, table, subjects)
	}
	if part("size") {
		for _, x := range subjects {
			measureIdle(t, s, table, x)
		}
	}
	if part("restart") || part("size") || part("ps") || part("gaps") || part("verbs") {
		for _, n := range s.crowds {
			for _, x := range subjects {
				measureCrowd(t, s, table, x, n)
				if t.Failed() {
					return
				}
			}
		}
		for _, x := range subjects {
			x.api.removeAll()
			x.ids = nil
		}
	}
	if part("builds") {
		var kitd *buildkitd
		if beside() {
			kitd = newBuildkitd(t)
		}
		if kitd != nil {
			table.engines = append(table.engines, kitd.name())
			table.versions = append(table.versions, kitd.name()+" "+kitd.release)
		}
		measureBuilds(t, s, table, subjects, kitd)
	}
	if part("most") {
		for _, x := range subjects {
			measureMost(t, s, table, x)
			if t.Failed() {
				return
			}
		}
	}
	if part("health") {
		measureHealth(t, s, table, subjects)
	}
	if part("pull") {
		measurePull(t, s, table, subjects)
	}
	if part("logs") {
		measureLogs(t, s, table, subjects)
	}
	if part("swarm") {
		measureSwarm(t, s, table)
		if !t.Failed() {
			measureFailover(t, s, table)
		}
	}
	if part("net") {
		measureNet(t, s, table)
	}
	if t.Failed() {
		return
	}
	table.hurried = s.budget.over
	text := table.String()
	t.Log("\n" + text)
	if *write != "" {
		if err := table.writeTo(*write); err != nil {
			t.Fatal(err)
		}
	}
	for name := range table.rows {
		if math.IsNaN(table.get(name, "Holdfast")) {
			t.Errorf("%s was not measured", name)
		}
	}
}

// measureRun measures single operations. In each round the engines take turns.
func measureRun(t *testing.T, s scale, table *table, subjects []*subject, pod *podman) {
	runtime := newBare(t)
	times := map[string]map[string][]time.Duration{}
	note := func(what, who string, fn func()) {
		begin := time.Now()
		fn()
		if times[what] == nil {
			times[what] = map[string][]time.Duration{}
		}
		times[what][who] = append(times[what][who], time.Since(begin))
	}
	// The first round of each engine warms caches and is not counted.
	for round := range s.rounds + 1 {
		if s.budget.done(max(0, round-1)) {
			break
		}
		if round == 1 {
			clear(times)
		}
		note(rowBare, "Holdfast", runtime.run)
		for _, x := range subjects {
			var id string
			note(rowRun, x.name(), func() { id, _ = x.api.runDetached(t) })
			note(rowStop, x.name(), func() { x.api.stopRemove(t, id) })
			note(rowRemove, x.name(), func() { x.api.runRemove(t) })
		}
		if pod != nil {
			port := nextPort()
			var id string
			note(rowRun, "podman", func() {
				id = pod.run("run", "-d", "-p", port+":80", "--log-driver", "k8s-file", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "localhost/"+imageRef, "httpd", "-f", "-p", "80", "-h", "/www")
				if err := answered(port); err != nil {
					t.Error(err)
				}
			})
			note(rowStop, "podman", func() { pod.run("stop", "--time", "0", id); pod.run("rm", id) })
			note(rowRemove, "podman", func() {
				pod.run("run", "--rm", "--log-driver", "k8s-file", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "localhost/"+imageRef, "true")
			})
		}
		if t.Failed() {
			return
		}
	}
	for what, by := range times {
		for who, list := range by {
			table.set(what, who, ms(median(list)))
		}
	}
	for who := range times[rowBare] {
		table.set(rowOverBare, who, ms(median(times[rowRun][who]))-ms(median(times[rowBare][who])))
	}
}

// measureMany starts many containers, one after the other and at once.
func measureMany(t *testing.T, s scale, table *table, subjects []*subject) {
	for _, mode := range []struct {
		row string
		run func(x *subject)
	}{
		{rowInRow, func(x *subject) {
			for range s.many {
				x.api.runDetached(t)
			}
		}},
		{rowAtOnce, func(x *subject) { each(s.many, func(int) { x.api.runDetached(t) }) }},
	} {
		times := map[string][]time.Duration{}
		for round := range s.few {
			if s.budget.done(round) {
				break
			}
			for _, x := range subjects {
				begin := time.Now()
				mode.run(x)
				times[x.name()] = append(times[x.name()], time.Since(begin))
				x.api.removeAll()
			}
			if t.Failed() {
				return
			}
		}
		for who, list := range times {
			table.set(fmt.Sprintf(mode.row, s.many), who, ms(median(list)))
		}
	}
}

// measureIdle measures the memory of a fresh daemon without containers.
func measureIdle(t *testing.T, s scale, table *table, x *subject) {
	x.stop()
	x.start()
	if err := x.waitUp(); err != nil {
		t.Fatal(err)
	}
	x.api.ps(t, 3, 0)
	settle(s, x)
	table.set(rowIdle, x.name(), float64(pss(t, x.programs()))/1024)
}

// settle waits until the engine's memory no longer shrinks, for some seconds at
// most, because a daemon releases the memory of its start with a delay.
func settle(s scale, x *subject) {
	deadline := time.After(8 * time.Second)
	last, since := 0, time.Now()
	for time.Since(since) < s.calm {
		n := 0
		for _, pid := range processes(x.programs()) {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
			var size, resident int
			fmt.Sscan(string(b), &size, &resident)
			n += resident
		}
		if n != last {
			last, since = n, time.Now()
		}
		select {
		case <-deadline:
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// grow starts containers until n run.
func (x *subject) grow(t *testing.T, n int) {
	var mu sync.Mutex
	more := max(0, n-len(x.ids))
	slots := make(chan struct{}, 4)
	each(more, func(int) {
		slots <- struct{}{}
		defer func() { <-slots }()
		id, port := x.api.runDetached(t)
		mu.Lock()
		x.ids = append(x.ids, id)
		x.one = port
		mu.Unlock()
	})
}

// measureCrowd starts n containers in the engine and restarts the engine.
func measureCrowd(t *testing.T, s scale, table *table, x *subject, n int) {
	x.grow(t, n)
	if t.Failed() {
		return
	}
	if part("size") && n == s.crowds[1] {
		settle(s, x)
		all := float64(pss(t, x.programs()))
		table.set(fmt.Sprintf(rowWith, n), x.name(), all/1024)
		if idle := table.get(rowIdle, x.name()); idle > 0 {
			table.set(rowEach, x.name(), (all-idle*1024)/float64(n))
		}
	}
	if part("ps") {
		table.set(fmt.Sprintf(rowPS, n), x.name(), ms(x.api.ps(t, max(3, 10*s.few), n)))
	}
	if part("verbs") {
		measureCreate(t, s, table, x, n)
	}
	if part("restart") {
		measureRestart(t, s, table, x, n)
		if n > 0 && !t.Failed() {
			measureManaged(t, s, table, x, n, "crash", x.kill)
		}
	}
	if n > 0 && part("gaps") && !t.Failed() {
		measureGaps(t, s, table, x, n)
	}
}

// measureRestart restarts the engine with its n containers.
func measureRestart(t *testing.T, s scale, table *table, x *subject, n int) {
	var up, taken, all, refused []time.Duration
	for round := range s.restarts {
		if s.budget.done(round) {
			break
		}
		var r *refusal
		if n > 0 {
			r = watch(x.one)
		}
		x.stop()
		begin := time.Now()
		first := make(chan time.Duration, 1)
		go func() {
			if err := x.api.waitUp(); err != nil {
				t.Error(err)
			}
			first <- time.Since(begin)
		}()
		x.start()
		up = append(up, <-first)
		// An answer to this request means that every container has been
		// examined.
		if n > 0 {
			x.api.must(t, "POST", "/containers/"+x.ids[n-1]+"/kill?signal=CONT", nil, nil)
		}
		taken = append(taken, time.Since(begin))
		// A container counts as managed when the daemon has delivered a signal
		// to it.
		each(min(8, n), func(worker int) {
			for i := worker; i < n; i += min(8, n) {
				x.api.must(t, "POST", "/containers/"+x.ids[i]+"/kill?signal=CONT", nil, nil)
			}
		})
		all = append(all, time.Since(begin))
		if r != nil {
			refused = append(refused, r.end())
		}
		if t.Failed() {
			return
		}
	}
	table.set(fmt.Sprintf(rowUp, n), x.name(), ms(median(up)))
	if n > 0 {
		table.set(fmt.Sprintf(rowTaken, n), x.name(), ms(median(taken)))
		table.set(fmt.Sprintf(rowWay, "restart", n), x.name(), ms(median(all)))
		table.set(fmt.Sprintf(rowRefused, n), x.name(), ms(slices.Max(refused)))
	}
}

// measureManaged measures the time from a start after the daemon's end until each
// of n containers has taken a signal.
func measureManaged(t *testing.T, s scale, table *table, x *subject, n int, way string, end func()) {
	var all []time.Duration
	for round := range s.few {
		if s.budget.done(round) {
			break
		}
		end()
		begin := time.Now()
		x.start()
		if err := x.waitUp(); err != nil {
			t.Fatal(err)
		}
		each(min(8, n), func(worker int) {
			for i := worker; i < n; i += min(8, n) {
				x.api.must(t, "POST", "/containers/"+x.ids[i]+"/kill?signal=CONT", nil, nil)
			}
		})
		all = append(all, time.Since(begin))
		if t.Failed() {
			return
		}
		// dockerd may need a minute for each.
		if n == s.most && all[0] > 10*time.Second {
			break
		}
	}
	table.set(fmt.Sprintf(rowWay, way, n), x.name(), ms(median(all)))
}

// measureMost restarts the largest crowd, by SIGTERM and by SIGKILL.
func measureMost(t *testing.T, s scale, table *table, x *subject) {
	x.grow(t, s.most)
	if t.Failed() {
		return
	}
	measureCreate(t, s, table, x, s.most)
	measureManaged(t, s, table, x, s.most, "restart", x.stop)
	measureManaged(t, s, table, x, s.most, "crash", x.kill)
	x.api.removeAll()
	x.ids = nil
}

func median[T cmp.Ordered](list []T) T {
	sorted := slices.Sorted(slices.Values(list))
	if len(sorted) == 0 {
		return *new(T)
	}
	return sorted[len(sorted)/2]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
