// SPDX-License-Identifier: Apache-2.0

// Package beside is how the daemon works together with a process of its own that it
// starts, and that outlives it: holdfast-build and holdfast-swarm. A Process is the
// daemon's side. It starts the process, finds the one that an earlier daemon has
// started, and passes clients to it, each with the part of its request that the
// daemon has read. Run is the process's side, and Life decides when it ends.
//
//	<dir>/lock          held by the process as long as it lives
//	<dir>/control.sock  the process takes over clients here
//	<dir>/<log>         what the process has to say
//
// The package knows nothing of what the process does.
package beside

import (
	"os"
	"path/filepath"
)

// LockPath and ControlPath are the paths that both sides use.
func LockPath(dir string) string    { return filepath.Join(dir, "lock") }
func ControlPath(dir string) string { return filepath.Join(dir, "control.sock") }

// Client is a client's connection after HTTP has ended on it: a socket that can be
// passed to another process.
type Client struct {
	// File belongs to the receiver of the Client, which closes it after the
	// handover.
	File *os.File
	// Pending contains bytes of the client that the HTTP server has read already.
	Pending []byte
}

// Message is what the daemon sends over the control socket. By default it passes a
// client, whose socket comes with it.
type Message struct {
	// Headers are those that every answer of the API has.
	Headers map[string][]string `json:"headers,omitempty"`
	// Length is the number of bytes that follow the message: the head of the
	// request, and what the client has sent after it so far. They are sent in
	// messages of at most MaxMessage bytes.
	Length int `json:"length"`
	// Stop, if not empty, ends the process instead: StopIdle if it has nothing to do,
	// StopAll in any case.
	Stop string `json:"stop,omitempty"`
	// Watch keeps the connection open until the process has ended, instead.
	Watch bool `json:"watch,omitempty"`
}

// The values of Message.Stop.
const (
	StopIdle = "idle"
	StopAll  = "all"
)

// Answer is the process's answer to a Message. Refused is empty if it has taken the
// client over.
type Answer struct {
	Refused string `json:"refused,omitempty"`
}

// MaxMessage bounds a message on the control socket, in bytes.
const MaxMessage = 64 << 10

// ReadyFD is the descriptor of the pipe to the daemon that started the process. The
// process writes ReadyWord to it when clients can be passed, or the reason why not,
// and closes it.
const (
	ReadyFD   = 3
	ReadyWord = "+"
)
