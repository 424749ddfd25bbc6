// SPDX-License-Identifier: Apache-2.0

package copy

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"

	"holdfast/test/kit"
)

func TestSavedImagesLoadAgainAndAreTheSame(t *testing.T) {
	d := live(t)
	d.Load("other:1", kit.Image(t, kit.Busybox(t, nil), func(c *v1.Config) { c.Cmd = []string{"echo", "other"} }))
	d.Docker("tag", image, "busybox:second")
	id, other := d.Docker("images", "-q", "--no-trunc", image), d.Docker("images", "-q", "--no-trunc", "other:1")
	for name, client := range clients {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "saved.tar")
			// A repository without a tag stands for all of its tags.
			run(t, client(d, "save", "-o", file, "busybox", "other:1"), nil)
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			got := entries(t, f)
			var index v1.IndexManifest
			if err := json.Unmarshal([]byte(got["index.json"].body), &index); err != nil || len(index.Manifests) != 3 {
				t.Errorf("index.json: %v, %s", err, got["index.json"].body)
			}
			var old []struct{ RepoTags, Layers []string }
			if err := json.Unmarshal([]byte(got["manifest.json"].body), &old); err != nil || len(old) != 2 {
				t.Fatalf("manifest.json: %v, %s", err, got["manifest.json"].body)
			}
			for _, m := range old {
				for _, layer := range m.Layers {
					if _, ok := got[layer]; !ok {
						t.Errorf("the archive has no %s", layer)
					}
				}
			}
			tags := slices.Concat(old[0].RepoTags, old[1].RepoTags)
			slices.Sort(tags)
			if want := []string{"busybox:second", "busybox:test", "other:1"}; !slices.Equal(tags, want) {
				t.Errorf("tags %q, want %q", tags, want)
			}
			d.Docker("rmi", image, "busybox:second", "other:1")
			run(t, client(d, "load", "-i", file), nil)
			if a, b := d.Docker("images", "-q", "--no-trunc", "busybox:second"), d.Docker("images", "-q", "--no-trunc", "other:1"); a != id || b != other {
				t.Errorf("the loaded images are %s and %s, want %s and %s", a, b, id, other)
			}
			if out := d.Docker("run", "--rm", "other:1"); out != "other" {
				t.Errorf("says %q", out)
			}
			// Save to standard output, and by ID; then the archive has no name
			// of the image.
			byID := entries(t, strings.NewReader(run(t, client(d, "save", other), nil)))
			if strings.Contains(byID["index.json"].body, "other") {
				t.Errorf("saved by ID: %s", byID["index.json"].body)
			}
			if r := d.TryDocker("save", "-o", file, image, "nothing:1"); r.Code == 0 || !strings.Contains(r.Stderr, "No such image: nothing:1") {
				t.Errorf("of none: %+v", r)
			}
		})
	}
	if told := events(d, "--filter", "event=save", "--filter", "image="+other, "--format", "{{.Actor.Attributes.name}}"); strings.Count(told, other) != 4 {
		t.Errorf("events: %q", told)
	}
}

func TestSaveAndPushTakeThePlatformThatIsAskedFor(t *testing.T) {
	d := live(t)
	reg := kit.StartRegistry(t, nil)
	index := mutate.IndexMediaType(empty.Index, "application/vnd.oci.image.index.v1+json")
	for _, arch := range []string{"amd64", "arm64", "s390x"} {
		img, err := random.Image(1000, 1)
		if err != nil {
			t.Fatal(err)
		}
		cf, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		cf.OS, cf.Architecture = "linux", arch
		if img, err = mutate.ConfigFile(img, cf); err != nil {
			t.Fatal(err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	ref := reg.PushIndex("multi:1", index)
	for _, arch := range []string{"arm64", "s390x"} {
		d.Docker("pull", "--platform", "linux/"+arch, ref)
	}
	blobs := func(args ...string) int {
		n := 0
		for name := range entries(t, strings.NewReader(d.Docker(append([]string{"save"}, append(args, ref)...)...)+"\n")) {
			if strings.HasPrefix(name, "blobs/sha256/") && name != "blobs/sha256/" {
				n++
			}
		}
		return n
	}
	// The index, and the manifest, config and layer of each platform.
	if all, one := blobs(), blobs("--platform", "linux/s390x"); all < 7 || one != 4 {
		t.Errorf("a save of all platforms has %d blobs, a save of one platform has %d", all, one)
	}
	// Of an index with only one local platform, that platform's manifest is
	// pushed.
	part := reg.Host + "/part:1"
	d.Docker("tag", ref, part)
	if r := d.TryDocker("push", "--platform", "linux/s390x", part); r.Code != 0 || pushed.FindString(r.Stdout) == "" {
		t.Errorf("push of one platform: %+v", r)
	}
	if r := d.TryDocker("push", part); r.Code != 0 || !strings.Contains(r.Stdout+r.Stderr, "only the available single-platform image was pushed") {
		t.Errorf("push of the local platforms: %+v", r)
	}
	if r := d.TryDocker("save", "--platform", "linux/amd64", ref); r.Code == 0 || !strings.Contains(r.Stderr, "does not provide the specified platform (linux/amd64)") {
		t.Errorf("push of a platform that is not local: %+v", r)
	}
}

func TestDaemonKilledWhileItSavesLosesNothing(t *testing.T) {
	d := live(t)
	big, err := random.Layer(32<<20, "application/vnd.docker.image.rootfs.diff.tar.gzip")
	if err != nil {
		t.Fatal(err)
	}
	d.Load("big:1", kit.Image(t, kit.Busybox(t, nil), nil, big))
	conn, err := net.Dial("unix", strings.TrimPrefix(d.Host, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprint(conn, "GET /images/big:1/get HTTP/1.1\r\nHost: d\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	// The tag is removed meanwhile. The content that is being read must stay.
	d.Docker("rmi", "big:1")
	d.Kill9()
	d.Start()
	d.Load("big:1", kit.Image(t, kit.Busybox(t, nil), nil, big))
	cmd := d.DockerCommand(context.Background(), "save", "big:1")
	if got := entries(t, strings.NewReader(run(t, cmd, nil))); got["manifest.json"].body == "" {
		t.Errorf("after the death: %v", got)
	}
}
