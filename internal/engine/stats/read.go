// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
)

// Source says where one container's counters are.
type Source struct {
	Cgroup Cgroup
	// NetPid is a process in the container's network namespace. With 0 no network
	// counters are read, as for a container in the host's network.
	NetPid int
	// MemTotal is the host's memory in bytes. It is the limit of a container
	// without a limit of its own.
	MemTotal int64

	proc string // "/proc" except in tests
}

// Read takes one sample. CPU times are in nanoseconds since the container's start
// (the system's: since boot), memory and block IO in bytes. The caller sets the
// previous sample's fields, ID and Name. If the control group is gone it returns
// errdefs.ErrNotFound.
func Read(ctx context.Context, s Source) (container.StatsResponse, error) {
	if err := ctx.Err(); err != nil {
		return container.StatsResponse{}, err
	}
	if s.proc == "" {
		s.proc = "/proc"
	}
	r := container.StatsResponse{OSType: "linux", Read: time.Now().UTC()}
	if err := s.present(); err != nil {
		return container.StatsResponse{}, err
	}
	if s.Cgroup.v1() {
		readV1(&r, s)
	} else {
		readV2(&r, s)
	}
	system, online, err := systemCPU(s.proc)
	if err != nil {
		return container.StatsResponse{}, err
	}
	r.CPUStats.SystemUsage, r.CPUStats.OnlineCPUs = system, online
	if s.NetPid > 0 {
		r.Networks, err = interfaces(s.proc, s.NetPid)
		if err != nil {
			return container.StatsResponse{}, err
		}
	}
	return r, nil
}

// present returns an error if none of the group's directories exists any more.
func (s Source) present() error {
	var last error = os.ErrNotExist
	for _, controller := range []string{"memory", "cpuacct", "cpu", "pids"} {
		dir := s.Cgroup.dir(controller)
		if dir == "" {
			continue
		}
		if _, err := os.Stat(dir); err == nil {
			return nil
		} else {
			last = err
		}
	}
	return gone("control group", last)
}

// userHZ is the number of ticks per second in /proc/stat and cpuacct.stat:
// USER_HZ is 100 on all architectures that Go supports.
const userHZ = 100

const tick = uint64(time.Second) / userHZ

// systemCPU returns the time that all CPUs have spent, idle or not, and their
// number, from /proc/stat (proc_stat(5)).
func systemCPU(proc string) (usage uint64, online uint32, err error) {
	s, err := text(proc, "stat")
	if err != nil {
		return 0, 0, fmt.Errorf("processor time of the host: %w", err)
	}
	usage, online, ok := parseSystemCPU(s)
	if !ok {
		return 0, 0, fmt.Errorf("processor time of the host: /proc/stat has no line \"cpu\" with seven numbers")
	}
	return usage, online, nil
}

// parseSystemCPU adds user, nice, system, idle, iowait, irq and softirq.
func parseSystemCPU(s string) (usage uint64, online uint32, ok bool) {
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) == 0 || !strings.HasPrefix(f[0], "cpu") {
			continue
		}
		if f[0] != "cpu" {
			online++
			continue
		}
		if len(f) < 8 {
			return 0, 0, false
		}
		for _, field := range f[1:8] {
			n, err := strconv.ParseUint(field, 10, 64)
			if err != nil {
				return 0, 0, false
			}
			usage += n * tick
		}
		ok = true
	}
	return usage, online, ok
}

// interfaces reads the counters of a network namespace, without its loopback
// interface.
func interfaces(proc string, pid int) (map[string]container.NetworkStats, error) {
	s, err := text(proc, strconv.Itoa(pid)+"/net/dev")
	if err != nil {
		return nil, gone("network counters", err)
	}
	return parseNetDev(s), nil
}

// parseNetDev parses /proc/net/dev: two header lines, then for each interface
// eight receive counters and eight transmit counters.
func parseNetDev(s string) map[string]container.NetworkStats {
	out := map[string]container.NetworkStats{}
	for line := range strings.Lines(s) {
		// The name ends at the last colon, because names of aliases contain one.
		i := strings.LastIndexByte(line, ':')
		if i < 0 {
			continue
		}
		name, f := strings.TrimSpace(line[:i]), strings.Fields(line[i+1:])
		if name == "" || name == "lo" || len(f) < 16 {
			continue
		}
		n := make([]uint64, 16)
		for k := range n {
			n[k], _ = strconv.ParseUint(f[k], 10, 64)
		}
		out[name] = container.NetworkStats{
			RxBytes: n[0], RxPackets: n[1], RxErrors: n[2], RxDropped: n[3],
			TxBytes: n[8], TxPackets: n[9], TxErrors: n[10], TxDropped: n[11],
		}
	}
	return out
}
