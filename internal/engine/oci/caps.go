package oci

import (
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/sys/capability"
)

// defaultCaps are those of an unprivileged container.
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

// normalizeCaps brings names to the form "CAP_X" and refuses what the kernel
// doesn't know or this process can't give.
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
				return nil, invalid("unknown capability: %q", c)
			}
			return nil, invalid("capability not supported by your kernel or not available in the current environment: %q", c)
		}
		out = append(out, c)
	}
	return out, nil
}

// containerCaps are the capabilities of a container, its bounding set.
func containerCaps(h Host, hc *container.HostConfig) ([]string, error) {
	if hc.Privileged {
		return slices.Clone(h.Caps), nil
	}
	drop, err := normalizeCaps(h, hc.CapDrop)
	if err != nil {
		return nil, invalid("invalid CapDrop: %v", err)
	}
	add, err := normalizeCaps(h, hc.CapAdd)
	if err != nil {
		return nil, invalid("invalid CapAdd: %v", err)
	}
	var caps []string
	switch {
	case slices.Contains(add, allCaps):
		caps = without(h.Caps, drop)
	case slices.Contains(drop, allCaps):
		caps = add
	default:
		// A default that this process lacks itself can't be given; the
		// container goes without, as the runtime would fail over it.
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
