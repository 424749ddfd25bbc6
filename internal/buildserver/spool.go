// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

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
