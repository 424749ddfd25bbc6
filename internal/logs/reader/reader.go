// Package reader reads container logs that package format (or Docker) wrote:
// from any point, over rotated and compressed files, and on while they grow.
//
// It only ever reads. What it waits on is inotify, one instance for all
// readers of the process; a reader is a few open files and one small buffer.
package reader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"holdfast/internal/logs/format"
)

// Config names a log.
type Config struct {
	Driver string // json-file (or empty) or local
	Path   string // of the active file
}

// Options say which lines are wanted.
type Options struct {
	Since, Until time.Time // zero is no bound; both are inclusive
	// Tail is how many lines before the end to begin with, of all streams and
	// before Since and Until are looked at, as in Docker: 0 is none, negative
	// is all. A part of a split line counts as a line.
	Tail           int
	Follow         bool
	Stdout, Stderr bool
	// Done, when closed, says that nothing more will be written: what is
	// there is still read, then comes io.EOF. Only looked at with Follow.
	Done <-chan struct{}
}

// Reader reads one log. It is for one goroutine; Close may be called by
// another once Next has returned or its context is cancelled.
type Reader struct {
	ctx    context.Context
	cfg    Config
	opts   Options
	decode decoder

	cur   *cursor
	queue []*file // what comes after cur, oldest first
	watch *watch  // nil without Follow
	// watched: the log's folder is; before it exists, the one above it is.
	watched bool
	until   <-chan time.Time
	timer   *time.Timer
	ended   error
	bad     uint64
}

// Open opens a log. Without Follow the end is where it stood at this moment.
// A log that does not exist yet is empty. Errors: ErrNotImplemented for a
// driver whose logs can't be read; those of the file system.
func Open(ctx context.Context, cfg Config, opts Options) (*Reader, error) {
	r := &Reader{ctx: ctx, cfg: cfg, opts: opts}
	switch cfg.Driver {
	case "", format.DriverJSON:
		r.decode = &jsonDecoder{}
	case format.DriverLocal:
		r.decode = &localDecoder{}
	default:
		return nil, errdefs.ErrNotImplemented.WithMessage("configured logging driver does not support reading")
	}
	if opts.Follow {
		w, err := newWatch()
		if err != nil {
			return nil, fmt.Errorf("follow log %s: %w", cfg.Path, err)
		}
		r.watch = w
		// Before the files are listed: what comes later is announced.
		if err := r.watchFolder(); err != nil {
			r.Close()
			return nil, err
		}
		if !opts.Until.IsZero() {
			r.timer = time.NewTimer(time.Until(opts.Until))
			r.until = r.timer.C
		}
	}
	files, err := list(cfg.Path)
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("read log %s: %w", cfg.Path, err)
	}
	r.queue = files
	if n := len(files); n > 0 && !opts.Follow && !files[n-1].zip {
		files[n-1].limit = files[n-1].stat.Size()
		files[n-1].bounded = true
	}
	if opts.Tail >= 0 {
		if err := r.seekTail(); err != nil {
			r.Close()
			return nil, fmt.Errorf("read log %s: %w", cfg.Path, err)
		}
	} else {
		r.skipBefore(opts.Since)
	}
	return r, nil
}

// watchFolder has the appearance of the log announced. The local driver's
// folder is made when the container starts for the first time.
func (r *Reader) watchFolder() error {
	if r.watched {
		return nil
	}
	dir := filepath.Dir(r.cfg.Path)
	err := r.watch.add(dir, dirEvents)
	if errors.Is(err, fs.ErrNotExist) {
		if err = r.watch.add(filepath.Dir(dir), dirEvents); err == nil {
			err = r.watch.add(dir, dirEvents) // it may have come in between
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
		}
	}
	if err != nil {
		return fmt.Errorf("follow log %s: %w", r.cfg.Path, err)
	}
	r.watched = true
	return nil
}

// skipBefore drops the rotated files whose last line is older than since.
func (r *Reader) skipBefore(since time.Time) {
	if since.IsZero() {
		return
	}
	for len(r.queue) > 1 && r.queue[0].last().Before(since) {
		r.queue[0].close()
		r.queue = r.queue[1:]
	}
}

// Skipped is how many records could not be decoded and were left out.
func (r *Reader) Skipped() uint64 { return r.bad }

// Next returns the next line, io.EOF at the end, or the context's error.
func (r *Reader) Next() (Line, error) {
	if r.ended != nil {
		return Line{}, r.ended
	}
	for {
		if err := r.ctx.Err(); err != nil {
			return r.end(err)
		}
		done := r.done()
		if r.cur == nil {
			if len(r.queue) > 0 {
				if err := r.open(); err != nil {
					return r.end(err)
				}
				continue
			}
			if !r.opts.Follow {
				return r.end(io.EOF)
			}
			// No file yet, or the active one is being replaced.
			if err := r.watchFolder(); err != nil {
				return r.end(err)
			}
			files, err := list(r.cfg.Path)
			if err != nil {
				return r.end(err)
			}
			if r.queue = files; len(files) > 0 {
				continue
			}
			if done {
				return r.end(io.EOF)
			}
			if err := r.wait(); err != nil {
				return r.end(err)
			}
			continue
		}
		record, err := r.cur.next(r.decode)
		if err == nil {
			line, ok := r.decode.Decode(record)
			if !ok {
				r.bad++
				continue
			}
			if !r.opts.Until.IsZero() && line.Time.After(r.opts.Until) {
				return r.end(io.EOF)
			}
			if !r.wanted(line) {
				continue
			}
			return line, nil
		}
		if err == errDamaged {
			r.bad++
			r.cur.final = true
			err = io.EOF
		}
		if err != io.EOF {
			return r.end(fmt.Errorf("read log %s: %w", r.cur.f.name, err))
		}
		if err := r.atEnd(done); err != nil {
			return r.end(err)
		}
	}
}

func (r *Reader) wanted(l Line) bool {
	if !r.opts.Since.IsZero() && l.Time.Before(r.opts.Since) {
		return false
	}
	return l.Source == "stdout" && r.opts.Stdout || l.Source == "stderr" && r.opts.Stderr
}

// atEnd decides what follows the end of the current file. done says whether
// the log was known to be complete before the end was seen.
func (r *Reader) atEnd(done bool) error {
	switch {
	case len(r.queue) > 0 || !r.opts.Follow:
		// A file that had a successor when it was listed was complete, but
		// the list may be older than its last lines.
		if !r.cur.final && r.opts.Follow {
			r.cur.final = true
			return nil
		}
		r.leave()
		return nil
	case r.cur.final:
		newer, err := r.newer()
		if err != nil {
			return err
		}
		if len(newer) == 0 {
			if done {
				return io.EOF
			}
			return r.wait() // the next active file is about to appear
		}
		r.leave()
		r.queue = newer
		return nil
	}
	active, err := r.cur.f.isAt(r.cfg.Path)
	if err != nil {
		return err
	}
	if !active {
		// Its last lines may have come after its end was seen.
		r.cur.final = true
		return nil
	}
	if done {
		return io.EOF
	}
	return r.wait()
}

// newer lists the files after the current one.
func (r *Reader) newer() ([]*file, error) {
	files, err := list(r.cfg.Path)
	if err != nil {
		return nil, err
	}
	for i, f := range files {
		if f.same(r.cur.f) {
			for _, old := range files[:i+1] {
				old.close()
			}
			return files[i+1:], nil
		}
	}
	// Rotation has removed it, and with it all that were older.
	return files, nil
}

// Active gives the file that the next line is read from and where in it, if
// nothing newer is known of the log and somebody else could therefore go on from
// there. The file is the reader's.
func (r *Reader) Active() (f *os.File, offset int64, ok bool) {
	if r.ended != nil {
		return nil, 0, false
	}
	if r.cur == nil && len(r.queue) == 1 && !r.queue[0].zip {
		if err := r.open(); err != nil {
			r.end(err)
			return nil, 0, false
		}
	}
	if c := r.cur; c != nil && len(r.queue) == 0 && !c.final {
		return c.f.f, c.off - int64(c.end-c.at), true
	}
	return nil, 0, false
}

// open begins with the first file of the queue.
func (r *Reader) open() error {
	f := r.queue[0]
	r.queue = r.queue[1:]
	c, err := newCursor(f)
	if err != nil {
		f.close()
		return fmt.Errorf("read log %s: %w", f.name, err)
	}
	if r.watch != nil && !f.zip {
		// Before the first read, so that no growth goes unnoticed.
		if err := r.watch.follow(f.f); err != nil {
			c.close()
			return fmt.Errorf("follow log %s: %w", f.name, err)
		}
	}
	r.cur = c
	for ; f.skip > 0; f.skip-- {
		if _, err := c.next(r.decode); err != nil {
			break
		}
	}
	return nil
}

func (r *Reader) leave() {
	r.cur.close()
	r.cur = nil
}

func (r *Reader) done() bool {
	select {
	case <-r.opts.Done:
		return r.opts.Done != nil
	default:
		return false
	}
}

// wait returns when there may be more to read.
func (r *Reader) wait() error {
	if r.cur != nil {
		r.cur.rest()
	}
	select {
	case <-r.watch.wake:
	case <-r.opts.Done:
	case <-r.until:
		return io.EOF
	case <-r.ctx.Done():
		return r.ctx.Err()
	}
	return nil
}

func (r *Reader) end(err error) (Line, error) {
	r.ended = err
	r.Close()
	return Line{}, err
}

// Close gives back all that the reader holds.
func (r *Reader) Close() error {
	if r.ended == nil {
		r.ended = os.ErrClosed
	}
	if r.timer != nil {
		r.timer.Stop()
	}
	if r.watch != nil {
		r.watch.close()
		r.watch = nil
	}
	if r.cur != nil {
		r.leave()
	}
	for _, f := range r.queue {
		f.close()
	}
	r.queue = nil
	return nil
}
