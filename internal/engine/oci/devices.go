// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"holdfast/internal/errs"
)

var errNotDevice = errors.New("not a device node")

// setDevices sets the device nodes and the rules of the device controller. The
// runtime itself adds the default devices of the specification.
func setDevices(s *specs.Spec, in Input, _ Security) error {
	hc := in.HostConfig
	if hc.Privileged {
		devices, err := in.sys.hostDevices()
		if err != nil {
			return err
		}
		s.Linux.Devices = devices
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		for _, m := range hc.Devices {
			if m.PathInContainer == "" || m.PathOnHost == m.PathInContainer {
				continue // a duplicate
			}
			added, err := in.sys.mapDevice(m)
			if err != nil {
				return err
			}
			s.Linux.Devices = append(s.Linux.Devices, added...)
		}
		return nil
	}

	rules := defaultDeviceRules()
	for _, m := range hc.Devices {
		added, err := in.sys.mapDevice(m)
		if err != nil {
			return err
		}
		access := m.CgroupPermissions
		if access == "" {
			access = "rwm"
		}
		for _, d := range added {
			major, minor := d.Major, d.Minor
			s.Linux.Devices = append(s.Linux.Devices, d)
			rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &major, Minor: &minor, Access: access})
		}
	}
	for _, text := range hc.DeviceCgroupRules {
		rule, err := parseDeviceRule(text)
		if err != nil {
			return err
		}
		rules = append(rules, rule)
	}
	s.Linux.Resources.Devices = rules
	return nil
}

// defaultDeviceRules returns rules that deny all devices and then allow those
// that every program expects: zero, null, urandom, random, tty and console. They
// deny fuse explicitly, which mknod would otherwise allow.
func defaultDeviceRules() []specs.LinuxDeviceCgroup {
	char := func(allow bool, major, minor int64) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: allow, Type: "c", Major: &major, Minor: &minor, Access: "rwm"}
	}
	return []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		char(true, 1, 5),
		char(true, 1, 3),
		char(true, 1, 9),
		char(true, 1, 8),
		char(true, 5, 0),
		char(true, 5, 1),
		char(false, 10, 229),
	}
}

// mapDevice returns the nodes of a mapping: one node, or all below a directory.
func (s system) mapDevice(m container.DeviceMapping) ([]specs.LinuxDevice, error) {
	target := m.PathInContainer
	if target == "" {
		target = m.PathOnHost
	}
	source := filepath.Clean(m.PathOnHost)
	if resolved, err := filepath.EvalSymlinks(source); err == nil {
		source = resolved
	}
	d, err := s.device(source)
	if err == nil {
		d.Path = target
		return []specs.LinuxDevice{d}, nil
	}
	var found []specs.LinuxDevice
	if errors.Is(err, errNotDevice) {
		// Files that disappear or are not device nodes are skipped.
		_ = filepath.WalkDir(source, func(p string, e fs.DirEntry, walkErr error) error {
			if walkErr != nil || e.IsDir() {
				return nil
			}
			if child, err := s.device(resolveChild(p)); err == nil {
				child.Path = filepath.Join(target, strings.TrimPrefix(p, source))
				found = append(found, child)
			}
			return nil
		})
	}
	if len(found) == 0 {
		if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
			err = pathErr.Err // the message has the path already
		}
		return nil, errs.Invalid("error gathering device information while adding custom device %q: %v", m.PathOnHost, err)
	}
	return found, nil
}

// resolveChild follows links in a directory such as /dev/disk/by-id, but only to
// targets in /dev, because the user who named the directory may not know its
// whole content.
func resolveChild(p string) string {
	resolved, err := filepath.EvalSymlinks(p)
	if err != nil || !strings.HasPrefix(resolved, "/dev/") {
		return p
	}
	return resolved
}

// hostDevices returns the host's nodes for a privileged container, except those
// that the container gets of its own.
func (s system) hostDevices() ([]specs.LinuxDevice, error) {
	if s.devices != nil {
		return s.devices()
	}
	var found []specs.LinuxDevice
	err := filepath.WalkDir("/dev", func(p string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // it disappeared meanwhile
		case err != nil:
			return err
		case e.IsDir():
			switch p {
			case "/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.lxc", "/dev/.lxd-mounts", "/dev/.udev":
				return fs.SkipDir
			}
			return nil
		case p == "/dev/console" || p == "/dev/ptmx":
			return nil
		}
		d, err := s.device(p)
		if errors.Is(err, errNotDevice) || errors.Is(err, os.ErrNotExist) || err == nil && d.Type == "p" {
			return nil
		}
		if err != nil {
			return err
		}
		found = append(found, d)
		return nil
	})
	if err != nil {
		return nil, errs.Unmet("list the host's devices: %v", err)
	}
	return found, nil
}

var deviceRule = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})$`)
})

// parseDeviceRule parses "type major:minor access", the format of the kernel's
// devices.allow (Documentation/admin-guide/cgroup-v1/devices.rst).
func parseDeviceRule(text string) (specs.LinuxDeviceCgroup, error) {
	rule := text
	if rule == "a" {
		rule = "a *:* rwm"
	}
	m := deviceRule().FindStringSubmatch(rule)
	if m == nil {
		return specs.LinuxDeviceCgroup{}, errs.Invalid("invalid device cgroup rule format: '%s'", text)
	}
	out := specs.LinuxDeviceCgroup{Allow: true, Type: m[1], Access: m[4]}
	for i, to := range []**int64{&out.Major, &out.Minor} {
		n := int64(-1) // any
		if m[2+i] != "*" {
			var err error
			if n, err = strconv.ParseInt(m[2+i], 10, 64); err != nil {
				return out, errs.Invalid("invalid device cgroup rule format: '%s'", text)
			}
		}
		*to = &n
	}
	return out, nil
}
