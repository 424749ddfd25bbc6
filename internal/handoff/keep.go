// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// keepPrefix begins the names of descriptors that are not listening sockets. It
// begins with storePrefix: a release that does not know these descriptors takes
// them for sockets of an address that is no longer configured, and removes them
// from the store.
const keepPrefix = storePrefix + "keep-"

// Keeper keeps descriptors for the next daemon in the service manager's store, so
// that they outlive this process. If the manager has no store it does nothing.
//
// It sends asynchronously, in the order of the calls, and sends nothing before
// Open: the service manager only accepts messages of the main process that it
// knows, and a successor only becomes that at the end of a takeover.
type Keeper struct {
	notify *Notifier
	log    *slog.Logger

	mu      sync.Mutex
	open    bool
	closed  bool
	sending bool
	queue   []kept
	found   map[string]*os.File // from an earlier daemon, and not yet taken
}

// kept is a queued change: a descriptor to store or, if fd is -1, a name to
// remove.
type kept struct {
	name string
	fd   int
}

// NewKeeper returns a Keeper without any found descriptors.
func NewKeeper(n *Notifier, log *slog.Logger) *Keeper {
	k := &Keeper{notify: n, log: log, found: map[string]*os.File{}}
	// systemd sets it since version 254 if the unit has FileDescriptorStoreMax=.
	if max := os.Getenv("FDSTORE"); max == "" || max == "0" {
		k.closed = true
	}
	return k
}

// Found takes over the descriptors that the service manager had stored.
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

// Take returns an earlier daemon's descriptor of that name, once. It stays in the
// store.
func (k *Keeper) Take(name string) *os.File {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.found[name]
	delete(k.found, name)
	return f
}

// Keep stores a copy of a descriptor. It replaces any other of that name.
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

// Forget removes the descriptor of that name from the store.
func (k *Keeper) Forget(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.closed {
		k.queue = append(k.queue, kept{name, -1})
		k.kick()
	}
}

// Open starts sending. Found descriptors that were not taken are removed from the
// store.
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

// Close stops sending for good, because another process is the daemon now.
func (k *Keeper) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
}

// kick starts sending the queue. k.mu is held.
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
			k.log.Warn("the service manager did not store a descriptor: should this daemon and a shim die together, the container's terminal, last output or exit code may be lost", "error", err)
		}
	}
}
