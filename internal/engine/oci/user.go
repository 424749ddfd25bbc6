// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"holdfast/internal/beneath"
	"holdfast/internal/errs"
)

// maxUserFile bounds how much is read of a container's user database, because the
// container may write it.
const maxUserFile = 16 << 20

// maxID is the largest ID of a user or a group, as Docker has it.
const maxID = 1<<31 - 1

// resolveUser looks up a user ("name", "uid", "name:group", "uid:gid", …) and
// additional groups in the container's own /etc/passwd and /etc/group. Without
// these files numbers still work. home is never empty.
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
		return u, "", errs.Invalid("%v", err)
	}
	// The parser checks the numbers of the request, but not those of the
	// container's files: truncated to 32 bits one may be root's ID.
	for _, id := range append([]int{eu.Uid, eu.Gid}, eu.Sgids...) {
		if id < 0 || id > maxID {
			return u, "", errs.Invalid("user %s: the ID %d in the container's /etc/passwd or /etc/group is out of range, maximum is %d", spec, id, maxID)
		}
	}
	u.UID, u.GID = uint32(eu.Uid), uint32(eu.Gid)
	u.AdditionalGids = []uint32{u.GID}
	extra := eu.Sgids
	if len(groups) > 0 {
		gids, err := user.GetAdditionalGroups(groups, reader(group))
		if err != nil {
			return u, "", errs.Invalid("%v", err)
		}
		slices.Sort(gids) // the library returns them in random order
		if len(gids) > 0 && (gids[0] < 0 || gids[len(gids)-1] > maxID) {
			return u, "", errs.Invalid("additional groups %v: an ID is out of range, maximum is %d", groups, maxID)
		}
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

// reader returns nil for a missing file, which the parser distinguishes from an
// empty one.
func reader(b []byte) io.Reader {
	if b == nil {
		return nil
	}
	return bytes.NewReader(b)
}

// readInRoot reads a regular file of a tree that another process may be changing.
// Links are followed as if root were "/", so none leads out of it. For a missing
// file it returns nil.
func readInRoot(root, name string) ([]byte, error) {
	dir, err := beneath.Root(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the container's root: %w", err)
	}
	defer dir.Close()
	b, err := beneath.ReadFile(dir, name, maxUserFile)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return nil, nil
	case errors.Is(err, beneath.ErrNotRegular):
		return nil, errs.Invalid("/%s of the container is not a regular file", name)
	case errors.Is(err, beneath.ErrTooLarge):
		return nil, errs.Invalid("/%s of the container is larger than %d bytes", name, maxUserFile)
	case err != nil:
		return nil, errs.Invalid("read /%s of the container: %v", name, err)
	}
	return b, nil
}
