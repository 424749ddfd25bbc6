// SPDX-License-Identifier: Apache-2.0

package copy

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"holdfast/test/kit"
)

// TestLayerThatTheRegistryHasIsMountedAndNotSent: the daemon remembers for each
// layer from which repositories it was pulled and to which it was pushed. A
// push to another repository of the same registry then needs no upload of the
// layer.
func TestLayerThatTheRegistryHasIsMountedAndNotSent(t *testing.T) {
	var sent, mounted atomic.Int64
	reg := kit.StartRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/uploads/"):
				sent.Add(1)
			case r.Method == http.MethodPost && r.URL.Query().Get("mount") != "":
				mounted.Add(1)
			}
			h.ServeHTTP(w, r)
		})
	})
	ref := reg.Push("team/app:1", kit.Busybox(t, nil))
	d := kit.Start(t, kit.Options{})
	d.Docker("pull", ref)
	sent.Store(0)
	for _, to := range []string{"other/app:1", "third:1"} {
		mounted.Store(0)
		d.Docker("tag", ref, reg.Host+"/"+to)
		out := d.Docker("push", reg.Host+"/"+to)
		// The layer and the config.
		if n, m := sent.Load(), mounted.Load(); n != 0 || m != 2 || !strings.Contains(out, "Mounted from ") {
			t.Errorf("%s: %d blobs uploaded, %d mounts requested:\n%s", to, n, m, out)
		}
	}
}
