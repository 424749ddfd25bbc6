// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/json"
	"net/http"
	"sync"

	"github.com/moby/moby/api/types/jsonstream"
)

// Stream answers with a sequence of JSON values, each flushed at once. The head
// is sent with the first value, or by Open, so that an earlier error still sets
// the status. It may be used by several goroutines.
type Stream struct {
	w      http.ResponseWriter
	rc     *http.ResponseController
	prefix string

	mu   sync.Mutex // guards all below, and the writes
	open bool
	enc  *json.Encoder
	err  error
}

// NewStream makes a stream with a content type. application/json-seq puts a
// record separator before each value (RFC 7464).
func NewStream(w http.ResponseWriter, contentType string) *Stream {
	w.Header().Set("Content-Type", contentType)
	s := &Stream{w: w, rc: http.NewResponseController(w), enc: json.NewEncoder(w)}
	s.enc.SetEscapeHTML(false)
	if contentType == "application/json-seq" {
		s.prefix = "\x1e"
	}
	return s
}

// Open sends the head.
func (s *Stream) Open() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begin()
}

func (s *Stream) begin() error {
	if s.open || s.err != nil {
		return s.err
	}
	s.open = true
	s.w.WriteHeader(http.StatusOK)
	s.err = s.rc.Flush()
	return s.err
}

// Opened reports whether the head has been sent.
func (s *Stream) Opened() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

// Send writes one value. An error means that the client has left; after it,
// Send writes nothing more and returns the same error.
func (s *Stream) Send(v any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if !s.open {
		s.open = true
		s.w.WriteHeader(http.StatusOK)
	}
	if s.prefix != "" {
		if _, s.err = s.w.Write([]byte(s.prefix)); s.err != nil {
			return s.err
		}
	}
	if s.err = s.enc.Encode(v); s.err != nil {
		return s.err
	}
	s.err = s.rc.Flush()
	return s.err
}

// Progress is a line of a progress stream, with the two fields that clients
// read before there were structured ones.
type Progress struct {
	jsonstream.Message
	ErrorMessage string `json:"error,omitempty"`
}

// Message sends a line of progress.
func (s *Stream) Message(m jsonstream.Message) {
	line := Progress{Message: m}
	if m.Error != nil {
		line.ErrorMessage = m.Error.Message
	}
	// The stream keeps its error. The operation continues to its end.
	_ = s.Send(line)
}

// Finish ends a progress stream. If the head is not sent yet it returns the
// error, which then sets the status. Otherwise it sends the error as the last
// line.
func (s *Stream) Finish(err error) error {
	if err == nil {
		return s.Open()
	}
	if !s.Opened() {
		s.w.Header().Del("Content-Type")
		return err
	}
	// No code is set: for 401, clients would print their own message instead.
	s.Message(jsonstream.Message{Error: &jsonstream.Error{Message: err.Error()}})
	return nil
}
