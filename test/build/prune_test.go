// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

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
