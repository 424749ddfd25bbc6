// SPDX-License-Identifier: Apache-2.0

package server

import (
	"io"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/logs/format"
	"holdfast/internal/shim/proto"
	"holdfast/internal/shim/stream"
)

const (
	// followReadSize is how many bytes of the log a follower reads at once.
	followReadSize = 32 << 10
	// followExtraFiles is how many more rotated files than the log itself keeps a
	// slow follower may hold open. An open file uses disk space even after rotation
	// has removed it.
	followExtraFiles = 16
	// followBacklogSize is how many bytes are encoded ahead of the client.
	followBacklogSize = 32 << 10
)

// follower is a client of logs -f that the shim serves. It reads the log's files at
// its own pace, so it exerts no backpressure on the container or the log, and
// buffers only followBacklogSize while it is slow.
type follower struct {
	*stream.Session
	asked proto.Follow // Offset advances
	dec   format.Decoder
	enc   format.Encoder
	done  chan struct{}
	wake  chan struct{} // one token
	// asked.Offset and files are changed within steps (see quiesce.go).

	mu    sync.Mutex
	files []*os.File // oldest first; files[0] is being read, the last one is the active file
	size  int64      // of the whole records in the active file, in bytes
	over  bool       // the log is complete
	gap   bool       // a file after files[0] was closed unread
	lost  bool       // a newer file could not be opened
}

// followLog handles Follow: it takes over a client whose next record is at a.Offset
// of the file logFD.
func (s *Shim) followLog(a proto.Follow, sock *stream.Socket, logFD int) error {
	file := os.NewFile(uintptr(logFD), "log")
	if err := s.server.checkClientLimit(); err != nil {
		sock.Release() // the daemon continues to serve the client
		file.Close()
		return err
	}
	f := newFollower(a, stream.New(sock, followOptions(a), nil), s.boot.Log)
	f.Write(a.Head)
	f.asked.Head = nil
	f.files = []*os.File{file}
	if err := s.out.addFollower(f, s.followerFilesMax()); err != nil {
		f.Release()
		file.Close()
		return err
	}
	s.serveFollower(f)
	return nil
}

func followOptions(a proto.Follow) stream.Options {
	return stream.Options{Raw: a.Raw, Bound: followBacklogSize}
}

func newFollower(a proto.Follow, c *stream.Session, log proto.Log) *follower {
	return &follower{Session: c, asked: a, dec: format.NewDecoder(log.Driver, log.Attrs),
		enc:  format.Encoder{Raw: a.Raw, Timestamps: a.Timestamps, Details: a.Details, Within: a.Within},
		done: make(chan struct{}), wake: make(chan struct{}, 1)}
}

// followerFilesMax is how many files a follower may hold open.
func (s *Shim) followerFilesMax() int { return max(s.boot.Log.MaxFiles, 1) + followExtraFiles }

// serveFollower serves a follower in a new goroutine.
func (s *Shim) serveFollower(f *follower) {
	s.server.trackClient(f.done)
	go f.serve(s)
}

// addFollower registers a follower for all that is written from now on. It fails if
// the follower's file is no longer the active one.
func (o *output) addFollower(f *follower, behind int) error {
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
	o.trackFollower(f, behind)
	return nil
}

// trackFollower registers a follower without checks. It is called with the lock
// held.
func (o *output) trackFollower(f *follower, behind int) {
	if o.followers == nil {
		o.followers = map[*follower]struct{}{}
		o.log.OnTurn(func(fd int) {
			for f := range o.followers {
				f.addFile(fd, behind)
			}
		})
	}
	o.followers[f] = struct{}{}
}

// notifyFollowers reports the log's new size to the followers. It is called with
// the lock held.
func (o *output) notifyFollowers() {
	if len(o.followers) == 0 {
		return
	}
	_, size := o.log.Position()
	for f := range o.followers {
		f.setProgress(size, false)
	}
}

// endFollowers marks the log as complete. It is called after the last line, with
// the lock held.
func (o *output) endFollowers() {
	if len(o.followers) == 0 {
		return
	}
	_, size := o.log.Position()
	for f := range o.followers {
		f.setProgress(size, true)
	}
}

func (o *output) removeFollower(f *follower) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.followers, f)
	if len(o.followers) == 0 && o.followers != nil {
		o.followers = nil
		o.log.OnTurn(nil)
	}
}

// setOver makes the follower ignore files that follow.
func (f *follower) setOver() {
	f.mu.Lock()
	f.over = true
	f.mu.Unlock()
}

func (f *follower) setProgress(size int64, over bool) {
	f.mu.Lock()
	f.size, f.over = size, f.over || over
	f.mu.Unlock()
	f.signal()
}

// addFile appends the new active file after a rotation.
func (f *follower) addFile(fd, behind int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lost || f.over {
		return
	}
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		f.lost = true
		return
	}
	if len(f.files) >= behind {
		// Close the oldest file that is not being read. Rotation has removed it long
		// ago.
		f.files[1].Close()
		f.files = slices.Delete(f.files, 1, 2)
		f.gap = true
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

// readRange is the readable part of the current file.
type readRange struct {
	file       *os.File
	limit      int64 // offset in bytes; -1 is the end of the file, as another file follows
	over, lost bool
}

func (f *follower) nextRange() readRange {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := readRange{file: f.files[0], limit: f.size, over: f.over, lost: f.lost}
	if len(f.files) > 1 || f.lost {
		p.limit = -1
	}
	return p
}

// nextFile advances to the file that follows.
func (f *follower) nextFile() {
	motion.RLock()
	defer motion.RUnlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gap {
		f.notice("holdfast: this client reads too slowly for the log's rotation: lines that were rotated away are missing here\n")
		f.gap = false
	}
	f.files[0].Close()
	f.files = f.files[1:]
	f.asked.Offset = 0
}

func (f *follower) serve(s *Shim) {
	defer close(f.done)
	go f.Join(nil, nil)
	if f.sendLog() {
		s.server.awaitAcks(s.rec.snapshot().Seq)
		f.end()
	} else {
		f.Abort()
	}
	<-f.Done()
	s.out.removeFollower(f)
	f.mu.Lock()
	for _, file := range f.files {
		file.Close()
	}
	f.files = nil
	f.mu.Unlock()
}

// end ends the client's output, unless the previous binary has done so.
func (f *follower) end() {
	f.setOver() // newer files are of no use
	var last []byte
	if f.asked.Chunked {
		last = []byte(lastChunk)
	}
	f.End(last)
}

// sendLog queues records for the client. It reports true at the end of the log or of
// the requested time range, or if the previous binary had come to it. It reports
// false if the client has gone or the rest of the log can't be read.
func (f *follower) sendLog() bool {
	if f.State().Ending() {
		return true
	}
	var until <-chan time.Time
	if !f.asked.Until.IsZero() {
		timer := time.NewTimer(time.Until(f.asked.Until))
		defer timer.Stop()
		until = timer.C
	}
	var buf []byte
	late := false
	for {
		at := f.nextRange()
		if buf == nil {
			buf = make([]byte, followReadSize)
		}
		n, ended, err := f.copyRecords(at, &buf)
		if err != nil {
			logf("follow log: %v", err)
			return false
		}
		if !f.AwaitRoom() {
			return false
		}
		switch {
		case ended:
			return true
		case n > 0:
		case at.limit < 0 && at.lost && f.onLastFile():
			f.notice("holdfast: the log can't be followed any further: the shim has no descriptors left\n")
			f.Flush()
			return false
		case at.limit < 0:
			f.nextFile()
		case at.over || late:
			return true
		default:
			buf = nil
			select {
			case <-f.wake:
			case <-until:
				late = true
			case <-f.Done():
				return false
			}
		}
	}
}

// copyRecords queues the next whole records for the client, in a step. See read for
// the results.
func (f *follower) copyRecords(at readRange, buf *[]byte) (n int, ended bool, err error) {
	motion.RLock()
	defer motion.RUnlock()
	f.Append(func(out []byte) []byte {
		first := len(out)
		out, n, ended, err = f.read(at, buf, out)
		return f.chunk(out, first)
	})
	return n, ended, err
}

// onLastFile reports whether no open file follows the current one.
func (f *follower) onLastFile() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.files) == 1
}

// notice queues a message of the shim for the client, as a line of stderr.
func (f *follower) notice(msg string) {
	f.Write(f.chunk(stream.Frame(byte(format.Stderr), []byte(msg), f.asked.Raw), 0))
}

// lastChunk ends a chunked body (RFC 9112, section 7.1). A client that does not get
// it knows that the body is incomplete.
const lastChunk = "0\r\n\r\n"

// chunk makes one HTTP chunk of p[first:], if the client's answer is chunked.
func (f *follower) chunk(p []byte, first int) []byte {
	n := len(p) - first
	if !f.asked.Chunked || n == 0 {
		return p
	}
	p = slices.Insert(p, first, append(strconv.AppendInt(nil, int64(n), 16), "\r\n"...)...)
	return append(p, "\r\n"...)
}

// read encodes the next whole records, appends them to out, and returns how many
// bytes of the file they took. ended means that a record was later than the
// requested time.
func (f *follower) read(at readRange, buf *[]byte, out []byte) (_ []byte, n int, ended bool, err error) {
	for {
		room := *buf
		if at.limit >= 0 {
			room = room[:max(0, min(int64(len(room)), at.limit-f.asked.Offset))]
		}
		got, err := 0, error(nil)
		if len(room) > 0 {
			got, err = readFull(at.file, room, f.asked.Offset)
			if err != nil {
				return out, 0, false, err
			}
		}
		if got == 0 {
			return out, 0, false, f.rewindIfTruncated(at.file)
		}
		p := room[:got]
		for len(p) > 0 {
			size, err := f.dec.Record(p)
			if err != nil {
				return out, 0, false, err
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
				return out, n, true, nil
			}
			if f.wants(line) {
				out = f.enc.Append(out, line)
			}
		}
		if n > 0 || got < len(*buf) || len(*buf) >= format.RecordLimit {
			f.asked.Offset += int64(n)
			return out, n, false, nil
		}
		*buf = make([]byte, 2*len(*buf)) // a record is larger than the buffer
	}
}

// rewindIfTruncated starts over at the beginning of a file that was truncated from
// outside.
func (f *follower) rewindIfTruncated(file *os.File) error {
	st, err := file.Stat()
	if err == nil && st.Size() < f.asked.Offset {
		f.asked.Offset = 0
	}
	return err
}

func (f *follower) wants(l format.Line) bool {
	if !f.asked.Since.IsZero() && l.Time.Before(f.asked.Since) {
		return false
	}
	return l.Source == "stdout" && f.asked.Stdout || l.Source == "stderr" && f.asked.Stderr
}

// readFull reads up to len(p) bytes. The end of the file is not an error.
func readFull(file *os.File, p []byte, off int64) (int, error) {
	n, err := file.ReadAt(p, off)
	if n > 0 || err == nil || err == io.EOF {
		return n, nil
	}
	return 0, err
}
