// SPDX-License-Identifier: Apache-2.0

//go:build linux

package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// at is a moment of the demo in the test, in seconds after its start. The
// daemon is killed at 2 and ready again at 5.
func at(seconds float64) time.Time {
	return epoch.Add(time.Duration(seconds * float64(time.Second)))
}

// perfect is a report in which every promise is kept.
func perfect() *report {
	state := container.State{Status: "running", Running: true, Pid: 77, StartedAt: "2026-01-02T03:04:05.6Z"}
	r := &report{
		before: state, after: state,
		daemonBefore: 10, daemonAfter: 11,
		killed: at(2), ready: at(5),
		followed: followed{lines: 70},
	}
	for i := range 70 {
		t := at(float64(i) / 10)
		r.log = append(r.log, logLine{t, uint64(i) + 1})
		r.requests = append(r.requests, request{start: t, end: t.Add(time.Millisecond), started: "once"})
	}
	return r
}

func TestReportOfKeptPromisesCountsTheDowntime(t *testing.T) {
	var out bytes.Buffer
	if err := perfect().print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"pid 10 killed, pid 11 ready 3.00 s later",
		"77 before and after",
		"70 lines, numbered without a gap; 29 of them from the downtime",
		"70 requests answered, 0 failed; in the downtime 29 answered, 0 failed",
		"did not notice",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
}

func TestEveryBrokenPromiseFailsTheDemo(t *testing.T) {
	for name, breakIt := range map[string]func(*report){
		"start time":                    func(r *report) { r.after.StartedAt = "2026-01-02T03:04:09Z" },
		"pid":                           func(r *report) { r.after.Pid = 78 },
		"status":                        func(r *report) { r.after.Status = "exited" },
		"restarts":                      func(r *report) { r.restartsAfter = 1 },
		"log: a line missing":           func(r *report) { r.log = append(r.log[:30], r.log[31:]...) },
		"log: a line twice":             func(r *report) { r.log = append(r.log[:31], r.log[30:]...) },
		"log: empty":                    func(r *report) { r.log = nil },
		"log: silent in the downtime":   func(r *report) { r.log = r.log[:20] },
		"logs -f":                       func(r *report) { r.followed.gap = errors.New("line 9 came after line 7") },
		"HTTP: failed":                  func(r *report) { r.requests[30].err = errors.New("refused") },
		"HTTP: failed before the kill":  func(r *report) { r.requests[3].err = errors.New("refused") },
		"HTTP: another program":         func(r *report) { r.requests[60].started = "twice" },
		"HTTP: silent in the downtime":  func(r *report) { r.requests = r.requests[:20] },
		"daemon: it was never replaced": func(r *report) { r.daemonAfter = r.daemonBefore },
	} {
		t.Run(name, func(t *testing.T) {
			r := perfect()
			breakIt(r)
			what, _, _ := strings.Cut(name, ":")
			var out bytes.Buffer
			err := r.print(&out)
			if err == nil {
				t.Fatalf("no error; the report was:\n%s", out.String())
			}
			if !strings.Contains(err.Error(), what+": ") || !strings.Contains(out.String(), "BROKEN") {
				t.Errorf("error %q, report:\n%s", err, out.String())
			}
		})
	}
}

func TestScanLogReadsWhatTheAPISends(t *testing.T) {
	var stream bytes.Buffer
	for i := range 3 {
		line := fmt.Sprintf("%s %d still here\n", at(float64(i)).Format(time.RFC3339Nano), i+1)
		header := [8]byte{byte(stdcopy.Stdout), 7: byte(len(line))}
		stream.Write(header[:])
		stream.WriteString(line)
	}
	var got []logLine
	if err := scanLog(&stream, func(l logLine) error { got = append(got, l); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || got[2].number != 3 || !got[2].time.Equal(at(2)) {
		t.Errorf("got %v", got)
	}
}

func TestLineThatIsNotNumberedIsAnError(t *testing.T) {
	for _, line := range []string{"", "no time", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z many words", "yesterday 1 still here"} {
		if l, err := parseLine(line); err == nil {
			t.Errorf("%q: %v, want an error", line, l)
		}
	}
}

func TestFollowerSeesGapsAndPassesOverWhatItKnows(t *testing.T) {
	w := newLogWatch(nil)
	for _, n := range []uint64{1, 2, 3, 1, 2, 3, 4} {
		w.see(n)
	}
	if w.gap != nil || w.last != 4 {
		t.Errorf("after a replay: last %d, gap %v", w.last, w.gap)
	}
	w.see(6)
	if w.gap == nil {
		t.Error("line 6 after line 4 was not reported as a gap")
	}
}

func TestProbeTellsAnswersFromFailures(t *testing.T) {
	answered := make(chan struct{}, 1000)
	ok := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"started": "once"}`)
		answered <- struct{}{}
	}))
	defer ok.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p := startProbe(ctx, ok.URL)
	for range 3 {
		<-answered
	}
	cancel()
	results := p.results()
	if len(results) < 2 {
		t.Fatalf("%d results of 3 answered requests; the last may be cut off", len(results))
	}
	for _, r := range results {
		if r.err != nil || r.started != "once" {
			t.Errorf("got %+v", r)
		}
	}
	if c := p.since(time.Time{}); c.answered != len(results) || c.failed != 0 {
		t.Errorf("counted %+v of %d", c, len(results))
	}

	ok.Close()
	if r := ask(context.Background(), &http.Client{Timeout: probeTimeout}, ok.URL); r.err == nil {
		t.Error("a closed port gave no error")
	}
}

func TestSubnetIsFreeOfTheHosts(t *testing.T) {
	candidate := netip.MustParsePrefix("10.201.7.0/24")
	for taken, want := range map[string]bool{
		"10.201.8.0/24": true,
		"10.201.7.0/26": false,
		"10.0.0.0/8":    false,
		"fe80::/64":     true,
	} {
		if got := free(candidate, []netip.Prefix{netip.MustParsePrefix(taken)}); got != want {
			t.Errorf("beside %s: free is %v, want %v", taken, got, want)
		}
	}
	subnet, err := freeSubnet()
	if err != nil {
		t.Fatal(err)
	}
	if p := netip.MustParsePrefix(subnet); p.Bits() != 24 || !p.Addr().Is4() {
		t.Errorf("got %s", subnet)
	}
}
