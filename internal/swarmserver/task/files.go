// SPDX-License-Identifier: Apache-2.0

package task

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/swarmkit/v2/api"
	"golang.org/x/sys/unix"

	"holdfast/internal/durable"
)

// Secrets and configs of a task are files on a tmpfs of this process, which are bound
// into the container. They outlive this process and the daemon, and never reach a
// disk. After a reboot they are gone, and so are the tasks that had them.

// file is one secret or config of a task.
type file struct {
	name     string // in the directory of the task
	target   string // path in the container
	data     []byte
	mode     fs.FileMode
	uid, gid int
}

// makeFiles writes the secrets and configs of the task and returns their mounts.
func (c *controller) makeFiles() ([]mount.Mount, error) {
	files, err := c.files()
	if err != nil || len(files) == 0 {
		return nil, err
	}
	if err := c.x.mountSecrets(); err != nil {
		return nil, err
	}
	dir := filepath.Join(c.x.secrets, c.task.ID)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	var mounts []mount.Mount
	for _, f := range files {
		at := filepath.Join(dir, f.name)
		if err := write(at, f); err != nil {
			return nil, fmt.Errorf("write the file for %s: %w", f.target, err)
		}
		mounts = append(mounts, mount.Mount{Type: mount.TypeBind, Source: at, Target: f.target, ReadOnly: true})
	}
	return mounts, nil
}

func write(at string, f file) error {
	if err := durable.WriteFile(at, f.data, 0o600); err != nil {
		return err
	}
	if err := os.Chown(at, f.uid, f.gid); err != nil {
		return err
	}
	return os.Chmod(at, f.mode)
}

// files collects what the task refers to.
func (c *controller) files() (files []file, err error) {
	spec := c.task.Spec.GetContainer()
	for _, ref := range spec.Secrets {
		target := ref.GetFile()
		if target == nil {
			return nil, fmt.Errorf("the secret %s has no target file", ref.SecretName)
		}
		secret, err := c.dependencies.Secrets().Get(ref.SecretID)
		if err != nil {
			return nil, fmt.Errorf("the secret %s: %w", ref.SecretName, err)
		}
		if files, err = add(files, target, "/run/secrets", secret.Spec.Data); err != nil {
			return nil, fmt.Errorf("the secret %s: %w", ref.SecretName, err)
		}
	}
	for _, ref := range spec.Configs {
		target := ref.GetFile()
		if target == nil {
			continue // for the runtime of Windows
		}
		config, err := c.dependencies.Configs().Get(ref.ConfigID)
		if err != nil {
			return nil, fmt.Errorf("the config %s: %w", ref.ConfigName, err)
		}
		if files, err = add(files, target, "/", config.Spec.Data); err != nil {
			return nil, fmt.Errorf("the config %s: %w", ref.ConfigName, err)
		}
	}
	return files, nil
}

func add(files []file, target *api.FileTarget, below string, data []byte) ([]file, error) {
	f := file{name: strconv.Itoa(len(files)), target: target.Name, data: data, mode: target.Mode.Perm()}
	if !path.IsAbs(f.target) {
		f.target = path.Join(below, f.target)
	}
	for _, id := range []struct {
		text string
		to   *int
	}{{target.UID, &f.uid}, {target.GID, &f.gid}} {
		if id.text == "" {
			continue
		}
		n, err := strconv.ParseUint(id.text, 10, 31)
		if err != nil {
			return nil, fmt.Errorf("%q is not the number of a user or group", id.text)
		}
		*id.to = int(n)
	}
	return append(files, f), nil
}

// removeFiles removes the files of a task. What can't be removed is removed by a sweep.
func (x *Executor) removeFiles(task string) {
	_ = os.RemoveAll(filepath.Join(x.secrets, task))
}

// leftFiles returns the tasks that have files and neither a controller nor a container: a
// process was killed between the removal of the container and that of the files. The
// directories are listed first: a task that gets files later has a controller already.
func (x *Executor) leftFiles() (tasks []string) {
	entries, err := os.ReadDir(x.secrets)
	if err != nil {
		return nil // no task of this host has had files
	}
	all, err := x.host.All()
	if err != nil {
		return nil // the containers of some tasks are unknown
	}
	has := map[string]bool{}
	for _, c := range all {
		has[c.Task] = true
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.isComplete() {
		return nil
	}
	for _, e := range entries {
		if task := e.Name(); x.open[task] == 0 && !has[task] {
			tasks = append(tasks, task)
		}
	}
	return tasks
}

// mountSecrets makes the tmpfs, unless it is there. Tasks are prepared side by side: a second
// tmpfs would hide the files of the first.
func (x *Executor) mountSecrets() error {
	x.mounting.Lock()
	defer x.mounting.Unlock()
	dir := x.secrets
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if st.Type == unix.TMPFS_MAGIC && mounted(dir) {
		return nil
	}
	err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0711,noswap")
	if errors.Is(err, unix.EINVAL) { // a kernel before 6.4
		err = unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0711")
	}
	if err != nil {
		return &os.PathError{Op: "mount", Path: dir, Err: err}
	}
	return nil
}

// mounted reports whether a directory is on another file system than its parent. The
// exec root may be a tmpfs itself.
func mounted(dir string) bool {
	var own, parent unix.Stat_t
	return unix.Lstat(dir, &own) == nil && unix.Lstat(filepath.Dir(dir), &parent) == nil && own.Dev != parent.Dev
}
