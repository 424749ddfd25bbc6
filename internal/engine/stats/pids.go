package stats

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Pids are the processes of a control group and of those nested in it, as the
// reader's pid namespace numbers them, in ascending order. A group that is
// gone is an error of kind errdefs.ErrNotFound.
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
			// A threaded group (v2) refuses the file; its processes are listed
			// by the one above.
			if p != root {
				return nil
			}
			return err
		}
		for _, f := range strings.Fields(string(b)) {
			// 0 is a process of a pid namespace that we don't see.
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
