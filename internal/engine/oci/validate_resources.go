// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"

	"holdfast/internal/errs"
)

// minMemory leaves room for the start of the runtime in the container's group.
const minMemory = 6 << 20

// validateResources validates limits, and removes those that the host's control
// groups do not support.
func validateResources(h Host, r *container.Resources, update bool) (warnings []string, err error) {
	warn := func(text string) { warnings = append(warnings, text) }
	for _, f := range []func(Host, *container.Resources, bool, func(string)) error{
		validateMemory, validateCPU, validateCpuset, validateBlkio,
	} {
		if err := f(h, r, update, warn); err != nil {
			return warnings, err
		}
	}
	if r.PidsLimit != nil && !h.Pids {
		if *r.PidsLimit > 0 {
			warn("Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.")
		}
		r.PidsLimit = nil
	}
	return warnings, nil
}

func validateMemory(h Host, r *container.Resources, update bool, warn func(string)) error {
	// Old clients send -1 for "not set".
	if r.MemorySwappiness != nil && *r.MemorySwappiness == -1 {
		r.MemorySwappiness = nil
	}
	if r.Memory != 0 && r.Memory < minMemory {
		return errs.Invalid("Minimum memory limit allowed is 6MB")
	}
	if r.MemoryReservation < 0 || r.MemorySwap < -1 {
		return errs.Invalid("invalid memory limit: it is negative")
	}
	if r.Memory > 0 && !h.MemoryLimit {
		warn("Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded.")
		r.Memory, r.MemorySwap = 0, -1
	}
	if r.Memory > 0 && r.MemorySwap != -1 && !h.SwapLimit {
		warn("Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.")
		r.MemorySwap = -1
	}
	if r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory {
		return errs.Invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
	}
	if r.Memory == 0 && r.MemorySwap > 0 && !update {
		return errs.Invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
	}
	if r.MemorySwappiness != nil && !h.MemorySwappiness {
		warn("Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.")
		r.MemorySwappiness = nil
	}
	if s := r.MemorySwappiness; s != nil && (*s < 0 || *s > 100) {
		return errs.Invalid("Invalid value: %v, valid memory swappiness range is 0-100", *s)
	}
	if r.MemoryReservation > 0 && !h.MemoryReservation {
		warn("Your kernel does not support memory soft limit capabilities or the cgroup is not mounted. Limitation discarded.")
		r.MemoryReservation = 0
	}
	if r.MemoryReservation > 0 && r.MemoryReservation < minMemory {
		return errs.Invalid("Minimum memory reservation allowed is 6MB")
	}
	if r.Memory > 0 && r.MemoryReservation > 0 && r.Memory < r.MemoryReservation {
		return errs.Invalid("Minimum memory limit can not be less than memory reservation limit, see usage")
	}
	if r.OomKillDisable != nil && !h.OomKillDisable {
		if *r.OomKillDisable {
			warn("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
		}
		r.OomKillDisable = nil
	}
	if r.OomKillDisable != nil && *r.OomKillDisable && r.Memory == 0 {
		warn("OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.")
	}
	return nil
}

func validateCPU(h Host, r *container.Resources, _ bool, warn func(string)) error {
	if r.NanoCPUs > 0 && r.CPUPeriod > 0 {
		return errs.Invalid("Conflicting options: Nano CPUs and CPU Period cannot both be set")
	}
	if r.NanoCPUs > 0 && r.CPUQuota > 0 {
		return errs.Invalid("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	}
	if r.NanoCPUs > 0 && !h.CPUCfs {
		return errs.Invalid("NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted")
	}
	if r.NanoCPUs < 0 || r.NanoCPUs > int64(h.NumCPU)*1e9 {
		return errs.Invalid("range of CPUs is from 0.01 to %d.00, as there are only %d CPUs available", h.NumCPU, h.NumCPU)
	}
	if r.CPUShares < 0 {
		return errs.Invalid("shares: invalid argument")
	}
	if r.CPUShares > 0 && !h.CPUShares {
		warn("Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.")
		r.CPUShares = 0
	}
	if (r.CPUPeriod != 0 || r.CPUQuota != 0) && !h.CPUCfs {
		warn("Your kernel does not support CPU CFS scheduler. CPU period/quota discarded.")
		r.CPUPeriod, r.CPUQuota = 0, 0
	}
	if r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1000000) {
		return errs.Invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	}
	if r.CPUQuota > 0 && r.CPUQuota < 1000 {
		return errs.Invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	}
	if r.CPUPercent > 0 {
		warn("linux does not support CPU percent. Percent discarded.")
		r.CPUPercent = 0
	}
	if (r.CPURealtimePeriod != 0 || r.CPURealtimeRuntime != 0) && !h.CPURealtime {
		return errs.Invalid("kernel does not support CPU real-time scheduler")
	}
	if r.CPURealtimePeriod < 0 || r.CPURealtimeRuntime < 0 {
		return errs.Invalid("cpu real-time period and runtime cannot be negative")
	}
	if r.CPURealtimePeriod != 0 && r.CPURealtimeRuntime > r.CPURealtimePeriod {
		return errs.Invalid("cpu real-time runtime cannot be higher than cpu real-time period")
	}
	return nil
}

func validateCpuset(h Host, r *container.Resources, _ bool, warn func(string)) error {
	if (r.CpusetCpus != "" || r.CpusetMems != "") && !h.Cpuset {
		warn("Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.")
		r.CpusetCpus, r.CpusetMems = "", ""
	}
	ok, err := listWithin(r.CpusetCpus, h.Cpus)
	if err != nil {
		return errs.Invalid("Invalid value %s for cpuset cpus: %v", r.CpusetCpus, err)
	}
	if !ok {
		return errs.Invalid("Requested CPUs are not available - requested %s, available: %s", r.CpusetCpus, h.Cpus)
	}
	ok, err = listWithin(r.CpusetMems, h.Mems)
	if err != nil {
		return errs.Invalid("Invalid value %s for cpuset mems: %v", r.CpusetMems, err)
	}
	if !ok {
		return errs.Invalid("Requested memory nodes are not available - requested %s, available: %s", r.CpusetMems, h.Mems)
	}
	return nil
}

func validateBlkio(h Host, r *container.Resources, _ bool, warn func(string)) error {
	if r.BlkioWeight > 0 && !h.BlkioWeight {
		warn("Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.")
		r.BlkioWeight = 0
	}
	if r.BlkioWeight > 0 && (r.BlkioWeight < 10 || r.BlkioWeight > 1000) {
		return errs.Invalid("Range of blkio weight is from 10 to 1000")
	}
	if r.IOMaximumBandwidth != 0 || r.IOMaximumIOps != 0 {
		return errs.Invalid("Invalid QoS settings: linux does not support Maximum IO Bandwidth or Maximum IO IOps")
	}
	if len(r.BlkioWeightDevice) > 0 && !h.BlkioWeightDevice {
		warn("Your kernel does not support Block I/O weight_device or the cgroup is not mounted. Weight-device discarded.")
		r.BlkioWeightDevice = []*blkiodev.WeightDevice{}
	}
	for _, d := range r.BlkioWeightDevice {
		if d == nil || d.Path == "" {
			return errs.Invalid("invalid block IO weight device: the path is empty")
		}
		if d.Weight > 0 && (d.Weight < 10 || d.Weight > 1000) {
			return errs.Invalid("invalid weight for device: %s:%d", d.Path, d.Weight)
		}
	}
	for _, t := range []struct {
		have bool
		list *[]*blkiodev.ThrottleDevice
		text string
	}{
		{h.BlkioReadBps, &r.BlkioDeviceReadBps, "Your kernel does not support BPS Block I/O read limit or the cgroup is not mounted. Block I/O BPS read limit discarded."},
		{h.BlkioWriteBps, &r.BlkioDeviceWriteBps, "Your kernel does not support BPS Block I/O write limit or the cgroup is not mounted. Block I/O BPS write limit discarded."},
		{h.BlkioReadIOps, &r.BlkioDeviceReadIOps, "Your kernel does not support IOPS Block read limit or the cgroup is not mounted. Block I/O IOPS read limit discarded."},
		{h.BlkioWriteIOps, &r.BlkioDeviceWriteIOps, "Your kernel does not support IOPS Block write limit or the cgroup is not mounted. Block I/O IOPS write limit discarded."},
	} {
		if len(*t.list) > 0 && !t.have {
			warn(t.text)
			*t.list = []*blkiodev.ThrottleDevice{}
		}
		for _, d := range *t.list {
			if d == nil || d.Path == "" {
				return errs.Invalid("invalid block IO throttle device: the path is empty")
			}
		}
	}
	return nil
}
