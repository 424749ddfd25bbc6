// SPDX-License-Identifier: Apache-2.0

package options

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// moveExecRoot points the kit to another exec root.
func moveExecRoot(d *kit.Daemon, root string) {
	d.ExecRoot, d.Socket, d.Host = root, root+"/holdfast.sock", "unix://"+root+"/holdfast.sock"
}

func TestContainerKeepsItsExecRootUntilItStops(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	d := h.d
	id := h.inspect("old", "{{.Id}}")
	first, second := d.ExecRoot, d.Root+"/run2"
	d.WriteConfig(h.settings(map[string]any{"exec-root": second}))
	if p := h.plan()["exec-root"]; p.Reload != "needs a restart" || p.Restart != "live" || !strings.Contains(p.Why, "keeps its run directory") {
		t.Errorf("the plan is %+v", p)
	}
	d.Term()
	moveExecRoot(d, second)
	d.Start()
	h.same()
	h.want("a command in the old container", h.in("old", "echo", "here"), "here")
	if _, err := os.Stat(filepath.Join(first, "shim", id, "shim.sock")); err != nil {
		t.Errorf("the old container's shim has moved: %v", err)
	}
	h.fresh(change{})
	d.Kill9()
	d.Start()
	h.same()
	if r := h.probe.Stop(); len(r.Failures) > 0 {
		t.Error(r)
	}

	// A container that is started now uses the new exec root, and nothing is
	// left below the old one.
	d.Docker("restart", "-t", "0", "old")
	h.answers("old")
	if _, err := os.Stat(filepath.Join(second, "shim", id, "shim.sock")); err != nil {
		t.Error(err)
	}
	for _, pattern := range []string{"/shim/*", "/runtime/*/*"} {
		if left, _ := filepath.Glob(first + pattern); len(left) > 0 {
			t.Errorf("left below the old exec root: %v", left)
		}
	}
}

func TestRemovedContainerLeavesNothingInTheExecRootThatItKept(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	d := h.d
	first, second := d.ExecRoot, d.Root+"/run2"
	d.WriteConfig(h.settings(map[string]any{"exec-root": second}))
	d.Term()
	moveExecRoot(d, second)
	d.Start()
	h.probe.Stop()
	d.Docker("rm", "-f", "old")
	for _, pattern := range []string{"/shim/*", "/runtime/*/*"} {
		if left, _ := filepath.Glob(first + pattern); len(left) > 0 {
			t.Errorf("left below the old exec root: %v", left)
		}
	}
}

// refused starts the daemon with a change that must be refused. It checks that
// the container is unaffected, also after the change is undone.
func refused(h *house, set map[string]any, words ...string) {
	h.Helper()
	d := h.d
	d.WriteConfig(h.settings(set))
	d.Term()
	err := d.TryStart()
	if err == nil {
		h.Fatal("the change was not refused")
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			h.Errorf("the error does not contain %q: %v", w, err)
		}
	}
	asked := h.probe.Report().Answered
	h.probe.Wait(h, func(r kit.Report) bool { return r.Answered > asked+5 })
	d.WriteConfig(h.settings(nil))
	d.Start()
	h.same()
}

func TestDataRootIsRefusedWhereItsContainersWouldBeTakenForLeftOvers(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	d := h.d
	other := map[string]any{"data-root": d.Root + "/data2"}
	d.WriteConfig(h.settings(other))
	if p := h.plan()["data-root"]; p.Reload != "needs a restart" || p.Restart != "error" || !strings.Contains(p.Why, "1 container of the old data root") {
		t.Errorf("the plan is %+v", p)
	}
	refused(h, other, "running containers of the data root "+d.DataRoot, "go on running", "exec-root")
	// With another exec root as well, it is a separate engine, which may even
	// use the same bridge: see TestDaemonsShareABridge. It does not know the
	// containers of the old data root, and those run on.
	other["exec-root"] = d.Root + "/run2"
	first := d.ExecRoot
	bridge := "hg" + d.Bridge[2:]
	t.Cleanup(func() { removeBridge(t, bridge) })
	subnet := second(d)
	other["bridge"], other["bip"] = bridge, subnet.String()
	d.WriteConfig(h.settings(other))
	d.Term()
	oldData := d.DataRoot
	moveExecRoot(d, d.Root+"/run2")
	d.DataRoot = d.Root + "/data2"
	d.Start()
	if got := d.Docker("ps", "-aq"); got != "" {
		t.Errorf("the new data root has containers: %s", got)
	}
	d.Load(image, kit.Busybox(t, nil))
	h.fresh(change{})
	d.Term()
	d.WriteConfig(h.settings(nil))
	moveExecRoot(d, first)
	d.DataRoot = oldData
	d.Start()
	h.same()
	if r := h.probe.Stop(); len(r.Failures) > 0 {
		t.Error(r)
	}
}

func TestOptionThatCantBeUsedIsRefusedWithNothingTouched(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	d := h.d
	set := map[string]any{"userns-remap": "default", "debug": true}
	d.WriteConfig(h.settings(set))
	r := d.TryHoldfast("daemon", "reload", "--dry-run")
	if r.Code != 1 || !strings.Contains(r.Stdout, "userns-remap") || !strings.Contains(r.Stderr, "neither a reload nor a start") || !strings.Contains(r.Stderr, "user namespaces are not part of this release") {
		t.Errorf("%+v", r)
	}
	if r = d.TryHoldfast("daemon", "reload"); r.Code != 1 || !strings.Contains(r.Stderr, "nothing was changed: userns-remap can't be used") {
		t.Errorf("%+v", r)
	}
	h.want("debug", d.Docker("info", "-f", "{{.Debug}}"), "false")
	refused(h, set, "userns-remap can't be used")
	if r := h.probe.Stop(); len(r.Failures) > 0 {
		t.Error(r)
	}
}

func TestDryRunPrintsATableAndChangesNothing(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{LiveRestore: true, Config: map[string]any{"mtu": 1500}})
	d.WriteConfig(map[string]any{"live-restore": true, "mtu": 1400, "labels": []string{"rack=7"}, "dns": []string{"192.0.2.53"}})
	out := d.Holdfast("daemon", "reload", "--dry-run")
	for _, line := range []string{
		"KEY OLD NEW BY RELOAD BY RESTART NOTE",
		"dns - [\"192.0.2.53\"] new objects new objects a container keeps its name servers across restarts",
		"labels - [\"rack=7\"] live live",
		"mtu 1500 1400 needs a restart new objects applied when the daemon starts; a running container keeps the MTU of its interface",
	} {
		found := false
		for l := range strings.Lines(out) {
			found = found || strings.Join(strings.Fields(l), " ") == line
		}
		if !found {
			t.Errorf("no line %q in\n%s", line, out)
		}
	}
	if got := d.Docker("info", "-f", "{{json .Labels}}"); got != "[]" && got != "null" {
		t.Errorf("the dry run has set the labels %s", got)
	}
	// A real reload prints the same plan and applies it.
	if again := d.Holdfast("daemon", "reload"); again != out {
		t.Errorf("the reload printed\n%s\nand the dry run printed\n%s", again, out)
	}
	if got := d.Docker("info", "-f", "{{json .Labels}}"); got != `["rack=7"]` {
		t.Errorf("the reload has set the labels %s", got)
	}
	if got := d.Holdfast("daemon", "reload", "--dry-run"); !strings.Contains(got, "mtu") || strings.Contains(got, "labels") {
		t.Errorf("what is left:\n%s", got)
	}
}
