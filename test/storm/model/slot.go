// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Status is Docker's word for what a container does. The empty one is that of no
// container.
type Status string

// The statuses.
const (
	Absent     Status = ""
	Created    Status = "created"
	Running    Status = "running"
	Paused     Status = "paused"
	Restarting Status = "restarting"
	Exited     Status = "exited"
	Removing   Status = "removing"
	Dead       Status = "dead" // its removal failed
)

// AnyExit is an exit code that is not known.
const AnyExit = -1

// InterruptedCode is the exit code after a start that a daemon could not finish.
const InterruptedCode = 128

// AnyRuns is a number of runs that is not known, because the engine restarts the
// container by itself.
const AnyRuns = -1

// The networks of a container, as bits.
const (
	Bridge uint8 = 1 << iota
	Own
)

// State is one state that a container may be in.
type State struct {
	Status Status
	Gen    int   // which Create made it
	Alt    bool  // it has its other name
	Nets   uint8 // Bridge, Own
	Runs   int   // how often it was started
	Exit   int   // how it ended last
	// Dying is set where SIGTERM was sent to the program, and not waited for.
	Dying bool
	// Doomed is set where a removal has failed before it could kill the program: the
	// next daemon removes the container, and shows it as running until then.
	Doomed bool
}

// Result is how a request was answered.
type Result int

// The results. Docker refuses what the state does not allow with 400, 403, 409
// or 500, depending on the request.
const (
	Lost     Result = iota // no answer
	OK                     // 2xx
	Same                   // 304
	Missing                // 404
	Refused                // 400, 403, 409, 500
	Conflict               // of a name
)

func (r Result) String() string {
	return [...]string{"no answer", "done", "not modified", "not found", "refused", "conflict"}[r]
}

// Answer is a result with what bears on whether it is allowed.
type Answer struct {
	Result Result
	// Disturbed is set where a fault that can make such a request fail touched
	// its time.
	Disturbed bool
	// Late is set where a stop took its whole time-out, so that the program may
	// have been killed.
	Late bool
	// Coarse is set for a command line, which reports success also where nothing
	// was to be done.
	Coarse bool
	// Unrecorded is set for a command that found no daemon and reached the
	// container through its shim, or, where the shim was killed too, its process.
	// Of the latter there is no record: until the next daemon has looked at the
	// process itself, it shows what the last shim has recorded.
	Unrecorded bool
}

type outcome struct {
	result Result
	then   State
}

// Slot is the place of one container, which its client makes and removes again
// and again.
type Slot struct {
	// Specs are those of the containers, by Gen.
	Specs []Spec
	may   map[State]bool
	// pending are operations that may take effect later.
	pending []pending
	// What happened to the present container from outside.
	killed, orphaned, daemonBegan, damaged, full bool
	identity                                     map[[2]int]string // by Gen and Runs
}

type pending struct {
	op  Op
	gen int
	// most is how many runs there can be if it takes effect: it does so once.
	most int
}

// Pending reports whether something that was asked of a container without an answer
// may still be done.
func (s *Slot) Pending(gen int) bool {
	return slices.ContainsFunc(s.pending, func(p pending) bool { return p.gen == gen })
}

// NewSlot is a slot without a container.
func NewSlot() *Slot {
	return &Slot{may: map[State]bool{{}: true}, identity: map[[2]int]string{}}
}

// Possible lists the possible states.
func (s *Slot) Possible() (out []State) {
	for st := range s.may {
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b State) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return out
}

func (s *Slot) String() string {
	var b strings.Builder
	for _, st := range s.Possible() {
		if st.Status == Absent {
			fmt.Fprintf(&b, "[absent]")
			continue
		}
		fmt.Fprintf(&b, "[%s gen %d runs %d exit %d nets %d alt %v dying %v]", st.Status, st.Gen, st.Runs, st.Exit, st.Nets, st.Alt, st.Dying)
	}
	if len(s.Specs) > 0 {
		fmt.Fprintf(&b, " %+v", s.Specs[len(s.Specs)-1])
	}
	for _, p := range s.pending {
		fmt.Fprintf(&b, " pending: %s", p.op.Kind)
	}
	fmt.Fprintf(&b, " killed=%v orphaned=%v began=%v damaged=%v", s.killed, s.orphaned, s.daemonBegan, s.damaged)
	return b.String()
}

// All reports whether each possible state has the property.
func (s *Slot) All(is func(State) bool) bool {
	for st := range s.may {
		if !is(st) {
			return false
		}
	}
	return true
}

// Is reports whether the container is certainly in one of the statuses.
func (s *Slot) Is(of ...Status) bool {
	return s.All(func(st State) bool { return slices.Contains(of, st.Status) })
}

// Spec returns what a container was made with.
func (s *Slot) Spec(gen int) Spec {
	if gen < 0 || gen >= len(s.Specs) {
		return Spec{}
	}
	return s.Specs[gen]
}

// SawKill records that the first process was killed from the host.
func (s *Slot) SawKill() { s.killed = true; s.spread() }

// SawOrphaning records that daemon and shim died together, so that an exit code
// may be unknown.
func (s *Slot) SawOrphaning() { s.orphaned = true }

// SawDaemonBegin records that a daemon started, which starts containers by their
// policies.
func (s *Slot) SawDaemonBegin() { s.daemonBegan = true; s.spread() }

// SawDamage records that something was taken from the container that an automatic
// restart needs, or that no disk was free, so that it may fail.
func (s *Slot) SawDamage() { s.damaged = true; s.spread() }

// SawFullDisk records that no record could be written for a while. An end or a removal
// is then carried out without one, and a daemon that starts meanwhile or later may find
// the container as it was recorded before.
func (s *Slot) SawFullDisk() { s.damaged, s.full = true, true; s.spread() }

// NewGen begins a container with a spec, and returns its number.
func (s *Slot) NewGen(spec Spec) int {
	s.Specs = append(s.Specs, spec)
	return len(s.Specs) - 1
}

// outcomes are those that an operation may have in a state.
func (s *Slot) outcomes(st State, o Op, gen int, late bool) []outcome {
	spec := s.Spec(st.Gen)
	if o.Kind == Create {
		return s.createOutcomes(st, gen)
	}
	same := func(r Result) []outcome { return []outcome{{r, st}} }
	switch {
	case o.Kind == Prune:
		return s.pruneOutcomes(st)
	case st.Status == Absent || gen != st.Gen:
		return same(Missing)
	case st.Status == Removing || st.Status == Dead:
		return removalOutcomes(st, o)
	}
	up := st.Status == Running || st.Status == Paused || st.Status == Restarting
	switch o.Kind {
	case Start:
		switch st.Status {
		case Created, Exited:
			out := []outcome{{OK, started(st)}}
			if spec.Needs() || spec.Remove && st.Status == Exited {
				// The container that it joins may not run, or be removed; its own removal
				// may be under way.
				out = append(out, outcome{Refused, st})
				if spec.Needs() {
					out = append(out, outcome{Refused, ended(st, AnyExit)}, outcome{Missing, st}, outcome{Missing, ended(st, AnyExit)})
				}
				if spec.Remove {
					out = append(out, outcome{Refused, with(st, Removing)})
				}
			}
			return out
		case Paused:
			return same(Refused)
		}
		return same(Same)
	case Stop:
		if !up {
			return same(Same)
		}
		return ends(OK, st, spec, late)
	case Kill:
		return killOutcomes(st, o)
	case Restart:
		out := []outcome{{OK, started(st)}}
		if spec.Needs() || spec.Remove {
			out = append(out, outcome{Refused, ended(st, AnyExit)}, outcome{Refused, st})
		}
		if spec.Needs() {
			out = append(out, outcome{Missing, ended(st, AnyExit)}, outcome{Missing, st})
		}
		return out
	case Pause:
		if st.Status == Running {
			st.Status = Paused
			return same(OK)
		}
		return same(Refused)
	case Unpause:
		if st.Status == Paused {
			st.Status = Running
			return same(OK)
		}
		return same(Refused)
	case Rename:
		if alt := o.N%2 == 1; alt != st.Alt {
			st.Alt = alt
			return same(OK)
		}
		return same(Refused)
	case Remove:
		if up && o.N == 0 {
			return same(Refused)
		}
		out := []outcome{{OK, State{}}}
		if spec.Remove {
			out = append(out, outcome{Refused, st}, outcome{Refused, State{}}, outcome{Missing, State{}})
		}
		return out
	case NetJoin, NetLeave:
		return netOutcomes(st, spec, o)
	case Exec, ExecTTY, ExecDetach, ExecLong:
		if st.Status == Running {
			return same(OK)
		}
		return same(Refused)
	case Top:
		if st.Status == Running || st.Status == Paused {
			return same(OK)
		}
		return same(Refused)
	case Update, Commit, Attach:
		return []outcome{{OK, st}, {Refused, st}} // in part by the state, which is not judged here
	}
	return same(OK)
}

// pruneOutcomes are those of a prune, whichever container it meets.
func (s *Slot) pruneOutcomes(st State) []outcome {
	stays, goes := outcome{OK, st}, outcome{OK, State{}}
	switch st.Status {
	case Created, Exited, Dead:
		// It leaves alone what another request has begun to start or to remove.
		if len(s.pending) > 0 || s.Spec(st.Gen).Remove {
			return []outcome{stays, goes}
		}
		return []outcome{goes}
	}
	return []outcome{stays}
}

// removalOutcomes are those while a container is being removed, or after that has
// failed.
func removalOutcomes(st State, o Op) []outcome {
	switch o.Kind {
	case Stop:
		return []outcome{{Same, st}}
	case Inspect, Logs, List, Stats:
		return []outcome{{OK, st}}
	case Remove:
		if st.Status == Dead {
			return []outcome{{OK, State{}}, {Refused, st}}
		}
	}
	return []outcome{{Refused, st}}
}

func (s *Slot) createOutcomes(st State, gen int) []outcome {
	if st.Status != Absent && !st.Alt {
		out := []outcome{{Conflict, st}, {Refused, st}}
		if s.Spec(st.Gen).Remove {
			out = append(out, outcome{OK, s.created(gen)})
		}
		return out
	}
	out := []outcome{{OK, s.created(gen)}}
	for _, p := range s.pending {
		if p.op.Kind == Create {
			// Its client is gone, and it goes on: it has the name before it is listed.
			out = append(out, outcome{Conflict, st})
			break
		}
	}
	if s.Spec(gen).Needs() {
		out = append(out, outcome{Missing, st}, outcome{Refused, st})
	}
	return out
}

func (s *Slot) created(gen int) State {
	st := State{Status: Created, Gen: gen, Nets: Bridge}
	switch spec := s.Spec(gen); {
	case spec.Joins:
		st.Nets = 0
	case spec.Network:
		st.Nets = Own
	}
	return st
}

func with(st State, status Status) State {
	st.Status = status
	return st
}

func started(st State) State {
	st.Status, st.Dying, st.Exit = Running, false, 0
	if st.Runs != AnyRuns {
		st.Runs++
	}
	return st
}

func ended(st State, code int) State {
	st.Status, st.Dying, st.Exit = Exited, false, code
	return st
}

// ends are the ends by a stop.
func ends(r Result, st State, spec Spec, late bool) []outcome {
	// A stubborn program can't ignore a signal yet that comes right after its start.
	out := []outcome{{r, ended(st, earlyStop(spec))}}
	if !spec.Stubborn {
		out = append(out, outcome{r, ended(st, StopCode)})
	}
	if spec.JoinsPid {
		out = append(out, outcome{r, ended(st, 137)}) // see alone
	}
	// A program may be killed before it can be told, such as one that is frozen.
	if late || spec.Stubborn {
		out = append(out, outcome{r, ended(st, 137)})
	}
	if st.Status == Paused {
		out = append(out, outcome{r, ended(st, 137)})
	}
	if st.Status == Restarting {
		out = append(out, outcome{r, ended(st, AnyExit)})
	}
	if spec.Life > 0 {
		out = append(out, outcome{r, ended(st, spec.Code)})
	}
	return out
}

func earlyStop(spec Spec) int {
	if spec.JoinsPid {
		return EarlyStopCodePid
	}
	return EarlyStopCode
}

func killOutcomes(st State, o Op) []outcome {
	switch st.Status {
	case Running, Paused:
		switch o.N {
		case 0:
			return []outcome{{OK, ended(st, 137)}}
		case 1:
			st.Dying = true
		}
		if st.Status == Paused {
			// The signal thaws it, unless its shim was killed, and none could be started.
			return []outcome{{OK, st}, {OK, with(st, Running)}}
		}
		return []outcome{{OK, st}}
	case Restarting:
		return []outcome{{OK, ended(st, AnyExit)}, {OK, st}, {Refused, st}}
	}
	return []outcome{{Refused, st}}
}

func netOutcomes(st State, spec Spec, o Op) []outcome {
	bit := Bridge
	if o.N%2 == 1 {
		bit = Own
	}
	had := st.Nets&bit != 0
	switch {
	case spec.Joins:
		return []outcome{{Refused, st}}
	case had == (o.Kind == NetJoin):
		return []outcome{{Refused, st}}
	}
	then := st
	then.Nets ^= bit
	out := []outcome{{OK, then}}
	if st.Status == Paused || st.Status == Restarting {
		out = append(out, outcome{Refused, st})
	}
	return out
}

// spread adds the states that are reached without a request of the client.
func (s *Slot) spread() {
	for range 4 { // such as paused, thawed by a pending request, ended, removed
		before := len(s.may)
		for _, st := range slices.Collect(maps.Keys(s.may)) {
			for _, then := range s.alone(st) {
				s.may[then] = true
			}
			for _, p := range s.pending {
				if p.op.Kind == Commit && p.gen == st.Gen {
					// It freezes the container, and thaws it again.
					switch then := st; st.Status {
					case Running:
						then.Status = Paused
						s.may[then] = true
					case Paused:
						then.Status = Running
						s.may[then] = true
					}
				}
				for _, o := range s.outcomes(st, p.op, p.gen, true) {
					if p.op.Kind == Create && st.Status != Absent && !st.Alt {
						continue
					}
					if o.then.Runs <= p.most {
						s.may[o.then] = true
					}
				}
				// A daemon answers reads before it has found out what became of what
				// the one before had begun.
				left := map[State]bool{}
				s.failed(left, st, p.op, p.gen)
				for then := range left {
					if then.Runs <= p.most {
						s.may[then] = true
					}
				}
			}
		}
		if len(s.may) == before {
			return
		}
	}
}

// alone lists what becomes of a state by itself and by faults.
func (s *Slot) alone(st State) (out []State) {
	spec := s.Spec(st.Gen)
	exit := func(code int) { out = append(out, afterExit(st, spec, code)...) }
	switch st.Status {
	case Running, Paused:
		if spec.Life > 0 && st.Status == Running {
			exit(spec.Code)
		}
		if st.Dying && st.Status == Running {
			exit(earlyStop(spec))
			out = append(out, ended(st, earlyStop(spec)))
		}
		if st.Dying && !spec.Stubborn && st.Status == Running {
			exit(StopCode)
			out = append(out, ended(st, StopCode))
		}
		if st.Doomed {
			out = append(out, State{}, with(st, Removing))
		}
		if st.Dying && spec.Life > 0 {
			out = append(out, ended(st, spec.Code))
		}
		// When the first process of a process namespace ends, the kernel kills all others
		// in it.
		if s.killed || spec.JoinsPid {
			exit(137)
			if st.Status == Paused {
				// Until what it used is given back it is shown as running: nothing is
				// frozen any more.
				out = append(out, with(st, Running))
			}
			if st.Dying {
				out = append(out, ended(st, 137))
			}
		}
		// With daemon and shim a terminal loses its other end. A program that handles SIGHUP already
		// runs on.
		if s.orphaned && spec.TTY && st.Status == Running {
			if spec.JoinsPid {
				exit(HangUpCodePid)
			} else {
				exit(EarlyStopCode)
			}
		}
		if s.orphaned && (spec.Life > 0 || s.killed || spec.JoinsPid || st.Dying) {
			exit(255)
		}
	case Restarting:
		up := st
		up.Status, up.Runs, up.Exit = Running, AnyRuns, 0
		out = append(out, up)
		if s.damaged {
			out = append(out, ended(st, AnyExit))
		}
		if s.daemonBegan {
			out = append(out, ended(up, InterruptedCode)) // see Exited
		}
		if spec.Policy == OnFailure || spec.Needs() {
			out = append(out, ended(st, AnyExit)) // the last attempt has failed
		}
	case Removing:
		out = append(out, State{})
		if s.full && s.daemonBegan {
			c := ended(st, AnyExit)
			c.Status = Created
			out = append(out, ended(st, AnyExit), c)
		}
	case Dead:
		if s.daemonBegan {
			out = append(out, State{}) // the next daemon tries again
			if s.damaged {
				up := with(st, Running) // the runtime was killed that should have killed it
				up.Doomed, up.Exit = true, 0
				out = append(out, up)
			}
		}
	case Created:
		if s.daemonBegan && s.damaged && spec.Policy == Always {
			// A start failed, and a full disk kept that from being recorded: to the next
			// daemon it is a start that was interrupted.
			up := st
			up.Status, up.Runs, up.Exit = Running, AnyRuns, 0
			out = append(out, up)
		}
	case Exited:
		if s.full && s.daemonBegan && st.Exit == InterruptedCode {
			// There is no record of the start that has failed, or that it ever ran. Its code
			// is that of the run before.
			out = append(out, with(st, Created), ended(st, AnyExit))
		}
		if spec.Remove {
			out = append(out, with(st, Removing))
			if s.damaged {
				out = append(out, with(st, Dead))
			}
		}
		if s.daemonBegan && (st.Runs != 0 || s.damaged) && (spec.Policy == Always || spec.Policy == OnFailure && st.Exit != 0) {
			up := st
			up.Status, up.Runs, up.Exit = Running, AnyRuns, 0
			// A daemon that is killed during such a start leaves it to the next to undo.
			out = append(out, up, ended(up, InterruptedCode))
		}
	}
	return out
}

// afterExit are the states after an end that nobody asked for.
func afterExit(st State, spec Spec, code int) []State {
	again := st
	again.Runs, again.Dying, again.Exit = AnyRuns, false, 0
	switch {
	case spec.Policy == Always:
		again.Status = Restarting
		up := again
		up.Status = Running
		return []State{again, up}
	case spec.Policy == OnFailure && code != 0:
		again.Status = Restarting
		up, last := again, again
		up.Status = Running
		return []State{again, up, ended(last, code)}
	}
	return []State{ended(st, code)}
}

// changes are the operations that may take effect after their client is gone.
var changes = map[Kind]bool{
	Create: true, Start: true, Stop: true, Kill: true, Restart: true, Pause: true, Unpause: true, Rename: true,
	Remove: true, NetJoin: true, NetLeave: true, Prune: true, Commit: true,
}

// Do judges the answer to an operation on the container gen, and moves the slot.
// For a Create gen is the new container's. The error says what was not allowed.
func (s *Slot) Do(o Op, gen int, a Answer) error {
	s.spread()
	if o.Kind == Create && a.Result == OK {
		s.killed, s.orphaned, s.damaged, s.full = false, false, false, false
	}
	next := map[State]bool{}
	for st := range s.may {
		for _, out := range s.outcomes(st, o, gen, a.Late) {
			switch {
			case a.Result == Lost, a.Disturbed && a.Result == Refused:
				next[out.then] = true
			case out.result == a.Result, out.result == Refused && a.Result == Conflict:
				next[out.then] = true
			case a.Coarse && a.Result == OK && (out.result == Same || out.result == Missing && o.Kind == Remove && o.N != 0):
				next[out.then] = true
			}
		}
		if a.Unrecorded && s.orphaned && a.Result == OK && st.Status != Absent {
			next[st] = true
		}
		if a.Unrecorded && a.Result == Missing && s.Spec(st.Gen).Remove && st.Status != Absent {
			// It has ended, and its shim has removed it except for what needs a daemon.
			next[ended(st, AnyExit)], next[with(st, Removing)] = true, true
		}
		if a.Result == Lost || a.Disturbed && a.Result == Refused {
			next[st] = true
			s.failed(next, st, o, gen)
		}
	}
	if len(next) == 0 {
		return fmt.Errorf("%s was answered %q, in %s", o.Kind, a.Result, s)
	}
	if a.Result == Lost && changes[o.Kind] {
		most := 0
		for st := range s.may {
			most = max(most, st.Runs)
		}
		s.pending = append(s.pending, pending{o, gen, most + 1})
	}
	if a.Result != Lost && (o.Kind == Start || o.Kind == Restart) {
		for i := range s.pending {
			s.pending[i].most++
		}
	}
	s.may = next
	s.spread()
	return nil
}

// failed adds what a request leaves that failed half way by a fault.
func (s *Slot) failed(next map[State]bool, st State, o Op, gen int) {
	if st.Status == Absent || st.Gen != gen {
		return
	}
	switch o.Kind {
	case Start, Restart:
		// A first start that fails leaves it created, with a code; a later one
		// exited.
		next[ended(st, AnyExit)] = true
		c := ended(st, AnyExit)
		c.Status = Created
		next[c] = true
		// A start that a killed daemon has begun is undone by the next, which the
		// events tell as a start and an end.
		c = ended(started(st), AnyExit)
		next[c] = true
		if st.Status == Created {
			c.Status = Created
			next[c] = true
		}
		if o.Kind == Restart && st.Status == Paused {
			next[with(st, Running)] = true // its stop has thawed it, and the signal may be ignored
		}
	case Stop, Kill:
		if st.Status == Created || st.Status == Exited {
			break // there is nothing to stop
		}
		next[ended(st, 137)] = true
		if st.Status == Paused {
			next[with(st, Running)] = true // it is thawed, so that it gets the signal
		}
	case Remove, Prune:
		if o.Kind == Remove && o.N != 0 && st.Status != Created && st.Status != Exited {
			next[ended(st, 137)] = true
			if st.Status == Paused {
				next[with(st, Running)] = true // it is thawed, so that it gets the signal
			}
		}
		next[with(st, Removing)], next[with(st, Dead)] = true, true
	}
}

// Observation is what an inspection shows. Its Status is Absent where the
// container is not there.
type Observation struct {
	Status  Status
	Gen     int
	Alt     bool
	Exit    int
	Unknown bool // the engine says that it does not know the exit code
	// Identity is what stays as long as a run lasts: start time and pid.
	Identity string
	// Disturbed is set where a fault touched the time of the inspection.
	Disturbed bool
}

// Observe drops what an observation contradicts.
func (s *Slot) Observe(o Observation) error {
	s.spread()
	next := map[State]bool{}
	for st := range s.may {
		if !s.fits(st, o) {
			continue
		}
		if st.Status == Exited {
			st.Exit = o.Exit
		}
		next[st] = true
	}
	if len(next) == 0 {
		return fmt.Errorf("it is %q (gen %d, other name %v, exit code %d), and may be %s", o.Status, o.Gen, o.Alt, o.Exit, s)
	}
	s.may = next
	return s.identify(o)
}

func (s *Slot) fits(st State, o Observation) bool {
	if st.Status != o.Status {
		return false
	}
	if st.Status == Absent {
		return true
	}
	if st.Gen != o.Gen || st.Alt != o.Alt {
		return false
	}
	if st.Status == Exited && st.Exit != AnyExit && st.Exit != o.Exit {
		return s.orphaned && o.Exit == 255
	}
	return true
}

// identify compares start time and pid with those that the same run had.
func (s *Slot) identify(o Observation) error {
	if o.Status != Running && o.Status != Paused || o.Identity == "" {
		return nil
	}
	run := AnyRuns
	for st := range s.may {
		if st.Runs == AnyRuns || run != AnyRuns && run != st.Runs {
			return nil
		}
		run = st.Runs
	}
	key := [2]int{o.Gen, run}
	if had, ok := s.identity[key]; ok && had != o.Identity {
		return fmt.Errorf("run %d was %s and is %s", run, had, o.Identity)
	}
	s.identity[key] = o.Identity
	return nil
}

// SawDaemonEnd records that the daemon ended and the next has restored: what only a
// daemon does is no longer pending.
func (s *Slot) SawDaemonEnd() {
	s.spread()
	s.pending = slices.DeleteFunc(s.pending, func(p pending) bool {
		switch p.op.Kind {
		case Create, Rename, NetJoin, NetLeave:
			return true
		}
		return false
	})
}

// Runs returns the least and the greatest number of starts of a container, with those
// that were asked for without an answer and may still come.
func (s *Slot) Runs(gen int) (low, high int, known bool) {
	s.spread()
	low = -1
	for st := range s.may {
		if st.Status == Absent || st.Gen != gen {
			continue
		}
		if st.Runs == AnyRuns {
			return 0, 0, false
		}
		if low < 0 || st.Runs < low {
			low = st.Runs
		}
		high = max(high, st.Runs)
	}
	for _, p := range s.pending {
		if p.gen == gen && (p.op.Kind == Start || p.op.Kind == Restart) {
			high = max(high, p.most)
		}
	}
	return low, high, low >= 0
}
