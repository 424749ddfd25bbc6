// SPDX-License-Identifier: Apache-2.0

package server

import (
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"holdfast/internal/logs/format"
	"holdfast/internal/shim/descriptor"
	"holdfast/internal/shim/proto"
)

const (
	readSize = 64 << 10 // bytes of one read of a container's output
	// burstSize is the same while more than readSize bytes wait to be read. One
	// write of all their lines costs less than several.
	burstSize = 256 << 10
	pipeSize  = 1 << 20 // what the kernel buffers while the shim is busy
	// quiet is how long a container must be silent before the memory that its output
	// took is released. Releasing it between two blocks of a burst would cost more
	// than writing them.
	quiet = time.Second
	// drainLimit bounds how many bytes are read after the container's exit from a
	// stream that surviving processes keep filling.
	drainLimit = 4 * pipeSize
)

// output delivers the container's output to its log and to the attached clients.
// The log exerts no backpressure: it drops lines that a full disk can't take. A
// client that is behind by more than its backlog does (see backpressure).
type output struct {
	mu      sync.Mutex
	log     *format.Log          // nil before the first start
	ledger  *ledger              // nil with driver none, or if it could not be created
	buf     []byte               // used for both streams without a ledger; allocated by the first read
	clients map[*client]struct{} // those attached to the current run
	all     map[*client]struct{} // and those still receiving output of an earlier run
	// followers read the log itself; nil while there are none.
	followers  map[*follower]struct{}
	ended      bool // no run will follow
	in         *stdin
	flushTimer *time.Timer // calls flush; nil before the first output
	closed     bool
}

func newOutput() *output {
	return &output{clients: map[*client]struct{}{}, all: map[*client]struct{}{}, in: newStdin()}
}

// openLog opens the log and the ledger. again: this shim continues a life, after a
// re-exec or because the previous shim was killed.
func (o *output) openLog(l proto.Log, runDir string, again bool) error {
	log, err := format.Open(format.Config{Driver: l.Driver, Path: l.Path, MaxSize: l.MaxSize,
		MaxFiles: l.MaxFiles, Compress: l.Compress, Attrs: l.Attrs})
	if err != nil {
		return err
	}
	var led *ledger
	if l.Driver != format.DriverNone {
		if again {
			if led, err = openLedger(runDir, true); err == nil {
				err = led.restore(log)
			}
			if err != nil {
				logf("output that the previous shim had read but not logged is lost: %v", err)
			}
		}
		if led == nil {
			if led, err = openLedger(runDir, false); err != nil {
				logf("no ledger: output that is not logged yet would be lost if the shim were killed: %v", err)
			}
		}
	}
	o.mu.Lock()
	o.log, o.ledger = log, led
	o.mu.Unlock()
	return nil
}

func (o *output) dropped() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.log == nil {
		return 0
	}
	return o.log.Dropped()
}

// read does one read of a stream and delivers the bytes. All lines in it get the
// same timestamp.
func (o *output) read(fd int, src format.Source, terminal bool) (int, error) {
	motion.RLock() // a step, see quiesce.go
	defer motion.RUnlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	p := o.buf
	if o.ledger != nil {
		// Ask for exactly the available bytes, so that the read returns all or none.
		// At the end of the stream, or if nothing is there, one byte suffices to find
		// out.
		want := max(waiting(fd), 1)
		inode, size := o.log.Position()
		p = o.ledger.begin(src, want, now, inode, size, terminal)
	} else if p == nil {
		p = make([]byte, readSize)
		o.buf = p
	}
	n, err := readNow(fd, p)
	if o.ledger != nil {
		o.ledger.took(n)
	}
	if n > 0 {
		o.log.Write(src, now, p[:n])
		o.notifyFollowers()
		for c := range o.clients {
			c.send(src, p[:n])
		}
		if o.ledger != nil {
			o.ledger.commit(o.log)
		}
	}
	return n, err
}

// waiting returns how many bytes can be read, or 0 if that is unknown.
//
// It and readNow never block, so they bypass the Go scheduler. With it, a copy of
// some microseconds would make the runtime hand the only P to another thread and
// back.
func waiting(fd int) int {
	var n int32
	if _, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCINQ, uintptr(unsafe.Pointer(&n))); errno != 0 {
		return 0
	}
	return int(n)
}

// readNow reads from a non-blocking descriptor. p must not be empty.
func readNow(fd int, p []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// flushLater schedules flush. It is called when nothing is left to read for the
// moment.
func (o *output) flushLater() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.flushTimer == nil {
		o.flushTimer = time.AfterFunc(quiet, o.flush)
	} else {
		o.flushTimer.Reset(quiet)
	}
}

// flush releases the memory of a burst.
func (o *output) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	o.log.Flush()
	if o.ledger != nil {
		o.ledger.shrink()
	}
}

// endRun writes the unfinished last lines of a run to the log. It returns the
// attached clients: they still get their backlog, and the caller ends their streams
// once the exit is recorded.
func (o *output) endRun(last bool) (clients []*client) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.log != nil {
		o.log.End(format.Stdout)
		o.log.End(format.Stderr)
		o.log.Flush()
		o.notifyFollowers()
		if o.ledger != nil {
			o.ledger.commit(o.log)
		}
	}
	for c := range o.clients {
		clients = append(clients, c)
		delete(o.clients, c)
	}
	o.in.end()
	o.in = newStdin()
	o.ended = last
	return clients
}

// close is called after the last run.
func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.closed = true
	if o.flushTimer != nil {
		o.flushTimer.Stop()
	}
	o.endFollowers()
	if o.log != nil {
		if err := o.log.Close(); err != nil {
			logf("close log: %v", err)
		}
	}
	if o.ledger != nil {
		o.ledger.close()
		o.ledger = nil
	}
}

// runIO has both sides of a run's stdio.
type runIO struct {
	out     *output
	child   stdio // the container's ends, until the runtime has inherited them
	stdin   *os.File
	console *console
	master  *os.File // the terminal
	pumps   []*pump
	turns   *turns // of two pumps
}

// orderPumps makes the two pumps read standard output and standard error in the
// order in which the container wrote to them.
func (io *runIO) orderPumps() {
	if len(io.pumps) != 2 {
		return
	}
	a, b := io.pumps[0], io.pumps[1]
	io.turns = newTurns([]*os.File{a.f, b.f})
	a.turns, b.turns = io.turns, io.turns
	a.twin, b.twin, b.turn = b, a, 1
}

// newRunIO makes the FIFOs, or the socket over which the runtime sends the
// terminal. dirfd is the run directory's.
func (o *output) newRunIO(boot *proto.Bootstrap, dirfd int, rows, columns uint) (_ *runIO, err error) {
	io := &runIO{out: o, child: noStdio}
	defer func() {
		if err != nil {
			io.close()
		}
	}()
	if boot.Terminal {
		io.console, err = newConsole(dirfd, "console.sock", rows, columns)
		return io, err
	}
	if boot.OpenStdin {
		if io.stdin, io.child[0], err = stdinFIFO(boot); err != nil {
			return nil, err
		}
	}
	for i, src := range []format.Source{format.Stdout, format.Stderr} {
		f, child, err := outputFIFO(boot, []string{"stdout", "stderr"}[i])
		if err != nil {
			return nil, err
		}
		io.child[i+1] = child
		p, err := newPump(o, f, src)
		if err != nil {
			return nil, err
		}
		io.pumps = append(io.pumps, p)
	}
	io.orderPumps()
	return io, nil
}

// started is called once the container's process runs. Output is read only from
// here on: if the start fails, the runtime may have written its error messages to
// these streams.
func (io *runIO) started(boot *proto.Bootstrap) error {
	io.child.close()
	io.child = noStdio
	if io.console != nil {
		master, err := io.console.take()
		io.console.close()
		io.console = nil
		if err != nil {
			return err
		}
		p, err := newPump(io.out, master, format.Stdout)
		if err != nil {
			master.Close()
			return err
		}
		p.terminal = true
		io.master, io.pumps = master, []*pump{p}
	}
	io.run(boot)
	return nil
}

// run starts the pumps and opens the input.
func (io *runIO) run(boot *proto.Bootstrap) {
	io.out.mu.Lock()
	in := io.out.in
	io.out.mu.Unlock()
	if io.master != nil && boot.OpenStdin {
		in.open(io.master, true)
	} else {
		in.open(io.stdin, false)
	}
	for _, p := range io.pumps {
		go p.run()
	}
}

// reopen opens the streams of a run whose shim was killed. The container still
// holds its ends, and its output since then is in the pipes. master and stdin are
// the daemon's copies of the shim's ends, or -1.
func (o *output) reopen(boot *proto.Bootstrap, master, stdin int) (*runIO, error) {
	io := &runIO{out: o, child: noStdio}
	if boot.Terminal {
		if master < 0 {
			return io, nil // the terminal was lost with the shim: no daemon had a copy
		}
		if err := unix.SetNonblock(master, true); err != nil {
			return nil, os.NewSyscallError("setnonblock", err)
		}
		io.master = os.NewFile(uintptr(master), "terminal")
		p, err := newPump(o, io.master, format.Stdout)
		if err != nil {
			return nil, err
		}
		p.terminal = true
		io.pumps = []*pump{p}
		return io, nil
	}
	if boot.OpenStdin && !boot.StdinOnce && stdin >= 0 {
		if err := unix.SetNonblock(stdin, true); err != nil {
			return nil, os.NewSyscallError("setnonblock", err)
		}
		io.stdin = os.NewFile(uintptr(stdin), "stdin")
	}
	for i, src := range []format.Source{format.Stdout, format.Stderr} {
		name := []string{"stdout", "stderr"}[i]
		fd, err := openFIFO(filepath.Join(boot.RunDir, name), unix.O_RDONLY|unix.O_NONBLOCK)
		if err != nil {
			io.close()
			return nil, err
		}
		p, err := newPump(o, os.NewFile(uintptr(fd), name), src)
		if err != nil {
			io.close()
			return nil, err
		}
		io.pumps = append(io.pumps, p)
	}
	io.orderPumps()
	return io, nil
}

// restoreRunIO takes over the streams of a run after a re-exec.
func (o *output) restoreRunIO(i *handoverRun) *runIO {
	io := &runIO{out: o, child: noStdio, stdin: descriptor.File(i.Stdin, "stdin"), master: descriptor.File(i.Master, "terminal")}
	add := func(f *os.File, src format.Source, terminal bool) {
		if f == nil {
			return
		}
		if p, err := newPump(o, f, src); err == nil {
			p.terminal = terminal
			io.pumps = append(io.pumps, p)
		}
	}
	add(io.master, format.Stdout, true)
	add(descriptor.File(i.Stdout, "stdout"), format.Stdout, false)
	add(descriptor.File(i.Stderr, "stderr"), format.Stderr, false)
	io.orderPumps()
	return io
}

// drain reads the remaining output after the process has exited. It reports whether
// all streams were at their end. If not, other processes still hold them, and drain
// is to be called again once these have ended.
func (io *runIO) drain() bool {
	all := true
	for _, p := range io.pumps {
		if !p.drain() {
			all = false
		}
	}
	return all
}

func (io *runIO) close() {
	io.child.close()
	io.child = noStdio
	if io.console != nil {
		io.console.close()
		io.console = nil
	}
	if io.stdin != nil {
		io.stdin.Close()
	}
	for _, p := range io.pumps {
		p.f.Close()
	}
	io.turns.close()
}

// pump reads one stream of a run.
type pump struct {
	out      *output
	f        *os.File
	raw      syscall.RawConn
	src      format.Source
	terminal bool
	turns    *turns // nil with a terminal, or if it could not be created
	turn     int    // its index in turns
	twin     *pump  // the pump of the other stream
	done     chan struct{}
	stop     chan struct{} // closed with stopping
	stopping atomic.Bool
	blocked  <-chan struct{} // closed when it may read on; nil if it may now
	eof      bool            // valid once done is closed
}

func newPump(out *output, f *os.File, src format.Source) (*pump, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &pump{out: out, f: f, raw: raw, src: src, done: make(chan struct{}), stop: make(chan struct{})}, nil
}

func (p *pump) run() {
	defer close(p.done)
	for {
		if err := p.raw.Read(p.take); err != nil {
			// drain's deadline ended the wait. Read the output that remains.
			p.raw.Control(func(fd uintptr) { p.take(fd) })
			return
		}
		if p.blocked == nil {
			return
		}
		select {
		case <-p.blocked:
		case <-p.stop:
		}
	}
}

// take reads until nothing is left or a client exerts backpressure. It is the
// function of RawConn.Read: true ends the call, false waits for more bytes. Once
// the pump is stopping, backpressure is ignored.
func (p *pump) take(fd uintptr) bool {
	left := drainLimit
	for {
		if p.blocked = nil; !p.stopping.Load() {
			if p.blocked = p.out.backpressure(p.src); p.blocked != nil {
				p.out.flushLater()
				return true
			}
		}
		n, err := p.read(fd)
		switch {
		case n > 0:
			if !p.stopping.Load() {
				continue
			}
			if left -= n; left <= 0 {
				return true
			}
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			p.out.flushLater()
			return p.stopping.Load()
		case err == unix.EIO && p.terminal && !p.stopping.Load():
			// No process has the terminal open right now, but one may open it again.
			p.out.flushLater()
			return false
		default: // EOF, or a permanent error
			if err != nil && !(err == unix.EIO && p.terminal) {
				logf("read %s: %v", p.f.Name(), err)
			}
			p.out.flushLater()
			p.eof = true
			return true
		}
	}
}

// read reads once. If the container wrote to the other stream first, it reads that
// one before, unless a client blocks it.
func (p *pump) read(fd uintptr) (int, error) {
	if p.turns == nil {
		return p.out.read(int(fd), p.src, p.terminal)
	}
	p.turns.mu.Lock()
	defer p.turns.mu.Unlock()
	switch next := p.turns.next(p.turn, fd); {
	case next < 0:
		return -1, unix.EAGAIN
	case next != p.turn && p.out.backpressure(p.twin.src) == nil:
		p.twin.raw.Control(func(other uintptr) { p.out.read(int(other), p.twin.src, false) })
	}
	return p.out.read(int(fd), p.src, false)
}

// drain makes the pump read the available bytes and stop. It reports whether the
// pump reached the end of the stream.
func (p *pump) drain() bool {
	if !p.stopping.Swap(true) {
		close(p.stop)
	}
	p.f.SetReadDeadline(time.Unix(1, 0))
	<-p.done
	if !p.eof {
		p.raw.Control(func(fd uintptr) { p.take(fd) })
	}
	return p.eof
}
