package wire

import (
	"io"
	"net/http"
)

// Tar answers with an archive that fn writes to what begin gives, once it is
// sure of it; an error before that still has its status. An archive that breaks
// off later breaks the connection: half of one must not look whole.
func Tar(w http.ResponseWriter, r *Request, fn func(begin func() io.Writer) error) error {
	begun := false
	err := fn(func() io.Writer {
		begun = true
		w.Header().Set("Content-Type", "application/x-tar")
		return w
	})
	if err != nil && begun {
		if !Gone(r.Request, err) && r.Context().Err() == nil {
			r.Log.Error("archive broken off", "path", r.URL.Path, "error", err)
		}
		panic(http.ErrAbortHandler)
	}
	return err
}
