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
)

func (h *handlers) logs(w http.ResponseWriter, r *wire.Request) error {
	o, err := logsOptions(r)
	if err != nil {
		return err
	}
	// The reader is left alone when the client goes, or when its side fails.
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	log, tty, err := h.backend.ContainerLogs(ctx, r.Name(), o)
	if err != nil {
		return err
	}
	defer log.Close()

	kind := types.MediaTypeRawStream
	if !tty && !r.Version.Before(42) {
		kind = types.MediaTypeMultiplexedStream
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	if err := rc.Flush(); err != nil {
		return err
	}
	enc := logEncoder{raw: tty, timestamps: r.Bool("timestamps"), details: r.Bool("details")}
	return pump(ctx, cancel, log, &enc, w, rc.Flush)
}

func logsOptions(r *wire.Request) (engine.LogsOptions, error) {
	o := engine.LogsOptions{
		Stdout: r.Bool("stdout"),
		Stderr: r.Bool("stderr"),
		Follow: r.Bool("follow"),
		Tail:   -1,
	}
	if !o.Stdout && !o.Stderr {
		return o, wire.Invalid("Bad parameters: you must choose at least one stream")
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

// pumpLimit bounds what is encoded ahead of a slow client, in bytes.
const pumpLimit = 256 << 10

// pump copies a log to a client: one goroutine reads and encodes, this one
// writes and flushes. So lines that are there already go out in large writes,
// and a single new one goes out at once.
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
		// The head is sent: the stream itself is the place to tell.
		if _, werr := w.Write(enc.failure(err)); werr == nil {
			_ = flush()
		}
		return fmt.Errorf("read the log: %w", err)
	}
}

// readAhead is what is encoded and not yet written.
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

// fill reads until the log ends or stop is called. It waits while too much is
// not yet taken.
func (a *readAhead) fill(log engine.LogReader, enc *logEncoder) {
	// A panic here is outside of the server's recovery: carry it over.
	defer func() {
		if v := recover(); v != nil {
			a.end(panicked{fmt.Sprintf("%v\n%s", v, debug.Stack())})
		}
	}()
	for {
		line, err := log.Next()
		if err != nil {
			a.end(err)
			return
		}
		if !a.add(enc, line) {
			a.end(nil)
			return
		}
	}
}

// add encodes a line, once there is room, unless stop was called.
func (a *readAhead) add(enc *logEncoder, line engine.LogLine) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.buf) >= pumpLimit && !a.stopped {
		a.changed.Wait()
	}
	if a.stopped {
		return false
	}
	a.buf = enc.append(a.buf, line)
	a.changed.Broadcast()
	return true
}

func (a *readAhead) end(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.err, a.ended = err, true
	a.changed.Broadcast()
}

// take waits for something to write and gives empty in its place. Nothing and
// an error is the log's end.
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

// stop makes fill give up, and waits for it: the log must not be closed under
// it.
func (a *readAhead) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopped = true
	a.changed.Broadcast()
	for !a.ended {
		a.changed.Wait()
	}
}

// rfc3339Nano has always nine decimals, so that lines stand in columns; it is
// the format that docker logs --timestamps prints.
const rfc3339Nano = "2006-01-02T15:04:05.000000000Z07:00"

// logEncoder writes log lines as GET /containers/{id}/logs sends them: in
// frames of package stdcopy, or as they are if they come from a terminal.
type logEncoder struct {
	raw                 bool
	timestamps, details bool
	within              [2]bool // stdout, stderr: the last piece had no newline
}

// append adds one line. The prefixes come before the first piece of a long line
// only.
func (e *logEncoder) append(b []byte, l engine.LogLine) []byte {
	stream, i := stdcopy.Stdout, 0
	if l.Source == "stderr" {
		stream, i = stdcopy.Stderr, 1
	}
	start := len(b)
	if !e.raw {
		b = append(b, byte(stream), 0, 0, 0, 0, 0, 0, 0)
	}
	if !e.within[i] {
		if e.timestamps {
			b = l.Time.UTC().AppendFormat(b, rfc3339Nano)
			b = append(b, ' ')
		}
		if e.details {
			b = appendAttrs(b, l.Attrs)
			b = append(b, ' ')
		}
	}
	b = append(b, l.Line...)
	e.within[i] = len(l.Line) > 0 && l.Line[len(l.Line)-1] != '\n'
	if !e.raw {
		putSize(b[start:])
	}
	return b
}

// failure is a message of the daemon in the stream.
func (e *logEncoder) failure(err error) []byte {
	text := fmt.Sprintf("Error grabbing logs: %v\n\n", err)
	if e.raw {
		return []byte(text)
	}
	b := append([]byte{byte(stdcopy.Systemerr), 0, 0, 0, 0, 0, 0, 0}, text...)
	putSize(b)
	return b
}
