// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"strconv"
	"strings"

	"holdfast/internal/errs"
)

// Security holds the parsed values of --security-opt.
type Security struct {
	NoNewPrivileges *bool
	// Seccomp is "", "builtin", "unconfined" or the JSON text of a profile.
	Seccomp               string
	AppArmor              string // name of a profile, "" means the default
	Labels                []string
	SystemPathsUnconfined bool
	WritableCgroups       *bool
}

// ParseSecurityOpts parses HostConfig.SecurityOpt. Later entries win. The
// separator is "=", or ":" as very old clients send it.
func ParseSecurityOpts(opts []string) (Security, error) {
	var s Security
	yes := true
	for _, opt := range opts {
		switch opt {
		case "no-new-privileges":
			s.NoNewPrivileges = &yes
			continue
		case "writable-cgroups":
			s.WritableCgroups = &yes
			continue
		case "disable":
			s.Labels = append(s.Labels, "disable")
			continue
		}
		k, v, ok := strings.Cut(opt, "=")
		if !ok {
			k, v, ok = strings.Cut(opt, ":")
		}
		if !ok {
			return s, errs.Invalid("invalid --security-opt 1: %q", opt)
		}
		switch k {
		case "label":
			s.Labels = append(s.Labels, v)
		case "apparmor":
			s.AppArmor = v
		case "seccomp":
			s.Seccomp = v
		case "systempaths":
			if v != "unconfined" {
				return s, errs.Invalid("invalid --security-opt 2: %q", opt)
			}
			s.SystemPathsUnconfined = true
		case "no-new-privileges", "writable-cgroups":
			b, err := strconv.ParseBool(v)
			if err != nil {
				return s, errs.Invalid("invalid --security-opt 2: %q", opt)
			}
			if k == "no-new-privileges" {
				s.NoNewPrivileges = &b
			} else {
				s.WritableCgroups = &b
			}
		default:
			return s, errs.Invalid("invalid --security-opt 2: %q", opt)
		}
	}
	return s, nil
}
