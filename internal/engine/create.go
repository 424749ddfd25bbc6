// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/platforms"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	moby "github.com/moby/moby/api/types/container"
	mobynet "github.com/moby/moby/api/types/network"

	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	"holdfast/internal/errs"
	"holdfast/internal/failpoint"
	images "holdfast/internal/image"
)

var validName = regexp.MustCompile(`^/?[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// creator creates containers.
type creator struct {
	*progress
	config   *settings
	store    Store
	images   Images
	networks Networks
	volumes  Volumes
	host     oci.Host
	hostNow  func() oci.Host // see Engine.hostNow
	log      *slog.Logger
	index    *index
	journal  *journal
	names    *nameService
	mounter  *mounter
	attached *attachments
	newActor func(spec *container.Spec, d asked) *actor
}

// ContainerCreate creates a container without starting it.
func (cr *creator) ContainerCreate(ctx context.Context, o CreateOptions) (moby.CreateResponse, error) {
	none := moby.CreateResponse{}
	if err := cr.ready(ctx); err != nil {
		return none, err
	}
	c := creation{creator: cr, CreateOptions: o, cfg: cr.config.Load(), id: newID()}
	if err := c.check(ctx); err != nil {
		return none, err
	}
	defer c.undo.rollBack()
	if err := c.reserveName(); err != nil {
		return none, err
	}
	if err := c.makeVolumes(ctx); err != nil {
		return none, err
	}
	if c.Task == "" {
		if err := c.attached.attach(ctx, c.id, &c.req); err != nil {
			return none, err
		}
	}
	if err := c.describe(); err != nil {
		return none, err
	}
	if err := c.makeFiles(ctx); err != nil {
		return none, err
	}
	if err := c.record(); err != nil {
		return none, err
	}
	a := cr.newActor(&c.spec, asked{req: c.req, mounts: c.mounts})
	cr.index.add(a)
	if len(a.view.Load().places) > 0 {
		cr.names.update()
	}
	go a.run()
	c.release()
	c.undo.commit()
	cr.journal.created(c.spec, c.req, time.Now())
	failpoint.Here("create.told")
	if err := cr.store.EndCreate(c.id); err != nil {
		cr.log.Warn("the creation could not be marked as complete: the next start of the daemon does that", "container", c.id, "error", err)
	}
	if c.warnings == nil {
		c.warnings = []string{}
	}
	return moby.CreateResponse{ID: c.id, Warnings: c.warnings}, nil
}

// creation is a container that is being created. The spec is written last, when
// everything that it refers to exists. If the daemon dies before that, the next
// daemon rolls the creation back.
type creation struct {
	*creator
	CreateOptions
	cfg      *Config
	id       string
	img      images.Image
	req      request
	warnings []string
	undo     undo
	mounts   []mountPoint
	release  func() // see resolveMounts
	spec     container.Spec
}

// check completes and validates the request. It changes nothing.
func (c *creation) check(ctx context.Context) (err error) {
	config := c.Request.Config
	if config == nil {
		return errs.Invalid("config cannot be empty in order to create a container")
	}
	if c.Name != "" && !validName.MatchString(c.Name) {
		return errs.Invalid("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", c.Name)
	}
	if config.Image == "" {
		return errs.Invalid("no image was specified: set Config.Image")
	}
	if c.img, err = c.images.Resolve(ctx, config.Image, c.Platform); err != nil {
		return err
	}
	if c.req, err = c.complete(c.id, c.CreateOptions, c.img); err != nil {
		return err
	}
	// Only the client's configuration is validated, not the image's.
	if c.warnings, err = oci.Validate(c.hostNow(), config, c.req.HostConfig, c.cfg.Defaults); err != nil {
		return err
	}
	mode := string(c.req.HostConfig.NetworkMode) // before checkPeers replaces a container's name by its ID
	if err := c.checkPeers(c.req); err != nil {
		return err
	}
	if n := c.req.Networking; n != nil && c.req.Only {
		if err := c.networks.ValidateCombination(mode, n.EndpointsConfig); err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(n.EndpointsConfig)) {
			if err := c.networks.ValidateEndpoint(name, n.EndpointsConfig[name]); err != nil {
				return err
			}
		}
	}
	if c.Platform == nil && !platforms.Default().Match(c.img.Platform) {
		c.warnings = append(c.warnings, fmt.Sprintf("The requested image's platform (%s) does not match the detected host platform (%s) and no specific platform was requested",
			platforms.FormatAll(c.img.Platform), platforms.FormatAll(platforms.DefaultSpec())))
	}
	if len(linksOf(c.req)) > 0 {
		c.warnings = append(c.warnings, "Links on the default bridge network are deprecated and will be removed in a future release. Use a custom network instead.")
	}
	return nil
}

// reserveName reserves the requested name, or a random one.
func (c *creation) reserveName() (err error) {
	c.spec.Name = strings.TrimPrefix(c.Name, "/")
	if c.spec.Name == "" {
		c.spec.Name, err = c.index.newName(c.id)
	} else {
		err = c.index.reserve(c.spec.Name, c.id)
	}
	if err != nil {
		return err
	}
	c.undo.add(func() { c.index.release(c.spec.Name, c.id) })
	return nil
}

// makeVolumes marks the creation as begun, and creates the volumes.
func (c *creation) makeVolumes(ctx context.Context) (err error) {
	c.undo.add(func() { _ = c.store.RemoveContainer(c.id) })
	if err := c.store.BeginCreate(c.id); err != nil {
		return err
	}
	failpoint.Here("create.begun")
	var rollBack func()
	c.mounts, c.release, rollBack, err = c.resolveMounts(ctx, c.id, c.req)
	c.undo.add(rollBack)
	return err
}

// describe completes the spec.
func (c *creation) describe() (err error) {
	defaults, host := c.cfg.Defaults, c.req.HostConfig
	c.spec = container.Spec{
		Schema: container.SpecSchema, ID: c.id, Name: c.spec.Name, Created: time.Now().UTC(),
		Desired:    container.DesiredCreated,
		Image:      imageOf(c.Request.Config.Image, c.img),
		Runtime:    host.Runtime,
		Restart:    restartPolicy(host.RestartPolicy),
		Task:       c.Task,
		AutoRemove: host.AutoRemove,
		StopSignal: c.req.Config.StopSignal, StopTimeout: c.req.Config.StopTimeout,
		CgroupDriver: defaults.CgroupDriver, CgroupParent: cmp.Or(host.CgroupParent, defaults.CgroupParent),
	}
	if c.spec.API, err = c.req.encode(); err != nil {
		return err
	}
	c.spec.Mounts, err = json.Marshal(c.mounts)
	return err
}

// makeFiles makes the root file system, and copies from it to empty volumes.
func (c *creation) makeFiles(ctx context.Context) error {
	failpoint.Here("create.made-volumes")
	dir := c.store.ContainerDir(c.id)
	c.undo.add(func() { _ = c.images.RemoveRootfs(context.Background(), dir) })
	if err := c.images.PrepareRootfs(ctx, c.img, dir); err != nil {
		return fmt.Errorf("prepare the root file system: %w", err)
	}
	if err := c.mounter.holdImages(ctx, dir, c.mounts); err != nil {
		return err
	}
	failpoint.Here("create.prepared")
	if err := c.mounter.copyUp(ctx, c.spec, c.mounts); err != nil {
		return err
	}
	failpoint.Here("create.copied")
	return nil
}

// record writes the spec: from then on the container exists.
func (c *creation) record() error {
	if err := c.store.WriteSpec(&c.spec); err != nil {
		return err
	}
	failpoint.Here("create.recorded")
	return nil
}

func newID() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// complete merges the image's and the daemon's defaults into the client's request.
func (cr *creator) complete(id string, o CreateOptions, img images.Image) (request, error) {
	cfg := cr.config.Load()
	c := *o.Request.Config
	h := moby.HostConfig{}
	if o.Request.HostConfig != nil {
		h = *o.Request.HostConfig
	}
	mergeImage(&c, img)
	if len(c.Entrypoint) == 0 && len(c.Cmd) == 0 {
		return request{}, errs.Invalid("no command specified")
	}
	if c.Hostname == "" && !h.NetworkMode.IsHost() && !h.NetworkMode.IsContainer() {
		c.Hostname = id[:12]
	}
	if h.NetworkMode == "" || h.NetworkMode == "default" {
		h.NetworkMode = mobynet.NetworkBridge
	}
	if h.NetworkMode.IsHost() && c.Hostname == "" {
		c.Hostname, _ = os.Hostname()
	}
	h.Links = slices.Clone(h.Links)
	oci.Adapt(cr.host, &h, cfg.Defaults)
	if h.PortBindings == nil {
		h.PortBindings = mobynet.PortMap{}
	}
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	r := request{Config: &c, HostConfig: &h, Networking: resolveDefault(o.Request.NetworkingConfig), Fixed: cfg.fixOptions()}
	// As in Docker, the network mode only counts in requests that name no networks.
	r.Only = r.Networking != nil && len(r.Networking.EndpointsConfig) > 0 && !c.NetworkDisabled
	return r, nil
}

// resolveDefault replaces the alias "default" by the name of the default network.
func resolveDefault(nc *mobynet.NetworkingConfig) *mobynet.NetworkingConfig {
	if nc == nil {
		return nil
	}
	es, byRole := nc.EndpointsConfig[mobynet.NetworkDefault]
	if _, byName := nc.EndpointsConfig[mobynet.NetworkBridge]; !byRole || byName {
		return nc
	}
	out := cloneNetworking(nc)
	delete(out.EndpointsConfig, mobynet.NetworkDefault)
	out.EndpointsConfig[mobynet.NetworkBridge] = es
	return out
}

// mergeImage takes from the image what the user left out, by Docker's rules. An
// entrypoint of the user discards the image's command. Environment, labels, ports
// and volumes are merged, and the user's values take precedence.
func mergeImage(c *moby.Config, img images.Image) {
	i := img.Config
	if c.User == "" {
		c.User = i.User
	}
	for p := range i.ExposedPorts {
		port, err := mobynet.ParsePort(p)
		if err != nil {
			continue // an invalid port in an image must not prevent running it
		}
		if c.ExposedPorts == nil {
			c.ExposedPorts = mobynet.PortSet{}
		}
		c.ExposedPorts[port] = struct{}{}
	}
	c.Env = mergeEnv(c.Env, i.Env)
	if len(i.Labels) > 0 {
		labels := maps.Clone(i.Labels)
		maps.Copy(labels, c.Labels)
		c.Labels = labels
	}
	mergeCommand(c, i)
	if i.Healthcheck != nil {
		c.Healthcheck = mergeHealthcheck(c.Healthcheck, *i.Healthcheck)
	}
	if c.WorkingDir == "" {
		c.WorkingDir = i.WorkingDir
	}
	// A copy of the image's map, or of both; an empty one of the client is dropped.
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

func mergeEnv(own, image []string) []string {
	have := map[string]bool{}
	for _, kv := range own {
		k, _, _ := strings.Cut(kv, "=")
		have[k] = true
	}
	env := slices.Clone(own)
	for _, kv := range image {
		if k, _, _ := strings.Cut(kv, "="); !have[k] {
			env = append(env, kv)
		}
	}
	return env
}

func mergeCommand(c *moby.Config, i dockerspec.DockerOCIImageConfig) {
	if len(c.Entrypoint) == 0 {
		if len(c.Cmd) == 0 {
			c.Cmd = i.Cmd
		}
		if c.Entrypoint == nil {
			c.Entrypoint = i.Entrypoint
		}
	}
	// Clients send [""] to reset the entrypoint.
	if len(c.Entrypoint) == 1 && c.Entrypoint[0] == "" {
		c.Entrypoint = nil
	}
}

// mergeHealthcheck returns the container's health check, with the image's values where
// the user gave none. own may be nil.
func mergeHealthcheck(own *moby.HealthConfig, image dockerspec.HealthcheckConfig) *moby.HealthConfig {
	if own == nil {
		return &image
	}
	h := *own
	if len(h.Test) == 0 {
		h.Test = image.Test
	}
	h.Interval = cmp.Or(h.Interval, image.Interval)
	h.Timeout = cmp.Or(h.Timeout, image.Timeout)
	h.StartPeriod = cmp.Or(h.StartPeriod, image.StartPeriod)
	h.StartInterval = cmp.Or(h.StartInterval, image.StartInterval)
	h.Retries = cmp.Or(h.Retries, image.Retries)
	return &h
}

// checkPeers refuses modes and links that name a container which does not exist.
// The error is "invalid", not "not found": clients take the latter, in the answer
// to a create, for a missing image, and pull it.
//
// In the modes it replaces the container's name by its ID, as in Docker, so that
// they refer to the same container even if names change.
func (cr *creator) checkPeers(req request) error {
	h := req.HostConfig
	for _, j := range joinsOf(req) {
		a, err := cr.index.find(j.ref)
		if err != nil {
			return errs.Invalid("%s mode container:%s: %v", strings.ToLower(j.what), j.ref, err)
		}
		switch mode := "container:" + a.id; j.what {
		case "network":
			h.NetworkMode = moby.NetworkMode(mode)
		case "IPC":
			h.IpcMode = moby.IpcMode(mode)
		case "PID":
			h.PidMode = moby.PidMode(mode)
		}
	}
	if h.NetworkMode.IsUserDefined() {
		return nil // on such a network a link is a name that is resolved when it is looked up
	}
	for i, l := range h.Links {
		name, alias, err := oci.ParseLink(l)
		if err != nil {
			return err
		}
		a, err := cr.index.find(name)
		if err != nil {
			return errs.Invalid("could not get container for %s: %v", name, err)
		}
		// By ID: the container may be renamed.
		h.Links[i] = a.id + ":" + alias
	}
	return nil
}

func restartPolicy(p moby.RestartPolicy) container.RestartPolicy {
	return container.RestartPolicy{Name: string(p.Name), MaxRetries: p.MaximumRetryCount}
}
