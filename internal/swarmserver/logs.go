// SPDX-License-Identifier: Apache-2.0

package swarmserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	gogotypes "github.com/gogo/protobuf/types"
	"github.com/moby/moby/api/types"
	"github.com/moby/swarmkit/v2/api"

	"holdfast/internal/api/wire"
	"holdfast/internal/errs"
)

func (s *onManagers) serviceLogs(r *wire.Request, w http.ResponseWriter) (any, error) {
	return s.serveLogs(r, w, func(ctx context.Context, c api.ControlClient) (*api.LogSelector, *api.ContainerSpec, error) {
		service, err := findService(ctx, c, r.Name(), false)
		if err != nil {
			return nil, nil, err
		}
		return &api.LogSelector{ServiceIDs: []string{service.ID}}, service.Spec.Task.GetContainer(), nil
	})
}

func (s *onManagers) taskLogs(r *wire.Request, w http.ResponseWriter) (any, error) {
	return s.serveLogs(r, w, func(ctx context.Context, c api.ControlClient) (*api.LogSelector, *api.ContainerSpec, error) {
		t, err := findTask(ctx, c, r.Name())
		if err != nil {
			return nil, nil, err
		}
		return &api.LogSelector{TaskIDs: []string{t.ID}}, t.Spec.GetContainer(), nil
	})
}

type selection func(context.Context, api.ControlClient) (*api.LogSelector, *api.ContainerSpec, error)

// serveLogs streams the logs of tasks, from all nodes, in the frames of the Engine API.
func (s *onManagers) serveLogs(r *wire.Request, w http.ResponseWriter, choose selection) (any, error) {
	options, err := logOptions(r)
	if err != nil {
		return nil, err
	}
	v, in := s.view()
	if v.control == nil {
		return nil, noManager(v, in)
	}
	selector, spec, err := choose(r.Context(), v.control)
	if err != nil {
		return nil, err
	}
	if spec == nil {
		return nil, errs.Invalid("logs only supported on container tasks")
	}
	stream, err := v.logs.SubscribeLogs(r.Context(), &api.SubscribeLogsRequest{Selector: selector, Options: options})
	if err != nil {
		return nil, err
	}
	kind := types.MediaTypeRawStream
	if !spec.TTY && !r.Version.Before(42) {
		kind = types.MediaTypeMultiplexedStream
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(http.StatusOK)
	out := http.NewResponseController(w)
	_ = out.Flush()
	l := logWriter{w: w, raw: spec.TTY, times: r.Bool("timestamps"), details: r.Bool("details")}
	for {
		m, err := stream.Recv()
		if err != nil {
			if !errors.Is(err, io.EOF) && r.Context().Err() == nil {
				_ = l.write(api.LogStreamStderr, []byte("error from daemon in stream: Error grabbing logs: "+err.Error()+"\n"))
			}
			return streamed, nil
		}
		for _, line := range m.Messages {
			if err := l.message(line); err != nil {
				return streamed, nil // the client has left
			}
		}
		_ = out.Flush()
	}
}

func logOptions(r *wire.Request) (*api.LogSubscriptionOptions, error) {
	o := &api.LogSubscriptionOptions{Follow: r.Bool("follow")}
	if r.Bool("stdout") {
		o.Streams = append(o.Streams, api.LogStreamStdout)
	}
	if r.Bool("stderr") {
		o.Streams = append(o.Streams, api.LogStreamStderr)
	}
	if len(o.Streams) == 0 {
		return nil, errs.Invalid("must specify at least one of 'stdout' or 'stderr'")
	}
	if tail := r.Query.Get("tail"); tail != "" && tail != "all" {
		n, err := strconv.Atoi(tail)
		if err != nil || n < 0 {
			return nil, errs.Invalid("tail value must be a positive integer or \"all\"")
		}
		o.Tail = -int64(n) - 1 // swarmkit counts from the end, and 0 is all
	}
	since, err := r.Time("since")
	if err != nil {
		return nil, err
	}
	if !since.IsZero() {
		if o.Since, err = gogotypes.TimestampProto(since); err != nil {
			return nil, errs.Invalid("invalid value for since: %s", err)
		}
	}
	return o, nil
}

// logWriter writes lines as the Engine API does.
type logWriter struct {
	w                   io.Writer
	raw, times, details bool
}

func (l *logWriter) message(m api.LogMessage) error {
	var b strings.Builder
	if l.times {
		at, _ := gogotypes.TimestampFromProto(m.Timestamp)
		b.WriteString(at.UTC().Format("2006-01-02T15:04:05.000000000Z07:00") + " ")
	}
	if l.details {
		var all []string
		for _, a := range m.Attrs {
			if !strings.HasPrefix(a.Key, contextPrefix) {
				all = append(all, url.QueryEscape(a.Key)+"="+url.QueryEscape(a.Value))
			}
		}
		// Clients find the task of each line by these.
		all = append(all, contextPrefix+"node.id="+m.Context.NodeID, contextPrefix+"service.id="+m.Context.ServiceID, contextPrefix+"task.id="+m.Context.TaskID)
		b.WriteString(strings.Join(all, ",") + " ")
	}
	b.Write(m.Data)
	return l.write(m.Stream, []byte(b.String()))
}

// contextPrefix begins the details that tell a line's task.
const contextPrefix = "com.docker.swarm."

// writePatience bounds the writing of one line to a client that does not read.
const writePatience = 10 * time.Minute

func (l *logWriter) write(stream api.LogStream, line []byte) error {
	if rw, ok := l.w.(http.ResponseWriter); ok {
		_ = http.NewResponseController(rw).SetWriteDeadline(time.Now().Add(writePatience))
	}
	if !l.raw {
		head := [8]byte{0: 1}
		if stream == api.LogStreamStderr {
			head[0] = 2
		}
		binary.BigEndian.PutUint32(head[4:], uint32(len(line)))
		line = append(head[:], line...)
	}
	if _, err := l.w.Write(line); err != nil {
		return fmt.Errorf("write the log: %w", err)
	}
	return nil
}
