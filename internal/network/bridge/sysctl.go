// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Sysctl sets a value of the thread's network namespace if it differs, and reports
// whether it did. name is separated by slashes, because interface names may have
// dots.
func Sysctl(name, value string) (changed bool, err error) { return sysctl(name, value) }

// sysctl sets a value of the thread's network namespace if it differs, and
// reports whether it did. name is separated by slashes, because interface names
// may have dots.
func sysctl(name, value string) (changed bool, err error) {
	path := filepath.Join("/proc/sys", name)
	have, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("sysctl %s: %w", name, err)
	}
	if string(bytes.TrimSpace(have)) == value {
		return false, nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return false, fmt.Errorf("sysctl %s: %w", name, err)
	}
	return true, nil
}

// Forwards reports whether the host forwards packets of a family. If it does not,
// some lists the interfaces with forwarding switched on, whose packets it
// forwards all the same. A kernel without the family forwards nothing.
func Forwards(v6 bool) (all bool, some []string, err error) {
	dir, global := "/proc/sys/net/ipv4/conf", "/proc/sys/net/ipv4/ip_forward"
	if v6 {
		dir, global = "/proc/sys/net/ipv6/conf", "/proc/sys/net/ipv6/conf/all/forwarding"
	}
	on := func(path string) (bool, error) {
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		return string(bytes.TrimSpace(b)) == "1", err
	}
	if all, err = on(global); all || err != nil {
		return all, nil, err
	}
	names, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil, nil
	}
	if err != nil {
		return false, nil, err
	}
	for _, e := range names {
		name := e.Name()
		if name == "all" || name == "default" || name == "lo" {
			continue
		}
		one, err := on(filepath.Join(dir, name, "forwarding"))
		if err != nil {
			return false, nil, err
		}
		if one {
			some = append(some, name)
		}
	}
	return false, some, nil
}

// Forward switches forwarding on, for IPv4 and, if v6, for IPv6. It reports
// whether it was off.
func Forward(v6 bool) (changed bool, err error) {
	changed, err = sysctl("net/ipv4/ip_forward", "1")
	if err != nil || !v6 {
		return changed, err
	}
	if err := keepRouters(); err != nil {
		return changed, err
	}
	for _, conf := range []string{"default", "all"} {
		c, err := sysctl("net/ipv6/conf/"+conf+"/forwarding", "1")
		if err != nil {
			return changed, err
		}
		changed = changed || c
	}
	return changed, nil
}

// keepRouters makes the host accept router advertisements also while it forwards,
// on the interfaces on which it does so now. Otherwise a host that starts to
// forward ignores them and drops its default route at once (accept_ra in the
// kernel's ip-sysctl).
func keepRouters() error {
	dirs, err := filepath.Glob("/proc/sys/net/ipv6/conf/*")
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		name := filepath.Base(dir)
		if name == "all" || name == "default" || name == "lo" {
			continue
		}
		for file, want := range map[string]string{"forwarding": "0", "accept_ra": "1"} {
			have, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil || string(bytes.TrimSpace(have)) != want {
				name = "" // skip it; it may have been removed meanwhile
			}
		}
		if name == "" {
			continue
		}
		if _, err := sysctl("net/ipv6/conf/"+name+"/accept_ra", "2"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Filtered reports whether br_netfilter is loaded, so that frames between the
// ports of a bridge can be passed to the packet filter.
func Filtered() bool {
	_, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables")
	return err == nil
}
