// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"io"
	"os"
	"time"

	"github.com/moby/moby/api/types/container"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/filter"
	"holdfast/internal/logs/format"
)

// CreateOptions are the arguments of POST /containers/create.
type CreateOptions struct {
	Name     string
	Platform *ocispec.Platform // nil is the host's
	Request  container.CreateRequest
	// Task is the ID of the swarm task that the container is for, or empty.
	Task string
}

// ListOptions are the arguments of GET /containers/json.
type ListOptions struct {
	All     bool
	Limit   int // 0 is no limit; a limit implies All
	Size    bool
	Filters filter.Args
}

// StopOptions are the arguments of stop and restart.
type StopOptions struct {
	Signal  string // empty is the container's own
	Timeout *int   // seconds; -1 means no limit; nil is the container's own
}

// RemoveOptions are the arguments of DELETE /containers/{id}.
type RemoveOptions struct {
	Force   bool
	Volumes bool // also remove anonymous volumes
	Link    bool
}

// AttachOptions are the arguments of POST /containers/{id}/attach.
type AttachOptions struct {
	Stdin, Stdout, Stderr bool
	Stream                bool // send the output from now on
	Logs                  bool // send the existing log first
	DetachKeys            string
	// Hijack is called once it is known that the client can be attached. It writes
	// the response's head. raw means that the streams are those of a terminal, and
	// not Docker's multiplexed frames.
	Hijack func(raw bool) (*Client, error)
}

// Client is a client's connection after HTTP has ended on it: a socket that can be
// passed to another process.
type Client struct {
	// File belongs to the receiver of the Client, which closes it after the
	// handover.
	File *os.File
	// Pending contains bytes of the client that the HTTP server has read already.
	Pending []byte
}

// LogsOptions are the arguments of GET /containers/{id}/logs.
type LogsOptions struct {
	Stdout, Stderr bool
	Follow         bool
	Since, Until   time.Time // zero is no bound
	Tail           int       // number of lines; -1 is all
}

// FollowOptions are LogsOptions for a client whose connection can be passed to another
// process.
type FollowOptions struct {
	LogsOptions
	Timestamps, Details bool
	// Hijack is called once the log is open. It returns the connection and the
	// response's head, which it has not written. The body is chunked, or else ends
	// with the connection.
	Hijack func(raw, chunked bool) (*Client, []byte, error)
}

// LogLine is one line (or a part of a line longer than 16 KiB) of a log.
type LogLine = format.Line

// LogReader reads a container's log. Next returns io.EOF at its end, or the
// context's error. Buffered returns the next line if no read is needed for it.
type LogReader interface {
	Next() (LogLine, error)
	Buffered() (LogLine, bool)
	io.Closer
}

// ExecStartOptions are the arguments of POST /exec/{id}/start.
type ExecStartOptions struct {
	Detach      bool
	Tty         bool     // as in Docker, whether the output is plain, not framed; see proto.ExecStart.Reframe
	ConsoleSize *[2]uint // rows, columns
	Hijack      func(raw bool) (*Client, error)
}

// GiveEventsOptions are EventsOptions for a client whose connection can be passed to
// another process.
type GiveEventsOptions struct {
	EventsOptions
	Legacy   bool // see event.Message.Answer
	Sequence bool // see eventserver.Request
	// Hijack takes the connection over from HTTP. It returns the response's head,
	// which it has not written and which announces a chunked body.
	Hijack func() (*Client, []byte, error)
}

// EventsOptions are the arguments of GET /events.
type EventsOptions struct {
	Since, Until time.Time // zero is no bound
	Filters      filter.Args
}
