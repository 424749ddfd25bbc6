package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// sysctl sets a value of the thread's network namespace if it is another, and
// reports whether it was. name is with slashes, because interfaces have dots.
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

// Forward lets the host forward packets of IPv4 and, if v6, of IPv6. It
// reports whether that was not so already.
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

// keepRouters lets the host go on hearing of its routers, by the interfaces by
// which it does. A host that forwards stops otherwise, and forgets its default
// route at once (accept_ra in the kernel's ip-sysctl).
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
				name = "" // or it has gone meanwhile
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

// Filtered reports whether frames between the ports of a bridge can be shown
// to the packet filter: br_netfilter is loaded.
func Filtered() bool {
	_, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables")
	return err == nil
}
