// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	moby "github.com/moby/moby/api/types/container"
	mobynet "github.com/moby/moby/api/types/network"

	"holdfast/internal/container"
	"holdfast/internal/shim/proto"
	"holdfast/internal/store"
	"holdfast/test/golden"
)

// TestStories runs the scripts testdata/stories/*.txt. A script has users' requests
// and what happens to the containers. Under each line of dashes it has the results
// since the last one: the answers to requests, the journalled events, and the states
// that have changed. Time is simulated and passes only at the command pass.
//
// A line that begins with # is a comment. Commands:
//
//	daemon [live-restore]        a daemon starts, and restores
//	observer                     a command observes the containers without a daemon
//	crash                        the daemon dies at once, or the command ends
//	shutdown                     the daemon is asked to stop, and then dies
//	reboot                       the machine reboots
//	create NAME [rm] [restart=POLICY] [volume=PATH] [timeout=SECONDS]
//	start, pause, unpause, rm, rm-f, rm-fv, kill [SIGNAL] NAME
//	stop, restart NAME [SECONDS] [SIGNAL]
//	rename NAME TO
//	connect NAME NETWORK
//	update NAME restart=POLICY|shares=N
//	wait NAME CONDITION          a client waits for the condition
//	logs NAME                    a client follows the log
//	inspect NAME
//	top NAME                     the container has no control group, as if it had just ended
//	borrow NAME                  a client begins to read the container's files
//	return                       all such clients finish
//	giveup                       the client of the last request stops waiting
//	exit NAME CODE               the container's process ends
//	lingers NAME                 the container's process only ends by SIGKILL
//	shim NAME killed|silent|answers|cut|finishes
//	shim NAME journals CODE      it journals the end, and is killed before it records it
//	shim NAME fails CODE MESSAGE the start fails, and the shim has not finished yet
//	hold POINT, release POINT    a step of the engine blocks until it is released
//	fail POINT [CODE] MESSAGE    a step fails once; CODE is the runtime's exit code
//	broken NAME                  the container's record becomes unreadable
//	pass DURATION                time passes
//	state                        all states, and what is in use on the host
//
// A script that leaves a goroutine behind, or blocks for ever, fails.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/stories/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no stories", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			synctest.Test(t, func(t *testing.T) { got = play(t, string(text)) })
			if *golden.Update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			} else if !bytes.Equal(got, text) {
				t.Errorf("%s has other results; run with -update and review the diff:\n%s", file, diff(string(text), string(got)))
			}
		})
	}
}

// diff shows the lines around the first difference.
func diff(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	i := 0
	for i < len(w) && i < len(g) && w[i] == g[i] {
		i++
	}
	from := max(0, i-6)
	return fmt.Sprintf("line %d, want\n  %s\ngot\n  %s", i+1,
		strings.Join(w[from:min(len(w), i+8)], "\n  "), strings.Join(g[from:min(len(g), i+8)], "\n  "))
}

// player runs one script.
type player struct {
	t      *testing.T
	w      *world
	d      *daemon
	last   map[string]string // states at the last line of dashes
	ids    map[string]string
	giveUp context.CancelFunc

	mu      sync.Mutex
	asked   int // the number of requests
	answers map[int]string
	lent    []func() // release acquired files
	wg      sync.WaitGroup
}

// play runs a script and returns it with the actual results.
func play(t *testing.T, text string) []byte {
	s := &player{t: t, w: newWorld(t), last: map[string]string{}, ids: map[string]string{}, answers: map[int]string{}}
	var out bytes.Buffer
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		switch {
		case line == "----":
			synctest.Wait()
			fmt.Fprintln(&out, line)
			for _, l := range s.results() {
				fmt.Fprintln(&out, l)
			}
			for i+1 < len(lines) && lines[i+1] != "" {
				i++ // skip the expected results
			}
		case line == "" || strings.HasPrefix(line, "#"):
			fmt.Fprintln(&out, line)
		default:
			fmt.Fprintln(&out, line)
			s.do(strings.Fields(line))
			synctest.Wait()
		}
	}
	if s.d != nil {
		s.d.kill()
	}
	s.w.mu.Lock()
	for _, hold := range s.w.holds {
		close(hold)
	}
	shims := s.w.shims
	s.w.mu.Unlock()
	for _, sh := range shims {
		sh.killed()
	}
	s.wg.Wait()
	return out.Bytes()
}

// results returns the results since the last call.
func (s *player) results() []string {
	out := s.w.take()
	s.mu.Lock()
	for _, n := range slices.Sorted(maps.Keys(s.answers)) {
		out = append(out, s.answers[n])
	}
	clear(s.answers)
	s.mu.Unlock()
	return append(out, s.states()...)
}

// states returns the states that have changed since the last call.
func (s *player) states() []string {
	var out []string
	now := map[string]string{}
	if s.d != nil && !s.d.ports.dead.Load() {
		for _, a := range s.d.index.all() {
			v := a.view.Load()
			st := v.state.String()
			if (v.state == container.Exited || v.state == container.Dead) && v.hasRun() {
				st += " " + strconv.Itoa(v.exit().ExitCode)
			}
			if shown := apiState(v); shown.Running && !shown.Restarting && shown.Pid == 0 {
				st += " without a process"
			}
			if v.spec.Failure != nil && !v.state.Alive() {
				st += fmt.Sprintf(" (%d: %s)", v.spec.Failure.ExitCode, s.plain(v.spec.Failure.Error))
			}
			now[v.spec.Name] = st
		}
	} else {
		return nil
	}
	for name, st := range now {
		if s.last[name] != st {
			out = append(out, fmt.Sprintf("%s: %s", name, st))
		}
	}
	for name := range s.last {
		if now[name] == "" {
			out = append(out, name+": gone")
		}
	}
	s.last = now
	slices.Sort(out)
	return out
}

var randomID = regexp.MustCompile("[0-9a-f]{64}")

// plain replaces random parts of a text by names.
func (s *player) plain(text string) string {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	text = strings.ReplaceAll(s.w.readable(text), s.w.dir, "")
	return randomID.ReplaceAllString(text, "(anonymous)")
}

// ask calls the engine as a client does, and records the answer.
func (s *player) ask(what string, call func(ctx context.Context, d *daemon) error) {
	ctx, cancel := context.WithCancel(context.Background())
	s.giveUp = cancel
	d := s.d
	n := s.number()
	s.wg.Go(func() {
		err := call(ctx, d)
		if d.ports.dead.Load() {
			return // the client's connection has ended with the daemon
		}
		answer := "ok"
		switch {
		case errdefs.IsNotModified(err):
			answer = "it is so already"
		case err != nil:
			answer = s.plain(err.Error())
			for kind, is := range map[string]func(error) bool{
				"not found": errdefs.IsNotFound, "conflict": errdefs.IsConflict, "invalid": errdefs.IsInvalidArgument, "unavailable": errdefs.IsUnavailable,
			} {
				if is(err) {
					answer = kind + ": " + answer
				}
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.answers[n] = what + " → " + answer
	})
}

// stopOptions parses [SECONDS] [SIGNAL].
func (s *player) stopOptions(words []string) (o StopOptions) {
	for _, w := range words {
		if n, err := strconv.Atoi(w); err == nil {
			o.Timeout = &n
		} else {
			o.Signal = w
		}
	}
	return o
}

func (s *player) number() int {
	s.asked++
	return s.asked
}

func (s *player) shim(name string) *fakeShim {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	sh := s.w.shims[s.ids[name]]
	if sh == nil {
		s.t.Fatalf("%s has no shim", name)
	}
	return sh
}

func (s *player) do(words []string) {
	line := strings.Join(words, " ")
	arg := func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	switch verb, name := arg(0), arg(1); verb {
	case "daemon":
		s.d = s.w.start(name == "live-restore")
		if err := s.d.Load(); err != nil {
			s.t.Fatal(err)
		}
		d := s.d
		s.ask("restore", func(ctx context.Context, _ *daemon) error { return d.Restore(ctx) })
	case "observer":
		var o *Observer
		s.d, o = s.w.observe()
		s.ask("observe", func(ctx context.Context, _ *daemon) error { return o.Observe(ctx) })
	case "crash":
		s.d.kill()
	case "shutdown":
		d := s.d
		s.ask("shutdown", func(ctx context.Context, _ *daemon) error { d.Shutdown(ctx, false); return nil })
	case "reboot":
		s.d.kill()
		s.w.mu.Lock()
		shims := s.w.shims
		s.w.boot++
		s.w.mounted, s.w.sandboxes = map[string]bool{}, map[string]string{}
		for name := range s.w.volumes {
			s.w.volumes[name] = []string{}
		}
		s.w.mu.Unlock()
		for _, sh := range shims {
			sh.killed()
		}
		if err := os.RemoveAll(filepath.Join(s.w.dir, "run")); err != nil {
			s.t.Fatal(err)
		}
	case "create":
		req := moby.CreateRequest{Config: &moby.Config{Image: "box"}, HostConfig: &moby.HostConfig{}}
		for _, o := range words[2:] {
			k, v, _ := strings.Cut(o, "=")
			switch k {
			case "rm":
				req.HostConfig.AutoRemove = true
			case "restart":
				req.HostConfig.RestartPolicy.Name = moby.RestartPolicyMode(v)
			case "volume":
				req.Config.Volumes = map[string]struct{}{v: {}}
			case "timeout":
				n, err := strconv.Atoi(v)
				if err != nil {
					s.t.Fatal(err)
				}
				req.Config.StopTimeout = &n
			case "image":
				req.Config.Image = v
			case "joins":
				req.HostConfig.NetworkMode = moby.NetworkMode("container:" + v)
			default:
				s.t.Fatalf("create: unknown option %q", o)
			}
		}
		s.ask(line, func(ctx context.Context, d *daemon) error {
			r, err := d.ContainerCreate(ctx, CreateOptions{Name: name, Request: req})
			if err == nil {
				s.mu.Lock()
				s.ids[name] = r.ID
				s.mu.Unlock()
				s.w.named(r.ID, name)
			}
			return err
		})
	case "start":
		s.ask(line, func(ctx context.Context, d *daemon) error { return d.ContainerStart(ctx, name) })
	case "stop":
		o := s.stopOptions(words[2:])
		s.ask(line, func(ctx context.Context, d *daemon) error { return d.ContainerStop(ctx, name, o) })
	case "restart":
		o := s.stopOptions(words[2:])
		s.ask(line, func(ctx context.Context, d *daemon) error { return d.ContainerRestart(ctx, name, o) })
	case "pause":
		s.ask(line, func(ctx context.Context, d *daemon) error { return d.ContainerPause(ctx, name) })
	case "unpause":
		s.ask(line, func(ctx context.Context, d *daemon) error { return d.ContainerUnpause(ctx, name) })
	case "kill":
		s.ask(line, func(ctx context.Context, d *daemon) error { return d.ContainerKill(ctx, name, arg(2)) })
	case "rename":
		s.ask(line, func(ctx context.Context, d *daemon) error { return d.ContainerRename(ctx, name, arg(2)) })
	case "rm", "rm-f", "rm-fv":
		o := RemoveOptions{Force: verb != "rm", Volumes: verb == "rm-fv"}
		s.ask(line, func(ctx context.Context, d *daemon) error { return d.ContainerRemove(ctx, name, o) })
	case "connect":
		s.ask(line, func(ctx context.Context, d *daemon) error {
			return d.NetworkConnect(ctx, arg(2), mobynet.ConnectRequest{Container: name})
		})
	case "update":
		u := moby.UpdateConfig{}
		k, v, _ := strings.Cut(arg(2), "=")
		switch k {
		case "restart":
			u.RestartPolicy.Name = moby.RestartPolicyMode(v)
		case "shares":
			n, err := strconv.Atoi(v)
			if err != nil {
				s.t.Fatal(err)
			}
			u.CPUShares = int64(n)
		default:
			s.t.Fatalf("update: unknown option %q", arg(2))
		}
		s.ask(line, func(ctx context.Context, d *daemon) error { _, err := d.ContainerUpdate(ctx, name, u); return err })
	case "logs":
		// The answer comes when a client that follows the log would reach its end.
		s.ask(line, func(ctx context.Context, d *daemon) error {
			a, err := d.index.find(name)
			if err != nil {
				return err
			}
			select {
			case <-a.ends():
				return nil
			case <-ctx.Done():
				return ctx.Err()
			case <-d.ports.killed:
				return errDead
			}
		})
	case "inspect":
		s.ask(line, func(ctx context.Context, d *daemon) error {
			r, err := d.ContainerInspect(ctx, name, false)
			if err != nil {
				return err
			}
			return fmt.Errorf("restart=%s shares=%d", r.HostConfig.RestartPolicy.Name, r.HostConfig.CPUShares)
		})
	case "top":
		s.ask(line, func(ctx context.Context, d *daemon) error { _, err := d.ContainerTop(ctx, name, ""); return err })
	case "wait":
		s.ask(line, func(ctx context.Context, d *daemon) error {
			ch, err := d.ContainerWait(ctx, name, moby.WaitCondition(arg(2)))
			if err != nil {
				return err
			}
			select {
			case r := <-ch:
				return fmt.Errorf("exit code %d", r.StatusCode)
			case <-ctx.Done():
				return ctx.Err()
			case <-d.ports.killed:
				return errDead
			}
		})
	case "giveup":
		s.giveUp()
	case "exit":
		code, err := strconv.Atoi(arg(2))
		if err != nil {
			s.t.Fatal(err)
		}
		s.shim(name).exit(code)
	case "lingers":
		sh := s.shim(name)
		sh.mu.Lock()
		sh.lingers = true
		sh.mu.Unlock()
	case "shim":
		switch sh := s.shim(name); arg(2) {
		case "killed":
			sh.killed()
		case "journals":
			code, err := strconv.Atoi(arg(3))
			if err != nil {
				s.t.Fatal(err)
			}
			sh.killedJournalling(code)
		case "silent", "answers":
			sh.mu.Lock()
			sh.silent = arg(2) == "silent"
			sh.mu.Unlock()
		case "fails":
			code, err := strconv.Atoi(arg(3))
			if err != nil {
				s.t.Fatal(err)
			}
			sh.fails(code, strings.Join(words[4:], " "))
		case "finishes":
			sh.mu.Lock()
			sh.finish()
			sh.mu.Unlock()
		case "cut":
			// Its connections end, and it runs on.
			sh.mu.Lock()
			conns := sh.conns
			sh.conns = nil
			sh.mu.Unlock()
			for _, c := range conns {
				c.end()
			}
		default:
			s.t.Fatalf("shim: unknown action %q", arg(2))
		}
	case "borrow":
		s.ask(line, func(ctx context.Context, d *daemon) error {
			a, err := d.find(ctx, name)
			if err != nil {
				return err
			}
			release, err := a.acquireFiles(ctx)
			s.mu.Lock()
			s.lent = append(s.lent, release)
			s.mu.Unlock()
			return err
		})
	case "return":
		s.mu.Lock()
		lent := s.lent
		s.lent = nil
		s.mu.Unlock()
		for _, release := range lent {
			release()
		}
	case "hold":
		s.w.mu.Lock()
		s.w.holds[strings.Join(words[1:], " ")] = make(chan struct{})
		s.w.mu.Unlock()
	case "release":
		point := strings.Join(words[1:], " ")
		s.w.mu.Lock()
		hold := s.w.holds[point]
		delete(s.w.holds, point)
		s.w.mu.Unlock()
		if hold == nil {
			s.t.Fatalf("nothing is held at %q", point)
		}
		close(hold)
	case "fail":
		point, message, _ := strings.Cut(strings.Join(words[1:], " "), ": ")
		err := errors.New(message)
		if code, text, ok := strings.Cut(message, " "); ok {
			if n, cerr := strconv.Atoi(code); cerr == nil {
				err = &proto.Error{Kind: proto.KindRuntime, Message: text, ExitCode: n}
			}
		}
		s.w.mu.Lock()
		s.w.faults[point] = err
		s.w.mu.Unlock()
	case "broken":
		s.w.mu.Lock()
		s.w.broken = append(s.w.broken, store.Broken{ID: s.ids[name], Err: errdefs.ErrDataLoss})
		delete(s.w.specs, s.ids[name])
		s.w.mu.Unlock()
	case "pass":
		d, err := time.ParseDuration(name)
		if err != nil {
			s.t.Fatal(err)
		}
		<-time.After(d) // simulated time
	case "state":
		synctest.Wait()
		var lines []string
		for name, st := range s.last {
			lines = append(lines, "  "+name+" is "+st)
		}
		slices.Sort(lines)
		for _, l := range s.w.left() {
			lines = append(lines, "  held: "+l)
		}
		if len(lines) == 0 {
			lines = []string{"  nothing is left"}
		}
		s.mu.Lock()
		s.answers[s.number()] = strings.Join(lines, "\n")
		s.mu.Unlock()
	default:
		s.t.Fatalf("unknown command %q", line)
	}
}
