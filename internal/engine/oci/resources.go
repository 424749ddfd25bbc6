// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"os"
	"path/filepath"

	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"holdfast/internal/errs"
)

// cfsPeriod is the period, in microseconds, by which NanoCPUs is converted to a
// quota.
const cfsPeriod = 100_000

// Resources returns the limits in the form of the runtime specification, without
// device rules. Parts without a limit are nil. Devices with limits are looked up
// on the host: for a missing one the error is of kind errdefs.ErrInvalidArgument.
func Resources(h Host, r container.Resources) (*specs.LinuxResources, error) {
	return resources(h, r, system{})
}

func resources(h Host, r container.Resources, sys system) (*specs.LinuxResources, error) {
	blockIO, err := blockIO(r, sys)
	if err != nil {
		return nil, err
	}
	return &specs.LinuxResources{
		Memory:  memory(h, r),
		CPU:     cpu(r),
		Pids:    pids(r),
		BlockIO: blockIO,
	}, nil
}

func memory(h Host, r container.Resources) *specs.LinuxMemory {
	var m specs.LinuxMemory
	if r.Memory > 0 {
		m.Limit = &r.Memory
	}
	if r.MemoryReservation > 0 {
		m.Reservation = &r.MemoryReservation
	}
	// -1 must be passed on, because it lifts a limit. But without swap accounting a
	// runtime fails on it.
	if r.MemorySwap > 0 || r.MemorySwap == -1 && h.SwapLimit {
		m.Swap = &r.MemorySwap
	}
	if r.MemorySwappiness != nil {
		s := uint64(*r.MemorySwappiness)
		m.Swappiness = &s
	}
	m.DisableOOMKiller = r.OomKillDisable
	if m == (specs.LinuxMemory{}) {
		return nil
	}
	return &m
}

func cpu(r container.Resources) *specs.LinuxCPU {
	c := specs.LinuxCPU{Cpus: r.CpusetCpus, Mems: r.CpusetMems}
	if r.CPUShares > 0 {
		c.Shares = unsigned(r.CPUShares)
	}
	if r.NanoCPUs > 0 {
		quota := r.NanoCPUs * cfsPeriod / 1e9
		c.Period, c.Quota = unsigned(cfsPeriod), &quota
	}
	if r.CPUPeriod != 0 {
		c.Period = unsigned(r.CPUPeriod)
	}
	if r.CPUQuota != 0 {
		c.Quota = &r.CPUQuota
	}
	if r.CPURealtimePeriod != 0 {
		c.RealtimePeriod = unsigned(r.CPURealtimePeriod)
	}
	if r.CPURealtimeRuntime != 0 {
		c.RealtimeRuntime = &r.CPURealtimeRuntime
	}
	if c == (specs.LinuxCPU{}) {
		return nil
	}
	return &c
}

func unsigned(n int64) *uint64 {
	u := uint64(n)
	return &u
}

// pids returns the limit of processes. 0 and negative numbers lift the limit, for
// which the runtime needs -1.
func pids(r container.Resources) *specs.LinuxPids {
	if r.PidsLimit == nil {
		return nil
	}
	limit := *r.PidsLimit
	if limit <= 0 {
		limit = -1
	}
	return &specs.LinuxPids{Limit: &limit}
}

func blockIO(r container.Resources, sys system) (*specs.LinuxBlockIO, error) {
	var b specs.LinuxBlockIO
	some := false
	if r.BlkioWeight > 0 {
		b.Weight = &r.BlkioWeight
		some = true
	}
	for _, d := range r.BlkioWeightDevice {
		dev, err := sys.blockDevice(d.Path)
		if err != nil {
			return nil, err
		}
		w := specs.LinuxWeightDevice{Weight: &d.Weight}
		w.Major, w.Minor = dev.Major, dev.Minor
		b.WeightDevice = append(b.WeightDevice, w)
		some = true
	}
	for _, t := range []struct {
		from []*blkiodev.ThrottleDevice
		to   *[]specs.LinuxThrottleDevice
	}{
		{r.BlkioDeviceReadBps, &b.ThrottleReadBpsDevice},
		{r.BlkioDeviceWriteBps, &b.ThrottleWriteBpsDevice},
		{r.BlkioDeviceReadIOps, &b.ThrottleReadIOPSDevice},
		{r.BlkioDeviceWriteIOps, &b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.from {
			dev, err := sys.blockDevice(d.Path)
			if err != nil {
				return nil, err
			}
			l := specs.LinuxThrottleDevice{Rate: d.Rate}
			l.Major, l.Minor = dev.Major, dev.Minor
			*t.to = append(*t.to, l)
			some = true
		}
	}
	if !some {
		return nil, nil
	}
	return &b, nil
}

// system has all accesses to the machine that this package makes while it builds
// a specification. A nil field uses the real machine; tests set the fields.
type system struct {
	stat    func(path string) (specs.LinuxDevice, error)
	devices func() ([]specs.LinuxDevice, error)
	mountOf func(path string) (mountpoint, optional string, err error)
}

// device reads a device node. It returns errNotDevice for anything else.
func (s system) device(path string) (specs.LinuxDevice, error) {
	if s.stat != nil {
		return s.stat(path)
	}
	return readDevice(path)
}

// blockDevice is device for a path that has limits.
func (s system) blockDevice(path string) (specs.LinuxDevice, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if s.stat != nil {
		resolved, err = path, nil
	}
	if err != nil {
		return specs.LinuxDevice{}, errs.Invalid("%v", err)
	}
	d, err := s.device(resolved)
	if err != nil {
		return d, errs.Invalid("block IO limit for %s: %v", path, err)
	}
	return d, nil
}

func readDevice(path string) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return specs.LinuxDevice{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	d := specs.LinuxDevice{
		Path:  path,
		Major: int64(unix.Major(uint64(st.Rdev))), //nolint:unconvert // 32 bits on some architectures
		Minor: int64(unix.Minor(uint64(st.Rdev))), //nolint:unconvert // likewise
		UID:   &st.Uid,
		GID:   &st.Gid,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		d.Type = "b"
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFIFO:
		d.Type = "p"
	default:
		return d, errNotDevice
	}
	mode := os.FileMode(st.Mode &^ unix.S_IFMT)
	d.FileMode = &mode
	return d, nil
}
