// SPDX-License-Identifier: Apache-2.0

package timeline

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"holdfast/internal/event"
	"holdfast/test/golden"
)

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

func at(minutes float64) time.Time {
	return noon.Add(time.Duration(minutes * float64(time.Minute)))
}

// story returns a history with every kind of item.
func story() (lives []event.Life, events []event.Message, present []Present) {
	lives = []event.Life{
		{Number: 1, Release: "1.0.0", Pid: 700, Start: at(0), End: at(40), How: event.EndCrash},
		{Number: 2, Release: "1.0.0", Pid: 912, Start: at(40), End: at(70), How: event.EndClean},
		{Number: 3, Release: "1.1.0", Pid: 1440, Start: at(75), End: at(100), How: event.EndHandover},
		{Number: 4, Release: "1.2.0", Pid: 1702, Start: at(100)},
	}
	seq := map[string]int{}
	add := func(minute float64, id, action string, attrs ...string) {
		m := event.New("container", action, id, map[string]string{"name": id, "image": id + ":latest"}, at(minute))
		for i := 0; i+1 < len(attrs); i += 2 {
			m.Actor.Attributes[attrs[i]] = attrs[i+1]
		}
		if action != "create" && action != "destroy" && action != "pause" && action != "unpause" {
			seq[id]++
			m.Source = fmt.Sprintf("%s/1:%d", id, seq[id])
		}
		events = append(events, m)
	}
	add(1, "web", "create")
	add(1, "web", "start")
	add(3, "database-with-a-long-name", "create")
	add(3, "database-with-a-long-name", "start")
	add(10, "worker", "create")
	add(10, "worker", "start")
	add(25, "worker", "die", "exitCode", "1")
	add(26, "worker", "start")
	add(30, "job", "create") // the last event of the daemon's first life
	add(30, "job", "start")
	add(36, "worker", "die", "exitCode", "137")
	add(36, "worker", "oom")
	add(38, "worker", "start")
	add(50, "database-with-a-long-name", "pause")
	add(58, "database-with-a-long-name", "unpause")
	add(72, "job", "die", "exitCode", "0")
	add(80, "job", "destroy")
	add(85, "web", "health_status: unhealthy")
	add(88, "web", "health_status: healthy")
	add(110, "worker", "die", "exitCode", "2")
	present = []Present{
		{ID: "web", Name: "web", Image: "web:latest", Created: at(1), Running: true, Started: at(1)},
		{ID: "database-with-a-long-name", Name: "database-with-a-long-name", Image: "db", Created: at(3), Running: true, Started: at(3)},
		{ID: "worker", Name: "worker", Image: "worker", Created: at(10), Started: at(38), Finished: at(110), ExitCode: 2},
	}
	return lives, events, present
}

func picture() Timeline {
	lives, events, present := story()
	return Build(lives, events, present, time.Time{}, at(120), false)
}

func TestTextAndPageAreAsTheGoldenFilesShow(t *testing.T) {
	p := picture()
	golden.Compare(t, "testdata/wide.txt", []byte(Text(p, TextOptions{Width: 120})))
	golden.Compare(t, "testdata/narrow.txt", []byte(Text(p, TextOptions{Width: 60})))
	golden.Compare(t, "testdata/colour.txt", []byte(Text(p, TextOptions{Width: 100, Colour: true})))
	golden.Compare(t, "testdata/page.html", []byte(HTML(p, time.UTC)))
}

func TestNoLineIsWiderThanTheTerminal(t *testing.T) {
	p := picture()
	for width := 40; width < 200; width++ {
		for i, line := range strings.Split(Text(p, TextOptions{Width: width}), "\n") {
			if n := utf8.RuneCountInString(line); n > width && i > 0 {
				t.Fatalf("width %d: line %d has %d columns: %q", width, i, n, line)
			}
		}
	}
}

func TestRunsAreWhatTheEventsTell(t *testing.T) {
	p := picture()
	var names []string
	for _, c := range p.Containers {
		names = append(names, c.Name)
	}
	if got := strings.Join(names, " "); got != "web database-with-a-long-name worker job" {
		t.Errorf("order: %s", got)
	}
	web, worker, job := p.Containers[0], p.Containers[2], p.Containers[3]
	if len(web.Runs) != 1 || !web.Runs[0].End.IsZero() || web.Runs[0].Lives != 4 {
		t.Errorf("web: %+v", web.Runs)
	}
	if len(worker.Runs) != 3 || worker.Runs[0].ExitCode != 1 || worker.Runs[1].ExitCode != 137 || worker.Runs[2].Lives != 4 || worker.Runs[2].ExitCode != 2 {
		t.Errorf("worker: %+v", worker.Runs)
	}
	if !job.Removed.Equal(at(80)) || !job.Runs[0].End.Equal(at(72)) || job.Runs[0].Lives != 2 {
		t.Errorf("job: %+v", job)
	}
	first := p.Daemon[0]
	if !first.Unseen() || !first.Seen.Equal(at(30)) || p.Daemon[1].Upgraded || !p.Daemon[2].Upgraded || !p.Daemon[3].Upgraded {
		t.Errorf("daemon: %+v", p.Daemon)
	}
}

func TestSinceCutsOffWhatWasBefore(t *testing.T) {
	lives, events, present := story()
	p := Build(lives, events, present, at(90), at(120), false)
	if len(p.Daemon) != 2 || len(p.Containers) != 3 || len(p.Containers[2].Runs) != 1 {
		t.Errorf("%+v", p)
	}
	// A run that began before the picture is drawn from its border on.
	text := Text(p, TextOptions{Width: 100})
	if !strings.Contains(text, "web                   █████") {
		t.Error(text)
	}
}

func TestPresentStateFillsWhatTheJournalHasLost(t *testing.T) {
	present := []Present{
		{ID: "a", Name: "a", Running: true, Started: at(5)},
		{ID: "b", Name: "b", Started: at(6), Finished: at(9), ExitCode: 4},
		{ID: "c", Name: "c"}, // never ran
	}
	p := Build(nil, nil, present, time.Time{}, at(10), false)
	if len(p.Containers) != 2 || !p.From.Equal(at(5)) || p.Containers[1].Runs[0].ExitCode != 4 {
		t.Errorf("%+v", p)
	}
	if text := Text(p, TextOptions{Width: 80}); !strings.Contains(text, "no daemon") {
		t.Error(text)
	}
	// If the journal has a start without an end, the run ends when the container is
	// known to have ended.
	start := event.New("container", "start", "b", map[string]string{"name": "b"}, at(6))
	start.Source = "b/1:1"
	p = Build(nil, []event.Message{start}, present[1:2], time.Time{}, at(10), false)
	if r := p.Containers[0].Runs; len(r) != 1 || !r[0].End.Equal(at(9)) || r[0].ExitCode != 4 {
		t.Errorf("%+v", r)
	}
}

func TestDaemonThatIsAwayIsShownAway(t *testing.T) {
	lives := []event.Life{{Number: 1, Release: "1.0", Start: at(0)}}
	p := Build(lives, nil, nil, time.Time{}, at(10), true)
	if text := Text(p, TextOptions{Width: 80}); !strings.Contains(text, "✗░░░") || !strings.Contains(text, "away now") {
		t.Error(text)
	}
}

func TestNamesCannotBreakThePage(t *testing.T) {
	present := []Present{{ID: "a", Name: `<script>alert("x")</script>`, Image: "\"><b>", Running: true, Started: at(5)}}
	page := HTML(Build(nil, nil, present, time.Time{}, at(10), false), time.UTC)
	for _, bad := range []string{"<script", "<b>", "http://", "https://", "src=", "href="} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %s", bad)
		}
	}
}
