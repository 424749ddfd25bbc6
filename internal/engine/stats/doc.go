// Package stats reads what a container uses: the counters of its control group
// (v1, hybrid, v2) and of its network interfaces, in the API's form; and which
// processes it has.
//
// It only reads files below /proc and the control group's folders, and runs
// ps for Top. It knows no container: who calls it says where to look.
package stats

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Cgroup are the folders of one container's control group: one for each v1
// controller ("memory", "cpuacct", …), and with the key "" the one in the v2
// tree. It is what Host.CgroupDirs of package oci makes.
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

// dir is the folder to find a controller's files in, "" if there is none.
func (c Cgroup) dir(controller string) string {
	if c.v1() {
		return c[controller]
	}
	return c[""]
}

// gone turns a missing folder or file into the kind errdefs.ErrNotFound.
func gone(what string, err error) error {
	if err != nil && os.IsNotExist(err) {
		return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("%s: the container is not running", what))
	}
	return err
}

// text reads a small file.
func text(dir, name string) (string, error) {
	b, err := os.ReadFile(dir + "/" + name)
	return strings.TrimSpace(string(b)), err
}

// number reads a file that holds one number; "max" and what isn't there are 0.
func number(dir, name string) uint64 {
	s, err := text(dir, name)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(s, 10, 64)
	return n
}

// keyed reads a file of "key value" lines. A file that isn't there is nil.
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
