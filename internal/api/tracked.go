// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bufio"
	"net"
	"net/http"
)

// trackedWriter records whether an answer has begun. It passes Flush and Hijack
// on through Unwrap, and as http.Hijacker for libraries that check for it.
type trackedWriter struct {
	http.ResponseWriter
	status   int // 0 until the head is sent
	hijacked bool
}

func (w *trackedWriter) taken() bool { return w.status != 0 || w.hijacked }

func (w *trackedWriter) WriteHeader(code int) {
	// Statuses below 200, except 101, are informational and precede the answer.
	if w.status == 0 && (code >= 200 || code == http.StatusSwitchingProtocols) {
		w.status = code
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *trackedWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// FlushError sends buffered data, and the head with it.
func (w *trackedWriter) FlushError() error {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

func (w *trackedWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.hijacked = true
	}
	return conn, rw, err
}

func (w *trackedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
