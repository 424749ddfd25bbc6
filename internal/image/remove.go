// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"

	"holdfast/internal/errs"
	"holdfast/internal/filter"
)

// User is a container that was made from an image.
type User struct {
	ContainerID string
	Running     bool
	// Ref is the image's name as the container's user gave it.
	Ref string
}

// Remove removes an image by Docker's rules. Removing a reference only removes
// the name while the image has others; with its last name the image is removed.
// Removing an ID removes the image with all its names, if they are of one
// repository or force is set. The image of a running container is not removed;
// that of a stopped one is removed with force. prune also removes unnamed
// images that the image was committed from.
//
// users lists an image's containers. The layers that they use are kept on disk
// in any case, until the containers are removed. Errors: not found, conflict in
// Docker's words.
func (ca *catalog) Remove(ctx context.Context, name string, force, prune bool, users func(imageID string) []User) ([]image.DeleteResponse, error) {
	ctx = ca.ctx(ctx)
	ca.names.Lock()
	defer ca.names.Unlock()
	m, err := ca.find(ctx, name)
	if err != nil {
		return nil, err
	}
	running, stopped := "", ""
	if users != nil {
		for _, u := range users(m.id()) {
			if u.Running {
				running = u.ContainerID
			} else {
				stopped = u.ContainerID
			}
		}
	}
	short := shorten(m.target.Digest.Encoded())

	if m.ref != "" {
		if len(m.names) > 1 {
			return ca.untag(ctx, m, []string{m.ref})
		}
		if used := running + stopped; used != "" {
			if running != "" {
				used = running
			}
			if !force {
				return nil, errs.Conflict("conflict: unable to delete %s (must be forced) - container %s is using its referenced image %s",
					familiar(m.ref), shorten(used), short)
			}
			// Only the name is removed. The image stays for its containers.
			if err := ca.recordDangling(ctx, m.target, m.ref); err != nil {
				return nil, err
			}
			return ca.untag(ctx, m, []string{m.ref})
		}
		return ca.deleteTree(ctx, m, prune, users)
	}

	switch {
	case running != "":
		return nil, errs.Conflict("conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", short, shorten(running))
	case !force && !oneRepository(m.names):
		return nil, errs.Conflict("conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", short)
	case !force && stopped != "":
		return nil, errs.Conflict("conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", short, shorten(stopped))
	}
	return ca.deleteTree(ctx, m, prune, users)
}

// deleteTree removes an image, and with prune also its ancestors that are no
// longer needed. The caller holds names.
func (ca *catalog) deleteTree(ctx context.Context, m match, prune bool, users func(imageID string) []User) ([]image.DeleteResponse, error) {
	if !prune {
		return ca.delete(ctx, m)
	}
	all, of, err := ca.parents(ctx)
	if err != nil {
		return nil, err
	}
	above := ancestors(all, of, m.id())
	out, err := ca.delete(ctx, m)
	if err != nil {
		return out, err
	}
	more, err := ca.deleteParents(ctx, m.id(), above, of, users)
	return append(out, more...), err
}

func shorten(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

// oneRepository reports whether an image has at most one tag and all of its
// names belong to one repository.
func oneRepository(names []string) bool {
	repositories := map[string]bool{}
	tags := 0
	for _, n := range names {
		ref, err := reference.ParseNormalizedNamed(n)
		if err != nil {
			continue
		}
		repositories[ref.Name()] = true
		if _, ok := ref.(reference.Tagged); ok {
			tags++
		}
	}
	return len(repositories) <= 1 && tags <= 1
}

// untag removes names from an image. The caller holds names.
func (ca *catalog) untag(ctx context.Context, m match, refs []string) ([]image.DeleteResponse, error) {
	out := []image.DeleteResponse{}
	for _, ref := range refs {
		if err := ca.images.Delete(ctx, ref); err != nil && !errdefs.IsNotFound(err) {
			return out, err
		}
		out = append(out, image.DeleteResponse{Untagged: familiar(ref)})
		ca.onEvent("untag", m.id(), familiar(ref), nil)
	}
	return out, nil
}

// delete removes an image with all its names. The caller holds names.
func (ca *catalog) delete(ctx context.Context, m match) ([]image.DeleteResponse, error) {
	return ca.deleteAs(ctx, m, m.id())
}

// deleteAs is delete with the image's name as given in the event.
func (ca *catalog) deleteAs(ctx context.Context, m match, called string) ([]image.DeleteResponse, error) {
	out, err := ca.untag(ctx, m, m.names)
	if err != nil {
		return out, err
	}
	for _, record := range m.records {
		if !strings.HasPrefix(record, danglingPrefix) {
			continue
		}
		if err := ca.images.Delete(ctx, record, images.SynchronousDelete()); err != nil && !errdefs.IsNotFound(err) {
			return out, err
		}
	}
	out = append(out, image.DeleteResponse{Deleted: m.id()})
	ca.onEvent("delete", m.id(), called, nil)
	ca.requests.collectSoon()
	return out, nil
}

// pruneOne removes an image. If containers are made from it, it only removes
// the names that none of them used. The caller holds names.
func (ca *catalog) pruneOne(ctx context.Context, e entry, users []User) ([]image.DeleteResponse, error) {
	if len(users) == 0 {
		called := e.id()
		if len(e.names) > 0 {
			called = familiar(e.names[len(e.names)-1])
		}
		return ca.deleteAs(ctx, match{entry: e}, called)
	}
	used := map[string]bool{}
	for _, u := range users {
		id := "sha256:" + strings.TrimPrefix(u.Ref, "sha256:")
		named, err := reference.ParseNormalizedNamed(u.Ref)
		if err != nil || strings.HasPrefix(e.id(), id) {
			return nil, nil // named by ID: the container uses the image under any name
		}
		used[reference.TagNameOnly(named).String()] = true
	}
	var unused []string
	for _, name := range e.names {
		if !used[name] {
			unused = append(unused, name)
		}
	}
	if len(unused) == len(e.names) {
		// The names that the containers used refer to another image by now.
		if _, err := ca.images.Create(ctx, images.Image{Name: danglingPrefix + e.id(), Target: e.target}); err != nil && !errdefs.IsAlreadyExists(err) {
			return nil, err
		}
	}
	return ca.untag(ctx, match{entry: e}, unused)
}

// prune removes the images that no container uses and that the filter wants
// removed: see Store.Prune. It calls the filter with the lock.
func (ca *catalog) prune(ctx context.Context, onlyDangling bool, users func(imageID string) []User, wanted func(entry) (bool, error)) (out []image.DeleteResponse, err error) {
	ca.names.Lock()
	defer ca.names.Unlock()
	all, err := ca.entries(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if err := ctx.Err(); err != nil {
			return out, err
		}
		var by []User
		if users != nil {
			by = users(e.id())
		}
		if onlyDangling && len(e.names) > 0 || len(by) > 0 && len(e.names) == 0 {
			continue
		}
		if ok, err := wanted(e); err != nil {
			return out, err
		} else if !ok {
			continue
		}
		gone, err := ca.pruneOne(ctx, e, by)
		out = append(out, gone...)
		if err != nil {
			return out, err
		}
	}
	return out, nil
}

// Prune removes images that no container uses: the dangling ones or, with the
// filter dangling=false, all. Filters: dangling, label, label!, until. users
// lists an image's containers. With dangling=false a used image keeps the names
// that its containers were made from and loses the others, as in Docker. Prune
// returns when the space is free.
func (s *Store) Prune(ctx context.Context, args filter.Args, users func(imageID string) []User) (image.PruneReport, error) {
	ctx = s.ctx(ctx)
	var report image.PruneReport
	if err := args.Check("dangling", "label", "label!", "until"); err != nil {
		return report, errs.Invalid("%s", err)
	}
	onlyDangling := true
	if v, given, err := args.Bool("dangling"); err != nil {
		return report, errs.Invalid("%s", err)
	} else if given {
		onlyDangling = v
	}
	rest := filter.Args{}
	for term, values := range args {
		if term != "dangling" {
			rest[term] = values
		}
	}
	matches, err := s.describer.listFilter(ctx, rest)
	if err != nil {
		return report, err
	}
	before, err := s.layers.diskUsage(ctx)
	if err != nil {
		return report, err
	}
	report.ImagesDeleted, err = s.catalog.prune(ctx, onlyDangling, users, func(e entry) (bool, error) {
		d, err := s.describer.describeAny(ctx, e)
		return err == nil && matches(&d), err
	})
	if err != nil {
		return report, err
	}
	if err := s.collector.Collect(ctx); err != nil && !errdefs.IsFailedPrecondition(err) {
		return report, err
	}
	after, err := s.layers.diskUsage(ctx)
	if err != nil {
		return report, err
	}
	report.SpaceReclaimed = uint64(max(0, before-after))
	return report, nil
}
