// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// entryOf is an entry of a seed.
type entryOf struct {
	tar.Header
	body string
}

func tarOf(t testing.TB, entries ...entryOf) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.body))
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
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

func dirEntry(name string) entryOf {
	return entryOf{Header: tar.Header{Name: name, Typeflag: tar.TypeDir}}
}
func fileEntry(name, body string) entryOf {
	return entryOf{tar.Header{Name: name, Typeflag: tar.TypeReg}, body}
}
func linkEntry(kind byte, name, to string) entryOf {
	return entryOf{Header: tar.Header{Name: name, Linkname: to, Typeflag: kind}}
}
func xattrEntry(name, key, value string) entryOf {
	return entryOf{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.xattr." + key: value}}}
}
func nodeEntry(name string, major, minor int64) entryOf {
	return entryOf{Header: tar.Header{Name: name, Typeflag: tar.TypeChar, Devmajor: major, Devminor: minor}}
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstded(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

// hostileLayers are the seeds of layers.
func hostileLayers(t testing.TB) [][]byte {
	return [][]byte{
		tarOf(t, dirEntry("etc/"), fileEntry("etc/passwd", "root:x:0:0::/:/bin/sh\n"), linkEntry(tar.TypeLink, "etc/again", "etc/passwd"), linkEntry(tar.TypeSymlink, "bin", "usr/bin")),
		tarOf(t, fileEntry("../../outside/canary", "x"), fileEntry("/../outside/canary", "x"), fileEntry("a/../../outside/canary", "x")),
		tarOf(t, linkEntry(tar.TypeSymlink, "up", "../outside"), fileEntry("up/canary", "x"), dirEntry("up/new/")),
		tarOf(t, linkEntry(tar.TypeSymlink, "up", "/"), fileEntry("up/outside/canary", "x"), linkEntry(tar.TypeLink, "h", "up/outside/canary"), fileEntry("h", "y")),
		tarOf(t, linkEntry(tar.TypeLink, "h", "../outside/canary"), linkEntry(tar.TypeLink, "h2", "/../../outside/canary")),
		tarOf(t, fileEntry(".wh...", ""), fileEntry("a/.wh...", ""), fileEntry(".wh..", ""), fileEntry(".wh.", "")),
		tarOf(t, fileEntry(".wh..wh..opq", ""), dirEntry("lower/"), fileEntry("lower/.wh..wh..opq", ""), fileEntry("lower/.wh.file", "")),
		tarOf(t, linkEntry(tar.TypeSymlink, "s", "../outside"), fileEntry("s/.wh.canary", ""), fileEntry("s/.wh..wh..opq", "")),
		tarOf(t, xattrEntry("d/", "trusted.overlay.redirect", "/outside"), xattrEntry("e/", "user.overlay.redirect", "/outside"), xattrEntry("f/", "trusted.overlay.opaque", "y"), xattrEntry("g/", "security.capability", "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), xattrEntry("h/", "user.x", strings.Repeat("x", 3000))),
		tarOf(t, nodeEntry("null", 1, 3), nodeEntry("white", 0, 0), entryOf{Header: tar.Header{Name: "su", Typeflag: tar.TypeReg, Mode: 0o6755}}, entryOf{Header: tar.Header{Name: "fifo", Typeflag: tar.TypeFifo}}),
		tarOf(t, fileEntry("a\nb", "x"), fileEntry(strings.Repeat("d/", 40)+"f", "x"), fileEntry(strings.Repeat("n", 300), "x")),
		tarOf(t, linkEntry(tar.TypeSymlink, "a", "b"), linkEntry(tar.TypeSymlink, "b", "a"), fileEntry("a/x", "y")),
		tarOf(t, dirEntry("d/"), linkEntry(tar.TypeSymlink, "d", "../outside"), fileEntry("d/canary", "x"), dirEntry("./"), dirEntry("/"), linkEntry(tar.TypeSymlink, ".", "/outside")),
		{},
		bytes.Repeat([]byte{0}, 1024),
	}
}

// FuzzLayer unpacks a layer as overlayfs does and as a plain copy. It must not
// create, change or read anything outside of its directory, and may set only
// the attributes that an image may set.
func FuzzLayer(f *testing.F) {
	for _, layer := range hostileLayers(f) {
		f.Add(layer, true)
		f.Add(layer, false)
		f.Add(gzipped(f, layer), true)
		f.Add(zstded(f, layer), false)
	}
	f.Fuzz(func(t *testing.T, layer []byte, overlay bool) {
		if len(layer) > 1<<20 {
			return
		}
		top := t.TempDir()
		root, lower, outside := filepath.Join(top, "root"), filepath.Join(top, "lower"), filepath.Join(top, "outside")
		for _, dir := range []string{root, lower, filepath.Join(lower, "lower"), outside} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, file := range []string{filepath.Join(outside, "canary"), filepath.Join(lower, "lower", "file")} {
			if err := os.WriteFile(file, []byte("untouched"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		before := picture(t, top)
		mounts := []mount.Mount{{Type: "bind", Source: root}}
		if overlay {
			mounts = []mount.Mount{{Type: "overlay", Options: []string{"upperdir=" + root, "lowerdir=" + lower}}}
		}
		stream, err := decompress(bytes.NewReader(layer))
		if err == nil {
			// Decompression is bounded by the disk alone. The limit here bounds
			// the time.
			_, err = applyTar(t.Context(), mounts, io.LimitReader(stream, 8<<20))
			stream.Close()
		}
		if after := picture(t, top); after != before {
			t.Errorf("outside of the layer's folder (%v):\n%s\nwas:\n%s", err, after, before)
		}
		checkUnpacked(t, root, overlay)
	})
}

// picture describes all that is in dir but not in dir/root.
func picture(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == filepath.Join(dir, "root") {
			return filepath.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %o %d %d %d", path, st.Mode, st.Uid, st.Gid, st.Nlink)
		if d.Type().IsRegular() {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %q", text)
		}
		names := make([]byte, 1<<10)
		if n, err := unix.Llistxattr(path, names); err == nil {
			fmt.Fprintf(&b, " %q", names[:n])
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func checkUnpacked(t *testing.T, root string, overlay bool) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		names := make([]byte, 64<<10)
		n, err := unix.Llistxattr(path, names)
		if err != nil {
			return nil
		}
		for name := range strings.SplitSeq(string(names[:n]), "\x00") {
			opaque := overlay && name == "trusted.overlay.opaque"
			if name != "" && !opaque && !allowedXattr(name) {
				t.Errorf("%s has the attribute %s", path, name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// fuzzStore is a store for one fuzzing process.
func fuzzStore(f *testing.F) *Store {
	f.Helper()
	s, err := Open(context.Background(), Options{Root: filepath.Join(f.TempDir(), "images"), Snapshotter: Native, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	s.bolt.NoSync = true // to try more inputs: none of them is kept
	f.Cleanup(func() { _ = s.Close() })
	if err := s.PinSnapshots(context.Background(), nil); err != nil {
		f.Fatal(err)
	}
	return s
}

// checkStore checks that everything in the store can be listed and removed.
func checkStore(t *testing.T, s *Store) {
	t.Helper()
	ctx := t.Context()
	all, err := s.List(ctx, ListOptions{SharedSize: true, Manifests: true})
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	if _, err := s.DiskUsage(ctx, func(string) int64 { return 0 }); err != nil {
		t.Fatalf("disk usage: %v", err)
	}
	for _, i := range all {
		_, _ = s.Inspect(ctx, i.ID, nil, nil)
		_, _ = s.History(ctx, i.ID, nil)
		_, _ = s.Resolve(ctx, i.ID, nil)
		if _, err := s.Remove(ctx, i.ID, true, true, nil); err != nil {
			t.Fatalf("remove %s: %v", i.ID, err)
		}
	}
	if err := s.Collect(ctx); err != nil {
		t.Fatalf("collect: %v", err)
	}
	if left, err := s.List(ctx, ListOptions{}); err != nil || len(left) > 0 {
		t.Fatalf("left: %v, %v", left, err)
	}
}

func jsonOf(t testing.TB, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// configOf is the config of an image with these layers.
func configOf(t testing.TB, layers ...[]byte) string {
	t.Helper()
	ids := []digest.Digest{}
	for _, l := range layers {
		ids = append(ids, digest.FromBytes(l))
	}
	return jsonOf(t, map[string]any{"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": ids}, "config": map[string]any{"Cmd": []string{"sh"}}, "history": []any{map[string]any{"created_by": "x"}}})
}

func descOf(mediaType, blob string) map[string]any {
	return map[string]any{"mediaType": mediaType, "digest": digest.FromString(blob), "size": len(blob)}
}

func blobName(blob string) string { return "blobs/sha256/" + digest.FromString(blob).Encoded() }

// ociArchive is a tar of an OCI layout.
func ociArchive(t testing.TB, index string, blobs ...string) []byte {
	t.Helper()
	entries := []entryOf{fileEntry("oci-layout", `{"imageLayoutVersion":"1.0.0"}`), fileEntry("index.json", index)}
	for _, b := range blobs {
		entries = append(entries, fileEntry(blobName(b), b))
	}
	return tarOf(t, entries...)
}

// FuzzLoad loads an archive of docker save or of an OCI layout. Whether or not
// that succeeds, lists work and every image can be removed.
func FuzzLoad(f *testing.F) {
	layer := tarOf(f, fileEntry("hello", "world"))
	config := configOf(f, layer)
	manifest := jsonOf(f, map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest, "config": descOf(ocispec.MediaTypeImageConfig, config), "layers": []any{descOf(ocispec.MediaTypeImageLayer, string(layer))}})
	index := jsonOf(f, map[string]any{"schemaVersion": 2, "manifests": []any{descOf(ocispec.MediaTypeImageManifest, manifest)}})
	outer := jsonOf(f, map[string]any{"schemaVersion": 2, "manifests": []any{descOf(ocispec.MediaTypeImageIndex, index), descOf(ocispec.MediaTypeImageIndex, index)}})
	f.Add(ociArchive(f, index, manifest, config, string(layer)))
	f.Add(ociArchive(f, outer, index, manifest, config, string(layer)))
	f.Add(gzipped(f, ociArchive(f, index, manifest, config, string(layer))))
	f.Add(tarOf(f, fileEntry("config.json", config), fileEntry("l/layer.tar", string(layer)), linkEntry(tar.TypeSymlink, "m/layer.tar", "../l/layer.tar"),
		fileEntry("manifest.json", `[{"Config":"config.json","RepoTags":["a:b"],"Layers":["l/layer.tar"]},{"Config":"config.json","Layers":["m/layer.tar"]}]`)))
	f.Add(tarOf(f, fileEntry("manifest.json", `[{"Config":"../../etc/passwd","RepoTags":["../x"],"Layers":["../../../etc/shadow"]}]`)))
	f.Add(tarOf(f, fileEntry("manifest.json", `[{"Config":"c","Layers":["c"]}]`), fileEntry("c", "{}")))
	s := fuzzStore(f)
	f.Fuzz(func(t *testing.T, archive []byte) {
		if len(archive) > 1<<20 {
			return
		}
		_ = s.Load(t.Context(), bytes.NewReader(archive), nil, nil)
		checkStore(t, s)
	})
}

// FuzzImport imports a root filesystem.
func FuzzImport(f *testing.F) {
	for _, layer := range hostileLayers(f) {
		f.Add(layer, `CMD ["sh"]`)
		f.Add(gzipped(f, layer), "ENV a=b")
	}
	s := fuzzStore(f)
	f.Fuzz(func(t *testing.T, layer []byte, change string) {
		if len(layer) > 1<<20 || bytes.HasPrefix(layer, []byte{0xFD, '7', 'z', 'X', 'Z'}) { // an xz stream starts a process for each input
			return
		}
		_, _ = s.Import(t.Context(), bytes.NewReader(layer), "", "", []string{change}, nil)
		checkStore(t, s)
	})
}

// FuzzDocument makes an image of an index, a manifest and a config as given,
// each of which names the next.
func FuzzDocument(f *testing.F) {
	layer := tarOf(f, fileEntry("hello", "world"))
	f.Add(`{"schemaVersion":2,"manifests":[MANIFEST]}`, `{"schemaVersion":2,"config":CONFIG,"layers":[LAYER]}`, configOf(f, layer))
	f.Add(`{"manifests":[MANIFEST,MANIFEST,{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:x","size":-1}]}`, `{"config":CONFIG,"layers":[LAYER],"manifests":[]}`, `{"rootfs":{"diff_ids":["x"]}}`)
	f.Add(`{"manifests":[MANIFEST],"layers":[LAYER]}`, `{"fsLayers":[{}],"config":CONFIG}`, `{"history":[{"created":"9999-01-01T00:00:00Z","empty_layer":true}],"created":"0001-01-01T00:00:00Z","rootfs":{"diff_ids":[]}}`)
	f.Add(`[[[[`, `{"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"md5:1","size":1}}`, `{"config":{"Healthcheck":{"Interval":-1},"ExposedPorts":{"x":{}},"Volumes":{"../..":{}}}}`)
	s := fuzzStore(f)
	f.Fuzz(func(t *testing.T, index, manifest, config string) {
		fill := strings.NewReplacer("CONFIG", jsonOf(t, descOf(ocispec.MediaTypeImageConfig, config)), "LAYER", jsonOf(t, descOf(ocispec.MediaTypeImageLayer, string(layer))))
		manifest = fill.Replace(manifest)
		index = fill.Replace(strings.ReplaceAll(index, "MANIFEST", jsonOf(t, descOf(ocispec.MediaTypeImageManifest, manifest))))
		top := jsonOf(t, map[string]any{"schemaVersion": 2, "manifests": []any{descOf(ocispec.MediaTypeImageIndex, index)}})
		_ = s.Load(t.Context(), bytes.NewReader(ociArchive(t, top, index, manifest, config, string(layer))), nil, nil)
		checkStore(t, s)
	})
}

// FuzzReference looks names up and assigns them.
func FuzzReference(f *testing.F) {
	for _, name := range []string{"busybox", "a/b:c", "127.0.0.1:5000/x@sha256:" + strings.Repeat("a", 64), "sha256:../../etc", "..", "<none>@x", "A", "a:b:c", "[::1]:5000/x", "x@sha256:" + strings.Repeat("0", 63), "localhost/\x00"} {
		f.Add(name)
	}
	s := fuzzStore(f)
	layer := tarOf(f, fileEntry("hello", "world"))
	id, err := s.Import(context.Background(), bytes.NewReader(layer), "base", "", nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name string) {
		ctx := t.Context()
		if _, err := s.Resolve(ctx, name, nil); err == nil && !strings.Contains(id, strings.TrimPrefix(name, "sha256:")) && !strings.Contains(name, "base") {
			t.Errorf("lookup of %q succeeded", name)
		}
		if err := s.Tag(ctx, id, name); err == nil {
			img, err := s.Resolve(ctx, name, nil)
			if err != nil || img.ID != id {
				t.Errorf("%q was assigned and resolves to %v, %v", name, img.ID, err)
			}
			if familiar(name) != "base" && !strings.HasSuffix(name, "base:latest") {
				if _, err := s.Remove(ctx, name, false, false, nil); err != nil {
					t.Errorf("remove %q: %v", name, err)
				}
			}
		}
		if all, err := s.List(ctx, ListOptions{}); err != nil || len(all) != 1 || len(all[0].RepoTags) != 1 {
			t.Errorf("%q: %+v, %v", name, all, err)
		}
		_, _ = (func() (any, error) { m, err := s.ReferenceMatcher(ctx); return m(name, id), err })()
	})
}

// FuzzRegistry pulls from and pushes to a registry whose answers are the input:
// one line each, as STATUS[ NAME=VALUE]... and a body after a tab. SELF stands
// for the registry, OTHER for another host, DIGEST for the requested digest.
// The login is sent to the registry alone, every operation ends, and the store
// stays sound.
func FuzzRegistry(f *testing.F) {
	manifest := "200 Content-Type=application/vnd.oci.image.manifest.v1+json Docker-Content-Digest=DIGEST"
	for _, answers := range []string{
		manifest + "\t{}\n",
		manifest + "\tMANIFEST\n" + manifest + "\tMANIFEST\n200\tCONFIG\n200\tLAYER\n",
		manifest + "\tMANIFEST\n" + manifest + "\tMANIFEST\n200\tCONFIG\n206 Content-Range=bytes_5-9/10\tLAYER\n",
		"401 WWW-Authenticate=Bearer_realm=\"OTHER/token\",service=\"x\"\n200\t{\"token\":\"x\"}\n" + manifest + "\tMANIFEST\n",
		"401 WWW-Authenticate=Bearer_realm=\"SELF/token\",scope=\"a\"\n200\t{\"access_token\":\"x\",\"expires_in\":-1}\n401\n",
		"401 WWW-Authenticate=Basic_realm=\"x\"\n307 Location=OTHER/x\n200\n",
		"307 Location=SELF/again\n301 Location=OTHER\n308 Location=//x\n302 Location=\n",
		"200 Content-Length=99999999999\t{\n", "200 Content-Encoding=gzip\tx\n", "200 Content-Encoding=zstd,zstd\tx\n", "429\n503\n500\n",
		"404\n202 Location=OTHER/upload\n201\n201\n", "404\n202 Location=/upload?a=b\n201\n404\n201\n", "404\n201\n200\n", "200 Docker-Content-Digest=sha256:1\t\n",
		"200 Content-Type=application/vnd.oci.image.index.v1+json\t{\"manifests\":[{\"digest\":\"../..\"}]}\n", "200 Link=<OTHER>;rel=next\t{\"tags\":[\"1\",\"\",\"../x\"]}\n",
	} {
		f.Add(answers)
	}
	const secret = "secret-of-the-login"
	layer := tarOf(f, fileEntry("hello", "world"))
	config := configOf(f, layer)
	whole := jsonOf(f, map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest, "config": descOf(ocispec.MediaTypeImageConfig, config), "layers": []any{descOf(ocispec.MediaTypeImageLayer, string(layer))}})
	s := fuzzStore(f)
	var current atomic.Pointer[answering]
	serve := func(other bool) *httptest.Server {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { current.Load().serve(w, r, other) }))
		f.Cleanup(srv.Close)
		return srv
	}
	self, other := serve(false), serve(true)
	fill := strings.NewReplacer("SELF", self.URL, "OTHER", other.URL, "MANIFEST", whole, "CONFIG", config, "LAYER", string(layer), "DIGEST", digest.FromString(whole).String())
	if err := s.SetRegistry(Registry{MaxAttempts: 1}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, script string) {
		if len(script) > 1<<16 {
			return
		}
		now := &answering{fill: fill, lines: strings.Split(script, "\n"), secret: secret}
		current.Store(now)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		auth := &registry.AuthConfig{Username: "me", Password: secret}
		ref := strings.TrimPrefix(self.URL, "http://") + "/x:1"
		_ = s.Pull(ctx, ref, nil, auth, false, nil)
		now.again()
		_ = s.Pull(ctx, strings.TrimSuffix(ref, ":1"), nil, auth, true, nil)
		if id, err := s.Import(ctx, bytes.NewReader(layer), ref, "", nil, nil); err != nil {
			t.Errorf("import of %s: %v", id, err)
		}
		now.again()
		_ = s.Push(ctx, ref, nil, auth, false, nil)
		if err := ctx.Err(); err != nil {
			t.Errorf("it did not end: %v", err)
		}
		if now.leaked.Load() {
			t.Error("another host received the login")
		}
		checkStore(t, s)
	})
}

// answering serves one answer after the other.
type answering struct {
	fill   *strings.Replacer
	secret string
	leaked atomic.Bool

	mu    sync.Mutex
	lines []string
	next  int
}

func (a *answering) again() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next = 0
}

func (a *answering) serve(w http.ResponseWriter, r *http.Request, other bool) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	_, password, _ := r.BasicAuth()
	if other && strings.Contains(r.URL.String()+r.Header.Get("Authorization")+string(body)+password, a.secret) {
		a.leaked.Store(true)
	}
	a.mu.Lock()
	line := ""
	if a.next < len(a.lines) {
		line = a.lines[a.next]
		a.next++
	}
	a.mu.Unlock()
	head, text, _ := strings.Cut(a.fill.Replace(line), "\t")
	status := http.StatusNotFound
	for i, field := range strings.Fields(head) {
		if n, err := strconv.Atoi(field); i == 0 && err == nil && n >= 200 && n <= 599 {
			status = n
		} else if name, value, ok := strings.Cut(field, "="); ok {
			w.Header().Add(name, strings.ReplaceAll(value, "_", " "))
		}
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text)
}
