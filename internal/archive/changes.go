package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"
)

// OpenFolder opens a tree by a path that the host trusts, without what is
// mounted in it.
func OpenFolder(path string) (*Root, error) {
	dir, err := open(unix.AT_FDCWD, path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	namespace, err := open(unix.AT_FDCWD, "/proc/self/ns/mnt", unix.O_RDONLY)
	if err != nil {
		dir.Close()
		return nil, err
	}
	return &Root{dir, namespace}, nil
}

// PackAll writes all that is below the root as tar, with names relative to it.
func (r *Root) PackAll(ctx context.Context, w io.Writer) error {
	p := &packer{ctx: ctx, tw: tar.NewWriter(w), top: r.dir, links: map[inode]string{}}
	if err := p.walk(".", ""); err != nil {
		return err
	}
	return p.tw.Close()
}

// Changes lists what differs between two trees, each folder before what is in
// it. A folder with changes in it is itself modified, as Docker has it. What was
// added under a path for which made holds, and is empty, is left out.
func Changes(ctx context.Context, from, to *Root, made func(path string) bool) ([]container.FilesystemChange, error) {
	c := &comparison{ctx: ctx, from: from.dir, to: to.dir, made: made}
	if err := c.folder("/", true); err != nil {
		return nil, err
	}
	return c.found, nil
}

type comparison struct {
	ctx      context.Context
	from, to *os.File
	made     func(string) bool
	found    []container.FilesystemChange
}

// folder compares a folder that is in to, and in from if old is set.
func (c *comparison) folder(path string, old bool) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	to, names, err := list(c.to, path)
	if vanished(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { to.Close() }()
	var from *os.File
	var before []string
	if old {
		if from, before, err = list(c.from, path); err != nil {
			return err
		}
		defer func() { from.Close() }()
	}
	type folder struct {
		path string
		old  bool
		at   int // in found, of what it is itself
	}
	var below []folder
	add := func(path string, kind container.ChangeType) {
		c.found = append(c.found, container.FilesystemChange{Kind: kind, Path: path})
	}
	all := slices.Concat(before, names)
	slices.Sort(all)
	for _, name := range slices.Compact(all) {
		at := filepath.Join(path, name)
		_, was := slices.BinarySearch(before, name)
		if _, is := slices.BinarySearch(names, name); !is {
			add(at, container.ChangeDelete)
			continue
		}
		var st, prior unix.Stat_t
		if err := unix.Fstatat(int(to.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); vanished(err) {
			continue
		} else if err != nil {
			return &os.PathError{Op: "stat", Path: at, Err: err}
		}
		dir, wasDir := st.Mode&unix.S_IFMT == unix.S_IFDIR, false
		if was {
			if err := unix.Fstatat(int(from.Fd()), name, &prior, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return &os.PathError{Op: "stat", Path: at, Err: err}
			}
			wasDir = prior.Mode&unix.S_IFMT == unix.S_IFDIR
			if differ(&prior, &st) || st.Mode&unix.S_IFMT == unix.S_IFREG && !sameCapability(from, to, name) {
				add(at, container.ChangeModify)
			}
		} else if dir || st.Size > 0 || !c.made(at) {
			add(at, container.ChangeAdd)
		}
		if dir {
			below = append(below, folder{at, wasDir, len(c.found)})
		}
	}
	// One folder is open at a time, however deep the trees are: what is below
	// comes in its place afterwards.
	to.Close()
	if from != nil {
		from.Close()
	}
	flat := c.found
	c.found = nil
	var merged []container.FilesystemChange
	next := 0
	for _, f := range below {
		merged = append(merged, flat[next:f.at]...)
		next = f.at
		if err := c.folder(f.path, f.old); err != nil {
			return err
		}
		listed := len(merged) > 0 && merged[len(merged)-1].Path == f.path
		switch {
		case len(c.found) > 0 && !listed:
			merged = append(merged, container.FilesystemChange{Kind: container.ChangeModify, Path: f.path})
		case len(c.found) == 0 && listed && merged[len(merged)-1].Kind == container.ChangeAdd && c.made(f.path):
			merged = merged[:len(merged)-1]
		}
		merged = append(merged, c.found...)
		c.found = nil
	}
	c.found = append(merged, flat[next:]...)
	return nil
}

// list opens a folder and reads its names, in order.
func list(root *os.File, path string) (*os.File, []string, error) {
	dir, err := openIn(root, path, unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return nil, nil, err
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		dir.Close()
		return nil, nil, err
	}
	slices.Sort(names)
	return dir, names, nil
}

// differ compares what Docker does: of folders neither size nor time.
func differ(a, b *unix.Stat_t) bool {
	if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Rdev != b.Rdev {
		return true
	}
	return a.Mode&unix.S_IFMT != unix.S_IFDIR && (a.Mtim != b.Mtim || a.Size != b.Size)
}

func sameCapability(a, b *os.File, name string) bool {
	of := func(dir *os.File) []byte {
		buf := make([]byte, 64)
		n, err := unix.Lgetxattr(self(dir)+"/"+name, "security.capability", buf)
		if err != nil {
			return nil
		}
		return buf[:n]
	}
	return bytes.Equal(of(a), of(b))
}

// whiteout begins the name of an entry that says that something is gone (OCI
// image spec, layer.md).
const whiteout = ".wh."

// PackChanges writes changes as a layer: what was added or modified, and a
// whiteout for what is gone.
func (r *Root) PackChanges(ctx context.Context, changes []container.FilesystemChange, w io.Writer) error {
	p := &packer{ctx: ctx, tw: tar.NewWriter(w), top: r.dir, links: map[inode]string{}}
	for _, c := range changes {
		dir, name := filepath.Split(strings.TrimPrefix(c.Path, "/"))
		if c.Kind == container.ChangeDelete {
			if err := p.head(&tar.Header{Typeflag: tar.TypeReg, Name: dir + whiteout + name, Mode: 0o600}); err != nil {
				return err
			}
			continue
		}
		parent, err := openIn(r.dir, "/"+dir, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
		if vanished(err) {
			continue
		}
		if err != nil {
			return err
		}
		_, err = p.name(parent, name, dir+name)
		parent.Close()
		if err != nil {
			return err
		}
	}
	return p.tw.Close()
}
