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
	"holdfast/internal/shim/proto"
)

const (
	readSize = 64 << 10 // bytes of one read of a container's output
	// burstSize is the same while more than readSize waits to be read. A
	// write of all its lines costs less than several.
	burstSize = 256 << 10
	pipeSize  = 1 << 20 // what the kernel holds for it while the shim is busy
	// quiet is how long a container writes nothing before the memory that its
	// output took is given back. To give it back between two blocks of a burst
	// costs more than to write them.
	quiet = time.Second
	// drainLimit bounds in bytes what is still read after the end from a
	// stream that others, who outlive the container's process, keep filling.
	drainLimit = 4 * pipeSize
)

// output takes what the container writes to its log and to the attached
// clients. Neither can make it wait: the log drops what a full disk can't
// take, a client has a backlog (see backlog.go).
type output struct {
	mu      sync.Mutex
	log     *format.Log // nil before the first start
	ledger  *ledger     // nil with driver none, and where none could be made
	buf     []byte      // of both streams without a ledger; made with the first byte
	clients map[*client]struct{}
	all     map[*client]struct{} // with those who still read what an earlier run left
	// followers read the log itself; nil while there are none.
	followers map[*follower]struct{}
	ended     bool // no run will follow
	in        *stdin
	resting   *time.Timer // flushes; nil before the first output
	closed    bool
}

func newOutput() *output {
	return &output{clients: map[*client]struct{}{}, all: map[*client]struct{}{}, in: newStdin()}
}

// openLog is called once, before the first run, or with again when the last
// shim of the same life was killed.
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
				logf("what the last shim had read can't be continued: %v", err)
			}
		}
		if led == nil {
			if led, err = openLedger(runDir, false); err != nil {
				logf("output would not survive a kill of the shim: %v", err)
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

// read moves what one read gives. One clock reading serves all lines in it.
func (o *output) read(fd int, src format.Source, terminal bool) (int, error) {
	motion.RLock() // a step, see still.go
	defer motion.RUnlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	p := o.buf
	if o.ledger != nil {
		// Exactly what is there, so that a read gives all or nothing. At the
		// end, or when there is nothing, a byte is enough to be told.
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
		o.written()
		for c := range o.clients {
			c.send(src, p[:n])
		}
		if o.ledger != nil {
			o.ledger.commit(o.log)
		}
	}
	return n, err
}

// waiting is how many bytes there are to read; 0 where that can't be told.
//
// It and readNow never wait, so they go around the scheduler: it would give the
// only P away whenever a copy takes it some microseconds, and have it fetched
// back by another thread.
func waiting(fd int) int {
	var n int32
	if _, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCINQ, uintptr(unsafe.Pointer(&n))); errno != 0 {
		return 0
	}
	return int(n)
}

// readNow reads from a non-blocking descriptor. p is not empty.
func readNow(fd int, p []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// rest comes when there is nothing to read for the moment.
func (o *output) rest() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.resting == nil {
		o.resting = time.AfterFunc(quiet, o.flush)
	} else {
		o.resting.Reset(quiet)
	}
}

// flush gives back the memory of a burst.
func (o *output) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	o.log.Flush()
	if o.ledger != nil {
		o.ledger.rest()
	}
}

// endRun finishes the streams of a run: the last unfinished lines are written,
// the clients get what they have not yet read and then the end.
func (o *output) endRun(last bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.log != nil {
		o.log.End(format.Stdout)
		o.log.End(format.Stderr)
		o.log.Flush()
		o.written()
		if o.ledger != nil {
			o.ledger.commit(o.log)
		}
	}
	for c := range o.clients {
		c.finish()
		delete(o.clients, c)
	}
	o.in.end()
	o.in = newStdin()
	o.ended = last
}

// close comes after the last run.
func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.closed = true
	if o.resting != nil {
		o.resting.Stop()
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

// stdin is the container's standard input during one run, before which it is
// already there for clients who attach early.
type stdin struct {
	ready chan struct{} // closed when open or end was called

	mu       sync.Mutex
	f        *os.File // nil: what comes is discarded
	decided  bool
	terminal bool
	over     bool // closed by closeInput
}

func newStdin() *stdin { return &stdin{ready: make(chan struct{})} }

func (i *stdin) open(f *os.File, terminal bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.decided {
		i.f, i.terminal, i.decided = f, terminal, true
		close(i.ready)
	}
}

// write waits until the run has begun and then for room. It fails after the
// run's end.
func (i *stdin) write(left *[]byte) error {
	<-i.ready
	i.mu.Lock()
	f := i.f
	i.mu.Unlock()
	if f == nil {
		return os.ErrClosed
	}
	return writeSteps(f, left)
}

// closeInput gives the container the end of its input. A terminal has none.
func (i *stdin) closeInput() {
	<-i.ready
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.f != nil && !i.terminal {
		i.f.Close()
		i.over = true
	}
}

// end comes after the run, or instead of it.
func (i *stdin) end() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.decided {
		i.decided = true
		close(i.ready)
	}
	if i.f != nil && !i.terminal {
		i.f.Close()
	}
}

// runIO is the stdio of one run, on both sides.
type runIO struct {
	out     *output
	child   stdio // the container's ends, until the runtime has them
	stdin   *os.File
	console *console
	master  *os.File // the terminal
	pumps   []*pump
}

// newRunIO makes the FIFOs, or the socket on which the terminal will come.
// dirfd is the run directory's.
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
	return io, nil
}

// started comes once the container's process runs. Only from here on is output
// read: until then the runtime itself may have written its complaints there.
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

// run lets bytes flow.
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

// reopen opens the streams of a run whose shim was killed. The container's ends
// are still there, and so is what it has written meanwhile. master and stdin
// are what the daemon kept of them, or -1.
func (o *output) reopen(boot *proto.Bootstrap, master, stdin int) (*runIO, error) {
	io := &runIO{out: o, child: noStdio}
	if boot.Terminal {
		if master < 0 {
			return io, nil // it went with the shim, and nobody kept it
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
	return io, nil
}

// resume takes the streams of a run over from the program before.
func (o *output) resume(i *runImage) *runIO {
	io := &runIO{out: o, child: noStdio, stdin: file(i.Stdin, "stdin"), master: file(i.Master, "terminal")}
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
	add(file(i.Stdout, "stdout"), format.Stdout, false)
	add(file(i.Stderr, "stderr"), format.Stderr, false)
	return io
}

// join brings a client back that was attached before the shim went on as
// another binary.
func (o *output) join(c *client, live bool) *stdin {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all[c] = struct{}{}
	go c.deliver(o)
	if live {
		o.clients[c] = struct{}{}
		return o.in
	}
	gone := newStdin()
	gone.end()
	return gone
}

// drain reads what the container left behind when its process has ended. It
// reports whether the streams have ended too; otherwise other processes hold
// them, and drain is to be called again when these are gone.
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
}

// makeFIFO makes a new FIFO that belongs to the container's user, so that it
// may also open it as /dev/stdout.
func makeFIFO(boot *proto.Bootstrap, name string) (string, error) {
	path := filepath.Join(boot.RunDir, name)
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return "", err
	}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return "", &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	return path, os.Chown(path, int(boot.UID), int(boot.GID))
}

func openFIFO(path string, flags int) (int, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// outputFIFO opens both ends. The container's is read-write: were the shim to
// die, a write would wait for the next one and not fail.
func outputFIFO(boot *proto.Bootstrap, name string) (*os.File, int, error) {
	path, err := makeFIFO(boot, name)
	if err != nil {
		return nil, -1, err
	}
	r, err := openFIFO(path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, -1, err
	}
	w, err := openFIFO(path, unix.O_RDWR)
	if err != nil {
		unix.Close(r)
		return nil, -1, err
	}
	// More room means fewer turns between writer and reader; the kernel may
	// refuse it, and then its default does.
	unix.FcntlInt(uintptr(r), unix.F_SETPIPE_SZ, pipeSize)
	return os.NewFile(uintptr(r), name), w, nil
}

// stdinFIFO opens both ends. The container's is read-only, so that closing
// ours is the end of its input.
func stdinFIFO(boot *proto.Bootstrap) (*os.File, int, error) {
	path, err := makeFIFO(boot, "stdin")
	if err != nil {
		return nil, -1, err
	}
	r, err := openFIFO(path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, -1, err
	}
	w, err := openFIFO(path, unix.O_WRONLY|unix.O_NONBLOCK)
	if err != nil {
		unix.Close(r)
		return nil, -1, err
	}
	// Non-blocking was only for opening: the container reads as it likes.
	if err := unix.SetNonblock(r, false); err != nil {
		unix.Close(r)
		unix.Close(w)
		return nil, -1, os.NewSyscallError("setnonblock", err)
	}
	return os.NewFile(uintptr(w), "stdin"), r, nil
}

// pump reads one stream of a run.
type pump struct {
	out      *output
	f        *os.File
	raw      syscall.RawConn
	src      format.Source
	terminal bool
	done     chan struct{}
	stopping atomic.Bool
	eof      bool // valid once done is closed
}

func newPump(out *output, f *os.File, src format.Source) (*pump, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &pump{out: out, f: f, raw: raw, src: src, done: make(chan struct{})}, nil
}

func (p *pump) run() {
	defer close(p.done)
	if err := p.raw.Read(p.take); err != nil {
		// drain's deadline woke it: what is there is still to be read.
		p.raw.Control(func(fd uintptr) { p.take(fd) })
	}
}

// take reads until there is nothing more. It is the function of a RawConn's
// Read: true ends the reading, false waits for more.
func (p *pump) take(fd uintptr) bool {
	left := drainLimit
	for {
		n, err := p.out.read(int(fd), p.src, p.terminal)
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
			p.out.rest()
			return p.stopping.Load()
		case err == unix.EIO && p.terminal && !p.stopping.Load():
			// Nobody has the terminal open just now; someone may again.
			p.out.rest()
			return false
		default: // the end, or an error that won't pass
			if err != nil && !(err == unix.EIO && p.terminal) {
				logf("read %s: %v", p.f.Name(), err)
			}
			p.out.rest()
			p.eof = true
			return true
		}
	}
}

// drain makes the pump read what there is and stop. It reports whether it came
// to the end of the stream.
func (p *pump) drain() bool {
	p.stopping.Store(true)
	p.f.SetReadDeadline(time.Unix(1, 0))
	<-p.done
	if !p.eof {
		p.raw.Control(func(fd uintptr) { p.take(fd) })
	}
	return p.eof
}
