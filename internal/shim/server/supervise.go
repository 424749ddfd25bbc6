package server

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/names"
	"holdfast/internal/shim/proto"
)

// Shim is one container's shim.
//
// A container's life is one goroutine, supervise: launch, wait for the end,
// ended, perhaps again, finish. Requests come in beside it; what they want of
// it they say through the record (Manual) and through signals.
type Shim struct {
	boot   *proto.Bootstrap
	dirfd  int // the run directory, O_PATH
	locked int // the run directory's lock

	rec     *record
	reaper  *reaper
	runtime *ociRuntime
	out     *output
	execs   execs
	holds   holds
	server  *server
	ports   *hostPorts

	consoles atomic.Uint64 // numbers temporary names
	starting atomic.Bool   // Start was called, or the container adopted
	left     chan struct{} // closed when all is done

	upgrading atomic.Bool
	gate      *gate                  // see still.go
	delay     time.Duration          // before the present run, changed within the gate
	stops     map[*stopping]struct{} // under mu

	mu      sync.Mutex
	current *run // nil while no process runs
	names   *names.Server
	// What its sockets are is kept for an upgrade.
	namesView  string
	namesFiles [2]*os.File
	policy     proto.RestartPolicy
	rows       uint // of the terminal, also of that of the next run
	cols       uint

	// verbs serialises pause, resume and update.
	verbs sync.Mutex
	// lender is the connection that the container is frozen for; nil is none. It
	// changes while verbs is held.
	lender atomic.Pointer[conn]
}

// newShim makes a shim of what is there in any case. It holds nothing yet but
// what it is given.
func newShim(b *proto.Bootstrap, release string, rec *record, reaper *reaper, runtime *ociRuntime) *Shim {
	s := &Shim{boot: b, rec: rec, reaper: reaper, runtime: runtime, out: newOutput(), ports: newHostPorts(nil), left: make(chan struct{}),
		gate: newGate(), stops: map[*stopping]struct{}{}, policy: b.Restart}
	s.server = &server{shim: s, release: release, closed: make(chan struct{}), sealed: make(chan struct{}),
		conns: map[*conn]struct{}{}, clients: map[<-chan struct{}]time.Duration{}}
	return s
}

// countDropped adds what this shim's log drops to what was dropped before.
func (s *Shim) countDropped(before uint64) {
	s.rec.mu.Lock()
	s.rec.dropped = func() uint64 { return before + s.out.dropped() }
	s.rec.mu.Unlock()
}

// run is one run of the container's process.
type run struct {
	proc    *process
	io      *runIO
	started time.Time
}

// launch makes stdio and calls the runtime, once, whether this is the first
// run or a restart.
func (s *Shim) launch() (*run, error) {
	s.mu.Lock()
	rows, cols := s.rows, s.cols
	s.mu.Unlock()
	io, err := s.out.newRunIO(s.boot, s.dirfd, rows, cols)
	if err != nil {
		return nil, err
	}
	pidFile := filepath.Join(s.boot.RunDir, proto.PidFile)
	os.Remove(pidFile)
	args := []string{"--detach", "--pid-file", pidFile, "--bundle", s.boot.Bundle}
	if io.console != nil {
		args = append(args, "--console-socket", io.console.address())
	}
	s.reaper.hold()
	defer s.reaper.release()
	if err := s.runtime.call(io.child, "run", append(args, s.boot.ID)...); err != nil {
		io.close()
		return nil, err
	}
	pid, err := readPid(pidFile)
	if err != nil {
		io.close()
		s.deleteContainer()
		return nil, err
	}
	proc, err := s.reaper.adopt(pid)
	if err != nil {
		io.close()
		s.deleteContainer()
		return nil, err
	}
	r := &run{proc: proc, io: io, started: time.Now().UTC()}
	if err := io.started(s.boot); err != nil {
		io.close()
		r.proc.signal(syscall.SIGKILL)
		s.deleteContainer()
		return nil, err
	}
	s.mu.Lock()
	s.current = r
	if s.rows != rows || s.cols != cols { // resized meanwhile
		resizeFile(io.master, s.rows, s.cols)
	}
	s.mu.Unlock()
	s.rec.change(func(st *proto.State) {
		st.Status, st.Pid, st.PidStart = proto.StatusRunning, pid, startTime(pid)
		st.Started, st.Error, st.OOMKilled = r.started, "", false
		st.NextRestart = time.Time{}
		if s.boot.Health != nil {
			st.Health = &proto.HealthState{Status: healthStarting}
		}
	}, note{action: proto.ActionStart})
	if s.boot.Health != nil {
		go s.watchHealth(*s.boot.Health, r.started, r.proc.exited)
	}
	return r, nil
}

// start is the first launch. When it fails the container's life is over.
func (s *Shim) start() (proto.State, error) {
	if !s.starting.CompareAndSwap(false, true) {
		return proto.State{}, conflict("container was already started")
	}
	fail := func(err error, code int) (proto.State, error) {
		now := time.Now().UTC()
		msg := err.Error()
		s.rec.change(func(st *proto.State) {
			st.Status, st.Finished, st.ExitCode, st.Error = proto.StatusExited, now, code, msg
		})
		go s.finishAlone(s.recordExit())
		return proto.State{}, &proto.Error{Kind: proto.KindRuntime, Message: msg, ExitCode: code}
	}
	if err := s.out.openLog(s.boot.Log, s.boot.RunDir, false); err != nil {
		return fail(fmt.Errorf("failed to initialize logging driver: %w", err), exitRuntime)
	}
	s.countDropped(0)
	if !bundlePrivatePids(filepath.Join(s.boot.Bundle, "config.json")) {
		s.reaper.sweepOrphans()
	}
	r, err := s.launch()
	if err != nil {
		// What the runtime may have left behind. Not if there was a container
		// of this name before: it may be alive, and it is not ours to kill.
		if !strings.Contains(err.Error(), "exist") {
			s.deleteContainer()
		}
		return fail(fmt.Errorf("OCI runtime failed: %w", err), startExitCode(err.Error()))
	}
	st := s.rec.snapshot()
	go s.supervise(r, 0)
	return st, nil
}

// supervise sees the container through to its end. Without a run it begins with
// the wait for the next one; delay is the last wait.
func (s *Shim) supervise(r *run, delay time.Duration) {
	for {
		again := true
		var saved <-chan struct{}
		if r != nil {
			<-r.proc.exited
			s.gate.enter()
			again, delay, saved = s.ended(r, delay)
		} else {
			s.gate.enter()
		}
		for again {
			s.delay = delay
			s.gate.leave()
			stopped := !s.backoff(delay)
			s.gate.enter()
			if stopped || s.forsaken() {
				s.cancelRestart()
				saved = s.recordExit()
				again = false
				break
			}
			var err error
			if r, err = s.launch(); err == nil {
				break
			}
			// A restart that fails is a run that failed at once.
			again, delay, saved = s.restartFailed(err, delay)
		}
		if !again {
			s.finish(saved) // within the gate, which nobody shuts any more
			return
		}
		s.gate.leave()
	}
}

// forsaken reports whether somebody has removed the run directory: nothing can
// be started there, and nobody finds the shim to stop it.
func (s *Shim) forsaken() bool {
	var st unix.Stat_t
	return unix.Fstat(s.dirfd, &st) == nil && st.Nlink == 0
}

// ended is what comes after the process's exit: what it left behind is read,
// its end is told, its cgroup is removed. Nobody waits for the runtime's delete
// to hear of the exit, but a restart does.
func (s *Shim) ended(r *run, last time.Duration) (again bool, delay time.Duration, saved <-chan struct{}) {
	finished := time.Now().UTC()
	code := r.proc.exitCode()
	oom := s.oomKills() > 0 // the counter goes with the cgroup
	s.mu.Lock()
	s.current = nil
	policy := s.policy
	s.mu.Unlock()
	r.proc.forget()

	deleted := make(chan struct{})
	go func() {
		defer close(deleted)
		s.deleteContainer()
	}()
	complete := r.io.drain()
	if complete {
		s.out.endRun(false)
	}

	ran := finished.Sub(r.started)
	notes := make([]note, 0, 2)
	if oom {
		notes = append(notes, note{action: proto.ActionOOM})
	}
	notes = append(notes, note{proto.ActionDie, map[string]string{
		"exitCode": strconv.Itoa(code), "execDuration": strconv.Itoa(int(ran / time.Second))}})
	s.rec.change(func(st *proto.State) {
		st.Pid, st.PidStart, st.Finished, st.ExitCode, st.OOMKilled = 0, 0, finished, code, oom
		if r.proc.lost {
			st.Error = unknownExit
		}
		delay, again = restartAfter(policy, ending{exitCode: code, ran: ran, manual: st.Manual, restarts: st.RestartCount, last: last})
		if again {
			st.Status, st.NextRestart = proto.StatusRestarting, finished.Add(delay)
			st.RestartCount++
		} else {
			st.Status = proto.StatusExited
		}
	}, notes...)
	if !again {
		saved = s.recordExit() // beside the delete
	}
	<-deleted
	if !complete {
		// Processes outside of the container's pid namespace held the
		// streams; they died with the cgroup.
		r.io.drain()
		s.out.endRun(false)
	}
	r.io.close()
	return again, delay, saved
}

// backoff waits until the restart is due. It reports false when the user
// stops the container meanwhile.
func (s *Shim) backoff(delay time.Duration) bool {
	st := s.rec.snapshot()
	timer := time.NewTimer(min(delay, time.Until(st.NextRestart)))
	defer timer.Stop()
	due := make(chan struct{})
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-timer.C:
			close(due)
		case <-stop:
		}
	}()
	_, stopped := s.rec.until(due, func(st *proto.State) bool { return st.Manual })
	return !stopped
}

func (s *Shim) cancelRestart() {
	s.rec.change(func(st *proto.State) {
		st.Status, st.NextRestart = proto.StatusExited, time.Time{}
	})
}

// restartFailed treats a launch that failed as a run of no length.
func (s *Shim) restartFailed(err error, last time.Duration) (again bool, delay time.Duration, saved <-chan struct{}) {
	logf("restart: %v", err)
	s.deleteContainer()
	now := time.Now().UTC()
	s.mu.Lock()
	policy := s.policy
	s.mu.Unlock()
	s.rec.change(func(st *proto.State) {
		st.Error = "OCI runtime failed: " + err.Error()
		st.ExitCode, st.Finished = startExitCode(err.Error()), now
		delay, again = restartAfter(policy, ending{exitCode: st.ExitCode, manual: st.Manual, restarts: st.RestartCount, last: last})
		if again {
			st.NextRestart = now.Add(delay)
			st.RestartCount++
		} else {
			st.Status, st.NextRestart = proto.StatusExited, time.Time{}
		}
	})
	if !again {
		saved = s.recordExit()
	}
	return again, delay, saved
}

// recordExit makes the durable exit record, beside other work.
func (s *Shim) recordExit() <-chan struct{} {
	saved := make(chan struct{})
	st := s.rec.snapshot()
	go func() {
		defer close(saved)
		if err := writeExit(s.boot.DataDir, st); err != nil {
			logf("exit record: %v", err)
		}
	}()
	return saved
}

// finishAlone is finish for who is not within the gate.
func (s *Shim) finishAlone(saved <-chan struct{}) {
	s.gate.enter() // for good
	s.finish(saved)
}

// finish ends the container's life: no run will follow. When the last entry of
// the journal is told, nothing in the run directory is the shim's any more. It
// is called within the gate, which nobody leaves any more.
func (s *Shim) finish(saved <-chan struct{}) {
	s.out.endRun(true)
	s.out.close()
	s.teardown()
	<-saved
	notes := []note{{action: proto.ActionExited}}
	status := proto.StatusExited
	if s.boot.AutoRemove && !s.server.daemonConnected() {
		removeLogs(s.boot.Log)
		status = proto.StatusRemoved
		notes = append(notes, note{action: proto.ActionDestroy})
	}
	s.server.stopListening()
	st := s.rec.change(func(st *proto.State) { st.Status = status }, notes...)
	s.rec.seal()
	if status == proto.StatusRemoved {
		if err := writeExit(s.boot.DataDir, st); err != nil {
			logf("exit record: %v", err)
		}
	}
	s.leave()
}

// leave goes when everyone connected has what is theirs.
func (s *Shim) leave() {
	s.server.finish()
	close(s.left)
}

func (s *Shim) teardown() {
	s.mu.Lock()
	batches := s.boot.Teardown.Netlink
	s.mu.Unlock()
	sendNetlink(batches)
	// Before the end is told: the next life binds them at once.
	s.ports.close()
	if unmountAll(s.boot.Teardown.Unmount) {
		removeAll(s.boot.RunDir, s.boot.Teardown.Remove)
	}
	for _, name := range []string{"stdin", "stdout", "stderr", proto.PidFile, proto.LedgerFile} {
		unix.Unlinkat(s.dirfd, name, 0)
	}
}

func (s *Shim) deleteContainer() {
	if err := s.runtime.call(noStdio, "delete", "--force", s.boot.ID); err != nil {
		logf("delete: %v", err)
	}
}

// running gives the present run.
func (s *Shim) running() *run {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// stopping is a stop that is under way. It goes on when its caller goes, and when
// the shim goes on as another binary.
type stopping struct {
	conn     *conn // of who asked, and the request's number
	id       uint64
	signal   syscall.Signal
	timeout  int // seconds, -1 without end
	signaled bool
	deadline time.Time // for SIGKILL, zero without end
}

// stop begins to end the container for good. The answer comes when it has
// ended.
func (s *Shim) stop(c *conn, id uint64, req proto.Stop) error {
	if !s.starting.Load() {
		return conflict("container is not running: it was never started")
	}
	x := &stopping{conn: c, id: id, signal: syscall.Signal(req.Signal), timeout: req.Timeout}
	if x.signal == 0 {
		x.signal = syscall.Signal(s.boot.StopSignal)
	}
	if x.signal <= 0 {
		x.signal = syscall.SIGTERM
	}
	if req.Default {
		x.timeout = s.boot.StopTimeout
	}
	// Cancels a restart that waits.
	s.rec.change(func(st *proto.State) { st.Manual, st.UserStopped = true, st.UserStopped || req.User })
	s.mu.Lock()
	s.stops[x] = struct{}{}
	s.mu.Unlock()
	go s.carryOut(x)
	return nil
}

// carryOut sees a stop through, from where it is.
func (s *Shim) carryOut(x *stopping) {
	// A launch may be under way.
	st, _ := s.rec.until(nil, func(st *proto.State) bool {
		return ended(st) || s.running() != nil && (st.Status == proto.StatusRunning || st.Status == proto.StatusPaused)
	})
	if r := s.running(); r != nil && !ended(&st) {
		s.terminate(r, x)
	}
	<-s.server.sealed
	if x.conn != nil {
		st := s.rec.snapshot()
		x.conn.answer(x.id, &st, nil)
		x.conn.answered()
	}
}

// terminate signals, waits and kills.
func (s *Shim) terminate(r *run, x *stopping) {
	s.gate.enter()
	if !x.signaled {
		if err := s.signal(r, x.signal); err != nil {
			logf("stop: %v", err)
		}
		x.signaled = true
		if x.timeout >= 0 {
			x.deadline = time.Now().Add(time.Duration(x.timeout) * time.Second)
		}
	}
	s.gate.leave()
	if !x.deadline.IsZero() {
		timer := time.NewTimer(time.Until(x.deadline))
		defer timer.Stop()
		select {
		case <-r.proc.exited:
			return
		case <-timer.C:
		}
		s.gate.enter()
		if x.signal != syscall.SIGKILL {
			s.rec.change(func(*proto.State) {}, note{proto.ActionKill, map[string]string{"signal": strconv.Itoa(int(syscall.SIGKILL))}})
		}
		if err := s.signal(r, syscall.SIGKILL); err != nil {
			logf("stop: %v", err)
		}
		s.gate.leave()
	}
	<-r.proc.exited
}

// signal reaches the container's first process, also when it is frozen.
func (s *Shim) signal(r *run, sig syscall.Signal) error {
	if err := r.proc.signal(sig); err != nil && err != syscall.ESRCH {
		return err
	}
	if st := s.rec.snapshot(); st.Status == proto.StatusPaused {
		_, err := s.resume()
		return err
	}
	if is, _ := frozen(r.proc.pid); is {
		// By others, or by a call of the runtime that the last shim had begun.
		s.verbs.Lock()
		defer s.verbs.Unlock()
		return s.runtime.call(noStdio, "resume", s.boot.ID)
	}
	return nil
}

func (s *Shim) kill(k proto.Kill) error {
	if k.Signal < 0 || k.Signal > 64 {
		return invalid("invalid signal: %d", k.Signal)
	}
	r := s.running()
	if r == nil {
		if st := s.rec.snapshot(); k.Manual && st.Status == proto.StatusRestarting {
			s.rec.change(func(st *proto.State) { st.Manual, st.UserStopped = true, st.UserStopped || k.User })
			return nil
		}
		return conflict("container is not running")
	}
	if k.Manual {
		s.rec.change(func(st *proto.State) { st.Manual, st.UserStopped = true, st.UserStopped || k.User })
	}
	sig := syscall.Signal(k.Signal)
	if sig == syscall.SIGKILL {
		return s.signal(r, sig)
	}
	if err := r.proc.signal(sig); err == syscall.ESRCH {
		return conflict("container is not running")
	} else if err != nil {
		return err
	}
	return nil
}

// verb runs a runtime command that leads from one status to another. verbs is
// held.
func (s *Shim) verb(name, from, to string) (proto.State, error) {
	if st := s.rec.snapshot(); st.Status != from {
		return st, conflict("container is not %s: it is %s", from, st.Status)
	}
	if err := s.runtime.call(noStdio, name, s.boot.ID); err != nil && !s.isAlready(to) {
		return s.rec.snapshot(), &proto.Error{Kind: proto.KindRuntime, Message: "OCI runtime " + name + " failed: " + err.Error(), ExitCode: exitRuntime}
	}
	return s.rec.change(func(st *proto.State) {
		if st.Status == from { // it may have ended meanwhile
			st.Status = to
		}
	}), nil
}

// isAlready reports whether the kernel has the container as the runtime was to
// make it: a runtime refuses to do what was done before.
func (s *Shim) isAlready(status string) bool {
	r := s.running()
	if r == nil {
		return false
	}
	is, known := frozen(r.proc.pid)
	return known && is == (status == proto.StatusPaused)
}

// pause freezes the container, until resume or until the lender ends; nil is
// none.
func (s *Shim) pause(lender *conn) (proto.State, error) {
	s.verbs.Lock()
	defer s.verbs.Unlock()
	st, err := s.verb("pause", proto.StatusRunning, proto.StatusPaused)
	if err != nil {
		return st, err
	}
	s.lender.Store(nil)
	if lender == nil {
		return st, nil
	}
	select {
	case <-lender.done: // it ended meanwhile, and gives nothing back any more
		return s.verb("resume", proto.StatusPaused, proto.StatusRunning)
	default:
		s.lender.Store(lender)
		return st, nil
	}
}

func (s *Shim) resume() (proto.State, error) {
	s.verbs.Lock()
	defer s.verbs.Unlock()
	st, err := s.verb("resume", proto.StatusPaused, proto.StatusRunning)
	if err == nil {
		s.lender.Store(nil)
	}
	return st, err
}

// giveBack thaws the container if it is frozen for a connection, which is over.
func (s *Shim) giveBack(c *conn) {
	s.verbs.Lock()
	defer s.verbs.Unlock()
	if !s.lender.CompareAndSwap(c, nil) || s.rec.snapshot().Status != proto.StatusPaused {
		return
	}
	if _, err := s.verb("resume", proto.StatusPaused, proto.StatusRunning); err != nil {
		logf("thaw what was frozen for a daemon that is gone: %v", err)
	}
}

func (s *Shim) update(u proto.Update) error {
	if len(u.Resources) > 0 {
		s.verbs.Lock()
		defer s.verbs.Unlock()
		if s.running() == nil {
			return conflict("container is not running")
		}
		file := filepath.Join(s.boot.RunDir, "resources.json")
		if err := os.WriteFile(file, u.Resources, 0o600); err != nil {
			return err
		}
		defer os.Remove(file)
		if err := s.runtime.call(noStdio, "update", "--resources", file, s.boot.ID); err != nil {
			return &proto.Error{Kind: proto.KindRuntime, Message: "OCI runtime update failed: " + err.Error(), ExitCode: exitRuntime}
		}
	}
	if u.Restart != nil {
		s.mu.Lock()
		s.policy = *u.Restart
		s.mu.Unlock()
	}
	if u.Attributes != nil {
		s.rec.setAttributes(u.Attributes)
	}
	if u.Restart != nil || u.Attributes != nil {
		return s.keepBootstrap()
	}
	return nil
}

func (s *Shim) resize(r proto.Resize) error {
	if r.Exec != "" {
		return s.execResize(r)
	}
	if !s.boot.Terminal {
		return invalid("the container has no terminal")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows, s.cols = r.Height, r.Width
	if s.current == nil {
		return nil // for the next run
	}
	return resizeFile(s.current.io.master, r.Height, r.Width)
}

// terminal copies the master of the present run's terminal.
func (s *Shim) terminal() (int, error) {
	r := s.running()
	if r == nil || r.io.master == nil {
		return -1, conflict("the container has no terminal now")
	}
	raw, err := r.io.master.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	if cerr := raw.Control(func(master uintptr) { fd, err = unix.FcntlInt(master, unix.F_DUPFD_CLOEXEC, 3) }); cerr != nil {
		return -1, conflict("the container has no terminal now")
	}
	return fd, err
}

func (s *Shim) attach(a proto.Attach, sock *socket) (begin func(), err error) {
	c, in, err := s.out.attach(sock, a, s.boot.DataDir)
	if err != nil {
		sock.close()
		return nil, conflict("%v", err)
	}
	s.server.linger(c.done)
	return func() {
		go c.deliver(s.out)
		go s.listen(c, in)
	}, nil
}

// listen carries a client's input to its end.
func (s *Shim) listen(c *client, in *stdin) {
	if c.input(in, s.boot.StdinOnce) {
		s.gate.enter()
		defer s.gate.leave()
		s.rec.change(func(*proto.State) {}, note{action: proto.ActionDetach})
		c.left = false
	}
}

// shutdown ends a shim whose container never ran.
func (s *Shim) shutdown() error {
	if st := s.rec.snapshot(); ended(&st) {
		return nil // on its way
	}
	if !s.starting.CompareAndSwap(false, true) {
		return conflict("container was started: stop it first")
	}
	s.out.endRun(true)
	s.teardown()
	s.server.stopListening()
	s.rec.seal()
	go s.leave()
	return nil
}

// oomKills reads the cgroup's counter.
func (s *Shim) oomKills() int {
	if s.boot.OOMFile == "" {
		return 0
	}
	b, err := os.ReadFile(s.boot.OOMFile)
	if err != nil {
		return 0
	}
	key := s.boot.OOMKey
	if key == "" {
		key = "oom_kill"
	}
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name == key {
			n, _ := strconv.Atoi(value)
			return n
		}
	}
	return 0
}

// startTime is field 22 of /proc/PID/stat, in clock ticks since boot; 0 when
// the process is gone.
func startTime(pid int) uint64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	return parseStartTime(b)
}

// parseStartTime counts fields from after the command, which may hold spaces
// and brackets itself.
func parseStartTime(stat []byte) uint64 {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const field = 22 - 3 // the first one here is the third
	if len(fields) <= field {
		return 0
	}
	n, _ := strconv.ParseUint(string(fields[field]), 10, 64)
	return n
}
