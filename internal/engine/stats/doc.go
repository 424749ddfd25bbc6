// SPDX-License-Identifier: Apache-2.0

// Package stats reads a container's resource usage: the counters of its control
// group (v1, hybrid, v2) and of its network interfaces, in the API's form. It
// also lists the container's processes.
//
// It only reads files below /proc and in the control group's directories, and
// runs ps for Top. It does not know containers: the caller passes the paths.
package stats

import (
	"os"
	"strconv"
	"strings"

	"holdfast/internal/errs"
)

// Cgroup has the directories of one container's control group: one for each v1
// controller ("memory", "cpuacct", …), and with the key "" the one in the v2
// tree. Host.CgroupDirs of package oci makes it.
type Cgroup map[string]string

// v1 reports whether resources are accounted by v1 controllers.
func (c Cgroup) v1() bool {
	for _, controller := range []string{"memory", "cpuacct", "cpu", "pids"} {
		if c[controller] != "" {
			return true
		}
	}
	return false
}

// dir returns the directory with a controller's files, or "" if there is none.
func (c Cgroup) dir(controller string) string {
	if c.v1() {
		return c[controller]
	}
	return c[""]
}

// gone converts an error for a missing file or directory to errdefs.ErrNotFound.
func gone(what string, err error) error {
	if err != nil && os.IsNotExist(err) {
		return errs.NotFound("%s: the container is not running", what)
	}
	return err
}

// text reads a small file.
func text(dir, name string) (string, error) {
	b, err := os.ReadFile(dir + "/" + name)
	return strings.TrimSpace(string(b)), err
}

// number reads a file with one number. "max" and a missing file are 0.
func number(dir, name string) uint64 {
	s, err := text(dir, name)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(s, 10, 64)
	return n
}

// keyed reads a file of "key value" lines. For a missing file it returns nil.
func keyed(dir, name string) map[string]uint64 {
	s, err := text(dir, name)
	if err != nil {
		return nil
	}
	return parseKeyed(s)
}

func parseKeyed(s string) map[string]uint64 {
	m := map[string]uint64{}
	for line := range strings.Lines(s) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(v), 10, 64); err == nil {
			m[k] = n
		}
	}
	return m
}
