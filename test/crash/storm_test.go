// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
	"holdfast/test/kit"
)

var (
	stormTime = flag.Duration("storm", 20*time.Second, "how long BenchmarkStormOfDeaths kills")
	stormSeed = flag.Uint64("seed", uint64(time.Now().UnixNano()), "what BenchmarkStormOfDeaths throws its dice with")
	stormBoth = flag.Bool("both", true, "BenchmarkStormOfDeaths kills daemon and shims together as well")
)

// stormProgram counts its runs in a file, and its lines within each run. Each
// line is one write.
const stormProgram = `n=$(cat /n 2>/dev/null || echo 0); n=$((n+1)); echo $n >/n
trap 'echo "$n end $i"; exit 7' TERM
i=0; echo "$n start"
while :; do i=$((i+1)); echo "$n $i"; busybox usleep 3000; done`

// storm is the load on a daemon and its containers, and its results.
type storm struct {
	b *testing.B
	d *kit.Daemon

	mu    sync.Mutex
	said  map[string]int // errors by message
	done  map[string]int
	shook []time.Time // times at which daemon and shims were dead together
}

func (s *storm) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done[what]++
}

var numbers = regexp.MustCompile(`[0-9a-f]{12,64}|\d+`)

func (s *storm) refused(what, words string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said[what+": "+numbers.ReplaceAllString(strings.TrimSpace(words), "#")]++
}

// call sends a request to the API. It returns 0 if the daemon died or was not
// running.
func (s *storm) call(method, path string, body, into any) (int, string) {
	var in io.Reader
	if body != nil {
		b, _ := json.Marshal(body)
		in = bytes.NewReader(b)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, method, "http://d"+path, in)
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.d.HTTP().Do(req)
	if err != nil {
		if ctx.Err() != nil {
			s.b.Errorf("%s %s hangs", method, path)
			s.d.Signal(unix.SIGUSR1) // the daemon logs its goroutines' stacks
		}
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	if into != nil && resp.StatusCode < 300 {
		if err := json.Unmarshal(b, into); err != nil {
			return 0, err.Error()
		}
	}
	return resp.StatusCode, string(b)
}

// insist repeats a request until a daemon has answered.
func (s *storm) insist(method, path string, body, into any) (int, string) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if code, words := s.call(method, path, body, into); code != 0 {
			return code, words
		}
		<-tick.C
	}
}

type stormState struct {
	ID    string
	State struct {
		Status   string
		Running  bool
		ExitCode int
		Error    string
		Pid      int
	}
	RestartCount int
}

// live performs random operations of a user on one container, until stop is
// closed.
func (s *storm) live(name string, dice *rand.Rand, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		switch n := dice.IntN(20); {
		case n < 3:
			if !s.listens(name) {
				continue
			}
			began := time.Now()
			code, words := s.call("POST", "/containers/"+name+"/stop?t=30", nil, nil)
			switch code {
			case 0:
				s.count("stop unanswered")
			case 204, 304:
				s.count("stop")
				var st stormState
				if c, _ := s.insist("GET", "/containers/"+name+"/json", nil, &st); c != 200 {
					s.b.Errorf("container %s does not exist after its stop", name)
				} else if st.State.Running || st.State.Status != "exited" && st.State.Status != "created" {
					s.b.Errorf("%s after its stop: %+v", name, st.State)
				} else if x := st.State.ExitCode; code == 204 && st.State.Status == "exited" && x != 7 && !(x == 255 && s.shaken(began)) {
					s.b.Errorf("%s after its stop at %s: %+v", name, began.Format("05.000"), st.State)
				}
			default:
				s.refused("stop", words)
			}
		case n < 7:
			code, words := s.call("POST", "/containers/"+name+"/start", nil, nil)
			switch code {
			case 0:
				s.count("start unanswered")
			case 204, 304:
				s.count("start")
				var st stormState
				if s.insist("GET", "/containers/"+name+"/json", nil, &st); !st.State.Running {
					s.b.Errorf("%s after its start: %+v", name, st.State)
				}
			default:
				s.refused("start", words)
			}
		case n < 9:
			if !s.listens(name) {
				continue
			}
			code, words := s.call("POST", "/containers/"+name+"/restart?t=30", nil, nil)
			switch code {
			case 0:
				s.count("restart unanswered")
			case 204:
				s.count("restart")
				var st stormState
				if s.insist("GET", "/containers/"+name+"/json", nil, &st); !st.State.Running {
					s.b.Errorf("%s after its restart: %+v", name, st.State)
				}
			default:
				s.refused("restart", words)
			}
		case n < 13:
			word := strconv.Itoa(dice.IntN(1e6))
			r := s.d.TryHoldfast("exec", name, "sh", "-c", "echo "+word+"; exit 5")
			switch {
			case r.Code == 5 && r.Stdout == word+"\n":
				s.count("exec")
			case r.Code == 5:
				s.b.Errorf("exec in %s gave %q, 5: %q", name, r.Stdout, r.Stderr)
			default:
				s.refused("exec", fmt.Sprintf("%d %q %s", r.Code, r.Stdout, r.Stderr))
			}
		case n < 15:
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(dice.IntN(400))*time.Millisecond)
			out, _ := s.d.HoldfastCommand(ctx, "logs", "-f", "--tail", "50", name).Output()
			cancel()
			if i := bytes.LastIndexByte(out, '\n'); i > 0 {
				if err := inOrder(string(out[:i]), true); err != nil {
					s.b.Errorf("logs -f of %s: %v", name, err)
				}
				s.count("logs -f")
			}
		case n < 17:
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(dice.IntN(400))*time.Millisecond)
			out, _ := s.d.HoldfastCommand(ctx, "attach", "--no-stdin", "--sig-proxy=false", name).Output()
			cancel()
			if i := bytes.LastIndexByte(out, '\n'); i > 0 {
				if err := inOrder(string(out[:i]), true); err != nil {
					s.b.Errorf("attach to %s: %v", name, err)
				}
				s.count("attach")
			}
		case n < 18:
			var list []struct{ Names []string }
			if code, _ := s.call("GET", "/containers/json?all=1", nil, &list); code == 200 {
				seen := map[string]int{}
				for _, c := range list {
					seen[c.Names[0]]++
				}
				if seen["/"+name] != 1 {
					s.b.Errorf("%s is listed %d times", name, seen["/"+name])
				}
				s.count("list")
			}
		case n < 19:
			if code, words := s.call("POST", "/containers/"+name+"/pause", nil, nil); code >= 400 {
				s.refused("pause", words)
			}
			if code, words := s.insist("POST", "/containers/"+name+"/unpause", nil, nil); code >= 400 {
				s.refused("unpause", words)
			}
			s.count("pause")
		default:
			short := name + "-short"
			if code, words := s.insist("DELETE", "/containers/"+short+"?force=1&v=1", nil, nil); code != 204 && code != 404 {
				s.refused("remove", words)
			}
			code, words := s.call("POST", "/containers/create?name="+short, map[string]any{
				"Image": image, "Cmd": []string{"sh", "-c", "echo out; exit 3"},
				"HostConfig": map[string]any{"AutoRemove": dice.IntN(2) == 0, "Mounts": []map[string]any{{"Type": "volume", "Target": "/v"}}},
			}, nil)
			if code >= 400 {
				s.refused("create", words)
			}
			started, words := s.call("POST", "/containers/"+short+"/start", nil, nil)
			if started >= 400 {
				s.refused("start short", words)
			}
			var end struct{ StatusCode int }
			began := time.Now()
			code, words = s.call("POST", "/containers/"+short+"/wait", nil, &end)
			switch {
			case code == 200 && started == 204 && end.StatusCode != 3 && end.StatusCode != 0 && !s.shaken(began):
				s.b.Errorf("%s ended with %d", short, end.StatusCode)
			case code == 200:
				s.count("short")
			case code != 0:
				s.refused("wait", words)
			}
		}
	}
}

// listens reports whether the program has set its trap. Before that PID 1
// ignores SIGTERM.
func (s *storm) listens(name string) bool {
	r := s.d.TryHoldfast("exec", name, "grep", "SigCgt", "/proc/1/status")
	f := strings.Fields(r.Stdout)
	if r.Code != 0 || len(f) != 2 {
		return false
	}
	mask, err := strconv.ParseUint(f[1], 16, 64)
	return err == nil && mask&(1<<(unix.SIGTERM-1)) != 0
}

// shaken reports whether daemon and shims were dead together since a time.
func (s *storm) shaken(since time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.shook {
		if t.After(since.Add(-time.Second)) {
			return true
		}
	}
	return false
}

// inOrder checks that the numbered lines of a program are complete. With part,
// lines at the beginning may be missing.
func inOrder(text string, part bool) error {
	run, at, ended := -1, -1, false
	for line := range strings.SplitSeq(text, "\n") {
		f := strings.Fields(line)
		bad := func() error { return fmt.Errorf("after %d %d comes %q", run, at, line) }
		if len(f) < 2 {
			return bad()
		}
		n, err := strconv.Atoi(f[0])
		if err != nil {
			return bad()
		}
		switch {
		case f[1] == "start":
			if run >= 0 && n != run+1 {
				// A run without output is no loss: its start was interrupted
				// and undone.
				if n <= run || n > run+10 {
					return bad()
				}
			}
			run, at, ended = n, 0, false
		case f[1] == "end":
			m, _ := strconv.Atoi(f[2])
			if run >= 0 && (n != run || m != at && !(m == at+1) || ended) {
				return bad()
			}
			run, at, ended = n, m, true
		default:
			m, err := strconv.Atoi(f[1])
			if err != nil {
				return bad()
			}
			if run < 0 && part {
				run, at = n, m
				continue
			}
			if n != run || m != at+1 || ended {
				return bad()
			}
			at = m
		}
	}
	return nil
}

func (s *storm) shims() []int {
	var out []int
	dirs, _ := filepath.Glob(s.d.ExecRoot + "/shim/*/" + proto.StateFile)
	for _, path := range dirs {
		var st proto.State
		b, _ := os.ReadFile(path)
		if json.Unmarshal(b, &st) == nil && st.ShimPid > 0 {
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", st.ShimPid))
			if bytes.Contains(cmdline, []byte("holdfast-shim")) {
				out = append(out, st.ShimPid)
			}
		}
	}
	return out
}

// BenchmarkStormOfDeaths kills daemon and shims at random while users operate
// their containers, and looks for state that is lost, doubled, wrong or left
// over. It is not a test, because its random choices differ in every run:
//
//	go test ./test/crash -run xxx -bench StormOfDeaths -benchtime 1x -storm 5m
func BenchmarkStormOfDeaths(b *testing.B) {
	kit.ReapOrphans()
	b.Logf("-seed %d", *stormSeed)
	dice := rand.New(rand.NewPCG(*stormSeed, 1))
	d := kit.Start(b, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(b, nil))
	s := &storm{b: b, d: d, said: map[string]int{}, done: map[string]int{}}
	const many = 6
	var names []string
	for i := range many {
		name := "c" + strconv.Itoa(i)
		args := []string{"create", "--name", name, "-v", "/v"}
		switch i % 3 {
		case 0:
			args = append(args, "--restart", "always")
		case 1:
			args = append(args, "-p", "80", "--health-cmd", "true", "--health-interval", "200ms")
		case 2:
			args = append(args, "--restart", "on-failure")
		}
		d.Holdfast(append(args, image, "sh", "-c", stormProgram)...)
		names = append(names, name)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i, name := range names {
		own := rand.New(rand.NewPCG(*stormSeed, uint64(i)+2))
		wg.Go(func() { s.live(name, own, stop) })
	}
	over := time.After(*stormTime)
	for going := true; going; {
		select {
		case <-over:
			going = false
			continue
		case <-time.After(time.Duration(50+dice.IntN(500)) * time.Millisecond):
		}
		shims := s.shims()
		killShim := func() {
			if len(shims) > 0 {
				unix.Kill(shims[dice.IntN(len(shims))], unix.SIGKILL)
			}
		}
		pause := func() { <-time.After(time.Duration(dice.IntN(200)) * time.Millisecond) }
		switch n := dice.IntN(8); {
		case n < 3:
			killShim()
			s.count("kill of a shim")
		case n < 5:
			d.Kill9()
			pause()
			d.Start()
			s.count("kill of the daemon")
		case n < 6:
			if *stormBoth {
				s.mu.Lock()
				s.shook = append(s.shook, time.Now())
				s.mu.Unlock()
				for _, pid := range shims {
					if dice.IntN(2) == 0 {
						unix.Kill(pid, unix.SIGKILL)
					}
				}
				d.Kill9()
				for _, pid := range s.shims() {
					if dice.IntN(2) == 0 {
						unix.Kill(pid, unix.SIGKILL)
					}
				}
				pause()
				d.Start()
				s.mu.Lock()
				s.shook = append(s.shook, time.Now())
				s.mu.Unlock()
				s.count("kill of both")
			}
		case n < 7:
			if err := d.TryTakeover(); err != nil {
				s.refused("takeover", err.Error())
			}
			s.count("takeover")
		default:
			r := d.TryHoldfast("daemon", "upgrade", "--shims")
			if r.Code != 0 {
				s.refused("upgrade of shims", r.Stdout+r.Stderr)
			}
			s.count("upgrade of shims")
		}
		if b.Failed() {
			going = false
		}
	}
	close(stop)
	wg.Wait()
	if b.Failed() {
		return
	}
	for _, name := range names {
		var st stormState
		if code, words := s.insist("GET", "/containers/"+name+"/json", nil, &st); code != 200 {
			b.Errorf("%s is lost: %s", name, words)
			continue
		}
		if st.State.Running {
			if got := d.Holdfast("exec", name, "echo", "works"); got != "works" {
				b.Errorf("exec in %s: %q", name, got)
			}
			if n := len(kit.Shims(b, st.ID)); n != 1 {
				b.Errorf("%s has %d shims", name, n)
			}
			d.Holdfast("stop", "-t", "30", name)
			s.insist("GET", "/containers/"+name+"/json", nil, &st)
			if st.State.ExitCode != 7 {
				b.Errorf("%s at last: %+v", name, st.State)
			}
		}
		log := d.Holdfast("logs", name)
		if err := inOrder(log, false); err != nil {
			b.Errorf("log of %s: %v", name, err)
		}
		b.Logf("%s: %d lines, %d ends", name, strings.Count(log, "\n"), strings.Count(log, "end"))
		if n := len(kit.Shims(b, st.ID)); n != 0 {
			b.Errorf("container %s has %d shims although it does not run", name, n)
		}
	}
	var lines []string
	for what, n := range s.said {
		lines = append(lines, fmt.Sprintf("%6d %s", n, what))
	}
	for what, n := range s.done {
		lines = append(lines, fmt.Sprintf("%6d × %s", n, what))
	}
	sort.Strings(lines)
	fmt.Println(strings.Join(lines, "\n")) // b.Log cuts it off
}
