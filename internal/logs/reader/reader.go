// SPDX-License-Identifier: Apache-2.0

// Package reader reads container logs written by package format (or Docker):
// from any point, across rotated and compressed files, and while they grow.
//
// It never writes. It waits by inotify, with one instance for all readers of
// the process. A reader holds a few open files and one small buffer.
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
	// Attrs are the attributes of every line of a local log, which does not
	// store them.
	Attrs map[string]string
}

// Options select lines.
type Options struct {
	// A zero time is no bound; both bounds are inclusive. Since is found in a
	// plain json-file as if its lines were in order of time. If the clock was
	// set back, the lines around that moment are not.
	Since, Until time.Time
	// Tail is the number of lines at the end with which to begin, counted over
	// all streams and before Since and Until apply, as in Docker. 0 means none,
	// negative means all. A part of a split line counts as a line.
	Tail           int
	Follow         bool
	Stdout, Stderr bool
	// Done is closed when nothing more will be written. The reader then reads
	// to the end and returns io.EOF. It is used only with Follow.
	Done <-chan struct{}
}

// Reader reads one log. It is used by one goroutine. Close may be called by
// another one once Next has returned or its context is cancelled.
type Reader struct {
	ctx    context.Context
	cfg    Config
	opts   Options
	decode decoder

	cur   *cursor
	queue []*file // files after cur, oldest first
	watch *watch  // nil without Follow
	// watched: the log's directory is watched. Before it exists, its parent is.
	watched bool
	until   <-chan time.Time
	timer   *time.Timer
	ended   error
	bad     uint64
}

// Open opens a log. Without Follow the log ends where it ended at the time of
// the call. A log that does not exist yet is empty. Errors: ErrNotImplemented
// for a driver whose logs can't be read; those of the file system.
func Open(ctx context.Context, cfg Config, opts Options) (*Reader, error) {
	r := &Reader{ctx: ctx, cfg: cfg, opts: opts}
	switch cfg.Driver {
	case "", format.DriverJSON:
		r.decode = &jsonDecoder{}
	case format.DriverLocal:
		r.decode = &localDecoder{format.LocalDecoder{Attrs: cfg.Attrs}}
	default:
		return nil, errdefs.ErrNotImplemented.WithMessage("configured logging driver does not support reading")
	}
	if opts.Follow {
		w, err := newWatch()
		if err != nil {
			return nil, fmt.Errorf("follow log %s: %w", cfg.Path, err)
		}
		r.watch = w
		// Watch before listing the files, so that later files are noticed.
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
	} else if err := r.skipBefore(opts.Since); err != nil {
		r.Close()
		return nil, fmt.Errorf("read log %s: %w", cfg.Path, err)
	}
	return r, nil
}

// watchFolder watches for the creation of the log. The local driver's directory
// is created when the container starts for the first time.
func (r *Reader) watchFolder() error {
	if r.watched {
		return nil
	}
	dir := filepath.Dir(r.cfg.Path)
	err := r.watch.add(dir, dirEvents)
	if errors.Is(err, fs.ErrNotExist) {
		if err = r.watch.add(filepath.Dir(dir), dirEvents); err == nil {
			err = r.watch.add(dir, dirEvents) // the directory may have been created before the watch on its parent
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

// skipBefore drops the rotated files whose last line is older than since. In
// the first remaining file it begins near the first line that is not older.
func (r *Reader) skipBefore(since time.Time) error {
	if since.IsZero() {
		return nil
	}
	for len(r.queue) > 1 && r.queue[0].last().Before(since) {
		r.queue[0].close()
		r.queue = r.queue[1:]
	}
	if len(r.queue) == 0 || r.queue[0].zip {
		return nil
	}
	f := r.queue[0]
	size, err := f.size()
	if err != nil {
		return err
	}
	f.from, err = r.decode.since(f.f, size, since)
	return err
}

// Skipped is the number of records that could not be decoded and were left out.
func (r *Reader) Skipped() uint64 { return r.bad }

// Next returns the next line, io.EOF at the end, or the context's error.
func (r *Reader) Next() (Line, error) {
	for {
		if line, ok := r.Buffered(); ok {
			return line, nil
		}
		if r.ended != nil {
			return Line{}, r.ended
		}
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
			// There is no file yet, or the active one is being replaced.
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
		err := r.cur.more(r.decode)
		if err == nil {
			continue
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

// Buffered returns the next line if it is read from its file already. It never
// waits, so that a caller can collect what is there before it passes it on.
func (r *Reader) Buffered() (Line, bool) {
	for r.ended == nil && r.cur != nil {
		record, err := r.cur.buffered(r.decode)
		if err != nil || record == nil {
			break
		}
		line, ok := r.decode.Decode(record)
		switch {
		case !ok:
			r.bad++
		case !r.opts.Until.IsZero() && line.Time.After(r.opts.Until):
			r.end(io.EOF)
		case r.wanted(line):
			return line, true
		}
	}
	return Line{}, false
}

func (r *Reader) wanted(l Line) bool {
	if !r.opts.Since.IsZero() && l.Time.Before(r.opts.Since) {
		return false
	}
	return l.Source == "stdout" && r.opts.Stdout || l.Source == "stderr" && r.opts.Stderr
}

// atEnd decides what to do at the end of the current file. done reports whether
// the log was known to be complete before the end was reached.
func (r *Reader) atEnd(done bool) error {
	switch {
	case len(r.queue) > 0 || !r.opts.Follow:
		// A file that was followed by another in the list is complete. But
		// lines may have been added after its end was read, so read it once
		// more.
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
			return r.wait() // the next active file is about to be created
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
		// Lines may have been added after its end was read, so read it once
		// more.
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
	// Rotation has removed the current file, and with it all older ones.
	return files, nil
}

// Active returns the file and the offset from which the next line is read, if
// no newer file of the log is known, so that another process can continue
// there. The reader still owns the file.
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

// open opens the first file of the queue.
func (r *Reader) open() error {
	f := r.queue[0]
	r.queue = r.queue[1:]
	c, err := newCursor(f)
	if err != nil {
		f.close()
		return fmt.Errorf("read log %s: %w", f.name, err)
	}
	if r.watch != nil && !f.zip {
		// Watch before the first read, so that no growth goes unnoticed.
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

// Close releases the reader's files and watches.
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
