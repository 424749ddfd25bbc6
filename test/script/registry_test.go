// SPDX-License-Identifier: Apache-2.0

package script

import (
	"net/http"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/rogpeppe/go-internal/testscript"

	"holdfast/test/kit"
)

// registry starts a registry with
//
//	team/app:1    an index for this machine's architecture and another
//	team/app:2    an image that shares the layers of team/app:1
//	team/other:1  an image for another architecture only
//	library/web:1 for a mirror
//
// $REGISTRY is its name, $DIGEST the digest of team/app:1. With USER:PASSWORD
// it accepts only that user.
func (s *scene) registry(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 1 {
		ts.Fatalf("usage: registry [USER:PASSWORD]")
	}
	locked := make(chan struct{})
	var between func(http.Handler) http.Handler
	if len(args) == 1 {
		user, password, _ := strings.Cut(args[0], ":")
		between = func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				select {
				case <-locked:
					if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
						w.Header().Set("WWW-Authenticate", `Basic realm="team"`)
						w.Header().Set("Content-Type", "application/json")
						w.WriteHeader(http.StatusUnauthorized)
						w.Write([]byte(`{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`))
						return
					}
				default: // the registry is still being filled
				}
				next.ServeHTTP(w, r)
			})
		}
	}
	reg := kit.StartRegistry(s.t, between)
	foreign := "s390x"
	app := kit.Busybox(s.t, func(c *v1.Config) { c.Cmd = []string{"echo", "this is app 1"} })
	other, err := mutate.ConfigFile(app, &v1.ConfigFile{OS: "linux", Architecture: foreign, RootFS: rootFS(ts, app)})
	ts.Check(err)
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: foreign}}},
		mutate.IndexAddendum{Add: app, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}},
	)
	reg.PushIndex("team/app:1", index)
	reg.Push("team/app:2", kit.Image(s.t, app, func(c *v1.Config) { c.Cmd = []string{"cat", "/second"} },
		kit.Layer(s.t, kit.File{Name: "second", Body: []byte("this is app 2\n")})))
	reg.Push("team/other:1", other)
	reg.Push("library/web:1", app)
	digest, err := index.Digest()
	ts.Check(err)
	close(locked)
	ts.Setenv("REGISTRY", reg.Host)
	ts.Setenv("DIGEST", digest.String())
}

func rootFS(ts *testscript.TestScript, img v1.Image) v1.RootFS {
	cf, err := img.ConfigFile()
	ts.Check(err)
	return cf.RootFS
}
