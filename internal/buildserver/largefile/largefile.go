// SPDX-License-Identifier: Apache-2.0

// Package largefile reads and copies files that take longer than a moment, and files
// with holes. Each of its functions returns within a fraction of a second when its
// context ends, and a copy has the holes of its source.
//
// The package knows nothing of builds. It owns the directories and mounts that a View
// makes, and only those.
package largefile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// Large is the size, in bytes, from which a file is large.
	Large = 32 << 20
	// hole is how many bytes a smaller file must have that are not on the disk, so
	// that it is treated like a large one.
	hole = 1 << 20
	// chunk is how many bytes are copied between two looks at the context.
	chunk = 8 << 20
)

// File is a large file, or one with holes.
type File struct {
	Path string // below the root
	Info os.FileInfo
}

// Find returns the large files and those with holes at and below path, a path in root
// without symbolic links. It is no error if there is no such path.
//
// A file that is larger than the whole file system of root could never be copied or be
// part of a layer, so it is an error.
func Find(ctx context.Context, root, path string) ([]File, error) {
	var at unix.Statfs_t
	if err := unix.Statfs(root, &at); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: root, Err: err}
	}
	bound := int64(at.Blocks) * at.Bsize
	var found []File
	err := filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if !e.Type().IsRegular() {
			return ctx.Err()
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*unixStat)
		if st.Size < Large && st.Size-st.Blocks*512 < hole {
			return nil
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if st.Size > bound {
			return fmt.Errorf("/%s has %d bytes, most of them holes: that is more than the %d bytes of the file system of the cache, so it can't be in a layer; make the file smaller, or leave it out", rel, st.Size, bound)
		}
		found = append(found, File{Path: rel, Info: info})
		return nil
	})
	return found, err
}

// Feed writes what is in the file at path to w.
func Feed(ctx context.Context, w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, Reader(ctx, f))
	return err
}

// Reader returns a reader of r that fails when ctx ends.
func Reader(ctx context.Context, r io.Reader) io.Reader { return &reader{ctx, r} }

type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r *reader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// copyData writes the data of src to dst, which is empty, and leaves out the holes.
func copyData(ctx context.Context, dst, src *os.File) error {
	info, err := src.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	for end := int64(0); end < size; {
		var begin int64
		begin, end, err = segment(src, end, size)
		if err != nil {
			return err
		}
		if err := copyRange(ctx, dst, src, begin, end); err != nil {
			return err
		}
	}
	return dst.Truncate(size)
}

// segment returns where the next data at or after off begins and ends. A file
// system that knows no holes has one segment.
func segment(f *os.File, off, size int64) (begin, end int64, _ error) {
	begin, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL):
		return off, size, nil
	case err != nil:
		return 0, 0, &os.PathError{Op: "seek", Path: f.Name(), Err: err}
	}
	if end, err = unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE); err != nil {
		return 0, 0, &os.PathError{Op: "seek", Path: f.Name(), Err: err}
	}
	return min(begin, size), min(end, size), nil
}

// copyRange copies the bytes from begin to end, in the kernel if it can.
func copyRange(ctx context.Context, dst, src *os.File, begin, end int64) error {
	for from, to := begin, begin; from < end; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &to, int(min(end-from, chunk)), 0)
		switch err {
		case nil:
			if n == 0 {
				return &os.PathError{Op: "copy", Path: src.Name(), Err: io.ErrUnexpectedEOF}
			}
		case unix.EINTR:
		case unix.ENOSYS, unix.EXDEV, unix.EPERM, unix.EOPNOTSUPP, unix.EINVAL:
			_, err := io.Copy(io.NewOffsetWriter(dst, from), Reader(ctx, io.NewSectionReader(src, from, end-from)))
			return err
		default:
			return &os.PathError{Op: "copy", Path: dst.Name(), Err: err}
		}
	}
	return nil
}
