// SPDX-License-Identifier: Apache-2.0

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

	"golang.org/x/sys/unix"

	"holdfast/internal/errs"
)

// maxSocketPath is the size of sun_path, minus the terminating zero byte and the
// "~" that the socket's name has before it is renamed.
const maxSocketPath = 108 - 1 - 1

// socketFile is a Unix socket's file that this daemon created.
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
		return nil, errs.Conflict("%s exists and is not a socket: move it away, or use another path", path)
	}
	return &socketFile{path: path, dev: uint64(st.Dev), ino: st.Ino}, nil
}

// listenUnix takes the inherited socket of the path if there is one, so that
// containers that have mounted its file can go on using it. Otherwise it creates
// a socket next to the path and renames it: clients find the stale file, or the
// new one with its owner and mode.
func listenUnix(ctx context.Context, o ListenOptions, address, path string) ([]*Listener, error) {
	if len(path) > maxSocketPath {
		return nil, errs.Invalid("the path of a socket can have %d characters at most", maxSocketPath)
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
			u.Close() // the socket's file is gone, so no process could connect
		}
	}
	if old != nil {
		if conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path); err == nil {
			conn.Close()
			return nil, errs.Conflict("another program listens on %s: stop it, or use another path", path)
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

// GroupID returns the ID of a group that is given by name or number. If it is not
// found, the error says what to do.
func GroupID(group string) (int, error) {
	if n, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(n), nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, errs.NotFound("group %s not found: make it with `groupadd %s`, or name another by --group", group, group)
	}
	return strconv.Atoi(g.Gid)
}

// groupID returns the ID of o.Group. -1 leaves the socket to root's group.
func groupID(o ListenOptions) (int, error) {
	if o.Group == "" {
		return -1, nil
	}
	n, err := GroupID(o.Group)
	if err == nil {
		return n, nil
	}
	if o.GroupRequired {
		return 0, err
	}
	o.Log.Warn("could not change group of the API's socket: group " + o.Group + " not found; only root can use the socket")
	return -1, nil
}
