// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// The shim of a container is killed while the daemon lives. The container runs
// on, and can be stopped and removed.
func TestContainerOutlivesItsShim(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		end  func(d *kit.Daemon)
		left string
	}{
		{"stop", func(d *kit.Daemon) { d.Holdfast("stop", "-t", "1", "web") }, "exited"},
		{"kill", func(d *kit.Daemon) {
			d.Holdfast("kill", "web")
			d.Holdfast("wait", "web")
		}, "exited"},
		{"remove", func(d *kit.Daemon) { d.Holdfast("rm", "-f", "-v", "web") }, "gone"},
		{"restart", func(d *kit.Daemon) { d.Holdfast("restart", "-t", "0", "web") }, "running"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := live(t)
			p := kit.Probe(t, web(t, d, "web", "-v", "/data"))
			p.WaitAnswer(t)
			before := d.Inspect("web")
			kit.Kill(t, kit.Shims(t, before.ID)[0])
			if !kit.Alive(before.State.Pid) {
				t.Fatal("the container died with its shim")
			}
			kit.Eventually(t, "the daemon reports the lost shim", func() bool {
				return strings.Contains(d.Log(), "the container runs without its shim")
			})
			if s := d.Inspect("web").State; !s.Running || s.Pid != before.State.Pid || s.StartedAt != before.State.StartedAt {
				t.Errorf("was %+v, is %+v", before.State, s)
			}
			noFailure(t, p)
			pid := d.Pid()
			c.end(d)
			if got := status(d, "web"); got != c.left {
				t.Errorf("the container is %s, want %s", got, c.left)
			}
			if kit.Alive(before.State.Pid) {
				t.Error("the process still runs")
			}
			if !d.Running() || d.Pid() != pid {
				t.Error("the daemon did not survive the death of the shim")
			}
		})
	}
}

// The shim was killed while no daemon lived.
func TestContainerWithoutAShimIsFoundByTheNextDaemon(t *testing.T) {
	t.Parallel()
	d := live(t)
	p := kit.Probe(t, web(t, d, "web"))
	p.WaitAnswer(t)
	before := d.Inspect("web")
	d.Kill9()
	kit.Kill(t, kit.Shims(t, before.ID)[0])
	d.Start()
	c := d.Inspect("web")
	if !c.State.Running || c.State.Pid != before.State.Pid || c.State.StartedAt != before.State.StartedAt {
		t.Errorf("was %+v, is %+v", before.State, c.State)
	}
	noFailure(t, p)
	d.Holdfast("rm", "-f", "web")
	if kit.Alive(before.State.Pid) {
		t.Error("the process still runs")
	}
}

// The shim is killed in the middle of a stop. The container is stopped
// nevertheless.
func TestStopGoesOnWhenTheShimIsKilledInIt(t *testing.T) {
	t.Parallel()
	d := live(t)
	d.Holdfast("run", "-d", "--name", "deaf", "--stop-timeout", "1", image, "sh", "-c", "trap 'touch /asked' TERM; while :; do sleep 0.02; done")
	c := d.Inspect("deaf")
	stop, _ := background(t, d, "stop", "deaf")
	if err := stop.Start(); err != nil {
		t.Fatal(err)
	}
	kit.Eventually(t, "the container is asked to stop", func() bool {
		_, err := os.Stat(d.DataRoot + "/containers/" + c.ID + "/upper/asked")
		return err == nil
	})
	kit.Kill(t, kit.Shims(t, c.ID)[0])
	if err := stop.Wait(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if kit.Alive(c.State.Pid) {
		t.Error("the process still runs")
	}
	if got := status(d, "deaf"); got != "exited" {
		t.Errorf("the container is %s", got)
	}
}

// A container whose record can't be read is not managed, but its process runs
// on. Other containers are not affected.
func TestContainerWhoseRecordCantBeReadIsLeftAlone(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(spec []byte) []byte{
		"cut short": func(spec []byte) []byte { return spec[:len(spec)/2] },
		"newer": func(spec []byte) []byte {
			var s map[string]any
			_ = json.Unmarshal(spec, &s)
			s["schema"] = 99
			spec, _ = json.Marshal(s)
			return spec
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := live(t)
			p := kit.Probe(t, web(t, d, "broken", "-v", "/data", "-v", "named:/named"))
			p.WaitAnswer(t)
			c := d.Inspect("broken")
			d.Holdfast("run", "-d", "--name", "other", image, "sleep", "1000") // so that the image stays in use
			other := identity(t, d, "other")
			path := d.DataRoot + "/containers/" + c.ID + "/spec.json"
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			d.Kill9()
			broken := damage(whole)
			if err := os.WriteFile(path, broken, 0o600); err != nil {
				t.Fatal(err)
			}
			d.Start()
			if after := identity(t, d, "other"); after != other {
				t.Errorf("the other container was %s and is %s", other, after)
			}
			if got := status(d, "broken"); got != "gone" {
				t.Errorf("the container without a readable record is %s", got)
			}
			if log := d.Log(); !strings.Contains(log, path) || !strings.Contains(log, "left as it is") {
				t.Error("the log does not name the file")
			}
			for _, what := range []string{"container", "image", "volume", "system"} {
				d.TryHoldfast(what, "prune", "-f") // refused where it could remove resources of the unreadable container
			}
			d.TryHoldfast("volume", "prune", "-a", "-f")
			for range 3 { // the unreadable container's address, port and layers must stay reserved
				d.Holdfast("rm", "-f", d.Holdfast("run", "-d", image, "sleep", "1000"))
			}
			if !kit.Alive(c.State.Pid) {
				t.Error("its process was killed")
			}
			if now, err := os.ReadFile(path); err != nil || string(now) != string(broken) {
				t.Errorf("its record was changed: %v", err)
			}
			noFailure(t, p)
			// With its record repaired, the next daemon manages the container
			// again.
			d.Kill9()
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			d.Start()
			again := d.Inspect("broken")
			if again.State.Pid != c.State.Pid || again.State.StartedAt != c.State.StartedAt {
				t.Errorf("was %+v, is %+v", c.State, again.State)
			}
			if got := d.Holdfast("exec", "broken", "ls", "-d", "/data", "/named"); got != "/data\n/named" {
				t.Errorf("its volumes: %q", got)
			}
		})
	}
}
