// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"holdfast/internal/errs"
	"holdfast/internal/shim/proto"
)

// checkRoots refuses an exec root in which containers of another data root run.
// This daemon would not know these containers, and would clean up their run
// directories and namespaces. It changes nothing.
func checkRoots(dataRoot, execRoot string) error {
	last, err := ReadRoots(execRoot)
	if errdefs.IsNotFound(err) || err == nil && last.DataRoot == dataRoot {
		return nil
	}
	if err != nil {
		// The running shims that are not ours show that there is another data root.
		last.DataRoot = "which is unknown: " + err.Error()
	}
	states, err := filepath.Glob(filepath.Join(execRoot, "shim", "*", proto.StateFile))
	if err != nil {
		return fmt.Errorf("look for containers of another data root: %w", err)
	}
	running := 0
	for _, path := range states {
		id := filepath.Base(filepath.Dir(path))
		if _, err := os.Stat(filepath.Join(dataRoot, "containers", id)); err != nil && lives(path) {
			running++
		}
	}
	if running == 0 {
		return nil
	}
	return errs.Unmet(
		"the exec root %s has running containers of the data root %s (%d); they were left alone and go on running: start with that data-root again, or give the data root %s an exec-root and a bridge of its own",
		execRoot, last.DataRoot, running, dataRoot)
}

// lives reports whether a shim's record is of a running container or of a running
// shim. An unreadable record counts as running.
func lives(path string) bool {
	text, err := os.ReadFile(path)
	if err != nil {
		return !os.IsNotExist(err)
	}
	var s proto.State
	if err := json.Unmarshal(text, &s); err != nil {
		return true
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err == nil && s.BootID != "" && s.BootID != strings.TrimSpace(string(boot)) {
		return false
	}
	if s.Status == proto.StatusExited || s.Status == proto.StatusRemoved {
		return false
	}
	return process(s.Pid, s.PidStart) || process(s.ShimPid, 0)
}

// process reports whether a process lives. If start is not 0, the process must
// also have this start time.
func process(pid int, start uint64) bool {
	if pid <= 0 {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// The name in field 2 may contain anything. The fields after it count.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return false
	}
	return start == 0 || fields[19] == strconv.FormatUint(start, 10)
}
