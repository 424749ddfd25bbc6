package engine

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	moby "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	"holdfast/internal/failpoint"
	volumes "holdfast/internal/volume"
)

// mountPoint is a mount as it was resolved when the container was made: the
// API's mount point, and what only the engine needs.
type mountPoint struct {
	moby.MountPoint
	// Copy: an empty volume gets what the image has at the destination.
	Copy bool `json:",omitempty"`
	// Create: a missing source is made as a folder, as with -v.
	Create bool `json:",omitempty"`
	// Anonymous: made for this container, goes with it when asked.
	Anonymous bool `json:",omitempty"`
	// Subpath is below the volume's root.
	Subpath     string              `json:",omitempty"`
	BindOptions *mount.BindOptions  `json:",omitempty"`
	Tmpfs       *mount.TmpfsOptions `json:",omitempty"`
}

func (m *mountPoint) volume() bool { return m.Type == mount.TypeVolume }

// resolveMounts makes mount points of what was asked, in Docker's order of
// precedence, and creates the volumes that they name. takeBack removes those that
// were made here; release lets go of all, once the container's record names
// them.
func (e *Engine) resolveMounts(id string, req request) (points []mountPoint, release, takeBack func(), err error) {
	var u undo
	var holds []func()
	release = func() {
		for _, r := range holds {
			r()
		}
	}
	at := func(dest string) int {
		return slices.IndexFunc(points, func(m mountPoint) bool { return m.Destination == dest })
	}

	for _, from := range req.HostConfig.VolumesFrom {
		ref, readonly, err := oci.ParseVolumesFrom(from)
		if err != nil {
			return nil, release, u.fail, err
		}
		a, err := e.index.find(ref)
		if err != nil {
			return nil, release, u.fail, invalid("volumes-from: %v", err) // see checkPeers
		}
		for _, m := range a.view.Load().mounts {
			if m.Type == mount.TypeTmpfs {
				continue
			}
			m.RW = m.RW && !readonly
			m.Anonymous, m.Copy = false, false
			if i := at(m.Destination); i >= 0 {
				points[i] = m
			} else {
				points = append(points, m)
			}
		}
	}

	type asked struct {
		mount.Mount
		mode  string
		bound bool // by -v, which makes a missing source
	}
	var explicit []asked
	for _, b := range req.HostConfig.Binds {
		m, mode, err := oci.ParseBind(b, req.HostConfig.VolumeDriver)
		if err != nil {
			return nil, release, u.fail, err
		}
		explicit = append(explicit, asked{m, mode, true})
	}
	for _, m := range req.HostConfig.Mounts {
		explicit = append(explicit, asked{m, "", false})
	}
	seen := map[string]bool{}
	for dest := range req.HostConfig.Tmpfs {
		seen[filepath.Clean(dest)] = true
	}
	for _, want := range explicit {
		m := pointOf(want.Mount, want.mode)
		m.Create = m.Create || want.bound
		if err := e.letGo(&m); err != nil {
			return nil, release, u.fail, err
		}
		if seen[m.Destination] {
			return nil, release, u.fail, invalid("Duplicate mount point: %s", m.Destination)
		}
		seen[m.Destination] = true
		if m.volume() {
			if err := e.ensureVolume(id, &m, req.HostConfig, want.VolumeOptions, &u, &holds); err != nil {
				return nil, release, u.fail, err
			}
		}
		if j := at(m.Destination); j >= 0 {
			points[j] = m
		} else {
			points = append(points, m)
		}
	}

	var dests []string
	for dest := range req.Config.Volumes {
		dests = append(dests, filepath.Clean(dest))
	}
	slices.Sort(dests)
	for _, dest := range dests {
		if !filepath.IsAbs(dest) || dest == "/" {
			return nil, release, u.fail, invalid("invalid volume specification: '%s': mount path must be absolute and not '/'", dest)
		}
		if seen[dest] || at(dest) >= 0 {
			continue
		}
		m := mountPoint{MountPoint: moby.MountPoint{Type: mount.TypeVolume, Destination: dest, RW: true}, Copy: true}
		if err := e.ensureVolume(id, &m, req.HostConfig, nil, &u, &holds); err != nil {
			return nil, release, u.fail, err
		}
		points = append(points, m)
	}
	return points, release, u.fail, nil
}

// ensureVolume creates the volume of a mount point, or finds it.
func (e *Engine) ensureVolume(id string, m *mountPoint, h *moby.HostConfig, o *mount.VolumeOptions, u *undo, holds *[]func()) error {
	r := volumes.CreateOptions{Name: m.Name, Driver: h.VolumeDriver}
	if o != nil {
		r.Labels = o.Labels
		if o.DriverConfig != nil {
			r.Driver, r.DriverOpts = o.DriverConfig.Name, o.DriverConfig.Options
		}
	}
	if m.Anonymous = r.Name == ""; m.Anonymous {
		// Named and noted here, so that a crash leaves none that is nobody's.
		r.Name, r.Labels = newID(), maps.Clone(r.Labels)
		if r.Labels == nil {
			r.Labels = map[string]string{}
		}
		r.Labels[volumes.AnonymousLabel] = ""
		if err := e.store.NoteVolume(id, r.Name); err != nil {
			return err
		}
		failpoint.Here("create.noted-volume")
	}
	v, created, err := e.volumes.Create(r)
	if err != nil {
		return err
	}
	if created {
		u.add(func() {
			if e.volumes.Remove(v.Name) == nil {
				e.emitVolume("destroy", v.Name, map[string]string{"driver": v.Driver})
			}
		})
		e.emitVolume("create", v.Name, map[string]string{"driver": v.Driver})
	}
	release, err := e.volumes.Hold(v.Name)
	if err != nil {
		return err
	}
	*holds = append(*holds, release)
	u.add(release)
	m.Name, m.Driver, m.Source = v.Name, v.Driver, v.Mountpoint
	return nil
}

// pointOf makes a mount point of a mount that was judged by oci.Validate.
func pointOf(s mount.Mount, mode string) mountPoint {
	m := mountPoint{
		MountPoint:  moby.MountPoint{Type: s.Type, Destination: filepath.Clean(s.Target), RW: !s.ReadOnly, Mode: mode},
		BindOptions: s.BindOptions, Tmpfs: s.TmpfsOptions,
	}
	switch s.Type {
	case mount.TypeBind:
		m.Source, m.Propagation = filepath.Clean(s.Source), mount.PropagationRPrivate
		if o := s.BindOptions; o != nil {
			m.Create = o.CreateMountpoint
			if o.Propagation != "" {
				m.Propagation = o.Propagation
			}
		}
	case mount.TypeVolume:
		m.Name, m.Copy = s.Source, true
		if o := s.VolumeOptions; o != nil {
			m.Copy, m.Subpath = !o.NoCopy && o.Subpath == "", o.Subpath
		}
	}
	return m
}

// letGo makes a bind of what the daemon mounts in a slave of the host's mounts.
// A private copy would keep every root file system and volume that was mounted
// when the container started from being let go of before it ends.
func (e *Engine) letGo(m *mountPoint) error {
	if m.Type != mount.TypeBind {
		return nil
	}
	source := m.Source
	if real, err := filepath.EvalSymlinks(source); err == nil {
		source = real
	}
	if st, err := os.Stat(source); err == nil && !st.IsDir() {
		return nil // nothing is mounted in it
	}
	cfg := e.config.Load()
	for _, root := range []string{cfg.DataRoot, cfg.ExecRoot} {
		if real, err := filepath.EvalSymlinks(root); err == nil {
			root = real
		}
		if !within(root, source) && !within(source, root) {
			continue
		}
		switch asked := m.asked(); asked {
		case "":
			m.Propagation = mount.PropagationRSlave
		case mount.PropagationRSlave, mount.PropagationRShared:
		default:
			return invalid("invalid mount config: %s and %s, where the daemon mounts file systems, are in one another: the propagation must be rslave or rshared, not %s", m.Source, root, asked)
		}
	}
	return nil
}

// within reports whether a clean path is a folder or below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// asked is the propagation that the user gave, empty if none.
func (m *mountPoint) asked() mount.Propagation {
	if m.BindOptions == nil {
		return ""
	}
	return m.BindOptions.Propagation
}

// copyUp fills empty volumes with what the image has at their destinations.
// The root file system is mounted for it and unmounted again.
func (e *Engine) copyUp(ctx context.Context, spec container.Spec, mounts []mountPoint) error {
	if !slices.ContainsFunc(mounts, func(m mountPoint) bool { return m.volume() && m.Copy }) {
		return nil
	}
	rootfs := e.store.Rootfs(spec.ID)
	if err := os.MkdirAll(rootfs, 0o711); err != nil {
		return err
	}
	defer e.clearRun(spec.ID)
	if err := e.images.MountRootfs(ctx, spec.Image.Snapshot, spec.Image.Storage, e.store.ContainerDir(spec.ID), rootfs, true); err != nil {
		return err
	}
	for _, m := range mounts {
		if !m.volume() || !m.Copy {
			continue
		}
		if _, err := e.volumes.Mount(ctx, m.Name, spec.ID); err != nil {
			return err
		}
		err := e.volumes.CopyUp(rootfs, m.Destination, m.Name)
		if err := errors.Join(err, e.volumes.Unmount(m.Name, spec.ID)); err != nil {
			return err
		}
	}
	return nil
}

// removeAnonymous removes the volumes that were made for a container and that
// no other one uses. One that is gone already is fine.
func (e *Engine) removeAnonymous(mounts []mountPoint) {
	for _, m := range mounts {
		if !m.Anonymous || len(e.volumeUsers(m.Name, "")) > 0 {
			continue
		}
		if err := e.volumes.Remove(m.Name); isNotFound(err) {
			continue
		} else if err != nil {
			e.log.Error("anonymous volume not removed", "volume", m.Name, "error", err)
			continue
		}
		e.emitVolume("destroy", m.Name, map[string]string{"driver": m.Driver})
	}
}
