// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	moby "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	"holdfast/internal/errs"
	"holdfast/internal/failpoint"
	images "holdfast/internal/image"
	volumes "holdfast/internal/volume"
)

// mountPoint is a mount as it was resolved when the container was created: the API's
// mount point, and fields that only the engine uses.
type mountPoint struct {
	moby.MountPoint
	// Copy: the image's content at the destination is copied to an empty volume.
	Copy bool `json:",omitempty"`
	// Create: a missing source is created as a folder, as with -v.
	Create bool `json:",omitempty"`
	// Anonymous: the volume was created for this container, and is removed with it
	// on request.
	Anonymous bool `json:",omitempty"`
	// Subpath is relative to the root of the volume or the image.
	Subpath string `json:",omitempty"`
	// Image is the image that is mounted read-only, if Type is image.
	Image       *container.Image    `json:",omitempty"`
	BindOptions *mount.BindOptions  `json:",omitempty"`
	Tmpfs       *mount.TmpfsOptions `json:",omitempty"`
}

func (m *mountPoint) volume() bool { return m.Type == mount.TypeVolume }

// resolveMounts converts the requested mounts to mount points, in Docker's order of
// precedence, and creates the volumes that they name. rollBack removes the volumes
// that were created here. release ends the protection of all volumes from removal;
// it is called once the container's record names them.
func (cr *creator) resolveMounts(ctx context.Context, id string, req request) (points []mountPoint, release, rollBack func(), err error) {
	r := &mountResolver{creator: cr, id: id, req: req, seen: map[string]bool{}}
	if err := r.resolve(ctx); err != nil {
		return nil, r.release, r.undo.rollBack, err
	}
	return r.points, r.release, r.undo.rollBack, nil
}

// mountResolver collects the mount points of a container that is being created.
type mountResolver struct {
	*creator
	id     string
	req    request
	points []mountPoint
	seen   map[string]bool // destinations that the user gave
	holds  []func()        // each ends the protection of a volume
	undo   undo
}

func (r *mountResolver) resolve(ctx context.Context) error {
	if err := r.inherit(); err != nil {
		return err
	}
	asked, err := r.asked()
	if err != nil {
		return err
	}
	for dest := range r.req.HostConfig.Tmpfs {
		r.seen[filepath.Clean(dest)] = true
	}
	for _, want := range asked {
		if err := r.add(ctx, want); err != nil {
			return err
		}
	}
	return r.addAnonymous()
}

func (r *mountResolver) release() {
	for _, release := range r.holds {
		release()
	}
}

// at returns the index of the mount point at a destination, or -1.
func (r *mountResolver) at(dest string) int {
	return slices.IndexFunc(r.points, func(m mountPoint) bool { return m.Destination == dest })
}

// put adds a mount point, in place of one at the same destination.
func (r *mountResolver) put(m mountPoint) {
	if i := r.at(m.Destination); i >= 0 {
		r.points[i] = m
	} else {
		r.points = append(r.points, m)
	}
}

// inherit adds the mount points of the containers that --volumes-from names.
func (r *mountResolver) inherit() error {
	for _, from := range r.req.HostConfig.VolumesFrom {
		ref, readonly, err := oci.ParseVolumesFrom(from)
		if err != nil {
			return err
		}
		a, err := r.index.find(ref)
		if err != nil {
			return errs.Invalid("volumes-from: %v", err) // see checkPeers
		}
		for _, m := range a.view.Load().mounts {
			if m.Type == mount.TypeTmpfs {
				continue
			}
			m.RW = m.RW && !readonly
			m.Anonymous, m.Copy, m.Mode = false, false, ""
			r.put(m)
		}
	}
	return nil
}

// askedMount is a mount that the user gave by -v or --mount.
type askedMount struct {
	mount.Mount
	mode  string
	bound bool // by -v, which creates a missing source
}

func (r *mountResolver) asked() ([]askedMount, error) {
	var list []askedMount
	for _, b := range r.req.HostConfig.Binds {
		m, mode, err := oci.ParseBind(b, r.req.HostConfig.VolumeDriver)
		if err != nil {
			return nil, err
		}
		if m.Type == mount.TypeVolume && m.Source != "" && mode == "" {
			mode = "z" // as in Docker, shown for named volumes even without SELinux
		}
		list = append(list, askedMount{m, mode, true})
	}
	for _, m := range r.req.HostConfig.Mounts {
		mode := ""
		if m.Type == mount.TypeVolume {
			mode = "z" // see above
		}
		list = append(list, askedMount{m, mode, false})
	}
	return list, nil
}

// add adds a mount that the user gave.
func (r *mountResolver) add(ctx context.Context, want askedMount) error {
	m := pointOf(want.Mount, want.mode)
	m.Create = m.Create || want.bound
	if err := r.config.Load().setPropagation(&m); err != nil {
		return err
	}
	if r.seen[m.Destination] {
		return errs.Invalid("Duplicate mount point: %s", m.Destination)
	}
	r.seen[m.Destination] = true
	if m.volume() {
		if err := r.ensureVolume(&m, want.VolumeOptions); err != nil {
			return err
		}
	}
	if m.Type == mount.TypeImage {
		img, err := r.images.Resolve(ctx, m.Name, nil)
		if err != nil {
			return errs.Invalid("invalid mount config for type \"image\": %v", err) // see checkPeers
		}
		i := imageOf(m.Name, img)
		m.Image = &i
	}
	r.put(m)
	return nil
}

// addAnonymous adds volumes at the destinations that the image or the user names as
// volumes, and at which nothing else is mounted.
func (r *mountResolver) addAnonymous() error {
	var dests []string
	for dest := range r.req.Config.Volumes {
		dests = append(dests, filepath.Clean(dest))
	}
	slices.Sort(dests)
	for _, dest := range dests {
		if !filepath.IsAbs(dest) || dest == "/" {
			return errs.Invalid("invalid volume specification: '%s': mount path must be absolute and not '/'", dest)
		}
		if r.seen[dest] || r.at(dest) >= 0 {
			continue
		}
		m := mountPoint{MountPoint: moby.MountPoint{Type: mount.TypeVolume, Destination: dest, RW: true}, Copy: true}
		if err := r.ensureVolume(&m, nil); err != nil {
			return err
		}
		r.points = append(r.points, m)
	}
	return nil
}

// ensureVolume creates the volume of a mount point if it does not exist, and protects
// it from removal until it is released.
func (r *mountResolver) ensureVolume(m *mountPoint, o *mount.VolumeOptions) error {
	want := volumes.CreateOptions{Name: m.Name, Driver: r.req.HostConfig.VolumeDriver}
	if o != nil {
		want.Labels = o.Labels
		if o.DriverConfig != nil {
			want.Driver, want.DriverOpts = o.DriverConfig.Name, o.DriverConfig.Options
		}
	}
	if m.Anonymous = want.Name == ""; m.Anonymous {
		// The name is chosen and persisted before the volume is created, so that after
		// a crash the next daemon can remove the volume.
		want.Name, want.Labels = newID(), maps.Clone(want.Labels)
		if want.Labels == nil {
			want.Labels = map[string]string{}
		}
		want.Labels[volumes.AnonymousLabel] = ""
		if err := r.store.NoteVolume(r.id, want.Name); err != nil {
			return err
		}
		failpoint.Here("create.noted-volume")
	}
	v, created, err := r.volumes.Create(want)
	if err != nil {
		return err
	}
	if created {
		r.undo.add(func() {
			if r.volumes.Remove(v.Name) == nil {
				r.journal.volume("destroy", v.Name, map[string]string{"driver": v.Driver})
			}
		})
		r.journal.volume("create", v.Name, map[string]string{"driver": v.Driver})
	}
	release, err := r.volumes.Hold(v.Name)
	if err != nil {
		return err
	}
	r.holds = append(r.holds, release)
	r.undo.add(release)
	m.Name, m.Driver, m.Source = v.Name, v.Driver, v.Mountpoint
	return nil
}

// pointOf converts a mount that oci.Validate has accepted to a mount point.
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
			m.Copy, m.Subpath = !o.NoCopy, o.Subpath
		}
	case mount.TypeImage:
		m.Name, m.RW, m.Propagation = s.Source, false, mount.PropagationRPrivate
		if o := s.ImageOptions; o != nil {
			m.Subpath = o.Subpath
		}
	}
	return m
}

// imageOf returns the record of an image to which the user referred as ref.
func imageOf(ref string, img images.Image) container.Image {
	return container.Image{
		Ref: ref, ID: img.ID, Manifest: img.Manifest,
		Platform: platforms.Format(img.Platform),
		Snapshot: img.Snapshot, Storage: img.Storage, LayerBytes: img.LayerBytes,
		ManifestType: img.ManifestType, ManifestSize: img.ManifestSize,
	}
}

// holdImages protects the layers of the images that are mounted in a container from
// garbage collection until the container is removed.
func (mt *mounter) holdImages(ctx context.Context, dir string, mounts []mountPoint) error {
	for _, m := range mounts {
		if m.Image == nil {
			continue
		}
		img := images.Image{Ref: m.Image.Ref, ID: m.Image.ID, Manifest: m.Image.Manifest, Snapshot: m.Image.Snapshot, Storage: m.Image.Storage}
		if err := mt.images.PinLayers(ctx, img, dir); err != nil {
			return err
		}
	}
	return nil
}

// images returns the images that a container uses: the one that it was created from,
// and those that are mounted in it.
func (v *view) images() []container.Image {
	all := []container.Image{v.spec.Image}
	for _, m := range v.mounts {
		if m.Image != nil {
			all = append(all, *m.Image)
		}
	}
	return all
}

// setPropagation makes a bind mount of a folder in which the daemon mounts file
// systems a slave of the host's mounts. A private copy would keep every root file
// system and volume that is mounted when the container starts in use until the
// container ends.
func (c *Config) setPropagation(m *mountPoint) error {
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
	for _, root := range []string{c.DataRoot, c.ExecRoot} {
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
			return errs.Invalid("invalid mount config: %s contains %s or is in it, and the daemon mounts file systems there: the propagation must be rslave or rshared, not %s", m.Source, root, asked)
		}
	}
	return nil
}

// within reports whether a clean path is dir or is below dir.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// asked is the propagation that the user requested; empty if none.
func (m *mountPoint) asked() mount.Propagation {
	if m.BindOptions == nil {
		return ""
	}
	return m.BindOptions.Propagation
}

// copyUp copies the image's content at the volumes' destinations to volumes that are
// empty. The root file system is mounted meanwhile.
func (mt *mounter) copyUp(ctx context.Context, spec container.Spec, mounts []mountPoint) error {
	if !slices.ContainsFunc(mounts, func(m mountPoint) bool { return m.volume() && m.Copy }) {
		return nil
	}
	rootfs := mt.store.Rootfs(spec.ID)
	if err := os.MkdirAll(rootfs, 0o710); err != nil {
		return err
	}
	defer mt.clearRun(spec.ID)
	if err := mt.images.MountRootfs(ctx, spec.Image.Snapshot, spec.Image.Storage, mt.store.ContainerDir(spec.ID), rootfs, true); err != nil {
		return err
	}
	for _, m := range mounts {
		if !m.volume() || !m.Copy {
			continue
		}
		// As in Docker, a volume to which nothing is copied is not mounted before the
		// start: what its options name may not exist yet.
		fills, err := mt.volumes.Fills(rootfs, m.Destination)
		if err != nil {
			return err
		}
		if !fills {
			continue
		}
		if _, err := mt.volumes.Mount(ctx, m.Name, spec.ID); err != nil {
			return fmt.Errorf("failed to populate volume: %w", err)
		}
		err = mt.volumes.CopyUp(rootfs, m.Destination, m.Name, m.Subpath)
		if err = errors.Join(err, mt.volumes.Unmount(m.Name, spec.ID)); err != nil {
			return err
		}
	}
	return nil
}

// removeAnonymous removes the volumes that were created for a container and that no
// other container uses. It is idempotent.
func (h *hostEffects) removeAnonymous(mounts []mountPoint) {
	for _, m := range mounts {
		if !m.Anonymous || len(h.index.volumeUsers(m.Name)) > 0 {
			continue
		}
		if err := h.volumes.Remove(m.Name); isNotFound(err) {
			continue
		} else if err != nil {
			h.log.Error("an anonymous volume could not be removed", "volume", m.Name, "error", err)
			continue
		}
		h.journal.volume("destroy", m.Name, map[string]string{"driver": m.Driver})
	}
}
