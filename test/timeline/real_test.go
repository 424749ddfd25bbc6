// SPDX-License-Identifier: Apache-2.0

package timeline

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"holdfast/internal/timeline"
	"holdfast/test/kit"
)

func TestMain(m *testing.M) { kit.Main(m) }

func fetch(t *testing.T, d *kit.Daemon, args ...string) timeline.Timeline {
	t.Helper()
	r := d.TryHoldfast(append([]string{"daemon", "timeline", "--format", "json"}, args...)...)
	if r.Code != 0 {
		t.Fatalf("%+v", r)
	}
	var got timeline.Timeline
	if err := json.Unmarshal([]byte(r.Stdout), &got); err != nil {
		t.Fatal(err)
	}
	return got
}

func named(t *testing.T, p timeline.Timeline, name string) timeline.Container {
	t.Helper()
	for _, c := range p.Containers {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no %s in %+v", name, p)
	return timeline.Container{}
}

func TestTimelineShowsWhatADaemonAndItsContainersDid(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load("busybox", kit.Busybox(t, nil))
	d.Holdfast("run", "-d", "--name", "web", "busybox", "sleep", "1000")
	d.Holdfast("run", "-d", "--name", "dies-alone", "busybox", "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done")
	if r := d.TryHoldfast("run", "--rm", "--name", "once", "busybox", "sh", "-c", "exit 4"); r.Code != 4 {
		t.Fatalf("%+v", r)
	}
	d.Kill9()
	d.TryHoldfast("stop", "dies-alone")

	// No daemon runs: the shims' journals contain what happened after its
	// death.
	p := fetch(t, d)
	if len(p.Daemon) != 1 || p.Daemon[0].How != "crash" || !p.DaemonAway {
		t.Errorf("daemon: %+v", p.Daemon)
	}
	if c := named(t, p, "dies-alone"); len(c.Runs) != 1 || c.Runs[0].ExitCode != 3 || c.Runs[0].End.IsZero() {
		t.Errorf("%+v", c)
	}
	alone := named(t, p, "dies-alone").Runs[0]

	d.Start()
	d.Restart()
	p = fetch(t, d, "--since", "all")
	var how []string
	for _, l := range p.Daemon {
		how = append(how, l.How)
	}
	if got := strings.Join(how, ","); got != "crash,clean," || p.DaemonAway {
		t.Errorf("the daemon's lives ended %q", got)
	}
	web := named(t, p, "web")
	started, err := time.Parse(time.RFC3339Nano, d.Holdfast("inspect", "-f", "{{.State.StartedAt}}", "web"))
	if err != nil {
		t.Fatal(err)
	}
	if r := web.Runs; len(r) != 1 || !r[0].End.IsZero() || r[0].Lives != 3 || r[0].Start.Sub(started).Abs() > time.Second {
		t.Errorf("web: %+v, started %s", r, started)
	}
	if r := named(t, p, "dies-alone").Runs; len(r) != 1 || !r[0].End.Equal(alone.End) || r[0].ExitCode != 3 || r[0].Lives != 1 {
		t.Errorf("dies-alone: %+v, was %+v", r, alone)
	}
	if c := named(t, p, "once"); c.Removed.IsZero() || c.Runs[0].ExitCode != 4 {
		t.Errorf("once: %+v", c)
	}

	text := d.Holdfast("daemon", "timeline")
	for _, want := range []string{`(?m)^daemon .*█.* 3 lives, 1 crash$`, `(?m)^web .*█▶  up \d+ m?s, under 3 daemons$`, `(?m)^dies-alone .*✗.* exit 3$`, `(?m)^once .* exit 4, removed$`} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("the text has no %s:\n%s", want, text)
		}
	}
	if strings.Contains(text, "\x1b") {
		t.Error("the output has colours although it is not a terminal")
	}

	page := filepath.Join(t.TempDir(), "timeline.html")
	d.Holdfast("daemon", "timeline", "--html", page)
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	l := look(t, string(b))
	l.check(t)
	l.labelled(t, "rect bar run", "web: run from")
	for i, n := range []string{"http://", "https://", "<script", "<link", "@import", "url(h"} {
		if strings.Contains(string(b), n) {
			t.Errorf("%d: the page contains %s, but it must need no other resource", i, n)
		}
	}
}

func TestSinceIsATimeOrHowLongAgo(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{})
	for since, code := range map[string]int{"2h": 0, "7d": 0, "all": 0, "2020-01-02T03:04:05": 0, "2020-01-02": 0, "yesterday": 64, "-3h": 64} {
		if r := d.TryHoldfast("daemon", "timeline", "--since", since); r.Code != code {
			t.Errorf("--since %s: %+v", since, r)
		}
	}
}
