// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"io"
	"net/http"
	"os"
	"time"
)

// Tar answers with an archive. fn calls begin when it is sure that it can write
// one, and writes the archive to the returned writer. An error before that
// still sets the status. An error later breaks the connection, because a
// partial archive must not look complete.
func Tar(w http.ResponseWriter, r *Request, fn func(begin func() io.Writer) error) error {
	begun := false
	err := fn(func() io.Writer {
		begun = true
		w.Header().Set("Content-Type", "application/x-tar")
		return heldWriter{w, http.NewResponseController(w)}
	})
	if err != nil && begun {
		if !Gone(r.Request, err) && r.Context().Err() == nil {
			r.Log.Error("archive ended early", "path", r.URL.Path, "error", err)
		}
		panic(http.ErrAbortHandler)
	}
	if rc := http.NewResponseController(w); begun && rc.Flush() == nil {
		_ = rc.SetWriteDeadline(time.Time{}) // the connection may be reused
	}
	return err
}

// heldPatience is how long a client may read nothing, or send nothing, while an
// archive of a container's files is open. Meanwhile the container can be
// neither started nor removed.
const heldPatience = 2 * time.Minute

// heldWriter writes to a client that must keep reading.
type heldWriter struct {
	w  io.Writer
	rc *http.ResponseController
}

func (h heldWriter) Write(p []byte) (int, error) {
	_ = h.rc.SetWriteDeadline(time.Now().Add(heldPatience))
	return h.w.Write(p)
}

// HeldBody is the body of r, whose client must keep sending: a read fails after
// heldPatience without data.
func HeldBody(w http.ResponseWriter, r *Request) io.Reader {
	return heldReader{r.Body, http.NewResponseController(w)}
}

type heldReader struct {
	r  io.Reader
	rc *http.ResponseController
}

func (h heldReader) Read(p []byte) (int, error) {
	_ = h.rc.SetReadDeadline(time.Now().Add(heldPatience))
	n, err := h.r.Read(p)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = Invalid("no data of the request's body has arrived for %s", heldPatience)
	case err != nil:
		_ = h.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}
