// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	neturl "net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	api "github.com/moby/moby/api/types/build"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

// taken returns how many bytes the files below a path have.
func taken(t *testing.T, path string) int64 {
	t.Helper()
	unix.Sync()
	var size int64
	err := filepath.WalkDir(path, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil // it was removed meanwhile
		}
		if info, err := e.Info(); err == nil {
			size += info.Size()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return size
}

func TestPruneFreesWhatItSaysAndAnEmptyStoreIsEmpty(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	if got := d.Docker("system", "df", "--format", "{{.Type}} {{.TotalCount}}"); !strings.Contains(got, "Build Cache 0") {
		t.Errorf("system df before any build: %q", got)
	}
	if builder(t, d) != 0 {
		t.Fatal("system df has started a build process")
	}
	d.Docker("builder", "prune", "-f")
	dir := files(t, map[string]string{"Dockerfile": "FROM base AS big\nRUN head -c 5000000 /dev/urandom >/big\nFROM base\nCOPY --from=big /etc/passwd /copy\n"})
	build(t, d, "-t", "small", dir)
	if got := d.Docker("system", "df", "--format", "{{.Type}} {{.TotalCount}}"); strings.Contains(got, "Build Cache 0") {
		t.Errorf("system df after a build: %q", got)
	}
	if got := d.Docker("buildx", "du"); !strings.Contains(got, "Total:") {
		t.Errorf("buildx du: %q", got)
	}
	before := taken(t, d.DataRoot+"/images")
	report, err := d.Client().BuildCachePrune(context.Background(), client.BuildCachePruneOptions{All: true})
	if err != nil {
		t.Fatal(err)
	}
	freed := before - taken(t, d.DataRoot+"/images")
	said := int64(report.Report.SpaceReclaimed)
	if said < 5_000_000 || said < freed-1<<20 || said > freed+1<<20 {
		t.Errorf("prune says that it freed %d bytes, and the files take %d less", said, freed)
	}
	if got := d.Docker("run", "--rm", "small", "wc", "-l", "/copy"); got != "3 /copy" {
		t.Errorf("the image after the prune: %q", got)
	}
	again := build(t, d, dir)
	if strings.Contains(again, "CACHED [big 2/2]") {
		t.Errorf("a pruned step is still in the cache:\n%s", again)
	}
	for _, id := range strings.Fields(d.Docker("images", "-qa")) {
		d.Docker("image", "rm", "-f", id)
	}
	d.Docker("builder", "prune", "-af")
	d.Docker("buildx", "history", "rm", "--all")
	kit.Eventually(t, "the store is empty", func() bool {
		var left []string
		for _, pattern := range []string{"/images/content/blobs/sha256/*", "/images/snapshots/overlayfs/snapshots/*"} {
			found, _ := filepath.Glob(d.DataRoot + pattern)
			left = append(left, found...)
		}
		return len(left) == 0
	})
}

type record = api.CacheRecord

// records returns the records of a daemon's cache.
func records(t *testing.T, d *kit.Daemon) map[string]record {
	t.Helper()
	resp, err := d.HTTP().Get("http://x/v1.43/system/df?type=build-cache")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var du struct{ BuildCache []record }
	if err := json.NewDecoder(resp.Body).Decode(&du); err != nil {
		t.Fatal(err)
	}
	all := map[string]record{}
	for _, r := range du.BuildCache {
		all[r.ID] = r
	}
	return all
}

// prunable returns the IDs of the records that match, without those on which another
// record depends that does not match.
func prunable(all map[string]record, match func(record) bool) []string {
	kept := map[string]bool{}
	var keep func(id string)
	keep = func(id string) {
		if kept[id] {
			return
		}
		kept[id] = true
		for _, p := range all[id].Parents {
			keep(p)
		}
	}
	for id, r := range all {
		if r.InUse || !match(r) {
			keep(id)
		}
	}
	out := []string{}
	for id := range all {
		if !kept[id] {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

func TestEachFilterOfPruneHasItsEffect(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	url := web(t, nil)
	dir := files(t, map[string]string{"file": "x\n", "Dockerfile": "FROM base AS one\nRUN echo one >/one\nRUN echo two >/two\nFROM base\nADD " + url + "/repo.git /git\nCOPY --from=one /two /\nCOPY file /\nRUN --mount=type=cache,target=/c echo c >/c/c\n"})
	rebuild := func() map[string]record {
		build(t, d, "-t", "made", dir)
		return records(t, d)
	}
	the := func(all map[string]record, words string) record {
		for _, r := range all {
			if strings.Contains(r.Description, words) {
				return r
			}
		}
		t.Fatalf("no record has the description %q: %+v", words, all)
		return record{}
	}
	one := the(rebuild(), "echo one").ID // a rebuild finds it again, or makes it
	has := func(words string) func(record) bool {
		return func(r record) bool { return strings.Contains(r.Description, words) }
	}
	child := func(r record) bool { return slices.Contains(r.Parents, one) }
	any := func(record) bool { return true }
	none := func(record) bool { return false }
	for filters, c := range map[string]struct {
		match func(record) bool
		finds bool
	}{
		`{"type":["exec.cachemount"]}`:                    {func(r record) bool { return r.Type == "exec.cachemount" }, true},
		`{"type":["source.local","source.git.checkout"]}`: {func(r record) bool { return strings.HasPrefix(r.Type, "source.") }, true},
		`{"description":["echo two"]}`:                    {has("echo two"), true},
		`{"inuse":["true"]}`:                              {none, false},
		`{"inuse":["false"]}`:                             {any, true},
		`{"shared":["true"]}`:                             {func(r record) bool { return r.Shared }, true},
		`{"shared":["false"]}`:                            {func(r record) bool { return !r.Shared }, true},
		`{"private":["true"]}`:                            {func(r record) bool { return !r.Shared }, true},
		`{"private":["0"]}`:                               {func(r record) bool { return r.Shared }, true},
		`{"until":["24h"]}`:                               {none, false},
		`{"until":["1ns"]}`:                               {any, true},
		`{"unused-for":["24h"]}`:                          {none, false},
		`{"type":["regular"],"description":["echo"]}`:     {func(r record) bool { return r.Type == "regular" && strings.Contains(r.Description, "echo") }, true},
		`{"id":["ID"]}`:                                   {func(r record) bool { return r.ID == one || child(r) }, true},
		`{"parent":["ID"]}`:                               {child, true},
	} {
		t.Run(filters, func(t *testing.T) {
			all := rebuild()
			one = the(all, "echo one").ID
			filters := strings.ReplaceAll(filters, "ID", one)
			if strings.Contains(filters, `"id"`) { // a record is kept by those on it
				filters = strings.ReplaceAll(filters, one, one[:10]+`","`+the(all, "echo two").ID)
			}
			want := prunable(all, c.match)
			if (len(want) > 0) != c.finds {
				t.Fatalf("%s finds %d of %d records: %+v", filters, len(want), len(all), all)
			}
			resp, err := d.HTTP().Post("http://x/v1.43/build/prune?all=1&filters="+neturl.QueryEscape(filters), "", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var report struct{ CachesDeleted []string }
			if err := json.NewDecoder(resp.Body).Decode(&report); err != nil || resp.StatusCode != 200 {
				t.Fatal(resp.Status, err)
			}
			slices.Sort(report.CachesDeleted)
			if !slices.Equal(report.CachesDeleted, want) {
				t.Errorf("%s removes %v, want %v of %+v", filters, report.CachesDeleted, want, all)
			}
			now := records(t, d)
			for _, id := range want {
				if _, there := now[id]; there {
					t.Errorf("%s leaves %s", filters, id)
				}
			}
		})
	}
	// The same filters by Docker's client, which asks BuildKit itself.
	one = the(rebuild(), "echo one").ID
	for _, c := range []struct {
		filter string
		match  func(record) bool
	}{
		{"inuse=true", none},
		{"parent=" + one, child},
		{"type=regular", func(r record) bool { return r.Type == "regular" }},
		{"shared=false", func(r record) bool { return !r.Shared }},
		{"private=true", func(r record) bool { return !r.Shared }},
	} {
		all := records(t, d)
		want := prunable(all, c.match)
		d.Docker("builder", "prune", "-af", "--filter", c.filter)
		now := records(t, d)
		for id := range all {
			if _, there := now[id]; there == slices.Contains(want, id) {
				t.Errorf("docker builder prune --filter %s: %+v is there: %v", c.filter, all[id], there)
			}
		}
	}
	if r := d.TryDocker("run", "--rm", "made", "cat", "/two", "/file"); r.Stdout != "two\nx\n" {
		t.Errorf("the image after the prunes: %+v", r)
	}
}

func TestPruneReportsWhatTheFileSystemGotBack(t *testing.T) {
	t.Parallel()
	d, free := onDisk(t, "128m")
	rebuild := func() {
		build(t, d, "-t", "made", "--no-cache", files(t, map[string]string{"Dockerfile": "FROM base AS big\nRUN head -c 9000000 /dev/urandom >/big\nFROM base\nCOPY --from=big /etc/passwd /copy\nRUN --mount=type=cache,target=/c head -c 3000000 /dev/urandom >/c/c\nRUN head -c 4000000 /dev/urandom >/kept\n"}))
	}
	for name, prune := range map[string]func() float64{
		"API": func() float64 {
			report, err := d.Client().BuildCachePrune(context.Background(), client.BuildCachePruneOptions{All: true})
			if err != nil {
				t.Fatal(err)
			}
			return float64(report.Report.SpaceReclaimed)
		},
		"docker builder prune": func() float64 {
			_, total, _ := strings.Cut(d.Docker("builder", "prune", "-af"), "Total:")
			var size float64
			var unit string
			if _, err := fmt.Sscanf(strings.TrimSpace(total), "%f%s", &size, &unit); err != nil || unit != "MB" {
				t.Fatalf("total %q, %v", total, err)
			}
			return size * 1e6
		},
	} {
		t.Run(name, func(t *testing.T) {
			// Who asks for the cache during a build must not change what is said later.
			done := make(chan struct{})
			var beside sync.WaitGroup
			beside.Go(func() {
				for {
					_ = d.TryDocker("buildx", "du")
					select {
					case <-done:
						return
					default:
					}
				}
			})
			rebuild()
			close(done)
			beside.Wait()
			d.Docker("image", "prune", "-f")
			before := free()
			said := prune()
			freed := float64(free() - before)
			if freed < 12e6 || freed > 14e6 || said < freed*0.97 || said > freed*1.03 {
				t.Errorf("prune says that it freed %.0f bytes, and the file system has %.0f more", said, freed)
			}
		})
	}
}

func TestCacheIsCollectedByItsPolicyWhenNothingIsBuilt(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	build(t, d, "-t", "small", files(t, map[string]string{"Dockerfile": "FROM base AS big\nRUN head -c 5000000 /dev/urandom >/big\nFROM base\nCOPY --from=big /etc/passwd /copy\n"}))
	d.WriteConfig(map[string]any{"builder": map[string]any{"gc": map[string]any{"policy": []any{map[string]any{"all": true, "maxUsedSpace": "1MB"}}}}})
	d.Hup()
	pidfd, err := unix.PidfdOpen(builder(t, d), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	left := func() bool {
		found, err := filepath.Glob(d.DataRoot + "/images/snapshots/overlayfs/snapshots/*/fs/big")
		return err == nil && len(found) > 0
	}
	if !left() {
		t.Fatal("the cache is collected too soon")
	}
	if err := kit.WaitReadable(pidfd, 3*time.Minute); err != nil {
		t.Fatalf("the build process stays: %v", err)
	}
	kit.Eventually(t, "the cache is collected", func() bool { return !left() })
	var size int64
	for _, r := range records(t, d) {
		if !r.Shared {
			size += r.Size
		}
	}
	if size > 1e6 {
		t.Errorf("the cache has %d bytes", size)
	}
	if got := d.Docker("run", "--rm", "small", "wc", "-l", "/copy"); got != "3 /copy" {
		t.Errorf("the image: %q", got)
	}
}
