// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"github.com/moby/moby/api/types/common"

	"holdfast/internal/beside"
)

// MoveTo passes the request as it is to another process, by give, which gets the
// headers of every answer and does not close the client's socket.
func MoveTo(w http.ResponseWriter, r *Request, give func(context.Context, beside.Client, map[string][]string) error) error {
	headers := w.Header().Clone()
	client, err := NewHijacker(w, r).Move()
	if err != nil {
		return err
	}
	defer client.File.Close()
	// From here on the client belongs to the other process, whatever becomes of this
	// request.
	if err = give(context.WithoutCancel(r.Context()), *client, headers); err != nil {
		RefuseMoved(client, err)
	}
	return err
}

// Move takes over the connection of a request that another process will answer. It
// must be called before anything is read of the request's body. Pending of the
// client begins with the request's head, so that the other process can read the
// whole request.
func (h *Hijacker) Move() (*beside.Client, error) {
	conn, rw, err := http.NewResponseController(h.w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("take over the client's connection: %w", err)
	}
	h.done = true
	pending, err := buffered(rw.Reader)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("read what the client has sent: %w", err)
	}
	f, err := socketOf(conn, h.r)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &beside.Client{File: f, Pending: append(headOf(h.r.Request), pending...)}, nil
}

// headOf writes the head of a request as the client may have sent it.
func headOf(r *http.Request) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", r.Method, r.RequestURI, r.Host)
	_ = r.Header.WriteSubset(&b, map[string]bool{"Host": true, "Content-Length": true, "Transfer-Encoding": true})
	switch {
	case len(r.TransferEncoding) > 0:
		b.WriteString("Transfer-Encoding: chunked\r\n")
	case r.ContentLength >= 0:
		b.WriteString("Content-Length: " + strconv.FormatInt(r.ContentLength, 10) + "\r\n")
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

// RefuseMoved answers a client that was taken over and whom no other process takes.
func RefuseMoved(c *beside.Client, err error) {
	text, merr := json.Marshal(common.ErrorResponse{Message: err.Error()})
	if merr != nil {
		return
	}
	fmt.Fprintf(c.File, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s",
		Status(err), http.StatusText(Status(err)), len(text), text)
}
