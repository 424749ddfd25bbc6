// SPDX-License-Identifier: Apache-2.0

package storm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/test/kit"
	"holdfast/test/storm/model"
)

// judge compares what is left of a round with the model, removes all, and looks
// for what is left over.
func (s *storm) judge() {
	s.note("the clients are done")
	s.calm()
	if s.failed() {
		s.clear()
		return
	}
	s.settle()
	found := map[place]inspected{}
	for _, at := range sorted(s.slots) {
		if c, ok := s.look(s.slots[at]); ok && c.ID != "" {
			found[at] = c
		}
	}
	s.judgeUnique(found)
	for _, at := range sorted(found) {
		s.judgeContainer(s.slots[at], found[at])
	}
	if !s.failed() {
		s.judgeRest()
	}
	s.other.judge(s)
	for _, at := range sorted(s.slots) {
		s.look(s.slots[at]) // how often each was started
	}
	s.clear()
	if !s.failed() {
		s.judgeEvents()
	}
	s.reap()
	if s.plan.Round%16 != 15 {
		// It ends by itself some seconds after its last client, for which most rounds
		// do not wait.
		for _, pid := range kit.EventServers(s.t, s.d) {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	if !s.failed() {
		for _, leak := range s.d.Leaks() {
			s.violate("left behind", "%s", leak)
		}
	}
}

// calm ends all faults: the daemon runs, and nothing will kill it.
func (s *storm) calm() {
	w := s.open(model.KillDaemon, everywhere)
	if s.d.Running() {
		unix.Kill(s.d.Pid(), unix.SIGKILL)
	}
	s.revive(model.KillDaemon, "")
	s.shut(w, time.Second)
}

// settle waits for the time-outs of stops that clients lost. What was asked of the
// daemon has ended with it, and is no longer pending; what a shim does, or the next
// daemon at its start, may still be done however long it takes.
func (s *storm) settle() {
	until := time.Now()
	for _, l := range s.slots {
		l.mu.Lock()
		if l.settled.After(until) {
			until = l.settled
		}
		l.mu.Unlock()
	}
	<-time.After(time.Until(until))
	for _, l := range s.slots {
		l.mu.Lock()
		l.model.SawDaemonEnd()
		l.mu.Unlock()
	}
}

// judgeUnique: names, addresses and ports belong to one container each.
func (s *storm) judgeUnique(found map[place]inspected) {
	addresses, ports := map[string]place{}, map[string]place{}
	for _, at := range sorted(found) {
		c := found[at]
		if !c.State.Running {
			continue
		}
		for name, n := range c.NetworkSettings.Networks {
			if n.IPAddress == "" {
				continue
			}
			if other, ok := addresses[n.IPAddress]; ok {
				s.violate("address", "%s and %s have %s in %s", other, at, n.IPAddress, name)
			}
			addresses[n.IPAddress] = at
		}
		for _, b := range c.NetworkSettings.Ports["80/tcp"] {
			if other, ok := ports[b.HostPort]; ok {
				s.violate("port", "%s and %s have %s", other, at, b.HostPort)
			}
			ports[b.HostPort] = at
		}
	}
}

// judgeContainer looks at one container after the daemon has started again.
func (s *storm) judgeContainer(l *slot, c inspected) {
	if c.State.Status == string(model.Removing) || c.State.Status == string(model.Dead) {
		return
	}
	spec, known := l.spec()
	if !known {
		s.violate("driver", "%s is not known: %s", l.at, l.model)
		return
	}
	shims := s.shimsOf(c.ID)
	up := c.State.Running
	if up && shims != 1 && spec.Life == 0 {
		s.violate("shims", "%s runs with %d shims", l.at, shims)
	}
	if spec.Life == 0 && !spec.JoinsPid && l.is(model.Running) {
		if r := s.d.TryHoldfast("exec", c.ID, "echo", "works"); r.Code != 0 || r.Stdout != "works\n" {
			s.violate("exec", "%s at the end: %+v", l.at, r)
		}
		l.mu.Lock()
		nets := l.model.All(func(st model.State) bool { return st.Nets != 0 })
		l.mu.Unlock()
		if spec.Port && !l.damaged && nets {
			if err := s.answers(l, c); err != nil {
				s.violate("port", "%s at the end: %v", l.at, err)
			}
		}
		if spec.Volume {
			r := s.d.TryHoldfast("exec", c.ID, "ls", "/state")
			for _, w := range l.words {
				if !strings.Contains("\n"+r.Stdout, "\n"+w+"\n") {
					s.violate("volume", "%s has lost %s: %s", l.at, w, r.Stdout)
				}
			}
		}
	}
	if l.is(model.Exited) && shims != 0 && spec.Policy == model.Never {
		s.violate("shims", "%s has ended and has %d shims", l.at, shims)
	}
	r := s.d.TryHoldfast("logs", c.ID)
	if r.Code != 0 {
		s.violate("logs", "%s at the end: %+v", l.at, r)
		return
	}
	s.ordered(l, "logs at the end", r.Stdout, false)
	// A program that was asked to end has written so.
	l.mu.Lock()
	clean := l.model.All(func(st model.State) bool { return st.Status == model.Exited && st.Exit == model.StopCode })
	l.mu.Unlock()
	// The daemon that the judgement began with starts those of the policy always again.
	if text := strings.TrimSpace(r.Stdout); clean && spec.Life == 0 && spec.Policy != model.Always && !s.full && !s.touched(l.at, s.began, model.KillBoth, model.KillShim) {
		if i := strings.LastIndexByte(text, '\n'); !strings.Contains(text[i+1:], " end ") {
			s.violate("lines", "%s ended with %d, and its log ends with %q", l.at, model.StopCode, text[i+1:])
		}
	}
}

// shimsOf counts the shims of a container.
func (s *storm) shimsOf(id string) (n int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline") // it fails only for bad patterns
	for _, f := range files {
		b, _ := os.ReadFile(f) // the process may be gone
		if bytes.HasPrefix(b, []byte("holdfast-shim\x00")) && bytes.Contains(b, []byte(id)) {
			n++
		}
	}
	return n
}

// judgeRest silences the containers, and measures whether daemon and shims are at
// rest.
func (s *storm) judgeRest() {
	var pids []int
	names := map[int]string{s.d.Pid(): "the daemon"}
	pids = append(pids, s.d.Pid())
	busy := false
	for _, v := range s.victims() {
		if v.slot == nil {
			continue
		}
		spec, known := v.slot.spec()
		if !known || spec.Life > 0 || spec.Health {
			busy = busy || spec.Policy != model.Never
			continue
		}
		if v.state.Pid > 0 {
			unix.Kill(v.state.Pid, unix.SIGUSR2)
		}
		pids = append(pids, v.state.ShimPid)
		names[v.state.ShimPid] = "the shim of " + v.at().String()
	}
	if busy {
		return // containers that end and start again keep the daemon busy
	}
	// Work that was begun may still be finished: three windows in which to be at
	// rest.
	var last string
	for range 3 {
		before := map[int]int{}
		for _, pid := range pids {
			before[pid] = ticks(pid)
		}
		<-time.After(time.Second)
		last = ""
		for _, pid := range pids {
			if used := ticks(pid) - before[pid]; used > 8 {
				last += fmt.Sprintf("%s (%d) used %d0 ms in a second while nothing happened; ", names[pid], pid, used)
			}
		}
		if last == "" {
			return
		}
	}
	s.violate("at rest", "%s", last)
	s.stacks()
}

// ticks is the CPU time of a process in hundredths of a second.
func ticks(pid int) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return user + system
}

// clear removes all that the round has made, each within the bound.
func (s *storm) clear() {
	if !s.d.Running() {
		s.revive(model.KillDaemon, "")
	}
	r, ok := s.insist("GET", "/containers/json?all=1", nil)
	var list []struct{ Id string }
	if !ok || json.Unmarshal(r.body, &list) != nil {
		return
	}
	for _, c := range list {
		if r, ok := s.insist("DELETE", "/containers/"+c.Id+"?force=1&v=1", nil); ok && r.code != 204 && r.code != 404 && !strings.Contains(string(r.body), "already in progress") {
			s.violate("removal", "%s: %d %s", c.Id, r.code, r.body)
		}
	}
	ended := make(chan struct{})
	go func() {
		s.streams.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		s.mu.Lock()
		left := slices.Sorted(maps.Keys(s.flowing))
		s.mu.Unlock()
		s.violate("hung", "streams have not ended 30 s after their containers were removed: %q", left)
		s.stacks()
		s.cancel()
		<-ended
	}
	if r, ok := s.insist("GET", "/volumes", nil); ok {
		var volumes struct{ Volumes []struct{ Name string } }
		if json.Unmarshal(r.body, &volumes) == nil {
			for _, v := range volumes.Volumes {
				s.remove("/volumes/" + v.Name)
			}
		}
	}
	if r, ok := s.insist("GET", "/networks", nil); ok {
		var networks []struct{ Id, Name string }
		if json.Unmarshal(r.body, &networks) == nil {
			for _, n := range networks {
				if n.Name != "bridge" && n.Name != "host" && n.Name != "none" {
					s.remove("/networks/" + n.Id)
				}
			}
		}
	}
	if r, ok := s.insist("GET", "/images/json", nil); ok {
		var images []struct{ RepoTags []string }
		if json.Unmarshal(r.body, &images) == nil {
			for _, i := range images {
				for _, tag := range i.RepoTags {
					if tag != image {
						s.remove("/images/" + tag)
					}
				}
			}
		}
	}
}

// reap reaps what was orphaned in the round, as the first process of a host does:
// killed shims, event servers, calls of the runtime. It is called when no container
// is left whose exit code a daemon may still look for in a zombie.
func (s *storm) reap() {
	lists, _ := filepath.Glob("/proc/self/task/*/children") // it fails only for bad patterns
	for _, path := range lists {
		list, _ := os.ReadFile(path)
		for pid := range strings.FieldsSeq(string(list)) {
			stat, _ := os.ReadFile("/proc/" + pid + "/stat")
			_, state, _ := strings.Cut(string(stat), ") ")
			n, err := strconv.Atoi(pid)
			if err != nil || !strings.HasPrefix(state, "Z") || n == s.d.Pid() || n == s.other.d.Pid() {
				continue
			}
			unix.Wait4(n, nil, unix.WNOHANG, nil)
		}
	}
}

func (s *storm) remove(path string) {
	if r, ok := s.insist("DELETE", path, nil); ok && r.code >= 300 && r.code != 404 {
		s.violate("removal", "%s: %d %s", path, r.code, r.body)
	}
}

// event is an entry of the journal.
type event struct {
	Type, Action string
	TimeNano     int64 `json:"timeNano"`
	Actor        struct {
		ID         string
		Attributes map[string]string
	}
}

// judgeEvents: each container's events tell one life, each once.
func (s *storm) judgeEvents() {
	q := fmt.Sprintf("/events?since=%d.%09d&until=%d", s.began.Unix(), s.began.Nanosecond(), time.Now().Unix()+1)
	r, ok := s.insist("GET", q+"&filters="+url.QueryEscape(`{"type":["container"]}`), nil)
	if !ok {
		return
	}
	lives := map[string][]event{}
	seen := map[string]bool{}
	for dec := json.NewDecoder(bytes.NewReader(r.body)); dec.More(); {
		var e event
		if err := dec.Decode(&e); err != nil {
			s.violate("events", "%v", err)
			return
		}
		switch e.Action {
		case "create", "start", "die", "destroy":
		default:
			continue
		}
		key := fmt.Sprint(e.Actor.ID, e.Action, e.TimeNano)
		if seen[key] {
			s.violate("events", "twice: %s of %.12s at %d", e.Action, e.Actor.ID, e.TimeNano)
		}
		seen[key] = true
		lives[e.Actor.ID] = append(lives[e.Actor.ID], e)
	}
	s.mu.Lock()
	gens := len(s.gens)
	s.mu.Unlock()
	if len(lives) < gens {
		s.violate("events", "%d containers have events, and %d were made", len(lives), gens)
	}
	for id, list := range lives {
		s.judgeLife(id, list)
	}
}

func (s *storm) judgeLife(id string, list []event) {
	var told []string
	starts, up := 0, false
	bad := ""
	codes := map[int]bool{}
	for i, e := range list {
		told = append(told, e.Action+" "+e.Actor.Attributes["exitCode"])
		switch e.Action {
		case "create":
			if i != 0 {
				bad = "created twice or late"
			}
		case "start":
			if up {
				bad = "started twice without an end"
			}
			up = true
			starts++
		case "die":
			if !up {
				bad = "ended without a start"
			}
			up = false
			n, _ := strconv.Atoi(e.Actor.Attributes["exitCode"])
			codes[n] = true
		case "destroy":
			if i != len(list)-1 {
				bad = "something comes after its removal"
			}
			if up {
				bad = "removed without an end"
			}
		}
	}
	if list[0].Action != "create" {
		bad = "it was not created"
	}
	if list[len(list)-1].Action != "destroy" {
		bad = "it was not removed"
	}
	s.mu.Lock()
	l, runs := s.byID[id], s.runs[id]
	_, counted := s.runs[id]
	waits := s.waits
	s.mu.Unlock()
	if counted && (starts < runs[0] || starts > runs[1]) {
		// The last look is before the last requests of a container that was
		// removed by its client without another look: those only remove.
		bad = fmt.Sprintf("%d starts, the model has %d to %d", starts, runs[0], runs[1])
	}
	if s.full {
		bad = "" // events were lost while the disk was full, see docs/reliability.md
	}
	where := ""
	if l != nil {
		where = l.at.String()
	}
	if bad != "" {
		s.violate("events", "%s %.12s: %s: %s", where, id, bad, strings.Join(told, ", "))
	}
	for _, w := range waits {
		if s.full {
			break // the event of that end may be lost
		}
		if w.id == id && !codes[w.code] && len(codes) > 0 && w.code != 0 {
			s.violate("wait", "%s %.12s: %d, its ends are %s", where, id, w.code, strings.Join(told, ", "))
		}
	}
}
