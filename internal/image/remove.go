package image

import (
	"context"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"

	"holdfast/internal/filter"
)

// User is a container that was made of an image.
type User struct {
	ContainerID string
	Running     bool
}

// Remove removes an image by Docker's rules. A reference only loses its name
// while the image has others; the last name goes with the image. An ID takes
// the image with all its names, if they are of one repository or force is set.
// A running container's image stays; a stopped one's goes with force. prune
// removes untagged parents in Docker's classic store; images here have none.
//
// users lists an image's containers. What they stand on is kept on disk either
// way, until they are gone. Errors: not found, conflict in Docker's words.
func (s *Store) Remove(ctx context.Context, name string, force, prune bool, users func(imageID string) []User) ([]image.DeleteResponse, error) {
	ctx = s.ctx(ctx)
	s.names.Lock()
	defer s.names.Unlock()
	m, err := s.find(ctx, name)
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
	short := m.target.Digest.Encoded()[:12]

	if m.ref != "" {
		if len(m.names) > 1 {
			return s.untag(ctx, m, []string{m.ref})
		}
		if used := running + stopped; used != "" {
			if running != "" {
				used = running
			}
			if !force {
				return nil, errConflict("conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s",
					name, shorten(used), short)
			}
			// The name goes; the image stays for its containers.
			if err := s.keep(ctx, m.target, m.ref); err != nil {
				return nil, err
			}
			return s.untag(ctx, m, []string{m.ref})
		}
		return s.delete(ctx, m)
	}

	switch {
	case running != "":
		return nil, errConflict("conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", short, shorten(running))
	case !force && !oneRepository(m.names):
		return nil, errConflict("conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", short)
	case !force && stopped != "":
		return nil, errConflict("conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", short, shorten(stopped))
	}
	return s.delete(ctx, m)
}

func shorten(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

// oneRepository reports whether an image has at most one tag and all of its
// names are of one repository.
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

// untag removes names of an image that has others. The caller holds names.
func (s *Store) untag(ctx context.Context, m match, refs []string) ([]image.DeleteResponse, error) {
	out := []image.DeleteResponse{}
	for _, ref := range refs {
		if err := s.images.Delete(ctx, ref); err != nil && !errdefs.IsNotFound(err) {
			return out, err
		}
		out = append(out, image.DeleteResponse{Untagged: familiar(ref)})
		s.onEvent("untag", m.id(), familiar(ref), nil)
	}
	return out, nil
}

// delete removes an image with all its names. The caller holds names.
func (s *Store) delete(ctx context.Context, m match) ([]image.DeleteResponse, error) {
	out, err := s.untag(ctx, m, m.names)
	if err != nil {
		return out, err
	}
	for _, record := range m.records {
		if !strings.HasPrefix(record, danglingPrefix) {
			continue
		}
		if err := s.images.Delete(ctx, record, images.SynchronousDelete()); err != nil && !errdefs.IsNotFound(err) {
			return out, err
		}
	}
	out = append(out, image.DeleteResponse{Deleted: m.id()})
	s.onEvent("delete", m.id(), m.id(), nil)
	s.collectSoon()
	return out, nil
}

// Prune removes images that no container uses: the dangling ones, or, with the
// filter dangling=false, all. Filters: dangling, label, label!, until. used
// reports whether a container was made of an image. It returns when the space
// is free.
func (s *Store) Prune(ctx context.Context, args filter.Args, used func(imageID string) bool) (image.PruneReport, error) {
	ctx = s.ctx(ctx)
	var report image.PruneReport
	if err := args.Check("dangling", "label", "label!", "until"); err != nil {
		return report, errInvalid("%s", err)
	}
	onlyDangling := true
	if v, given, err := args.Bool("dangling"); err != nil {
		return report, errInvalid("%s", err)
	} else if given {
		onlyDangling = v
	}
	rest := filter.Args{}
	for term, values := range args {
		if term != "dangling" {
			rest[term] = values
		}
	}
	keep, err := s.listFilter(ctx, rest)
	if err != nil {
		return report, err
	}
	before, err := s.diskUsage(ctx)
	if err != nil {
		return report, err
	}
	s.names.Lock()
	err = func() error {
		all, err := s.entries(ctx)
		if err != nil {
			return err
		}
		for _, e := range all {
			if err := ctx.Err(); err != nil {
				return err
			}
			if onlyDangling && len(e.names) > 0 || used != nil && used(e.id()) {
				continue
			}
			d, err := s.describe(ctx, e)
			if err != nil {
				return err
			}
			if !keep(&d) {
				continue
			}
			gone, err := s.delete(ctx, match{entry: e})
			report.ImagesDeleted = append(report.ImagesDeleted, gone...)
			if err != nil {
				return err
			}
		}
		return nil
	}()
	s.names.Unlock()
	if err != nil {
		return report, err
	}
	if err := s.Collect(ctx); err != nil && !errdefs.IsFailedPrecondition(err) {
		return report, err
	}
	after, err := s.diskUsage(ctx)
	if err != nil {
		return report, err
	}
	report.SpaceReclaimed = uint64(max(0, before-after))
	return report, nil
}
