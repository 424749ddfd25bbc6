package oci

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxUserFile bounds what is read of a container's user database: it is the
// container's to write.
const maxUserFile = 16 << 20

// resolveUser looks a user ("name", "uid", "name:group", "uid:gid", …) and
// additional groups up in the container's own /etc/passwd and /etc/group.
// Without these files numbers still work. Home is never empty.
func resolveUser(rootfs, spec string, groups []string) (u specs.User, home string, err error) {
	passwd, err := readInRoot(rootfs, "etc/passwd")
	if err != nil {
		return u, "", err
	}
	group, err := readInRoot(rootfs, "etc/group")
	if err != nil {
		return u, "", err
	}
	eu, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, reader(passwd), reader(group))
	if err != nil {
		return u, "", invalid("%v", err)
	}
	u.UID, u.GID = uint32(eu.Uid), uint32(eu.Gid)
	u.AdditionalGids = []uint32{u.GID}
	extra := eu.Sgids
	if len(groups) > 0 {
		gids, err := user.GetAdditionalGroups(groups, reader(group))
		if err != nil {
			return u, "", invalid("%v", err)
		}
		slices.Sort(gids) // the library gives them in no order
		extra = append(extra, gids...)
	}
	seen := map[uint32]bool{u.GID: true}
	for _, g := range extra {
		if gid := uint32(g); !seen[gid] {
			seen[gid] = true
			u.AdditionalGids = append(u.AdditionalGids, gid)
		}
	}
	home = eu.Home
	if home == "" {
		home = "/"
	}
	return u, home, nil
}

// reader is nil for a file that isn't there, which the parser tells from an
// empty one.
func reader(b []byte) io.Reader {
	if b == nil {
		return nil
	}
	return bytes.NewReader(b)
}

// readInRoot reads a regular file of a tree that someone else may be writing
// to. Links are followed as if root were "/", so none leads out of it. A file
// that isn't there is nil.
func readInRoot(root, name string) ([]byte, error) {
	f, err := openInRoot(root, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, invalid("read /%s of the container: %v", name, err)
	}
	defer f.Close()
	// A FIFO would be opened and never answer: hence O_NONBLOCK, and this.
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, invalid("/%s of the container is not a regular file", name)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxUserFile+1))
	if err != nil {
		return nil, invalid("read /%s of the container: %v", name, err)
	}
	if len(b) > maxUserFile {
		return nil, invalid("/%s of the container is larger than %d bytes", name, maxUserFile)
	}
	if b == nil {
		b = []byte{}
	}
	return b, nil
}

func openInRoot(root, name string) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC | unix.O_NOCTTY
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(dir)
	how := unix.OpenHow{Flags: flags, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range 32 {
		fd, err := unix.Openat2(dir, name, &how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), filepath.Join(root, name)), nil
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
			continue // a rename went on at the same time
		case errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM):
			return openJoined(root, name, flags)
		}
		return nil, &os.PathError{Op: "open", Path: filepath.Join(root, name), Err: err}
	}
	return nil, &os.PathError{Op: "open", Path: filepath.Join(root, name), Err: unix.EAGAIN}
}

// openJoined is for kernels without openat2(2), before Linux 5.6.
func openJoined(root, name string, flags int) (*os.File, error) {
	p, err := securejoin.SecureJoin(root, name)
	if err != nil {
		return nil, err
	}
	return os.OpenFile(p, flags|unix.O_NOFOLLOW, 0)
}
