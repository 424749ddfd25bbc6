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
	"sync"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"holdfast/internal/beside"
)

// places are the directories of RUN steps.
type places struct {
	executor string // the bundles
	runc     string // the OCI runtime's own state
	wrapper  string // the program that calls the OCI runtime with that state
	mounts   string // of cache mounts
}

func placesOf(o beside.Options, state string) places {
	return places{
		executor: filepath.Join(state, "executor"), mounts: filepath.Join(state, "cachemounts"),
		runc: runcDir(o.ExecRoot), wrapper: filepath.Join(state, "runc"),
	}
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

// sweep removes what a process left that was killed in the middle of a RUN step: the
// step's container, its mounts and its bundle.
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
	for _, dir := range []string{p.executor, p.mounts} {
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
	return os.RemoveAll(p.executor)
}

// cgroupDirs are the directories of a cgroup in the hierarchies that there are.
func cgroupDirs(cgroup string) (dirs []string) {
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		found, _ := filepath.Glob(filepath.Join(pattern, cgroup)) // it fails only for bad patterns
		dirs = append(dirs, found...)
	}
	return dirs
}

// stepsCgroup is the cgroup, in their parent, that BuildKit makes for steps.
const stepsCgroup = "buildkit"

// removeCgroup removes the cgroup of all steps in a parent, if it is empty.
func removeCgroup(parent string) {
	for _, dir := range cgroupDirs(filepath.Join(parent, stepsCgroup)) {
		_ = unix.Rmdir(dir) // a step may be running, of another daemon
	}
}

// parents removes the parent cgroups that clients asked for and that did not exist.
type parents struct {
	mu   sync.Mutex
	made map[string]bool
}

// use is called before a step, and its result after it.
func (p *parents) use(parent string) (end func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.made == nil {
		p.made = map[string]bool{}
	}
	if len(cgroupDirs(parent)) == 0 {
		p.made[parent] = true
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		removeCgroup(parent)
		if !p.made[parent] {
			return
		}
		for _, dir := range cgroupDirs(parent) {
			_ = unix.Rmdir(dir) // another step may be in it, which removes it then
		}
	}
}
