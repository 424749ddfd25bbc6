package server

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"holdfast/internal/logs/format"
	"holdfast/internal/shim/proto"
)

// ledger makes what is read from the container's streams survive a kill -9 of
// the shim: every byte comes into the log once, also those that the dead shim
// had taken out of the pipe and not yet written. It is a file in the run
// directory, mapped and shared, so that a killed process leaves it as it was at
// its last instruction:
//
//	page 0    the entry: what is being moved, and two places for the log's
//	          state (lines whose end has not come), of which one is valid
//	then      the bytes of the entry
//	then      room for states that page 0 can't take
//	then      the bytes of an entry that is longer than the first place, while
//	          there is a burst of such: the file is as long as that takes
//
// A move goes through phases, each made known by one store:
//
//	idle → taking (source, length, time, position of the log) → the read call
//	→ taken → the log → idle, with the other state
//
// Killed while taking, it is not known whether the read call has happened. So
// the place of its bytes is marked before with bytes that nobody can foresee.
//
// Pages that a burst took are given back. What is written is allocated before:
// a page that the file system can't give would be a SIGBUS.
type ledger struct {
	fd      int
	mem     []byte
	seq     uint64 // of the last entry
	room    int    // bytes of data that are allocated in the first place
	long    bool   // the file has the place for long entries
	wide    bool   // the states' own pages are allocated
	scratch []byte
}

const (
	ledgerMagic = "HFledg1\n"

	ledgerData    = 4096
	ledgerReserve = 4096 // bytes of data that always have their page
	ledgerStates  = ledgerData + readSize
	ledgerState   = (format.StateMax + 4095) &^ 4095
	ledgerSize    = ledgerStates + 2*ledgerState // without the place for long entries
	ledgerLong    = ledgerSize + burstSize
	ledgerInline  = 1024 // a state up to here lies in page 0
)

// Offsets in page 0. The numbers are the machine's: the file never leaves it.
const (
	atPhase    = 8 // seq<<3 | valid state<<2 | phase
	atSource   = 16
	atWant     = 24
	atGot      = 32
	atTime     = 40
	atInode    = 48
	atSize     = 56
	atTerminal = 64
	atStateLen = 72 // two numbers of 8 bytes
	atInline   = 1024
)

const (
	phaseIdle = iota
	phaseTaking
	phaseTaken
)

// openLedger makes the file, or with again opens the one that a dead shim left.
func openLedger(dir string, again bool) (*ledger, error) {
	path := filepath.Join(dir, proto.LedgerFile)
	flags := unix.O_RDWR | unix.O_CLOEXEC
	if !again {
		os.Remove(path)
		flags |= unix.O_CREAT | unix.O_EXCL
	}
	fd, err := unix.Open(path, flags, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	l := &ledger{fd: fd}
	fail := func(op string, err error) (*ledger, error) {
		l.close()
		return nil, &os.PathError{Op: op, Path: path, Err: err}
	}
	if !again {
		if err := unix.Ftruncate(fd, ledgerSize); err != nil {
			return fail("truncate", err)
		}
	} else if st, err := os.Stat(path); err != nil || st.Size() < ledgerSize || st.Size() > ledgerLong {
		return fail("read", unix.EINVAL)
	} else if st.Size() == ledgerLong && !l.lengthen() {
		return fail("allocate", unix.ENOSPC)
	}
	// Allocated also where it is: a punched hole may be in it.
	if err := allocate(fd, 0, 0, ledgerData+ledgerReserve); err != nil {
		return fail("allocate", err)
	}
	if l.mem, err = unix.Mmap(fd, 0, ledgerLong, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fail("map", err)
	}
	l.room = ledgerReserve
	if !again {
		copy(l.mem, ledgerMagic)
	} else if string(l.mem[:len(ledgerMagic)]) != ledgerMagic {
		return fail("read", unix.EINVAL)
	}
	l.seq = l.word() >> 3
	return l, nil
}

func (l *ledger) close() {
	if l.mem != nil {
		unix.Munmap(l.mem)
		l.mem = nil
	}
	unix.Close(l.fd)
}

func (l *ledger) word() uint64 { return atomic.LoadUint64((*uint64)(unsafe.Pointer(&l.mem[atPhase]))) }

// turn makes a phase known, after all that was written before.
func (l *ledger) turn(valid, phase uint64) {
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&l.mem[atPhase])), l.seq<<3|valid<<2|phase)
}

func (l *ledger) valid() uint64 { return l.word() >> 2 & 1 }

func (l *ledger) get(at int) uint64    { return binary.NativeEndian.Uint64(l.mem[at:]) }
func (l *ledger) put(at int, v uint64) { binary.NativeEndian.PutUint64(l.mem[at:], v) }

// begin announces a read of at most want bytes and returns where they go. It
// may be less than was wanted when memory is short.
func (l *ledger) begin(src format.Source, want int, now time.Time, inode uint64, size int64, terminal bool) []byte {
	if want > readSize && (l.long || l.lengthen()) {
		want = min(want, burstSize)
	} else {
		want = min(want, readSize)
	}
	if want > l.room && want <= readSize {
		if allocate(l.fd, unix.FALLOC_FL_KEEP_SIZE, ledgerData, readSize) == nil {
			l.room = readSize
		}
		want = min(want, l.room)
	}
	p := l.data(want)
	valid := l.valid()
	l.seq++
	l.mark(p[:markLen(want, terminal)])
	l.put(atSource, uint64(src))
	l.put(atWant, uint64(want))
	l.put(atTime, uint64(now.UnixNano()))
	l.put(atInode, inode)
	l.put(atSize, uint64(size))
	l.put(atTerminal, 0)
	if terminal {
		l.put(atTerminal, 1)
	}
	l.turn(valid, phaseTaking)
	return p
}

// data is where an entry of at most want bytes lies.
func (l *ledger) data(want int) []byte {
	if want > readSize {
		return l.mem[ledgerSize : ledgerSize+want]
	}
	return l.mem[ledgerData : ledgerData+want]
}

// allocate is fallocate, which a signal may interrupt.
func allocate(fd int, mode uint32, off, size int64) error {
	for {
		if err := unix.Fallocate(fd, mode, off, size); err != unix.EINTR {
			return err
		}
	}
}

// lengthen makes the place for long entries. When there is no memory for it
// they are moved as several.
func (l *ledger) lengthen() bool {
	if allocate(l.fd, 0, ledgerSize, burstSize) != nil {
		unix.Ftruncate(l.fd, ledgerSize)
		return false
	}
	l.long = true
	return true
}

// shorten gives it back. The file is as releases know it that have only the
// first place.
func (l *ledger) shorten() {
	if l.long && unix.Ftruncate(l.fd, ledgerSize) == nil {
		l.long = false
	}
}

// markLen is how many bytes are marked: of a pipe that holds want bytes a read
// gives all of them or none, of a terminal any number.
func markLen(want int, terminal bool) int {
	if terminal {
		return want
	}
	return min(want, 16)
}

// mark fills p with the marks of this entry: a sequence that depends on its
// number (splitmix64).
func (l *ledger) mark(p []byte) {
	for i := range p {
		p[i] = markByte(l.seq, i)
	}
}

func markByte(seq uint64, i int) byte {
	x := seq*0x9e3779b97f4a7c15 + uint64(i)*0xbf58476d1ce4e5b9 + 0x94d049bb133111eb
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return byte(x >> 56)
}

// took says how many bytes the read gave.
func (l *ledger) took(n int) {
	valid := l.valid()
	if n <= 0 {
		l.turn(valid, phaseIdle)
		return
	}
	l.put(atGot, uint64(n))
	l.turn(valid, phaseTaken)
}

// commit says that the log has them, and what it knows of unfinished lines.
func (l *ledger) commit(log *format.Log) {
	l.scratch = log.AppendState(l.scratch[:0])
	next := 1 - l.valid()
	l.put(atStateLen+8*int(next), 0)
	if place := l.place(next, len(l.scratch)); place != nil {
		copy(place, l.scratch)
		l.put(atStateLen+8*int(next), uint64(len(l.scratch)))
	}
	if cap(l.scratch) > ledgerInline {
		l.scratch = nil
	}
	l.turn(next, phaseIdle)
}

// place is where a state of n bytes lies; nil when there is no memory for it,
// and then an unfinished line would not survive.
func (l *ledger) place(which uint64, n int) []byte {
	if n <= ledgerInline {
		at := atInline + int(which)*ledgerInline
		return l.mem[at : at+n]
	}
	if n > ledgerState {
		return nil
	}
	if !l.wide {
		if allocate(l.fd, unix.FALLOC_FL_KEEP_SIZE, ledgerStates, 2*ledgerState) != nil {
			return nil
		}
		l.wide = true
	}
	at := ledgerStates + int(which)*ledgerState
	return l.mem[at : at+n]
}

// state is the log's state at the last commit; nil when there is none.
func (l *ledger) state() []byte {
	which := l.valid()
	n := l.get(atStateLen + 8*int(which))
	if n == 0 || n > ledgerState {
		return nil
	}
	return l.place(which, int(n))
}

// rest gives back what a burst took.
func (l *ledger) rest() {
	l.shorten()
	if l.room == ledgerReserve && !l.wide {
		return
	}
	end := int64(ledgerStates)
	if l.wide && l.get(atStateLen+8*int(l.valid())) <= ledgerInline {
		end = ledgerSize
		l.wide = false
	}
	from := int64(ledgerData + ledgerReserve)
	if allocate(l.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, end-from) == nil {
		l.room = ledgerReserve
	}
}

// restore brings a log up to what the dead shim had read: its unfinished lines,
// and the entry that it was moving when it was killed.
func (l *ledger) restore(log *format.Log) error {
	if st := l.state(); st != nil {
		if err := log.SetState(st); err != nil {
			return err
		}
	}
	p := l.unfinished()
	if p == nil {
		l.turn(l.valid(), phaseIdle)
		return nil
	}
	log.Redo(l.get(atInode), int64(l.get(atSize)))
	log.Write(format.Source(l.get(atSource)), time.Unix(0, int64(l.get(atTime))), p)
	l.commit(log)
	return nil
}

// unfinished are the bytes of the entry that was being moved; nil for none.
func (l *ledger) unfinished() []byte {
	want, got := l.get(atWant), l.get(atGot)
	if want > burstSize || want > readSize && !l.long || got > want && l.word()&3 == phaseTaken {
		return nil
	}
	switch l.word() & 3 {
	case phaseTaken:
		return l.data(int(want))[:got]
	case phaseTaking:
		p := l.data(int(want))
		terminal := l.get(atTerminal) != 0
		for i := markLen(len(p), terminal) - 1; i >= 0; i-- {
			if p[i] == markByte(l.seq, i) {
				continue
			}
			if terminal {
				return p[:i+1]
			}
			return p
		}
	}
	return nil
}
