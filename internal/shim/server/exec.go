// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"holdfast/internal/logs/format"
	"holdfast/internal/shim/proto"
	"holdfast/internal/shim/stream"
)

const (
	// idleExecsMax is how many exec sessions that don't run are remembered.
	idleExecsMax = 64
	// busyExecsMax is how many sessions may run at once. Each needs a process in the
	// container, and descriptors and memory in the shim.
	busyExecsMax = 1024
	// orphansMax is how many streams of ended sessions are still read (see discard).
	orphansMax = 256
	// execBacklogSize is how many bytes a session's client may be behind before it
	// exerts backpressure on the session. Other clients don't notice.
	execBacklogSize = 64 << 10
)

// execs are the container's exec sessions, oldest first.
type execs struct {
	mu      sync.Mutex
	list    []*session
	orphans []*os.File // streams of ended sessions, see discard
}

// session is one exec session. Its fields are guarded by execs.mu.
type session struct {
	create proto.ExecCreate
	state  proto.ExecState
	proc   *process
	ended  chan struct{} // closed when its client was served
	master *os.File      // the terminal, while the process runs

	// Set while the process runs or its client is being served.
	io      *execIO
	client  *stream.Session // nil without a client
	readers []*execReader
	turns   *turns // with two readers
	reframe bool   // see proto.ExecStart
	rows    uint   // terminal size, also when set before there is a terminal
	cols    uint
}

// idle reports whether neither a process nor a client uses the session.
func (x *session) idle() bool { return !x.state.Running && x.io == nil }

// states returns a copy of all sessions' states, for the record.
func (e *execs) states() []proto.ExecState {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := make([]proto.ExecState, len(e.list))
	for i, x := range e.list {
		list[i] = x.state
	}
	return list
}

func (e *execs) find(id string) *session {
	for _, x := range e.list {
		if x.create.Exec == id {
			return x
		}
	}
	return nil
}

// busy counts the sessions that are not idle.
func (e *execs) busy() int {
	n := 0
	for _, x := range e.list {
		if !x.idle() {
			n++
		}
	}
	return n
}

func newSession(c proto.ExecCreate, st proto.ExecState) *session {
	return &session{create: c, state: st, ended: make(chan struct{})}
}

// trim forgets the oldest idle sessions beyond idleExecsMax.
func (e *execs) trim() {
	idle := 0
	for _, x := range e.list {
		if x.idle() {
			idle++
		}
	}
	kept := e.list[:0]
	for _, x := range e.list {
		if idle > idleExecsMax && x.idle() {
			idle--
			continue
		}
		kept = append(kept, x)
	}
	clear(e.list[len(kept):])
	e.list = kept
}

func (s *Shim) execCreate(c proto.ExecCreate) error {
	if !validName(c.Exec) {
		return invalid("exec: name %q must have 1 to 128 characters of [a-zA-Z0-9_.-], the first of them not a dot", c.Exec)
	}
	var p struct {
		Args        []string
		ConsoleSize struct{ Height, Width uint }
	}
	if err := json.Unmarshal(c.Process, &p); err != nil || len(p.Args) == 0 {
		return invalid("exec %s: the process has no args", c.Exec)
	}
	if st := s.rec.snapshot(); st.Status != proto.StatusRunning {
		return conflict("container is not running: it is %s", st.Status)
	}
	if err := s.server.checkClientLimit(); err != nil {
		return err
	}
	s.execs.mu.Lock()
	if s.execs.find(c.Exec) != nil {
		s.execs.mu.Unlock()
		return conflict("exec %s exists", c.Exec)
	}
	if s.execs.busy() >= busyExecsMax {
		s.execs.mu.Unlock()
		return conflict("the container has %d running exec sessions, which is the limit: wait until some have ended", busyExecsMax)
	}
	x := newSession(c, proto.ExecState{Exec: c.Exec, Info: c.Info})
	x.rows, x.cols = p.ConsoleSize.Height, p.ConsoleSize.Width
	s.execs.list = append(s.execs.list, x)
	s.execs.trim()
	s.execs.mu.Unlock()
	s.rec.change(func(st *proto.State) { st.Execs = s.execs.states() })
	return nil
}

// execStart runs the session. If it does not start, a client gets the message,
// because its connection was already upgraded. If the runtime could not start the
// process, the state has the exit code; without a client that is the error of the
// call.
func (s *Shim) execStart(r proto.ExecStart, sock *stream.Socket) (_ proto.ExecState, err error) {
	handedOver, raw := false, r.Reframe
	var failed error // what the client is told
	defer func() {
		if sock != nil && !handedOver {
			last := stream.Frame(byte(format.Stdout), []byte(cmp.Or(failed, err).Error()+"\r\n"), raw)
			s.server.endClient(sock, s.rec.snapshot().Seq, last)
		}
	}()
	if st := s.rec.snapshot(); st.Status != proto.StatusRunning {
		return proto.ExecState{}, conflict("container is not running: it is %s", st.Status)
	}
	s.execs.mu.Lock()
	x := s.execs.find(r.Exec)
	if x == nil {
		s.execs.mu.Unlock()
		return proto.ExecState{}, notFound("no such exec: %s", r.Exec)
	}
	raw = x.create.Tty != r.Reframe
	if x.state.Started {
		s.execs.mu.Unlock()
		return proto.ExecState{}, conflict("exec %s was already started", r.Exec)
	}
	x.state.Started, x.state.Running = true, true
	x.reframe = r.Reframe
	if r.ConsoleSize != [2]uint{} {
		x.rows, x.cols = r.ConsoleSize[0], r.ConsoleSize[1]
	}
	rows, cols := x.rows, x.cols
	s.execs.mu.Unlock()
	// Recorded before the start: if the shim were killed in between, the next one
	// would otherwise run the same command again.
	s.rec.change(func(st *proto.State) { st.Execs = s.execs.states() })

	io, err := newExecIO(x.create, sock != nil)
	if err != nil {
		return s.execFailed(x, exitRuntime, err)
	}
	proc, master, err := s.runProcess(x.create.Exec, x.create.Process, x.create.Tty, rows, cols, io.child)
	io.childDone()
	if err != nil {
		io.close()
		code := startExitCode(err.Error())
		if code == exitRuntime {
			code = exitUnknown
		}
		st, rerr := s.execFailed(x, code, err)
		if sock == nil {
			return st, rerr
		}
		failed = rerr
		return st, nil
	}
	if master != nil {
		io.stdin, io.stdout = master, master
	}
	io.begin(x.create)

	x.io = io
	if sock != nil {
		x.client = stream.New(sock, x.options(), r.Pending)
	}
	x.makeReaders()
	s.execs.mu.Lock()
	x.proc, x.master = proc, master
	x.state.Pid = proc.pid
	st := x.state
	if x.rows != rows || x.cols != cols { // resized meanwhile
		resizeFile(master, x.rows, x.cols)
	}
	s.execs.mu.Unlock()
	s.rec.change(func(st *proto.State) { st.Execs = s.execs.states() })
	handedOver = true
	s.superviseExec(x)
	return st, nil
}

// options are those of the session's client.
func (x *session) options() stream.Options {
	return stream.Options{Terminal: x.create.Tty, Keys: x.create.DetachKeys, Raw: x.create.Tty != x.reframe, Bound: execBacklogSize}
}

// makeReaders makes the readers of the session's output streams.
func (x *session) makeReaders() {
	for _, f := range []*os.File{x.io.stdout, x.io.stderr} {
		if f != nil {
			src := format.Stdout
			if f == x.io.stderr {
				src = format.Stderr
			}
			x.readers = append(x.readers, &execReader{f: f, src: src, client: x.client, done: make(chan struct{})})
		}
	}
	if len(x.readers) == 2 {
		x.turns = newTurns([]*os.File{x.readers[0].f, x.readers[1].f})
		for i, rd := range x.readers {
			if x.turns != nil {
				rd.turns, rd.turn, rd.twin = x.turns, i, x.readers[1-i]
			}
		}
	}
}

// superviseExec starts the goroutines that serve the session until its end.
func (s *Shim) superviseExec(x *session) {
	for _, rd := range x.readers {
		go rd.run()
	}
	if x.client != nil {
		s.server.trackClient(x.ended)
		detached := note{proto.ActionExecDetach, map[string]string{"execID": x.create.Exec}}
		go x.client.Join(execInput{x.io, x.create}, func() { s.recordDetach(x.client, detached) })
	}
	go s.watchExec(x)
}

// execFailed records a session that could not be started.
func (s *Shim) execFailed(x *session, code int, err error) (proto.ExecState, error) {
	s.execs.mu.Lock()
	x.state.Running, x.state.ExitCode = false, code
	st := x.state
	s.execs.mu.Unlock()
	s.rec.change(func(st *proto.State) { st.Execs = s.execs.states() },
		note{proto.ActionExecDie, map[string]string{"execID": st.Exec, "exitCode": strconv.Itoa(code)}})
	return st, &proto.Error{Kind: proto.KindRuntime, Message: "OCI runtime exec failed: " + err.Error(), ExitCode: code}
}

// watchExec waits for the process of a session, records its exit, and ends the
// client's stream.
func (s *Shim) watchExec(x *session) {
	defer s.server.collect()
	defer close(x.ended)
	<-x.proc.exited
	s.gate.enter()
	s.execs.mu.Lock()
	recorded := !x.state.Running // by the previous binary
	if !recorded {
		x.state.Running, x.state.Pid, x.state.ExitCode = false, 0, x.proc.exitCode()
	}
	st := x.state
	x.proc.closePidfd()
	x.master = nil
	s.execs.mu.Unlock()
	// Recorded before the client's stream ends: the client then asks for the exit
	// code.
	if !recorded {
		s.rec.change(func(st *proto.State) { st.Execs = s.execs.states() },
			note{proto.ActionExecDie, map[string]string{"execID": st.Exec, "exitCode": strconv.Itoa(st.ExitCode)}})
	}
	s.gate.leave()
	for _, rd := range x.readers {
		rd.f.SetReadDeadline(time.Unix(1, 0))
	}
	for _, rd := range x.readers {
		<-rd.done
	}
	if x.io.pipe != nil {
		x.io.pipe.Break()
	}
	if x.io.stdin != nil && x.io.stdin != x.io.stdout {
		x.io.stdin.Close()
	}
	if x.client != nil {
		s.server.awaitAcks(s.rec.snapshot().Seq)
		x.client.EndOutput()
		<-x.client.Done()
	}
	s.gate.enter()
	defer s.gate.leave()
	s.execs.mu.Lock()
	for _, rd := range x.readers {
		s.execs.discard(rd)
	}
	x.turns.close()
	x.io, x.client, x.readers, x.turns = nil, nil, nil, nil
	s.execs.trim()
	s.execs.mu.Unlock()
}

func (s *Shim) execResize(r proto.Resize) error {
	s.execs.mu.Lock()
	defer s.execs.mu.Unlock()
	x := s.execs.find(r.Exec)
	switch {
	case x == nil:
		return notFound("no such exec: %s", r.Exec)
	case x.state.Started && !x.state.Running:
		return notFound("exec %s has ended", r.Exec)
	case !x.create.Tty:
		return nil // as in Docker
	}
	x.rows, x.cols = r.Height, r.Width
	return resizeFile(x.master, r.Height, r.Width)
}

// runProcess runs another process in the container by the runtime's exec command.
// name must be unique among calls in progress.
func (s *Shim) runProcess(name string, spec json.RawMessage, tty bool, rows, cols uint, child stdio) (_ *process, _ *os.File, err error) {
	spec, err = withTerminal(spec, tty, rows, cols)
	if err != nil {
		return nil, nil, err
	}
	base := filepath.Join(s.boot.RunDir, "exec-"+name)
	specFile, pidFile := base+".json", base+".pid"
	if err := os.WriteFile(specFile, spec, 0o600); err != nil {
		return nil, nil, err
	}
	defer os.Remove(specFile)
	defer os.Remove(pidFile)
	args := []string{"--detach", "--process", specFile, "--pid-file", pidFile}
	var con *console
	if tty {
		// The path that the runtime dials must stay short even if name is long.
		if con, err = newConsole(s.dirfd, "x"+strconv.FormatUint(s.consoles.Add(1), 10)+".sock", rows, cols); err != nil {
			return nil, nil, err
		}
		defer con.close()
		args = append(args, "--console-socket", con.address())
	}
	s.reaper.listenSIGCHLD()
	s.reaper.beginAdoption()
	defer s.reaper.endAdoption()
	if err := s.runtime.call(child, "exec", append(args, s.boot.ID)...); err != nil {
		return nil, nil, err
	}
	pid, err := readPid(pidFile)
	if err != nil {
		return nil, nil, err
	}
	proc, err := s.reaper.adopt(pid)
	if err != nil {
		return nil, nil, err
	}
	if con == nil {
		return proc, nil, nil
	}
	master, err := con.take()
	if err != nil {
		proc.signal(syscall.SIGKILL)
		return nil, nil, err
	}
	return proc, master, nil
}

// withTerminal sets the fields of an OCI process that the shim decides.
func withTerminal(spec json.RawMessage, tty bool, rows, cols uint) (json.RawMessage, error) {
	var p map[string]json.RawMessage
	if err := json.Unmarshal(spec, &p); err != nil {
		return nil, fmt.Errorf("process: %w", err)
	}
	p["terminal"] = json.RawMessage(strconv.FormatBool(tty))
	delete(p, "consoleSize")
	if tty && (rows != 0 || cols != 0) {
		p["consoleSize"], _ = json.Marshal(map[string]uint{"height": rows, "width": cols})
	}
	return json.Marshal(p)
}
