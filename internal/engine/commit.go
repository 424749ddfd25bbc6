package engine

import (
	"context"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	moby "github.com/moby/moby/api/types/container"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/archive"
	"holdfast/internal/container"
	"holdfast/internal/failpoint"
	images "holdfast/internal/image"
)

// CommitOptions are the arguments of POST /commit.
type CommitOptions struct {
	Ref             string // repository and tag; empty is none
	Author, Comment string
	Changes         []string
	Pause           bool         // freeze the container meanwhile
	Config          *moby.Config // before the container's; may be nil
}

// ContainerCommit makes an image of a container and returns its ID.
func (e *Engine) ContainerCommit(ctx context.Context, ref string, o CommitOptions) (id string, err error) {
	err = e.withRootfs(ctx, ref, func(a *actor, v *view, root *archive.Root) error {
		if v.spec.Image.ManifestType == "" {
			return notImplemented("container %s was created by a release that did not record the manifest of its image: export it instead", v.spec.Name)
		}
		config := imageConfig(v.req.Config)
		if o.Config != nil {
			own := *o.Config
			mergeImage(&own, images.Image{Config: config})
			config = imageConfig(&own)
		}
		c := images.Commit{
			Base: ocispec.Descriptor{MediaType: v.spec.Image.ManifestType, Digest: digest.Digest(v.spec.Image.Manifest), Size: v.spec.Image.ManifestSize},
			Ref:  o.Ref, Author: o.Author, Comment: o.Comment, CreatedBy: strings.Join(v.req.Config.Cmd, " "),
			Config: config, Changes: o.Changes,
		}
		id, err = e.images.Commit(ctx, c, func(w io.Writer) (any bool, err error) {
			if o.Pause {
				thaw, err := a.freezeToCommit(ctx)
				if err != nil {
					return false, err
				}
				defer thaw()
			}
			failpoint.Here("commit.frozen")
			changes, err := e.changes(ctx, v, root)
			if err != nil {
				return false, err
			}
			err = root.PackChanges(ctx, changes, w)
			failpoint.Here("commit.packed")
			return len(changes) > 0, err
		})
		if err != nil {
			return err
		}
		failpoint.Here("commit.recorded")
		a.emit("commit", map[string]string{"comment": o.Comment, "imageID": id, "imageRef": o.Ref})
		return nil
	})
	return id, err
}

// freezeToCommit freezes a container that runs, and the function that is returned
// thaws it. Should the daemon die, its shim does. That it is frozen for this, and
// not by its user, is recorded first all the same: where the shim can't, the
// next daemon does.
func (a *actor) freezeToCommit(ctx context.Context) (thaw func(), err error) {
	none := func() {}
	if a.view.Load().state != container.Running {
		return none, nil
	}
	err = a.ask(ctx, container.AskChange, func(_ container.Action, done func(error)) {
		if a.committing {
			done(conflict("container %s is being committed already", a.spec.Name))
			return
		}
		a.committing = true
		done(a.setCommitting(true))
	})
	if err != nil {
		if !errdefs.IsConflict(err) {
			a.commitOver()
		}
		return none, err
	}
	failpoint.Here("commit.noted")
	err = a.freeze(context.WithoutCancel(ctx), container.AskPause, "pause", Shim.PauseLent)
	switch {
	case errdefs.IsConflict(err): // it has ended, or its user was quicker
		a.commitOver()
		return none, nil
	case err != nil:
		a.thawAfterCommit()
		return none, err
	}
	return a.thawAfterCommit, nil
}

// thawAfterCommit thaws a container that was frozen to be committed, by this
// daemon or by one that died in it.
func (a *actor) thawAfterCommit() {
	err := a.freeze(context.Background(), container.AskUnpause, "unpause", Shim.Resume)
	failpoint.Here("commit.thawed")
	if err != nil && !errdefs.IsConflict(err) {
		a.log.Error("not thawed after a commit", "error", err)
		a.post(func() { a.committing = false }) // see to
		return
	}
	a.commitOver()
}

// commitOver records that no commit freezes the container any more.
func (a *actor) commitOver() {
	err := a.ask(context.Background(), container.AskChange, func(_ container.Action, done func(error)) {
		a.committing = false
		done(a.setCommitting(false))
	})
	if err != nil && !isNotFound(err) {
		a.log.Warn("it was not recorded that a commit is over", "error", err)
	}
}

// setCommitting records that a commit freezes the container, in the loop.
func (a *actor) setCommitting(on bool) error {
	if a.spec.Committing == on {
		return nil
	}
	a.spec.Committing = on
	err := a.save()
	a.publish()
	return err
}

// imageConfig is the part of a container's configuration that images have.
func imageConfig(c *moby.Config) dockerspec.DockerOCIImageConfig {
	var out dockerspec.DockerOCIImageConfig
	out.User, out.Env, out.WorkingDir, out.StopSignal = c.User, append([]string(nil), c.Env...), c.WorkingDir, c.StopSignal
	out.Entrypoint, out.Cmd = c.Entrypoint, c.Cmd
	out.OnBuild, out.Shell = c.OnBuild, c.Shell
	for p := range c.ExposedPorts {
		if out.ExposedPorts == nil {
			out.ExposedPorts = map[string]struct{}{}
		}
		out.ExposedPorts[p.String()] = struct{}{}
	}
	for k, v := range c.Labels {
		if out.Labels == nil {
			out.Labels = map[string]string{}
		}
		out.Labels[k] = v
	}
	for k := range c.Volumes {
		if out.Volumes == nil {
			out.Volumes = map[string]struct{}{}
		}
		out.Volumes[k] = struct{}{}
	}
	if h := c.Healthcheck; h != nil {
		out.Healthcheck = &dockerspec.HealthcheckConfig{
			Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries,
		}
	}
	return out
}
