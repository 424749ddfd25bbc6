// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"holdfast/internal/logs/format"
	"holdfast/internal/logs/reader"
	"holdfast/internal/shim/proto"
)

// logFollower is implemented by shims that follow the log for clients. Shims of
// earlier releases do not implement it.
type logFollower interface {
	Follow(ctx context.Context, p proto.Follow, client, log *os.File) error
}

// ContainerFollow follows a running container's log for a client whose connection
// is a socket. The daemon sends the rotated files. When it reaches the active file
// it hands the client to the shim, together with the offset in the file. It
// returns false, without an effect, if the caller has to serve the client.
func (e *Engine) ContainerFollow(ctx context.Context, ref string, o FollowOptions) (bool, error) {
	a, err := e.index.find(ref)
	if err != nil {
		return false, err
	}
	v := a.view.Load()
	if !o.Follow || !v.state.Alive() || v.shim == nil || !o.Until.IsZero() && o.Until.Before(time.Now()) {
		return false, nil
	}
	if _, ok := v.shim.(logFollower); !ok {
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
	// With chunks a client can distinguish the end of the log from the end of the
	// process that sends it.
	chunked := v.shim.Hello().Chunks
	c, head, err := o.Hijack(raw, chunked)
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
	f := logClient{actor: a, o: o, client: c.File, head: head, chunked: chunked, log: log, enc: format.Encoder{Raw: raw, Timestamps: o.Timestamps, Details: o.Details}}
	return true, f.run(ctx)
}

// logClient is a client of ContainerFollow until it is handed to the shim.
type logClient struct {
	actor  *actor
	o      FollowOptions
	client *os.File
	head   []byte // of the response; nil once it is written
	log    *reader.Reader
	enc    format.Encoder
	tried  *os.File // the file with which the shim has refused the client
	// chunked: the response's body is chunked. The last chunk is only sent at the
	// end of the log.
	chunked bool
}

// run serves the client until the shim has taken it over, or until the end of the
// log.
func (f *logClient) run(ctx context.Context) error {
	var out []byte
	for {
		if file, offset, ok := f.log.Active(); ok && file != f.tried {
			done, err := f.handOver(ctx, file, offset)
			if done || err != nil {
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
		case errors.Is(err, io.EOF):
			if f.chunked {
				_, _ = f.client.WriteString("0\r\n\r\n")
			}
			return nil
		case ctx.Err() != nil:
			return nil
		default:
			out = f.enc.Append(out[:0], format.Line{Time: time.Now(), Source: "stderr", Line: fmt.Appendf(nil, "Error grabbing logs: %v\n", err)})
			_ = f.write(out)
			return fmt.Errorf("read the log: %w", err)
		}
		out = f.collect(f.enc.Append(out[:0], line))
		if err := f.write(out); err != nil {
			return nil // the client has gone
		}
	}
}

// collectSize is how many bytes of lines are sent at once if no waiting is needed
// for them.
const collectSize = 32 << 10

// collect appends the lines that are read already.
func (f *logClient) collect(out []byte) []byte {
	for len(out) < collectSize {
		line, ok := f.log.Buffered()
		if !ok {
			break
		}
		out = f.enc.Append(out, line)
	}
	return out
}

// write sends a part of the log to the client.
func (f *logClient) write(p []byte) error {
	if f.chunked && len(p) > 0 {
		p = append(append(strconv.AppendInt(nil, int64(len(p)), 16), "\r\n"...), append(p, "\r\n"...)...)
	}
	_, err := f.client.Write(p)
	return err
}

// handOver hands the client to the shim. It returns false if the daemon still has
// to serve the client.
func (f *logClient) handOver(ctx context.Context, file *os.File, offset int64) (bool, error) {
	at := f.actor.view.Load().shim
	shim, ok := at.(logFollower)
	if !ok || f.chunked && !at.Hello().Chunks {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, handOverTimeout)
	defer cancel()
	err := shim.Follow(ctx, proto.Follow{
		Offset: offset, Head: f.head, Chunked: f.chunked, Stdout: f.o.Stdout, Stderr: f.o.Stderr, Raw: f.enc.Raw, Timestamps: f.o.Timestamps, Details: f.o.Details,
		Since: f.o.Since, Until: f.o.Until, Within: f.enc.Within,
	}, f.client, file)
	switch {
	case err == nil:
		return true, nil
	case errdefs.IsConflict(err), errdefs.IsNotImplemented(err), errdefs.IsUnavailable(err):
		return false, nil
	}
	// The shim may have taken the client over, so the daemon must not write to it.
	return false, err
}
