package bridge

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
)

// ownerPrefix begins the alias of a bridge that was made here; whose it is
// follows.
const ownerPrefix = "holdfast: "

// The kernel's IFALIASZ, with the zero byte.
const maxAlias = 256

// Owner is whose a bridge is, by Bridge.Owner; empty is nobody's, or there is
// no such bridge.
func Owner(name string) (string, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("bridge %s: %w", name, err)
	}
	owner, ours := strings.CutPrefix(link.Attrs().Alias, ownerPrefix)
	if !ours {
		return "", nil
	}
	return owner, nil
}

func setOwner(h *netlink.Handle, link netlink.Link, owner string) (changed bool, err error) {
	alias := ownerPrefix + owner
	if owner == "" || len(alias) >= maxAlias || link.Attrs().Alias == alias {
		return false, nil
	}
	if err := h.LinkSetAlias(link, alias); err != nil {
		return false, fmt.Errorf("set alias: %w", err)
	}
	return true, nil
}
