// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"slices"

	"github.com/opencontainers/go-digest"

	"holdfast/internal/container"
	images "holdfast/internal/image"
)

// users implements objects.Containers.
type users struct{ e *Engine }

func (u users) Ready(ctx context.Context) error { return u.e.ready(ctx) }

func (u users) Unread() int { return len(u.e.index.unread) }

func (u users) Name(id string) string {
	if a, err := u.e.index.find(id); err == nil {
		return a.view.Load().spec.Name
	}
	return ""
}

func (u users) OfImage(id string) []images.User {
	var users []images.User
	for _, a := range u.e.index.all() {
		v := a.view.Load()
		if v.state == container.Removing {
			continue
		}
		for _, i := range v.images() {
			if i.ID == id {
				users = append(users, images.User{ContainerID: a.id, Running: v.state.Alive(), Ref: i.Ref})
				break
			}
		}
	}
	return users
}

func (u users) OfManifest(manifest digest.Digest) []string {
	var users []string
	for _, a := range u.e.index.all() {
		v := a.view.Load()
		if v.state != container.Removing && slices.ContainsFunc(v.images(), func(i container.Image) bool { return i.Manifest == manifest.String() }) {
			users = append(users, a.id)
		}
	}
	slices.Sort(users)
	return users
}

func (u users) OfVolume(name string) []string { return u.e.index.volumeUsers(name) }

// volumeUsers returns the containers that have a volume among their mounts. It omits
// a container whose removal removes the volume, too.
func (r *index) volumeUsers(name string) []string {
	var users []string
	for _, a := range r.all() {
		v := a.view.Load()
		for _, m := range v.mounts {
			if m.volume() && m.Name == name && !(m.Anonymous && v.spec.Desired == container.DesiredRemoved && v.spec.RemoveVolumes) {
				users = append(users, a.id)
				break
			}
		}
	}
	return users
}

func (u users) NetworkNames() []string {
	seen := map[string]bool{}
	var names []string
	for _, a := range u.e.index.all() {
		for name := range networkSettings(u.e.networks, a.view.Load()).Networks {
			if !seen[name] {
				seen[name] = true
				names = append(names, name)
			}
		}
	}
	return names
}

// holdSnapshots sets which snapshots containers use. The image store may remove the
// others.
func holdSnapshots(ctx context.Context, store Images, r *index) error {
	var snapshots []string
	for _, a := range r.all() {
		for _, i := range a.view.Load().images() {
			snapshots = append(snapshots, i.Snapshot)
		}
	}
	slices.Sort(snapshots)
	return store.PinSnapshots(ctx, slices.Compact(snapshots))
}
