// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	moby "github.com/moby/moby/api/types/container"
	mobynet "github.com/moby/moby/api/types/network"

	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	"holdfast/internal/errs"
	"holdfast/internal/filter"
)

// inspector shows containers. It only reads published snapshots and files, so it does
// not wait for the containers' loops.
type inspector struct {
	*progress
	store    Store
	images   Images
	networks Networks
	host     oci.Host
	index    *index
	records  *records
}

// ContainerList lists containers, the newest first. It only reads published
// snapshots, so it does not wait for the containers' loops.
func (i *inspector) ContainerList(ctx context.Context, o ListOptions) ([]moby.Summary, error) {
	f := o.Filters
	if err := f.Check("ancestor", "before", "expose", "exited", "health", "id", "isolation", "is-task", "label", "label!", "name", "network", "publish", "since", "status", "volume"); err != nil {
		return nil, errs.Invalid("%v", err)
	}
	pick, err := i.listFilter(ctx, f)
	if err != nil {
		return nil, err
	}
	all := o.All || o.Limit > 0 || f.Has("status") || f.Has("exited")

	var views []*view
	for _, a := range i.index.all() {
		v := i.currentView(a)
		if (all || runs(v.state)) && pick(v) {
			views = append(views, v)
		}
	}
	slices.SortFunc(views, func(a, b *view) int {
		return cmp.Or(b.spec.Created.Compare(a.spec.Created), strings.Compare(a.spec.ID, b.spec.ID))
	})
	if o.Limit > 0 && len(views) > o.Limit {
		views = views[:o.Limit]
	}
	matches, err := i.images.ReferenceMatcher(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]moby.Summary, 0, len(views))
	now := time.Now()
	links := i.index.linkNames()
	for _, v := range views {
		s := i.summary(v, now)
		if more := links[v.spec.ID]; len(more) > 0 {
			s.Names = append(slices.Clone(s.Names), more...)
			slices.Sort(s.Names)
		}
		if !matches(s.Image, s.ImageID) {
			s.Image = s.ImageID
		}
		if o.Size {
			rw, err := i.images.RootfsUsage(i.store.ContainerDir(v.spec.ID))
			if err != nil && i.leaving(v.spec.ID) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("size of %s: %w", v.spec.Name, err)
			}
			s.SizeRw, s.SizeRootFs = rw, rw+v.spec.Image.LayerBytes
		}
		out = append(out, s)
	}
	return out, nil
}

// leaving reports whether a container is removed or being removed. A list omits such
// a container if its files can't be read.
func (i *inspector) leaving(id string) bool {
	a, err := i.index.find(id)
	return err != nil || a.view.Load().state == container.Removing
}

// listed is the part of a list entry that does not depend on the time, and the state
// from which the part that does, Status, is made.
type listed struct {
	summary moby.Summary // without Status
	state   *moby.State
}

// summary returns the list entry of a view. What it points to is shared with other
// lists and must not be changed.
func (i *inspector) summary(v *view, now time.Time) moby.Summary {
	l := v.listed.Load()
	if l == nil {
		l = i.list(v)
		if v.onNetworks() {
			// The entry depends on the view alone, so it can be cached. That of a
			// container that does not run depends on the existing networks, too.
			v.listed.Store(l)
		}
	}
	s := l.summary
	s.Status = statusText(v, l.state, now)
	return s
}

func (i *inspector) list(v *view) *listed {
	st := apiState(v)
	s := moby.Summary{
		ID: v.spec.ID, Names: []string{"/" + v.spec.Name},
		Image: v.req.Config.Image, ImageID: v.spec.Image.ID,
		Command: shortCommand(v.req.Config), Created: v.spec.Created.Unix(),
		Labels: v.req.Config.Labels,
		State:  st.Status,
		Mounts: apiMounts(v.mounts),
		Ports:  []moby.PortSummary{},

		ImageManifestDescriptor: manifestDescriptor(v.spec.Image),
	}
	s.HostConfig.NetworkMode = string(v.req.HostConfig.NetworkMode)
	s.HostConfig.Annotations = v.req.HostConfig.Annotations
	s.Health = &moby.HealthSummary{Status: moby.NoHealthcheck}
	if st.Health != nil {
		s.Health = &moby.HealthSummary{Status: st.Health.Status, FailingStreak: st.Health.FailingStreak}
	}
	ns := networkSettings(i.networks, v)
	published := ns.Ports
	s.NetworkSettings = &moby.NetworkSettingsSummary{Networks: ns.Networks}
	for port := range v.req.Config.ExposedPorts {
		if !st.Running {
			break
		}
		// On a routed network published ports have no host port.
		bindings := slices.DeleteFunc(slices.Clone(published[port]), func(b mobynet.PortBinding) bool { return b.HostPort == "" })
		if len(bindings) == 0 {
			s.Ports = append(s.Ports, moby.PortSummary{PrivatePort: port.Num(), Type: string(port.Proto())})
		}
		for _, b := range bindings {
			n, _ := strconv.ParseUint(b.HostPort, 10, 16)
			s.Ports = append(s.Ports, moby.PortSummary{IP: b.HostIP, PrivatePort: port.Num(), PublicPort: uint16(n), Type: string(port.Proto())})
		}
	}
	slices.SortFunc(s.Ports, func(a, b moby.PortSummary) int {
		return cmp.Or(cmp.Compare(a.PrivatePort, b.PrivatePort), cmp.Compare(a.Type, b.Type), a.IP.Compare(b.IP), cmp.Compare(a.PublicPort, b.PublicPort))
	})
	return &listed{s, st}
}

// statusText is the text of the list's column STATUS.
func statusText(v *view, st *moby.State, now time.Time) string {
	ago := func(t time.Time) string { return units.HumanDuration(now.Sub(t)) }
	switch v.state {
	case container.Restarting:
		return fmt.Sprintf("Restarting (%d) %s ago", v.rec.ExitCode, ago(v.rec.Finished))
	case container.Removing:
		return "Removal In Progress"
	case container.Dead:
		return "Dead"
	}
	switch {
	case st.Running:
		text := "Up " + ago(v.rec.Started)
		if st.Paused {
			return text + " (Paused)"
		}
		if v.state == container.Unknown {
			return text + " (Unreachable)"
		}
		if h := st.Health; h != nil {
			word := string(h.Status)
			if h.Status == moby.Starting {
				word = "health: starting"
			}
			text += " (" + word + ")"
		}
		return text
	case !v.hasRun():
		return "Created"
	}
	return fmt.Sprintf("Exited (%d) %s ago", st.ExitCode, ago(v.rec.Finished))
}

// listFilter combines all filters of a list to one predicate.
func (i *inspector) listFilter(ctx context.Context, f filter.Args) (func(*view) bool, error) {
	l := listFilter{Args: f, networks: i.networks}
	if err := l.parse(); err != nil {
		return nil, err
	}
	var err error
	if l.before, err = i.bound(f["before"]); err != nil {
		return nil, err
	}
	if l.since, err = i.bound(f["since"]); err != nil {
		return nil, err
	}
	if f.Has("ancestor") {
		l.ancestors = map[string]bool{}
		for _, ref := range f["ancestor"] {
			if img, err := i.images.Resolve(ctx, ref, nil); err == nil {
				l.ancestors[img.ID] = true
			}
			l.ancestors[ref] = true
		}
	}
	if l.publish, err = portFilter(f, "publish"); err != nil {
		return nil, err
	}
	if l.expose, err = portFilter(f, "expose"); err != nil {
		return nil, err
	}
	task, taskGiven, err := f.Bool("is-task")
	if err != nil {
		return nil, errs.Invalid("%v", err)
	}
	if len(f) == 0 {
		return func(*view) bool { return true }, nil
	}
	l.none = taskGiven && task
	return l.match, nil
}

// bound returns the container that a filter for older or newer containers names; nil
// if there is no such filter.
func (i *inspector) bound(refs []string) (*view, error) {
	if len(refs) == 0 {
		return nil, nil
	}
	a, err := i.index.find(refs[0])
	if err != nil {
		return nil, err
	}
	return a.view.Load(), nil
}
