package engine

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/platforms"
	moby "github.com/moby/moby/api/types/container"
	mobynet "github.com/moby/moby/api/types/network"

	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	"holdfast/internal/failpoint"
	images "holdfast/internal/image"
)

var validName = regexp.MustCompile(`^/?[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// ContainerCreate makes a container and does not start it.
func (e *Engine) ContainerCreate(ctx context.Context, o CreateOptions) (moby.CreateResponse, error) {
	none := moby.CreateResponse{}
	if err := e.ready(ctx); err != nil {
		return none, err
	}
	if o.Request.Config == nil {
		return none, invalid("config cannot be empty in order to create a container")
	}
	id := newID()
	name := strings.TrimPrefix(o.Name, "/")
	if o.Name != "" && !validName.MatchString(o.Name) {
		return none, invalid("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", o.Name)
	}
	if o.Request.Config.Image == "" {
		return none, invalid("no image was named: give one in Config.Image")
	}

	img, err := e.images.Resolve(ctx, o.Request.Config.Image, o.Platform)
	if err != nil {
		return none, err
	}
	cfg := e.config.Load()
	req, err := e.complete(id, o, img)
	if err != nil {
		return none, err
	}
	// What is judged is the client's own configuration, not the image's.
	warnings, err := oci.Validate(e.host, o.Request.Config, req.HostConfig, cfg.Defaults)
	if err != nil {
		return none, err
	}
	if err := e.checkPeers(req); err != nil {
		return none, err
	}
	if n := req.Networking; n != nil {
		for _, name := range slices.Sorted(maps.Keys(n.EndpointsConfig)) {
			if err := e.networks.Judge(name, n.EndpointsConfig[name]); err != nil {
				return none, err
			}
		}
	}
	if o.Platform == nil && !platforms.Default().Match(img.Platform) {
		warnings = append(warnings, fmt.Sprintf("The requested image's platform (%s) does not match the detected host platform (%s) and no specific platform was requested",
			platforms.FormatAll(img.Platform), platforms.FormatAll(platforms.DefaultSpec())))
	}

	var u undo
	defer u.fail()
	if name == "" {
		name, err = e.newName(id)
	} else {
		err = e.index.reserve(name, id)
	}
	if err != nil {
		return none, err
	}
	u.add(func() { e.index.release(name, id) })

	// The spec is written last, when all that it speaks of is there: until then
	// a crash leaves what the next daemon takes back.
	u.add(func() { _ = e.store.RemoveContainer(id) })
	if err := e.store.BeginCreate(id); err != nil {
		return none, err
	}
	failpoint.Here("create.begun")

	mounts, release, takeBack, err := e.resolveMounts(id, req)
	u.add(takeBack)
	if err != nil {
		return none, err
	}

	spec := container.Spec{
		Schema: container.SpecSchema, ID: id, Name: name, Created: time.Now().UTC(),
		Desired: container.DesiredCreated,
		Image: container.Image{
			Ref: o.Request.Config.Image, ID: img.ID, Manifest: img.Manifest,
			Platform: platforms.Format(img.Platform),
			Snapshot: img.Snapshot, Storage: img.Storage, LayerBytes: img.LayerBytes,
			ManifestType: img.ManifestType, ManifestSize: img.ManifestSize,
		},
		Runtime:    req.HostConfig.Runtime,
		Restart:    restartPolicy(req.HostConfig.RestartPolicy),
		AutoRemove: req.HostConfig.AutoRemove,
		StopSignal: req.Config.StopSignal, StopTimeout: req.Config.StopTimeout,
		CgroupDriver: cfg.Defaults.CgroupDriver, CgroupParent: cmp.Or(req.HostConfig.CgroupParent, cfg.Defaults.CgroupParent),
	}
	if spec.API, err = req.encode(); err != nil {
		return none, err
	}
	if spec.Mounts, err = json.Marshal(mounts); err != nil {
		return none, err
	}

	failpoint.Here("create.made-volumes")
	dir := e.store.ContainerDir(id)
	u.add(func() { _ = e.images.RemoveRootfs(context.Background(), dir) })
	if err := e.images.PrepareRootfs(ctx, img, dir); err != nil {
		return none, fmt.Errorf("prepare the root file system: %w", err)
	}
	failpoint.Here("create.prepared")
	if err := e.copyUp(ctx, spec, mounts); err != nil {
		return none, err
	}
	failpoint.Here("create.copied")
	if err := e.store.WriteSpec(&spec); err != nil {
		return none, err
	}
	failpoint.Here("create.recorded")
	if err := e.store.EndCreate(id); err != nil {
		e.log.Warn("the next start finishes the creation", "container", id, "error", err)
	}

	a := newActor(e, &spec, asked{req: req, mounts: mounts})
	e.index.add(a)
	if len(a.view.Load().places) > 0 {
		e.updateNames()
	}
	go a.loop()
	release()
	u.keep()
	a.emit("create", nil)
	failpoint.Here("create.told")
	if warnings == nil {
		warnings = []string{}
	}
	return moby.CreateResponse{ID: id, Warnings: warnings}, nil
}

func newID() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// complete merges the image's and the daemon's defaults into what was asked.
func (e *Engine) complete(id string, o CreateOptions, img images.Image) (request, error) {
	cfg := e.config.Load()
	c := *o.Request.Config
	h := moby.HostConfig{}
	if o.Request.HostConfig != nil {
		h = *o.Request.HostConfig
	}
	mergeImage(&c, img)
	if len(c.Entrypoint) == 0 && len(c.Cmd) == 0 {
		return request{}, invalid("no command specified")
	}
	if c.Hostname == "" && !h.NetworkMode.IsHost() && !h.NetworkMode.IsContainer() && !h.UTSMode.IsHost() {
		c.Hostname = id[:12]
	}
	if h.NetworkMode == "" || h.NetworkMode == "default" {
		h.NetworkMode = mobynet.NetworkBridge
		if c.NetworkDisabled {
			h.NetworkMode = mobynet.NetworkNone
		}
	}
	if (h.NetworkMode.IsHost() || h.UTSMode.IsHost()) && c.Hostname == "" {
		c.Hostname, _ = os.Hostname()
	}
	oci.Adapt(e.host, &h, cfg.Defaults)
	if h.PortBindings == nil {
		h.PortBindings = mobynet.PortMap{}
	}
	for port := range h.PortBindings {
		if c.ExposedPorts == nil {
			c.ExposedPorts = mobynet.PortSet{}
		}
		c.ExposedPorts[port] = struct{}{}
	}
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	return request{Config: &c, HostConfig: &h, Networking: o.Request.NetworkingConfig, Kept: cfg.keep()}, nil
}

// mergeImage fills in from the image what the user left out, by Docker's
// rules: an entrypoint of the user's drops the image's command; environment,
// labels, ports and volumes are joined, the user's winning.
func mergeImage(c *moby.Config, img images.Image) {
	i := img.Config
	if c.User == "" {
		c.User = i.User
	}
	for p := range i.ExposedPorts {
		port, err := mobynet.ParsePort(p)
		if err != nil {
			continue // an image's mistake keeps nobody from running it
		}
		if c.ExposedPorts == nil {
			c.ExposedPorts = mobynet.PortSet{}
		}
		c.ExposedPorts[port] = struct{}{}
	}
	have := map[string]bool{}
	for _, kv := range c.Env {
		k, _, _ := strings.Cut(kv, "=")
		have[k] = true
	}
	env := slices.Clone(c.Env)
	for _, kv := range i.Env {
		if k, _, _ := strings.Cut(kv, "="); !have[k] {
			env = append(env, kv)
		}
	}
	c.Env = env
	if len(i.Labels) > 0 {
		labels := maps.Clone(i.Labels)
		maps.Copy(labels, c.Labels)
		c.Labels = labels
	}
	if len(c.Entrypoint) == 0 {
		if len(c.Cmd) == 0 {
			c.Cmd = i.Cmd
		}
		if c.Entrypoint == nil {
			c.Entrypoint = i.Entrypoint
		}
	}
	// [""] is how clients say "no entrypoint at all".
	if len(c.Entrypoint) == 1 && c.Entrypoint[0] == "" {
		c.Entrypoint = nil
	}
	if i.Healthcheck != nil {
		if c.Healthcheck == nil {
			h := *i.Healthcheck
			c.Healthcheck = &h
		} else {
			h := *c.Healthcheck
			if len(h.Test) == 0 {
				h.Test = i.Healthcheck.Test
			}
			if h.Interval == 0 {
				h.Interval = i.Healthcheck.Interval
			}
			if h.Timeout == 0 {
				h.Timeout = i.Healthcheck.Timeout
			}
			if h.StartPeriod == 0 {
				h.StartPeriod = i.Healthcheck.StartPeriod
			}
			if h.StartInterval == 0 {
				h.StartInterval = i.Healthcheck.StartInterval
			}
			if h.Retries == 0 {
				h.Retries = i.Healthcheck.Retries
			}
			c.Healthcheck = &h
		}
	}
	if c.WorkingDir == "" {
		c.WorkingDir = i.WorkingDir
	}
	// A copy, without the empty one that clients send.
	volumes := maps.Clone(i.Volumes)
	if len(c.Volumes) > 0 {
		volumes = maps.Clone(c.Volumes)
		maps.Copy(volumes, i.Volumes)
	}
	c.Volumes = volumes
	if c.StopSignal == "" {
		c.StopSignal = i.StopSignal
	}
	if len(c.Shell) == 0 {
		c.Shell = i.Shell
	}
}

// checkPeers refuses modes and links that name a container which isn't there.
// That is not "not found": of a create, clients take this for a missing image,
// and pull it.
func (e *Engine) checkPeers(req request) error {
	h := req.HostConfig
	for _, m := range []struct {
		option, peer string
		used         bool
	}{
		{"network", h.NetworkMode.ConnectedContainer(), h.NetworkMode.IsContainer()},
		{"ipc", h.IpcMode.Container(), h.IpcMode.IsContainer()},
		{"pid", h.PidMode.Container(), h.PidMode.IsContainer()},
	} {
		if !m.used {
			continue
		}
		if _, err := e.index.find(m.peer); err != nil {
			return invalid("%s mode container:%s: %v", m.option, m.peer, err)
		}
	}
	if h.NetworkMode.IsUserDefined() {
		return nil // there a link is one more name, looked up when it is asked for
	}
	for _, l := range h.Links {
		name, _, err := oci.ParseLink(l)
		if err != nil {
			return err
		}
		if _, err := e.index.find(name); err != nil {
			return invalid("could not get container for %s: %v", name, err)
		}
	}
	return nil
}

func restartPolicy(p moby.RestartPolicy) container.RestartPolicy {
	return container.RestartPolicy{Name: string(p.Name), MaxRetries: p.MaximumRetryCount}
}
