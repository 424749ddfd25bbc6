// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine"
	"holdfast/internal/logs/format"
)

func (h *handlers) logs(w http.ResponseWriter, r *wire.Request) error {
	o, err := logsOptions(r)
	if err != nil {
		return err
	}
	// Cancel the reader when the client has left, or when writing to it fails.
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if hj := wire.NewHijacker(w, r); o.Follow && hj.Hands() {
		taken, err := h.backend.ContainerFollow(r.Context(), r.Name(), engine.FollowOptions{
			LogsOptions: o, Timestamps: r.Bool("timestamps"), Details: r.Bool("details"),
			Hijack: func(raw, chunked bool) (*engine.Client, []byte, error) {
				return taken(hj.TakeOver(logKind(raw, r), chunked))
			},
		})
		if taken || err != nil {
			return err
		}
	}
	log, tty, err := h.backend.ContainerLogs(ctx, r.Name(), o)
	if err != nil {
		return err
	}
	defer log.Close()

	w.Header().Set("Content-Type", logKind(tty, r))
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	if err := rc.Flush(); err != nil {
		return err
	}
	enc := logEncoder{format.Encoder{Raw: tty, Timestamps: r.Bool("timestamps"), Details: r.Bool("details")}}
	return pump(ctx, cancel, log, &enc, w, rc.Flush)
}

// logKind is the content type of a log answer.
func logKind(raw bool, r *wire.Request) string {
	if !raw && !r.Version.Before(42) {
		return types.MediaTypeMultiplexedStream
	}
	return types.MediaTypeRawStream
}

func logsOptions(r *wire.Request) (engine.LogsOptions, error) {
	o := engine.LogsOptions{
		Stdout: r.Bool("stdout"),
		Stderr: r.Bool("stderr"),
		Follow: r.Bool("follow"),
		Tail:   -1,
	}
	if !o.Stdout && !o.Stderr {
		return o, wire.Invalid("must specify at least one of 'stdout' or 'stderr'")
	}
	if s := r.Query.Get("tail"); s != "" && s != "all" {
		n, err := strconv.Atoi(s)
		if err != nil {
			return o, wire.Invalid("invalid value %q for parameter \"tail\": want a number of lines, or all", s)
		}
		o.Tail = max(n, -1)
	}
	var err error
	if o.Since, err = r.Time("since"); err != nil {
		return o, err
	}
	if !r.Version.Before(35) {
		if o.Until, err = r.Time("until"); err != nil {
			return o, err
		}
	}
	return o, nil
}

const (
	// pumpLimit bounds the data encoded ahead of a slow client, in bytes.
	pumpLimit = 256 << 10
	// pieceSize is how many bytes of lines that need no waiting are collected
	// before the other goroutine gets them: a wake-up for each line would cost
	// more than the line.
	pieceSize = 32 << 10
)

// pump copies a log to a client: one goroutine reads and encodes, this one
// writes and flushes. Lines that exist already are therefore sent in large
// writes, and a single new line is sent at once.
func pump(ctx context.Context, cancel func(), log engine.LogReader, enc *logEncoder, w io.Writer, flush func() error) error {
	ahead := newReadAhead()
	go ahead.fill(log, enc)
	var buf []byte
	for {
		var err error
		buf, err = ahead.take(buf)
		if len(buf) > 0 {
			_, werr := w.Write(buf)
			if werr == nil {
				werr = flush()
			}
			if werr != nil {
				cancel()
				ahead.stop()
				return nil // the client has left
			}
			continue
		}
		if ctx.Err() != nil || errors.Is(err, io.EOF) {
			return nil
		}
		if p, ok := err.(panicked); ok {
			panic(p.what)
		}
		// The head is sent already, so the failure must be reported in the
		// stream.
		if _, werr := w.Write(enc.failure(err)); werr == nil {
			_ = flush()
		}
		return fmt.Errorf("read the log: %w", err)
	}
}

// readAhead holds the data that is encoded but not yet written.
type readAhead struct {
	mu      sync.Mutex // guards all below
	changed *sync.Cond
	buf     []byte
	err     error // why fill ended
	stopped bool
	ended   bool
}

// panicked is a panic of the reading goroutine, with its stack.
type panicked struct{ what string }

func (p panicked) Error() string { return "panic: " + p.what }

func newReadAhead() *readAhead {
	a := &readAhead{}
	a.changed = sync.NewCond(&a.mu)
	return a
}

// fill reads until the log ends or stop is called. It waits while too much data
// has not been taken.
func (a *readAhead) fill(log engine.LogReader, enc *logEncoder) {
	// The server's recovery does not cover this goroutine: pass a panic on to
	// the one that it covers.
	defer func() {
		if v := recover(); v != nil {
			a.end(panicked{fmt.Sprintf("%v\n%s", v, debug.Stack())})
		}
	}()
	var piece []byte
	for {
		line, err := log.Next()
		if err != nil {
			a.end(err)
			return
		}
		piece = enc.Append(piece[:0], line)
		for len(piece) < pieceSize {
			line, ok := log.Buffered()
			if !ok {
				break
			}
			piece = enc.Append(piece, line)
		}
		if !a.add(piece) {
			a.end(nil)
			return
		}
	}
}

// add appends encoded lines once there is room, unless stop was called.
func (a *readAhead) add(piece []byte) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.buf) >= pumpLimit && !a.stopped {
		a.changed.Wait()
	}
	if a.stopped {
		return false
	}
	a.buf = append(a.buf, piece...)
	a.changed.Broadcast()
	return true
}

func (a *readAhead) end(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.err, a.ended = err, true
	a.changed.Broadcast()
}

// take waits for data to write, and leaves empty in its place. No data with an
// error means that the log has ended.
func (a *readAhead) take(empty []byte) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.buf) == 0 && !a.ended {
		a.changed.Wait()
	}
	full := a.buf
	a.buf = empty[:0]
	a.changed.Broadcast()
	return full, a.err
}

// stop makes fill return and waits for that, because the log must not be closed
// while fill reads it.
func (a *readAhead) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopped = true
	a.changed.Broadcast()
	for !a.ended {
		a.changed.Wait()
	}
}

// logEncoder is the log's encoder that can also report a failure in the stream.
type logEncoder struct{ format.Encoder }

// failure encodes an error as a message of the daemon in the stream.
func (e *logEncoder) failure(err error) []byte {
	text := fmt.Sprintf("Error grabbing logs: %v\n\n", err)
	if e.Raw {
		return []byte(text)
	}
	b := append([]byte{byte(stdcopy.Systemerr), 0, 0, 0, 0, 0, 0, 0}, text...)
	putSize(b)
	return b
}
