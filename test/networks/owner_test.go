// SPDX-License-Identifier: Apache-2.0

package networks

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"
)

// mark returns the alias of an interface, which names the data root that owns
// it.
func (h *house) mark(link string) string {
	h.Helper()
	_, alias, _ := strings.Cut(h.host("ip", "link", "show", "dev", link), "alias ")
	return strings.TrimSpace(alias)
}

func TestDaemonStartsOverItsContainersOnABridgeThatAnotherDataRootMade(t *testing.T) {
	t.Parallel()
	h := newHouse(t, map[string]any{"live-restore": true})
	h.d.Kill9()
	// Another data root, as when a user moves or deletes the first one.
	if err := os.RemoveAll(h.d.DataRoot); err != nil {
		t.Fatal(err)
	}
	old := h.mark(h.d.Bridge)
	h.d.DataRoot = h.d.Root + "/moved"
	h.d.Start()
	h.d.Load(image, kit.Busybox(t, nil))
	h.serve("ada", "-p", "18190:80")
	if got := h.mark(h.d.Bridge); got == old {
		t.Errorf("the bridge without endpoints still belongs to the first data root: %q", got)
	}
	for range 2 {
		h.d.Kill9()
		h.d.Start()
		h.equal("published port", get("127.0.0.1", 18190), "ada")
	}
}

func TestDaemonsShareABridge(t *testing.T) {
	t.Parallel()
	a := newHouse(t, nil)
	b := newHouse(t, map[string]any{"bridge": a.d.Bridge})
	a.serve("ada", "-p", "18191:80")
	b.serve("bob", "-p", "18192:80")
	c := a.address("ada", "bridge")
	check := func(when string) {
		t.Helper()
		for port, want := range map[int]string{18191: "ada", 18192: "bob"} {
			if got := get("127.0.0.1", port); got != want {
				t.Errorf("%s: the port %d answers %q, want %q", when, port, got, want)
			}
		}
		if got := a.in("ada", "ip", "route"); !strings.Contains(got, "default via "+a.d.Address.Addr().String()) {
			t.Errorf("%s: %s", when, got)
		}
		if err := connect(c, 80, 5*time.Second); err != nil {
			t.Errorf("%s: the host does not reach the container: %v", when, err)
		}
	}
	check("at first")
	// First one daemon, then the other, then both at once, in either order.
	for i, order := range [][]*house{{a}, {b}, {a, b}, {b, a}} {
		for _, h := range order {
			h.d.Kill9()
		}
		check(fmt.Sprint("without daemons ", i))
		for _, h := range order {
			h.d.Start()
			check(fmt.Sprint("with some ", i))
		}
	}
	// Side by side, as at a boot: each finds the bridge while the other sets it up.
	for i := range 4 {
		a.d.Kill9()
		b.d.Kill9()
		started := make(chan error, 2)
		for _, h := range []*house{a, b} {
			go func() { started <- h.d.TryStart() }()
		}
		for range 2 {
			if err := <-started; err != nil {
				t.Fatalf("side by side %d: %v", i, err)
			}
		}
		check(fmt.Sprint("side by side ", i))
	}
	if got := a.mark(a.d.Bridge); !strings.Contains(got, a.d.DataRoot) {
		t.Errorf("the bridge is %q", got)
	}
	// A data root without an endpoint on the bridge loses its ownership.
	a.d.Docker("rm", "-f", "ada")
	a.d.Term()
	b.d.Kill9()
	b.d.Start()
	if got := b.mark(a.d.Bridge); !strings.Contains(got, b.d.DataRoot) {
		t.Errorf("the bridge of a data root without endpoints is marked %q", got)
	}
	if got := a.host("ip", "-o", "addr", "show", "dev", a.d.Bridge); strings.Contains(got, a.d.Address.Addr().String()+"/") {
		t.Errorf("the bridge still has that data root's address: %s", got)
	}
	// When that data root's daemon returns, it does not own the bridge.
	a.d.Start()
	a.serve("ada", "-p", "18191:80")
	c = a.address("ada", "bridge")
	check("with the other as the owner")
	a.d.Kill9()
	b.d.Kill9()
	b.d.Start()
	a.d.Start()
	check("with the other as the owner, again")
}

// A network namespace exists as long as any process of the host has it open.
// The interface in it must not answer for the address of the removed container,
// because another container may get that address.
func TestInterfaceGoesWithItsContainerWhileItsNamespaceIsHeld(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.serve("ada")
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", h.pids["ada"]))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	h.serve("bob")
	kept := h.address("bob", "bridge")
	ports := func() int { return strings.Count(h.host("ip", "-o", "link", "show", "master", h.d.Bridge), "\n") }
	if n := ports(); n != 2 {
		t.Fatalf("%d interfaces on the bridge", n)
	}
	h.d.Docker("rm", "-f", "ada")
	kit.Eventually(t, "the removed container's interface is removed", func() bool { return ports() <= 1 })
	h.equal("bob, whose container runs", h.fetch("bob", kept), "bob")
}
