// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Pids returns the processes of a control group and of its nested groups, in the
// reader's pid namespace and in ascending order. If the group is gone it returns
// errdefs.ErrNotFound.
func Pids(c Cgroup) ([]int, error) {
	var root string
	for _, controller := range []string{"pids", "memory", "devices", "cpu", "freezer", "name=systemd", ""} {
		if dir := c[controller]; dir != "" && (controller != "" || !c.v1()) {
			root = dir
			break
		}
	}
	if root == "" {
		return nil, gone("control group", os.ErrNotExist)
	}
	var pids []int
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		switch {
		case err != nil && p != root && os.IsNotExist(err):
			return nil // a nested group that was just removed
		case err != nil:
			return err
		case !e.IsDir():
			return nil
		}
		b, err := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		if err != nil {
			// A threaded group (v2) can't be read; its processes are listed by its
			// parent.
			if p != root {
				return nil
			}
			return err
		}
		for _, f := range strings.Fields(string(b)) {
			// 0 is a process of a pid namespace that is not visible here.
			if n, err := strconv.Atoi(f); err == nil && n > 0 {
				pids = append(pids, n)
			}
		}
		return nil
	})
	if err != nil {
		return nil, gone("control group", err)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}
