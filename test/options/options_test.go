// SPDX-License-Identifier: Apache-2.0

// Package options tests that a container keeps the options with which it was
// created. Each key of daemon.json is changed under a running container. A
// reload with SIGHUP applies the key if it can be reloaded; otherwise the
// daemon is restarted. Meanwhile the container's port and log are used, and a
// new container must have the new value. It needs root.
package options

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"
)

func TestMain(m *testing.M) { kit.Main(m) }

// change is an option that gets another value.
type change struct {
	key string
	set map[string]any // the keys of daemon.json: the option, and other keys that it needs
	// hup is set if a reload applies the key. If it is not set, a reload must
	// refuse the change, and the daemon is restarted.
	hup bool
	// alone is set if the value can't be combined with those of the other
	// changes.
	alone bool
	// run are further options of the new container.
	run []string
	// check examines the new container, and the old one once more.
	check func(*house)
}

// house is a daemon with the container that must not be affected.
type house struct {
	*testing.T
	d      *kit.Daemon
	base   map[string]any
	probe  *kit.Prober
	before string
	lines  int
}

const image = "busybox:test"

// facts is the format of the properties that must not change.
const facts = `{{.Id}} {{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}} {{json .HostConfig}} {{json .Config}} ` +
	`{{json .NetworkSettings.Ports}} {{json .NetworkSettings.Networks}} {{.LogPath}} {{json .Mounts}}`

// writer is a command that serves a web page and writes numbered lines.
var writer = []string{"sh", "-c", "httpd -h /www; i=0; while :; do echo $i; i=$((i+1)); usleep 5000; done"}

// newHouse starts a daemon with the keys of base, and the old container. base
// may change the default keys, which are those of the kit.
func newHouse(t *testing.T, base func(d *kit.Daemon, keys map[string]any)) *house {
	h := &house{T: t, d: kit.New(t, kit.Options{LiveRestore: true})}
	d := h.d
	h.base = map[string]any{
		"data-root": d.DataRoot, "exec-root": d.ExecRoot, "bridge": d.Bridge, "bip": d.Address.String(), "cgroup-parent": d.Cgroup,
		"group": strconv.Itoa(os.Getegid()),
	}
	if base != nil {
		base(d, h.base)
	}
	d.WriteConfig(h.settings(nil))
	d.Start()
	h.d.Load(image, kit.Busybox(t, nil))
	h.d.Docker(append([]string{"run", "-d", "--name", "old", "-p", "127.0.0.1::80", image}, writer...)...)
	h.probe = kit.Probe(t, "http://"+h.d.Docker("port", "old", "80/tcp")+"/index.html")
	h.probe.WaitAnswer(t)
	h.before = h.d.Docker("inspect", "-f", facts, "old")
	return h
}

// settings returns the daemon's keys together with those of a change.
func (h *house) settings(set map[string]any) map[string]any {
	conf := map[string]any{"live-restore": true}
	maps.Copy(conf, h.base)
	maps.Copy(conf, set)
	return conf
}

type planned struct {
	Key, Reload, Restart, Why string
	Old, New                  any
}

func (h *house) plan() map[string]planned {
	h.Helper()
	var p struct{ Changes []planned }
	if err := json.Unmarshal([]byte(h.d.Holdfast("daemon", "reload", "--dry-run", "--format", "json")), &p); err != nil {
		h.Fatal(err)
	}
	out := map[string]planned{}
	for _, c := range p.Changes {
		out[c.Key] = c
	}
	return out
}

// apply makes a change in the way that the plan names.
func (h *house) apply(c change) {
	h.Helper()
	h.d.WriteConfig(h.settings(c.set))
	p, ok := h.plan()[c.key]
	switch {
	case !ok:
		h.Errorf("the plan %[2]v does not contain %[1]s", c.key, h.plan())
	case c.hup != (p.Reload == "live" || p.Reload == "new objects"):
		h.Errorf("the plan for a reload is %q", p.Reload)
	case p.Restart != "live" && p.Restart != "new objects":
		h.Errorf("the plan for a restart is %q", p.Restart)
	case !c.hup && p.Why == "":
		h.Error("the plan gives no reason why a reload refuses the change")
	}
	if c.hup {
		h.d.Hup()
	} else {
		h.d.Restart()
	}
}

// same checks that nothing of the old container has changed.
func (h *house) same() {
	h.Helper()
	if after := h.d.Docker("inspect", "-f", facts, "old"); after != h.before {
		h.Errorf("the old container before:\n%s\nafter:\n%s", h.before, after)
	}
	if r := h.probe.Report(); len(r.Failures) > 0 {
		h.Error(r)
	}
	asked := h.probe.Report().Answered
	h.probe.Wait(h, func(r kit.Report) bool { return r.Answered > asked+1 })
	h.log()
}

// log checks that the old container's log continues without a gap.
func (h *house) log() {
	h.Helper()
	read := func() []string { return strings.Split(h.d.Docker("logs", "old"), "\n") }
	lines := read()
	// The container writes a hundred lines per second on an idle machine.
	for late := time.Now().Add(20 * time.Second); len(lines) <= h.lines && time.Now().Before(late); {
		lines = read()
	}
	for i, l := range lines {
		if l != strconv.Itoa(i) {
			h.Errorf("line %d of the old container's log is %q", i, l)
			break
		}
	}
	if len(lines) <= h.lines {
		h.Errorf("the old container's log had %d lines and now has %d", h.lines, len(lines))
	}
	h.lines = len(lines)
}

// fresh starts a new container, requests a page from its published port, and
// runs the change's check.
func (h *house) fresh(c change) {
	h.Helper()
	args := append([]string{"run", "-d", "--name", "new", "-p", "127.0.0.1::80"}, c.run...)
	h.d.Docker(append(append(args, image), writer...)...)
	h.answers("new")
	if c.check != nil {
		c.check(h)
	}
	h.d.Docker("rm", "-f", "new")
}

// answers waits until the server behind a container's published port answers.
func (h *house) answers(name string) {
	h.Helper()
	p := kit.Probe(h, "http://"+h.d.Docker("port", name, "80/tcp")+"/index.html")
	p.WaitAnswer(h)
	p.Stop()
}

func (h *house) inspect(name, format string) string {
	h.Helper()
	return h.d.Docker("inspect", "-f", format, name)
}

func (h *house) in(name string, command ...string) string {
	h.Helper()
	return h.d.Docker(append([]string{"exec", name}, command...)...)
}

// want compares a value with the wanted one.
func (h *house) want(what, got, want string) {
	h.Helper()
	if got != want {
		h.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func (h *house) address(name string) netip.Addr {
	h.Helper()
	a, err := netip.ParseAddr(h.inspect(name, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"))
	if err != nil {
		h.Fatal(err)
	}
	return a
}

// inspected is a check of both containers with an inspect format.
func inspected(format, old, new string) func(*house) {
	return func(h *house) {
		h.Helper()
		h.want("new container, "+format, h.inspect("new", format), new)
		h.want("old container, "+format, h.inspect("old", format), old)
	}
}

// ran is a check of a command's output in both containers.
func ran(old, new string, command ...string) func(*house) {
	return func(h *house) {
		h.Helper()
		h.want(fmt.Sprint("new container, ", command), h.in("new", command...), new)
		h.want(fmt.Sprint("old container, ", command), h.in("old", command...), old)
	}
}

// info is a check of docker info.
func info(format, want string) func(*house) {
	return func(h *house) {
		h.Helper()
		h.want("info "+format, h.d.Docker("info", "-f", format), want)
	}
}

func all(checks ...func(*house)) func(*house) {
	return func(h *house) {
		h.Helper()
		for _, c := range checks {
			c(h)
		}
	}
}

// walk makes the changes one at a time, undoes each, then makes all together.
// At last it restarts the old container, which must come back as it was
// created.
func walk(h *house, changes []change, again func(*house)) {
	together := map[string]any{}
	hup := true
	for _, c := range changes {
		h.Run(c.key, func(t *testing.T) {
			sub := *h
			sub.T = t
			sub.apply(c)
			sub.fresh(c)
			sub.same()
			h.lines = sub.lines
		})
		if c.alone {
			continue
		}
		maps.Copy(together, c.set)
		hup = hup && c.hup
	}
	h.Run("together", func(t *testing.T) {
		sub := *h
		sub.T = t
		sub.d.WriteConfig(sub.settings(nil))
		take := sub.d.Restart
		if hup {
			take = sub.d.Hup
		}
		take()
		sub.d.WriteConfig(sub.settings(together))
		plan := sub.plan()
		for _, c := range changes {
			if _, ok := plan[c.key]; !ok && !c.alone {
				t.Errorf("the plan does not contain %s: %v", c.key, slices.Sorted(maps.Keys(plan)))
			}
		}
		take()
		sub.same()
		h.lines = sub.lines
	})
	if r := h.probe.Stop(); len(r.Failures) > 0 {
		h.Error(r)
	}
	h.Run("started again", func(t *testing.T) {
		sub := *h
		sub.T = t
		sub.d.Docker("restart", "-t", "0", "old")
		sub.answers("old")
		if again != nil {
			again(&sub)
		}
	})
}
