// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"holdfast/internal/beside"
	"holdfast/internal/build"
)

// places are the directories of RUN steps.
type places struct {
	executor string // the bundles
	runc     string // the OCI runtime's own state
	wrapper  string // the program that calls the OCI runtime with that state
	mounts   string // of cache mounts
	layers   string // of layers that are compared to pack one
	parents  string // records of the parent cgroups of steps
	temp     string // TMPDIR: mounts of layers, secrets and sockets of agents
}

func placesOf(o beside.Options, state string) places {
	p := places{
		executor: filepath.Join(state, "executor"), mounts: filepath.Join(state, "cachemounts"), layers: filepath.Join(state, "layers"),
		runc: runcDir(o.ExecRoot), wrapper: filepath.Join(state, "runc"), parents: filepath.Join(build.Dir(o.ExecRoot), "parents"),
		temp: filepath.Join(state, "tmp"),
	}
	if len(p.temp) > maxTemp {
		p.temp = filepath.Join(build.Dir(o.ExecRoot), "tmp")
	}
	return p
}

// maxTemp bounds the length of the directory of temporary files, in bytes: the socket of
// an ssh agent is in a directory there, and the path of a socket has at most 107.
const maxTemp = 107 - len("/.buildkit-ssh-sock") - len("4294967295") - len("/ssh_auth_sock")

// useTemp makes the directory of temporary files, and lets the process use it. BuildKit
// mounts layers and secrets there, and leaves directories behind. In the host's own
// directory nobody would find them after a kill.
func (p places) useTemp() error {
	if err := os.MkdirAll(p.temp, 0o700); err != nil {
		return err
	}
	return os.Setenv("TMPDIR", p.temp)
}

// writeWrapper writes the program. BuildKit's executor calls an OCI runtime without
// saying where that keeps its state, and state of our own makes the containers of
// builds known from others.
func (p places) writeWrapper(runtime string) error {
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	text := "#!/bin/sh\nexec " + quote(runtime) + " --root " + quote(p.runc) + ` "$@"` + "\n"
	if err := os.WriteFile(p.wrapper+".new", []byte(text), 0o700); err != nil {
		return err
	}
	return os.Rename(p.wrapper+".new", p.wrapper)
}

// sweep removes what a process left that was killed in the middle of a RUN step, of a
// COPY, or while it packed a layer: the step's container, mounts, and the step's bundle.
func (p places) sweep(runtime string) error {
	var errs []error
	ids, err := os.ReadDir(p.runc)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, id := range ids {
		out, err := exec.Command(runtime, "--root", p.runc, "delete", "--force", id.Name()).CombinedOutput()
		if err != nil {
			errs = append(errs, fmt.Errorf("remove build step %s: %w: %s", id.Name(), err, strings.TrimSpace(string(out))))
		}
	}
	for _, dir := range []string{p.executor, p.mounts, p.layers, p.temp} {
		points, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
		if err != nil {
			return err
		}
		slices.SortFunc(points, func(a, b *mountinfo.Info) int { return len(b.Mountpoint) - len(a.Mountpoint) })
		for _, m := range points {
			if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
				errs = append(errs, &os.PathError{Op: "umount", Path: m.Mountpoint, Err: err})
			}
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...) // what is mounted must not be deleted
	}
	return errors.Join(os.RemoveAll(p.executor), os.RemoveAll(p.layers), os.RemoveAll(p.temp), sweepParents(p.parents))
}
