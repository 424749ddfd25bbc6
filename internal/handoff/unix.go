package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxSocketPath is what sockaddr_un holds, less the zero byte and the mark of
// the name that a socket has before it is renamed.
const maxSocketPath = 108 - 1 - 1

// socketFile is a Unix socket in the file system that this daemon made.
type socketFile struct {
	path string
	dev  uint64
	ino  uint64
}

// remove removes the file if it is still the same.
func (s *socketFile) remove() {
	if now, err := statSocket(s.path); err == nil && now.dev == s.dev && now.ino == s.ino {
		os.Remove(s.path)
	}
}

func statSocket(path string) (*socketFile, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, errdefs.ErrConflict.WithMessage(fmt.Sprintf("%s is there and is no socket: move it away, or use another path", path))
	}
	return &socketFile{path: path, dev: uint64(st.Dev), ino: st.Ino}, nil
}

// listenUnix takes the inherited socket of the path if there is one, so that
// the file that containers may have mounted goes on working. Otherwise it makes
// one beside the path and renames it into place: a client finds the stale file
// or the new one with its owner and mode, and nothing in between.
func listenUnix(ctx context.Context, o ListenOptions, address, path string) ([]*Listener, error) {
	if len(path) > maxSocketPath {
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("the path of a socket can have %d characters at most", maxSocketPath))
	}
	old, err := statSocket(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if f := o.Inherited.claim(address); f != nil {
		l, err := net.FileListener(f)
		f.Close()
		if u, ok := l.(*net.UnixListener); ok && err == nil {
			if old != nil {
				u.SetUnlinkOnClose(false)
				w := wrap(o, address, u, old)
				w.adopted = true
				return []*Listener{w}, nil
			}
			u.Close() // its file is gone: nobody could reach it
		}
	}
	if old != nil {
		if conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path); err == nil {
			conn.Close()
			return nil, errdefs.ErrConflict.WithMessage(fmt.Sprintf("another program listens on %s: stop it, or use another path", path))
		}
	}
	gid, err := groupID(o)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	fresh := path + "~"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", fresh)
	if err != nil {
		return nil, err
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false)
	made, err := func() (*socketFile, error) {
		if gid >= 0 {
			if err := os.Chown(fresh, -1, gid); err != nil {
				return nil, fmt.Errorf("give the socket to group %s: %w", o.Group, err)
			}
		}
		if err := os.Chmod(fresh, 0o660); err != nil {
			return nil, err
		}
		if err := os.Rename(fresh, path); err != nil {
			return nil, err
		}
		return statSocket(path)
	}()
	if err != nil {
		u.Close()
		os.Remove(fresh)
		return nil, err
	}
	return []*Listener{wrap(o, address, u, made)}, nil
}

// groupID is the number of o.Group; -1 leaves the socket to root's group.
func groupID(o ListenOptions) (int, error) {
	if o.Group == "" {
		return -1, nil
	}
	if n, err := strconv.ParseUint(o.Group, 10, 31); err == nil {
		return int(n), nil
	}
	g, err := user.LookupGroup(o.Group)
	if err == nil {
		return strconv.Atoi(g.Gid)
	}
	if o.GroupRequired {
		return 0, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("group %s not found: make it with `groupadd %s`, or name another by --group", o.Group, o.Group))
	}
	o.Log.Warn("could not change group of the API's socket: group " + o.Group + " not found; only root can use the socket")
	return -1, nil
}
