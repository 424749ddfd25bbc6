// SPDX-License-Identifier: Apache-2.0

package security

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/vishvananda/netlink"

	imagestore "holdfast/internal/image"
	"holdfast/test/kit"
)

// hostile is a registry whose answers a test controls. It records the requests.
type hostile struct {
	t    testing.TB
	host string // as in references
	url  string

	mu        sync.Mutex
	manifests map[string]document // by tag and by digest
	blobs     map[string][]byte   // by digest
	between   func(w http.ResponseWriter, r *http.Request) bool
	told      []told
}

type document struct {
	mediaType string
	body      []byte
}

// told is a request.
type told struct {
	method, path, authorization, body string
}

// newHostile starts a registry at an address of the loopback network.
func newHostile(t testing.TB, address string) *hostile {
	t.Helper()
	h := &hostile{t: t, manifests: map[string]document{}, blobs: map[string][]byte{}}
	srv := httptest.NewUnstartedServer(h)
	srv.Listener.Close()
	var err error
	if srv.Listener, err = net.Listen("tcp4", net.JoinHostPort(address, "0")); err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(srv.Close)
	h.url = srv.URL
	h.host = strings.TrimPrefix(srv.URL, "http://")
	return h
}

// answer installs a handler. It returns true for requests that it has answered.
func (h *hostile) answer(fn func(w http.ResponseWriter, r *http.Request) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.between = fn
}

// heard returns the requests until now.
func (h *hostile) heard() []told {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]told(nil), h.told...)
}

// heardSecret reports whether a request contained one of the secrets, in clear
// text or as basic authentication.
func (h *hostile) heardSecret(secrets ...string) bool {
	for _, r := range h.heard() {
		all := r.path + r.authorization + r.body
		if user, pass, ok := (&http.Request{Header: http.Header{"Authorization": {r.authorization}}}).BasicAuth(); ok {
			all += user + pass
		}
		for _, s := range secrets {
			if strings.Contains(all, s) {
				return true
			}
		}
	}
	return false
}

func (h *hostile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	r.Body = io.NopCloser(bytes.NewReader(body))
	h.mu.Lock()
	h.told = append(h.told, told{r.Method, r.URL.String(), r.Header.Get("Authorization"), string(body)})
	between := h.between
	h.mu.Unlock()
	if between != nil && between(w, r) {
		return
	}
	h.serve(w, r)
}

func (h *hostile) serve(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	_, last, _ := strings.Cut(path[strings.LastIndexByte(path, '/'):], "/")
	h.mu.Lock()
	doc, isManifest := h.manifests[last]
	blob, isBlob := h.blobs[last]
	h.mu.Unlock()
	switch {
	case path == "/v2/":
	case strings.Contains(path, "/manifests/") && isManifest:
		w.Header().Set("Content-Type", doc.mediaType)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(doc.body).String())
		w.Header().Set("Content-Length", fmt.Sprint(len(doc.body)))
		_, _ = w.Write(doc.body)
	case strings.Contains(path, "/blobs/") && isBlob:
		w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
		_, _ = w.Write(blob)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// blob stores a blob and returns its descriptor.
func (h *hostile) blob(mediaType string, raw []byte) ocispec.Descriptor {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := describe(mediaType, raw)
	h.blobs[d.Digest.String()] = raw
	return d
}

// manifest stores a manifest or an index by its digest and tags, and returns
// its descriptor.
func (h *hostile) manifest(mediaType string, raw []byte, tags ...string) ocispec.Descriptor {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := describe(mediaType, raw)
	for _, name := range append(tags, d.Digest.String()) {
		h.manifests[name] = document{mediaType, raw}
	}
	return d
}

// image stores an image of layers, which are tar archives.
func (h *hostile) image(tag string, layers ...[]byte) ocispec.Descriptor {
	b := newBundle(h.t, layers...)
	h.blob(ocispec.MediaTypeImageConfig, b.config)
	for _, l := range layers {
		h.blob(ocispec.MediaTypeImageLayer, l)
	}
	return h.manifest(ocispec.MediaTypeImageManifest, b.manifest, tag)
}

func describe(mediaType string, raw []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// bundle is an image as blobs.
type bundle struct {
	layers           [][]byte
	config, manifest []byte
}

func newBundle(t testing.TB, layers ...[]byte) bundle {
	t.Helper()
	b := bundle{layers: layers}
	diffs, descs := []digest.Digest{}, []ocispec.Descriptor{}
	for _, l := range layers {
		diffs = append(diffs, digest.FromBytes(l))
		descs = append(descs, describe(ocispec.MediaTypeImageLayer, l))
	}
	b.config = marshal(t, map[string]any{
		"os": "linux", "architecture": kit.Arch(), "config": map[string]any{"Cmd": []string{"sh"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
	b.manifest = manifestOf(t, describe(ocispec.MediaTypeImageConfig, b.config), descs...)
	return b
}

func manifestOf(t testing.TB, config ocispec.Descriptor, layers ...ocispec.Descriptor) []byte {
	t.Helper()
	return marshal(t, map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest, "config": config, "layers": layers})
}

func indexOf(t testing.TB, manifests ...ocispec.Descriptor) []byte {
	t.Helper()
	return marshal(t, map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": manifests})
}

// entry is a file in a tar archive.
type entry struct {
	tar.Header
	body string
}

func regular(name, body string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, body}
}

func linked(kind byte, name, to string) entry {
	return entry{Header: tar.Header{Name: name, Linkname: to, Typeflag: kind, Mode: 0o777}}
}

func folder(name string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}}
}

func pack(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Size = int64(len(e.body))
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layout is a tar archive of an OCI layout.
func layout(t testing.TB, index []byte, blobs ...[]byte) []byte {
	t.Helper()
	entries := []entry{regular("oci-layout", `{"imageLayoutVersion":"1.0.0"}`), regular("index.json", string(index))}
	for _, b := range blobs {
		entries = append(entries, regular("blobs/sha256/"+digest.FromBytes(b).Encoded(), string(b)))
	}
	return pack(t, entries...)
}

// store is an image store without a daemon, and its log.
type store struct {
	*imagestore.Store
	root string
	log  *words
}

// words is a log that may be read while it is written.
type words struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *words) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *words) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

func newStore(t *testing.T) *store {
	t.Helper()
	return openStore(t, filepath.Join(t.TempDir(), "images"))
}

func openStore(t *testing.T, root string) *store {
	t.Helper()
	s := &store{root: root, log: &words{}}
	var err error
	s.Store, err = imagestore.Open(context.Background(), imagestore.Options{
		Root: root, Snapshotter: "overlay2", Log: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if err := s.PinSnapshots(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *store) pull(ref string) error {
	return s.Pull(context.Background(), ref, nil, nil, false, nil)
}

func (s *store) load(archive []byte) error {
	return s.Load(context.Background(), bytes.NewReader(archive), nil, func(jsonstream.Message) {})
}

// ids lists the images.
func (s *store) ids(t testing.TB) []string {
	t.Helper()
	all, err := s.List(context.Background(), imagestore.ListOptions{SharedSize: true, Manifests: true})
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	var ids []string
	for _, i := range all {
		ids = append(ids, i.ID)
	}
	return ids
}

// bridge makes an interface with an address. It is removed after the test.
func bridge(t testing.TB, name, address string) {
	t.Helper()
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(link); err != nil {
			t.Error(err)
		}
	})
	addr, err := netlink.ParseAddr(address + "/32")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
}
