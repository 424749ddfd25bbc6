// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"holdfast/internal/beneath"
)

// boundFiles are the files in /etc on which the engine mounts its own.
var boundFiles = []string{"resolv.conf", "hosts", "hostname"}

const etc = "etc"

// Programs look for dockerEnv to detect that they run in a container, and for
// mtab to list the mounts. As in Docker both exist unless the image has
// something of that name.
const (
	dockerEnv     = ".dockerenv"
	dockerEnvMode = 0o755
	mtab          = "mtab"
	mtabTarget    = "/proc/mounts"
)

// makePlaces makes the mount points that every container needs in the root file
// system mounted at target. They become real directories and files in the
// container's writable layer. Whatever an image has there instead is replaced,
// as in Docker. If the container itself has replaced its /etc by a link, the
// link stays: the runtime resolves it within the root, and replacing it would
// hide the container's files. The shim checks the directories, except /etc,
// again before each run.
func (rf *rootfs) makePlaces(ctx context.Context, snapshot, storage, dir, target string) error {
	fail := func(err error) error { return fmt.Errorf("make the mount points in the rootfs: %w", err) }
	root, err := beneath.Root(target)
	if err != nil {
		return fail(err)
	}
	defer root.Close()
	if err := beneath.MakeSystemFolders(root); err != nil {
		return fail(err)
	}
	if err := beneath.Add(root, dockerEnv, "", dockerEnvMode); err != nil {
		return fail(err)
	}
	if !beneath.IsFolder(root, etc) {
		own, err := rf.ownEtc(ctx, snapshot, storage, dir)
		if err != nil {
			return fail(err)
		}
		if !own {
			if err := beneath.MakeFolder(root, etc); err != nil {
				return fail(err)
			}
		}
	}
	in, err := beneath.OpenInRoot(root, etc, unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // the container has broken its own /etc; the runtime reports it
	}
	if err != nil {
		return fail(err)
	}
	defer in.Close()
	for _, name := range boundFiles {
		if err := beneath.MakeFile(in, name); err != nil {
			return fail(err)
		}
	}
	if err := beneath.Add(in, mtab, mtabTarget, 0); err != nil {
		return fail(err)
	}
	return nil
}

// ownEtc reports whether the container itself has replaced the image's /etc.
func (rf *rootfs) ownEtc(ctx context.Context, snapshot, storage, dir string) (bool, error) {
	if storage != Native {
		var st unix.Stat_t
		err := unix.Lstat(filepath.Join(dir, upperDir, etc), &st)
		if err == unix.ENOENT {
			return false, nil
		}
		whiteout := st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
		return !whiteout, err
	}
	lowers, err := rf.layers.lowerDirs(ctx, storage, snapshot)
	if err != nil || len(lowers) == 0 {
		return false, err
	}
	image, err := beneath.Root(lowers[0])
	if err != nil {
		return false, err
	}
	defer image.Close()
	return beneath.IsFolder(image, etc), nil
}
