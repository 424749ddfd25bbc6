// SPDX-License-Identifier: Apache-2.0

// Package teardown removes what a container has on the host when it ends: packet
// filter rules, mounts, files in its run directory, and its log. The daemon has
// listed them; no daemon is needed to remove them.
//
// It never enters a mount and never removes anything outside the run directory, apart
// from the log. Every step is idempotent, and an error does not keep the others from
// being done.
package teardown

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/log"
	"holdfast/internal/shim/proto"
)

// Netlink sends each batch to nf_tables. An object that no longer exists counts
// as deleted. Any other error is logged, and the daemon repairs the rules when it
// next checks them.
func Netlink(batches [][]byte) {
	if len(batches) == 0 {
		return
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		log.Printf("teardown: netlink socket: %v", err)
		return
	}
	defer unix.Close(fd)
	for _, b := range batches {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, len(b)+4096)
		// The kernel processes a batch before sendto returns, so its answers are
		// available then.
		if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			log.Printf("teardown: netlink: %v", err)
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
				log.Printf("teardown: netlink: %v", errno)
			}
		}
	}
}

// netlinkErrors returns the errors in answers, except ENOENT, which means that
// there was nothing to delete. It stops at malformed bytes.
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

// Unmount detaches the mounts. It reports whether all are gone.
func Unmount(targets []string) bool {
	all := true
	for _, target := range targets {
		switch err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err {
		case nil, unix.EINVAL, unix.ENOENT: // EINVAL: not a mount point
		default:
			log.Printf("teardown: unmount %s: %v", target, err)
			all = false
		}
	}
	return all
}

// Remove removes files and folders in the run directory. It never removes
// anything in a mount: a mount that could not be detached may hold user data.
func Remove(runDir string, paths []string) {
	for _, path := range paths {
		if !within(runDir, path) {
			log.Printf("teardown: %s is not in %s, not removed", path, runDir)
			continue
		}
		if err := removeTree(path); err != nil {
			log.Printf("teardown: %v", err)
		}
	}
}

func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != "." && rel != ".." && !strings.HasPrefix(rel, "../")
}

// removeTree removes path, but fails at a mount point, so that nothing in a mount
// is touched.
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

// Logs deletes a log and its rotated files.
func Logs(l proto.Log) {
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
