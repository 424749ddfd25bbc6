// SPDX-License-Identifier: Apache-2.0

package task

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	gogotypes "github.com/gogo/protobuf/types"
	"github.com/moby/moby/client"
	"github.com/moby/swarmkit/v2/agent/exec"
	"github.com/moby/swarmkit/v2/api"

	"holdfast/internal/swarmserver/local"
)

// Logs publishes the container's log. With Follow it waits for the container, and goes
// on with the next daemon if the present one ends.
func (c *controller) Logs(ctx context.Context, publisher exec.LogPublisher, o api.LogSubscriptionOptions) error {
	found, err := c.container()
	for o.Follow && errdefs.IsNotFound(err) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.closed:
			return exec.ErrControllerClosed
		case <-time.After(pause):
		}
		found, err = c.container()
	}
	if err != nil {
		return err
	}
	l := logging{c: c, publisher: publisher, options: o}
	return l.run(ctx, found)
}

// logging is one reading of a container's log.
type logging struct {
	c         *controller
	publisher exec.LogPublisher
	options   api.LogSubscriptionOptions
	last      time.Time // of the last line
}

func (l *logging) run(ctx context.Context, found *local.Container) error {
	for {
		err := l.read(ctx, found)
		if err == nil || ctx.Err() != nil || !away(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// request are the options of the daemon's log. After an interruption the log continues
// after the last line.
func (l *logging) request() client.ContainerLogsOptions {
	o := client.ContainerLogsOptions{Follow: l.options.Follow, Timestamps: true, Tail: "all", ShowStdout: len(l.options.Streams) == 0, ShowStderr: len(l.options.Streams) == 0}
	for _, s := range l.options.Streams {
		o.ShowStdout = o.ShowStdout || s == api.LogStreamStdout
		o.ShowStderr = o.ShowStderr || s == api.LogStreamStderr
	}
	since := time.Time{}
	if s := l.options.Since; s != nil {
		since, _ = gogotypes.TimestampFromProto(s)
	}
	switch {
	case !l.last.IsZero():
		since = l.last.Add(1)
	case l.options.Tail < 0: // -1 is none, -n-1 are n lines
		o.Tail = strconv.FormatInt(-l.options.Tail-1, 10)
	}
	if !since.IsZero() {
		o.Since = fmt.Sprintf("%d.%09d", since.Unix(), since.Nanosecond())
	}
	return o
}

func (l *logging) read(ctx context.Context, found *local.Container) error {
	r, err := l.c.x.engine.logs(ctx, found.ID, l.request())
	if err != nil {
		return err
	}
	defer r.Close()
	in := bufio.NewReader(r)
	if l.c.task.Spec.GetContainer().TTY {
		for {
			line, err := in.ReadBytes('\n')
			if len(line) > 0 {
				if err := l.publish(ctx, api.LogStreamStdout, line); err != nil {
					return err
				}
			}
			if err != nil {
				return end(err)
			}
		}
	}
	var head [8]byte
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return end(err)
		}
		line := make([]byte, binary.BigEndian.Uint32(head[4:]))
		if _, err := io.ReadFull(in, line); err != nil {
			return err
		}
		stream := api.LogStreamStdout
		if head[0] == 2 {
			stream = api.LogStreamStderr
		}
		if err := l.publish(ctx, stream, line); err != nil {
			return err
		}
	}
}

// end is nil at the end of a log.
func end(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// publish sends one line, which begins with its time.
func (l *logging) publish(ctx context.Context, stream api.LogStream, line []byte) error {
	stamp, text, found := bytes.Cut(line, []byte(" "))
	at, err := time.Parse(time.RFC3339Nano, string(stamp))
	if !found || err != nil {
		at, text = time.Now(), line
	} else {
		l.last = at
	}
	proto, err := gogotypes.TimestampProto(at)
	if err != nil {
		return err
	}
	t := l.c.task
	return l.publisher.Publish(ctx, api.LogMessage{
		Context:   api.LogContext{NodeID: t.NodeID, ServiceID: t.ServiceID, TaskID: t.ID},
		Timestamp: proto, Stream: stream, Data: text,
	})
}
