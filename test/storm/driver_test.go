// SPDX-License-Identifier: Apache-2.0

package storm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/test/kit"
	"holdfast/test/storm/model"
)

// bound is how long any request may take beyond what it was asked to wait. The
// machine may be busy, and the daemon frozen for a second.
const bound = 60 * time.Second

// result is what came of a round.
type result struct {
	violations []string
	history    []string
	log        string // of the daemon, of this round
	host       string // at the first violation
	tally      tally
	took       time.Duration
	playing    time.Duration // the part of it before the judgement
	played     []int         // operations of each client
}

// everywhere is the slot of a window that touches all.
var everywhere = place{-1, -1}

// place is a slot of a client.
type place struct{ client, slot int }

func (p place) String() string { return fmt.Sprintf("c%ds%d", p.client, p.slot) }

// window is the time in which a fault may make requests fail.
type window struct {
	kind     model.Kind
	at       place
	from, to time.Time
}

// slot is a model's slot with what the driver knows of it.
type slot struct {
	at place

	mu      sync.Mutex // guards what follows
	model   *model.Slot
	id      string // of the present container, or of the last
	gen     int
	settled time.Time // when nothing that was lost can be pending any more
	words   []string  // in the slot's named volume, acknowledged
	damaged bool      // its network was taken apart, until it starts again
	upset   int       // operations that end or freeze the container, begun so far
}

// storm is a round that is being played.
type storm struct {
	t        testing.TB
	d        *kit.Daemon
	registry *kit.Registry
	other    *other
	plan     model.Plan
	began    time.Time
	slots    map[place]*slot
	streams  sync.WaitGroup
	cancel   context.CancelFunc // of all that is in the background
	ctx      context.Context
	api      *http.Client

	mu         sync.Mutex // guards what follows
	windows    []*window
	violations []string
	host       string // at the first violation
	history    []string
	tally      tally
	byID       map[string]*slot
	gens       map[string]int // of containers, by ID
	waits      []waited
	shimKills  map[place]time.Time
	runs       map[string][2]int // starts of removed containers, by ID
	flowing    map[string]bool   // streams that have not ended
	full       bool              // the disk was full in this round
	armed      string            // the failpoint of the running daemon
}

// waited is an answered wait.
type waited struct {
	id   string
	code int
}

// play plays a round.
func play(t testing.TB, d *kit.Daemon, registry *kit.Registry, neighbour *other, plan model.Plan) result {
	t.Helper()
	s := &storm{
		t: t, d: d, registry: registry, other: neighbour, plan: plan, began: time.Now(), api: d.HTTP(),
		slots: map[place]*slot{}, tally: newTally(), byID: map[string]*slot{}, gens: map[string]int{},
		shimKills: map[place]time.Time{}, runs: map[string][2]int{}, flowing: map[string]bool{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	defer s.cancel()
	logFrom := len(d.Log())
	for c := range plan.Clients {
		for n := range plan.Slots {
			at := place{c, n}
			s.slots[at] = &slot{at: at, model: model.NewSlot()}
		}
		s.must("POST", "/networks/create", map[string]any{"Name": network(c), "Labels": map[string]string{"storm": "keep"}})
	}
	done := make(chan struct{})
	over := make(chan struct{}) // all faults were played
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		s.gremlin(done, over)
	}()
	var users sync.WaitGroup
	played := make([]int, plan.Clients)
	for c := range plan.Clients {
		users.Go(func() { played[c] = s.client(c, over) })
	}
	users.Wait()
	playedFor := time.Since(s.began)
	close(done)
	<-gone
	s.judge()
	return result{s.violations, s.history, d.Log()[logFrom:], s.host, s.tally, time.Since(s.began), playedFor, played}
}

// client does the operations of a client, and returns how many.
func (s *storm) client(c int, over <-chan struct{}) (played int) {
	rest := 0
	for _, o := range s.plan.Ops {
		if o.Client != c {
			continue
		}
		if s.failed() || s.plan.Rest > 0 && rest >= s.plan.Rest {
			break
		}
		select {
		case <-over:
			rest++
		default:
		}
		s.run(o)
		played++
	}
	return played
}

func network(client int) string { return fmt.Sprintf("net%d", client) }

// note records a line of the history.
func (s *storm) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history = append(s.history, fmt.Sprintf("%8.3f ", time.Since(s.began).Seconds())+fmt.Sprintf(format, args...))
}

func (s *storm) violate(kind, format string, args ...any) {
	text := kind + ": " + fmt.Sprintf(format, args...)
	s.note("VIOLATION %s", text)
	s.mu.Lock()
	first := len(s.violations) == 0
	s.violations = append(s.violations, text)
	s.mu.Unlock()
	if first && *stormOut != "" {
		host := s.onHost()
		s.mu.Lock()
		s.host = host
		s.mu.Unlock()
	}
}

func (s *storm) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.violations) > 0
}

// open begins a window of a fault, which shut ends after a grace.
func (s *storm) open(kind model.Kind, at place) *window {
	w := &window{kind: kind, at: at, from: time.Now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.windows = append(s.windows, w)
	return w
}

func (s *storm) shut(w *window, grace time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.to = time.Now().Add(grace)
}

// touched reports whether a window of one of the kinds touches the time since
// from at a place. Without kinds any does.
func (s *storm) touched(at place, from time.Time, kinds ...model.Kind) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	// A daemon that is to die at a failpoint does so before anyone can say so.
	if (s.armed != "" || !s.d.Running()) && (len(kinds) == 0 || slices.Contains(kinds, model.Failpoint)) {
		return true
	}
	for _, w := range s.windows {
		if w.at != everywhere && at != everywhere && w.at != at || !w.to.IsZero() && w.to.Before(from) {
			continue
		}
		if len(kinds) == 0 {
			return true
		}
		if slices.Contains(kinds, w.kind) {
			return true
		}
	}
	return false
}

// deaths are the faults by which a connection may break.
var deaths = []model.Kind{model.KillDaemon, model.Failpoint, model.KillBoth, model.TermDaemon, model.NoMemory, model.NoFiles}

// reply is an answer of the API.
type reply struct {
	code int // 0 is none
	body []byte
	err  error
	hung bool
	gone bool // the client vanished
	took time.Duration
}

// ask sends a request. vanish, if not 0, is when the client goes away; patience
// is what the request may take beyond the bound.
func (s *storm) ask(method, path string, body any, vanish, patience time.Duration) reply {
	began := time.Now()
	limit := bound + patience
	if vanish > 0 {
		limit = vanish
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var in io.Reader
	if r, ok := body.(io.Reader); ok {
		in = r
	} else if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return reply{err: err}
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://d"+path, in)
	if err != nil {
		return reply{err: err}
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.api.Do(req)
	var r reply
	if err == nil {
		r.code = resp.StatusCode
		r.body, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	r.took = time.Since(began)
	if err != nil {
		r.code, r.err = 0, err
		r.gone = vanish > 0 && ctx.Err() != nil
		r.hung = vanish == 0 && ctx.Err() != nil
	}
	return r
}

// insist asks until a daemon has answered. ok is false if none has within the
// bound.
func (s *storm) insist(method, path string, body any) (reply, bool) {
	late := time.Now().Add(bound)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		r := s.ask(method, path, body, 0, 0)
		if r.code != 0 && r.code != 503 {
			return r, true
		}
		if r.hung || time.Now().After(late) {
			s.violate("hung", "%s %s: %v", method, path, r.err)
			s.stacks()
			return r, false
		}
		if r.code == 0 && !s.touched(everywhere, time.Now().Add(-r.took), deaths...) {
			s.violate("refused connection", "%s %s: %v, and nothing was killed", method, path, r.err)
			return r, false
		}
		<-tick.C
	}
}

// stacks lets the daemon write its stacks into its log.
func (s *storm) stacks() {
	if s.d.Running() {
		unix.Kill(s.d.Pid(), unix.SIGUSR1)
	}
}

func (s *storm) must(method, path string, body any) {
	s.t.Helper()
	if r, ok := s.insist(method, path, body); !ok || r.code >= 300 {
		s.violate("setup", "%s %s: %d %s", method, path, r.code, r.body)
	}
}

// answer maps a reply to what the model judges.
func (s *storm) answer(o model.Op, at place, began time.Time, r reply) model.Answer {
	a := model.Answer{Late: r.took >= time.Duration(o.Time)*time.Second, Disturbed: s.disturbed(o, at, began)}
	switch c := r.code; {
	case c == 0 || c == 503 || c == 499:
		a.Result = model.Lost
		switch {
		case r.hung:
			s.violate("hung", "%s after %s", o, r.took)
			s.stacks()
		case r.gone:
		case c == 503 && a.Disturbed: // its shim was killed
		case !s.touched(everywhere, began, deaths...):
			s.violate("lost answer", "%s: %d %v %s, and nothing was killed", o, c, r.err, r.body)
		}
	case c == 304:
		a.Result = model.Same
	case c < 300:
		a.Result = model.OK
	case c == 404:
		a.Result = model.Missing
	case c == 409 && o.Kind == model.Create:
		a.Result = model.Conflict
	default:
		a.Result = model.Refused
	}
	return a
}

// disturbed reports whether a fault may make the operation fail.
func (s *storm) disturbed(o model.Op, at place, began time.Time) bool {
	kinds := []model.Kind{
		model.KillShim, model.KillBoth, model.KillRuntime, model.KillInit, model.KillContainer, model.FreezeShim, model.MountGone, model.FillDisk, model.FillInodes,
		model.TermDaemon, model.KillDaemon, model.Failpoint, model.NoMemory, model.NoFiles, model.NoFilesShim,
	}
	switch o.Kind {
	case model.Start, model.Restart, model.NetJoin, model.NetLeave, model.NetCreate, model.NetRemove, model.Port, model.Stop, model.Remove, model.PruneNet, model.Create:
		kinds = append(kinds, model.FlushRules, model.LinkGone, model.BridgeDown)
	}
	return s.touched(at, began, kinds...)
}

// run does one operation and judges its answer.
func (s *storm) run(o model.Op) {
	s.mu.Lock()
	s.tally.ops[o.Kind]++
	s.mu.Unlock()
	l := s.slots[place{o.Client, o.Slot}]
	switch o.Kind {
	case model.Stop, model.Kill, model.Restart, model.Remove, model.Prune, model.Pause, model.Commit:
		l.mu.Lock()
		l.upset++
		l.mu.Unlock()
	}
	do, ok := operations[o.Kind]
	if !ok {
		s.violate("driver", "no way to do %s", o.Kind)
		return
	}
	do(s, l, o)
}

// act does an operation that changes a container, and tells the model.
func (s *storm) act(l *slot, o model.Op, method, path string, body any) (reply, bool) {
	l.mu.Lock()
	id, gen := l.id, l.gen
	l.mu.Unlock()
	if id == "" {
		return reply{}, false
	}
	began := time.Now()
	r := s.ask(method, strings.ReplaceAll(path, "ID", id), body, time.Duration(o.Vanish)*time.Millisecond, time.Duration(o.Time)*time.Second)
	a := s.answer(o, l.at, began, r)
	s.tell(l, o, gen, a, string(r.body), r.took)
	s.look(l)
	return r, a.Result == model.OK
}

// tell gives an answer to the model.
func (s *storm) tell(l *slot, o model.Op, gen int, a model.Answer, words string, took time.Duration) {
	l.mu.Lock()
	if l.id != "" && l.gen == gen && o.Kind != model.Create {
		// It may be removed now, and have been restarted since the last look.
		s.countRuns(l, l.id, gen)
	}
	before := l.model.String()
	err := l.model.Do(o, gen, a)
	after := l.model.String()
	if a.Result == model.Lost {
		if until := time.Now().Add(time.Duration(o.Time)*time.Second + time.Second); until.After(l.settled) {
			l.settled = until
		}
	}
	if a.Result == model.OK && (o.Kind == model.Start || o.Kind == model.Restart) {
		l.damaged = false
	}
	l.mu.Unlock()
	s.note("%s %s: %s (disturbed %v, %s) %s\n            was %s\n            is  %s", l.at, o, a.Result, a.Disturbed, took.Round(time.Millisecond), shorten(words), before, after)
	if a.Result == model.Lost {
		s.mu.Lock()
		s.tally.lost++
		s.mu.Unlock()
	}
	if err != nil {
		s.violate("wrong answer", "%s %s: %v: %s", l.at, o, err, shorten(words))
	}
}

func shorten(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > 300 {
		s = s[:300] + "…"
	}
	return s
}

type inspected struct {
	ID, Name string
	State    struct {
		Status           string
		Pid, ExitCode    int
		Error, StartedAt string
		FinishedAt       string
		OOMKilled, Dead  bool
		Running, Paused  bool
		Restarting       bool
		Health           *struct{ Status string }
	}
	RestartCount    int
	Config          struct{ Labels map[string]string }
	NetworkSettings struct {
		Networks map[string]struct{ IPAddress string }
		Ports    map[string][]struct{ HostIP, HostPort string }
	}
}

// find lists the containers of a slot.
func (s *storm) find(l *slot) ([]string, bool) {
	filters := url.QueryEscape(fmt.Sprintf(`{"label":["slot=%s"]}`, l.at))
	r, ok := s.insist("GET", "/containers/json?all=1&filters="+filters, nil)
	if !ok {
		return nil, false
	}
	var list []struct{ Id string }
	if err := json.Unmarshal(r.body, &list); r.code != 200 || err != nil {
		s.violate("list", "%d %v %s", r.code, err, r.body)
		return nil, false
	}
	var ids []string
	for _, c := range list {
		ids = append(ids, c.Id)
	}
	return ids, true
}

// countRuns keeps how often a container may have been started. The slot is locked.
func (s *storm) countRuns(l *slot, id string, gen int) {
	low, high, known := l.model.Runs(gen)
	s.mu.Lock()
	defer s.mu.Unlock()
	if known {
		s.runs[id] = [2]int{low, high}
	} else {
		delete(s.runs, id)
	}
}

// look observes a slot.
func (s *storm) look(l *slot) (inspected, bool) {
	ids, ok := s.find(l)
	if !ok {
		return inspected{}, false
	}
	if len(ids) > 1 {
		s.violate("doubled", "slot %s has %d containers: %v", l.at, len(ids), ids)
		return inspected{}, false
	}
	var c inspected
	o := model.Observation{}
	if len(ids) == 1 {
		r, ok := s.insist("GET", "/containers/"+ids[0]+"/json", nil)
		switch {
		case !ok:
			return c, false
		case r.code == 404: // removed since it was listed
		case r.code != 200:
			s.violate("inspect", "%s: %d %s", l.at, r.code, r.body)
			return c, false
		default:
			if err := json.Unmarshal(r.body, &c); err != nil {
				s.violate("inspect", "%s: %v", l.at, err)
				return c, false
			}
			o.Status = model.Status(c.State.Status)
			fmt.Sscan(c.Config.Labels["gen"], &o.Gen)
			o.Alt = strings.HasSuffix(c.Name, "-alt")
			o.Exit = c.State.ExitCode
			if c.State.Pid != 0 { // 0 is shown between its end and the record of it
				o.Identity = fmt.Sprintf("pid %d since %s", c.State.Pid, c.State.StartedAt)
			}
		}
	}
	l.mu.Lock()
	before := l.model.String()
	err := l.model.Observe(o)
	after := l.model.String()
	if c.ID != "" {
		l.id, l.gen = c.ID, o.Gen
	}
	if c.ID != "" {
		s.countRuns(l, c.ID, o.Gen)
	}
	l.mu.Unlock()
	if c.ID != "" {
		s.know(l, c.ID, o.Gen)
	}
	if before != after {
		s.note("%s seen as %q exit %d error %q\n            is  %s", l.at, o.Status, o.Exit, c.State.Error, after)
	}
	if err != nil {
		s.violate("wrong state", "%s (%.12s): %v; error %q", l.at, c.ID, err, c.State.Error)
	}
	return c, err == nil
}

func (s *storm) know(l *slot, id string, gen int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byID[id], s.gens[id] = l, gen
}

// background runs a stream beside the client.
func (s *storm) background(l *slot, o model.Op, run func(ctx context.Context)) {
	ctx, cancel := s.ctx, context.CancelFunc(func() {})
	if o.Vanish > 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(o.Vanish)*time.Millisecond)
	}
	id, _ := l.who()
	what := fmt.Sprintf("%s %s of %.12s since %.3f", l.at, o, id, time.Since(s.began).Seconds())
	s.mu.Lock()
	s.flowing[what] = true
	s.mu.Unlock()
	s.streams.Go(func() {
		defer func() {
			cancel()
			s.mu.Lock()
			delete(s.flowing, what)
			s.mu.Unlock()
		}()
		run(ctx)
	})
}

// command runs a command line. code -1 is one that was killed.
func (s *storm) command(ctx context.Context, o model.Op, stdin io.Reader, args ...string) (stdout, stderr string, code int) {
	cmd := s.d.HoldfastCommand(ctx, args...)
	if o.CLI == 2 {
		cmd = s.d.DockerCommand(ctx, args...)
	}
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	code = -1
	if cmd.ProcessState != nil {
		code = cmd.ProcessState.ExitCode()
	} else {
		fmt.Fprintln(&errs, err)
	}
	return out.String(), errs.String(), code
}

// cli runs a command line with the bound, and maps its result.
func (s *storm) cli(l *slot, o model.Op, stdin io.Reader, args ...string) (model.Answer, string, string, int, time.Duration) {
	limit := bound + time.Duration(o.Time)*time.Second
	if o.Vanish > 0 {
		limit = time.Duration(o.Vanish) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	began := time.Now()
	stdout, stderr, code := s.command(ctx, o, stdin, args...)
	took := time.Since(began)
	a := model.Answer{Coarse: true, Late: took >= time.Duration(o.Time)*time.Second, Disturbed: s.disturbed(o, l.at, began)}
	low := strings.ToLower(stderr)
	a.Unrecorded = strings.Contains(low, "asking the containers' shims")
	switch {
	case ctx.Err() != nil:
		a.Result = model.Lost
		if o.Vanish == 0 {
			s.violate("hung", "%s: %v after %s", o, args, took)
			s.stacks()
		}
	case code == 0:
		a.Result = model.OK
	case strings.Contains(low, "no such container"):
		a.Result = model.Missing
	case strings.Contains(low, "oci runtime"):
		a.Result = model.Refused // whatever the runtime says of its own pipes
	case broken(low) || unavailable(low):
		a.Result = model.Lost
		if !s.touched(everywhere, began, deaths...) && !(unavailable(low) && a.Disturbed) {
			s.violate("lost answer", "%s: %s, and nothing was killed", o, shorten(stderr))
		}
	case strings.Contains(low, "is already in use by container"):
		a.Result = model.Conflict
	default:
		a.Result = model.Refused
	}
	return a, stdout, stderr, code, took
}

// broken reports whether an error of a command line, in lower case, is about its
// connection.
func broken(text string) bool {
	for _, part := range []string{"cannot connect", "error during connect", "eof", "connection reset", "broken pipe", "connection refused", "no such file or directory\n", "is shutting down", "daemon is", "without a daemon", "unexpected end", "http: server closed"} {
		if strings.Contains(text, part) {
			return true
		}
	}
	return false
}

// unavailable reports whether an error of a command line, in lower case, is one that
// the API answers with 503: what was asked may have been done, or be done later.
func unavailable(text string) bool {
	for _, part := range []string{"unavailable", "stopped before the request was done", "its shim does not answer", "that took over does not answer"} {
		if strings.Contains(text, part) {
			return true
		}
	}
	return false
}

// dial connects to the API without net/http, for streams in both directions.
func (s *storm) dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", s.d.Socket)
}

func sorted[T any](m map[place]T) (out []place) {
	for at := range m {
		out = append(out, at)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].String() < out[j].String() })
	return out
}
