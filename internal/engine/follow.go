package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/errdefs"

	"holdfast/internal/logs/format"
	"holdfast/internal/logs/reader"
	"holdfast/internal/shim/proto"
)

// follows is a Shim that follows the log for clients; those of earlier releases
// don't.
type follows interface {
	Follow(ctx context.Context, p proto.Follow, client, log *os.File) error
}

// ContainerFollow follows a running container's log for a client whose
// connection is a socket. The daemon sends what rotation has put aside, and
// gives the client to the shim when it comes to the active file, with the place
// in it. It reports false, with nothing done, where there is nothing to follow.
func (e *Engine) ContainerFollow(ctx context.Context, ref string, o FollowOptions) (bool, error) {
	a, err := e.index.find(ref)
	if err != nil {
		return false, err
	}
	v := a.view.Load()
	if !o.Follow || !v.state.Alive() || v.shim == nil || !o.Until.IsZero() && o.Until.Before(time.Now()) {
		return false, nil
	}
	if _, ok := v.shim.(follows); !ok {
		return false, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	log, err := openLog(ctx, e.store, v, reader.Options{Since: o.Since, Until: o.Until, Tail: o.Tail,
		Stdout: o.Stdout, Stderr: o.Stderr, Follow: true, Done: a.ends()})
	if err != nil {
		return false, err
	}
	defer log.Close()
	raw := v.req.Config.Tty
	c, head, err := o.Hijack(raw)
	if err != nil {
		return false, err
	}
	defer c.File.Close()
	go func() {
		defer cancel()
		buf := make([]byte, 64)
		for {
			if n, err := c.File.Read(buf); n == 0 || err != nil {
				return
			}
		}
	}()
	f := following{actor: a, o: o, client: c.File, head: head, log: log, enc: format.Encoder{Raw: raw, Timestamps: o.Timestamps, Details: o.Details}}
	return true, f.run(ctx)
}

// following is such a client while it is the daemon's.
type following struct {
	actor  *actor
	o      FollowOptions
	client *os.File
	head   []byte // not yet written
	log    *reader.Reader
	enc    format.Encoder
	tried  *os.File // the file that the shim did not take
}

// run serves the client until the shim has it, or to the end.
func (f *following) run(ctx context.Context) error {
	var out []byte
	for {
		if file, offset, ok := f.log.Active(); ok && file != f.tried {
			given, err := f.give(ctx, file, offset)
			if given || err != nil {
				return err
			}
			f.tried = file
		}
		if f.head != nil {
			if _, err := f.client.Write(f.head); err != nil {
				return nil // the client has gone
			}
			f.head = nil
		}
		line, err := f.log.Next()
		switch {
		case err == nil:
		case errors.Is(err, io.EOF), ctx.Err() != nil:
			return nil
		default:
			out = f.enc.Append(out[:0], format.Line{Time: time.Now(), Source: "stderr", Line: fmt.Appendf(nil, "Error grabbing logs: %v\n", err)})
			_, _ = f.client.Write(out)
			return fmt.Errorf("read the log: %w", err)
		}
		out = f.enc.Append(out[:0], line)
		if _, err := f.client.Write(out); err != nil {
			return nil // the client has gone
		}
	}
}

// give makes the client the shim's. False: it is still the daemon's.
func (f *following) give(ctx context.Context, file *os.File, offset int64) (bool, error) {
	shim, ok := f.actor.view.Load().shim.(follows)
	if !ok {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, giveTimeout)
	defer cancel()
	err := shim.Follow(ctx, proto.Follow{
		Offset: offset, Head: f.head, Stdout: f.o.Stdout, Stderr: f.o.Stderr, Raw: f.enc.Raw, Timestamps: f.o.Timestamps, Details: f.o.Details,
		Since: f.o.Since, Until: f.o.Until, Within: f.enc.Within,
	}, f.client, file)
	switch {
	case err == nil:
		return true, nil
	case errdefs.IsConflict(err), errdefs.IsNotImplemented(err), errdefs.IsUnavailable(err):
		return false, nil
	}
	// It may have the client, and then nobody else may write to it.
	return false, err
}
