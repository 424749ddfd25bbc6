// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"
)

// Pack writes the file at a path as tar, a directory with everything below it. It
// calls begin with the file's properties and writes to the writer that begin
// returns; it writes nothing before that. As in Docker, names in the archive
// begin with the path's last element, and a link is packed as a link. Files that
// disappear meanwhile are left out. A file that shrinks is padded with zeros, as
// by tar(1). Sockets can't be packed.
func (r *Root) Pack(ctx context.Context, path string, begin func(container.PathStat) io.Writer) error {
	f, err := r.entry(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := r.stat(f, path)
	if err != nil {
		return err
	}
	name := filepath.Base(absolute(path))
	p := &packer{ctx: ctx, tw: tar.NewWriter(begin(st)), top: f, links: map[inode]string{}}
	if name == "/" {
		name = ""
	}
	dir, err := p.add(f, name)
	if err == nil && dir {
		p.prefix = name + "/"
		err = p.walk()
	}
	if err != nil {
		return err
	}
	return p.tw.Close()
}

type inode struct{ dev, ino uint64 }

// packer writes one archive, depth first: a program that unpacks it sets a
// directory's times and mode when it has finished its content. Only one directory
// is open at a time, however deep the tree is. The packer remembers the names of
// files with several links.
type packer struct {
	ctx   context.Context
	tw    *tar.Writer
	top   *os.File
	links map[inode]string

	prefix string // of the names of everything in top
	path   []byte // of the packed directory, below top; ends with a slash unless it is empty
}

// walk packs the content of the directory at path.
func (p *packer) walk() error {
	dir, err := p.folder()
	if vanished(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { dir.Close() }()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for i, name := range names {
		into, err := p.name(dir, name, p.prefix+string(p.path)+name)
		if err != nil {
			return err
		}
		if !into {
			continue
		}
		dir.Close()
		before := len(p.path)
		p.path = append(append(p.path, name...), '/')
		err = p.walk()
		p.path = p.path[:before]
		if err != nil || i == len(names)-1 {
			return err
		}
		if dir, err = p.folder(); vanished(err) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

// folder opens the directory at path.
func (p *packer) folder() (*os.File, error) {
	return openIn(p.top, "./"+string(p.path), unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
}

// name packs one name of a directory and reports whether it is a directory to
// descend into.
func (p *packer) name(dir *os.File, name, as string) (bool, error) {
	if err := p.ctx.Err(); err != nil {
		return false, err
	}
	f, err := open(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW)
	if vanished(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	return p.add(f, as)
}

// vanished reports whether an error means that a file was removed or replaced
// meanwhile.
func vanished(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENXIO)
}

// add packs a file that is open with O_PATH.
func (p *packer) add(f *os.File, name string) (dir bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	h := &tar.Header{
		Format: tar.FormatPAX, Name: name, Mode: int64(st.Mode & 0o7777),
		Uid: int(st.Uid), Gid: int(st.Gid), ModTime: time.Unix(st.Mtim.Unix()).Truncate(time.Second),
	}
	var content *os.File
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		view, err := kernelView(f)
		if err != nil {
			return false, err
		}
		return !view, p.head(h)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = readlinkat(f, ""); err != nil {
			return false, err
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
		if content, err = reopen(f, unix.O_RDONLY); vanished(err) {
			return false, nil
		} else if err != nil {
			return false, err
		}
		defer content.Close()
		if err := capability(f, h); err != nil {
			return false, err
		}
	default:
		return false, nil
	}
	if st.Nlink > 1 {
		at := inode{st.Dev, st.Ino}
		if first, ok := p.links[at]; ok {
			h.Typeflag, h.Linkname, h.Size, content = tar.TypeLink, first, 0, nil
		} else {
			p.links[at] = name
		}
	}
	if err := p.head(h); err != nil || content == nil {
		return false, err
	}
	n, err := io.Copy(p.tw, io.LimitReader(content, st.Size))
	if err == nil && n < st.Size {
		_, err = io.CopyN(p.tw, zeros{}, st.Size-n)
	}
	if err != nil {
		return false, fmt.Errorf("pack %s: %w", name, err)
	}
	return false, nil
}

func (p *packer) head(h *tar.Header) error {
	if err := p.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("pack %s: %w", h.Name, err)
	}
	return nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// xattrRecord is the prefix of extended attributes in pax records.
const xattrRecord = "SCHILY.xattr."

// capability packs a file's capabilities, which is the only extended attribute
// that Docker packs. Capabilities for one user namespace are converted to those
// for all (revision 3 to 2 of linux/capability.h), because the archive is used
// elsewhere.
func capability(f *os.File, h *tar.Header) error {
	buf := make([]byte, 64)
	n, err := unix.Getxattr(self(f), "security.capability", buf)
	if err == unix.ENODATA || err == unix.ENOTSUP || n == 0 {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "getxattr", Path: h.Name, Err: err}
	}
	if value := buf[:n]; n > 20 && value[3] == 3 {
		value[3] = 2
		buf, n = value[:20], 20
	}
	h.PAXRecords = map[string]string{xattrRecord + "security.capability": string(buf[:n])}
	return nil
}
