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
}

// session is one exec. Its fields are guarded by execs.mu.
type session struct {
	create proto.ExecCreate
	state  proto.ExecState
	proc   *process
	ended  chan struct{} // closed when its client was served
	master *os.File      // of a terminal
	rows   uint          // asked for before there was a terminal
	cols   uint
}

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
		if !x.state.Running {
			idle++
		}
	}
	kept := e.list[:0]
	for _, x := range e.list {
		if idle > execsKept && !x.state.Running {
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
	x.state.Started = true
	if r.ConsoleSize != [2]uint{} {
		x.rows, x.cols = r.ConsoleSize[0], r.ConsoleSize[1]
	}
	rows, cols := x.rows, x.cols
	s.execs.mu.Unlock()

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
		w.write(format.Stdout, []byte(rerr.Error()+"\r\n"))
		return st, nil
	}
	if master != nil {
		io.stdin, io.stdout = master, master
	}

	s.execs.mu.Lock()
	x.proc, x.master = proc, master
	x.state.Running, x.state.Pid = true, proc.pid
	st := x.state
	if x.rows != rows || x.cols != cols { // resized meanwhile
		resizeFile(master, x.rows, x.cols)
	}
	s.execs.mu.Unlock()
	s.rec.change(func(st *proto.State) { st.Execs = s.execs.states() })
	handedOver = true
	if sock != nil {
		s.server.linger(x.ended)
	}
	go s.watchExec(x, io, sock, r.Pending)
	return st, nil
}

// execFailed records a session that could not be started.
func (s *Shim) execFailed(x *session, code int, err error) (proto.ExecState, error) {
	s.execs.mu.Lock()
	x.state.ExitCode = code
	st := x.state
	s.execs.mu.Unlock()
	s.rec.change(func(st *proto.State) { st.Execs = s.execs.states() },
		note{proto.ActionExecDie, map[string]string{"execID": st.Exec, "exitCode": strconv.Itoa(code)}})
	return st, &proto.Error{Kind: proto.KindRuntime, Message: "OCI runtime exec failed: " + err.Error(), ExitCode: code}
}

// watchExec sees a running session through.
func (s *Shim) watchExec(x *session, io *execIO, sock *socket, pending []byte) {
	defer close(x.ended)
	w := &execWriter{sock: sock, raw: x.create.Tty}
	var readers []*execReader
	for _, f := range []*os.File{io.stdout, io.stderr} {
		if f == nil {
			continue
		}
		src := format.Stdout
		if f == io.stderr {
			src = format.Stderr
		}
		rd := &execReader{f: f, src: src, w: w, done: make(chan struct{})}
		readers = append(readers, rd)
		go rd.run()
	}
	if sock != nil {
		go func() {
			if io.input(sock, w, pending, x.create) {
				s.rec.change(func(*proto.State) {}, note{proto.ActionExecDetach, map[string]string{"execID": x.create.Exec}})
			}
		}()
	}
	<-x.proc.exited
	code := x.proc.exitCode()
	s.execs.mu.Lock()
	x.state.Running, x.state.Pid, x.state.ExitCode = false, 0, code
	x.proc.forget()
	x.master = nil
	s.execs.trim()
	s.execs.mu.Unlock()
	// Recorded before the client sees the end of its stream, after which it
	// asks for the exit code.
	s.rec.change(func(st *proto.State) { st.Execs = s.execs.states() },
		note{proto.ActionExecDie, map[string]string{"execID": x.create.Exec, "exitCode": strconv.Itoa(code)}})
	for _, rd := range readers {
		rd.f.SetReadDeadline(time.Unix(1, 0))
	}
	for _, rd := range readers {
		<-rd.done
	}
	if sock != nil {
		sock.close()
	}
	if io.stdin != nil && io.stdin != io.stdout {
		io.stdin.Close()
	}
	for _, rd := range readers {
		go rd.discard()
	}
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

// input carries what the client sends to the process, until the client goes or
// is detached by its keys, which it reports.
func (io *execIO) input(sock *socket, w *execWriter, pending []byte, c proto.ExecCreate) (detached bool) {
	esc := escape{}
	if c.Tty {
		esc.keys = c.DetachKeys
	}
	broken := io.stdin == nil || !c.Stdin
	feed := func(p []byte) bool {
		clean, left := esc.filter(p)
		if len(clean) > 0 && !broken {
			_, err := io.stdin.Write(clean)
			broken = err != nil
		}
		return left
	}
	detached = feed(pending)
	buf := make([]byte, 32<<10)
	for !detached {
		n, err := sock.f.Read(buf)
		if n > 0 {
			detached = feed(buf[:n])
		}
		if err != nil || n == 0 {
			break
		}
	}
	if detached {
		w.leave(sock)
		return true
	}
	if io.stdin != nil && !c.Tty {
		io.stdin.Close()
	}
	buf = nil
	sock.waitGone()
	w.leave(sock)
	return false
}

// execWriter is the client of a session. A client that reads slowly slows the
// session, and it alone, as a pipe would; without a client output is thrown
// away, so that the process is never stuck on someone who left.
type execWriter struct {
	mu   sync.Mutex
	sock *socket // nil once it is gone
	raw  bool
}

func (w *execWriter) write(src format.Source, p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sock == nil {
		return
	}
	if !w.raw {
		h := header(src, len(p))
		if err := w.sock.write(h[:]); err != nil {
			w.sock = nil
			return
		}
	}
	if err := w.sock.write(p); err != nil {
		w.sock = nil
	}
}

// leave ends the connection, and a write in progress with it.
func (w *execWriter) leave(sock *socket) {
	sock.close()
	w.mu.Lock()
	w.sock = nil
	w.mu.Unlock()
}

// execReader carries one stream of a session to its client.
type execReader struct {
	f    *os.File
	src  format.Source
	w    *execWriter
	done chan struct{}
	eof  bool // valid once done is closed
}

func (r *execReader) run() {
	defer close(r.done)
	buf := make([]byte, 32<<10)
	for {
		n, err := r.f.Read(buf)
		if n > 0 {
			r.w.write(r.src, buf[:n])
		}
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
		if cerr := raw.Control(func(fd uintptr) { n, err = unix.Read(int(fd), buf) }); cerr != nil {
			return
		}
		switch {
		case n > 0:
			left -= n
			r.w.write(r.src, buf[:n])
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return
		default:
			r.eof = true
			return
		}
	}
}

// discard keeps the stream open and empty for processes that outlive the
// session, and closes it at its end.
func (r *execReader) discard() {
	defer r.f.Close()
	if r.eof {
		return
	}
	r.f.SetReadDeadline(time.Time{})
	buf := make([]byte, 4<<10)
	for {
		if _, err := r.f.Read(buf); err != nil {
			return
		}
	}
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
