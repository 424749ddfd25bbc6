// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	moby "github.com/moby/moby/api/types/container"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/archive"
	"holdfast/internal/container"
	"holdfast/internal/errs"
	"holdfast/internal/failpoint"
	images "holdfast/internal/image"
)

// CommitOptions are the arguments of POST /commit.
type CommitOptions struct {
	Ref             string // repository and tag; empty is none
	Author, Comment string
	Changes         []string
	Pause           bool         // freeze the container during the commit
	Config          *moby.Config // takes precedence over the container's; may be nil
}

// ContainerCommit makes an image of a container and returns its ID.
func (t *trees) ContainerCommit(ctx context.Context, ref string, o CommitOptions) (id string, err error) {
	err = t.withRootfs(ctx, ref, func(a *actor, v *view, root *archive.Root) error {
		if v.spec.Image.ManifestType == "" {
			return errs.NotImplemented("container %s was created by a release that did not record the manifest of its image: export it instead", v.spec.Name)
		}
		config := imageConfig(v.req.Config)
		if o.Config != nil {
			own := *o.Config
			mergeImage(&own, images.Image{Config: config})
			config = imageConfig(&own)
		}
		c := images.Commit{
			Base:   ocispec.Descriptor{MediaType: v.spec.Image.ManifestType, Digest: digest.Digest(v.spec.Image.Manifest), Size: v.spec.Image.ManifestSize},
			Parent: v.spec.Image.ID, Ref: o.Ref, Author: o.Author, Comment: o.Comment, CreatedBy: strings.Join(v.req.Config.Cmd, " "),
			Config: config, Changes: o.Changes,
		}
		id, err = t.images.Commit(ctx, c, func(w io.Writer) (any bool, err error) {
			if o.Pause {
				thaw, err := t.freezeToCommit(ctx, a)
				if err != nil {
					return false, err
				}
				defer thaw()
			}
			failpoint.Here("commit.frozen")
			changes, err := t.changes(ctx, v, root)
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
		a.emit("commit", map[string]string{"comment": o.Comment, "imageID": id, "imageRef": familiarRef(o.Ref)})
		return nil
	})
	return id, err
}

// freezeToCommit freezes a running container, and returns a function that thaws
// it. If the daemon dies, the shim thaws the container. First it is recorded that
// a commit, and not the user, freezes the container: if the shim can't thaw it,
// the next daemon does.
func (t *trees) freezeToCommit(ctx context.Context, a *actor) (thaw func(), err error) {
	none := func() {}
	if a.view.Load().state != container.Running {
		return none, nil
	}
	noted := false // accessed by the loop alone
	err = a.ask(ctx, container.AskCommit, func(_ container.Action, done func(error)) {
		noted = true
		done(setCommitting(a, true))
	})
	if err != nil {
		a.post(func() {
			if noted { // the client stopped waiting, or the record could not be written
				a.step(container.SawCommitOver)
				_ = setCommitting(a, false) // after an error the next save writes it
			}
		})
		return none, err
	}
	failpoint.Here("commit.noted")
	err = a.freeze(context.WithoutCancel(ctx), container.AskPause, "pause", Shim.PauseLent)
	switch {
	case errdefs.IsConflict(err): // the container has ended, or its user has paused it meanwhile
		t.recordCommitOver(a)
		return none, nil
	case err != nil:
		t.thawAfterCommit(a)
		return none, err
	}
	return func() { t.thawAfterCommit(a) }, nil
}

// Backoff for a container that can't be thawed after a commit.
const (
	thawFirst = 100 * time.Millisecond
	thawMost  = 30 * time.Second
)

// thawAfterCommit thaws a container that was frozen for a commit, by this daemon
// or by one that died during the commit.
func (t *trees) thawAfterCommit(a *actor) {
	for wait := (backoff{thawFirst, thawMost}); ; {
		err := a.freeze(context.Background(), container.AskUnpause, "unpause", Shim.Resume)
		failpoint.Here("commit.thawed")
		if err == nil || errdefs.IsConflict(err) || isNotFound(err) {
			break
		}
		a.log.Error("the container is not thawed after a commit, retrying", "error", err)
		if !wait.wait(a) {
			return // the container is removed, or the next daemon thaws it
		}
	}
	t.recordCommitOver(a)
}

// recordCommitOver records that the commit no longer freezes the container.
func (t *trees) recordCommitOver(a *actor) {
	err := a.ask(context.Background(), container.AskChange, func(_ container.Action, done func(error)) {
		a.step(container.SawCommitOver)
		done(setCommitting(a, false))
	})
	if err != nil && !isNotFound(err) {
		a.log.Warn("the end of a commit could not be recorded", "error", err)
	}
}

// setCommitting records whether a commit freezes the container, in the loop.
func setCommitting(a *actor, on bool) error {
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

// familiarRef is the short form of a reference: without the default registry.
func familiarRef(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.FamiliarString(named)
}
