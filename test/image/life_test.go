// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	apiimage "github.com/moby/moby/api/types/image"

	"holdfast/internal/filter"
	"holdfast/internal/image"
)

func TestImportTakesEveryCompressionAndAppliesChanges(t *testing.T) {
	s := newStore(t, nil)
	raw := tarOf(t, file{name: "bin/", kind: '5'}, file{name: "bin/hello", body: "hello"})
	compress := func(command ...string) []byte {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Stdin = bytes.NewReader(raw)
		out, err := cmd.Output()
		must(t, err)
		return out
	}
	for format, body := range map[string][]byte{
		"plain": raw, "gzip": gzipped(t, raw), "bzip2": compress("bzip2", "-c"), "xz": compress("xz", "-c"),
	} {
		t.Run(format, func(t *testing.T) {
			ctx := context.Background()
			id, err := s.Import(ctx, bytes.NewReader(body), "imported:"+format, "a message", []string{
				`CMD ["/bin/hello", "you"]`, `ENV A=1 B="two words"`, `EXPOSE 80 53/udp`, `LABEL k=v`, `WORKDIR /srv`, `USER 1000:1000`, `VOLUME /data`,
				`ENTRYPOINT echo hi`, `STOPSIGNAL SIGINT`, `HEALTHCHECK --interval=5s --retries=2 CMD /bin/check`, `ONBUILD RUN x`,
			}, nil)
			must(t, err)
			img, err := s.Resolve(ctx, "imported:"+format, nil)
			must(t, err)
			c := img.Config
			if img.ID != id || c.Cmd[1] != "you" || !reflect.DeepEqual(c.Env, []string{"A=1", "B=two words"}) || c.User != "1000:1000" ||
				c.WorkingDir != "/srv" || c.Labels["k"] != "v" || c.Entrypoint[2] != "echo hi" || c.StopSignal != "SIGINT" ||
				c.Healthcheck.Retries != 2 || len(c.ExposedPorts) != 2 || len(c.Volumes) != 1 || len(c.OnBuild) != 1 {
				t.Errorf("config %+v", c)
			}
			_, mnt := mounted(t, s, id)
			if read(t, filepath.Join(mnt, "bin/hello")) != "hello" {
				t.Error("the root file system differs from the imported archive")
			}
			h, err := s.History(ctx, id, nil)
			must(t, err)
			if len(h) != 1 || h[0].Comment != "a message" || h[0].ID != id || h[0].Size == 0 {
				t.Errorf("history %+v", h)
			}
		})
	}
}

func TestBadImportsAreRefusedAndNothingStays(t *testing.T) {
	var root string
	s := newStore(t, func(o *image.Options) { root = o.Root })
	ctx := context.Background()
	good := tarOf(t, file{name: "a"})
	for name, c := range map[string]struct {
		body    []byte
		ref     string
		changes []string
		text    string
	}{
		"empty":        {nil, "", nil, "empty"},
		"no archive":   {[]byte(noise(4096)), "", nil, "failed to register layer"},
		"cut gzip":     {gzipped(t, []byte(noise(1<<20)))[:5000], "", nil, "the archive can't be read"},
		"bad name":     {good, "a:b:c", nil, "invalid reference format"},
		"bad change":   {good, "", []string{"RUN x"}, "RUN is not a valid change command"},
		"bad port":     {good, "", []string{"EXPOSE 99999"}, "invalid containerPort"},
		"open quote":   {good, "", []string{`ENV A="b`}, "looking for matching"},
		"digest given": {good, "a@sha256:" + strings.Repeat("0", 64), nil, "refusing to create a tag with a digest"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Import(ctx, bytes.NewReader(c.body), c.ref, "", c.changes, nil)
			wants(t, err, errdefs.IsInvalidArgument, c.text)
		})
	}
	must(t, s.Collect(ctx))
	if left := leftovers(t, root); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestArchivesOfDockerSaveAndOCILayoutsAreLoaded(t *testing.T) {
	img := imageOf(t, "linux/amd64", layerOf(t, file{name: "a", body: "a"}), layerOf(t, file{name: "b", body: "b"}))
	arm := imageOf(t, "linux/arm64", layerOf(t, file{name: "a", body: "arm"}))
	var docker bytes.Buffer
	tag, err := name.NewTag("team/saved:1")
	must(t, err)
	must(t, tarball.Write(tag, img, &docker))

	oci := func(annotations map[string]string) []byte {
		dir := t.TempDir()
		p, err := layout.Write(dir, indexOf(t, nil))
		must(t, err)
		must(t, p.AppendIndex(indexOf(t, map[string]v1.Image{"linux/amd64": img, "linux/arm64": arm}), layout.WithAnnotations(annotations)))
		out, err := exec.Command("tar", "-C", dir, "-c", ".").Output()
		must(t, err)
		return out
	}
	for kind, c := range map[string]struct {
		body []byte
		said string
		name string
	}{
		"docker":        {docker.Bytes(), "Loaded image: team/saved:1", "team/saved:1"},
		"docker gzip":   {gzipped(t, docker.Bytes()), "Loaded image: team/saved:1", "team/saved:1"},
		"oci":           {oci(map[string]string{"io.containerd.image.name": "docker.io/team/oci:2"}), "Loaded image: team/oci:2", "team/oci:2"},
		"oci reference": {oci(map[string]string{"org.opencontainers.image.ref.name": "example.test/x:3"}), "Loaded image: example.test/x:3", "example.test/x:3"},
		"oci unnamed":   {oci(nil), "Loaded image ID: sha256:", ""},
	} {
		t.Run(kind, func(t *testing.T) {
			s := newStore(t, nil)
			ctx := context.Background()
			var m messages
			must(t, s.Load(ctx, bytes.NewReader(c.body), nil, m.add))
			if !strings.Contains(m.text(), c.said) {
				t.Errorf("said %q", m.text())
			}
			list, err := s.List(ctx, image.ListOptions{})
			must(t, err)
			if len(list) != 1 || list[0].Size == 0 {
				t.Fatalf("listed %+v", list)
			}
			if c.name == "" {
				c.name = list[0].ID
			}
			must(t, s.Collect(ctx))
			_, mnt := mounted(t, s, c.name)
			if read(t, filepath.Join(mnt, "a")) != "a" {
				t.Error("the root file system differs from the saved image")
			}
		})
	}
}

func TestBadArchivesAreNotLoadedAndNothingStays(t *testing.T) {
	var root string
	s := newStore(t, func(o *image.Options) { root = o.Root })
	ctx := context.Background()
	for name, body := range map[string][]byte{
		"no archive":    []byte(noise(3000)),
		"empty":         nil,
		"any tar":       tarOf(t, file{name: "a", body: "a"}),
		"missing layer": tarOf(t, file{name: "manifest.json", body: `[{"Config":"c","Layers":["l"]}]`}, file{name: "c", body: "{}"}),
		"climbing":      tarOf(t, file{name: "manifest.json", body: `[{"Config":"../../c","Layers":["/etc/passwd"]}]`}),
		"cut":           tarOf(t, file{name: "manifest.json", body: noise(5000)})[:2000],
	} {
		t.Run(name, func(t *testing.T) {
			want := "load: "
			if name == "empty" {
				want = "the input is empty"
			}
			wants(t, s.Load(ctx, bytes.NewReader(body), nil, nil), errdefs.IsInvalidArgument, want)
		})
	}
	must(t, s.Collect(ctx))
	if left := leftovers(t, root); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// importNamed imports a small image whose ID depends on body.
func importNamed(t testing.TB, s *image.Store, ref, body string, changes ...string) string {
	t.Helper()
	id, err := s.Import(context.Background(), bytes.NewReader(tarOf(t, file{name: "body", body: body})), ref, "", changes, nil)
	must(t, err)
	return id
}

func TestNamesAreFoundInAllTheirForms(t *testing.T) {
	s := newStore(t, nil)
	ctx := context.Background()
	id := importNamed(t, s, "thing", "1")
	hex := strings.TrimPrefix(id, "sha256:")
	for _, n := range []string{"thing", "thing:latest", "library/thing", "docker.io/library/thing:latest", "index.docker.io/library/thing",
		id, hex, hex[:12], hex[:4], "sha256:" + hex[:10], "thing@" + id, "thing:latest@" + id} {
		img, err := s.Resolve(ctx, n, nil)
		if err != nil || img.ID != id {
			t.Errorf("%s: %v %v", n, img.ID, err)
		}
	}
	for n, text := range map[string]string{
		"nothing":                   "No such image: nothing:latest",
		"thing:2":                   "No such image: thing:2",
		"sha256:" + hex[:3]:         "No such image: sha256:" + hex[:3],
		strings.Repeat("0", 64):     "No such image: " + strings.Repeat("0", 64),
		"other@" + id:               "No such image: other@" + id,
		"ffff0000ffff0000ffff00000": "No such image: ffff0000ffff0000ffff00000",
	} {
		_, err := s.Resolve(ctx, n, nil)
		wants(t, err, errdefs.IsNotFound, text)
	}
}

func TestTagMovesAndTheOldImageDangles(t *testing.T) {
	var events []string
	s := newStore(t, func(o *image.Options) {
		o.OnEvent = func(action, id, name string, _ map[string]string) { events = append(events, action+" "+name) }
	})
	ctx := context.Background()
	one, two := importNamed(t, s, "app:1", "one"), importNamed(t, s, "app:2", "two")
	must(t, s.Tag(ctx, "app:2", "app:1"))
	list, err := s.List(ctx, image.ListOptions{Filters: filter.Args{"dangling": {"true"}}})
	must(t, err)
	if len(list) != 1 || list[0].ID != one || len(list[0].RepoTags) != 0 {
		t.Errorf("dangling: %+v", list)
	}
	in, err := s.Inspect(ctx, "app:1", nil, nil)
	must(t, err)
	sort.Strings(in.RepoTags)
	if in.ID != two || !reflect.DeepEqual(in.RepoTags, []string{"app:1", "app:2"}) || !reflect.DeepEqual(in.RepoDigests, []string{"app@" + two}) {
		t.Errorf("inspected %+v", in)
	}
	must(t, s.Tag(ctx, one, "app:old"))
	list, err = s.List(ctx, image.ListOptions{Filters: filter.Args{"dangling": {"true"}}})
	must(t, err)
	if len(list) != 0 {
		t.Errorf("still dangling: %+v", list)
	}
	wants(t, s.Tag(ctx, one, "a@"+one), errdefs.IsInvalidArgument, "refusing to create a tag with a digest reference")
	wants(t, s.Tag(ctx, "none", "x"), errdefs.IsNotFound, "No such image: none:latest")
	if got := strings.Join(events, ", "); got != "tag app:1, import "+one+", tag app:2, import "+two+", tag app:1, tag app:old" {
		t.Errorf("events %s", got)
	}
}

func TestRemovalFollowsDockersRules(t *testing.T) {
	s := newStore(t, nil)
	ctx := context.Background()
	running := func(string) []image.User { return []image.User{{ContainerID: strings.Repeat("c", 64), Running: true}} }
	stopped := func(string) []image.User { return []image.User{{ContainerID: strings.Repeat("d", 64)}} }
	remove := func(name string, force bool, users func(string) []image.User) (string, error) {
		got, err := s.Remove(ctx, name, force, true, users)
		var parts []string
		for _, r := range got {
			parts = append(parts, strings.Trim("untagged "+r.Untagged+" deleted "+r.Deleted, " "))
		}
		return strings.Join(parts, "; "), err
	}
	id := importNamed(t, s, "a:1", "x")
	short := id[7:19]
	must(t, s.Tag(ctx, "a:1", "b:1"))

	_, err := remove(id, false, nil)
	wants(t, err, errdefs.IsConflict, "conflict: unable to delete "+short+" (must be forced) - image is referenced in multiple repositories")
	if got, err := remove("b:1", false, running); err != nil || got != "untagged b:1 deleted" {
		t.Errorf("removing one of two names: %q %v", got, err)
	}
	_, err = remove("a:1", false, stopped)
	wants(t, err, errdefs.IsConflict, "conflict: unable to delete a:1 (must be forced) - container dddddddddddd is using its referenced image "+short)
	_, err = remove(id, true, running)
	wants(t, err, errdefs.IsConflict, "conflict: unable to delete "+short+" (cannot be forced) - image is being used by running container cccccccccccc")
	_, err = remove(id, false, stopped)
	wants(t, err, errdefs.IsConflict, "conflict: unable to delete "+short+" (must be forced) - image is being used by stopped container dddddddddddd")
	if got, err := remove("a:1", true, running); err != nil || got != "untagged a:1 deleted" {
		t.Errorf("forced removal of a name of a used image: %q %v", got, err)
	}
	if _, err := s.Resolve(ctx, id, nil); err != nil {
		t.Errorf("the image of a running container was removed with its name: %v", err)
	}
	if got, err := remove(short, true, stopped); err != nil || got != "untagged  deleted "+id {
		t.Errorf("forced ID: %q %v", got, err)
	}
	_, err = remove("a:1", false, nil)
	wants(t, err, errdefs.IsNotFound, "No such image: a:1")
	id = importNamed(t, s, "c:1", "y")
	if got, err := remove("c:1", false, nil); err != nil || got != "untagged c:1 deleted; untagged  deleted "+id {
		t.Errorf("last name: %q %v", got, err)
	}
}

func TestListFilters(t *testing.T) {
	s := newStore(t, nil)
	ctx := context.Background()
	importNamed(t, s, "team/one:1", "1", "LABEL stage=test n=1")
	importNamed(t, s, "team/two:1", "2", "LABEL stage=live n=2")
	importNamed(t, s, "three:9", "3")
	list := func(args filter.Args) string {
		t.Helper()
		got, err := s.List(ctx, image.ListOptions{Filters: args})
		must(t, err)
		var names []string
		for _, i := range got {
			names = append(names, i.RepoTags...)
		}
		return strings.Join(names, " ")
	}
	for _, c := range []struct {
		args filter.Args
		want string
	}{
		{nil, "three:9 team/two:1 team/one:1"},
		{filter.Args{"label": {"stage"}}, "team/two:1 team/one:1"},
		{filter.Args{"label": {"stage=live"}}, "team/two:1"},
		{filter.Args{"label": {"stage", "n=1"}}, "team/one:1"},
		{filter.Args{"reference": {"team/*"}}, "team/two:1 team/one:1"},
		{filter.Args{"reference": {"three", "team/one:1"}}, "three:9 team/one:1"},
		{filter.Args{"before": {"team/two:1"}}, "team/one:1"},
		{filter.Args{"since": {"team/two:1"}}, "three:9"},
		{filter.Args{"until": {"24h"}}, ""},
		{filter.Args{"dangling": {"true"}}, ""},
	} {
		if got := list(c.args); got != c.want {
			t.Errorf("%v: %q, want %q", c.args, got, c.want)
		}
	}
	for _, bad := range []filter.Args{{"colour": {"red"}}, {"dangling": {"maybe"}}, {"until": {"tomorrow"}}, {"reference": {"["}}} {
		_, err := s.List(ctx, image.ListOptions{Filters: bad})
		wants(t, err, errdefs.IsInvalidArgument, "invalid filter")
	}
}

func TestPruneTakesWhatNobodyUsesAndFreesIt(t *testing.T) {
	s := newStore(t, nil)
	ctx := context.Background()
	importNamed(t, s, "app:1", noise(50_000))
	kept := importNamed(t, s, "app:1", "second")
	used := importNamed(t, s, "used:1", "third", "LABEL keep=yes")
	prune := func(args filter.Args) apiimage.PruneReport {
		t.Helper()
		r, err := s.Prune(ctx, args, func(id string) []image.User {
			if id != used {
				return nil
			}
			return []image.User{{Ref: id}}
		})
		must(t, err)
		return r
	}
	if r := prune(filter.Args{"dangling": {"true"}}); len(r.ImagesDeleted) != 1 || r.SpaceReclaimed < 100_000 {
		t.Errorf("dangling: %+v", r)
	}
	if r := prune(nil); len(r.ImagesDeleted) != 0 || r.SpaceReclaimed != 0 {
		t.Errorf("nothing dangles: %+v", r)
	}
	du, err := s.DiskUsage(ctx, func(id string) int64 { return map[bool]int64{true: 1}[id == used] })
	must(t, err)
	if du.TotalCount != 2 || du.ActiveCount != 1 || du.TotalSize == 0 || du.Reclaimable == 0 {
		t.Errorf("usage %+v", du)
	}
	if r := prune(filter.Args{"dangling": {"false"}, "until": {"24h"}}); len(r.ImagesDeleted) != 0 {
		t.Errorf("too young: %+v", r)
	}
	r := prune(filter.Args{"dangling": {"false"}})
	if got := fmt.Sprint(r.ImagesDeleted); len(r.ImagesDeleted) != 2 || !strings.Contains(got, kept) {
		t.Errorf("all: %s", got)
	}
	_, err = s.Prune(ctx, filter.Args{"colour": {"red"}}, nil)
	wants(t, err, errdefs.IsInvalidArgument, "invalid filter 'colour'")
}
