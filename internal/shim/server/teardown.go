package server

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
)

// sendNetlink sends each batch to nf_tables. What is already gone is fine; any
// other answer is logged, and the daemon's next look at the kernel mends it.
func sendNetlink(batches [][]byte) {
	if len(batches) == 0 {
		return
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		logf("teardown: netlink socket: %v", err)
		return
	}
	defer unix.Close(fd)
	for _, b := range batches {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, len(b)+4096)
		// The kernel works a batch off before sendto returns, so that its
		// answers are there to read.
		if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			logf("teardown: netlink: %v", err)
			continue
		}
		var buf [8192]byte
		for {
			n, _, err := unix.Recvfrom(fd, buf[:], unix.MSG_DONTWAIT)
			if err == unix.EINTR {
				continue
			}
			if err != nil || n <= 0 {
				break
			}
			for _, errno := range netlinkErrors(buf[:n]) {
				logf("teardown: netlink: %v", errno)
			}
		}
	}
}

// netlinkErrors reads the errors out of answers, but for those that say that
// there is nothing to delete. Malformed bytes end the reading.
func netlinkErrors(b []byte) []syscall.Errno {
	var errs []syscall.Errno
	for len(b) >= unix.NLMSG_HDRLEN {
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.NLMSG_HDRLEN || length > len(b) {
			break
		}
		if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR && length >= unix.NLMSG_HDRLEN+4 {
			code := int32(binary.NativeEndian.Uint32(b[unix.NLMSG_HDRLEN:]))
			if errno := syscall.Errno(-code); code < 0 && errno != unix.ENOENT {
				errs = append(errs, errno)
			}
		}
		b = b[min((length+3)&^3, len(b)):]
	}
	return errs
}

// unmountAll detaches the mounts. It reports whether all are gone.
func unmountAll(targets []string) bool {
	all := true
	for _, target := range targets {
		switch err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err {
		case nil, unix.EINVAL, unix.ENOENT: // EINVAL: not a mount point
		default:
			logf("teardown: unmount %s: %v", target, err)
			all = false
		}
	}
	return all
}

// removeAll removes files and folders, only of the run directory and never
// what is mounted there: a mount that could not be undone is someone's data.
func removeAll(runDir string, paths []string) {
	for _, path := range paths {
		if !within(runDir, path) {
			logf("teardown: %s is not in %s, not removed", path, runDir)
			continue
		}
		if err := removeTree(path); err != nil {
			logf("teardown: %v", err)
		}
	}
}

func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != "." && rel != ".." && !strings.HasPrefix(rel, "../")
}

// removeTree removes path, unless it or a part of it is a mount point. Removing
// ends there, so that nothing in a mount is ever touched.
func removeTree(path string) error {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	if err == unix.ENOENT {
		return nil
	} else if err != nil {
		return &os.PathError{Op: "statx", Path: path, Err: err}
	}
	if st.Attributes_mask&st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 ||
		st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return fmt.Errorf("%s is or may be a mount point, not removed", path)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		entries, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := removeTree(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(path)
}

// removeLogs deletes a log and what was rotated out of it.
func removeLogs(l proto.Log) {
	if l.Path == "" {
		return
	}
	os.Remove(l.Path)
	entries, err := os.ReadDir(filepath.Dir(l.Path))
	if err != nil {
		return
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(l.Path)+".") {
			os.Remove(filepath.Join(filepath.Dir(l.Path), e.Name()))
		}
	}
}
