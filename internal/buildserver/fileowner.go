// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"errors"
	"fmt"
	"io"

	"github.com/containerd/continuity/fs"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/openfile"
	"github.com/moby/sys/user"
	fscopy "github.com/tonistiigi/fsutil/copy"
	"golang.org/x/sys/unix"
)

// maxUserFile bounds the size of the passwd and group files of an image, in bytes.
const maxUserFile = 10 << 20

// readOwner returns the user that the option chown of a step names, or nil without one.
// Names are looked up in the images whose root file systems are users and groups. A
// name that is not there is root's.
func readOwner(chown *pb.ChownOpt, users, groups snapshot.Mountable) (*fscopy.User, error) {
	if chown == nil {
		return nil, nil
	}
	var owner fscopy.User
	var err error
	if owner.UID, owner.GID, err = lookUp(chown.User, users, "/etc/passwd", func(r io.Reader, name string) (uid, gid int, _ error) {
		found, err := user.ParsePasswdFilter(r, func(u user.User) bool { return u.Name == name })
		if err != nil || len(found) == 0 {
			return 0, 0, err
		}
		return found[0].Uid, found[0].Gid, nil
	}); err != nil || chown.Group == nil {
		return &owner, err
	}
	owner.GID, _, err = lookUp(chown.Group, groups, "/etc/group", func(r io.Reader, name string) (gid, _ int, _ error) {
		found, err := user.ParseGroupFilter(r, func(g user.Group) bool { return g.Name == name })
		if err != nil || len(found) == 0 {
			return 0, 0, err
		}
		return found[0].Gid, 0, nil
	})
	return &owner, err
}

// lookUp returns the IDs of a user or a group. A number means the user and the
// group of that number.
func lookUp(who *pb.UserOpt, image snapshot.Mountable, path string, find func(r io.Reader, name string) (int, int, error)) (id, group int, err error) {
	if number, ok := who.GetUser().(*pb.UserOpt_ByID); ok {
		return int(number.ByID), int(number.ByID), nil
	}
	named, ok := who.GetUser().(*pb.UserOpt_ByName)
	if !ok {
		return 0, 0, nil
	}
	if image == nil {
		return 0, 0, fmt.Errorf("no image to look up %q in", named.ByName.GetName())
	}
	lm := snapshot.LocalMounter(image)
	root, err := lm.Mount()
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, lm.Unmount()) }()
	real, err := fs.RootPath(root, path)
	if err != nil {
		return 0, 0, err
	}
	f, err := openfile.Regular(real)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return 0, 0, nil // an image without users
	}
	if err != nil {
		return 0, 0, fmt.Errorf("%s of the image: %w", path, errors.Unwrap(err))
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() > maxUserFile {
		return 0, 0, errors.Join(err, fmt.Errorf("%s of the image has more than %d bytes", path, maxUserFile))
	}
	return find(f, named.ByName.GetName())
}
