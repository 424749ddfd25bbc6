package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/logs/format"
	"holdfast/internal/shim/proto"
)

// execsKept is how many exec sessions that are not running are remembered.
const execsKept = 64

// execs are the container's exec sessions, oldest first.
type execs struct {
	mu   sync.Mutex
	list []*session
	left map[*os.File]struct{} // streams of sessions that have ended, see discard
}

// session is one exec. Its fields are guarded by execs.mu.
type session struct {
	create proto.ExecCreate
	state  proto.ExecState
	proc   *process
	ended  chan struct{} // closed when its client was served
	master *os.File      // of a terminal

	// Of one that runs, or whose client is not served yet.
	io      *execIO
	out     *execWriter
	readers []*execReader
	rows    uint // asked for before there was a terminal
	cols    uint
}

// idle reports whether nothing of it goes on.
func (x *session) idle() bool { return !x.state.Running && x.io == nil }

// states is a copy for the record.
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

// trim forgets the oldest sessions that don't run.
func (e *execs) trim() {
	idle := 0
	for _, x := range e.list {
		if x.idle() {
			idle++
		}
	}
	kept := e.list[:0]
	for _, x := range e.list {
		if idle > execsKept && x.idle() {
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
		return invalid("exec: name %q must be 1 to 128 of [a-zA-Z0-9_.-]", c.Exec)
	}
	var p struct{ Args []string }
	if err := json.Unmarshal(c.Process, &p); err != nil || len(p.Args) == 0 {
		return invalid("exec %s: the process has no args", c.Exec)
	}
	if st := s.rec.snapshot(); st.Status != proto.StatusRunning {
		return conflict("container is not running: it is %s", st.Status)
	}
	s.execs.mu.Lock()
	if s.execs.find(c.Exec) != nil {
		s.execs.mu.Unlock()
		return conflict("exec %s exists", c.Exec)
	}
	s.execs.list = append(s.execs.list, &session{create: c, ended: make(chan struct{}), state: proto.ExecState{Exec: c.Exec, Info: c.Info}})
	s.execs.trim()
	s.execs.mu.Unlock()
	s.rec.change(func(st *proto.State) { st.Execs = s.execs.states() })
	return nil
}

// execStart runs the session. With a client that could not be started is told
// to it and in the state; without one it is the call's error.
func (s *Shim) execStart(r proto.ExecStart, sock *socket) (_ proto.ExecState, err error) {
	handedOver := false
	defer func() {
		if sock != nil && !handedOver {
			sock.close()
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
	if x.state.Started {
		s.execs.mu.Unlock()
		return proto.ExecState{}, conflict("exec %s was already started", r.Exec)
	}
	x.state.Started, x.state.Running = true, true
	if r.ConsoleSize != [2]uint{} {
		x.rows, x.cols = r.ConsoleSize[0], r.ConsoleSize[1]
	}
	rows, cols := x.rows, x.cols
	s.execs.mu.Unlock()
	// Recorded before it is done: were the shim killed now, the next one would
	// run the same command once more.
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
			code = exitNotExecutable // as Docker has it for execs
		}
		st, rerr := s.execFailed(x, code, err)
		if sock == nil {
			return st, rerr
		}
		w := &execWriter{sock: sock, raw: x.create.Tty}
		text := w.frame(format.Stdout, []byte(rerr.Error()+"\r\n"))
		w.write(&text)
		return st, nil
	}
	if master != nil {
		io.stdin, io.stdout = master, master
	}

	x.io, x.out = io, &execWriter{sock: sock, raw: x.create.Tty}
	io.take(x.create, r.Pending)
	x.listen()
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
	s.followExec(x)
	return st, nil
}

// listen makes the readers of the session's streams.
func (x *session) listen() {
	for _, f := range []*os.File{x.io.stdout, x.io.stderr} {
		if f != nil {
			src := format.Stdout
			if f == x.io.stderr {
				src = format.Stderr
			}
			x.readers = append(x.readers, &execReader{f: f, src: src, w: x.out, done: make(chan struct{})})
		}
	}
}

// followExec lets the session's bytes flow and sees it through.
func (s *Shim) followExec(x *session) {
	for _, rd := range x.readers {
		go rd.run()
	}
	if x.out.sock != nil {
		s.server.linger(x.ended)
		go s.listenExec(x, x.io, x.out)
	}
	go s.watchExec(x)
}

// listenExec carries the input of a session's client to its end.
func (s *Shim) listenExec(x *session, io *execIO, out *execWriter) {
	if io.input(out, x.create) {
		s.gate.enter()
		defer s.gate.leave()
		s.rec.change(func(*proto.State) {}, note{proto.ActionExecDetach, map[string]string{"execID": x.create.Exec}})
		io.left = false
	}
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

// watchExec sees a session that was started through.
func (s *Shim) watchExec(x *session) {
	defer close(x.ended)
	<-x.proc.exited
	s.gate.enter()
	s.execs.mu.Lock()
	told := !x.state.Running // before the shim went on as another binary
	if !told {
		x.state.Running, x.state.Pid, x.state.ExitCode = false, 0, x.proc.exitCode()
	}
	st := x.state
	x.proc.forget()
	x.master = nil
	s.execs.mu.Unlock()
	// Recorded before the client sees the end of its stream, after which it
	// asks for the exit code.
	if !told {
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
	s.gate.enter()
	defer s.gate.leave()
	if x.out.sock != nil {
		x.out.leave(x.out.sock)
	}
	if x.io.stdin != nil && x.io.stdin != x.io.stdout {
		x.io.stdin.Close()
	}
	s.execs.mu.Lock()
	for _, rd := range x.readers {
		s.execs.discard(rd)
	}
	x.io, x.out, x.readers = nil, nil, nil
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
	case !x.create.Tty:
		return invalid("exec %s has no terminal", r.Exec)
	case x.state.Started && x.master == nil && !x.state.Running && x.state.ExitCode != 0:
		return conflict("exec %s is not running", r.Exec)
	}
	x.rows, x.cols = r.Height, r.Width
	return resizeFile(x.master, r.Height, r.Width)
}

// runProcess runs one more process in the container by the runtime's exec.
// name is unique among those under way.
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
		// The path that the runtime dials is short whatever the name is.
		if con, err = newConsole(s.dirfd, "x"+strconv.FormatUint(s.consoles.Add(1), 10)+".sock", rows, cols); err != nil {
			return nil, nil, err
		}
		defer con.close()
		args = append(args, "--console-socket", con.address())
	}
	s.reaper.hold()
	defer s.reaper.release()
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

// withTerminal sets what the shim decides in an OCI process.
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

// execIO is the stdio of a session, on both sides.
type execIO struct {
	child  stdio
	stdin  *os.File
	stdout *os.File
	stderr *os.File

	// Of the client's input, changed within steps (see still.go).
	typed []byte // read from the client and not yet the process's
	esc   escape
	mute  bool // the client's input has ended
	left  bool // the client left by its detach keys
	over  bool // stdin is closed
}

// newExecIO makes pipes for what a client wants; the rest is /dev/null.
func newExecIO(c proto.ExecCreate, client bool) (_ *execIO, err error) {
	io := &execIO{child: noStdio}
	if c.Tty || !client {
		return io, nil
	}
	defer func() {
		if err != nil {
			io.childDone()
			io.close()
		}
	}()
	if c.Stdin {
		if io.child[0], io.stdin, err = pipe(c, true); err != nil {
			return nil, err
		}
	}
	if c.Stdout {
		if io.child[1], io.stdout, err = pipe(c, false); err != nil {
			return nil, err
		}
	}
	if c.Stderr {
		if io.child[2], io.stderr, err = pipe(c, false); err != nil {
			return nil, err
		}
	}
	return io, nil
}

// pipe makes a pipe that belongs to the process's user; the child reads from
// it or writes to it.
func pipe(c proto.ExecCreate, childReads bool) (child int, ours *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return -1, nil, os.NewSyscallError("pipe", err)
	}
	mine := 0
	if childReads {
		mine = 1
	}
	unix.Fchown(fds[0], int(c.UID), int(c.GID)) // so that it may open /dev/stdout
	if err := unix.SetNonblock(fds[mine], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return -1, nil, os.NewSyscallError("setnonblock", err)
	}
	return fds[1-mine], os.NewFile(uintptr(fds[mine]), "pipe"), nil
}

func (io *execIO) childDone() {
	io.child.close()
	io.child = noStdio
}

func (io *execIO) close() {
	for _, f := range []*os.File{io.stdin, io.stdout, io.stderr} {
		if f != nil {
			f.Close()
		}
	}
}

// take begins the client's input with what had come before its socket.
func (io *execIO) take(c proto.ExecCreate, pending []byte) {
	if c.Tty {
		io.esc.keys = c.DetachKeys
	}
	io.typed, io.left = io.esc.filter(pending)
}

// input carries what the client sends to the process, until the client goes or
// is detached by its keys, which it reports.
func (io *execIO) input(w *execWriter, c proto.ExecCreate) (detached bool) {
	sock := w.sock
	buf := make([]byte, 32<<10)
	for !io.mute && !io.left {
		io.pass(c)
		readStep(sock.f, buf, func(p []byte, eof bool) {
			clean, left := io.esc.filter(p)
			io.typed, io.left = append(io.typed, clean...), left
			io.mute = eof
		})
	}
	io.pass(c)
	if io.left {
		w.leave(sock)
		return true
	}
	if io.stdin != nil && !c.Tty {
		io.stdin.Close()
		io.over = true
	}
	buf = nil
	sock.waitGone()
	w.leave(sock)
	return false
}

// pass gives the process what the client has typed. What it doesn't take is
// thrown away.
func (io *execIO) pass(c proto.ExecCreate) {
	if len(io.typed) > 0 && (io.stdin == nil || !c.Stdin || writeSteps(io.stdin, &io.typed) != nil) {
		motion.RLock()
		io.typed = nil
		motion.RUnlock()
	}
}

// execWriter is the client of a session. A client that reads slowly slows the
// session, and it alone, as a pipe would; without a client output is thrown
// away, so that the process is never stuck on someone who left.
type execWriter struct {
	raw  bool
	sock *socket // nil without a client

	mu   sync.Mutex
	gone bool
	rest []byte // of a frame that is being written, changed within steps
}

// frame makes what the client gets of p.
func (w *execWriter) frame(src format.Source, p []byte) []byte {
	if w.raw {
		return append([]byte(nil), p...)
	}
	h := header(src, len(p))
	return append(h[:], p...)
}

// write takes a frame and writes it.
func (w *execWriter) write(frame *[]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flush() // what was left when the shim went on as another binary
	motion.RLock()
	w.rest, *frame = *frame, nil
	motion.RUnlock()
	w.flush()
}

// finish writes what may be left.
func (w *execWriter) finish() {
	w.mu.Lock()
	w.flush()
	w.mu.Unlock()
}

func (w *execWriter) flush() {
	if w.sock == nil || w.gone || w.sock.write(&w.rest) != nil {
		motion.RLock()
		w.rest = nil
		motion.RUnlock()
		w.gone = true
	}
}

// leave ends the connection, and a write in progress with it.
func (w *execWriter) leave(sock *socket) {
	sock.close()
	w.mu.Lock()
	w.gone = true
	w.mu.Unlock()
}

// execReader carries one stream of a session to its client.
type execReader struct {
	f    *os.File
	src  format.Source
	w    *execWriter
	done chan struct{}
	held []byte // a frame for the writer, changed within steps
	eof  bool   // valid once done is closed
}

func (r *execReader) run() {
	defer close(r.done)
	defer r.w.finish()
	buf := make([]byte, 32<<10)
	for {
		if len(r.held) > 0 {
			r.w.write(&r.held)
		}
		err := readStep(r.f, buf, func(p []byte, eof bool) {
			if len(p) > 0 {
				r.held = r.w.frame(r.src, p)
			}
		})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			r.eof = true
			return
		}
	}
	// The process has ended: what it left behind, and no more. Processes that
	// it started may hold the stream for long.
	raw, err := r.f.SyscallConn()
	if err != nil {
		return
	}
	for left := drainLimit; left > 0; {
		n := 0
		if cerr := raw.Control(func(fd uintptr) {
			motion.RLock()
			defer motion.RUnlock()
			if n, err = unix.Read(int(fd), buf); n > 0 {
				r.held = r.w.frame(r.src, buf[:n])
			}
		}); cerr != nil {
			return
		}
		switch {
		case n > 0:
			left -= n
			r.w.write(&r.held)
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return
		default:
			r.eof = true
			return
		}
	}
}

// discard reads what processes still write that outlive their session, so that
// they never wait and get no error, and closes the stream at its end. It is
// called with the lock.
func (e *execs) discard(r *execReader) {
	if r.eof {
		r.f.Close()
		return
	}
	if e.left == nil {
		e.left = map[*os.File]struct{}{}
	}
	e.left[r.f] = struct{}{}
	go func() {
		defer func() {
			e.mu.Lock()
			delete(e.left, r.f)
			e.mu.Unlock()
			r.f.Close()
		}()
		r.f.SetReadDeadline(time.Time{})
		buf := make([]byte, 4<<10)
		for {
			if _, err := r.f.Read(buf); err != nil {
				return
			}
		}
	}()
}

func resizeFile(f *os.File, rows, cols uint) error {
	if f == nil {
		return nil // applied when there is a terminal
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = setSize(int(fd), rows, cols) }); cerr != nil {
		return cerr
	}
	return err
}
