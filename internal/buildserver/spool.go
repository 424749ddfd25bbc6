// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"holdfast/internal/buildserver/classic"
)

// spool is the context of a build that came as the body of a request. It is written
// to a file that has no name, because the Dockerfile in it must be known before the
// build begins.
type spool struct{ f *os.File }

func newSpool(body io.Reader) (*spool, error) {
	f, err := os.CreateTemp("", "holdfast-build-context-")
	if err != nil {
		return nil, err
	}
	s := &spool{f}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := io.Copy(f, body); err != nil {
		return nil, errors.Join(fmt.Errorf("read the build context: %w", err), f.Close())
	}
	return s, nil
}

// Reader reads the context from its beginning.
func (s *spool) Reader() io.ReadCloser {
	return io.NopCloser(io.NewSectionReader(s.f, 0, 1<<62))
}

// context reads the context as BuildKit recognizes it. BuildKit looks at the first
// kilobyte, and does not see an archive if that is all one extended header of PAX or
// GNU, with which many programs begin. It knows each compressed file.
func (s *spool) context() io.ReadCloser {
	var head [257 + 5]byte
	n, _ := s.f.ReadAt(head[:], 0) // a short one is no archive
	if n < len(head) || string(head[257:]) != "ustar" || !strings.ContainsRune("xgLK", rune(head[156])) {
		return s.Reader()
	}
	r, w := io.Pipe()
	go func() {
		z, err := gzip.NewWriterLevel(w, gzip.NoCompression)
		if err == nil {
			_, err = io.Copy(z, s.Reader())
		}
		if err == nil {
			err = z.Close()
		}
		w.CloseWithError(err)
	}()
	return r
}

// readTimeout bounds how long BuildKit may take to send a request for a context.
const readTimeout = 30 * time.Second

// serve offers the context to BuildKit at an address of this host that nobody can
// guess, for clients that have a session of their own, which can't carry it.
func (s *spool) serve() (url string, end func(), _ error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	path := "/" + rand.Text() + rand.Text()
	web := &http.Server{ReadHeaderTimeout: readTimeout, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if subtle.ConstantTimeCompare([]byte(r.URL.Path), []byte(path)) != 1 {
			http.NotFound(w, r)
			return
		}
		in := s.context()
		defer in.Close()
		_, _ = io.Copy(w, in) // BuildKit reports what it could not read
	})}
	go func() { _ = web.Serve(l) }() // it ends with the build
	return "http://" + l.Addr().String() + path, func() { web.Close() }, nil
}

func (s *spool) Close() error { return s.f.Close() }

// maxDockerfile bounds the Dockerfile that is read, in bytes.
const maxDockerfile = 2 << 20

// dockerfile finds a file in the context. A context that is not an archive is the
// Dockerfile itself.
func (s *spool) dockerfile(name string) []byte {
	in := bufio.NewReader(s.Reader())
	plain, err := compression.DecompressStream(in)
	if err != nil {
		return nil
	}
	defer plain.Close()
	all := tar.NewReader(plain)
	for first := true; ; first = false {
		h, err := all.Next()
		if err != nil {
			if first && errors.Is(err, tar.ErrHeader) {
				text, _ := io.ReadAll(io.LimitReader(s.Reader(), maxDockerfile))
				return text
			}
			return nil
		}
		if path.Clean("/"+h.Name) == path.Clean("/"+name) && h.Typeflag == tar.TypeReg {
			text, _ := io.ReadAll(io.LimitReader(all, maxDockerfile))
			return text
		}
	}
}

// steps returns the instructions of the context's Dockerfile, or none if it can't be
// read. BuildKit then says why.
func (s *spool) steps(name, target string) []classic.Step {
	parsed, err := parser.Parse(bytes.NewReader(s.dockerfile(name)))
	if err != nil {
		return nil
	}
	var all []classic.Instruction
	for _, n := range parsed.AST.Children {
		all = append(all, classic.Instruction{Name: n.Value, Text: n.Original})
	}
	return classic.Plan(all, target)
}
