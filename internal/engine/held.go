package engine

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	moby "github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
)

// holder is a Shim that can answer clients after the daemon's death. Those of
// earlier releases can't, and then the daemon alone answers.
type holder interface {
	Hold(ctx context.Context, p proto.Hold, client, lease *os.File) error
}

// giveTimeout bounds how long a shim may take to accept a client: it is a
// matter of microseconds.
const giveTimeout = 10 * time.Second

// heldWait is a client that waits for a container's end. Its answer is written
// once: by the shim that holds it, which gets it over the lease, or by the
// daemon, as long as no shim does.
type heldWait struct {
	on moby.WaitCondition

	mu     sync.Mutex // guards all below, and what is written to the client
	client *os.File
	head   []byte   // not yet written
	lease  *os.File // nil: no shim holds it
	closed bool
	gone   bool // so has the client
}

// give makes the shim the one that answers, in place of the one before. Where
// that fails all stays as it was.
func (h *heldWait) give(shim Shim) {
	to, ok := shim.(holder)
	if !ok {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	near, far, err := leasePair()
	if err != nil {
		return
	}
	defer far.Close()
	ctx, cancel := context.WithTimeout(context.Background(), giveTimeout)
	defer cancel()
	if err := to.Hold(ctx, proto.Hold{Condition: string(h.on), Head: h.head}, h.client, far); err != nil {
		near.Write([]byte{proto.LeaseDrop}) // should it have it after all
		near.Close()
		return
	}
	h.head = nil
	h.drop()
	h.lease = near
}

// open writes the response's head, unless a shim has.
func (h *heldWait) open() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.head == nil {
		return nil
	}
	_, err := h.client.Write(h.head)
	h.head = nil
	return err
}

// answer writes the response's body, through the shim if one holds the client.
func (h *heldWait) answer(body []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := append([]byte(strconv.FormatInt(int64(len(body)), 16)+"\r\n"), body...)
	p = append(p, "\r\n0\r\n\r\n"...)
	if h.lease != nil {
		written := false
		if _, err := h.lease.Write(p); err == nil {
			_ = h.lease.SetReadDeadline(time.Now().Add(giveTimeout))
			n, _ := h.lease.Read(make([]byte, 1))
			written = n == 1
		}
		h.lease.Close()
		h.lease = nil
		if written {
			return
		}
	}
	_, _ = h.client.Write(p)
}

// drop ends the present shim's part, under the lock.
func (h *heldWait) drop() {
	if h.lease != nil {
		_, _ = h.lease.Write([]byte{proto.LeaseDrop})
		h.lease.Close()
		h.lease = nil
	}
}

// leave notes that the client has closed its side.
func (h *heldWait) leave() {
	h.mu.Lock()
	h.gone = true
	h.mu.Unlock()
}

// close ends the daemon's part. A client that is still there, because it is the
// daemon that goes, is left to the shim.
func (h *heldWait) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	if h.gone {
		h.drop()
	} else if h.lease != nil {
		h.lease.Close()
		h.lease = nil
	}
	h.client.Close()
}

// leasePair makes the two ends of a lease.
func leasePair() (near, far *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a lease for a client: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "lease"), os.NewFile(uintptr(fds[1]), "lease"), nil
}
