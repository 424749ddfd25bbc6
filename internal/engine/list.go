package engine

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	moby "github.com/moby/moby/api/types/container"
	mobynet "github.com/moby/moby/api/types/network"

	"holdfast/internal/container"
	"holdfast/internal/filter"
)

// ContainerList lists containers, the newest first. It reads the published
// pictures only, so it never waits.
func (e *Engine) ContainerList(ctx context.Context, o ListOptions) ([]moby.Summary, error) {
	f := o.Filters
	if err := f.Check("ancestor", "before", "expose", "exited", "health", "id", "isolation", "is-task", "label", "label!", "name", "network", "publish", "since", "status", "volume"); err != nil {
		return nil, invalid("%v", err)
	}
	pick, err := e.listFilter(ctx, f)
	if err != nil {
		return nil, err
	}
	all := o.All || o.Limit > 0 || f.Has("status") || f.Has("exited")

	var views []*view
	for _, a := range e.index.all() {
		v := a.view.Load()
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
	means, err := e.images.Means(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]moby.Summary, 0, len(views))
	now := time.Now()
	for _, v := range views {
		s := e.summary(v, now)
		if !means(s.Image, s.ImageID) {
			s.Image = s.ImageID
		}
		if o.Size {
			rw, err := e.images.RootfsUsage(e.store.ContainerDir(v.spec.ID))
			if err != nil {
				return nil, fmt.Errorf("size of %s: %w", v.spec.Name, err)
			}
			s.SizeRw, s.SizeRootFs = rw, rw+v.spec.Image.LayerBytes
		}
		out = append(out, s)
	}
	return out, nil
}

// listed is what a list shows of a view at any time, and what it says of how
// long ago something was is made of.
type listed struct {
	summary moby.Summary // without Status
	state   *moby.State
}

// summary is a view as a list shows it. What it points to is shared with other
// lists, and is not to be changed.
func (e *Engine) summary(v *view, now time.Time) moby.Summary {
	l := v.listed.Load()
	if l == nil {
		l = e.list(v)
		if v.onNetworks() {
			// Nothing but the view bears on it. What is shown of a container that
			// does not run depends on the networks that there are.
			v.listed.Store(l)
		}
	}
	s := l.summary
	s.Status = statusText(v, l.state, now)
	return s
}

func (e *Engine) list(v *view) *listed {
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
	ns := e.networkSettings(v)
	published := ns.Ports
	s.NetworkSettings = &moby.NetworkSettingsSummary{Networks: ns.Networks}
	for port := range v.req.Config.ExposedPorts {
		if !st.Running {
			break
		}
		// Where the network is routed, what is published has no port of the host.
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

// statusText is the sentence of the list's column STATUS.
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

// listFilter makes one predicate of all filters of a list.
func (e *Engine) listFilter(ctx context.Context, f filter.Args) (func(*view) bool, error) {
	for _, s := range f["status"] {
		if err := moby.ValidateContainerState(moby.ContainerState(s)); err != nil {
			return nil, invalid("invalid filter 'status=%s': %v", s, err)
		}
	}
	for _, s := range f["health"] {
		if err := moby.ValidateHealthStatus(moby.HealthStatus(s)); err != nil {
			return nil, invalid("invalid filter 'health=%s': %v", s, err)
		}
	}
	codes := map[int]bool{}
	for _, s := range f["exited"] {
		n, err := strconv.Atoi(s)
		if err != nil {
			return nil, invalid("invalid filter 'exited=%s': want an exit code", s)
		}
		codes[n] = true
	}
	bound := func(term string) (*view, error) {
		for _, ref := range f[term] {
			a, err := e.index.find(ref)
			if err != nil {
				return nil, err
			}
			return a.view.Load(), nil
		}
		return nil, nil
	}
	before, err := bound("before")
	if err != nil {
		return nil, err
	}
	since, err := bound("since")
	if err != nil {
		return nil, err
	}
	var ancestors map[string]bool
	if f.Has("ancestor") {
		ancestors = map[string]bool{}
		for _, ref := range f["ancestor"] {
			if img, err := e.images.Resolve(ctx, ref, nil); err == nil {
				ancestors[img.ID] = true
			}
			ancestors[ref] = true
		}
	}
	ports := map[string]func(mobynet.Port) bool{}
	for _, term := range []string{"publish", "expose"} {
		if !f.Has(term) {
			continue
		}
		var ranges []mobynet.PortRange
		for _, s := range f[term] {
			r, err := mobynet.ParsePortRange(s)
			if err != nil {
				return nil, invalid("invalid filter '%s=%s': %v", term, s, err)
			}
			ranges = append(ranges, r)
		}
		ports[term] = func(p mobynet.Port) bool {
			return slices.ContainsFunc(ranges, func(r mobynet.PortRange) bool {
				return r.Proto() == p.Proto() && r.Start() <= p.Num() && p.Num() <= r.End()
			})
		}
	}
	task, taskGiven, err := f.Bool("is-task")
	if err != nil {
		return nil, invalid("%v", err)
	}

	if len(f) == 0 {
		return func(*view) bool { return true }, nil
	}
	return func(v *view) bool {
		st := apiState(v)
		switch {
		case !f.Prefix("id", v.spec.ID),
			f.Has("name") && !f.Match("name", "/"+v.spec.Name) && !f.Match("name", v.spec.Name),
			!labelsMatch(f, v.req.Config.Labels),
			!f.Exact("status", string(st.Status)),
			len(codes) > 0 && (!codes[st.ExitCode] || st.Running || !v.hasRun()),
			before != nil && !v.spec.Created.Before(before.spec.Created),
			since != nil && !v.spec.Created.After(since.spec.Created),
			taskGiven && task,
			// The only one on Linux, by either of its names.
			f.Has("isolation") && !f.Exact("isolation", string(moby.IsolationDefault)) && !f.Exact("isolation", ""):
			return false
		}
		if f.Has("health") {
			status := moby.NoHealthcheck
			if st.Health != nil {
				status = st.Health.Status
			}
			if !f.Exact("health", string(status)) {
				return false
			}
		}
		if ancestors != nil && !ancestors[v.spec.Image.ID] && !ancestors[v.req.Config.Image] && !ancestors[v.spec.Image.Manifest] {
			return false
		}
		if f.Has("volume") && !slices.ContainsFunc(v.mounts, func(m mountPoint) bool {
			return slices.Contains(f["volume"], m.Name) && m.Name != "" || slices.Contains(f["volume"], path.Clean(m.Destination)) || slices.Contains(f["volume"], m.Source)
		}) {
			return false
		}
		if f.Has("network") || ports["publish"] != nil {
			ns := e.networkSettings(v)
			if f.Has("network") {
				found := false
				for name, ep := range ns.Networks {
					for _, want := range f["network"] {
						found = found || name == want || ep.NetworkID != "" && strings.HasPrefix(ep.NetworkID, want)
					}
				}
				if !found {
					return false
				}
			}
			if match := ports["publish"]; match != nil && publishes(ns.Ports, match) {
				return true
			}
		}
		if match := ports["expose"]; match != nil {
			for p := range v.req.Config.ExposedPorts {
				if match(p) {
					return true
				}
			}
		}
		// Either of the two is enough.
		return ports["publish"] == nil && ports["expose"] == nil
	}, nil
}

// publishes reports whether a port of the host is among those that match.
func publishes(ports mobynet.PortMap, match func(mobynet.Port) bool) bool {
	for p, bindings := range ports {
		for _, b := range bindings {
			if host, err := mobynet.ParsePort(b.HostPort + "/" + string(p.Proto())); err == nil && match(host) {
				return true
			}
		}
	}
	return false
}

// labelsMatch applies the filters label and label!.
func labelsMatch(f filter.Args, labels map[string]string) bool {
	if !f.KV("label", labels) {
		return false
	}
	return !f.Has("label!") || !f.KV("label!", labels)
}

// untilOf reads the filter until: a time stamp, or a duration before now.
func untilOf(f filter.Args) (time.Time, error) {
	if !f.Has("until") {
		return time.Time{}, nil
	}
	if len(f["until"]) > 1 {
		return time.Time{}, invalid("more than one until filter specified")
	}
	s := f["until"][0]
	if d, err := time.ParseDuration(s); err == nil {
		return time.Now().Add(-d), nil
	}
	if sec, err := strconv.ParseFloat(s, 64); err == nil {
		return time.Unix(0, int64(sec*float64(time.Second))), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, invalid("invalid filter 'until=%s': want a duration such as 24h or a time stamp", s)
}
