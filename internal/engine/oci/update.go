// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"slices"

	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"holdfast/internal/errs"
)

// Update validates a change of a container's limits against its configuration. It
// returns the new configuration, and the limits for the runtime's `update`, which
// only have what changes. They are nil if no limit changes. It does not modify hc
// and u.
//
// Errors are of kind errdefs.ErrInvalidArgument, or errdefs.ErrConflict if the
// current configuration forbids the change.
func Update(h Host, hc *container.HostConfig, u container.UpdateConfig) (*container.HostConfig, *specs.LinuxResources, []string, error) {
	r := u.Resources
	boundShares(&r)
	if r.PidsLimit != nil && *r.PidsLimit < 0 {
		r.PidsLimit = new(int64) // each of these means "unlimited"
	}
	if len(r.Ulimits) > 0 || len(r.Devices) > 0 || len(r.DeviceCgroupRules) > 0 || len(r.DeviceRequests) > 0 || r.CgroupParent != "" {
		return nil, nil, nil, errs.Invalid("ulimits, devices and the cgroup parent can't be changed: create the container anew")
	}
	if u.RestartPolicy.Name != "" {
		if err := container.ValidateRestartPolicy(u.RestartPolicy); err != nil {
			return nil, nil, nil, err
		}
		if hc.AutoRemove && !u.RestartPolicy.IsNone() {
			return nil, nil, nil, errs.Invalid("Restart policy cannot be updated because AutoRemove is enabled for the container")
		}
	}
	warnings, err := validateResources(h, &r, true)
	if err != nil {
		return nil, nil, warnings, err
	}
	if err := conflicts(hc.Resources, r); err != nil {
		return nil, nil, warnings, err
	}

	merged := *hc
	mergeResources(&merged.Resources, r)
	if u.RestartPolicy.Name != "" {
		merged.RestartPolicy = u.RestartPolicy
	}
	// The rules between limits must hold for the result, too.
	check := merged.Resources
	if _, err := validateResources(h, &check, true); err != nil {
		return nil, nil, warnings, err
	}
	lr, err := changed(h, withDropped(hc.Resources, r))
	if err != nil {
		return nil, nil, warnings, err
	}
	return &merged, lr, warnings, nil
}

func conflicts(have, want container.Resources) error {
	switch {
	case want.NanoCPUs > 0 && have.CPUPeriod > 0:
		return errs.Conflict("Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set")
	case want.NanoCPUs > 0 && have.CPUQuota > 0:
		return errs.Conflict("Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set")
	case want.CPUQuota > 0 && have.NanoCPUs > 0:
		return errs.Conflict("Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set")
	case want.CPUPeriod > 0 && have.NanoCPUs > 0:
		return errs.Conflict("Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set")
	case want.Memory != 0 && want.MemorySwap == 0 && have.MemorySwap > 0 && want.Memory > have.MemorySwap:
		return errs.Conflict("Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time")
	case want.MemorySwap > 0 && want.Memory == 0 && have.Memory == 0:
		return errs.Invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
	}
	return nil
}

// mergeResources applies the given values. Zero and nil mean "unchanged".
func mergeResources(to *container.Resources, r container.Resources) {
	set(&to.CPUShares, r.CPUShares)
	set(&to.NanoCPUs, r.NanoCPUs)
	set(&to.CPUPeriod, r.CPUPeriod)
	set(&to.CPUQuota, r.CPUQuota)
	set(&to.CPURealtimePeriod, r.CPURealtimePeriod)
	set(&to.CPURealtimeRuntime, r.CPURealtimeRuntime)
	set(&to.CpusetCpus, r.CpusetCpus)
	set(&to.CpusetMems, r.CpusetMems)
	set(&to.Memory, r.Memory)
	set(&to.MemorySwap, r.MemorySwap)
	set(&to.MemoryReservation, r.MemoryReservation)
	set(&to.BlkioWeight, r.BlkioWeight)
	set(&to.PidsLimit, r.PidsLimit)
	set(&to.MemorySwappiness, r.MemorySwappiness)
	set(&to.OomKillDisable, r.OomKillDisable)
	// For lists nil means "unchanged", and an empty list clears them (API 1.55).
	if r.BlkioWeightDevice != nil {
		to.BlkioWeightDevice = r.BlkioWeightDevice
	}
	if r.BlkioDeviceReadBps != nil {
		to.BlkioDeviceReadBps = r.BlkioDeviceReadBps
	}
	if r.BlkioDeviceWriteBps != nil {
		to.BlkioDeviceWriteBps = r.BlkioDeviceWriteBps
	}
	if r.BlkioDeviceReadIOps != nil {
		to.BlkioDeviceReadIOps = r.BlkioDeviceReadIOps
	}
	if r.BlkioDeviceWriteIOps != nil {
		to.BlkioDeviceWriteIOps = r.BlkioDeviceWriteIOps
	}
}

func set[T comparable](to *T, v T) {
	var zero T
	if v != zero {
		*to = v
	}
}

// changed returns the limits in the form of the runtime specification, or nil if
// there are none.
func changed(h Host, r container.Resources) (*specs.LinuxResources, error) {
	lr, err := Resources(h, r)
	if err != nil {
		return nil, err
	}
	if lr.Memory == nil && lr.CPU == nil && lr.Pids == nil && lr.BlockIO == nil {
		return nil, nil
	}
	return lr, nil
}

// withDropped adds to the lists those devices that lose their limit, with the
// value that lifts it, because a runtime only changes the devices that are
// listed.
func withDropped(have, want container.Resources) container.Resources {
	for _, t := range []struct {
		have []*blkiodev.ThrottleDevice
		want *[]*blkiodev.ThrottleDevice
	}{
		{have.BlkioDeviceReadBps, &want.BlkioDeviceReadBps},
		{have.BlkioDeviceWriteBps, &want.BlkioDeviceWriteBps},
		{have.BlkioDeviceReadIOps, &want.BlkioDeviceReadIOps},
		{have.BlkioDeviceWriteIOps, &want.BlkioDeviceWriteIOps},
	} {
		if *t.want == nil {
			continue
		}
		list := slices.Clone(*t.want)
		for _, old := range t.have {
			if !slices.ContainsFunc(list, func(d *blkiodev.ThrottleDevice) bool { return d.Path == old.Path }) {
				list = append(list, &blkiodev.ThrottleDevice{Path: old.Path})
			}
		}
		*t.want = list
	}
	if want.BlkioWeightDevice != nil {
		list := slices.Clone(want.BlkioWeightDevice)
		for _, old := range have.BlkioWeightDevice {
			if !slices.ContainsFunc(list, func(d *blkiodev.WeightDevice) bool { return d.Path == old.Path }) {
				list = append(list, &blkiodev.WeightDevice{Path: old.Path})
			}
		}
		want.BlkioWeightDevice = list
	}
	return want
}
