// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/moby/term"

	"holdfast/internal/container"
	"holdfast/internal/errs"
	"holdfast/internal/logs/reader"
	"holdfast/internal/shim/proto"
)

// ContainerAttach connects a client to a container's streams. The daemon hands the
// client's socket to the shim and takes no further part. A client that attaches
// before the start waits for the start.
func (e *Engine) ContainerAttach(ctx context.Context, ref string, o AttachOptions) error {
	a, err := e.find(ctx, ref)
	if err != nil {
		return err
	}
	keys, err := detachKeys(o.DetachKeys)
	if err != nil {
		return err
	}
	// After the response the client counts as attached, and may request the start
	// at once. Therefore the loop does nothing else between the response and join.
	// The response is written by this goroutine, because the HTTP request is only
	// valid until ContainerAttach returns.
	turn, answered, asked := make(chan *view, 1), make(chan attachment), make(chan error, 1)
	release := sync.OnceFunc(func() { close(answered) })
	defer release()
	go func() {
		asked <- a.ask(ctx, container.AskAttach, func(_ container.Action, done func(error)) {
			turn <- a.view.Load()
			if at, ok := <-answered; ok {
				a.join(at)
			}
			done(nil)
		})
	}()
	var v *view
	select {
	case err := <-asked:
		return err
	case v = <-turn:
	}
	raw := v.req.Config.Tty
	if !raw {
		keys = nil // without a terminal every byte is data
	}
	c, err := o.Hijack(raw)
	if err != nil {
		return err
	}
	joined := attachment{client: c, attach: proto.Attach{
		Stdin: o.Stdin && v.req.Config.OpenStdin, Stdout: o.Stdout, Stderr: o.Stderr,
		Raw: raw, DetachKeys: keys, Pending: c.Pending,
	}}
	if o.Stream && !o.Logs {
		answered <- joined
		return <-asked
	}
	release() // the loop must not wait for a client that reads the log slowly
	if o.Logs {
		if err := e.replay(ctx, v, o, raw, c.File); err != nil && ctx.Err() == nil {
			// A client that has gone needs no message.
			_, _ = c.File.Write(framed(fmt.Appendf(nil, "Error grabbing logs: %v\r\n", err), true, raw))
		}
	}
	if !o.Stream {
		a.emit("attach", nil)
		return c.File.Close()
	}
	if !a.post(func() { a.join(joined) }) {
		return c.File.Close()
	}
	return nil
}

// join hands a client to the shim, or stores it until the start, in the loop.
func (a *actor) join(at attachment) {
	switch {
	case a.phase.Step(container.AskJoin, a.facts()).Do == container.Wait:
		a.parked = append(a.parked, func() { a.join(at) })
		return
	case a.shim == nil && (a.phase.State == container.Created || a.phase.State == container.Exited):
		a.clients = append(a.clients, at)
	case a.shim == nil:
		at.client.File.Close()
		return
	default:
		shim := a.shim
		go func() {
			err := a.callShim(context.Background(), shim, func(s Shim) error {
				return s.Attach(context.Background(), at.attach, at.client.File)
			})
			if err != nil {
				a.log.Warn("attach failed", "error", err)
			}
			at.client.File.Close()
		}()
	}
	a.emit("attach", nil)
}

// replay writes the existing content of the log to a client.
func (e *Engine) replay(ctx context.Context, v *view, o AttachOptions, raw bool, to *os.File) error {
	r, err := openLog(ctx, e.store, v, reader.Options{Tail: -1, Stdout: o.Stdout, Stderr: o.Stderr})
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		line, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := to.Write(framed(line.Line, line.Source == "stderr", raw)); err != nil {
			return err
		}
	}
}

// framed returns p in a frame of Docker's streams, or as it is if the stream is raw.
// The frame's head is the stream, three zero bytes and the big-endian length.
func framed(p []byte, stderr, raw bool) []byte {
	if raw {
		return p
	}
	head := [8]byte{0: 1}
	if stderr {
		head[0] = 2
	}
	binary.BigEndian.PutUint32(head[4:], uint32(len(p)))
	return append(head[:], p...)
}

// detachKeys parses the client's key sequence. An empty one means ctrl-p,ctrl-q, as
// in Docker.
func detachKeys(keys string) ([]byte, error) {
	if keys == "" {
		return []byte{16, 17}, nil
	}
	b, err := term.ToBytes(keys)
	if err != nil {
		return nil, errs.Invalid("Invalid detach keys (%s) provided: %v", keys, err)
	}
	return b, nil
}

// ContainerResize sets the size of a container's terminal, in characters.
func (e *Engine) ContainerResize(ctx context.Context, ref string, height, width uint) error {
	a, err := e.find(ctx, ref)
	if err != nil {
		return err
	}
	return a.withShim(ctx, "is not running", func(s Shim) error {
		// As in Docker, a container without a terminal accepts a size and journals the
		// event.
		if a.view.Load().req.Config.Tty {
			if err := s.Resize(ctx, height, width); err != nil {
				return err
			}
		}
		a.emit("resize", map[string]string{"height": fmt.Sprint(height), "width": fmt.Sprint(width)})
		return nil
	})
}

// withShim calls fn with the container's shim, outside the loop. Without a shim it
// returns a conflict: why continues a sentence that begins with the container.
func (a *actor) withShim(ctx context.Context, why string, fn func(Shim) error) error {
	got := make(chan Shim, 1)
	var look func()
	look = func() {
		if a.phase.Step(container.AskShim, a.facts()).Do == container.Wait {
			a.parked = append(a.parked, look)
			return
		}
		got <- a.shim
	}
	if !a.post(look) {
		return errs.NotFound("No such container: %s", a.id)
	}
	select {
	case s := <-got:
		if s == nil {
			return errs.Conflict("container %s %s", a.id, why)
		}
		return a.callShim(ctx, s, fn)
	case <-ctx.Done():
		return ctx.Err()
	case <-a.quit:
		return errs.NotFound("No such container: %s", a.id)
	}
}

// ContainerLogs opens a container's log.
func (e *Engine) ContainerLogs(ctx context.Context, ref string, o LogsOptions) (LogReader, bool, error) {
	a, err := e.index.find(ref)
	if err != nil {
		return nil, false, err
	}
	if !o.Stdout && !o.Stderr {
		return nil, false, errs.Invalid("must specify at least one of 'stdout' or 'stderr'")
	}
	v := a.view.Load()
	ro := reader.Options{Since: o.Since, Until: o.Until, Tail: o.Tail, Stdout: o.Stdout, Stderr: o.Stderr}
	if o.Follow && v.state.Alive() {
		ro.Follow = true
		ro.Done = a.ends()
	}
	if !o.Until.IsZero() && o.Until.Before(time.Now()) {
		ro.Follow = false
	}
	r, err := openLog(ctx, e.store, v, ro)
	if err != nil {
		return nil, false, err
	}
	return r, v.req.Config.Tty, nil
}

// ends returns a channel that is closed when the container has ended and its shim
// does not restart it, or when it is removed.
func (a *actor) ends() <-chan struct{} {
	ch := make(chan struct{})
	var look func()
	look = func() {
		if a.phase.State.Alive() {
			a.parked = append(a.parked, look)
			return
		}
		close(ch)
	}
	if !a.post(look) {
		close(ch)
	}
	return ch
}
