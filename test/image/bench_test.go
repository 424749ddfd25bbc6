// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"holdfast/internal/image"
)

// busybox is an image like the published one: one layer with a static program
// and the links to it.
func busybox(t testing.TB) v1.Image {
	files := []file{{name: "bin/", kind: '5'}, {name: "bin/busybox", body: read(t, "/bin/busybox")}}
	for i := range 300 {
		files = append(files, file{name: fmt.Sprintf("bin/applet-%d", i), kind: '1', link: "bin/busybox"})
	}
	return imageOf(t, "linux/amd64", layerOf(t, files...))
}

// BenchmarkPullBusybox pulls from a registry in this process into a store
// without the image, and unpacks it.
func BenchmarkPullBusybox(b *testing.B) {
	reg := newRegistry(b)
	reg.push("busybox:1", busybox(b))
	s := newStore(b, nil)
	ctx := context.Background()
	for b.Loop() {
		if err := s.Pull(ctx, reg.ref("busybox:1"), nil, nil, false, nil); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if _, err := s.Remove(ctx, reg.ref("busybox:1"), false, true, nil); err != nil {
			b.Fatal(err)
		}
		if err := s.Collect(ctx); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkPullLargeLayers pulls four layers of 25 MB each.
func BenchmarkPullLargeLayers(b *testing.B) {
	reg := newRegistry(b)
	var layers []v1.Layer
	for i := range 4 {
		layers = append(layers, layerOf(b, file{name: fmt.Sprint(i), body: noise(25<<20 + i)}))
	}
	reg.push("large:1", imageOf(b, "linux/amd64", layers...))
	s := newStore(b, nil)
	ctx := context.Background()
	b.SetBytes(100 << 20)
	for b.Loop() {
		if err := s.Pull(ctx, reg.ref("large:1"), nil, nil, false, nil); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if _, err := s.Remove(ctx, reg.ref("large:1"), false, true, nil); err != nil {
			b.Fatal(err)
		}
		if err := s.Collect(ctx); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// prose is n bytes that gzip makes about a third as large, like the files of
// most images. It depends on the seed.
func prose(n int, seed uint64) string {
	random := rand.New(rand.NewPCG(seed, 1))
	words := make([]string, 4096)
	for i := range words {
		word := make([]byte, 2+random.IntN(14))
		for j := range word {
			word[j] = byte(random.IntN(256))
		}
		words[i] = string(word)
	}
	var b strings.Builder
	for b.Len() < n {
		b.WriteString(words[random.IntN(64)*random.IntN(64)])
	}
	return b.String()[:n]
}

// BenchmarkPullTenLayers pulls ten layers of 20 MB, which are a third as large
// on the way.
func BenchmarkPullTenLayers(b *testing.B) {
	reg := newRegistry(b)
	var layers []v1.Layer
	for i := range 10 {
		var files []file
		for j := range 100 {
			files = append(files, file{name: fmt.Sprintf("%d-%d", i, j), body: prose(200_000, uint64(100*i+j))})
		}
		layers = append(layers, layerOf(b, files...))
	}
	reg.push("ten:1", imageOf(b, "linux/amd64", layers...))
	s := newStore(b, nil)
	ctx := context.Background()
	b.SetBytes(200_000_000)
	for b.Loop() {
		if err := s.Pull(ctx, reg.ref("ten:1"), nil, nil, false, nil); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if _, err := s.Remove(ctx, reg.ref("ten:1"), false, true, nil); err != nil {
			b.Fatal(err)
		}
		if err := s.Collect(ctx); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkRootfs prepares, mounts and removes a root file system, by number of
// layers.
func BenchmarkRootfs(b *testing.B) {
	for _, n := range []int{1, 8, 60} {
		reg := newRegistry(b)
		var layers []v1.Layer
		for i := range n {
			layers = append(layers, layerOf(b, file{name: fmt.Sprint(i), body: "x"}))
		}
		reg.push("deep:1", imageOf(b, "linux/amd64", layers...))
		s := newStore(b, nil)
		pull(b, s, reg.ref("deep:1"))
		ctx := context.Background()
		base := tempDir(b)
		dir, mnt := filepath.Join(base, "c"), filepath.Join(base, "mnt")
		var img image.Image
		step := func(err error) {
			if err != nil {
				b.Fatal(err)
			}
		}
		resolve := func() {
			var err error
			img, err = s.Resolve(ctx, reg.ref("deep:1"), nil)
			step(err)
		}
		resolve()
		b.Run(fmt.Sprintf("resolve/%d", n), func(b *testing.B) {
			for b.Loop() {
				resolve()
			}
		})
		b.Run(fmt.Sprintf("prepare+mount/%d", n), func(b *testing.B) {
			for b.Loop() {
				step(s.PrepareRootfs(ctx, img, dir))
				step(s.MountRootfs(ctx, img.Snapshot, img.Storage, dir, mnt, false))
				b.StopTimer()
				step(s.UnmountRootfs(mnt))
				step(s.RemoveRootfs(ctx, dir))
				b.StartTimer()
			}
		})
		b.Run(fmt.Sprintf("unmount+remove/%d", n), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				step(s.PrepareRootfs(ctx, img, dir))
				step(s.MountRootfs(ctx, img.Snapshot, img.Storage, dir, mnt, false))
				b.StartTimer()
				step(s.UnmountRootfs(mnt))
				step(s.RemoveRootfs(ctx, dir))
			}
		})
	}
}
