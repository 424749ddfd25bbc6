// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
)

// readV2 reads the interface files of cgroup v2
// (Documentation/admin-guide/cgroup-v2.rst of the kernel).
func readV2(r *container.StatsResponse, s Source) {
	dir := s.Cgroup[""]
	const us = uint64(time.Microsecond)

	cpu := keyed(dir, "cpu.stat")
	r.CPUStats.CPUUsage = container.CPUUsage{
		TotalUsage:        cpu["usage_usec"] * us,
		UsageInUsermode:   cpu["user_usec"] * us,
		UsageInKernelmode: cpu["system_usec"] * us,
	}
	r.CPUStats.ThrottlingData = container.ThrottlingData{
		Periods: cpu["nr_periods"], ThrottledPeriods: cpu["nr_throttled"], ThrottledTime: cpu["throttled_usec"] * us,
	}
	r.MemoryStats = container.MemoryStats{
		Usage: number(dir, "memory.current"),
		// The peak (Linux 5.19) is left out, as in dockerd: clients take it as a sign
		// of cgroup v1.
		Failcnt: keyed(dir, "memory.events")["oom"],
		Limit:   memoryLimit(number(dir, "memory.max"), s.MemTotal),
		Stats:   keyed(dir, "memory.stat"),
	}
	r.PidsStats = container.PidsStats{Current: number(dir, "pids.current"), Limit: number(dir, "pids.max")}
	if s, err := text(dir, "io.stat"); err == nil {
		r.BlkioStats.IoServiceBytesRecursive = parseIOStat(s)
	}
}

// parseIOStat parses lines "8:16 rbytes=1 wbytes=2 rios=3 …". It returns the
// bytes read and written.
func parseIOStat(s string) []container.BlkioStatEntry {
	var out []container.BlkioStatEntry
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		major, minor, ok := deviceNumber(f[0])
		if !ok {
			continue
		}
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			op := map[string]string{"rbytes": "read", "wbytes": "write"}[k]
			n, err := strconv.ParseUint(v, 10, 64)
			if op == "" || err != nil {
				continue
			}
			out = append(out, container.BlkioStatEntry{Major: major, Minor: minor, Op: op, Value: n})
		}
	}
	return out
}
