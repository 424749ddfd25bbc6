package daemon

import (
	"context"
	"net/http"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine"
)

// ShimUpgrader is a Backend that can make the shims go on as another binary.
type ShimUpgrader interface {
	// UpgradeShims takes the daemon's own shim for an empty path. What can't be
	// upgraded is in the answer.
	UpgradeShims(ctx context.Context, binary string) ([]engine.ShimUpgrade, error)
}

// shimsUpgrade is the body of POST /holdfast/v1/shims/upgrade; it may be left
// out.
type shimsUpgrade struct {
	// Binary is the absolute path of the holdfast-shim to go on as.
	Binary string `json:"binary,omitempty"`
}

// shimsUpgraded is the answer.
type shimsUpgraded struct {
	Shims []engine.ShimUpgrade `json:"shims"`
}

func (h *handlers) upgradeShims(w http.ResponseWriter, r *wire.Request) error {
	var o shimsUpgrade
	if _, err := r.Decode(w, &o); err != nil {
		return err
	}
	list, err := h.backend.(ShimUpgrader).UpgradeShims(r.Context(), o.Binary)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, shimsUpgraded{Shims: wire.NonNil(list)})
}
