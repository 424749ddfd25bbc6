// SPDX-License-Identifier: Apache-2.0

package security

import (
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"holdfast/test/kit"
)

// confinements are the flags whose configurations are compared.
var confinements = []struct {
	name  string
	flags []string
}{
	{"plain", nil},
	{"privileged", []string{"--privileged"}},
	{"added and dropped capabilities", []string{"--cap-add", "SYS_ADMIN", "--cap-drop", "CHOWN"}},
	{"all capabilities dropped", []string{"--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE"}},
	{"all capabilities", []string{"--cap-add", "ALL"}},
	{"read-only", []string{"--read-only", "--tmpfs", "/tmp", "-v", "/usr/share:/share:ro"}},
	{"init, user and groups", []string{"--init", "-u", "app", "--group-add", "3000", "-w", "/home/app", "-h", "name", "--domainname", "example"}},
	{"device and limits", []string{
		"--device", "/dev/zero:/dev/nothing:r", "--device-cgroup-rule", "c 7:* rw", "--ulimit", "nofile=512:1024", "--oom-score-adj", "100",
		"-m", "64m", "--cpus", "0.5", "--pids-limit", "99", "--shm-size", "1m", "--sysctl", "net.core.somaxconn=512",
	}},
	{"no new privileges", []string{"--security-opt", "no-new-privileges", "--security-opt", "systempaths=unconfined"}},
	{"no filter", []string{"--security-opt", "seccomp=unconfined", "--cgroupns", "private"}},
	{"the host's namespaces", []string{"--pid", "host", "--ipc", "host", "--network", "host", "--uts", "host"}},
	{"no network, shareable", []string{"--network", "none", "--ipc", "shareable", "-e", "A=b"}},
}

// intendedDifferences are the intended differences from dockerd. at matches the
// path of a value in the configuration. A row that matches no difference fails
// the test.
var intendedDifferences = []struct{ at, why string }{
	{`linux\.namespaces\.network\.path`, "we make the network namespace before the container, so that it outlives restarts, and give its path"},
	{`linux\.namespaces\.time(\..*)?`, "a time namespace without offsets hides nothing and changes nothing, and runtimes that distributions have (runc before 1.2) refuse it"},
	{`linux\.devices\./dev/ptmx(\..*)?`, "the runtime puts a link to the container's own in its place"},
	{`mounts\./etc/(hostname|hosts|resolv\.conf)\.options`, "with a read-only root we leave these read-only by themselves and not with what is mounted below: they are files, and older runtimes don't know rro"},
	{`process\.env\.HOME`, "dockerd leaves HOME to the runtime, which not every runtime sets"},
	{`process\.capabilities\.(effective|permitted)`, "a process that is not root loses them by execve(2); we don't give them for the time before, in which the runtime acts as that user"},
}

func TestConfinementIsThatOfDockerd(t *testing.T) {
	peer := kit.StartPeer(t, kit.PeerOptions{})
	ours := live(t)
	peer.Load(image, kit.Busybox(t, nil))
	seen := map[int]bool{}
	for _, c := range confinements {
		t.Run(c.name, func(t *testing.T) {
			theirs := configOf(t, peer.Daemon, c.flags, peer.BundleConfig)
			own := configOf(t, ours, c.flags, ours.BundleConfig)
			for _, at := range slices.Sorted(maps.Keys(bothKeys(theirs, own))) {
				if theirs[at] == own[at] {
					continue
				}
				if i := slices.IndexFunc(intendedDifferences, func(d struct{ at, why string }) bool {
					return regexp.MustCompile(`^` + d.at + `$`).MatchString(at)
				}); i >= 0 {
					seen[i] = true
					continue
				}
				t.Errorf("%s\n  dockerd: %s\n  ours:    %s", at, valueAt(theirs, at), valueAt(own, at))
			}
		})
	}
	for i, d := range intendedDifferences {
		if !seen[i] {
			t.Errorf("%s is no longer a difference: remove the row", d.at)
		}
	}
}

func valueAt(m map[string]string, at string) string {
	if v, ok := m[at]; ok {
		return v
	}
	return "-"
}

func bothKeys(a, b map[string]string) map[string]string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// configOf runs a container and returns its config.json as values by path,
// without the values that differ between daemons or containers.
func configOf(t *testing.T, d *kit.Daemon, flags []string, read func(id string) *specs.Spec) map[string]string {
	t.Helper()
	id := d.Docker(slices.Concat([]string{"run", "-d"}, flags, []string{image, "sleep", "600"})...)
	s := read(id)
	d.Docker("rm", "-f", id)
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer(id, "ID", id[:12], "SHORT", d.Cgroup+"/", "/PARENT/").Replace(string(b))
	var tree map[string]any
	decodeJSON(t, []byte(text), &tree)
	tree["root"].(map[string]any)["path"] = "ROOTFS"
	out := map[string]string{}
	flattenConfig(out, "", tree)
	for at, value := range out {
		// Files of the daemon that are bind-mounted into the container.
		if strings.HasSuffix(at, ".source") && (strings.Contains(value, "ID") || strings.HasPrefix(value, `"`+d.Root)) {
			out[at] = "OWN " + path.Base(strings.Trim(value, `"`))
		}
	}
	return out
}

// flattenConfig returns the leaves of a JSON tree by their path. Items of a
// list with names are identified by these, sets are sorted, and empty values
// are left out.
func flattenConfig(out map[string]string, at string, v any) {
	join := func(name string) string { return strings.TrimPrefix(at+"."+name, ".") }
	switch v := v.(type) {
	case map[string]any:
		for k, item := range v {
			flattenConfig(out, join(k), item)
		}
	case []any:
		switch {
		case at == "mounts" || at == "linux.namespaces" || at == "linux.devices" || at == "process.rlimits":
			key := map[string]string{"mounts": "destination", "linux.namespaces": "type", "linux.devices": "path", "process.rlimits": "type"}[at]
			for _, item := range v {
				m := item.(map[string]any)
				name := fmt.Sprint(m[key])
				out[join(name)] = "there"
				flattenConfig(out, join(name), m)
			}
		case at == "process.env":
			for _, item := range v {
				name, value, _ := strings.Cut(item.(string), "=")
				out[join(name)] = value
			}
		case at == "linux.seccomp.syscalls":
			// A system call may be in several rules.
			calls := map[string][]string{}
			for _, item := range v {
				m := item.(map[string]any)
				names := m["names"].([]any)
				delete(m, "names")
				rule, _ := json.Marshal(m)
				for _, name := range names {
					calls[name.(string)] = append(calls[name.(string)], string(rule))
				}
			}
			for name, rules := range calls {
				slices.Sort(rules)
				out[join(name)] = strings.Join(rules, " ")
			}
		case len(v) > 0:
			var items []string
			for _, item := range v {
				if m, ok := item.(map[string]any); ok && at == "linux.resources.devices" && m["type"] == nil {
					items = nil // the rule is for all devices, so it overrides earlier ones
				}
				b, _ := json.Marshal(item)
				items = append(items, string(b))
			}
			// The order matters only for arguments and rules of devices.
			if at != "process.args" && at != "linux.resources.devices" {
				slices.Sort(items)
			}
			out[at] = strings.Join(items, " ")
		}
	case nil:
	default:
		b, _ := json.Marshal(v)
		out[at] = string(b)
	}
}

// The environment of a process is compared from inside, for run and exec.
func TestProcessesFindWhatDockerdGivesThem(t *testing.T) {
	peer := kit.StartPeer(t, kit.PeerOptions{})
	// Use the same runtime, because it sets what a specification leaves open.
	ours := kit.Start(t, kit.Options{LiveRestore: true, Config: map[string]any{
		"runtimes": map[string]any{"current": map[string]any{"path": kit.PeerProgram(t, "runc")}}, "default-runtime": "current",
	}})
	const script = `grep -E '^(Cap|NoNewPrivs|Seccomp|Groups|Uid|Gid)' /proc/self/status; echo umask $(umask); cat /proc/self/limits
		echo oom $(cat /proc/self/oom_score_adj); env | grep -v ^HOSTNAME | sort; pwd; id; cd /dev && ls -ld * | awk '{print $1, $3, $4, $5, $6, $NF}'
		awk '$2 != "/" {print $2, $3, $4}' /proc/mounts | grep -v -e /etc/ -e cgroup | sort; cat /proc/sys/net/ipv4/ping_group_range /proc/sys/net/ipv4/ip_unprivileged_port_start`
	look := func(d *kit.Daemon, run, exec []string) map[string]string {
		out := map[string]string{"run": d.Docker(slices.Concat([]string{"run", "--rm"}, run, []string{image, "sh", "-c", script})...)}
		id := d.Docker(slices.Concat([]string{"run", "-d"}, run, []string{image, "sleep", "600"})...)
		out["exec"] = d.Docker(slices.Concat([]string{"exec"}, exec, []string{id, "sh", "-c", script})...)
		d.Docker("rm", "-f", id)
		return out
	}
	for _, d := range []*kit.Daemon{peer.Daemon, ours} {
		d.Load(image, kit.Busybox(t, nil))
	}
	for name, c := range map[string]struct{ run, exec []string }{
		"plain":               {nil, nil},
		"user":                {[]string{"-u", "app"}, nil},
		"another user":        {nil, []string{"-u", "app", "-w", "/tmp", "-e", "A=b"}},
		"privileged":          {[]string{"--privileged"}, nil},
		"privileged exec":     {nil, []string{"--privileged"}},
		"no new privileges":   {[]string{"--security-opt", "no-new-privileges", "--ulimit", "nproc=200"}, nil},
		"dropped and limited": {[]string{"--cap-drop", "ALL", "--ulimit", "core=0", "--oom-score-adj", "50", "--read-only"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			theirs, own := look(peer.Daemon, c.run, c.exec), look(ours, c.run, c.exec)
			for _, how := range []string{"run", "exec"} {
				if theirs[how] != own[how] {
					t.Errorf("%s differs:\n%s", how, differingLines(theirs[how], own[how]))
				}
			}
		})
	}
}

// differingLines returns the lines that only one of two texts has.
func differingLines(theirs, own string) string {
	a, b := strings.Split(theirs, "\n"), strings.Split(own, "\n")
	var out []string
	for _, line := range a {
		if !slices.Contains(b, line) {
			out = append(out, "dockerd: "+line)
		}
	}
	for _, line := range b {
		if !slices.Contains(a, line) {
			out = append(out, "ours:    "+line)
		}
	}
	return strings.Join(out, "\n")
}

// The AppArmor profile is text within a module, and this kernel may not support
// AppArmor. So the modules themselves are compared. The same applies to the
// seccomp filter, whose rules for other architectures have no effect here.
func TestProfilesAreThoseOfDockerd(t *testing.T) {
	modules := func(program string) map[string]string {
		t.Helper()
		info, err := buildinfo.ReadFile(program)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		for _, m := range info.Deps {
			out[m.Path] = m.Version + " " + m.Sum
		}
		return out
	}
	theirs, own := modules(kit.PeerProgram(t, "dockerd")), modules(kit.Binary(t, "holdfastd"))
	for _, name := range []string{"github.com/moby/profiles/apparmor", "github.com/moby/profiles/seccomp"} {
		if own[name] == "" || own[name] != theirs[name] {
			t.Errorf("%s: dockerd has %q, we have %q", name, theirs[name], own[name])
		}
	}
}
