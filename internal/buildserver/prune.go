// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/moby/api/types/build"

	"holdfast/internal/errs"
	"holdfast/internal/filter"
)

// The filters of POST /build/prune (Docker Engine API, "BuildPrune").
var (
	ageFilters  = []string{"until", "unused-for"}
	flagFilters = []string{"inuse", "shared", "private"}
)

// pruneRequest translates the parameters of POST /build/prune. Errors: invalid
// argument.
func pruneRequest(q url.Values, now time.Time) (*controlapi.PruneRequest, error) {
	r := &controlapi.PruneRequest{All: truth(q.Get("all"))}
	for name, into := range map[string]*int64{
		"keep-storage": &r.ReservedSpace, "reserved-space": &r.ReservedSpace,
		"max-used-space": &r.MaxUsedSpace, "min-free-space": &r.MinFreeSpace,
	} {
		if text := q.Get(name); text != "" {
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil || n < 0 {
				return nil, errs.Invalid("%s %q is not a size in bytes", name, text)
			}
			*into = max(*into, n)
		}
	}
	args, err := filter.ParseJSON(q.Get("filters"))
	if err != nil {
		return nil, errs.Invalid("%v", err)
	}
	if err := args.Check(append(append([]string{"id", "parent", "type", "description"}, ageFilters...), flagFilters...)...); err != nil {
		return nil, errs.Invalid("%v", err)
	}
	for _, name := range ageFilters {
		for _, text := range args[name] {
			age, err := time.ParseDuration(text)
			if at, timeErr := time.Parse(time.RFC3339, text); err != nil && timeErr == nil {
				age, err = now.Sub(at), nil
			}
			if err != nil || age < 0 {
				return nil, errs.Invalid("%s %q is neither a duration nor a time in the past", name, text)
			}
			r.KeepDuration = int64(age)
		}
	}
	r.Filter = pruneFilters(args)
	return r, nil
}

// pruneFilters translates the filters into containerd's syntax. All of them must match
// a record, and of each one of its values.
func pruneFilters(args filter.Args) []string {
	terms := map[string][]string{}
	for name, how := range map[string]string{"id": "~=", "parent": "==", "type": "==", "description": "~="} {
		for _, text := range args[name] {
			if name == "id" {
				text = "^" + text
			}
			terms[name] = append(terms[name], name+how+strconv.Quote(text))
		}
	}
	for _, name := range flagFilters {
		for _, text := range args[name] {
			terms[name] = append(terms[name], name+"=="+strconv.FormatBool(text == "" || truth(text)))
		}
	}
	all := []string{}
	for _, name := range slices.Sorted(maps.Keys(terms)) {
		var longer []string
		for _, term := range terms[name] {
			if len(all) == 0 {
				longer = append(longer, term)
			}
			for _, before := range all {
				longer = append(longer, before+","+term)
			}
		}
		all = longer
	}
	return all
}

// servePrune is POST /build/prune.
func (s *server) servePrune(w http.ResponseWriter, r *http.Request) {
	req, err := pruneRequest(r.URL.Query(), time.Now())
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	report, err := s.builder.prune(r.Context(), req)
	if err != nil {
		refuse(w, http.StatusInternalServerError, err)
		return
	}
	answer(w, report)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// prune removes records of the cache. What it reports as reclaimed is by how much
// the daemon's store has shrunk: a record's layer may be that of an image, too.
func (b *builder) prune(ctx context.Context, req *controlapi.PruneRequest) (build.CachePruneReport, error) {
	report := build.CachePruneReport{CachesDeleted: []string{}}
	before, err := b.remote.Usage(ctx)
	if err != nil {
		return report, err
	}
	conn, err := b.local()
	if err != nil {
		return report, err
	}
	defer conn.Close()
	stream, err := controlapi.NewControlClient(conn).Prune(ctx, req)
	if err != nil {
		return report, err
	}
	for {
		record, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return report, err
		}
		report.CachesDeleted = append(report.CachesDeleted, record.ID)
	}
	if len(report.CachesDeleted) == 0 {
		return report, nil
	}
	if err := collect(ctx, b.worker.LeaseManager()); err != nil {
		return report, err
	}
	after, err := b.remote.Usage(ctx)
	if err != nil {
		return report, err
	}
	report.SpaceReclaimed = uint64(max(before-after, 0))
	return report, nil
}

// collectCache removes records of the cache by the configured policy.
func (b *builder) collectCache(ctx context.Context) {
	policy := b.worker.GCPolicy()
	if len(policy) == 0 {
		return
	}
	if err := b.remove(ctx, policy...); err != nil {
		logf("the cache of builds can't be collected: %v", err)
	}
}

func (b *builder) remove(ctx context.Context, opts ...client.PruneInfo) error {
	removed := make(chan client.UsageInfo)
	go func() {
		for range removed {
		}
	}()
	defer close(removed)
	return b.worker.Prune(ctx, removed, opts...)
}

// BuildKit lets go of what a failed build has written some time after the build. The
// pause between two looks doubles.
const (
	clearFirst  = 100 * time.Millisecond
	clearLast   = 2 * time.Second
	clearWithin = time.Minute
)

// clear removes what builds have written and no build can find again. BuildKit keeps
// what a COPY has written that failed as if it were a result. On a disk that is full,
// layers of base images are removed as well.
func (b *builder) clear(ctx context.Context, full bool) {
	may := hasCopy
	if full {
		may = func(*client.UsageInfo) bool { return true }
	}
	if !b.clearing.TryLock() {
		return // it goes on as long as anything of a build is in use
	}
	defer b.clearing.Unlock()
	ctx, cancel := context.WithTimeout(ctx, clearWithin)
	defer cancel()
	for pause := clearFirst; ; pause = min(2*pause, clearLast) {
		ids, more, err := b.lost(ctx, may)
		if err == nil && len(ids) > 0 {
			err = b.remove(ctx, client.PruneInfo{All: true, Filter: ids})
		}
		if err != nil {
			logf("what a failed build has written can't be removed: %v", err)
		}
		if err != nil || !more {
			return
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
			continue
		case <-ctx.Done():
		case <-b.graceful:
		}
		timer.Stop()
		return
	}
}

// copied matches the description of what a COPY or ADD has written.
var copied = regexp.MustCompile(`\] (COPY|ADD) `)

func hasCopy(r *client.UsageInfo) bool { return copied.MatchString(r.Description) }

// clearKilled removes what steps had written when an earlier process was killed. Nothing
// is built yet.
func (b *builder) clearKilled(ctx context.Context) error {
	ids, _, err := b.lost(ctx, func(r *client.UsageInfo) bool { return r.Mutable })
	if err != nil || len(ids) == 0 {
		return err
	}
	return b.remove(ctx, client.PruneInfo{All: true, Filter: ids})
}

// lost returns filters for the records of steps that may be removed and that no key of the
// cache leads to, and whether there are more that are in use.
func (b *builder) lost(ctx context.Context, may func(*client.UsageInfo) bool) (ids []string, more bool, _ error) {
	found, err := b.found()
	if err != nil {
		return nil, false, err
	}
	records, _, err := b.worker.records(ctx)
	if err != nil {
		return nil, false, err
	}
	lost := slices.DeleteFunc(records, func(r *client.UsageInfo) bool {
		return r.Shared || r.RecordType != client.UsageRecordTypeRegular || !may(r) || found(r.ID)
	})
	used := len(lost)
	lost = slices.DeleteFunc(lost, func(r *client.UsageInfo) bool { return r.InUse })
	ids, err = matching(nil, lost)
	return ids, len(lost) < used, err
}

// found returns a function that reports whether a key of the cache leads to a record.
func (b *builder) found() (func(id string) bool, error) {
	items, err := b.worker.MetadataStore.All()
	if err != nil {
		return nil, err
	}
	// A result whose layer was not committed yet has two records, and the other one's ID
	// is in the index.
	other := map[string]string{}
	for _, item := range items {
		var mutable string
		if v := item.Get("cache.equalMutable"); v != nil && json.Unmarshal(v.Value, &mutable) == nil {
			other[mutable] = item.ID()
		}
	}
	return func(id string) bool {
		known := false
		for _, id := range []string{id, other[id]} {
			err := b.index.WalkIDsByResult(b.worker.ID()+"::"+id, func(string) error {
				known = true
				return nil
			})
			known = known || err != nil
		}
		return known
	}, nil
}

// serveUsage tells the daemon what the cache takes, for GET /system/df.
func (s *server) serveUsage(w http.ResponseWriter, r *http.Request) {
	du, err := s.builder.usage(r.Context())
	if err != nil {
		refuse(w, http.StatusInternalServerError, err)
		return
	}
	answer(w, du)
}

func (b *builder) usage(ctx context.Context) (build.DiskUsage, error) {
	du := build.DiskUsage{Items: []build.CacheRecord{}}
	resp, err := b.controller.DiskUsage(ctx, &controlapi.DiskUsageRequest{})
	if err != nil {
		return du, err
	}
	for _, r := range resp.Record {
		item := build.CacheRecord{
			ID: r.ID, Parents: r.Parents, Type: r.RecordType, Description: r.Description, InUse: r.InUse, Shared: r.Shared,
			Size: r.Size, UsageCount: int(r.UsageCount), CreatedAt: r.CreatedAt.AsTime(),
		}
		if r.LastUsedAt != nil {
			at := r.LastUsedAt.AsTime()
			item.LastUsedAt = &at
		}
		du.Items = append(du.Items, item)
		du.TotalCount++
		du.TotalSize += r.Size
		if r.InUse {
			du.ActiveCount++
		} else if !r.Shared {
			du.Reclaimable += r.Size
		}
	}
	return du, nil
}
