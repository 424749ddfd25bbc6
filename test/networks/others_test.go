// SPDX-License-Identifier: Apache-2.0

package networks

import (
	"strings"
	"testing"
	"time"
)

// Not in parallel: the policies apply to the whole host.
func TestHostWhoseFiltersDropForwardedPacketsIsNoObstacle(t *testing.T) {
	h := newHouse(t, nil)
	programs := []string{"iptables-nft", "iptables-legacy"}
	rules := func() string {
		var b strings.Builder
		for _, p := range programs {
			b.WriteString(h.host("sh", "-c", "PATH=$PATH:/usr/sbin "+p+" -S FORWARD; PATH=$PATH:/usr/sbin "+p+" -S "+h.d.Table))
		}
		return b.String()
	}
	for _, p := range programs {
		h.host("sh", "-c", "PATH=$PATH:/usr/sbin "+p+" -P FORWARD DROP")
		t.Cleanup(func() { h.host("sh", "-c", "PATH=$PATH:/usr/sbin "+p+" -P FORWARD ACCEPT") })
	}
	pid := h.machine("pol"+h.d.ID[3:], "198.18.3.1/24", "198.18.3.2/24")
	h.d.Docker("network", "create", "own")
	h.serve("ada", "--network", "own", "-p", "18080:80")
	h.run("bob", "--network", "own", image, "sleep", "9999")
	h.serve("cyd", "-p", "18081:80")
	other := h.address("cyd", "bridge")
	before := rules()
	h.always(func() {
		for port, want := range map[int]string{18080: "ada", 18081: "cyd"} {
			var got string
			err := inNamespace(pid, func() error {
				for end := time.Now().Add(5 * time.Second); got != want && time.Now().Before(end); {
					got = get("198.18.3.1", port)
				}
				return nil
			})
			if err != nil || got != want {
				t.Errorf("another machine requests a page from port %d: %q, %v", port, got, err)
			}
		}
		h.within("bob", func() error { return connect("198.18.3.2", 80, 5*time.Second) })
		h.reaches("bob", "ada", "ada")
		h.isolated("bob", other)
		if now := rules(); now != before {
			t.Errorf("the rules after:\n%s\nbefore:\n%s", now, before)
		}
	})
	h.d.Docker("rm", "-f", "ada", "bob")
	gone := "br-" + h.d.Docker("network", "inspect", "-f", "{{printf \"%.12s\" .Id}}", "own")
	if got := rules(); !strings.Contains(got, gone) {
		t.Fatalf("no rule names %s:\n%s", gone, got)
	}
	h.d.Docker("network", "rm", "own")
	if got := rules(); strings.Contains(got, gone) {
		t.Errorf("a rule refers to %s, which no longer exists:\n%s", gone, got)
	}
}
