// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"io/fs"
	"sync"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"
)

// progressEvery is the least time between two messages about one layer's bytes.
const progressEvery = 100 * time.Millisecond

// progress reports a pull or load to a client in Docker's messages. Its
// function is called by one goroutine at a time.
type progress struct {
	mu   sync.Mutex
	fn   func(jsonstream.Message)
	last map[string]time.Time
}

func newProgress(fn func(jsonstream.Message)) *progress {
	return &progress{fn: fn, last: map[string]time.Time{}}
}

func (p *progress) send(m jsonstream.Message) {
	if p.fn == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fn(m)
}

func (p *progress) status(id, status string) {
	p.send(jsonstream.Message{ID: id, Status: status, Progress: progressDetail(id)})
}

// progressDetail is present but empty for layers, as Docker's is. Clients draw
// a line per layer because of it.
func progressDetail(id string) *jsonstream.Progress {
	if id == "" {
		return nil
	}
	return &jsonstream.Progress{}
}

func (p *progress) line(text string) { p.send(jsonstream.Message{Status: text}) }

func (p *progress) stream(text string) { p.send(jsonstream.Message{Stream: text}) }

// bytes reports how many of total bytes are done, at most once per
// progressEvery.
func (p *progress) bytes(id, status string, current, total int64) {
	if p.fn == nil {
		return
	}
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.last[id+status]) < progressEvery && current < total {
		return
	}
	p.last[id+status] = now
	p.fn(jsonstream.Message{ID: id, Status: status, Progress: &jsonstream.Progress{Current: current, Total: total}})
}

// shortID is the short form of a layer's digest that Docker's clients show.
func shortID(d digest.Digest) string {
	hex := d.Encoded()
	if len(hex) > 12 {
		hex = hex[:12]
	}
	return hex
}

// isHostError reports whether err was caused by the machine and not by the
// input.
func isHostError(err error) bool {
	for _, host := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO, syscall.EPERM, syscall.ENOMEM, syscall.EMFILE, fs.ErrPermission} {
		if errors.Is(err, host) {
			return true
		}
	}
	return false
}
