// SPDX-License-Identifier: Apache-2.0

// Package image_test tests the image store with registries that run in this
// process and behave correctly or not. The tests mount file systems, so they
// need root.
package image_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	apiregistry "github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/image"
)

func TestPulledImageIsNamedUnpackedAndMounted(t *testing.T) {
	reg := newRegistry(t)
	digest := reg.push("team/app:1", imageOf(t, "linux/amd64",
		layerOf(t, file{name: "etc/", kind: '5', mode: 0o711}, file{name: "etc/base", body: "base"}, file{name: "etc/gone", body: "x"}),
		layerOf(t, file{name: "etc/.wh.gone"}, file{name: "etc/top", body: "top"}),
	))
	s := newStore(t, nil)
	said := pull(t, s, reg.ref("team/app:1"))
	for _, want := range []string{
		"1: Pulling from team/app", "Pulling fs layer", "Download complete", "Pull complete",
		"Digest: " + digest.String(), "Status: Downloaded newer image for " + reg.ref("team/app:1"),
	} {
		if !strings.Contains(said, want) {
			t.Errorf("the pull did not report %q:\n%s", want, said)
		}
	}
	if again := pull(t, s, reg.ref("team/app:1")); !strings.Contains(again, "Status: Image is up to date for") || strings.Contains(again, "fs layer") || strings.Contains(again, "Already exists") {
		t.Errorf("second pull said:\n%s", again)
	}
	img, err := s.Resolve(context.Background(), reg.ref("team/app:1"), nil)
	must(t, err)
	if img.ID != digest.String() || img.Manifest != digest.String() || len(img.Layers) != 2 || img.Config.Cmd[0] != "/bin/sh" {
		t.Errorf("resolved %+v", img)
	}
	dir, mnt := mounted(t, s, digest.String()[7:19])
	if got := read(t, filepath.Join(mnt, "etc/base")) + read(t, filepath.Join(mnt, "etc/top")); got != "basetop" {
		t.Errorf("rootfs holds %q", got)
	}
	if _, err := os.Stat(filepath.Join(mnt, "etc/gone")); !os.IsNotExist(err) {
		t.Errorf("a file that the top layer removes still exists: %v", err)
	}
	if st, err := os.Stat(filepath.Join(mnt, "etc")); err != nil || st.Mode().Perm() != 0o711 {
		t.Errorf("a directory that is missing in the top layer has mode %v (%v), want the mode of the layer below", st.Mode(), err)
	}
	must(t, os.WriteFile(filepath.Join(mnt, "etc/base"), []byte(noise(8192)), 0o600))
	if n, err := s.RootfsUsage(dir); err != nil || n < 8192 {
		t.Errorf("usage is %d (%v), want at least the written size", n, err)
	}
}

func TestPlatformIsChosenFromAnIndex(t *testing.T) {
	reg := newRegistry(t)
	digest := reg.pushIndex("multi:1", indexOf(t, map[string]v1.Image{
		"linux/amd64":    imageOf(t, "linux/amd64", layerOf(t, file{name: "arch", body: "amd64"})),
		"linux/arm64/v8": imageOf(t, "linux/arm64/v8", layerOf(t, file{name: "arch", body: "arm64"})),
	}))
	s := newStore(t, nil)
	ctx := context.Background()
	pull(t, s, reg.ref("multi:1"))
	_, mnt := mounted(t, s, reg.ref("multi:1"))
	if got := read(t, filepath.Join(mnt, "arch")); got != "amd64" {
		t.Errorf("rootfs is of %q", got)
	}
	arm := &ocispec.Platform{OS: "linux", Architecture: "arm64"}
	_, err := s.Resolve(ctx, reg.ref("multi:1"), arm)
	wants(t, err, errdefs.IsNotFound, "does not provide the specified platform (linux/arm64)")
	must(t, s.Pull(ctx, reg.ref("multi:1"), arm, nil, false, nil))
	img, err := s.Resolve(ctx, reg.ref("multi:1"), arm)
	must(t, err)
	if img.ID != digest.String() || img.Manifest == digest.String() || img.Platform.Architecture != "arm64" {
		t.Errorf("resolved %+v", img)
	}
	err = s.Pull(ctx, reg.ref("multi:1"), &ocispec.Platform{OS: "linux", Architecture: "s390x"}, nil, false, nil)
	wants(t, err, errdefs.IsNotFound, "no matching manifest for linux/s390x in the manifest list entries")
	list, err := s.List(ctx, image.ListOptions{Manifests: true})
	must(t, err)
	if len(list) != 1 || len(list[0].Manifests) != 2 || !list[0].Manifests[0].Available || !list[0].Manifests[1].Available {
		t.Errorf("listed %+v", list)
	}
}

func TestCutDownloadGoesOnWhereItEnded(t *testing.T) {
	reg := newRegistry(t)
	layer := layerOf(t, file{name: "big", body: noise(4 << 20)})
	reg.push("cut:1", imageOf(t, "linux/amd64", layer))
	d, err := layer.Digest()
	must(t, err)
	size, err := layer.Size()
	must(t, err)
	var cuts atomic.Int32
	reg.interpose(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, d.String()) && cuts.Add(1) <= 3 {
			next.ServeHTTP(&cutter{ResponseWriter: w, left: 1 << 20}, r)
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
	})
	s := newStore(t, nil)
	pull(t, s, reg.ref("cut:1"))
	asked := reg.requests("GET /v2/cut/blobs/" + d.String())
	if len(asked) < 4 {
		t.Fatalf("asked %q", asked)
	}
	last := int64(0)
	for _, line := range asked[1:] {
		_, after, ok := strings.Cut(line, "bytes=")
		at, err := strconv.ParseInt(strings.TrimSuffix(after, "-"), 10, 64)
		if !ok || err != nil || at <= last {
			t.Errorf("request %q does not resume after byte %d", line, last)
		}
		last = at
	}
	if last < 2<<20 || last > size {
		t.Errorf("the last request resumed at byte %d of %d", last, size)
	}
	_, mnt := mounted(t, s, reg.ref("cut:1"))
	if read(t, filepath.Join(mnt, "big")) != noise(4<<20) {
		t.Error("the resumed layer differs from the pushed one")
	}
}

// cutter ends an answer after a number of bytes.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, io.ErrClosedPipe
	}
	p = p[:min(len(p), c.left)]
	n, err := c.ResponseWriter.Write(p)
	c.left -= n
	if f, ok := c.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
	return n, err
}

func TestDownloadsThatAlwaysFailAreGivenUp(t *testing.T) {
	reg := newRegistry(t)
	layer := layerOf(t, file{name: "x", body: noise(1000)})
	reg.push("bad:1", imageOf(t, "linux/amd64", layer))
	d, err := layer.Digest()
	must(t, err)
	reg.interpose(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, d.String()) {
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
	})
	var root string
	s := newStore(t, func(o *image.Options) { o.Registry.MaxAttempts = 2; root = o.Root })
	err = s.Pull(context.Background(), reg.ref("bad:1"), nil, nil, false, nil)
	wants(t, err, errdefs.IsUnavailable, "failed to pull")
	must(t, s.Collect(context.Background()))
	if left := leftovers(t, root); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestLyingRegistryIsRefusedAndNothingStays(t *testing.T) {
	for _, c := range []struct {
		name string
		lie  func(body []byte) []byte
		size bool // whether Content-Length has the true length
		text string
	}{
		{"another byte in a layer", func(b []byte) []byte { b[len(b)/2] ^= 1; return b }, true, "filesystem layer verification failed for digest"},
		{"more than the descriptor says", func(b []byte) []byte { return append(b, b...) }, true, "filesystem layer verification failed for digest"},
		{"less than the descriptor says", func(b []byte) []byte { return b[:len(b)/2] }, true, "failed to pull"},
	} {
		t.Run(c.name, func(t *testing.T) {
			reg := newRegistry(t)
			layer := layerOf(t, file{name: "x", body: noise(100_000)})
			reg.push("lie:1", imageOf(t, "linux/amd64", layer))
			d, err := layer.Digest()
			must(t, err)
			reg.mu.Lock()
			reg.blobs[d.String()] = c.lie(append([]byte(nil), reg.blobs[d.String()]...))
			reg.mu.Unlock()
			var root string
			s := newStore(t, func(o *image.Options) { o.Registry.MaxAttempts = 2; root = o.Root })
			ctx := context.Background()
			err = s.Pull(ctx, reg.ref("lie:1"), nil, nil, false, nil)
			wants(t, err, func(error) bool { return true }, c.text)
			_, err = s.Resolve(ctx, reg.ref("lie:1"), nil)
			wants(t, err, errdefs.IsNotFound, "No such image: "+reg.ref("lie:1"))
			must(t, s.Collect(ctx))
			if left := leftovers(t, root); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

func TestManifestThatIsNotWhatItsDigestSaysIsRefused(t *testing.T) {
	reg := newRegistry(t)
	reg.push("lie:1", imageOf(t, "linux/amd64", layerOf(t, file{name: "x"})))
	reg.interpose(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/") {
			rec := &recorder{ResponseWriter: w}
			next.ServeHTTP(rec, r)
			body := strings.Replace(string(rec.body), "sha256:", "sha256:", 1)
			body = strings.Replace(body, `"schemaVersion":2`, `"schemaVersion":3`, 1)
			fmt.Fprint(w, body)
			return
		}
		next.ServeHTTP(w, r)
	})
	s := newStore(t, nil)
	err := s.Pull(context.Background(), reg.ref("lie:1"), nil, nil, false, nil)
	wants(t, err, errdefs.IsDataLoss, "manifest verification failed for digest sha256:")
}

// recorder keeps the body instead of sending it.
type recorder struct {
	http.ResponseWriter
	body []byte
}

func (r *recorder) Write(p []byte) (int, error) {
	r.body = append(r.body, p...)
	return len(p), nil
}

func TestPullErrorsAreInDockersWords(t *testing.T) {
	reg := newRegistry(t)
	reg.push("there:1", imageOf(t, "linux/amd64", layerOf(t, file{name: "x"})))
	s := newStore(t, nil)
	ctx := context.Background()
	err := s.Pull(ctx, reg.ref("there:2"), nil, nil, false, nil)
	wants(t, err, errdefs.IsNotFound, "manifest for "+reg.ref("there:2")+" not found: manifest unknown")
	err = s.Pull(ctx, "team/UPPER", nil, nil, false, nil)
	wants(t, err, errdefs.IsInvalidArgument, "invalid reference format")
	reg.srv.Close()
	err = s.Pull(ctx, reg.ref("there:1"), nil, nil, false, nil)
	wants(t, err, errdefs.IsUnavailable, "connection refused")
}

func TestCredentialsGoToTheirRegistryAlone(t *testing.T) {
	reg := newRegistry(t)
	reg.push("private:1", imageOf(t, "linux/amd64", layerOf(t, file{name: "x"})))
	reg.interpose(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if u, p, _ := r.BasicAuth(); u != "me" || p != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
	s := newStore(t, nil)
	ctx := context.Background()
	ref := reg.ref("private:1")
	denied := "pull access denied for " + reg.ref("private")
	wants(t, s.Pull(ctx, ref, nil, nil, false, nil), errdefs.IsNotFound, denied)
	wants(t, s.Pull(ctx, ref, nil, &apiregistry.AuthConfig{Username: "me", Password: "wrong"}, false, nil), errdefs.IsNotFound, denied)
	wants(t, s.Pull(ctx, ref, nil, &apiregistry.AuthConfig{Username: "me", Password: "secret", ServerAddress: "elsewhere.test"}, false, nil), errdefs.IsNotFound, denied)
	must(t, s.Pull(ctx, ref, nil, &apiregistry.AuthConfig{Username: "me", Password: "secret", ServerAddress: reg.host}, false, nil))
}

func TestTokensAreFetchedAndUsed(t *testing.T) {
	reg := newRegistry(t)
	reg.push("private:1", imageOf(t, "linux/amd64", layerOf(t, file{name: "x"})))
	reg.interpose(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path == "/token" {
			must(t, r.ParseForm())
			if r.Form.Get("refresh_token") == "identity" || r.Form.Get("username") == "me" && r.Form.Get("password") == "secret" {
				fmt.Fprint(w, `{"access_token":"let-me-in"}`)
				return
			}
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.Header.Get("Authorization") != "Bearer let-me-in" {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test"`, reg.srv.URL))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
	ctx := context.Background()
	for name, auth := range map[string]*apiregistry.AuthConfig{
		"identity token": {IdentityToken: "identity"},
		"password":       {Username: "me", Password: "secret"},
		"registry token": {RegistryToken: "let-me-in"},
		"auth field":     {Auth: "bWU6c2VjcmV0"},
	} {
		t.Run(name, func(t *testing.T) {
			must(t, newStore(t, nil).Pull(ctx, reg.ref("private:1"), nil, auth, false, nil))
		})
	}
	wants(t, newStore(t, nil).Pull(ctx, reg.ref("private:1"), nil, &apiregistry.AuthConfig{IdentityToken: "old"}, false, nil), errdefs.IsNotFound, "pull access denied")
}

func TestMirrorIsAskedFirstAndTheNameStaysDockerHubs(t *testing.T) {
	reg := newRegistry(t)
	reg.push("library/small:1", imageOf(t, "linux/amd64", layerOf(t, file{name: "x"})))
	s := newStore(t, nil)
	must(t, s.SetRegistry(image.Registry{Mirrors: []string{reg.mirrorURL()}}))
	said := pull(t, s, "small:1")
	if !strings.Contains(said, "1: Pulling from library/small") || !strings.Contains(said, "Downloaded newer image for small:1") {
		t.Errorf("said:\n%s", said)
	}
	for _, name := range []string{"small:1", "docker.io/library/small:1", "library/small:1"} {
		if _, err := s.Resolve(context.Background(), name, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAllTagsArePulled(t *testing.T) {
	reg := newRegistry(t)
	for _, tag := range []string{"1", "2", "3"} {
		reg.push("many:"+tag, imageOf(t, "linux/amd64", layerOf(t, file{name: tag})))
	}
	s := newStore(t, nil)
	ctx := context.Background()
	must(t, s.Pull(ctx, reg.ref("many"), nil, nil, true, nil))
	list, err := s.List(ctx, image.ListOptions{})
	must(t, err)
	if len(list) != 3 {
		t.Errorf("pulled %d images", len(list))
	}
	wants(t, s.Pull(ctx, reg.ref("many:1"), nil, nil, true, nil), errdefs.IsInvalidArgument, "tag can't be used with --all-tags/-a")
}

func TestImageIsPulledByDigestAndByBoth(t *testing.T) {
	reg := newRegistry(t)
	d := reg.push("pin:1", imageOf(t, "linux/amd64", layerOf(t, file{name: "x"})))
	s := newStore(t, nil)
	ctx := context.Background()
	pull(t, s, reg.ref("pin@"+d.String()))
	if _, err := s.Resolve(ctx, reg.ref("pin@"+d.String()), nil); err != nil {
		t.Error(err)
	}
	list, err := s.List(ctx, image.ListOptions{})
	must(t, err)
	if len(list) != 1 || len(list[0].RepoTags) != 0 || len(list[0].RepoDigests) != 1 {
		t.Errorf("listed %+v", list)
	}
	pull(t, s, reg.ref("pin:1@"+d.String()))
	pull(t, s, reg.ref("pin:1"))
	list, err = s.List(ctx, image.ListOptions{})
	must(t, err)
	if len(list) != 1 || len(list[0].RepoTags) != 1 || len(list[0].RepoDigests) != 1 {
		t.Errorf("listed %+v", list)
	}
}

func TestPullsAtTheSameTimeFetchALayerOnce(t *testing.T) {
	reg := newRegistry(t)
	base := layerOf(t, file{name: "base", body: noise(1 << 20)})
	d, err := base.Digest()
	must(t, err)
	for i := range 4 {
		reg.push(fmt.Sprintf("many:%d", i), imageOf(t, "linux/amd64", base, layerOf(t, file{name: fmt.Sprint(i)})))
	}
	s := newStore(t, nil)
	before := len(reg.requests("GET /v2/many/blobs/" + d.String()))
	done := make(chan error)
	for i := range 4 {
		go func() { done <- s.Pull(context.Background(), reg.ref(fmt.Sprintf("many:%d", i)), nil, nil, false, nil) }()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := len(reg.requests("GET /v2/many/blobs/"+d.String())) - before; n != 1 {
		t.Errorf("the shared layer was fetched %d times", n)
	}
}
