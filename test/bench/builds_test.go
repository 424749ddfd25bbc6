// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	rowBuildCold   = buildPrefix + "8 `RUN` steps, nothing cached (ms)"
	rowBuildCached = buildPrefix + "the same again, all cached (ms)"
	rowBuildCopy   = buildPrefix + "`COPY` of %d small files (ms)"
	rowBuildLayer  = buildPrefix + "a step that writes %d MB, and its layer (ms)"
	rowBuildTwice  = buildPrefix + "two builds of one Dockerfile at once (ms)"
	rowBuildRun    = buildPrefix + "build, and the first `run --rm` of the image (ms)"
)

// maxCachedBuild is the bound of a cached rebuild, in milliseconds.
const maxCachedBuild = 60

// buildContext makes a context of a Dockerfile and small files.
func buildContext(t testing.TB, dockerfile string, files int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(name, text string) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	add("Dockerfile", dockerfile)
	for i := range files {
		add(fmt.Sprintf("files/%d/%d", i%100, i), fmt.Sprintf("file %d\n", i))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// build builds with BuildKit over the API, without a command line, and returns how
// long that took.
func (a *api) build(t testing.TB, context []byte, query string) time.Duration {
	t.Helper()
	begin := time.Now()
	resp, err := a.http.Post("http://engine/v1.41/build?version=2&"+query, "application/x-tar", bytes.NewReader(context))
	if err != nil {
		t.Error(err)
		return 0
	}
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	took := time.Since(begin)
	if err != nil || resp.StatusCode != 200 || strings.Contains(string(text), `"errorDetail"`) {
		t.Errorf("%s: build: %s %v: %s", a.socket, resp.Status, err, text[max(0, len(text)-500):])
	}
	return took
}

// builds is what builds images.
type builds struct {
	name  string
	build func(t testing.TB, context []byte, tag string) time.Duration
	// run runs a container of an image and removes it. It is nil if there are no containers.
	run func(tag string)
}

// builds returns what the engine builds with.
func (x *subject) builds(t testing.TB) builds {
	return builds{
		name: x.name(),
		build: func(t testing.TB, context []byte, tag string) time.Duration {
			if tag == "" {
				return x.api.build(t, context, "")
			}
			return x.api.build(t, context, "t="+url.QueryEscape(tag))
		},
		run: func(tag string) {
			var made struct{ ID string }
			x.api.must(t, "POST", "/containers/create", map[string]any{
				"Image": tag, "Cmd": []string{"cat", "/made"}, "HostConfig": map[string]any{"AutoRemove": true},
			}, &made)
			x.api.must(t, "POST", "/containers/"+made.ID+"/start", nil, nil)
			_ = x.api.try("POST", "/containers/"+made.ID+"/wait?condition=removed", nil, nil) // it may be gone already
		},
	}
}

// measureBuilds builds images, the engines in turns, and buildkitd if it is not nil.
// What is measured without a cache has something in it that no build had before.
func measureBuilds(t *testing.T, s scale, table *table, subjects []*subject, kitd *buildkitd) {
	var all []builds
	for _, x := range subjects {
		all = append(all, x.builds(t))
	}
	if kitd != nil {
		all = append(all, builds{name: kitd.name(), build: kitd.build})
	}
	files, megabytes := 200, 5
	if *full {
		files, megabytes = 10_000, 200
	}
	once := 0
	// fresh is a line that makes the next step another one than any before.
	fresh := func() string {
		once++
		return fmt.Sprintf("FROM %s\nENV ONCE=%d-%d\n", imageRef, time.Now().UnixNano(), once)
	}
	eight := func() string {
		text := fresh()
		for i := range 8 {
			text += fmt.Sprintf("RUN echo %d >/step%d\n", i, i)
		}
		return text
	}
	times := map[string]map[string][]time.Duration{}
	note := func(row string, b builds, took time.Duration) {
		if times[row] == nil {
			times[row] = map[string][]time.Duration{}
		}
		times[row][b.name] = append(times[row][b.name], took)
	}
	for _, b := range all { // the first build starts what builds
		b.build(t, buildContext(t, fresh()+"RUN true\n", 0), "")
	}
	for round := range s.few + 2 {
		if s.budget.done(round) {
			break
		}
		for _, b := range all {
			context := buildContext(t, eight(), 0)
			note(rowBuildCold, b, b.build(t, context, "bench/built:1"))
			note(rowBuildCached, b, b.build(t, context, "bench/built:1"))
			note(fmt.Sprintf(rowBuildCopy, files), b, b.build(t, buildContext(t, fresh()+"COPY files /files\n", files), ""))
			layer := fmt.Sprintf("RUN head -c %dm /dev/urandom >/noise\n", megabytes)
			note(fmt.Sprintf(rowBuildLayer, megabytes), b, b.build(t, buildContext(t, fresh()+layer, 0), ""))

			context = buildContext(t, eight(), 0)
			begin := time.Now()
			var both sync.WaitGroup
			for range 2 {
				both.Go(func() { b.build(t, context, "") })
			}
			both.Wait()
			note(rowBuildTwice, b, time.Since(begin))

			if b.run != nil {
				context = buildContext(t, fresh()+"RUN echo made >/made\n", 0)
				begin = time.Now()
				b.build(t, context, "bench/built:2")
				b.run("bench/built:2")
				note(rowBuildRun, b, time.Since(begin))
			}
		}
		if t.Failed() {
			return
		}
	}
	for row, by := range times {
		for who, all := range by {
			table.setAll(row, who, all)
		}
	}
	for _, x := range subjects {
		x.api.must(t, "POST", "/build/prune?all=1", nil, nil)
	}
}
