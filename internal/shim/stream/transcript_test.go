// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTranscripts plays the transcripts in testdata. Each is played as it is, and
// then with a re-exec before each of its lines. The first line makes the session:
//
//	session pipe|terminal|log [tcp] [raw] [keys=^P^Q] [bound=N] [pending="…"]
//	        [patience=D] [linger=D] [extra=N]
//
// A log takes no input. Every other line is an act or an expectation of one party.
// Bytes are quoted, or a number of bytes of a pattern that goes on from line to
// line in each direction.
//
//	client   sends BYTES · is sending N · has sent · half-closes · closes · resets
//	         · goes deaf · reads BYTES|eof · reads stdout|stderr "…"
//	process  writes [stderr] BYTES · waits · goes on · reads BYTES|eof · closes its input · exits
//	shim     ends the output · records · is acknowledged · aborts · re-execs
//	session  is STATE · is over · holds nothing
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				lines = append(lines, line)
			}
		}
		base := strings.TrimSuffix(filepath.Base(name), ".txt")
		t.Run(base, func(t *testing.T) { play(t, lines, -1) })
		for at := 1; at < len(lines); at++ {
			t.Run(fmt.Sprintf("%s/re-exec before line %d", base, at+1), func(t *testing.T) { play(t, lines, at) })
		}
	}
}

// stage has the parties of a transcript.
type stage struct {
	t       *testing.T
	client  *os.File
	reader  *os.File // the process's end of its input
	binary  *program
	moved   bool // there was a re-exec
	tty     bool
	o       Options
	sent    pattern
	got     pattern
	written pattern
	read    pattern
	sending sync.WaitGroup
	output  chan func(*Session)
	over    sync.WaitGroup
}

// program is what a re-exec replaces: a session with its goroutines and our end of
// the process's input.
type program struct {
	session *Session
	input   *inputEnd // nil for a log
	record  chan struct{}
	known   chan struct{}
	dead    chan struct{}
}

// inputEnd is the process's input as a program has it.
type inputEnd struct {
	mu     sync.Mutex
	pipe   *Pipe
	tty    bool
	closed bool
}

func (p *inputEnd) Pipe() *Pipe {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	return p.pipe
}

func (p *inputEnd) CloseInput() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.tty && !p.closed {
		p.closed = true
		p.pipe.f.Close()
	}
}

// pattern makes the bytes of one direction. They differ at every place.
type pattern int

func (p *pattern) next(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		at := int(*p) + i
		b[i] = byte('0' + (at^at>>8^at>>16)%64)
	}
	*p += pattern(n)
	return b
}

const soon = 20 * time.Second

func (st *stage) fatalf(format string, args ...any) {
	st.t.Helper()
	buf := make([]byte, 1<<16)
	st.t.Fatalf(format+"\nsession %v\n%s", append(args, st.binary.session.State(), buf[:runtime.Stack(buf, true)])...)
}

func play(t *testing.T, lines []string, reexec int) {
	st := &stage{t: t, output: make(chan func(*Session), 1024)}
	st.begin(lines[0])
	st.over.Go(st.produce)
	defer func() {
		close(st.output)
		st.client.Close()
		if st.reader != nil {
			st.reader.Close()
		}
		st.end(st.binary)
		st.over.Wait()
		st.sending.Wait()
	}()
	for i, line := range lines[1:] {
		if i+1 == reexec {
			st.reexec()
		}
		st.act(line)
		if t.Failed() {
			t.Fatalf("at line %d: %s", i+2, line)
		}
	}
}

// begin makes the parties.
func (st *stage) begin(line string) {
	words := strings.Fields(line)
	if words[0] != "session" {
		st.t.Fatalf("%s: the first line must make a session", line)
	}
	st.o.Bound = 1 << 20
	var pending []byte
	network, tweak := "unix", func(*Session) {}
	for _, word := range words[2:] {
		key, value, _ := strings.Cut(word, "=")
		n, _ := strconv.Atoi(value)
		d, _ := time.ParseDuration(value)
		before := tweak
		switch key {
		case "tcp":
			network = "tcp"
		case "raw":
			st.o.Raw = true
		case "keys":
			st.o.Keys = keys(value)
		case "bound":
			st.o.Bound = n
		case "pending":
			pending = keys(strings.Trim(value, `"`))
		case "patience":
			tweak = func(s *Session) { before(s); s.in.patience = d }
		case "linger":
			tweak = func(s *Session) { before(s); s.linger.time = d }
		case "extra":
			tweak = func(s *Session) { before(s); s.linger.bytes = int64(n) }
		default:
			st.t.Fatalf("%s: unknown option %s", line, word)
		}
	}
	client, fd := connect(st.t, network)
	st.client = client
	st.client.SetDeadline(time.Now().Add(soon))
	sock, err := NewSocket(fd)
	if err != nil {
		st.t.Fatal(err)
	}
	b := &program{}
	switch words[1] {
	case "pipe":
		p := newProcess(st.t)
		st.reader, b.input = p.reader, &inputEnd{pipe: p.pipe}
	case "terminal":
		master, slave := terminal(st.t)
		st.tty, st.o.Terminal = true, true
		st.reader, b.input = slave, &inputEnd{pipe: NewPipe(master), tty: true}
	case "log":
	default:
		st.t.Fatalf("%s: unknown kind of session", line)
	}
	b.session = New(sock, st.o, pending)
	tweak(b.session)
	st.binary = b
	st.start(b)
}

// keys reads ^P as a control character.
func keys(s string) []byte {
	var b []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '^' && i+1 < len(s) {
			i++
			b = append(b, s[i]&0x1f)
			continue
		}
		b = append(b, s[i])
	}
	return b
}

func (st *stage) start(b *program) {
	b.record, b.known, b.dead = make(chan struct{}), make(chan struct{}), make(chan struct{})
	var to Process
	if b.input != nil {
		to = b.input
	}
	go b.session.Join(to, func() {
		select {
		case <-b.record:
			b.session.Recorded()
		case <-b.dead:
			return
		}
		select {
		case <-b.known:
		case <-b.dead:
		}
	})
}

// end ends a program's goroutines.
func (st *stage) end(b *program) {
	close(b.dead)
	if b.input != nil {
		b.input.pipe.Break()
	}
	b.session.Abort()
	<-b.session.Done()
	if b.input != nil {
		b.input.pipe.f.Close()
	}
}

// reexec replaces the binary between two steps. The goroutines of a real one end
// with it; here they find dead descriptors in the place of the old ones.
func (st *stage) reexec() {
	old, next := st.binary, &program{}
	Motion.Lock()
	image := old.session.Image()
	st.moved = true
	if image.Socket < 0 { // the session is over
		Motion.Unlock()
		return
	}
	image.Socket = st.replace(image.Socket, unix.AF_UNIX)
	// The buffers are the next binary's alone.
	for _, b := range []*[]byte{&image.Sending, &image.Memory, &image.Later, &image.Typed} {
		*b = append([]byte(nil), *b...)
	}
	if in := old.input; in != nil {
		in.mu.Lock()
		next.input = &inputEnd{tty: in.tty, closed: in.closed, pipe: in.pipe}
		in.mu.Unlock()
		if fd := number(in.pipe.f); fd >= 0 {
			next.input.pipe = NewPipe(os.NewFile(uintptr(st.replace(fd, 0)), "input"))
			if in.pipe.broken {
				next.input.pipe.Break()
			}
		}
	}
	var err error
	if next.session, err = Resume(st.o, image); err != nil {
		Motion.Unlock()
		st.t.Fatal(err)
	}
	next.session.in.patience, next.session.linger = old.session.in.patience, old.session.linger
	st.binary = next
	Motion.Unlock()
	st.start(next)
	st.end(old)
}

// replace returns a duplicate of a descriptor, and puts a dead one in its place.
func (st *stage) replace(fd, domain int) (duplicate int) {
	duplicate, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		st.t.Fatal(err)
	}
	var dead [2]int
	if domain != 0 {
		dead, err = unix.Socketpair(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	} else {
		err = unix.Pipe2(dead[:], unix.O_NONBLOCK|unix.O_CLOEXEC)
	}
	if err != nil {
		st.t.Fatal(err)
	}
	unix.Close(dead[0])
	if err := unix.Dup3(dead[1], fd, unix.O_CLOEXEC); err != nil {
		st.t.Fatal(err)
	}
	unix.Close(dead[1])
	return duplicate
}

// produce is the owner of the session, which makes output.
func (st *stage) produce() {
	current := func() *Session {
		Motion.RLock()
		defer Motion.RUnlock()
		return st.binary.session
	}
	for act := range st.output {
		Motion.RLock()
		act(st.binary.session)
		Motion.RUnlock()
		for s := current(); ; {
			s.AwaitRoom()
			now := current()
			if now == s {
				break
			}
			s = now
		}
	}
}

// act plays one line.
func (st *stage) act(line string) {
	who, rest, _ := strings.Cut(line, " ")
	b := st.binary
	switch who {
	case "client":
		st.clientActs(rest)
	case "process":
		st.processActs(rest)
	case "shim":
		switch rest {
		case "ends the output":
			st.output <- func(s *Session) { s.EndOutput() }
		case "records":
			st.await("the detach to be recorded", func(s State) bool { return s == Detaching })
			close(b.record)
			st.await("the record", func(s State) bool { return s != Detaching })
		case "is acknowledged":
			close(b.known)
		case "aborts":
			b.session.Abort()
		case "re-execs":
			st.reexec()
		default:
			st.t.Fatalf("%s: unknown act", line)
		}
	case "session":
		switch {
		case rest == "is over":
			select {
			case <-b.session.Done():
			case <-time.After(soon):
				st.fatalf("the session is not over")
			}
		case rest == "holds nothing":
			st.holdsNothing()
		case strings.HasPrefix(rest, "is "):
			name := strings.TrimPrefix(rest, "is ")
			for s := range numStates {
				if s.String() == name {
					st.await(name, func(got State) bool { return got == s || st.moved && alike(got, s) })
					return
				}
			}
			st.t.Fatalf("%s: unknown state", line)
		}
	default:
		st.t.Fatalf("%s: unknown party", line)
	}
}

// alike reports whether a re-exec makes two states the same.
func alike(a, b State) bool {
	a, _ = a.Next(Reexec)
	b, _ = b.Next(Reexec)
	return a == b
}

// await waits until the session's state satisfies a condition.
func (st *stage) await(what string, cond func(State) bool) {
	st.t.Helper()
	s := st.binary.session
	timer := time.NewTimer(soon)
	defer timer.Stop()
	for {
		s.mu.Lock()
		if cond(s.state) {
			s.mu.Unlock()
			return
		}
		changed := s.change()
		s.mu.Unlock()
		select {
		case <-changed:
		case <-timer.C:
			st.fatalf("waited in vain for %s", what)
		}
	}
}

// holdsNothing waits until the session holds no buffer.
func (st *stage) holdsNothing() {
	st.t.Helper()
	s := st.binary.session
	for end := time.Now().Add(soon); ; runtime.Gosched() {
		Motion.Lock()
		s.mu.Lock()
		nothing := s.in.room == nil && len(s.in.typed) == 0 && s.sending == nil && s.queue.mem == nil && !s.writing
		s.mu.Unlock()
		Motion.Unlock()
		if nothing {
			return
		}
		if time.Now().After(end) {
			st.fatalf("an idle session holds memory")
		}
	}
}

// content is what a line says of bytes: quoted, or a number of bytes of a pattern.
func (st *stage) content(s string, p *pattern) []byte {
	if strings.HasPrefix(s, `"`) {
		text, err := strconv.Unquote(s)
		if err != nil {
			st.t.Fatalf("%s: %v", s, err)
		}
		return []byte(text)
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		st.t.Fatalf("%s: %v", s, err)
	}
	return p.next(n)
}

func (st *stage) expect(from io.Reader, want []byte) {
	st.t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(from, got)
	if err != nil || !bytes.Equal(got, want) {
		st.fatalf("got %d bytes, %v: %.80q, want %d: %.80q", n, err, got[:n], len(want), want)
	}
}

func (st *stage) expectEOF(from io.Reader) {
	st.t.Helper()
	var buf [100]byte
	if n, err := from.Read(buf[:]); err != io.EOF {
		st.fatalf("got %q, %v, want EOF", buf[:n], err)
	}
}

func (st *stage) clientActs(act string) {
	st.t.Helper()
	verb, rest, _ := strings.Cut(act, " ")
	switch {
	case verb == "sends":
		if _, err := st.client.Write(st.content(rest, &st.sent)); err != nil {
			st.fatalf("the client can't send: %v", err)
		}
	case strings.HasPrefix(act, "is sending "):
		p := st.content(strings.TrimPrefix(act, "is sending "), &st.sent)
		st.sending.Go(func() { st.client.Write(p) })
	case act == "has sent":
		sent := make(chan struct{})
		go func() { st.sending.Wait(); close(sent) }()
		select {
		case <-sent:
		case <-time.After(soon):
			st.fatalf("the client is blocked")
		}
	case act == "half-closes":
		st.shutdown(unix.SHUT_WR)
	case act == "goes deaf":
		st.shutdown(unix.SHUT_RD)
	case act == "closes":
		st.client.Close()
	case act == "resets":
		// A Unix socket is reset when it is closed with unread output.
		raw, err := st.client.SyscallConn()
		if err != nil {
			st.t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		})
		st.client.Close()
	case act == "reads eof":
		st.expectEOF(st.client)
	case strings.HasPrefix(act, "reads stdout "):
		st.expect(st.client, Frame(1, st.content(strings.TrimPrefix(act, "reads stdout "), &st.got), false))
	case strings.HasPrefix(act, "reads stderr "):
		st.expect(st.client, Frame(2, st.content(strings.TrimPrefix(act, "reads stderr "), &st.got), false))
	case verb == "reads":
		st.expect(st.client, st.content(rest, &st.got))
	default:
		st.t.Fatalf("client %s: unknown act", act)
	}
}

func (st *stage) shutdown(how int) {
	raw, err := st.client.SyscallConn()
	if err != nil {
		st.t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), how) })
}

func (st *stage) processActs(act string) {
	st.t.Helper()
	verb, rest, _ := strings.Cut(act, " ")
	switch {
	case verb == "writes":
		source := byte(1)
		if after, ok := strings.CutPrefix(rest, "stderr "); ok {
			source, rest = 2, after
		}
		for p := st.content(rest, &st.written); len(p) > 0; {
			chunk := p[:min(len(p), 16<<10)]
			p = p[len(chunk):]
			st.output <- func(s *Session) { s.Put(source, chunk) }
		}
	case act == "waits":
		for end := time.Now().Add(soon); st.binary.session.Room() == nil; runtime.Gosched() {
			if time.Now().After(end) {
				st.fatalf("the process does not wait for the client")
			}
		}
	case act == "goes on":
		all := make(chan struct{})
		st.output <- func(*Session) { close(all) }
		select {
		case <-all:
		case <-time.After(soon):
			st.fatalf("the process waits")
		}
	case act == "reads eof":
		st.expectEOF(st.reader)
	case verb == "reads":
		st.expect(st.reader, st.content(rest, &st.read))
	case act == "closes its input":
		st.reader.Close()
	case act == "exits":
		st.binary.input.pipe.Break()
	default:
		st.t.Fatalf("process %s: unknown act", act)
	}
}

// connect returns the two ends of a connection: the client's and the shim's.
func connect(t *testing.T, network string) (client *os.File, shim int) {
	t.Helper()
	if network == "unix" {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		return os.NewFile(uintptr(fds[0]), "client"), fds[1]
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialled, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer dialled.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	duplicate := func(c net.Conn) int {
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		fd := -1
		raw.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 3) })
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	return os.NewFile(uintptr(duplicate(dialled)), "client"), duplicate(accepted)
}

// terminal returns the two sides of a terminal that passes all bytes unchanged.
func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	open := func(path string) *os.File {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(path, err)
		}
		return os.NewFile(uintptr(fd), path)
	}
	master = open("/dev/ptmx")
	fd := number(master)
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave = open("/dev/pts/" + strconv.Itoa(n))
	attrs, err := unix.IoctlGetTermios(number(slave), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	attrs.Iflag, attrs.Oflag, attrs.Lflag = 0, 0, 0
	attrs.Cc[unix.VMIN], attrs.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(number(slave), unix.TCSETS, attrs); err != nil {
		t.Fatal(err)
	}
	slave.SetDeadline(time.Now().Add(soon))
	return master, slave
}
