// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
)

// readV1 reads the controllers of cgroup v1 (Documentation/admin-guide/cgroup-v1
// of the kernel). For a controller that isn't mounted its part stays empty.
func readV1(r *container.StatsResponse, s Source) {
	if dir := s.Cgroup["cpuacct"]; dir != "" {
		u := &r.CPUStats.CPUUsage
		u.TotalUsage = number(dir, "cpuacct.usage")
		if percpu, err := text(dir, "cpuacct.usage_percpu"); err == nil {
			for _, f := range strings.Fields(percpu) {
				n, _ := strconv.ParseUint(f, 10, 64)
				u.PercpuUsage = append(u.PercpuUsage, n)
			}
		}
		stat := keyed(dir, "cpuacct.stat")
		u.UsageInUsermode, u.UsageInKernelmode = stat["user"]*tick, stat["system"]*tick
	}
	if dir := s.Cgroup["cpu"]; dir != "" {
		stat := keyed(dir, "cpu.stat")
		r.CPUStats.ThrottlingData = container.ThrottlingData{
			Periods: stat["nr_periods"], ThrottledPeriods: stat["nr_throttled"], ThrottledTime: stat["throttled_time"],
		}
	}
	if dir := s.Cgroup["memory"]; dir != "" {
		r.MemoryStats = container.MemoryStats{
			Usage:    number(dir, "memory.usage_in_bytes"),
			MaxUsage: number(dir, "memory.max_usage_in_bytes"),
			Failcnt:  number(dir, "memory.failcnt"),
			Limit:    memoryLimit(number(dir, "memory.limit_in_bytes"), s.MemTotal),
			Stats:    keyed(dir, "memory.stat"),
		}
	}
	if dir := s.Cgroup["pids"]; dir != "" {
		r.PidsStats = container.PidsStats{Current: number(dir, "pids.current"), Limit: number(dir, "pids.max")}
	}
	if dir := s.Cgroup["blkio"]; dir != "" {
		r.BlkioStats = blkioV1(dir)
	}
}

// memoryLimit returns the host's memory if there is no limit or the limit is
// higher.
func memoryLimit(limit uint64, total int64) uint64 {
	if total > 0 && (limit == 0 || limit > uint64(total)) {
		return uint64(total)
	}
	return limit
}

// blkioV1 prefers the counters of the bfq and cfq schedulers, which are more
// complete, to those of the throttling layer, which every kernel has.
func blkioV1(dir string) container.BlkioStats {
	first := func(names ...string) []container.BlkioStatEntry {
		for _, name := range names {
			if s, err := text(dir, name); err == nil {
				if entries := parseBlkio(s); len(entries) > 0 {
					return entries
				}
			}
		}
		return []container.BlkioStatEntry{}
	}
	any := func(what string) []container.BlkioStatEntry {
		return first("blkio.bfq."+what+"_recursive", "blkio."+what+"_recursive")
	}
	return container.BlkioStats{
		IoServiceBytesRecursive: first("blkio.bfq.io_service_bytes_recursive", "blkio.io_service_bytes_recursive",
			"blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"),
		IoServicedRecursive: first("blkio.bfq.io_serviced_recursive", "blkio.io_serviced_recursive",
			"blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced"),
		IoQueuedRecursive:      any("io_queued"),
		IoServiceTimeRecursive: any("io_service_time"),
		IoWaitTimeRecursive:    any("io_wait_time"),
		IoMergedRecursive:      any("io_merged"),
		IoTimeRecursive:        any("time"),
		SectorsRecursive:       any("sectors"),
	}
}

// parseBlkio parses lines "8:0 Read 4096", or "8:0 4096" if there is only one
// operation. The line with the total of all devices has no device.
func parseBlkio(s string) []container.BlkioStatEntry {
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
		op := ""
		if len(f) > 2 {
			op = strings.ToLower(f[1])
		}
		n, err := strconv.ParseUint(f[len(f)-1], 10, 64)
		if err != nil {
			continue
		}
		out = append(out, container.BlkioStatEntry{Major: major, Minor: minor, Op: op, Value: n})
	}
	return out
}

func deviceNumber(s string) (major, minor uint64, ok bool) {
	a, b, ok := strings.Cut(s, ":")
	if !ok {
		return 0, 0, false
	}
	major, err1 := strconv.ParseUint(a, 10, 64)
	minor, err2 := strconv.ParseUint(b, 10, 64)
	return major, minor, err1 == nil && err2 == nil
}
