// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	sysmount "github.com/moby/sys/mount"

	"holdfast/internal/errs"
)

// ParseBind parses an entry of HostConfig.Binds: "source:target[:mode]", or
// "target" for an anonymous volume. A source that is not an absolute path is a
// volume's name. mode is returned as it was written.
func ParseBind(spec, volumeDriver string) (m mount.Mount, mode string, err error) {
	parts := strings.SplitN(spec, ":", 4)
	if parts[0] == "" {
		return m, "", errs.Invalid("invalid volume specification: '%s'", spec)
	}
	switch len(parts) {
	case 1:
		m.Target = parts[0]
	case 2:
		if validMode(parts[1]) {
			// A target without a source can't have a mode.
			return m, "", errs.Invalid("invalid volume specification: '%s'", spec)
		}
		m.Source, m.Target = parts[0], parts[1]
	case 3:
		m.Source, m.Target, mode = parts[0], parts[1], parts[2]
	default:
		return m, "", errs.Invalid("invalid volume specification: '%s'", spec)
	}
	if !validMode(mode) {
		return m, "", errs.Invalid("invalid mode: %s", mode)
	}
	m.Type = mount.TypeVolume
	if path.IsAbs(m.Source) {
		m.Type = mount.TypeBind
		m.Source = path.Clean(m.Source)
	} else if volumeDriver != "" {
		m.VolumeOptions = &mount.VolumeOptions{DriverConfig: &mount.Driver{Name: volumeDriver}}
	}
	if err := applyMode(&m, spec, mode); err != nil {
		return m, "", err
	}
	if err := checkMount(&m); err != nil {
		return m, "", errs.Invalid("invalid volume specification: '%s': invalid mount config for type %q: %v", spec, m.Type, err)
	}
	m.Target = path.Clean(m.Target)
	return m, mode, nil
}

func applyMode(m *mount.Mount, spec, mode string) error {
	bind := func() *mount.BindOptions {
		if m.BindOptions == nil {
			m.BindOptions = &mount.BindOptions{}
		}
		return m.BindOptions
	}
	for _, o := range strings.Split(mode, ",") {
		switch {
		case o == "ro":
			m.ReadOnly = true
		case o == "ro-non-recursive" || o == "ro-force-recursive" || o == "rro":
			if m.Type != mount.TypeBind {
				return errs.Invalid("mount mode %q requires a bind mount: invalid volume specification: '%s'", mode, spec)
			}
			m.ReadOnly = true
			if o == "ro-non-recursive" {
				bind().ReadOnlyNonRecursive = true
			} else {
				bind().ReadOnlyForceRecursive = true
			}
		case o == "nocopy":
			if m.Type != mount.TypeVolume {
				return errs.Invalid("invalid mode: %s: nocopy is for volumes", mode)
			}
			if m.VolumeOptions == nil {
				m.VolumeOptions = &mount.VolumeOptions{}
			}
			m.VolumeOptions.NoCopy = true
		case slices.Contains(mount.Propagations, mount.Propagation(o)):
			bind().Propagation = mount.Propagation(o)
		}
	}
	return nil
}

// validMode accepts a list of modes with at most one of each kind.
func validMode(mode string) bool {
	if mode == "" {
		return true
	}
	kinds := map[string]int{}
	for _, o := range strings.Split(mode, ",") {
		switch o {
		case "rw", "ro", "ro-non-recursive", "ro-force-recursive", "rro":
			kinds["rw"]++
		case "z", "Z":
			kinds["label"]++
		case "nocopy":
			kinds["copy"]++
		case "consistent", "cached", "delegated":
			kinds["consistency"]++
		default:
			if !slices.Contains(mount.Propagations, mount.Propagation(o)) {
				return false
			}
			kinds["propagation"]++
		}
	}
	for _, n := range kinds {
		if n > 1 {
			return false
		}
	}
	return true
}

// ParseVolumesFrom parses an entry of HostConfig.VolumesFrom, "container[:mode]".
func ParseVolumesFrom(spec string) (ref string, readOnly bool, err error) {
	ref, mode, _ := strings.Cut(spec, ":")
	if ref == "" {
		return "", false, errs.Invalid("volumes-from specification cannot be an empty string")
	}
	if !validMode(mode) {
		return "", false, errs.Invalid("invalid mode: %s", mode)
	}
	for _, o := range strings.Split(mode, ",") {
		switch o {
		case "", "rw", "z", "Z", "consistent", "cached", "delegated":
		case "ro":
			readOnly = true
		default:
			return "", false, errs.Invalid("invalid mode: %s: it is not for volumes-from", mode)
		}
	}
	return ref, readOnly, nil
}

// TmpfsOptions returns the mount options of a tmpfs of HostConfig.Mounts, in the
// form of HostConfig.Tmpfs: comma-separated.
func TmpfsOptions(o *mount.TmpfsOptions, readOnly bool) (string, error) {
	var opts []string
	if readOnly {
		opts = append(opts, "ro")
	}
	if o == nil {
		return strings.Join(opts, ","), nil
	}
	if o.Mode != 0 {
		if o.Mode&^0o7777 != 0 {
			return "", errs.Invalid("invalid tmpfs mode %#o", uint32(o.Mode))
		}
		opts = append(opts, "mode="+strconv.FormatUint(uint64(o.Mode), 8))
	}
	if o.SizeBytes < 0 {
		return "", errs.Invalid("invalid tmpfs size: it is negative")
	}
	if n := o.SizeBytes; n != 0 {
		suffix := ""
		for _, s := range []struct {
			suffix string
			shift  uint
		}{{"g", 30}, {"m", 20}, {"k", 10}} {
			if n%(1<<s.shift) == 0 {
				n, suffix = n>>s.shift, s.suffix
				break
			}
		}
		opts = append(opts, "size="+strconv.FormatInt(n, 10)+suffix)
	}
	for _, kv := range o.Options {
		if len(kv) < 1 || len(kv) > 2 || kv[0] == "" || strings.ContainsAny(strings.Join(kv, ""), ",=") {
			return "", errs.Invalid("invalid tmpfs option %q", kv)
		}
		opts = append(opts, strings.Join(kv, "="))
	}
	return strings.Join(opts, ","), nil
}

// mergeTmpfs adds Docker's defaults to a tmpfs's options. The later of two
// conflicting options wins.
func mergeTmpfs(options string) ([]string, error) {
	all := []string{"noexec", "nosuid", "nodev", string(mount.PropagationRPrivate)}
	if options != "" {
		all = append(all, strings.Split(options, ",")...)
	}
	merged, err := sysmount.MergeTmpfsOptions(all)
	if err != nil {
		return nil, errs.Invalid("invalid tmpfs option: %v", err)
	}
	return merged, nil
}

// checkTarget validates a mount point in the container.
func checkTarget(p string) error {
	if p == "" {
		return errs.Invalid("field Target must not be empty")
	}
	if !path.IsAbs(p) {
		return errs.Invalid("invalid mount path: '%s' mount path must be absolute", p)
	}
	if path.Clean(p) == "/" {
		return errs.Invalid("invalid specification: destination can't be '/'")
	}
	if strings.ContainsRune(p, 0) {
		return errs.Invalid("invalid mount path: %q contains a zero byte", p)
	}
	return nil
}

// checkMount validates one mount, without accessing the host.
func checkMount(m *mount.Mount) error {
	extra := func(name string) error { return errs.Invalid("field %s must not be specified", name) }
	if err := checkTarget(m.Target); err != nil {
		return err
	}
	if m.Type != mount.TypeTmpfs && m.TmpfsOptions != nil {
		return extra("TmpfsOptions")
	}
	if m.Type != mount.TypeImage && m.ImageOptions != nil {
		return extra("ImageOptions")
	}
	switch m.Type {
	case mount.TypeBind:
		if m.Source == "" {
			return errs.Invalid("field Source must not be empty")
		}
		if m.VolumeOptions != nil {
			return extra("VolumeOptions")
		}
		if !path.IsAbs(m.Source) {
			return errs.Invalid("invalid mount path: '%s' mount path must be absolute", m.Source)
		}
		return checkBindOptions(m)
	case mount.TypeVolume:
		if o := m.BindOptions; o != nil {
			return extra("BindOptions")
		}
		if m.Source == "" && m.ReadOnly {
			return errs.Invalid("must not set ReadOnly mode when using anonymous volumes")
		}
		if o := m.VolumeOptions; o != nil && o.Subpath != "" {
			if m.Source == "" {
				return errs.Invalid("must not set Subpath when using anonymous volumes")
			}
			if err := checkSubpath(o.Subpath); err != nil {
				return err
			}
		}
		if o := m.VolumeOptions; o != nil && o.DriverConfig != nil && o.DriverConfig.Name != "" && o.DriverConfig.Name != "local" {
			return errs.Invalid("volume driver %q is not available: only local is", o.DriverConfig.Name)
		}
	case mount.TypeTmpfs:
		if m.BindOptions != nil {
			return extra("BindOptions")
		}
		if m.VolumeOptions != nil {
			return extra("VolumeOptions")
		}
		if m.Source != "" {
			return extra("Source")
		}
		opts, err := TmpfsOptions(m.TmpfsOptions, m.ReadOnly)
		if err != nil {
			return err
		}
		if _, err := mergeTmpfs(opts); err != nil {
			return err
		}
	case mount.TypeImage:
		if m.BindOptions != nil {
			return extra("BindOptions")
		}
		if m.VolumeOptions != nil {
			return extra("VolumeOptions")
		}
		if m.Source == "" {
			return errs.Invalid("field Source must not be empty")
		}
		if path.Clean(m.Target) == "/dev" {
			// Runtimes hide files of /proc by mounting the container's /dev/null over
			// them. A hostile image could put something else in its place.
			return errs.Invalid("an image can't be mounted at /dev")
		}
		if o := m.ImageOptions; o != nil && o.Subpath != "" {
			return checkSubpath(o.Subpath)
		}
	case mount.TypeCluster:
		return errs.Invalid("cluster volumes are not part of this release: use volumes of the host or bind mounts")
	default:
		return errs.Invalid("mount type unknown")
	}
	return nil
}

// checkSubpath refuses a path in a volume or an image that is absolute or leads
// out by "..". Symbolic links are checked when the path is opened.
func checkSubpath(p string) error {
	if clean := path.Clean(p); path.IsAbs(p) || clean == ".." || strings.HasPrefix(clean, "../") {
		return errs.Invalid("subpath must be a relative path within the volume")
	}
	return nil
}

func checkBindOptions(m *mount.Mount) error {
	o := m.BindOptions
	if o == nil {
		return nil
	}
	if o.Propagation != "" && !slices.Contains(mount.Propagations, o.Propagation) {
		return errs.Invalid("invalid propagation mode: %s", o.Propagation)
	}
	if o.ReadOnlyNonRecursive && o.ReadOnlyForceRecursive {
		return errs.Invalid("ReadOnlyNonRecursive and ReadOnlyForceRecursive exclude each other")
	}
	if o.NonRecursive && o.ReadOnlyForceRecursive {
		return errs.Invalid("NonRecursive and ReadOnlyForceRecursive exclude each other")
	}
	if (o.ReadOnlyNonRecursive || o.ReadOnlyForceRecursive) && !m.ReadOnly {
		return errs.Invalid("ReadOnlyNonRecursive and ReadOnlyForceRecursive require ReadOnly")
	}
	if o.ReadOnlyForceRecursive && o.Propagation != "" && o.Propagation != mount.PropagationRPrivate {
		return errs.Invalid("ReadOnlyForceRecursive requires the propagation rprivate")
	}
	return nil
}

// validateMounts validates all mounts of the container, and that no two have the
// same destination.
func validateMounts(h Host, c *container.Config, hc *container.HostConfig) (warnings []string, err error) {
	taken := map[string]bool{}
	take := func(target string) error {
		target = path.Clean(target)
		if taken[target] {
			return errs.Invalid("Duplicate mount point: %s", target)
		}
		taken[target] = true
		return nil
	}
	for i := range hc.Mounts {
		m := &hc.Mounts[i]
		if err := checkMount(m); err != nil {
			return warnings, errs.Invalid("invalid mount config for type %q: %v", m.Type, err)
		}
		if m.Type == mount.TypeBind {
			create := m.BindOptions != nil && m.BindOptions.CreateMountpoint
			ok, err := statExists(m.Source)
			if err != nil {
				return warnings, errs.Invalid("invalid mount config for type %q: %v", m.Type, err)
			}
			if !ok && !create {
				return warnings, errs.Invalid("invalid mount config for type %q: bind source path does not exist: %s", m.Type, m.Source)
			}
			if o := m.BindOptions; o != nil && o.ReadOnlyForceRecursive && !h.RecursiveReadOnly {
				return warnings, errs.Invalid("invalid mount config for type %q: recursive read-only mounts need Linux 5.12 or later", m.Type)
			}
		}
		if err := take(m.Target); err != nil {
			return warnings, err
		}
	}
	for _, b := range hc.Binds {
		m, _, err := ParseBind(b, hc.VolumeDriver)
		if err != nil {
			return warnings, err
		}
		if o := m.BindOptions; o != nil && o.ReadOnlyForceRecursive && !h.RecursiveReadOnly {
			return warnings, errs.Invalid("invalid volume specification: '%s': recursive read-only mounts need Linux 5.12 or later", b)
		}
		if err := take(m.Target); err != nil {
			return warnings, err
		}
	}
	for _, target := range sortedKeys(hc.Tmpfs) {
		if err := checkTarget(target); err != nil {
			return warnings, err
		}
		if _, err := mergeTmpfs(hc.Tmpfs[target]); err != nil {
			return warnings, err
		}
		if err := take(target); err != nil {
			return warnings, err
		}
	}
	for target := range c.Volumes {
		if err := checkTarget(target); err != nil {
			return warnings, errs.Invalid("invalid volume: %v", err)
		}
	}
	for _, spec := range hc.VolumesFrom {
		if _, _, err := ParseVolumesFrom(spec); err != nil {
			return warnings, err
		}
	}
	return warnings, nil
}
