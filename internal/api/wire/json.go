package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
)

// WriteJSON answers with v. It is encoded before the head is sent, so that a
// value that can't be encoded is an error and not half an answer.
func WriteJSON(w http.ResponseWriter, code int, v any) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	return WriteEncoded(w, code, buf.Bytes())
}

// WriteEncoded answers with JSON that is encoded.
func WriteEncoded(w http.ResponseWriter, code int, text []byte) error {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(code)
	// An error here means that the client has left; there's nobody to tell.
	_, _ = w.Write(text)
	return nil
}

// NonNil is a list that encodes as [] and not null.
func NonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
