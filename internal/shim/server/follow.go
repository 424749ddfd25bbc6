package server

import (
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/logs/format"
	"holdfast/internal/shim/proto"
)

const (
	// followRead is how many bytes of the log a follower reads at once.
	followRead = 32 << 10
	// followBehind is how many rotated files a slow follower keeps from being
	// given back, beyond those that rotation keeps anyway.
	followBehind = 16
	// followPatience is how long, after the container's end, a follower may take
	// for its next read: somebody may be paging through it.
	followPatience = 10 * time.Minute
)

// follower is a client that follows the log. It reads the log's files at its
// own pace: neither the container nor the log ever waits for it, and nothing is
// kept in memory for one that is slow.
type follower struct {
	sock  *socket
	asked proto.Follow // Offset moves on
	dec   format.Decoder
	enc   format.Encoder
	out   []byte // encoded and not yet written
	done  chan struct{}
	wake  chan struct{} // one token
	// asked.Offset, out and files are changed within steps (see still.go).

	mu    sync.Mutex
	files []*os.File // from the one that is read to the active one
	size  int64      // of the active file's whole records
	over  bool       // nothing more will be written
	lost  bool       // it was too far behind
}

// follow takes over a client whose next record is at a.Offset of the file.
func (s *Shim) follow(a proto.Follow, sock *socket, logFD int) error {
	file := os.NewFile(uintptr(logFD), "log")
	f := newFollower(a, sock, s.boot.Log.Driver)
	f.files = []*os.File{file}
	if err := s.out.admit(f, s.followBehind()); err != nil {
		sock.release()
		file.Close()
		return err
	}
	f.out, f.asked.Head = a.Head, nil
	s.serveFollower(f)
	return nil
}

func newFollower(a proto.Follow, sock *socket, driver string) *follower {
	return &follower{sock: sock, asked: a, dec: format.NewDecoder(driver),
		enc:  format.Encoder{Raw: a.Raw, Timestamps: a.Timestamps, Details: a.Details, Within: a.Within},
		done: make(chan struct{}), wake: make(chan struct{}, 1)}
}

// followBehind is how many files a follower may keep.
func (s *Shim) followBehind() int { return max(s.boot.Log.MaxFiles, 1) + followBehind }

// serveFollower sees an admitted client through, beside.
func (s *Shim) serveFollower(f *follower) {
	s.server.lingerFor(f.done, followPatience)
	go f.run(s.out)
}

// admit lets a follower know of all that is written from now on.
func (o *output) admit(f *follower, behind int) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.log == nil || f.dec == nil {
		return conflict("nothing more will be written to this log")
	}
	var st unix.Stat_t
	var err error
	raw, rerr := f.files[0].SyscallConn()
	if rerr != nil {
		return rerr
	}
	raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) })
	if err != nil {
		return os.NewSyscallError("fstat", err)
	}
	inode, size := o.log.Position()
	if st.Ino != inode {
		return conflict("the log was rotated meanwhile")
	}
	f.size = size
	o.track(f, behind)
	return nil
}

// track tells a follower of all that is written from now on, with the lock
// held.
func (o *output) track(f *follower, behind int) {
	if o.followers == nil {
		o.followers = map[*follower]struct{}{}
		o.log.OnTurn(func(fd int) {
			for f := range o.followers {
				f.turn(fd, behind)
			}
		})
	}
	o.followers[f] = struct{}{}
}

// written tells the followers how far the log is, with the lock held.
func (o *output) written() {
	if len(o.followers) == 0 {
		return
	}
	_, size := o.log.Position()
	for f := range o.followers {
		f.grow(size, false)
	}
}

// endFollowers comes after the last line, with the lock held.
func (o *output) endFollowers() {
	if len(o.followers) == 0 {
		return
	}
	_, size := o.log.Position()
	for f := range o.followers {
		f.grow(size, true)
	}
}

func (o *output) dismiss(f *follower) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.followers, f)
	if len(o.followers) == 0 && o.followers != nil {
		o.followers = nil
		o.log.OnTurn(nil)
	}
}

func (f *follower) grow(size int64, over bool) {
	f.mu.Lock()
	f.size, f.over = size, f.over || over
	f.mu.Unlock()
	f.signal()
}

// turn adds the new active file.
func (f *follower) turn(fd, behind int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lost || f.over {
		return
	}
	n := -1
	if len(f.files) < behind {
		var err error
		if n, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); err != nil {
			n = -1
		}
	}
	if n < 0 {
		f.lost = true
		return
	}
	f.files = append(f.files, os.NewFile(uintptr(n), "log"))
	f.size = 0
	f.signal()
}

func (f *follower) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// place is what of the current file may be read.
type place struct {
	file       *os.File
	limit      int64 // -1: to its end, as another file follows
	over, lost bool
}

func (f *follower) place() place {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := place{file: f.files[0], limit: f.size, over: f.over, lost: f.lost}
	if len(f.files) > 1 || f.lost {
		p.limit = -1
	}
	return p
}

// next goes on to the file that follows.
func (f *follower) next() {
	motion.RLock()
	defer motion.RUnlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.files[0].Close()
	f.files = f.files[1:]
	f.asked.Offset = 0
}

func (f *follower) run(o *output) {
	defer close(f.done)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		buf := make([]byte, 64)
		for {
			if n, err := f.sock.f.Read(buf); n == 0 || err != nil {
				break
			}
		}
		// It may have closed only its writing side.
		f.sock.waitGone()
		f.sock.close()
	}()
	f.send(gone)
	o.dismiss(f)
	f.sock.close()
	<-gone
	f.mu.Lock()
	for _, file := range f.files {
		file.Close()
	}
	f.files = nil
	f.mu.Unlock()
}

// send writes to the client until the log, the time asked for, or the client
// ends.
func (f *follower) send(gone <-chan struct{}) {
	var until <-chan time.Time
	if !f.asked.Until.IsZero() {
		timer := time.NewTimer(time.Until(f.asked.Until))
		defer timer.Stop()
		until = timer.C
	}
	var buf []byte
	late := false
	for {
		at := f.place()
		if buf == nil {
			buf = make([]byte, followRead)
		}
		motion.RLock()
		n, ended, err := f.read(at, &buf)
		motion.RUnlock()
		if err != nil {
			logf("follow log: %v", err)
			return
		}
		if len(f.out) > 0 && f.sock.write(&f.out) != nil {
			return
		}
		switch {
		case ended:
			return
		case n > 0:
		case at.limit < 0 && at.lost && f.behindAll():
			f.out = f.farewell("holdfast: this client reads too slowly for the log's rotation; docker logs shows what is left\n")
			f.sock.write(&f.out)
			return
		case at.limit < 0:
			f.next()
		case at.over || late:
			return
		default:
			buf, f.out = nil, nil
			select {
			case <-f.wake:
			case <-until:
				late = true
			case <-gone:
				return
			}
		}
	}
}

// behindAll reports whether the last file that is kept is read.
func (f *follower) behindAll() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.files) == 1
}

func (f *follower) farewell(msg string) []byte {
	if f.asked.Raw {
		return []byte(msg)
	}
	h := header(format.Stderr, len(msg))
	return append(h[:], msg...)
}

// read encodes the next whole records into out, and tells how many bytes of the
// file they were. ended: a line was past the time asked for.
func (f *follower) read(at place, buf *[]byte) (n int, ended bool, err error) {
	for {
		room := *buf
		if at.limit >= 0 {
			room = room[:max(0, min(int64(len(room)), at.limit-f.asked.Offset))]
		}
		got, err := 0, error(nil)
		if len(room) > 0 {
			got, err = readFull(at.file, room, f.asked.Offset)
			if err != nil {
				return 0, false, err
			}
		}
		if got == 0 {
			return 0, false, f.emptied(at.file)
		}
		p := room[:got]
		for len(p) > 0 {
			size, err := f.dec.Record(p)
			if err != nil {
				return 0, false, err
			}
			if size == 0 {
				break
			}
			line, ok := f.dec.Decode(p[:size])
			p = p[size:]
			n += size
			if !ok {
				continue
			}
			if !f.asked.Until.IsZero() && line.Time.After(f.asked.Until) {
				f.asked.Offset += int64(n)
				return n, true, nil
			}
			if f.wanted(line) {
				f.out = f.enc.Append(f.out, line)
			}
		}
		if n > 0 || got < len(*buf) || len(*buf) >= format.RecordLimit {
			f.asked.Offset += int64(n)
			return n, false, nil
		}
		*buf = make([]byte, 2*len(*buf)) // one record is larger
	}
}

// emptied begins anew in a file that somebody has cut.
func (f *follower) emptied(file *os.File) error {
	st, err := file.Stat()
	if err == nil && st.Size() < f.asked.Offset {
		f.asked.Offset = 0
	}
	return err
}

func (f *follower) wanted(l format.Line) bool {
	if !f.asked.Since.IsZero() && l.Time.Before(f.asked.Since) {
		return false
	}
	return l.Source == "stdout" && f.asked.Stdout || l.Source == "stderr" && f.asked.Stderr
}

// readFull reads what there is, up to all of p.
func readFull(file *os.File, p []byte, off int64) (int, error) {
	n, err := file.ReadAt(p, off)
	if n > 0 || err == nil || err == io.EOF {
		return n, nil
	}
	return 0, err
}
