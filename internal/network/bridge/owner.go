// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ownerPrefix begins the alias of a bridge, and of the host's end of a
// container's veth. The owner follows.
const ownerPrefix = "holdfast: "

// The kernel's IFALIASZ, which includes the terminating zero byte.
const maxAlias = 256

// alias returns the alias of a link (ip-link(8)) that records its owner.
func alias(owner string) string {
	text := ownerPrefix + owner
	if len(text) >= maxAlias {
		text = fmt.Sprintf("%ssha256:%x", ownerPrefix, sha256.Sum256([]byte(owner)))
	}
	return text
}

// Owned reports whether a link's alias names the owner.
func Owned(description, owner string) bool { return owner != "" && description == alias(owner) }

// Foreign reports whether a link's alias names another owner of this kind of
// engine. root is that owner's data root, or "" if the alias was too long to hold
// it.
func Foreign(description, owner string) (root string, foreign bool) {
	root, engines := strings.CutPrefix(description, ownerPrefix)
	if !engines || description == alias(owner) {
		return "", false
	}
	return root, true
}

// Description returns a link's alias, or "" if there is none or no such link.
func Description(name string) (string, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("interface %s: %w", name, err)
	}
	return link.Attrs().Alias, nil
}

// Own records the owner of a port. A missing port is not an error.
func Own(p Port, owner string) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.describe(p.Index, alias(owner)); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("interface %s: set alias: %w", p.Name, err)
	}
	return nil
}

func setOwner(h *netlink.Handle, link netlink.Link, owner string) (changed bool, err error) {
	if owner == "" || Owned(link.Attrs().Alias, owner) {
		return false, nil
	}
	alias := alias(owner)
	if err := h.LinkSetAlias(link, alias); err != nil {
		return false, fmt.Errorf("set alias: %w", err)
	}
	return true, nil
}
