// SPDX-License-Identifier: Apache-2.0

package reader

import (
	"encoding/binary"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Events to watch for: of a directory in which a log appears, and of a log.
const (
	dirEvents  = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_ONLYDIR
	fileEvents = unix.IN_MODIFY | unix.IN_MOVE_SELF | unix.IN_ATTRIB
)

// hub is the one inotify instance of the process. A user may have 128 instances
// by default, and there may be more readers than that.
type hub struct {
	mu      sync.Mutex
	f       *os.File // nil until the first watch
	watches map[int32]map[*watch]struct{}
}

var shared = &hub{watches: map[int32]map[*watch]struct{}{}}

// watch is one reader's share of the hub.
type watch struct {
	hub  *hub
	wake chan struct{} // capacity 1: a token means that something changed
	ids  []int32       // guarded by hub.mu
	file int32         // the watch on the current file, 0 for none
}

func newWatch() (*watch, error) {
	if err := shared.start(); err != nil {
		return nil, err
	}
	return &watch{hub: shared, wake: make(chan struct{}, 1)}, nil
}

func (h *hub) start() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.f != nil {
		return nil
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("inotify_init1", err)
	}
	h.f = os.NewFile(uintptr(fd), "inotify")
	go h.run(h.f)
	return nil
}

func (h *hub) run(f *os.File) {
	buf := make([]byte, 16<<10)
	for {
		n, err := f.Read(buf)
		if err != nil {
			// The instance can't be read any more. Wake all readers, so that
			// they look at the files, and let the next reader make a new
			// instance.
			h.mu.Lock()
			h.f = nil
			h.wakeAll()
			h.mu.Unlock()
			f.Close()
			return
		}
		h.mu.Lock()
		for p := buf[:n]; len(p) >= unix.SizeofInotifyEvent; {
			id := int32(binary.NativeEndian.Uint32(p))
			mask := binary.NativeEndian.Uint32(p[4:])
			size := binary.NativeEndian.Uint32(p[12:])
			p = p[unix.SizeofInotifyEvent+size:]
			if mask&unix.IN_Q_OVERFLOW != 0 {
				h.wakeAll()
				continue
			}
			for w := range h.watches[id] {
				w.notify()
			}
			if mask&unix.IN_IGNORED != 0 {
				delete(h.watches, id)
			}
		}
		h.mu.Unlock()
	}
}

func (h *hub) wakeAll() {
	for _, ws := range h.watches {
		for w := range ws {
			w.notify()
		}
	}
}

func (w *watch) notify() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// add watches path, a file or a directory.
func (w *watch) add(path string, mask uint32) error {
	h := w.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.add(w, path, mask)
	return err
}

func (h *hub) add(w *watch, path string, mask uint32) (int32, error) {
	if h.f == nil {
		return 0, os.ErrClosed
	}
	var n int
	var err error
	raw, err := h.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	if cerr := raw.Control(func(fd uintptr) { n, err = unix.InotifyAddWatch(int(fd), path, mask) }); cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, &os.PathError{Op: "watch", Path: path, Err: err}
	}
	id := int32(n)
	if h.watches[id] == nil {
		h.watches[id] = map[*watch]struct{}{}
	}
	h.watches[id][w] = struct{}{}
	w.ids = append(w.ids, id)
	return id, nil
}

// follow watches the open file f, whatever its name is now, instead of the
// previous file.
func (w *watch) follow(f *os.File) error {
	h := w.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	var id int32
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		id, err = h.add(w, "/proc/self/fd/"+strconv.Itoa(int(fd)), fileEvents)
	})
	if cerr != nil {
		return cerr
	}
	if err != nil {
		return err
	}
	if old := w.file; old != 0 && old != id {
		h.drop(w, old)
	}
	w.file = id
	return nil
}

// drop removes w's share of the watch id.
func (h *hub) drop(w *watch, id int32) {
	for i, have := range w.ids {
		if have == id {
			w.ids = append(w.ids[:i], w.ids[i+1:]...)
			break
		}
	}
	ws := h.watches[id]
	if ws == nil {
		return
	}
	delete(ws, w)
	if len(ws) > 0 {
		return
	}
	delete(h.watches, id)
	if h.f != nil {
		if raw, err := h.f.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) { unix.InotifyRmWatch(int(fd), uint32(id)) })
		}
	}
}

func (w *watch) close() {
	h := w.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(w.ids) > 0 {
		h.drop(w, w.ids[0])
	}
}
