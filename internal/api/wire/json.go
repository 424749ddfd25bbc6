// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// WriteJSON answers with v. It encodes v before it sends the head, so that a
// value that can't be encoded gives an error and not a partial answer.
func WriteJSON(w http.ResponseWriter, code int, v any) error {
	buf := buffers.Get().(*bytes.Buffer)
	defer func() {
		if buf.Cap() <= answerPart {
			buf.Reset()
			buffers.Put(buf)
		}
	}()
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	return WriteEncoded(w, code, buf.Bytes())
}

// buffers are those that answers were encoded into. A daemon's heap is small, so
// that growing a new one for each answer would be most of what there is to collect.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// WriteEncoded answers with JSON that is already encoded.
func WriteEncoded(w http.ResponseWriter, code int, text []byte) error {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(code)
	rc := http.NewResponseController(w)
	for len(text) > 0 {
		n := min(len(text), answerPart)
		_ = rc.SetWriteDeadline(time.Now().Add(answerPatience))
		// The client has left or does not read, so no one can receive the
		// error.
		if _, err := w.Write(text[:n]); err != nil {
			return nil
		}
		text = text[n:]
	}
	if rc.Flush() == nil {
		_ = rc.SetWriteDeadline(time.Time{})
	}
	return nil
}

// A client that never reads its answer would otherwise keep it in the daemon's
// memory for ever. answerPatience is the time allowed for each answerPart
// bytes.
const (
	answerPatience = 10 * time.Minute
	answerPart     = 256 << 10
)

// NonNil returns a list that encodes as [] and not as null.
func NonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
