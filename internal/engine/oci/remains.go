// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupTimeout bounds the removal of a container's cgroups: a process that was
// killed leaves its cgroups only when it returns from the kernel.
const cgroupTimeout = 5 * time.Second

// RemoveCgroups removes the directories that CgroupDirs returns, with the cgroups
// below them, and kills the processes in them. Usually the OCI runtime does that, but
// a runtime that was killed while it started a container has recorded nothing, and
// does not know the container any more. Missing directories are not an error.
func RemoveCgroups(dirs map[string]string) error {
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	late := time.Now().Add(cgroupTimeout)
	for {
		var errs []error
		for _, dir := range dirs {
			// This suffices for almost every container: its cgroups do not exist.
			// Nothing is left in a tree that is mounted read-only.
			if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT && err != unix.EROFS {
				errs = append(errs, &fs.PathError{Op: "remove the cgroup", Path: dir, Err: err})
			}
		}
		err := errors.Join(errs...)
		if err == nil || time.Now().After(late) {
			return err
		}
		var groups []string
		for _, dir := range dirs {
			groups = append(groups, withinCgroup(dir)...)
		}
		for _, group := range groups {
			// A process that cgroup v1 has frozen does not end before it is thawed.
			_ = os.WriteFile(filepath.Join(group, "freezer.state"), []byte("THAWED"), 0)
		}
		for _, group := range groups {
			killMembers(group)
			_ = unix.Rmdir(group) // otherwise the next round does it
		}
		<-again.C
	}
}

// withinCgroup returns a cgroup and those below it; each comes after those in it.
func withinCgroup(dir string) (groups []string) {
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			groups = append(groups, path)
		}
		return nil // a cgroup may disappear at any moment
	})
	slices.Reverse(groups)
	return groups
}

// killMembers kills the processes in a cgroup. What appears meanwhile is left.
func killMembers(group string) {
	members := func() []string {
		text, _ := os.ReadFile(filepath.Join(group, "cgroup.procs")) // without it nothing can be killed
		return strings.Fields(string(text))
	}
	var fds []int
	pids := members()
	for _, field := range pids {
		fd := -1
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 { // 0 is a process of another pid namespace
			if fd, err = unix.PidfdOpen(pid, 0); err != nil {
				fd = -1
			}
		}
		fds = append(fds, fd)
	}
	now := members() // a pid may have been reused before its pidfd was opened
	for i, fd := range fds {
		if fd < 0 {
			continue
		}
		if slices.Contains(now, pids[i]) {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		unix.Close(fd)
	}
}
