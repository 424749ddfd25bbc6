// SPDX-License-Identifier: Apache-2.0

package security

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	imagestore "holdfast/internal/image"
	"holdfast/test/kit"
)

// refused fails the test unless err contains the text and blames the input.
func refused(t *testing.T, what string, err error, text string) {
	t.Helper()
	switch {
	case err == nil:
		t.Errorf("%s was taken", what)
	case !strings.Contains(err.Error(), text):
		t.Errorf("%s: got %q, want %q in it", what, err, text)
	case errdefs.IsInternal(err) || errdefs.IsUnknown(err):
		t.Errorf("%s: %v is reported as an internal error", what, err)
	}
}

// nested is an index depth levels above an image. Each level lists the level
// below width times.
func nested(t *testing.T, leaf ocispec.Descriptor, depth, width int) (top ocispec.Descriptor, all [][]byte) {
	top = leaf
	for range depth {
		below := make([]ocispec.Descriptor, width)
		for i := range below {
			below[i] = top
		}
		raw := indexOf(t, below...)
		all = append(all, raw)
		top = describe(ocispec.MediaTypeImageIndex, raw)
	}
	return top, all
}

// An index may refer to indexes, and 200 levels of them made every list of
// images fail. Here indexes that are deeper or wider than those of real images
// are refused, whether they are pulled or loaded, and leave nothing behind.
func TestHostileIndexIsRefused(t *testing.T) {
	s, reg := newStore(t), newHostile(t, "127.0.0.1")
	b := newBundle(t, pack(t, regular("file", "x")))
	leaf := reg.image("good", b.layers...)
	many := make([]ocispec.Descriptor, 2000)
	for i := range many {
		many[i] = describe(ocispec.MediaTypeImageManifest, []byte(strconv.Itoa(i)))
	}
	wide := indexOf(t, append(many, leaf)...)
	deep, deeps := nested(t, leaf, 200, 1)
	bush, bushes := nested(t, leaf, 4, 20) // 160,000 paths to one image
	huge := append([]byte(`{"schemaVersion":2,"manifests":[`), append(bytes.Repeat([]byte(`{},`), 1_000_000), `{}]}`...)...)
	towers := append(append([]byte(`{"schemaVersion":2,"a":`), bytes.Repeat([]byte(`[`), 1_000_000)...), '}')
	for name, c := range map[string]struct {
		top  ocispec.Descriptor
		all  [][]byte
		text string
	}{
		"deep":   {deep, deeps, "nests more than"},
		"bush":   {bush, bushes, "more than"},
		"wide":   {describe(ocispec.MediaTypeImageIndex, wide), [][]byte{wide}, "2001 manifests"},
		"huge":   {describe(ocispec.MediaTypeImageIndex, huge), [][]byte{huge}, "values"},
		"towers": {describe(ocispec.MediaTypeImageIndex, towers), [][]byte{towers}, "nest"},
	} {
		for _, raw := range c.all {
			reg.manifest(ocispec.MediaTypeImageIndex, raw, name)
		}
		refused(t, "pull of "+name, s.pull(reg.host+"/x:"+name), c.text)
		blobs := append([][]byte{b.manifest, b.config, b.layers[0]}, c.all...)
		refused(t, "load of "+name, s.load(layout(t, indexOf(t, c.top), blobs...)), c.text)
		if got := s.ids(t); len(got) > 0 {
			t.Fatalf("%s: %v stayed", name, got)
		}
	}
	if err := s.pull(reg.host + "/x:good"); err != nil {
		t.Errorf("the image itself: %v", err)
	}
}

// An earlier release may have stored such an image, and a disk can damage
// stored files. Lists, disk usage, prune and the daemon's start still work. The
// image is marked, and can be removed and pulled again.
func TestDamagedImagesAreListedAndRemoved(t *testing.T) {
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load("good:1", kit.Busybox(t, nil))
	d.Docker("run", "-d", "--name", "runs", "good:1", "sleep", "600")
	reg := newHostile(t, "127.0.0.1")
	var targets []ocispec.Descriptor
	for i, name := range []string{"junk", "gone", "other"} {
		targets = append(targets, reg.image(name, pack(t, regular("file", strconv.Itoa(i)))))
		d.Docker("pull", reg.host+"/x:"+name)
	}
	if err := tryOffline(d, func() error {
		blob := func(i int) string {
			return filepath.Join(d.DataRoot, "images/content/blobs/sha256", targets[i].Digest.Encoded())
		}
		if err := os.WriteFile(blob(0), []byte("junk"), 0o444); err != nil {
			return err
		}
		if err := os.Remove(blob(1)); err != nil {
			return err
		}
		// The file is still JSON, but belongs to another image.
		raw, err := os.ReadFile(blob(2))
		if err != nil {
			return err
		}
		if err := os.WriteFile(blob(2), bytes.Replace(raw, []byte(`"schemaVersion":2`), []byte(`"schemaVersion":3`), 1), 0o444); err != nil {
			return err
		}
		leaf := targets[0]
		deep, deeps := nested(t, leaf, 200, 1)
		return plant(filepath.Join(d.DataRoot, "images"), "docker.io/library/deep:1", deep, deeps...)
	}); err != nil {
		t.Fatal(err)
	}
	list := d.Docker("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}}") + "\n"
	for _, want := range []string{"good:1", reg.host + "/x:junk", reg.host + "/x:gone", reg.host + "/x:other", "deep:1"} {
		if !strings.Contains(list, want+"\n") {
			t.Errorf("%s is not in the list:\n%s", want, list)
		}
	}
	marked := strings.Fields(d.Docker("images", "-f", "label="+imagestore.DamagedLabel, "--format", "{{.Repository}}:{{.Tag}}"))
	slices.Sort(marked)
	want := []string{reg.host + "/x:junk", reg.host + "/x:other", "deep:1"}
	slices.Sort(want)
	if !slices.Equal(marked, want) {
		t.Errorf("marked as damaged are %q, want %q", marked, want)
	}
	if !strings.Contains(d.Log(), "damaged") {
		t.Error("the log does not report it")
	}
	d.Docker("system", "df", "-v")
	d.Docker("image", "prune", "-f", "--filter", "until=1h")
	d.Docker("images", "--tree")
	if r := d.TryDocker("run", "--rm", "--pull", "never", reg.host+"/x:junk"); r.Code == 0 {
		t.Error("a damaged image was run")
	}
	// Pull the image again, and remove it.
	d.Docker("pull", reg.host+"/x:junk")
	d.Docker("pull", reg.host+"/x:gone")
	d.Docker("image", "inspect", reg.host+"/x:junk", reg.host+"/x:gone")
	d.Docker("rmi", "deep:1", reg.host+"/x:other", reg.host+"/x:junk")
	d.Docker("image", "prune", "-a", "-f")
	if got := strings.TrimSpace(d.Docker("images", "-a", "--format", "{{.Repository}}:{{.Tag}}")); got != "good:1" {
		t.Errorf("left are %q", got)
	}
	if got := d.Docker("exec", "runs", "echo", "alive"); got != "alive" {
		t.Errorf("the container says %q", got)
	}
}

// The same applies to containers and volumes: an unreadable record prevents no
// list and no start, is logged, and is left unchanged.
func TestDamagedRecordsHinderNoList(t *testing.T) {
	d := live(t)
	d.Docker("volume", "create", "whole")
	d.Docker("volume", "create", "torn")
	d.Docker("run", "-d", "--name", "runs", "-v", "whole:/v", image, "sleep", "600")
	torn := d.Docker("create", "--name", "torn", image, "true")
	records := map[string]string{filepath.Join(d.DataRoot, "volumes/torn/meta.json"): `{"schema":1,"name":`, filepath.Join(d.DataRoot, "containers", torn, "spec.json"): "\x00\x00"}
	whole := map[string][]byte{}
	if err := tryOffline(d, func() error {
		for path, text := range records {
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			whole[path] = raw
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"ps", "-a"}, {"volume", "ls"}, {"network", "ls"}, {"system", "df", "-v"}, {"info"}, {"image", "prune", "-af"}, {"network", "prune", "-f"}} {
		out := d.Docker(args...)
		if want := map[string]string{"ps": "runs", "volume": "whole"}[args[0]]; len(args) == 2 && !strings.Contains(out, want) {
			t.Errorf("docker %s lacks %s:\n%s", strings.Join(args, " "), want, out)
		}
	}
	// An unreadable container may use any volume, so no volume is regarded as
	// unused.
	if r := d.TryDocker("volume", "prune", "-af"); r.Code == 0 || !strings.Contains(r.Stderr, "repair them first") {
		t.Errorf("volume prune: %d, %s", r.Code, r.Stderr)
	}
	for path, text := range records {
		if !strings.Contains(d.Log(), filepath.Base(filepath.Dir(path))) {
			t.Errorf("the log does not report %s", path)
		}
		if raw, err := os.ReadFile(path); err != nil || string(raw) != text {
			t.Errorf("%s is %q now: %v", path, raw, err)
		}
	}
	if got := d.Docker("exec", "runs", "echo", "alive"); got != "alive" {
		t.Errorf("the container says %q", got)
	}
	// After a manual repair everything works as before.
	if err := tryOffline(d, func() error {
		for path, raw := range whole {
			if err := os.WriteFile(path, raw, 0o600); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	d.Docker("start", "-a", "torn")
	d.Docker("volume", "rm", "torn")
}

// tryOffline runs fn while no daemon lives.
func tryOffline(d *kit.Daemon, fn func() error) error {
	d.Term()
	err := fn()
	d.Start()
	return err
}

// plant puts an image into a store that no process has open, as a release
// without the check would.
func plant(root, name string, target ocispec.Descriptor, blobs ...[]byte) (err error) {
	db, err := bbolt.Open(filepath.Join(root, "metadata.db"), 0o600, nil)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := db.Close(); err == nil {
			err = cerr
		}
	}()
	disk, err := local.NewStore(filepath.Join(root, "content"))
	if err != nil {
		return err
	}
	m := metadata.NewDB(db, disk, map[string]snapshots.Snapshotter{})
	ctx := namespaces.WithNamespace(context.Background(), "holdfast")
	for i, raw := range blobs {
		labels := map[string]string{}
		if i > 0 {
			labels["containerd.io/gc.ref.content.m.0"] = digest.FromBytes(blobs[i-1]).String()
		}
		desc := describe(ocispec.MediaTypeImageIndex, raw)
		if err := content.WriteBlob(ctx, m.ContentStore(), "plant", bytes.NewReader(raw), desc, content.WithLabels(labels)); err != nil {
			return err
		}
	}
	_, err = metadata.NewImageStore(m).Create(ctx, images.Image{Name: name, Target: target})
	return err
}

// secretOf is the password that a test searches for.
const secretOf = "hunter2-of-the-user"

// challenge makes a registry request a token of realm.
func challenge(realm string) func(w http.ResponseWriter, r *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer let-me-in" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s",service="test"`, realm))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
}

// tokens answers as a token server.
func tokens(token string) func(w http.ResponseWriter, r *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		fmt.Fprintf(w, `{"access_token":%q,"token":%q}`, token, token)
		return true
	}
}

// A registry names the server that issues tokens, and any host that it named
// got the user's login. Here the login is sent only within the registry's own
// domain, unless the configuration names the host. A warning and the error name
// the host.
func TestTokenRealmElsewhereGetsNoLogin(t *testing.T) {
	s, reg := newStore(t), newHostile(t, "127.0.0.1")
	reg.image("1", pack(t, regular("file", "x")))
	ctx := context.Background()
	for name, elsewhere := range map[string]*hostile{"another port": newHostile(t, "127.0.0.1"), "another address": newHostile(t, "127.0.0.2")} {
		elsewhere.answer(tokens("of nobody"))
		reg.answer(challenge(elsewhere.url + "/token"))
		for kind, auth := range map[string]*registry.AuthConfig{
			"password":       {Username: "me", Password: secretOf},
			"identity token": {IdentityToken: secretOf},
			"auth field":     {Auth: base64.StdEncoding.EncodeToString([]byte("me:" + secretOf))},
		} {
			err := s.Pull(ctx, reg.host+"/x:1", nil, auth, false, nil)
			refused(t, name+" with "+kind, err, elsewhere.host)
			auth.ServerAddress = reg.host
			_, err = s.Auth(ctx, *auth)
			refused(t, "login with "+kind, err, elsewhere.host)
			err = s.Push(ctx, reg.host+"/x:1", nil, auth, false, nil)
			if err == nil {
				t.Errorf("push with %s succeeded", kind)
			}
		}
		if len(elsewhere.heard()) == 0 || elsewhere.heardSecret(secretOf) {
			t.Errorf("%s heard %q", name, elsewhere.heard())
		}
		if !strings.Contains(s.log.String(), "registry-token-hosts") || !strings.Contains(s.log.String(), elsewhere.host) {
			t.Errorf("no warning names %s", elsewhere.host)
		}
		// A registry that needs no login works.
		elsewhere.answer(tokens("let-me-in"))
		if err := s.pull(reg.host + "/x:1"); err != nil {
			t.Errorf("%s without a login: %v", name, err)
		}
		if err := s.SetRegistry(imagestore.Registry{TokenHosts: []string{reg.host + "=" + elsewhere.host}}); err != nil {
			t.Fatal(err)
		}
		if err := s.Pull(ctx, reg.host+"/x:1", nil, &registry.AuthConfig{Username: "me", Password: secretOf}, false, nil); err != nil {
			t.Errorf("%s as configured: %v", name, err)
		}
		if !elsewhere.heardSecret(secretOf) {
			t.Errorf("%s is configured, but did not get the login", name)
		}
		// A host that may get the login must not be able to redirect it to
		// another host.
		third := newHostile(t, "127.0.0.3")
		third.answer(tokens("let-me-in"))
		elsewhere.answer(func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, third.url+"/token", http.StatusTemporaryRedirect)
			return true
		})
		if err := s.Pull(ctx, reg.host+"/x:1", nil, &registry.AuthConfig{Username: "me", Password: secretOf}, false, nil); err == nil || third.heardSecret(secretOf) {
			t.Errorf("%s redirects: %v, heard %q", name, err, third.heard())
		}
		if err := s.SetRegistry(imagestore.Registry{}); err != nil {
			t.Fatal(err)
		}
	}
}

// The key of daemon.json for it is applied by a reload. The client is Docker's.
func TestTokenHostsAreTakenByReload(t *testing.T) {
	elsewhere, reg := newHostile(t, "127.0.0.2"), newHostile(t, "127.0.0.1")
	reg.image("1", pack(t, regular("file", "x")))
	elsewhere.answer(func(w http.ResponseWriter, r *http.Request) bool {
		token := "of nobody"
		if r.FormValue("password") == secretOf {
			token = "let-me-in"
		}
		return tokens(token)(w, r)
	})
	reg.answer(challenge(elsewhere.url + "/token"))
	conf := t.TempDir()
	login := map[string]any{"auths": map[string]any{reg.host: map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte("me:" + secretOf))}}}
	if err := os.WriteFile(filepath.Join(conf, "config.json"), marshal(t, login), 0o600); err != nil {
		t.Fatal(err)
	}
	d := kit.Start(t, kit.Options{})
	if r := d.TryDocker("--config", conf, "pull", reg.host+"/x:1"); r.Code == 0 || !strings.Contains(r.Stderr, "registry-token-hosts") || elsewhere.heardSecret(secretOf) {
		t.Errorf("pull: %d, %s", r.Code, r.Stderr)
	}
	if !strings.Contains(d.Log(), elsewhere.host) {
		t.Error("the log does not name the token server")
	}
	d.WriteConfig(map[string]any{"registry-token-hosts": []string{reg.host + "=" + elsewhere.host}})
	d.Hup()
	d.Docker("--config", conf, "pull", reg.host+"/x:1")
	if strings.Contains(d.Log(), secretOf) {
		t.Error("the log contains the password")
	}
}

// Credentials for a registry are not sent on when the registry redirects a
// download or names another host for an upload.
func TestRedirectsCarryNoLogin(t *testing.T) {
	s, reg, elsewhere := newStore(t), newHostile(t, "127.0.0.1"), newHostile(t, "127.0.0.1")
	layer := pack(t, regular("file", "x"))
	target := reg.image("1", layer)
	elsewhere.blob(ocispec.MediaTypeImageLayer, layer)
	toElsewhere := func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/"+digest.FromBytes(layer).String()) {
			return false
		}
		http.Redirect(w, r, elsewhere.url+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	}
	ctx := context.Background()
	for kind, auth := range map[string]*registry.AuthConfig{
		"registry token": {RegistryToken: secretOf},
		"password":       {Username: "me", Password: secretOf},
	} {
		reg.answer(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Authorization") == "" {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			return toElsewhere(w, r)
		})
		before := len(elsewhere.heard())
		if err := s.Pull(ctx, reg.host+"/x:1", nil, auth, false, nil); err != nil {
			t.Errorf("pull with %s: %v", kind, err)
		}
		if len(elsewhere.heard()) == before || !reg.heardSecret(secretOf) {
			t.Errorf("%s: unexpected requests: %q", kind, elsewhere.heard())
		}
		// An upload that continues at another host.
		reg.answer(func(w http.ResponseWriter, r *http.Request) bool {
			switch {
			case r.Header.Get("Authorization") == "":
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
			case r.Method == http.MethodPost:
				w.Header().Set("Location", elsewhere.url+"/upload")
				w.WriteHeader(http.StatusAccepted)
			default:
				w.WriteHeader(http.StatusNotFound)
			}
			return true
		})
		elsewhere.answer(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut {
				return false
			}
			w.WriteHeader(http.StatusCreated)
			return true
		})
		before = len(elsewhere.heard())
		_ = s.Push(ctx, reg.host+"/x:1", nil, auth, false, nil) // fails in the end, because the manifest is missing
		if len(elsewhere.heard()) == before {
			t.Errorf("%s: nothing was uploaded to the other host", kind)
		}
		elsewhere.answer(nil)
		if _, err := s.Remove(ctx, target.Digest.String(), true, true, nil); err != nil {
			t.Fatal(err)
		}
		if err := s.Collect(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range elsewhere.heard() {
		if r.authorization != "" {
			t.Errorf("the other host received %q", r.authorization)
		}
	}
}

// Limits apply to all of a registry's answers and not only to blobs: tokens,
// headers, endless lists of tags, and compressed answers that would need much
// memory.
func TestRegistryAnswersAreBounded(t *testing.T) {
	s, reg := newStore(t), newHostile(t, "127.0.0.1")
	reg.image("1", pack(t, regular("file", "x")))
	forever := func(w http.ResponseWriter, start string) {
		_, _ = io.WriteString(w, start)
		for block := bytes.Repeat([]byte("x"), 1<<16); ; {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	}
	pages := 0
	for name, answer := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"token without end": func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/token" {
				forever(w, `{"token":"`)
				return true
			}
			return challenge(reg.url+"/token")(w, r)
		},
		"challenge of megabytes": func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+strings.Repeat("x", 2<<20)+`"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		},
		"manifest without end": func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			if r.Method == http.MethodGet {
				forever(w, "{")
			}
			return true
		},
		"zstd of a manifest": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet {
				w.Header().Set("Content-Encoding", "zstd")
			}
			return false
		},
		"redirects in a circle": func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, r.URL.String(), http.StatusTemporaryRedirect)
			return true
		},
	} {
		reg.answer(answer)
		if err := s.pull(reg.host + "/x:1"); err == nil {
			t.Errorf("%s: the image was pulled", name)
		}
	}
	reg.answer(func(w http.ResponseWriter, r *http.Request) bool {
		pages++
		w.Header().Set("Link", fmt.Sprintf(`</v2/x/tags/list?last=%d>; rel="next"`, pages))
		_, _ = io.WriteString(w, `{"tags":[]}`)
		return true
	})
	if err := s.Pull(context.Background(), reg.host+"/x", nil, nil, true, nil); err == nil || pages > 5000 {
		t.Errorf("endless list of tags: %v after %d pages", err, pages)
	}
	reg.answer(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Link", `<http://169.254.169.254/latest>; rel="next"`)
		_, _ = io.WriteString(w, `{"tags":["1"]}`)
		return true
	})
	refused(t, "tags elsewhere", s.Pull(context.Background(), reg.host+"/x", nil, nil, true, nil), "169.254.169.254")
	if got := s.ids(t); len(got) > 0 {
		t.Errorf("%v stayed", got)
	}
}

// grown is the largest increase, in bytes, of a process's memory while fn runs.
func grown(t *testing.T, pid int, fn func()) int64 {
	t.Helper()
	field := func(name string) int64 {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(name + `:\s+(\d+) kB`).FindSubmatch(raw)
		n, err := strconv.ParseInt(string(m[1]), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n << 10
	}
	// 5 resets the peak to the current value; see proc_pid_clear_refs(5).
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
	before := field("VmRSS")
	fn()
	return field("VmHWM") - before
}

// zeros compresses start and n zero bytes after it.
func zeros(t *testing.T, start []byte, n int64) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(start); err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 1<<20); n > 0; n -= int64(len(block)) {
		if _, err := w.Write(block[:min(n, int64(len(block)))]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// maxGrowth is the memory that unpacking and loading may use, including garbage
// that is not yet collected. It is far less than the archives contain.
const maxGrowth = 120 << 20

// The bytes between and after the entries of a layer were kept in memory, so a
// small compressed layer with gigabytes of padding used up the daemon's memory.
// Here a layer passes through buffers of a fixed size.
func TestCVE_2017_14992_PaddingOfALayerIsNotKeptInMemory(t *testing.T) {
	d := kit.Start(t, kit.Options{})
	layer := zeros(t, pack(t, regular("file", "x")), 256<<20)
	got := grown(t, d.Pid(), func() {
		d.DockerWith(bytes.NewReader(layer), "import", "-", "padded:1")
	})
	if got > maxGrowth {
		t.Errorf("the daemon grew by %d MB", got>>20)
	}
	d.Docker("rmi", "padded:1")
}

// The importer of OCI archives read documents that should be small without a
// limit, so an archive with a huge config used up all memory. Here the size and
// the number of items of a document are checked first, and zstd streams that
// need a large window are refused.
func TestCVE_2023_25153_DocumentsOfAnArchiveAreMeasuredBeforeTheyAreRead(t *testing.T) {
	d := kit.Start(t, kit.Options{})
	manifest := `[{"Config":"config.json","RepoTags":["big:1"],"Layers":[]}]`
	var docker bytes.Buffer
	w := tar.NewWriter(&docker)
	for _, h := range []*tar.Header{{Name: "manifest.json", Size: int64(len(manifest)), Mode: 0o644}, {Name: "config.json", Size: 256 << 20, Mode: 0o644}} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Name == "manifest.json" {
			if _, err := io.WriteString(w, manifest); err != nil {
				t.Fatal(err)
			}
		}
	}
	values := "[" + strings.Repeat(`{},`, 2_500_000) + "{}]"
	window := zstdOf(1<<31, 64<<20)
	sparse := sparseOf(t, 1<<60)
	for name, archive := range map[string][]byte{
		"config as large as memory":   zeros(t, docker.Bytes(), 256<<20+1024),
		"manifest.json of objects":    pack(t, regular("manifest.json", values)),
		"index.json of objects":       pack(t, regular("oci-layout", `{"imageLayoutVersion":"1.0.0"}`), regular("index.json", `{"manifests":`+values+`}`)),
		"index.json of nothing":       zeros(t, pack(t, regular("oci-layout", `{"imageLayoutVersion":"1.0.0"}`))[:1024], 1<<20),
		"zstd with a window of 2 GiB": window,
		"sparse blob of an exabyte":   sparse,
	} {
		var r kit.Result
		got := grown(t, d.Pid(), func() { r = tryLoad(t, d, archive) })
		if r.Code == 0 {
			t.Errorf("%s was loaded", name)
		}
		if got > maxGrowth {
			t.Errorf("%s: the daemon grew by %d MB", name, got>>20)
		}
	}
	if got := d.Docker("images", "-aq"); got != "" {
		t.Errorf("left are %s", got)
	}
}

func tryLoad(t *testing.T, d *kit.Daemon, archive []byte) kit.Result {
	t.Helper()
	at := filepath.Join(t.TempDir(), "archive.tar")
	if err := os.WriteFile(at, archive, 0o600); err != nil {
		t.Fatal(err)
	}
	return d.TryDocker("load", "-i", at)
}

// zstdOf is a frame (RFC 8878) that declares a window size and holds n zeros in
// blocks of one repeated byte.
func zstdOf(window uint64, n int) []byte {
	exponent := 0
	for 1<<(exponent+10) < window {
		exponent++
	}
	out := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, byte(exponent << 3)}
	const block = 128 << 10
	for ; n > 0; n -= block {
		last := uint32(0)
		if n <= block {
			last = 1
		}
		header := binary.LittleEndian.AppendUint32(nil, last|1<<1|block<<3)
		out = append(append(out, header[:3]...), 0)
	}
	return out
}

// A layer could name URLs of its own, and the login for the registry was sent
// to them. Here URLs in a manifest are never followed.
func TestCVE_2020_15157_URLsOfALayerAreNotFollowed(t *testing.T) {
	s, reg, elsewhere := newStore(t), newHostile(t, "127.0.0.1"), newHostile(t, "127.0.0.1")
	b := newBundle(t, pack(t, regular("file", "x")))
	conf := reg.blob(ocispec.MediaTypeImageConfig, b.config)
	elsewhere.answer(challenge(elsewhere.url + "/token"))
	for i, mediaType := range []string{
		ocispec.MediaTypeImageLayer, "application/vnd.oci.image.layer.nondistributable.v1.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar",
	} {
		layer := describe(mediaType, b.layers[0])
		layer.URLs = []string{elsewhere.url + "/layer"}
		tag := strconv.Itoa(i)
		reg.manifest(ocispec.MediaTypeImageManifest, manifestOf(t, conf, layer), tag)
		_ = s.Pull(context.Background(), reg.host+"/x:"+tag, nil, &registry.AuthConfig{Username: "me", Password: secretOf}, false, nil)
	}
	if got := elsewhere.heard(); len(got) > 0 {
		t.Errorf("another host got requests: %q", got)
	}
}

// A pulled manifest without fields that the code relied on crashed the daemon.
// Here documents with missing or false values are refused, and the daemon runs
// on.
func TestCVE_2021_21285_MalformedManifestLeavesTheDaemonRunning(t *testing.T) {
	d, reg := kit.Start(t, kit.Options{}), newHostile(t, "127.0.0.1")
	pid := d.Pid()
	b := newBundle(t, pack(t, regular("file", "x")))
	conf, layer := reg.blob(ocispec.MediaTypeImageConfig, b.config), reg.blob(ocispec.MediaTypeImageLayer, b.layers[0])
	blob := func(config string) ocispec.Descriptor { return reg.blob(ocispec.MediaTypeImageConfig, []byte(config)) }
	diff := digest.FromBytes(b.layers[0])
	for name, manifest := range map[string][]byte{
		"nothing":          {},
		"null":             []byte("null"),
		"object":           []byte("{}"),
		"list":             []byte("[]"),
		"no-config":        marshal(t, map[string]any{"schemaVersion": 2, "layers": []any{layer}}),
		"null-layers":      []byte(`{"schemaVersion":2,"config":` + string(marshal(t, conf)) + `,"layers":[null]}`),
		"fewer-layers":     manifestOf(t, conf),
		"more-layers":      manifestOf(t, conf, layer, layer),
		"null-config":      manifestOf(t, blob("null"), layer),
		"no-rootfs":        manifestOf(t, blob(`{"os":"linux"}`), layer),
		"bad-diff":         manifestOf(t, blob(`{"rootfs":{"type":"layers","diff_ids":["../../../etc"]}}`), layer),
		"short-diff":       manifestOf(t, blob(`{"rootfs":{"type":"layers","diff_ids":["sha256:1"]}}`), layer),
		"wrong-diff":       manifestOf(t, blob(`{"os":"linux","rootfs":{"type":"layers","diff_ids":["`+digest.FromString("x").String()+`"]}}`), layer),
		"other-rootfs":     manifestOf(t, blob(`{"os":"linux","rootfs":{"type":"x","diff_ids":["`+diff.String()+`"]}}`), layer, layer),
		"negative-size":    manifestOf(t, conf, ocispec.Descriptor{MediaType: layer.MediaType, Digest: layer.Digest, Size: -1}),
		"largest-size":     manifestOf(t, conf, ocispec.Descriptor{MediaType: layer.MediaType, Digest: layer.Digest, Size: 1<<63 - 1}),
		"large-config":     manifestOf(t, ocispec.Descriptor{MediaType: conf.MediaType, Digest: conf.Digest, Size: 1 << 40}, layer),
		"bad-algorithm":    manifestOf(t, conf, ocispec.Descriptor{MediaType: layer.MediaType, Digest: "md5:00", Size: 1}),
		"path-as-digest":   manifestOf(t, conf, ocispec.Descriptor{MediaType: layer.MediaType, Digest: "sha256:../../../../etc/passwd", Size: 1}),
		"unknown-type":     manifestOf(t, conf, ocispec.Descriptor{MediaType: "x/y", Digest: layer.Digest, Size: layer.Size}),
		"too-many-layers":  manifestOf(t, conf, slices.Repeat([]ocispec.Descriptor{layer}, 600)...),
		"layers-as-object": []byte(`{"schemaVersion":2,"layers":{}}`),
	} {
		reg.manifest(ocispec.MediaTypeImageManifest, manifest, name)
		reg.manifest(ocispec.MediaTypeImageIndex, indexOf(t, describe(ocispec.MediaTypeImageManifest, manifest)), "index-"+name)
		for _, tag := range []string{name, "index-" + name} {
			resp, err := d.HTTP().Post("http://holdfast/images/create?fromImage="+url.QueryEscape(reg.host+"/x")+"&tag="+tag, "", nil)
			if err != nil {
				t.Fatal(err)
			}
			said, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode == http.StatusOK && !bytes.Contains(said, []byte(`"error"`)) {
				t.Errorf("%s: status %d, %v, %s", tag, resp.StatusCode, err, said)
			}
		}
	}
	if got := d.Docker("images", "-aq"); got != "" || d.Pid() != pid || !d.Running() {
		t.Errorf("the daemon %d is %d and has the images %q", pid, d.Pid(), got)
	}
}

// A document with the fields of a manifest and of an index was taken for
// either, depending on the registry's content type, so one digest could mean
// two images. Here a document that is both, or that differs from its declared
// type, is refused.
func TestCVE_2021_41190_DocumentIsAManifestOrAnIndexAndNotBoth(t *testing.T) {
	s, reg := newStore(t), newHostile(t, "127.0.0.1")
	b := newBundle(t, pack(t, regular("file", "x")))
	leaf := reg.image("good", b.layers...)
	var doc map[string]any
	if err := json.Unmarshal(b.manifest, &doc); err != nil {
		t.Fatal(err)
	}
	both := func(change func(m map[string]any)) []byte {
		m := map[string]any{}
		for k, v := range doc {
			m[k] = v
		}
		change(m)
		return marshal(t, m)
	}
	for i, c := range []struct {
		mediaType string
		raw       []byte
	}{
		{ocispec.MediaTypeImageManifest, both(func(m map[string]any) { m["manifests"] = []any{leaf} })},
		{ocispec.MediaTypeImageManifest, both(func(m map[string]any) { delete(m, "mediaType"); m["Manifests"] = []any{leaf} })},
		{ocispec.MediaTypeImageManifest, both(func(m map[string]any) { m["mediaType"] = ocispec.MediaTypeImageIndex })},
		{ocispec.MediaTypeImageManifest, both(func(m map[string]any) { m["fsLayers"] = []any{map[string]string{"blobSum": "x"}} })},
		{ocispec.MediaTypeImageIndex, both(func(m map[string]any) { delete(m, "mediaType"); m["manifests"] = []any{leaf} })},
		{ocispec.MediaTypeImageIndex, both(func(m map[string]any) { delete(m, "config"); delete(m, "mediaType"); m["manifests"] = []any{leaf} })},
		{ocispec.MediaTypeImageIndex, both(func(m map[string]any) {
			delete(m, "config")
			delete(m, "layers")
			m["manifests"] = []any{leaf}
		})},
	} {
		tag := strconv.Itoa(i)
		top := reg.manifest(c.mediaType, c.raw, tag)
		if err := s.pull(reg.host + "/x:" + tag); err == nil {
			t.Errorf("pulled as %s: %s", c.mediaType, c.raw)
		}
		if err := s.load(layout(t, indexOf(t, top), c.raw, b.manifest, b.config, b.layers[0])); err == nil {
			t.Errorf("loaded as %s: %s", c.mediaType, c.raw)
		}
	}
	if got := s.ids(t); len(got) > 0 {
		t.Errorf("%v stayed", got)
	}
}

// If the configured credential helper was not installed, the client sent the
// login for Docker Hub to any registry. Here it sends a registry the login for
// that registry or none.
func TestCVE_2021_41092_ClientSendsARegistryItsOwnLogin(t *testing.T) {
	d, reg := kit.Start(t, kit.Options{}), newHostile(t, "127.0.0.1")
	reg.image("1", pack(t, regular("file", "x")))
	reg.answer(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	hub := map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte("me:" + secretOf))}
	for name, conf := range map[string]map[string]any{
		"no helper":      {"auths": map[string]any{"https://index.docker.io/v1/": hub}},
		"missing helper": {"auths": map[string]any{"https://index.docker.io/v1/": hub}, "credsStore": "not-installed"},
		"missing for it": {"auths": map[string]any{"https://index.docker.io/v1/": hub}, "credHelpers": map[string]string{reg.host: "not-installed"}},
		"of a neighbour": {"auths": map[string]any{strings.Split(reg.host, ":")[0]: hub, "127.0.0.1:1": hub}},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "config.json"), marshal(t, conf), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, run := range []func(...string) kit.Result{d.TryDocker, d.TryHoldfast} {
			if r := run("--config", dir, "pull", reg.host+"/x:1"); r.Code == 0 {
				t.Errorf("%s: the private image was pulled", name)
			}
		}
	}
	if len(reg.heard()) == 0 || reg.heardSecret(secretOf) {
		t.Errorf("the registry heard %q", reg.heard())
	}
}

// An image's numeric user that did not fit into 32 bits was truncated to
// root's. Here it is refused, and never truncated.
func TestCVE_2024_40635_UserThatOverflowsIsNotRoot(t *testing.T) {
	d := kit.Start(t, kit.Options{})
	d.Load("overflow:1", kit.Busybox(t, func(c *v1.Config) { c.User = "4294967296:4294967296" }))
	if r := d.TryDocker("run", "--rm", "overflow:1", "id"); r.Code == 0 {
		t.Errorf("a container of the image runs as %s", r.Stdout)
	}
	for _, user := range []string{"4294967296", "2147483648:2147483648", "1000:4294967296", "18446744073709551616", "-1"} {
		if r := d.TryDocker("run", "--rm", "-u", user, "overflow:1", "id"); r.Code == 0 {
			t.Errorf("-u %s runs as %s", user, r.Stdout)
		}
	}
}

// A numeric user that did not fit was looked up as a name, which the image's
// /etc/passwd could map to root. Here a number is always an ID, whatever names
// the image's files contain, and the IDs in these files must fit as well.
func TestCVE_2026_46680_NumberOfAUserIsNoNameOfAnImage(t *testing.T) {
	d := kit.Start(t, kit.Options{})
	passwd := "root:x:0:0::/:/bin/sh\n4294967296:x:0:0::/:/bin/sh\n99999999999999999999:x:0:0::/:/bin/sh\nlarge:x:4294967296:4294967296::/:/bin/sh\nnegative:x:-4294967296:0::/:/bin/sh\n"
	base := kit.Busybox(t, nil)
	d.Load("names:1", kit.Image(t, base, nil, kit.Layer(t, kit.File{Name: "etc/passwd", Body: []byte(passwd)}, kit.File{Name: "etc/group", Body: []byte("large:x:4294967296:\n")})))
	for _, args := range [][]string{{"-u", "4294967296"}, {"-u", "99999999999999999999"}, {"-u", "large"}, {"-u", "negative"}, {"-u", "1:large"}, {"-u", "1", "--group-add", "large"}} {
		r := d.TryDocker(append(append([]string{"run", "--rm"}, args...), "names:1", "id")...)
		if r.Code == 0 {
			t.Errorf("%q runs as %s", args, r.Stdout)
		}
	}
}

// Progress messages of layers that were unpacked concurrently were mixed up.
// Here each message is one whole object, with many layers and two concurrent
// pulls.
func TestCVE_2024_36623_ProgressOfManyLayersIsWholeMessages(t *testing.T) {
	d, reg := kit.Start(t, kit.Options{}), newHostile(t, "127.0.0.1")
	var layers [][]byte
	for i := range 12 {
		layers = append(layers, pack(t, regular(fmt.Sprint("file", i), strings.Repeat(strconv.Itoa(i), 20_000))))
	}
	reg.image("1", layers...)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			resp, err := d.HTTP().Post("http://holdfast/images/create?fromImage="+url.QueryEscape(reg.host+"/x")+"&tag=1", "", nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			last, n := struct{ Status, Error string }{}, 0
			for dec := json.NewDecoder(resp.Body); ; n++ {
				last.Status, last.Error = "", ""
				err := dec.Decode(&last)
				if err == io.EOF {
					break
				}
				if err != nil || last.Error != "" {
					t.Errorf("message %d: %v %s", n, err, last.Error)
					return
				}
			}
			if n < 12 {
				t.Errorf("%d messages", n)
			}
		})
	}
	wg.Wait()
}

// Two builds that made the same layer concurrently both did the work and leaked
// one copy. Here concurrent pulls and loads of one layer unpack it once, and
// leave nothing behind.
func TestCVE_2024_36621_SameLayerAtOnceIsUnpackedOnce(t *testing.T) {
	s, reg := newStore(t), newHostile(t, "127.0.0.1")
	b := newBundle(t, pack(t, regular("file", strings.Repeat("x", 1<<20))))
	leaf := reg.image("1", b.layers...)
	archive := layout(t, indexOf(t, leaf), b.manifest, b.config, b.layers[0])
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := s.pull(reg.host + "/x:1"); err != nil {
				t.Errorf("pull: %v", err)
			}
		})
		wg.Go(func() {
			if err := s.load(archive); err != nil {
				t.Errorf("load: %v", err)
			}
		})
	}
	wg.Wait()
	if err := s.Collect(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := s.snapshots(t); len(got) != 1 {
		t.Errorf("layers on disk: %q", got)
	}
}

// snapshots returns the directories of unpacked layers.
func (s *store) snapshots(t *testing.T) []string {
	t.Helper()
	got, err := filepath.Glob(filepath.Join(s.root, "snapshots/*/snapshots/*"))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// While one layer was unpacked by path, another one changed what the path
// referred to, so the layer's files were written to the host. Here the layers
// of an image are unpacked one after the other into directories that only root
// can enter, and links in a lower layer are not followed.
func TestCVE_2025_47290_LinksOfOtherLayersLeadNowhereWhileUnpacking(t *testing.T) {
	s := newStore(t)
	outside := t.TempDir()
	up := strings.Repeat("../", 20)
	layers := [][]byte{
		pack(t, linked(tar.TypeSymlink, "a", outside), linked(tar.TypeSymlink, "b", up+outside), folder("c/")),
		pack(t, regular("a/one", "x"), regular("b/two", "x"), linked(tar.TypeSymlink, "c", outside), regular("c/three", "x")),
		pack(t, folder("a/"), regular("a/four", "x"), linked(tar.TypeLink, "d", outside+"/five"), linked(tar.TypeLink, "e", up+outside+"/five")),
	}
	if err := os.WriteFile(filepath.Join(outside, "five"), []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= len(layers); n++ {
		b := newBundle(t, layers[:n]...)
		leaf := describe(ocispec.MediaTypeImageManifest, b.manifest)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				_ = s.load(layout(t, indexOf(t, leaf), append([][]byte{b.manifest, b.config}, b.layers...)...))
			})
		}
		wg.Wait()
	}
	left, err := os.ReadDir(outside)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(outside, "five"), &st); err != nil || len(left) != 1 || st.Nlink != 1 {
		t.Errorf("the directory outside has changed: %v, with %d links: %v", left, st.Nlink, err)
	}
	for _, dir := range []string{"snapshots", "snapshots/overlayfs", "content"} {
		if info, err := os.Stat(filepath.Join(s.root, dir)); err != nil || info.Mode().Perm()&0o007 != 0 {
			t.Errorf("%s: %v %v", dir, info.Mode(), err)
		}
	}
}

// The author of a layer chose its ID, so an image could give one of its layers
// the ID of a layer that others use. Here blobs and layers are identified by
// the digest of their content, which is computed and not taken from the image.
func TestCVE_2014_8178_LayerIsWhatItsDigestSays(t *testing.T) {
	s, reg := newStore(t), newHostile(t, "127.0.0.1")
	good, bad := newBundle(t, pack(t, regular("file", "good"))), newBundle(t, pack(t, regular("file", "evil")))
	diff := digest.FromBytes(good.layers[0])
	// The config names the good layer, but the manifest refers to the bad one.
	conf := reg.blob(ocispec.MediaTypeImageConfig, good.config)
	layer := reg.blob(ocispec.MediaTypeImageLayer, bad.layers[0])
	reg.manifest(ocispec.MediaTypeImageManifest, manifestOf(t, conf, layer), "claims")
	refused(t, "claimed diff ID", s.pull(reg.host+"/x:claims"), "failed to register layer")
	// The registry sends the bad layer under the digest of the good one.
	reg.image("sends", good.layers[0])
	reg.mu.Lock()
	reg.blobs[diff.String()] = bad.layers[0]
	reg.mu.Unlock()
	refused(t, "false blob", s.pull(reg.host+"/x:sends"), "verification failed")
	// Archives with false names of blobs.
	leaf := describe(ocispec.MediaTypeImageManifest, good.manifest)
	archive := pack(t, regular("oci-layout", `{"imageLayoutVersion":"1.0.0"}`), regular("index.json", string(indexOf(t, leaf))),
		regular("blobs/sha256/"+leaf.Digest.Encoded(), string(good.manifest)),
		regular("blobs/sha256/"+digest.FromBytes(good.config).Encoded(), string(good.config)),
		regular("blobs/sha256/"+diff.Encoded(), string(bad.layers[0])))
	if err := s.load(archive); err == nil {
		t.Error("a blob with a false name was loaded from an archive")
	}
	if got := s.ids(t); len(got) > 0 {
		t.Errorf("%v stayed", got)
	}
	if err := s.Collect(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := s.snapshots(t); len(got) > 0 {
		t.Errorf("layers stayed: %q", got)
	}
}

// The signature of a manifest was verified over other bytes than those that
// were used, so a pull by digest accepted content that the digest did not
// cover. Here the digest is computed over the bytes that are stored and used.
func TestCVE_2014_8179_PullByDigestTakesTheseBytesAlone(t *testing.T) {
	s, reg := newStore(t), newHostile(t, "127.0.0.1")
	good := newBundle(t, pack(t, regular("file", "good")))
	leaf := reg.image("1", good.layers...)
	evil := reg.image("2", pack(t, regular("file", "evil")))
	reg.mu.Lock()
	evilDoc := reg.manifests[evil.Digest.String()].body
	reg.mu.Unlock()
	for name, lie := range map[string][]byte{"another manifest": evilDoc, "more at the end": append(slices.Clone(good.manifest), "\n"...)} {
		reg.answer(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, leaf.Digest.String()) {
				return false
			}
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Header().Set("Docker-Content-Digest", leaf.Digest.String())
			_, _ = w.Write(lie)
			return true
		})
		if err := s.pull(reg.host + "/x@" + leaf.Digest.String()); err == nil {
			t.Errorf("%s was pulled", name)
		}
	}
	reg.answer(nil)
	if err := s.pull(reg.host + "/x@" + leaf.Digest.String()); err != nil {
		t.Error(err)
	}
	if got := s.ids(t); !slices.Equal(got, []string{leaf.Digest.String()}) {
		t.Errorf("images are %v", got)
	}
}

// If a registry did not answer by HTTPS, the daemon used HTTP, which an
// attacker on the path could enforce. Here HTTP is used only for registries on
// the host itself and for those that are configured as insecure.
func TestCVE_2014_5277_RegistryIsNotSpokenToByHTTP(t *testing.T) {
	reg := newHostile(t, hostAddress(t))
	reg.image("1", pack(t, regular("file", "x")))
	s := newStore(t)
	ctx := context.Background()
	auth := &registry.AuthConfig{Username: "me", Password: secretOf}
	if err := s.Pull(ctx, reg.host+"/x:1", nil, auth, false, nil); err == nil {
		t.Error("pulled by HTTP")
	}
	_, err := s.Auth(ctx, registry.AuthConfig{Username: "me", Password: secretOf, ServerAddress: "http://" + reg.host})
	if err == nil {
		t.Error("logged in by HTTP")
	}
	if got := reg.heard(); len(got) > 0 {
		t.Errorf("the registry heard %q", got)
	}
	if err := s.SetRegistry(imagestore.Registry{Insecure: []string{reg.host}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Pull(ctx, reg.host+"/x:1", nil, auth, false, nil); err != nil {
		t.Errorf("a registry that is configured as insecure: %v", err)
	}
}

// hostAddress is an address of this host that is not a loopback address.
func hostAddress(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("hfd%d", os.Getpid()%1_000_000)
	address := fmt.Sprintf("10.213.%d.1", os.Getpid()%250)
	bridge(t, name, address)
	return address
}

// IDs were taken from the archive, so a loaded image could have the ID or the
// layers of another one. Here IDs are computed from the loaded content.
func TestCVE_2014_5282_IDsOfALoadAreComputed(t *testing.T) {
	s := newStore(t)
	good, evil := newBundle(t, pack(t, regular("file", "good"))), newBundle(t, pack(t, regular("file", "evil")))
	goodID := digest.FromBytes(good.manifest)
	if err := s.load(layout(t, indexOf(t, describe(ocispec.MediaTypeImageManifest, good.manifest)), good.manifest, good.config, good.layers[0])); err != nil {
		t.Fatal(err)
	}
	named := digest.FromBytes(good.config).Encoded()
	archive := pack(t, regular(named+".json", string(evil.config)), regular("layer.tar", string(evil.layers[0])),
		regular("manifest.json", `[{"Config":"`+named+`.json","RepoTags":["evil:1"],"Layers":["layer.tar"]}]`))
	if err := s.load(archive); err != nil {
		t.Fatal(err)
	}
	img, err := s.Resolve(context.Background(), "evil:1", nil)
	if err != nil || img.ID == goodID.String() || img.Layers[0] != digest.FromBytes(evil.layers[0]).String() {
		t.Errorf("got %+v, %v", img, err)
	}
	was, err := s.Resolve(context.Background(), goodID.String(), nil)
	if err != nil || was.Layers[0] != digest.FromBytes(good.layers[0]).String() {
		t.Errorf("the other image is %+v: %v", was, err)
	}
}

// Links and absolute names in an archive led out of the folder into which it
// was unpacked. Here a loaded archive is never unpacked; its files become
// blobs.
func TestCVE_2014_9356_NamesInAnArchiveLeadNowhere(t *testing.T) {
	s := newStore(t)
	b := newBundle(t, pack(t, regular("file", "x")))
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte(secretOf), 0o600); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 20)
	manifest := func(config, layer string) entry {
		return regular("manifest.json", string(marshal(t, []any{map[string]any{"Config": config, "RepoTags": []string{"a:1"}, "Layers": []string{layer}}})))
	}
	for name, archive := range map[string][]byte{
		"absolute":     pack(t, manifest(outside+"/made", "l"), regular(outside+"/made", string(b.config)), regular("l", string(b.layers[0]))),
		"upwards":      pack(t, manifest(up+outside+"/made", "l"), regular(up+outside+"/made", string(b.config)), regular("l", string(b.layers[0]))),
		"link":         pack(t, linked(tar.TypeSymlink, "c", secret), linked(tar.TypeSymlink, "l", up+secret), manifest("c", "l")),
		"hard link":    pack(t, linked(tar.TypeLink, "c", secret), manifest("c", "c")),
		"link to made": pack(t, linked(tar.TypeSymlink, "d", outside), regular("d/made", "x"), manifest("d/made", "d/made")),
	} {
		_ = s.load(archive) // the names have no special meaning, so some entries load as images
		if left, err := os.ReadDir(outside); err != nil || len(left) != 1 {
			t.Errorf("%s: outside is %v, %v", name, left, err)
		}
	}
	raw, err := holding(s.root, secretOf)
	if err != nil || raw != "" {
		t.Errorf("%s holds what only the host has: %v", raw, err)
	}
}

// holding finds a file below root that contains a text.
func holding(root, text string) (found string, _ error) {
	return found, filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(path)
		if bytes.Contains(raw, []byte(text)) {
			found = path
		}
		return err
	})
}

// An image's ID from an archive or a registry became part of a path, so "../"
// in it led to any place, and repositories could be spoofed. Here IDs and
// references are parsed, and no path is made of data from an archive.
func TestCVE_2014_9358_IDsAreNotPaths(t *testing.T) {
	s := newStore(t)
	b := newBundle(t, pack(t, regular("file", "x")))
	leaf := describe(ocispec.MediaTypeImageManifest, b.manifest)
	for _, id := range []string{"../../../etc", "sha256:../../../../etc/passwd", "sha256:" + strings.Repeat("/", 64), "sha256:" + strings.Repeat("A", 64), "sha512:" + strings.Repeat("a", 64), "blake:" + strings.Repeat("a", 64), "", "/etc/passwd", "sha256:" + strings.Repeat("0", 63) + "\x00"} {
		bad := leaf
		bad.Digest = digest.Digest(id)
		if err := s.load(layout(t, indexOf(t, bad), b.manifest, b.config, b.layers[0])); err == nil {
			t.Errorf("loaded %q", id)
		}
		bad.MediaType = ocispec.MediaTypeImageLayer
		manifest := manifestOf(t, describe(ocispec.MediaTypeImageConfig, b.config), bad)
		if err := s.load(layout(t, indexOf(t, describe(ocispec.MediaTypeImageManifest, manifest)), manifest, b.config)); err == nil {
			t.Errorf("loaded an image with the layer %q", id)
		}
		if _, err := s.Resolve(context.Background(), id, nil); err == nil {
			t.Errorf("found %q", id)
		}
	}
	for _, name := range []string{"../../x:1", "/x", "a//b:1", "docker.io/../x:1", "x:1\n", "registry/x:1@sha256:1", "<none>@" + leaf.Digest.String()} {
		target := leaf
		target.Annotations = map[string]string{images.AnnotationImageName: name}
		if err := s.load(layout(t, indexOf(t, target), b.manifest, b.config, b.layers[0])); err == nil {
			t.Errorf("loaded under the name %q", name)
		}
	}
	if got := s.ids(t); len(got) > 0 {
		t.Errorf("%v stayed", got)
	}
}

// In debug mode the daemon logged requests with the secrets in them. Here no
// log contains logins or tokens, at any level.
func TestCVE_2019_13509_SecretsAreInNoLog(t *testing.T) {
	d := kit.Start(t, kit.Options{Config: map[string]any{"debug": true, "log-level": "debug"}})
	reg := newHostile(t, "127.0.0.1")
	reg.image("1", pack(t, regular("file", "x")))
	reg.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			return tokens("token-"+secretOf)(w, r)
		}
		if r.Header.Get("Authorization") == "Bearer token-"+secretOf {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test"`, reg.url))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	auth := registry.AuthConfig{Username: "me", Password: secretOf, ServerAddress: reg.host}
	for _, path := range []string{"/auth", "/images/create?fromImage=" + url.QueryEscape(reg.host+"/x") + "&tag=1", "/images/" + url.PathEscape(reg.host+"/x") + "/push?tag=1"} {
		req, err := http.NewRequest(http.MethodPost, "http://holdfast"+path, bytes.NewReader(marshal(t, auth)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Registry-Auth", base64.URLEncoding.EncodeToString(marshal(t, auth)))
		resp, err := d.HTTP().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	if !reg.heardSecret(secretOf) {
		t.Error("the registry did not get the login")
	}
	log := d.Log()
	for _, secret := range []string{secretOf, base64.StdEncoding.EncodeToString([]byte("me:" + secretOf)), base64.URLEncoding.EncodeToString(marshal(t, auth))} {
		if strings.Contains(log, secret) {
			t.Errorf("the log has %q", secret)
		}
	}
}

// A list of CPUs such as 0-999999999 was expanded in memory when a container
// was created. Here a list is limited to the number of CPUs that a kernel
// supports.
func TestCVE_2018_20699_ListsOfProcessorsTakeNoMemory(t *testing.T) {
	d := live(t)
	for _, list := range []string{"0-4294967295", "0-9223372036854775807", "2147483647", "0-999999999,0-999999999", strings.Repeat("0-8191,", 20_000) + "0"} {
		for _, field := range []string{"CpusetCpus", "CpusetMems"} {
			var status int
			got := grown(t, d.Pid(), func() {
				resp, err := d.HTTP().Post("http://holdfast/containers/create", "application/json",
					bytes.NewReader(marshal(t, map[string]any{"Image": image, "HostConfig": map[string]any{field: list}})))
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				status = resp.StatusCode
			})
			if status != http.StatusBadRequest {
				t.Errorf("%s=%.30s: status %d", field, list, status)
			}
			if got > maxGrowth {
				t.Errorf("%s=%.30s: the daemon grew by %d MB", field, list, got>>20)
			}
		}
	}
}

// The properties of files in a layer are limited. Extended attributes of
// overlayfs would redirect folders, and a sparse file can claim any size. A
// layer that fails leaves nothing behind.
func TestLayersSetNoAttributesOfTheHost(t *testing.T) {
	s := newStore(t)
	xattr := func(name, key, value string) entry {
		e := folder(name)
		e.PAXRecords = map[string]string{"SCHILY.xattr." + key: value}
		return e
	}
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	ping := regular("ping", "x")
	ping.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": capability}
	b := newBundle(t, pack(t, folder("base/")), pack(t,
		xattr("a/", "trusted.overlay.redirect", "/etc"), xattr("b/", "trusted.overlay.opaque", "y"), xattr("c/", "user.overlay.redirect", "/etc"),
		xattr("d/", "user.mine", "kept"), xattr("e/", "trusted.other", "x"), xattr("f/", "security.ima", "x"), ping))
	leaf := describe(ocispec.MediaTypeImageManifest, b.manifest)
	if err := s.load(layout(t, indexOf(t, leaf), append([][]byte{b.manifest, b.config}, b.layers...)...)); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, dir := range s.snapshots(t) {
		err := filepath.WalkDir(filepath.Join(dir, "fs"), func(path string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			names := make([]byte, 4096)
			n, err := unix.Llistxattr(path, names)
			for name := range strings.SplitSeq(string(names[:max(n, 0)]), "\x00") {
				if name != "" {
					got[filepath.Base(path)+" "+name] = ""
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"d user.mine", "ping security.capability"} {
		if _, ok := got[want]; !ok {
			t.Errorf("lost: %s", want)
		}
		delete(got, want)
	}
	if len(got) > 0 {
		t.Errorf("set: %v", got)
	}
	// A file of an exabyte in three blocks, and an archive that is truncated.
	sparse := sparseOf(t, 1<<60)
	for name, layer := range map[string][]byte{"sparse": sparse, "cut": pack(t, regular("x", strings.Repeat("x", 5000)))[:2048], "negative": negativeOf(t)} {
		b := newBundle(t, layer)
		leaf := describe(ocispec.MediaTypeImageManifest, b.manifest)
		if err := s.load(layout(t, indexOf(t, leaf), b.manifest, b.config, layer)); err == nil {
			t.Errorf("%s was loaded", name)
		}
	}
	if err := s.Collect(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := s.snapshots(t); len(got) != 2 {
		t.Errorf("layers on disk: %q", got)
	}
}

// A layer of zeros is small until it is unpacked. When the disk is full, the
// pull fails and frees all the space that it has used.
func TestFullDiskKeepsNothingOfALayer(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := openStore(t, filepath.Join(disk, "images"))
	free := func() uint64 {
		var st unix.Statfs_t
		if err := unix.Statfs(disk, &st); err != nil {
			t.Fatal(err)
		}
		return st.Bavail * uint64(st.Bsize)
	}
	before := free()
	var files []entry
	for i := range 5 {
		files = append(files, regular(fmt.Sprint("zeros", i), strings.Repeat("\x00", 8<<20)))
	}
	plain := pack(t, files...)
	b := newBundle(t, plain)
	layer := zeros(t, plain, 0)
	manifest := manifestOf(t, describe(ocispec.MediaTypeImageConfig, b.config), describe(ocispec.MediaTypeImageLayerGzip, layer))
	leaf := describe(ocispec.MediaTypeImageManifest, manifest)
	err := s.load(layout(t, indexOf(t, leaf), manifest, b.config, layer))
	if err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("got %v", err)
	}
	if err := s.Collect(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := s.snapshots(t); len(got) > 0 || len(s.ids(t)) > 0 {
		t.Errorf("left are %q, %q", got, s.ids(t))
	}
	if after := free(); after+2<<20 < before {
		t.Errorf("%d KiB are free, %d were", after>>10, before>>10)
	}
	small := newBundle(t, pack(t, regular("file", "x")))
	leaf = describe(ocispec.MediaTypeImageManifest, small.manifest)
	if err := s.load(layout(t, indexOf(t, leaf), small.manifest, small.config, small.layers[0])); err != nil {
		t.Errorf("after it: %v", err)
	}
}

// sparseOf is a tar archive with a sparse file of size bytes, in GNU's PAX
// format 1.0.
func sparseOf(t *testing.T, size int64) []byte {
	t.Helper()
	records := ""
	for _, kv := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=big", fmt.Sprintf("GNU.sparse.realsize=%d", size)} {
		n := len(kv) + 4
		records += fmt.Sprintf("%d %s\n", n, kv)
		if len(fmt.Sprintf("%d %s\n", n, kv)) != n {
			t.Fatalf("record %q", kv)
		}
	}
	var b bytes.Buffer
	b.Write(rawHeader("PaxHeader", 'x', int64(len(records))))
	b.WriteString(records + strings.Repeat("\x00", 512-len(records)%512))
	entries := fmt.Sprintf("1\n%d\n1\n", size-1)
	b.Write(rawHeader("GNUSparseFile/big", '0', 512+1))
	b.WriteString(entries + strings.Repeat("\x00", 512-len(entries)))
	b.WriteString("x" + strings.Repeat("\x00", 511))
	b.Write(make([]byte, 1024))
	return b.Bytes()
}

// negativeOf is a tar archive with a file of a negative size.
func negativeOf(t *testing.T) []byte {
	t.Helper()
	h := rawHeader("negative", '0', 0)
	copy(h[124:], bytes.Repeat([]byte{0xff}, 12)) // base-256 encoding
	return append(checksummed(h), make([]byte, 1024)...)
}

// rawHeader is a header in ustar format.
func rawHeader(name string, kind byte, size int64) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x0000000000000\x00", size))
	h[156] = kind
	copy(h[257:], "ustar\x0000")
	return checksummed(h)
}

func checksummed(h []byte) []byte {
	copy(h[148:], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}
