// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"net/http"
	"path/filepath"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine"
)

// ShimUpgrader is a Backend that can re-exec the shims with another binary.
type ShimUpgrader interface {
	// UpgradeShims upgrades the shims to a binary. An empty path means the
	// daemon's own shim. The answer includes shims that could not be upgraded.
	UpgradeShims(ctx context.Context, binary string) ([]engine.ShimUpgrade, error)
}

// shimsUpgrade is the body of POST /holdfast/v1/shims/upgrade; it may be left
// out.
type shimsUpgrade struct {
	// Binary is the absolute path of the holdfast-shim to re-exec.
	Binary string `json:"binary,omitempty"`
}

// shimsUpgraded is the answer to POST /holdfast/v1/shims/upgrade.
type shimsUpgraded struct {
	Shims []engine.ShimUpgrade `json:"shims"`
}

func (h *handlers) upgradeShims(w http.ResponseWriter, r *wire.Request) error {
	var o shimsUpgrade
	if _, err := r.Decode(w, &o); err != nil {
		return err
	}
	if err := absolute(o.Binary); err != nil {
		return err
	}
	list, err := h.backend.(ShimUpgrader).UpgradeShims(r.Context(), o.Binary)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, shimsUpgraded{Shims: wire.NonNil(list)})
}

// absolute refuses a relative path, which would depend on the daemon's working
// directory. An empty path is accepted.
func absolute(binary string) error {
	if binary != "" && !filepath.IsAbs(binary) {
		return wire.Invalid("invalid binary %q: want an absolute path", binary)
	}
	return nil
}
