// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/test/kit"
	"holdfast/test/soak/judge"
)

var (
	soakTime       = flag.Duration("soak.time", 12*time.Second, "how long the soak lasts, once all containers run")
	soakContainers = flag.Int("soak.containers", 10, "how many containers run")
	soakOut        = flag.String("soak.out", "", "folder that gets the picture and the table")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Geteuid() == 0 {
		kit.Isolate(0)
	}
	kit.ReapOrphans()
	kit.Main(m)
}

// TestNothingGrows lets containers and clients go on for the time of -soak.time.
func TestNothingGrows(t *testing.T) {
	length := *soakTime
	h := build(t, *soakContainers, length)
	fmt.Printf("soak: %d containers run, and go on for %s\n", *soakContainers, length)
	h.load()
	h.users.Go(h.patrol)
	r := newRecorder(h, length)
	marks := h.rule(r)
	h.balance()
	h.cancel()
	h.users.Wait()
	list := r.list()
	h.report(r, list, marks)
	for _, s := range list {
		if v := s.Judge(); v.Rises != "" {
			t.Errorf("%s, %s: %s", s.Group, s.Name, v.Rises)
		}
	}
	if len(h.wrongs) > 0 {
		t.Errorf("%d things were wrong, the first: %s", len(h.wrongs), h.wrongs[0])
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, what := range []string{"examined", "logs", "logs -f", "attach", "events", "stats", "wait", "exec with input", "clients that vanish", "run --rm", "restart counts compared", "health compared"} {
		if h.done[what] == 0 {
			t.Errorf("not done once: %s", what)
		}
	}
}

// rule measures, and lets the daemon be killed, restarted or replaced, until the time
// is over. A short life of the daemon is followed by one that is four times as long, so
// that there are faults enough and something to measure in between.
func (h *house) rule(r *recorder) (marks []judge.Mark) {
	sample := time.NewTicker(min(30*time.Second, h.length/40))
	defer sample.Stop()
	short := min(2*time.Minute, h.length/10)
	fault := time.NewTimer(short)
	defer fault.Stop()
	over := time.After(h.length)
	for n := 0; ; {
		select {
		case <-over:
			return marks
		case <-sample.C:
			if err := r.sample(); err != nil {
				h.wrong("measure: %v", err)
			}
		case <-fault.C:
			name := []string{"kill", "takeover", "restart"}[n%3]
			marks = append(marks, judge.Mark{At: time.Since(h.began).Seconds(), Name: name})
			h.while(func() { h.fault(name) })
			h.count("daemon: " + name)
			n++
			fault.Reset(short * time.Duration(1+3*(n%2)))
		}
	}
}

func (h *house) fault(name string) {
	var err error
	switch name {
	case "kill":
		unix.Kill(h.d.Pid(), unix.SIGKILL)
		h.d.WaitExit()
		h.pause(min(3*time.Second, h.length/20))
		err = h.d.TryStart()
	case "restart":
		unix.Kill(h.d.Pid(), unix.SIGTERM)
		h.d.WaitExit()
		err = h.d.TryStart()
	case "takeover":
		err = h.d.TryTakeover()
	}
	if err != nil {
		h.wrong("%s of the daemon: %v", name, err)
	}
}

// report prints the result, and writes the picture and the table.
func (h *house) report(r *recorder, list []judge.Series, marks []judge.Mark) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var b strings.Builder
	var uts unix.Utsname
	unix.Uname(&uts)
	kernel, _, _ := strings.Cut(unix.ByteSliceToString(uts.Release[:]), "-")
	subtitle := fmt.Sprintf("%d containers, %s, %d CPUs, Linux %s, %s. Dotted: the daemon is killed, replaced or restarted. Shaded: the half that is judged.",
		len(h.boxes), h.length, runtime.NumCPU(), kernel, h.began.UTC().Format("2006-01-02"))
	fmt.Fprintln(&b, judge.Table(list))
	for _, what := range slices.Sorted(maps.Keys(h.done)) {
		fmt.Fprintf(&b, "%s: %d\n", what, h.done[what])
	}
	restarts := 0
	for _, n := range h.dies {
		restarts += n
	}
	fmt.Fprintf(&b, "restarts by policy: %d\nlongest sample: %s\nwrong: %d\n", restarts, r.took.Round(time.Millisecond), len(h.wrongs))
	for _, w := range h.wrongs {
		fmt.Fprintln(&b, w)
	}
	fmt.Printf("soak:\n%s\n%s", &b, r.widest())
	if *soakOut == "" {
		return
	}
	err := os.MkdirAll(*soakOut, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(*soakOut, "soak.md"), []byte(b.String()), 0o644)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(*soakOut, "soak.svg"), []byte(judge.Chart("Holdfast: a soak", subtitle, list, marks)), 0o644)
	}
	if err != nil {
		h.t.Error(err)
	}
}
