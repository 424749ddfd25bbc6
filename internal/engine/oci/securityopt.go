package oci

import (
	"strconv"
	"strings"
)

// Security is what --security-opt asks for.
type Security struct {
	NoNewPrivileges *bool
	// Seccomp is "", "builtin", "unconfined" or the JSON text of a profile.
	Seccomp               string
	AppArmor              string // name of a profile, "" is the default
	Labels                []string
	SystemPathsUnconfined bool
	WritableCgroups       *bool
}

// ParseSecurityOpts reads HostConfig.SecurityOpt. Later entries win. The
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
			return s, invalid("invalid --security-opt 1: %q", opt)
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
				return s, invalid("invalid --security-opt 2: %q", opt)
			}
			s.SystemPathsUnconfined = true
		case "no-new-privileges", "writable-cgroups":
			b, err := strconv.ParseBool(v)
			if err != nil {
				return s, invalid("invalid --security-opt 2: %q", opt)
			}
			if k == "no-new-privileges" {
				s.NoNewPrivileges = &b
			} else {
				s.WritableCgroups = &b
			}
		default:
			return s, invalid("invalid --security-opt 2: %q", opt)
		}
	}
	return s, nil
}
