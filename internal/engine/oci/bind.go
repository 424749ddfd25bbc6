package oci

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	sysmount "github.com/moby/sys/mount"
)

// ParseBind reads an entry of HostConfig.Binds: "source:target[:mode]", where
// a source that is no absolute path is a volume's name, or "target" alone for
// an anonymous volume. Mode is the mode as it was written.
func ParseBind(spec, volumeDriver string) (m mount.Mount, mode string, err error) {
	parts := strings.SplitN(spec, ":", 4)
	if parts[0] == "" {
		return m, "", invalid("invalid volume specification: '%s'", spec)
	}
	switch len(parts) {
	case 1:
		m.Target = parts[0]
	case 2:
		if validMode(parts[1]) {
			// A target alone takes no mode.
			return m, "", invalid("invalid volume specification: '%s'", spec)
		}
		m.Source, m.Target = parts[0], parts[1]
	case 3:
		m.Source, m.Target, mode = parts[0], parts[1], parts[2]
	default:
		return m, "", invalid("invalid volume specification: '%s'", spec)
	}
	if !validMode(mode) {
		return m, "", invalid("invalid mode: %s", mode)
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
		return m, "", invalid("invalid volume specification: '%s': %v", spec, err)
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
				return invalid("mount mode %q requires a bind mount: invalid volume specification: '%s'", mode, spec)
			}
			m.ReadOnly = true
			if o == "ro-non-recursive" {
				bind().ReadOnlyNonRecursive = true
			} else {
				bind().ReadOnlyForceRecursive = true
			}
		case o == "nocopy":
			if m.Type != mount.TypeVolume {
				return invalid("invalid mode: %s: nocopy is for volumes", mode)
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

// validMode takes a list of mode words with at most one of each kind.
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

// ParseVolumesFrom reads an entry of HostConfig.VolumesFrom, "container[:mode]".
func ParseVolumesFrom(spec string) (ref string, readOnly bool, err error) {
	ref, mode, _ := strings.Cut(spec, ":")
	if ref == "" {
		return "", false, invalid("volumes-from specification cannot be an empty string")
	}
	if !validMode(mode) {
		return "", false, invalid("invalid mode: %s", mode)
	}
	for _, o := range strings.Split(mode, ",") {
		switch o {
		case "", "rw", "z", "Z", "consistent", "cached", "delegated":
		case "ro":
			readOnly = true
		default:
			return "", false, invalid("invalid mode: %s: it is not for volumes-from", mode)
		}
	}
	return ref, readOnly, nil
}

// TmpfsOptions are the mount options of a tmpfs of HostConfig.Mounts, in the
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
			return "", invalid("invalid tmpfs mode %#o", uint32(o.Mode))
		}
		opts = append(opts, "mode="+strconv.FormatUint(uint64(o.Mode), 8))
	}
	if o.SizeBytes < 0 {
		return "", invalid("invalid tmpfs size: it is negative")
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
			return "", invalid("invalid tmpfs option %q", kv)
		}
		opts = append(opts, strings.Join(kv, "="))
	}
	return strings.Join(opts, ","), nil
}

// mergeTmpfs completes a tmpfs's options with Docker's defaults; the later of
// two that contradict each other wins.
func mergeTmpfs(options string) ([]string, error) {
	all := []string{"noexec", "nosuid", "nodev", string(mount.PropagationRPrivate)}
	if options != "" {
		all = append(all, strings.Split(options, ",")...)
	}
	merged, err := sysmount.MergeTmpfsOptions(all)
	if err != nil {
		return nil, invalid("invalid tmpfs option: %v", err)
	}
	return merged, nil
}

// checkTarget judges a mount point in the container.
func checkTarget(p string) error {
	if p == "" {
		return invalid("field Target must not be empty")
	}
	if !path.IsAbs(p) {
		return invalid("invalid mount path: '%s' mount path must be absolute", p)
	}
	if path.Clean(p) == "/" {
		return invalid("invalid specification: destination can't be '/'")
	}
	if strings.ContainsRune(p, 0) {
		return invalid("invalid mount path: %q contains a zero byte", p)
	}
	return nil
}

// checkMount judges one mount, without looking at the host.
func checkMount(m *mount.Mount) error {
	extra := func(name string) error { return invalid("field %s must not be specified", name) }
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
			return invalid("field Source must not be empty")
		}
		if m.VolumeOptions != nil {
			return extra("VolumeOptions")
		}
		if !path.IsAbs(m.Source) {
			return invalid("invalid mount path: '%s' mount path must be absolute", m.Source)
		}
		return checkBindOptions(m)
	case mount.TypeVolume:
		if o := m.BindOptions; o != nil {
			return extra("BindOptions")
		}
		if m.Source == "" && m.ReadOnly {
			return invalid("must not set ReadOnly mode when using anonymous volumes")
		}
		if o := m.VolumeOptions; o != nil && o.Subpath != "" {
			if m.Source == "" {
				return invalid("must not set Subpath when using anonymous volumes")
			}
			if path.IsAbs(o.Subpath) || o.Subpath == ".." || strings.HasPrefix(path.Clean(o.Subpath), "../") || path.Clean(o.Subpath) == ".." {
				return invalid("subpath must be a relative path within the volume")
			}
		}
		if o := m.VolumeOptions; o != nil && o.DriverConfig != nil && o.DriverConfig.Name != "" && o.DriverConfig.Name != "local" {
			return invalid("volume driver %q is not available: only local is", o.DriverConfig.Name)
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
			return invalid("field Source must not be empty")
		}
		return invalid("mounts of images are not supported: copy the files into a volume")
	case mount.TypeCluster:
		return invalid("cluster volumes are not supported")
	default:
		return invalid("mount type unknown")
	}
	return nil
}

func checkBindOptions(m *mount.Mount) error {
	o := m.BindOptions
	if o == nil {
		return nil
	}
	if o.Propagation != "" && !slices.Contains(mount.Propagations, o.Propagation) {
		return invalid("invalid propagation mode: %s", o.Propagation)
	}
	if o.ReadOnlyNonRecursive && o.ReadOnlyForceRecursive {
		return invalid("ReadOnlyNonRecursive and ReadOnlyForceRecursive exclude each other")
	}
	if o.NonRecursive && o.ReadOnlyForceRecursive {
		return invalid("NonRecursive and ReadOnlyForceRecursive exclude each other")
	}
	if (o.ReadOnlyNonRecursive || o.ReadOnlyForceRecursive) && !m.ReadOnly {
		return invalid("ReadOnlyNonRecursive and ReadOnlyForceRecursive require ReadOnly")
	}
	if o.ReadOnlyForceRecursive && o.Propagation != "" && o.Propagation != mount.PropagationRPrivate {
		return invalid("ReadOnlyForceRecursive requires the propagation rprivate")
	}
	return nil
}

// validateMounts judges all that the container is to mount, and that no two
// want the same place.
func validateMounts(h Host, c *container.Config, hc *container.HostConfig) (warnings []string, err error) {
	taken := map[string]bool{}
	take := func(target string) error {
		target = path.Clean(target)
		if taken[target] {
			return invalid("Duplicate mount point: %s", target)
		}
		taken[target] = true
		return nil
	}
	for i := range hc.Mounts {
		m := &hc.Mounts[i]
		if err := checkMount(m); err != nil {
			return warnings, invalid("invalid mount config for type %q: %v", m.Type, err)
		}
		if m.Type == mount.TypeBind {
			create := m.BindOptions != nil && m.BindOptions.CreateMountpoint
			ok, err := statExists(m.Source)
			if err != nil {
				return warnings, invalid("invalid mount config for type %q: %v", m.Type, err)
			}
			if !ok && !create {
				return warnings, invalid("invalid mount config for type %q: bind source path does not exist: %s", m.Type, m.Source)
			}
			if o := m.BindOptions; o != nil && o.ReadOnlyForceRecursive && !h.RecursiveReadOnly {
				return warnings, invalid("invalid mount config for type %q: recursive read-only mounts need Linux 5.12 or later", m.Type)
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
			return warnings, invalid("invalid volume specification: '%s': recursive read-only mounts need Linux 5.12 or later", b)
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
			return warnings, invalid("invalid volume: %v", err)
		}
	}
	for _, spec := range hc.VolumesFrom {
		if _, _, err := ParseVolumesFrom(spec); err != nil {
			return warnings, err
		}
	}
	return warnings, nil
}
