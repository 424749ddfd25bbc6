// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// fakeRegistry is a registry over HTTP in this process. net/http serves the
// blobs, with support for ranges. A test can intercept requests.
type fakeRegistry struct {
	t    testing.TB
	srv  *httptest.Server
	host string

	mu      sync.Mutex
	blobs   map[string][]byte
	between func(w http.ResponseWriter, r *http.Request, next http.Handler)
	log     []string // method, path and range of each request
}

func newRegistry(t testing.TB) *fakeRegistry {
	t.Helper()
	reg := &fakeRegistry{t: t, blobs: map[string][]byte{}}
	backend := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	serve := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if i := strings.LastIndex(r.URL.Path, "/blobs/sha256:"); i >= 0 && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
			reg.mu.Lock()
			blob, ok := reg.blobs[r.URL.Path[i+len("/blobs/"):]]
			reg.mu.Unlock()
			if ok {
				w.Header().Set("Content-Type", "application/octet-stream")
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
				return
			}
		}
		backend.ServeHTTP(w, r)
	})
	reg.srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reg.mu.Lock()
		reg.log = append(reg.log, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+r.Header.Get("Range")))
		between := reg.between
		reg.mu.Unlock()
		if between != nil {
			between(w, r, serve)
			return
		}
		serve.ServeHTTP(w, r)
	}))
	t.Cleanup(reg.srv.Close)
	reg.host = strings.TrimPrefix(reg.srv.URL, "http://")
	return reg
}

func (reg *fakeRegistry) ref(repoTag string) string { return reg.host + "/" + repoTag }

// interpose calls fn for every request from now on; fn may pass it on to next.
// nil ends that.
func (reg *fakeRegistry) interpose(fn func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	reg.between = fn
}

func (reg *fakeRegistry) requests(match string) []string {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	var out []string
	for _, line := range reg.log {
		if strings.Contains(line, match) {
			out = append(out, line)
		}
	}
	return out
}

func (reg *fakeRegistry) remember(layers ...v1.Layer) {
	for _, l := range layers {
		d, err := l.Digest()
		must(reg.t, err)
		rc, err := l.Compressed()
		must(reg.t, err)
		raw, err := io.ReadAll(rc)
		must(reg.t, err)
		reg.mu.Lock()
		reg.blobs[d.String()] = raw
		reg.mu.Unlock()
	}
}

func (reg *fakeRegistry) push(repoTag string, img v1.Image) v1.Hash {
	reg.t.Helper()
	ref, err := name.ParseReference(reg.ref(repoTag), name.Insecure)
	must(reg.t, err)
	must(reg.t, remote.Write(ref, img))
	layers, err := img.Layers()
	must(reg.t, err)
	reg.remember(layers...)
	d, err := img.Digest()
	must(reg.t, err)
	return d
}

func (reg *fakeRegistry) pushIndex(repoTag string, idx v1.ImageIndex) v1.Hash {
	reg.t.Helper()
	ref, err := name.ParseReference(reg.ref(repoTag), name.Insecure)
	must(reg.t, err)
	must(reg.t, remote.WriteIndex(ref, idx))
	d, err := idx.Digest()
	must(reg.t, err)
	return d
}

// mirrorURL is the URL of the registry when it is used as a mirror of Docker
// Hub.
func (reg *fakeRegistry) mirrorURL() string {
	u, err := url.Parse(reg.srv.URL)
	must(reg.t, err)
	return u.String()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// file is one entry of a layer.
type file struct {
	name, body, link string
	kind             byte // as in archive/tar; 0 is a regular file
	mode             int64
	uid              int
}

func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		if f.kind == 0 {
			f.kind = tar.TypeReg
		}
		if f.mode == 0 {
			f.mode = 0o755
		}
		hdr := &tar.Header{Name: f.name, Typeflag: f.kind, Mode: f.mode, Linkname: f.link, Uid: f.uid, ModTime: time.Unix(1700000000, 0)}
		if f.kind == tar.TypeReg {
			hdr.Size = int64(len(f.body))
		}
		must(t, w.WriteHeader(hdr))
		_, err := w.Write([]byte(f.body)[:hdr.Size])
		must(t, err)
	}
	must(t, w.Close())
	return buf.Bytes()
}

func gzipped(t testing.TB, raw []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write(raw)
	must(t, err)
	must(t, w.Close())
	return buf.Bytes()
}

func layerOf(t testing.TB, files ...file) v1.Layer {
	t.Helper()
	l, err := tarLayer(tarOf(t, files...))
	must(t, err)
	return l
}

// imageOf makes an image of layers for a platform, os/arch[/variant].
func imageOf(t testing.TB, platform string, layers ...v1.Layer) v1.Image {
	t.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layers...)
	must(t, err)
	p, err := v1.ParsePlatform(platform)
	must(t, err)
	conf, err := img.ConfigFile()
	must(t, err)
	conf = conf.DeepCopy()
	conf.OS, conf.Architecture, conf.Variant = p.OS, p.Architecture, p.Variant
	conf.Created = v1.Time{Time: time.Unix(1700000000, 0).UTC()}
	conf.Config.Cmd = []string{"/bin/sh"}
	conf.Config.Labels = map[string]string{"arch": p.Architecture}
	img, err = mutate.ConfigFile(img, conf)
	must(t, err)
	return img
}

func indexOf(t testing.TB, images map[string]v1.Image) v1.ImageIndex {
	t.Helper()
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for platform, img := range images {
		p, err := v1.ParsePlatform(platform)
		must(t, err)
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: p}})
	}
	return idx
}

// noise is data that does not compress, so that the size of a layer is known.
func noise(n int) string {
	b := make([]byte, n)
	x := uint64(88172645463325252)
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return string(b)
}

func tarLayer(raw []byte) (v1.Layer, error) {
	return newLayer(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil })
}

// broken is a layer that is not a tar archive.
func broken(body string) v1.Layer {
	return static.NewLayer([]byte(body), types.OCIUncompressedLayer)
}
