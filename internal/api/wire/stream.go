package wire

import (
	"encoding/json"
	"net/http"
	"sync"

	"github.com/moby/moby/api/types/jsonstream"
)

// Stream answers with a row of JSON values, each flushed as it comes. The head
// is sent with the first value, or by Open, so that an error before it still
// has its status. It may be used from several goroutines.
type Stream struct {
	w      http.ResponseWriter
	rc     *http.ResponseController
	prefix string

	mu   sync.Mutex // guards all below, and the writes
	open bool
	enc  *json.Encoder
	err  error
}

// NewStream makes a stream of the given content type; application/json-seq
// puts a record separator before each value (RFC 7464).
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

// Send writes one value. After an error, which means that the client has left,
// it writes nothing more and returns the same one.
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
// older than the structured ones read.
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
	// The stream remembers its error; the work goes on to its end.
	_ = s.Send(line)
}

// Finish ends a progress stream. If the head isn't sent yet the error is
// returned, to be answered with its status; else it becomes the last line.
func (s *Stream) Finish(err error) error {
	if err == nil {
		return s.Open()
	}
	if !s.Opened() {
		s.w.Header().Del("Content-Type")
		return err
	}
	// Without a code: for 401, clients print words of their own in place of the
	// message.
	s.Message(jsonstream.Message{Error: &jsonstream.Error{Message: err.Error()}})
	return nil
}
