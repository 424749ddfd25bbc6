// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot/imagerefchecker"
	"github.com/moby/buildkit/worker/base"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"

	"holdfast/internal/build/stores"
	"holdfast/internal/errs"
	"holdfast/internal/image"
)

// stepWorker is BuildKit's worker, which exports images into the daemon's store.
type stepWorker struct {
	*base.Worker
	remote  *stores.Client
	present *present
	state   string // directory of BuildKit's databases
	scratch string // directory of views of what is copied
	host    hostPlatforms
	solves  solves
}

// GCPolicy is what the cache is collected by, in the present configuration.
func (w *stepWorker) GCPolicy() []client.PruneInfo {
	return gcPolicy(w.present.now(context.Background()).GC, w.state)
}

// DiskUsage returns the records of the cache.
func (w *stepWorker) DiskUsage(ctx context.Context, o client.DiskUsageInfo) ([]*client.UsageInfo, error) {
	records, _, err := w.records(ctx)
	if err != nil {
		return nil, err
	}
	if o.AgeLimit > 0 {
		since := time.Now().Add(-o.AgeLimit)
		records = slices.DeleteFunc(records, func(r *client.UsageInfo) bool { return r.LastUsedAt != nil && r.LastUsedAt.After(since) })
	}
	return matches(o.Filter, records)
}

// records returns all records of the cache, and the IDs of those that BuildKit takes for
// shared with an image and that are not. What nothing uses but a build that has ended is
// not in use.
func (w *stepWorker) records(ctx context.Context) ([]*client.UsageInfo, map[string]bool, error) {
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	for {
		settling := w.solves.settling()
		records, err := w.Worker.DiskUsage(ctx, client.DiskUsageInfo{})
		if err != nil && strings.Contains(err.Error(), unix.ENOSPC.Error()) { // it records sizes
			end := w.spend()
			records, err = w.Worker.DiskUsage(ctx, client.DiskUsageInfo{})
			end()
		}
		if err != nil {
			return nil, nil, err
		}
		if !settling || !slices.ContainsFunc(records, func(r *client.UsageInfo) bool { return r.InUse }) {
			of, err := w.ofImages(records)
			if err != nil {
				return nil, nil, err
			}
			return records, share(records, of), nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
}

// settlePoll is how often the records are read while a build lets go of them.
const settlePoll = 20 * time.Millisecond

// ofImages returns a function that reports whether a record has the layers of an image.
func (w *stepWorker) ofImages(records []*client.UsageInfo) (func(*client.UsageInfo) bool, error) {
	images, err := imagerefchecker.New(imagerefchecker.Opt{ImageStore: w.remote.Images(), ContentStore: w.ContentStore()})()
	if err != nil {
		return nil, err
	}
	byID := map[string]*client.UsageInfo{}
	for _, r := range records {
		byID[r.ID] = r
	}
	return func(r *client.UsageInfo) bool {
		if len(r.Parents) > 1 {
			return r.Shared && w.blob(r.ID) != "" // merged, as of COPY --link
		}
		layers, ok := layersOf(r, byID, w.blob)
		return ok && images.Exists(r.ID, layers)
	}, nil
}

// blob returns the digest of the packed layer of a record, or "" if it was not packed.
func (w *stepWorker) blob(id string) (d digest.Digest) {
	item, ok := w.MetadataStore.Get(id)
	if !ok {
		return ""
	}
	v := item.Get("cache.blob")
	if v == nil || json.Unmarshal(v.Value, &d) != nil {
		return ""
	}
	return d
}

// Prune removes records of the cache, also if the disk is full: BuildKit writes to its
// databases before it frees anything. The records that it reports have the size that
// their removal frees.
func (w *stepWorker) Prune(ctx context.Context, removed chan client.UsageInfo, opts ...client.PruneInfo) error {
	defer w.spend()()
	records, spared, err := w.records(ctx)
	if err != nil {
		return err
	}
	if opts, err = pruned(opts, records, spared); err != nil || len(opts) == 0 {
		return err
	}
	shared := map[string]bool{}
	for _, r := range records {
		shared[r.ID] = r.Shared
	}
	all := make(chan client.UsageInfo)
	told := make(chan struct{})
	go func() {
		defer close(told)
		for r := range all {
			if shared[r.ID] {
				r.Shared, r.Size = true, 0
			}
			select {
			case removed <- r:
			case <-ctx.Done(): // nobody reads any more
			}
		}
	}()
	err = w.Worker.Prune(ctx, all, opts...)
	close(all)
	<-told
	return err
}

// spend frees the disk space that is kept for the databases, until the function that it
// returns is called.
func (w *stepWorker) spend() (end func()) {
	reserve := filepath.Join(w.state, "reserve")
	_ = os.Remove(reserve) // without it there is nothing to gain
	return func() {
		if err := os.WriteFile(reserve, make([]byte, reserved), 0o600); err != nil {
			_ = os.Remove(reserve) // the disk is still full
		}
	}
}

// reserved is the size, in bytes, of the file that spend removes.
const reserved = 1 << 20

// exporterMoby is the name by which clients ask for an image in the daemon's store.
const exporterMoby = "moby"

func (w *stepWorker) Exporter(name string, sm *session.Manager) (exporter.Exporter, error) {
	if name != exporterMoby && name != client.ExporterImage {
		return w.Worker.Exporter(name, sm)
	}
	e, err := w.Worker.Exporter(client.ExporterImage, sm)
	if err != nil {
		return nil, err
	}
	return &imageExporter{e, w}, nil
}

// imageExporter writes an image into the daemon's store. The snapshots of the
// build's steps become the image's layers, so that a container can be made of it at
// once.
type imageExporter struct {
	exporter.Exporter
	worker *stepWorker
}

func (e *imageExporter) Resolve(ctx context.Context, id int, attrs map[string]string) (_ exporter.ExporterInstance, err error) {
	own := make(map[string]string, len(attrs)+2)
	for k, v := range attrs {
		own[k] = v
	}
	// The layers need not be unpacked, because they are adopted.
	own[string(exptypes.OptKeyUnpack)] = "false"
	if own[string(exptypes.OptKeyDanglingPrefix)] == "" {
		own[string(exptypes.OptKeyDanglingPrefix)] = image.DanglingName
		own[string(exptypes.OptKeyDanglingEmptyOnly)] = "true"
	}
	if own["name"], err = fullNames(own["name"]); err != nil {
		return nil, err
	}
	in, err := e.Exporter.Resolve(ctx, id, own)
	if err != nil {
		return nil, err
	}
	return &imageInstance{in, e.worker, own[string(exptypes.OptKeyStore)] != "false"}, nil
}

// fullNames completes the names of an image, as clients of the API give them.
func fullNames(names string) (string, error) {
	if names == "" || names == "*" {
		return names, nil
	}
	var full []string
	for name := range strings.SplitSeq(names, ",") {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return "", errs.Invalid("invalid tag %q: %v", name, err)
		}
		if name = reference.TagNameOnly(named).String(); !slices.Contains(full, name) {
			full = append(full, name)
		}
	}
	return strings.Join(full, ","), nil
}

type imageInstance struct {
	exporter.ExporterInstance
	worker *stepWorker
	store  bool
}

func (i *imageInstance) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (map[string]string, exporter.FinalizeFunc, exporter.DescriptorReference, error) {
	resp, finalize, ref, err := i.ExporterInstance.Export(ctx, src, info)
	if err != nil || !i.store {
		return resp, finalize, ref, err
	}
	refs := []cache.ImmutableRef{src.Ref}
	for _, r := range src.Refs {
		refs = append(refs, r)
	}
	for _, r := range refs {
		if r == nil {
			continue
		}
		if err := i.adopt(ctx, r, info.SessionID); err != nil {
			// The image is complete. Its layers are unpacked for the first container.
			logf("the layers of a build's steps can't be used for the image: %v", err)
		}
	}
	id := digest.Digest(resp[exptypes.ExporterImageDigestKey])
	if err := i.worker.remote.Built(ctx, id); err != nil {
		logf("image %s: %v", id, err)
	}
	return resp, finalize, ref, nil
}

// adopt makes the snapshots of a result the layers of images that have the same
// layers.
func (i *imageInstance) adopt(ctx context.Context, top cache.ImmutableRef, sessionID string) error {
	remotes, err := top.GetRemotes(ctx, false, cacheconfig.RefConfig{Compression: i.Config().Compression()}, false, session.NewGroup(sessionID))
	if err != nil {
		return err
	}
	chain := top.LayerChain()
	defer func() { _ = chain.Release(context.WithoutCancel(ctx)) }()
	if len(remotes) == 0 || len(remotes[0].Descriptors) != len(chain) {
		return nil
	}
	var diffs []digest.Digest
	for n, desc := range remotes[0].Descriptors {
		diff, err := digest.Parse(desc.Annotations["containerd.io/uncompressed"])
		if err != nil {
			return err
		}
		diffs = append(diffs, diff)
		key := i.snapshotOf(chain[n].ID())
		if outer(key) != key {
			continue // a pulled layer has its name already
		}
		if err := i.worker.remote.Adopt(ctx, identity.ChainID(append([]digest.Digest(nil), diffs...)), key); err != nil {
			return err
		}
	}
	return nil
}

// snapshotOf returns the name of the snapshot of a record of BuildKit's cache.
func (i *imageInstance) snapshotOf(id string) string {
	item, ok := i.worker.MetadataStore.Get(id)
	if !ok {
		return id
	}
	v := item.Get("cache.snapshot")
	if v == nil {
		return id
	}
	var name string
	if json.Unmarshal(v.Value, &name) != nil || name == "" {
		return id
	}
	return name
}
