// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"io"
	"net/http"
	"time"
)

// Early answers a request with an error while its body may still be arriving.
// If the connection were closed while the client writes, the client would see a
// broken pipe instead of the answer. So the body is read until the client has
// read the answer and stops.
func Early(w http.ResponseWriter, r *Request, err error) error {
	rc := http.NewResponseController(w)
	if Gone(r.Request, err) || rc.EnableFullDuplex() != nil {
		return err
	}
	if Status(err) == http.StatusInternalServerError {
		r.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	WriteError(w, err)
	if rc.Flush() == nil {
		_, _ = io.Copy(io.Discard, r.Body) // until the body ends or the client leaves
	}
	return nil
}

// Bounds on an unwanted body that is read so that the answer arrives: in bytes
// and in time.
const (
	unwantedBytes = 2 * maxBody
	unwantedTime  = 10 * time.Second
)

// Refuse answers with an error, and then reads what the client is still
// sending, within bounds. That is needed only for data that net/http would not
// read itself.
func Refuse(w http.ResponseWriter, r *http.Request, err error) {
	const leaves = 256 << 10
	rc := http.NewResponseController(w)
	if r.ContentLength >= 0 && r.ContentLength <= leaves || rc.EnableFullDuplex() != nil {
		WriteError(w, err)
		return
	}
	w.Header().Set("Connection", "close")
	WriteError(w, err)
	if rc.Flush() == nil && rc.SetReadDeadline(time.Now().Add(unwantedTime)) == nil {
		_, _ = io.CopyN(io.Discard, r.Body, unwantedBytes)
	}
}
