// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/sys/capability"

	"holdfast/internal/errs"
)

// defaultCaps are the capabilities of an unprivileged container.
var defaultCaps = []string{
	"CAP_CHOWN",
	"CAP_DAC_OVERRIDE",
	"CAP_FSETID",
	"CAP_FOWNER",
	"CAP_MKNOD",
	"CAP_NET_RAW",
	"CAP_SETGID",
	"CAP_SETUID",
	"CAP_SETFCAP",
	"CAP_SETPCAP",
	"CAP_NET_BIND_SERVICE",
	"CAP_SYS_CHROOT",
	"CAP_KILL",
	"CAP_AUDIT_WRITE",
}

const allCaps = "ALL"

// normalizeCaps converts names to the form "CAP_X". It refuses names that the
// kernel does not know and capabilities that this process does not have.
func normalizeCaps(h Host, names []string) ([]string, error) {
	var out []string
	for _, name := range names {
		c := strings.ToUpper(name)
		if c == allCaps {
			out = append(out, c)
			continue
		}
		if !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		if !h.HasCap(c) {
			known := slices.ContainsFunc(capability.ListKnown(), func(k capability.Cap) bool { return capName(k) == c })
			if !known {
				return nil, errs.Invalid("unknown capability: %q", c)
			}
			return nil, errs.Invalid("capability not supported by your kernel or not available in the current environment: %q", c)
		}
		out = append(out, c)
	}
	return out, nil
}

// containerCaps returns the bounding set of a container.
func containerCaps(h Host, hc *container.HostConfig) ([]string, error) {
	if hc.Privileged {
		return slices.Clone(h.Caps), nil
	}
	drop, err := normalizeCaps(h, hc.CapDrop)
	if err != nil {
		return nil, errs.Invalid("invalid CapDrop: %v", err)
	}
	add, err := normalizeCaps(h, hc.CapAdd)
	if err != nil {
		return nil, errs.Invalid("invalid CapAdd: %v", err)
	}
	var caps []string
	switch {
	case slices.Contains(add, allCaps):
		caps = without(h.Caps, drop)
	case slices.Contains(drop, allCaps):
		caps = add
	default:
		// A default capability that this process does not have is left out, because
		// the runtime would fail on it.
		for _, c := range without(defaultCaps, drop) {
			if h.HasCap(c) {
				caps = append(caps, c)
			}
		}
		caps = append(caps, add...)
	}
	return dedupe(caps), nil
}

func without(list, drop []string) []string {
	var out []string
	for _, c := range list {
		if !slices.Contains(drop, c) {
			out = append(out, c)
		}
	}
	return out
}

func dedupe(list []string) []string {
	out := []string{}
	for _, c := range list {
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}
