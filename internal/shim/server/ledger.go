// SPDX-License-Identifier: Apache-2.0

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

// ledger makes output that was read from the container's streams survive a
// kill -9 of the shim: every byte gets into the log exactly once, also a byte that
// the dead shim had read from the pipe and not yet written. It is a file in the
// run directory with a shared mapping, so a killed process leaves it as it was
// after its last instruction:
//
//	page 0    the entry that is being moved, and two slots for the log's state
//	          (unfinished lines), one of which is valid
//	then      the bytes of the entry
//	then      two slots for states that are too large for page 0
//	then      the bytes of an entry that is too long for the first place; the
//	          file has this part only during a burst
//
// A move goes through phases. One atomic store publishes each:
//
//	idle → taking (source, length, time, position of the log) → the read call
//	→ taken → the log → idle, with the other state
//
// If the shim is killed while taking, it is unknown whether the read call has
// happened. Therefore the place of its bytes is filled before with a pattern that
// output can't match by chance.
//
// Pages that a burst took are released. Pages are allocated before they are
// written: a write to one that the file system can't allocate raises SIGBUS.
type ledger struct {
	fd      int
	mem     []byte
	seq     uint64 // of the last entry
	room    int    // allocated bytes in the first place for data
	long    bool   // the file has the place for long entries
	wide    bool   // the slots for large states are allocated
	scratch []byte
}

const (
	ledgerMagic = "HFledg1\n"

	ledgerData    = 4096
	ledgerReserve = 4096 // bytes of data that are always allocated
	ledgerStates  = ledgerData + readSize
	ledgerState   = (format.StateMax + 4095) &^ 4095
	ledgerSize    = ledgerStates + 2*ledgerState // without the place for long entries
	ledgerLong    = ledgerSize + burstSize
	ledgerInline  = 1024 // bytes; a state up to this size is in page 0
)

// Offsets in page 0. Numbers have the native byte order: the file never leaves the
// machine.
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

// openLedger creates the file, or with again opens the one that the previous shim
// left.
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
	// Allocate also the part of an existing file: it may have punched holes.
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
	l.seq = l.phaseWord() >> 3
	return l, nil
}

func (l *ledger) close() {
	if l.mem != nil {
		unix.Munmap(l.mem)
		l.mem = nil
	}
	unix.Close(l.fd)
}

func (l *ledger) phaseWord() uint64 {
	return atomic.LoadUint64((*uint64)(unsafe.Pointer(&l.mem[atPhase])))
}

// setPhase publishes a phase, after all earlier writes.
func (l *ledger) setPhase(valid, phase uint64) {
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&l.mem[atPhase])), l.seq<<3|valid<<2|phase)
}

func (l *ledger) valid() uint64 { return l.phaseWord() >> 2 & 1 }

func (l *ledger) get(at int) uint64    { return binary.NativeEndian.Uint64(l.mem[at:]) }
func (l *ledger) put(at int, v uint64) { binary.NativeEndian.PutUint64(l.mem[at:], v) }

// begin announces a read of at most want bytes and returns the buffer for it. When
// memory is short, the buffer may be smaller than want.
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
	l.setPhase(valid, phaseTaking)
	return p
}

// data returns the place of an entry of at most want bytes.
func (l *ledger) data(want int) []byte {
	if want > readSize {
		return l.mem[ledgerSize : ledgerSize+want]
	}
	return l.mem[ledgerData : ledgerData+want]
}

// allocate is fallocate, retried when a signal interrupts it.
func allocate(fd int, mode uint32, off, size int64) error {
	for {
		if err := unix.Fallocate(fd, mode, off, size); err != unix.EINTR {
			return err
		}
	}
}

// lengthen adds the place for long entries. Without memory for it, long reads are
// split.
func (l *ledger) lengthen() bool {
	if allocate(l.fd, 0, ledgerSize, burstSize) != nil {
		unix.Ftruncate(l.fd, ledgerSize)
		return false
	}
	l.long = true
	return true
}

// shorten removes the place for long entries. The file then has the form that
// earlier releases know.
func (l *ledger) shorten() {
	if l.long && unix.Ftruncate(l.fd, ledgerSize) == nil {
		l.long = false
	}
}

// markLen returns how many bytes are filled with the pattern. If a pipe holds want
// bytes, a read returns all of them or none, so a few bytes suffice. A terminal may
// return any number.
func markLen(want int, terminal bool) int {
	if terminal {
		return want
	}
	return min(want, 16)
}

// mark fills p with the pattern of this entry, which depends on its number
// (splitmix64).
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

// took records how many bytes the read returned.
func (l *ledger) took(n int) {
	valid := l.valid()
	if n <= 0 {
		l.setPhase(valid, phaseIdle)
		return
	}
	l.put(atGot, uint64(n))
	l.setPhase(valid, phaseTaken)
}

// commit records that the bytes are in the log, and the log's state of unfinished
// lines.
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
	l.setPhase(next, phaseIdle)
}

// place returns the slot for a state of n bytes, or nil without memory for it. An
// unfinished line would then not survive.
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

// state returns the log's state at the last commit, or nil.
func (l *ledger) state() []byte {
	which := l.valid()
	n := l.get(atStateLen + 8*int(which))
	if n == 0 || n > ledgerState {
		return nil
	}
	return l.place(which, int(n))
}

// shrink releases the memory of a burst.
func (l *ledger) shrink() {
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

// restore continues the log from what the dead shim had read: its unfinished lines,
// and the entry that it was moving when it was killed.
func (l *ledger) restore(log *format.Log) error {
	if st := l.state(); st != nil {
		if err := log.SetState(st); err != nil {
			return err
		}
	}
	p := l.unfinished()
	if p == nil {
		l.setPhase(l.valid(), phaseIdle)
		return nil
	}
	log.Redo(l.get(atInode), int64(l.get(atSize)))
	log.Write(format.Source(l.get(atSource)), time.Unix(0, int64(l.get(atTime))), p)
	l.commit(log)
	return nil
}

// unfinished returns the bytes of the entry that was being moved, or nil.
func (l *ledger) unfinished() []byte {
	want, got := l.get(atWant), l.get(atGot)
	if want > burstSize || want > readSize && !l.long || got > want && l.phaseWord()&3 == phaseTaken {
		return nil
	}
	switch l.phaseWord() & 3 {
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
