// SPDX-License-Identifier: Apache-2.0

//go:build linux

package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"holdfast/internal/cli/status"
)

// cleanUp removes everything that the demo has made, however far it came. The
// daemon removes the container. Whatever it could not remove is then found by
// its name.
func (d *demo) cleanUp() error {
	// The demo's own context may be cancelled already.
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()

	var errs []error
	if err := d.removeContainer(ctx); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs,
		d.daemon.stop(ctx),
		endShims(ctx, d.daemon.execRoot),
		removeCgroups(d.daemon.cgroup),
		unmountAll(d.root),
		removeBridge(d.daemon.bridge),
		removeRules(d.daemon.bridge),
		d.api.Close(),
	)
	if d.daemon.kept != nil {
		errs = append(errs, d.daemon.kept.Close())
	}
	errs = append(errs, os.RemoveAll(d.root))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up after the demo: %w", err)
	}
	return nil
}

// removeContainer removes the container through the daemon, which it starts
// again if necessary.
func (d *demo) removeContainer(ctx context.Context) error {
	if !d.asked {
		return nil
	}
	if !d.daemon.alive() {
		if err := d.daemon.launch(); err != nil {
			return err
		}
	}
	if err := d.daemon.awaitReady(ctx); err != nil {
		return err
	}
	_, err := d.api.ContainerRemove(ctx, containerName, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// endShims waits until the shims have exited. It kills those whose container
// still runs, because the daemon could not remove it.
func endShims(ctx context.Context, execRoot string) error {
	shims, err := status.ReadShims(ctx, execRoot)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range shims {
		// A shim exits once its container has ended.
		if s.Pid != 0 && s.ShimPid != 0 {
			errs = append(errs, signalAndWait(ctx, s.Pid, unix.SIGKILL))
		}
		if s.ShimPid != 0 {
			if err := signalAndWait(ctx, s.ShimPid, 0); err != nil {
				errs = append(errs, err, signalAndWait(context.WithoutCancel(ctx), s.ShimPid, unix.SIGKILL))
			}
		}
	}
	return errors.Join(errs...)
}

// signalAndWait sends a signal (0 is none) and returns when the process has
// ended. It succeeds if there is no such process.
func signalAndWait(ctx context.Context, pid int, sig unix.Signal) error {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	process := os.NewFile(uintptr(fd), "pidfd")
	defer process.Close()
	if sig != 0 {
		if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("signal process %d: %w", pid, err)
		}
	}
	for {
		left := -1
		if deadline, ok := ctx.Deadline(); ok {
			left = max(0, int(time.Until(deadline).Milliseconds()))
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, left)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for process %d: %w", pid, err)
		case n == 0:
			return fmt.Errorf("process %d did not end in time", pid)
		default:
			return nil
		}
	}
}

// unmountAll detaches every mount below the directory, the last one first.
func unmountAll(root string) error {
	root, err := filepath.EvalSymlinks(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Mountpoint, root+"/"), false
	})
	if err != nil {
		return err
	}
	var errs []error
	for i := len(mounts) - 1; i >= 0; i-- {
		path := mounts[i].Mountpoint
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

// removeCgroups removes the parent of the container's cgroup from every
// hierarchy. It is empty by now.
func removeCgroups(name string) error {
	hierarchies, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range hierarchies {
		if err := os.Remove(filepath.Join(h.Mountpoint, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
