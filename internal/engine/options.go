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
	Timeout *int   // seconds; -1 waits without end; nil is the container's own
}

// RemoveOptions are the arguments of DELETE /containers/{id}.
type RemoveOptions struct {
	Force   bool
	Volumes bool // anonymous volumes too
	Link    bool
}

// AttachOptions are the arguments of POST /containers/{id}/attach.
type AttachOptions struct {
	Stdin, Stdout, Stderr bool
	Stream                bool // follow what comes
	Logs                  bool // replay what was
	DetachKeys            string
	// Hijack is called once the container is known to take the client. It
	// writes the response's head; raw says that the bytes will be those of a
	// terminal, not Docker's multiplexed frames.
	Hijack func(raw bool) (*Client, error)
}

// Client is a client's connection without its HTTP: a socket that can be
// given to another process.
type Client struct {
	// File is owned by who gets it, and is to be closed after the hand-over.
	File *os.File
	// Pending is what the client had sent and the HTTP server had read.
	Pending []byte
}

// LogsOptions are the arguments of GET /containers/{id}/logs.
type LogsOptions struct {
	Stdout, Stderr bool
	Follow         bool
	Since, Until   time.Time // zero is no bound
	Tail           int       // lines; -1 is all
}

// FollowOptions are LogsOptions of a client whose connection can be given to
// another process.
type FollowOptions struct {
	LogsOptions
	Timestamps, Details bool
	// Hijack is called once the log is open. It gives the connection and the
	// response's head, not yet written, of a body that ends with the connection.
	Hijack func(raw bool) (*Client, []byte, error)
}

// LogLine is one line (or a part of a line longer than 16 KiB) of a log.
type LogLine = format.Line

// LogReader reads a container's log. Next returns io.EOF at its end, or the
// context's error.
type LogReader interface {
	Next() (LogLine, error)
	io.Closer
}

// ExecStartOptions are the arguments of POST /exec/{id}/start.
type ExecStartOptions struct {
	Detach      bool
	Tty         bool
	ConsoleSize *[2]uint // rows, columns
	Hijack      func(raw bool) (*Client, error)
}

// EventsOptions are the arguments of GET /events.
type EventsOptions struct {
	Since, Until time.Time // zero is no bound
	Filters      filter.Args
}
