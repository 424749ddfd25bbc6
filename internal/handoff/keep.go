package handoff

import (
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// keepPrefix begins the names of descriptors that are no listening sockets. It
// begins with that of those: a release that does not know these takes them for
// sockets of an address that it has no more, and gives them back.
const keepPrefix = storePrefix + "keep-"

// Keeper keeps descriptors in the service manager's store beyond this process's
// life, for the next daemon. Where the manager has no store it keeps nothing.
//
// It sends in its own time, in the order of the calls. Until Open it sends
// nothing: the service manager hears the process that it knows, which a
// successor is only at the end of a takeover.
type Keeper struct {
	notify *Notifier
	log    *slog.Logger

	mu      sync.Mutex
	open    bool
	closed  bool
	sending bool
	queue   []kept
	found   map[string]*os.File // from an earlier life, and not yet taken
}

// kept is something to send: a descriptor, or with fd -1 the end of it.
type kept struct {
	name string
	fd   int
}

// NewKeeper makes one; found are the descriptors that came with the start.
func NewKeeper(n *Notifier, log *slog.Logger) *Keeper {
	k := &Keeper{notify: n, log: log, found: map[string]*os.File{}}
	// Set where the unit has FileDescriptorStoreMax=, since systemd 254.
	if max := os.Getenv("FDSTORE"); max == "" || max == "0" {
		k.closed = true
	}
	return k
}

// Found takes over what the service manager had kept.
func (k *Keeper) Found(in *Inherited) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, files := range in.own {
		if rest, ok := strings.CutPrefix(name, keepPrefix); ok {
			k.found[rest] = files[0]
			delete(in.own, name)
		}
	}
}

// Take gives a descriptor of that name from an earlier life, once. It stays in
// the store.
func (k *Keeper) Take(name string) *os.File {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.found[name]
	delete(k.found, name)
	return f
}

// Keep stores a copy of a descriptor in place of any other of that name.
func (k *Keeper) Keep(name string, fd int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return
	}
	k.queue = append(k.queue, kept{name, -1}, kept{name, own})
	k.kick()
}

// Forget takes what has a name out of the store.
func (k *Keeper) Forget(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.closed {
		k.queue = append(k.queue, kept{name, -1})
		k.kick()
	}
}

// Open lets it send. What was found and nobody has taken goes.
func (k *Keeper) Open() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.open = true
	for name, f := range k.found {
		f.Close()
		k.queue = append(k.queue, kept{name, -1})
	}
	k.found = map[string]*os.File{}
	if !k.closed {
		k.kick()
	}
}

// Close ends the sending for good: another process is the daemon.
func (k *Keeper) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
}

// kick sends what waits, with the lock.
func (k *Keeper) kick() {
	if !k.open || k.sending || len(k.queue) == 0 {
		return
	}
	k.sending = true
	go k.send()
}

func (k *Keeper) send() {
	for {
		k.mu.Lock()
		batch, closed := k.queue, k.closed
		k.queue = nil
		if len(batch) == 0 {
			k.sending = false
			k.mu.Unlock()
			return
		}
		k.mu.Unlock()
		var errs []error
		for _, t := range batch {
			switch {
			case closed:
			case t.fd < 0:
				errs = append(errs, k.notify.forgetFD(keepPrefix+t.name))
			default:
				errs = append(errs, k.notify.keepFD(keepPrefix+t.name, t.fd))
			}
			if t.fd >= 0 {
				unix.Close(t.fd)
			}
		}
		if err := errors.Join(errs...); err != nil {
			k.log.Warn("the service manager does not keep what containers need should this daemon and a shim die together", "error", err)
		}
	}
}
