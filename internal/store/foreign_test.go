// SPDX-License-Identifier: Apache-2.0

package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestDataRootOfAnotherEngineIsRefused(t *testing.T) {
	for path, whose := range map[string]string{
		"containers/0123/hostconfig.json":          "Docker",
		"image/overlay2/repositories.json":         "Docker",
		"image/overlay2/distribution/diffid/x":     "Docker",
		"containerd/daemon/x":                      "Docker",
		"engine-id":                                "Docker",
		"network/files/local-kv.db":                "Docker",
		"overlay-images/images.json":               "Podman",
		"io.containerd.metadata.v1.bolt/meta.db":   "containerd",
		"containers/0123/spec.json":                "",
		"images/io.containerd.metadata.v1.bolt/x":  "",
		"volumes/engine-id/_data/engine-id":        "",
		"containers/0123/mounts/x/hostconfig.json": "",
	} {
		// As a pattern this name would match other names.
		root := filepath.Join(t.TempDir(), "data [a-z]*")
		full := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		err := CheckForeign(root)
		switch {
		case whose == "" && err != nil:
			t.Errorf("%s: %v", path, err)
		case whose != "" && (!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), whose+"'s") || !strings.Contains(err.Error(), `"data-root"`)):
			t.Errorf("%s: got %v, want a refusal that names %s and what to do", path, err, whose)
		}
		// A data root with containers of ours is accepted.
		own := filepath.Join(root, "containers/4567/spec.json")
		if err := os.MkdirAll(filepath.Dir(own), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(own, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := CheckForeign(root); err != nil {
			t.Errorf("%s, with a container of ours: %v", path, err)
		}
	}
	if err := CheckForeign(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Error(err)
	}
}
