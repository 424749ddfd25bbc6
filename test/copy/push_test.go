// SPDX-License-Identifier: Apache-2.0

package copy

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"

	"holdfast/test/kit"
)

var pushed = regexp.MustCompile(`(?m)^(\S+): digest: (sha256:[0-9a-f]{64}) size: [1-9][0-9]*$`)

func TestPushedImagesAreTheSameWhenTheyArePulled(t *testing.T) {
	d := live(t)
	reg := kit.StartRegistry(t, nil)
	id := d.Docker("images", "-q", "--no-trunc", image)
	for name, client := range clients {
		t.Run(name, func(t *testing.T) {
			repo := reg.Host + "/" + name + "/app"
			d.Docker("tag", image, repo+":1")
			out := run(t, client(d, "push", repo+":1"), nil)
			m := pushed.FindStringSubmatch(out)
			if m == nil || m[1] != "1" || m[2] != id || !strings.Contains(out, "The push refers to repository ["+repo+"]") || !strings.Contains(out, ": Pushed") && !strings.Contains(out, ": Mounted from ") {
				t.Errorf("pushed %s: %s", id, out)
			}
			if out := run(t, client(d, "push", repo+":1"), nil); !strings.Contains(out, "Layer already exists") && pushed.FindStringSubmatch(out) == nil {
				t.Errorf("pushed again: %s", out)
			}
			d.Docker("commit", d.Docker("create", image, "true"), repo+":2")
			d.Docker("tag", image, repo+":3")
			out = run(t, client(d, "push", "--all-tags", repo), nil)
			if m := pushed.FindAllStringSubmatch(out, -1); len(m) != 3 {
				t.Errorf("all tags: %s", out)
			}
			two := d.Docker("images", "-q", "--no-trunc", repo+":2")
			d.Docker("rmi", repo+":1", repo+":2", repo+":3")
			d.Docker("pull", "-a", repo)
			if a, b := d.Docker("images", "-q", "--no-trunc", repo+":1"), d.Docker("images", "-q", "--no-trunc", repo+":2"); a != id || b != two {
				t.Errorf("the pulled images are %s and %s, want %s and %s", a, b, id, two)
			}
			if out := d.Docker("run", "--rm", repo+":2", "echo", "it runs"); out != "it runs" {
				t.Errorf("says %q", out)
			}
			if r := d.TryDocker("push", repo+":none"); r.Code == 0 || !strings.Contains(r.Stderr, "tag does not exist: "+repo+":none") {
				t.Errorf("of none: %+v", r)
			}
		})
	}
	if told := events(d, "--filter", "event=push", "--format", "{{.Action}}"); strings.Count(told, "push") != 10 {
		t.Errorf("events: %q", told)
	}
}

func TestPushTellsTheDigestToPrograms(t *testing.T) {
	d := live(t)
	reg := kit.StartRegistry(t, nil)
	d.Docker("tag", image, reg.Host+"/app:1")
	res, err := d.HTTP().Post("http://d/images/"+reg.Host+"/app/push?tag=1", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	id, told := d.Docker("images", "-q", "--no-trunc", image), false
	for dec := json.NewDecoder(res.Body); ; {
		var m struct {
			Aux *struct {
				Tag, Digest string
				Size        int
			}
		}
		if err := dec.Decode(&m); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		told = told || m.Aux != nil && m.Aux.Tag == "1" && m.Aux.Digest == id && m.Aux.Size > 0
	}
	if !told {
		t.Error("the push reported no digest")
	}
}

func TestPushShowsItsCredentialsAndIsDeniedWithout(t *testing.T) {
	d := live(t)
	right := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:secret"))
	reg := kit.StartRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != right {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	ref := reg.Host + "/app:1"
	d.Docker("tag", image, ref)
	if r := d.TryDocker("push", ref); r.Code == 0 || !strings.Contains(r.Stderr, "denied: requested access to the resource is denied") {
		t.Errorf("without: %+v", r)
	}
	conf := `{"auths":{"` + reg.Host + `":{"auth":"` + base64.StdEncoding.EncodeToString([]byte("me:secret")) + `"}}}`
	if err := os.MkdirAll(d.Root+"/docker", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.Root+"/docker/config.json", []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := d.Docker("push", ref); pushed.FindString(out) == "" {
		t.Errorf("with: %s", out)
	}
}

func TestPushThatTheRegistryCutsOffFailsAndIsDoneAgain(t *testing.T) {
	d := live(t)
	var cut atomic.Bool
	reg := kit.StartRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/uploads/") && cut.Load() {
				_, _ = io.CopyN(io.Discard, r.Body, 1000)
				panic(http.ErrAbortHandler)
			}
			h.ServeHTTP(w, r)
		})
	})
	layer, err := random.Layer(8<<20, "application/vnd.docker.image.rootfs.diff.tar.gzip")
	if err != nil {
		t.Fatal(err)
	}
	ref := reg.Host + "/app:1"
	d.Load(ref, kit.Image(t, kit.Busybox(t, nil), func(*v1.Config) {}, layer))
	cut.Store(true)
	if r := d.TryDocker("push", ref); r.Code == 0 || !strings.Contains(r.Stderr, "failed to push") {
		t.Errorf("cut off: %+v", r)
	}
	cut.Store(false)
	if out := d.Docker("push", ref); pushed.FindString(out) == "" {
		t.Errorf("again: %s", out)
	}
}
