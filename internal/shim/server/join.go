// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/descriptor"
	"holdfast/internal/shim/proto"
)

// joinAll mounts the namespaces of other containers for the next run. This is repeated
// before each run, as the others may have been restarted since.
func joinAll(runDir string, list []proto.Join) error {
	for i := range list {
		if err := joinOne(runDir, &list[i]); err != nil {
			return err
		}
	}
	return nil
}

func joinOne(runDir string, j *proto.Join) error {
	stopped := conflict("cannot join %s of a non running container: %s", j.What, j.Name)
	var st proto.State
	b, err := os.ReadFile(filepath.Join(j.Dir, proto.StateFile))
	if os.IsNotExist(err) {
		return stopped
	}
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(b, &st); err != nil {
		return conflict("cannot join %s of container %s: its shim's record can't be read: %v", j.What, j.Name, err)
	}
	if st.ID != j.ID || st.Pid <= 0 || st.Status != proto.StatusRunning && st.Status != proto.StatusPaused || !thisBoot(st.BootID) {
		return stopped
	}
	// The record may be old, and its pid reused. A pidfd stays with one process. The
	// start time shows that it is the right process, and it must still live once the
	// namespaces are open, so that they are its own.
	pidfd, err := unix.PidfdOpen(st.Pid, 0)
	if err == unix.ESRCH {
		return stopped
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open "+strconv.Itoa(st.Pid), err)
	}
	defer unix.Close(pidfd)
	if startTime(st.Pid) != st.PidStart {
		return stopped
	}
	files, err := openNamespaces(st.Pid, j.Kinds)
	defer descriptor.CloseAll(files)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return stopped
	}
	if err != nil {
		return err
	}
	if unix.PidfdSendSignal(pidfd, 0, nil, 0) != nil || hasExited(pidfd) {
		return stopped
	}
	for i, kind := range j.Kinds {
		if err := mountNamespace(files[i], proto.JoinedPath(runDir, kind)); err != nil {
			return err
		}
	}
	return nil
}

// openNamespaces opens namespaces of a process; kinds are names in /proc/PID/ns, such
// as net. With an error it returns those that it has opened.
func openNamespaces(pid int, kinds []string) (files []int, err error) {
	for _, kind := range kinds {
		path := "/proc/" + strconv.Itoa(pid) + "/ns/" + kind
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return files, &os.PathError{Op: "open", Path: path, Err: err}
		}
		files = append(files, fd)
	}
	return files, nil
}

func hasExited(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return n != 0 || err != nil
		}
	}
}

// thisBoot reports whether a record is from the current boot of the machine.
func thisBoot(id string) bool {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return err == nil && len(b) > 0 && id == string(b[:len(b)-1])
}

// mountNamespace bind-mounts an open namespace on a file, replacing an earlier one.
func mountNamespace(fd int, path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return &os.PathError{Op: "unmount", Path: path, Err: err}
	}
	file, err := unix.Open(path, unix.O_RDONLY|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	unix.Close(file)
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(fd), path, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "mount a namespace on", Path: path, Err: err}
	}
	return nil
}
