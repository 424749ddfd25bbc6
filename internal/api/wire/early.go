package wire

import (
	"io"
	"net/http"
)

// Early answers a request with an error while its body may still be coming. A
// connection that is closed under a client that writes shows it a broken pipe in
// place of the answer, so what comes is taken until the client has read that and
// stops.
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
		_, _ = io.Copy(io.Discard, r.Body) // its end, or the client's
	}
	return nil
}
