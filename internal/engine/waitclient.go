// SPDX-License-Identifier: Apache-2.0

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

// waitAnswerer is implemented by shims that can answer waiting clients after the
// daemon has died. Shims of earlier releases do not implement it, and then only
// the daemon answers.
type waitAnswerer interface {
	Hold(ctx context.Context, p proto.Hold, client, lease *os.File) error
}

// handOverTimeout bounds how long a shim may take to accept a client, which
// normally takes microseconds.
const handOverTimeout = 10 * time.Second

// waitClient is a client that waits for a container's end. Its answer is written
// once. If a shim has a copy of the client's socket, the daemon sends the answer to
// that shim over the lease, and the shim writes it. Otherwise the daemon writes it.
//
// A lease is a socket pair between the daemon and the shim. If the daemon dies
// without dropping the lease, the shim answers the client by itself.
type waitClient struct {
	on moby.WaitCondition

	mu     sync.Mutex // guards all below, and writing to the client
	client *os.File
	head   []byte   // of the response; nil once it is written or handed over
	lease  *os.File // nil if no shim has the client
	closed bool     // the daemon has closed its socket
	gone   bool     // the client has closed the connection
}

// handOver gives the client to the shim, in place of the previous shim. If it fails,
// nothing changes.
func (h *waitClient) handOver(shim Shim) {
	to, ok := shim.(waitAnswerer)
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
	ctx, cancel := context.WithTimeout(context.Background(), handOverTimeout)
	defer cancel()
	if err := to.Hold(ctx, proto.Hold{Condition: string(h.on), Head: h.head}, h.client, far); err != nil {
		near.Write([]byte{proto.LeaseDrop}) // in case the shim has accepted it
		near.Close()
		return
	}
	h.head = nil
	h.drop()
	h.lease = near
}

// open writes the response's head, unless it was handed to a shim.
func (h *waitClient) open() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.head == nil {
		return nil
	}
	_, err := h.client.Write(h.head)
	h.head = nil
	return err
}

// answer writes the response's body, through the shim if one has the client.
func (h *waitClient) answer(body []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := append([]byte(strconv.FormatInt(int64(len(body)), 16)+"\r\n"), body...)
	p = append(p, "\r\n0\r\n\r\n"...)
	if h.lease != nil {
		written := false
		if _, err := h.lease.Write(p); err == nil {
			_ = h.lease.SetReadDeadline(time.Now().Add(handOverTimeout))
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

// drop makes the present shim forget the client. h.mu is held.
func (h *waitClient) drop() {
	if h.lease != nil {
		_, _ = h.lease.Write([]byte{proto.LeaseDrop})
		h.lease.Close()
		h.lease = nil
	}
}

// leave records that the client has closed the connection.
func (h *waitClient) leave() {
	h.mu.Lock()
	h.gone = true
	h.mu.Unlock()
}

// close closes the daemon's socket. If the client is still connected, because the
// daemon ends, the shim answers it.
func (h *waitClient) close() {
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

// leasePair returns the two ends of a lease.
func leasePair() (near, far *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a lease for a client: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "lease"), os.NewFile(uintptr(fds[1]), "lease"), nil
}
