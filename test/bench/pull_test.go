// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"holdfast/test/kit"
)

const rowPull = "`pull` of ten gzip layers, 300 MB in all, from a registry on the same host (ms)"

// measurePull pulls an image with ten layers.
func measurePull(t *testing.T, s scale, table *table, subjects []*subject) {
	size := 1 << 20
	if *full {
		size = 64 << 20 // compressed to half of that
	}
	reg := kit.StartRegistry(t, nil)
	layers := make([]v1.Layer, 10)
	for i := range layers {
		layers[i] = kit.Layer(t, halves(i, size)...)
	}
	ref := reg.Push("bench/ten:1", kit.Image(t, kit.Busybox(t, nil), nil, layers...))
	clear(layers)
	times := map[string][]time.Duration{}
	for round := range s.few + 1 {
		if s.budget.done(max(0, round-1)) {
			break
		}
		for _, x := range subjects {
			used := spent(x.programs())
			begin := time.Now()
			x.api.must(t, "POST", "/images/create?fromImage="+url.QueryEscape(ref), nil, nil)
			if round > 0 {
				times[x.name()] = append(times[x.name()], time.Since(begin))
				t.Logf("%s: pull took %v of processor time", x.name(), spent(x.programs())-used)
			}
			x.api.must(t, "DELETE", "/images/"+ref+"?force=1", nil, nil)
			if t.Failed() {
				return
			}
		}
	}
	for who, list := range times {
		table.set(rowPull, who, ms(median(list)))
	}
}

// halves are files that compress to a half: every other block of 8 KiB is noise.
func halves(layer, size int) []kit.File {
	const block, one = 8 << 10, 256 << 10
	random := rand.New(rand.NewPCG(uint64(layer), 1))
	var files []kit.File
	for i := range size / one {
		body := make([]byte, one)
		for j := range body {
			if j/block%2 == 0 {
				body[j] = byte(random.Uint32())
			} else {
				body[j] = "the quick brown fox jumps over the lazy dog\n"[j%44]
			}
		}
		files = append(files, kit.File{Name: fmt.Sprintf("layer-%d/%d", layer, i), Body: body})
	}
	return files
}
