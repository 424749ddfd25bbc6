// SPDX-License-Identifier: Apache-2.0

package build

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// looks prints what confines a process.
const looks = `echo "caps $(grep -e CapEff -e CapBnd -e NoNewPrivs -e Seccomp: /proc/self/status | tr -s '\t\n' ' ')"
echo "masked $(awk '$5 ~ "^/(proc|sys)" {print $5 ($6 ~ "^ro" ? " ro" : "")}' /proc/self/mountinfo | sort | tr '\n' ' ')"
echo "devices $(ls /dev | grep -v -x -e console -e stdin -e core | sort | tr '\n' ' ')"
echo "apparmor $(cat /proc/self/attr/current 2>/dev/null)"
echo "namespaces $(for n in pid ipc uts mnt net cgroup; do readlink /proc/self/ns/$n | cut -d: -f1; done | tr '\n' ' ')"
`

func TestRunStepsAreConfinedAsContainersAre(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	dir := files(t, map[string]string{"look": looks, "Dockerfile": "FROM base\nCOPY look /\nRUN sh /look >/step\n"})
	build(t, d, "-t", "looked", dir)
	step := d.Docker("run", "--rm", "looked", "cat", "/step")
	container := d.Docker("run", "--rm", "looked", "sh", "/look")
	if step != container {
		t.Errorf("a RUN step sees\n%s\na container sees\n%s", step, container)
	}
	host := map[string]string{}
	for _, ns := range []string{"pid", "ipc", "uts", "mnt", "net", "cgroup"} {
		host[ns], _ = os.Readlink("/proc/self/ns/" + ns)
	}
	// What of the host a step could reach: the daemon's and the build process's
	// sockets, the host's loopback, its processes, and abstract sockets.
	r := web(t, nil)
	out := build(t, d, files(t, map[string]string{"Dockerfile": "FROM base\nRUN ! wget -q -T 2 -O - " + r + "/ 2>&1; " +
		"ls " + d.ExecRoot + " " + d.DataRoot + " 2>&1 | grep -v 'No such file' | grep . && echo rea''ched; " +
		"cat /proc/net/unix | grep -c -e holdfast -e control.sock; ps | wc -l; " +
		"for ns in pid ipc uts mnt net cgroup; do echo \"ns $(readlink /proc/self/ns/$ns)\"; done\n"}))
	if strings.Contains(out, "reached") {
		t.Errorf("the step reaches the daemon's directories:\n%s", out)
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		delete(host, "cgroup") // containers share the host's without cgroup v2
	}
	for ns, id := range host {
		if strings.Contains(out, "ns "+id) {
			t.Errorf("the step is in the host's %s namespace", ns)
		}
	}
}

func TestRunStepsFollowTheDaemonsOptionsAtOnce(t *testing.T) {
	t.Parallel()
	profile := filepath.Join(t.TempDir(), "profile.json")
	text := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}`
	if err := os.WriteFile(profile, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	d := start(t, kit.Options{})
	try := func(name, dockerfile, words string, args ...string) {
		t.Helper()
		r := d.TryDocker(append(append([]string{"build", "--progress=plain", "--no-cache"}, args...), files(t, map[string]string{"Dockerfile": dockerfile}))...)
		if (r.Code == 0) != (words == "") || !strings.Contains(r.Stderr, words) {
			t.Errorf("%s: exit code %d, want %q:\n%s", name, r.Code, words, r.Stderr)
		}
	}
	const mkdir = "FROM base\nRUN mkdir /made\n"
	const insecure = "FROM base\nRUN --security=insecure test $(grep CapEff /proc/self/status | cut -c 8-) != 00000000a80425fb\n"
	try("built-in profile", mkdir, "")
	try("not entitled", insecure, "security.insecure", "--allow", "security.insecure")
	try("dns", "FROM base\nRUN grep 'nameserver 1.2.3.4' /etc/resolv.conf\n", "exit code: 1")
	pid := builder(t, d)
	d.WriteConfig(map[string]any{
		"seccomp-profile": profile, "dns": []string{"1.2.3.4"},
		"builder": map[string]any{"entitlements": map[string]any{"security-insecure": true, "network-host": false}, "gc": map[string]any{"policy": []any{map[string]any{"all": true, "reservedSpace": "7MB"}}}},
	})
	d.Hup()
	try("own profile", mkdir, "Function not implemented")
	try("own profile without a network", "FROM base\nRUN --network=none mkdir /made\n", "Function not implemented")
	try("entitled", insecure, "", "--allow", "security.insecure")
	try("host network is off", "FROM base\nRUN --network=host true\n", "network.host", "--allow", "network.host")
	try("dns", "FROM base\nRUN grep 'nameserver 1.2.3.4' /etc/resolv.conf\n", "")
	if got := d.Docker("buildx", "inspect"); !strings.Contains(got, "7MiB") {
		t.Errorf("the policy of the cache is not the new one:\n%s", got)
	}
	if builder(t, d) != pid {
		t.Error("the build process was started again")
	}
}

func TestRunStepsReachContainersOnNetworksOfOurOwn(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{LiveRestore: true})
	d.Docker("network", "create", "inner")
	d.Docker("run", "-d", "--name", "db", "--network", "inner", "--network-alias", "database", "base", "sh", "-c", "exec httpd -f -p 80 -h /etc")
	dir := files(t, map[string]string{"Dockerfile": "FROM base\nRUN wget -q -O /db http://db/passwd && wget -q -O /alias http://database/passwd && cat /etc/resolv.conf >/resolv\n"})
	check := func(t *testing.T, r kit.Result) {
		t.Helper()
		if r.Code != 0 {
			t.Fatalf("exit code %d\n%s%s\n%s", r.Code, r.Stdout, r.Stderr, buildLog(d))
		}
		if got := d.Docker("run", "--rm", "made", "sh", "-c", "wc -l </db; wc -l </alias; grep -c 127.0.0.11 /resolv"); got != "3\n3\n1" {
			t.Errorf("the step saw %q", got)
		}
		d.Docker("rmi", "made")
	}
	for name, run := range map[string]func() kit.Result{
		"old client": func() kit.Result { return classic(d, "--no-cache", "--network", "inner", "-t", "made", dir) },
		"build argument": func() kit.Result {
			return d.TryDocker("build", "--no-cache", "--build-arg", "HOLDFAST_NETWORK=inner", "-t", "made", dir)
		},
		"holdfast": func() kit.Result {
			return d.TryHoldfast("build", "--no-cache", "--network", "inner", "-t", "made", dir)
		},
	} {
		t.Run(name, func(t *testing.T) {
			check(t, run())
		})
	}
	// The namespace of a container, which has its own loopback.
	own := files(t, map[string]string{"Dockerfile": "FROM base\nRUN wget -q -O /db http://127.0.0.1/passwd && wc -l /db\n"})
	r := classic(d, "--no-cache", "--network", "container:db", own)
	if r.Code != 0 || !strings.Contains(r.Stdout, "3 /db") {
		t.Errorf("a container's network: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	r = classic(d, "--no-cache", "--network", "absent", dir)
	if r.Code == 0 || !strings.Contains(r.Stderr, "absent") {
		t.Errorf("a network that is not there: exit code %d, %s", r.Code, r.Stderr)
	}
	// A daemon that dies takes no names away.
	slow := files(t, map[string]string{"Dockerfile": "FROM base\nRUN echo begun >&2; for i in $(seq 30); do sleep 0.1; wget -q -O /db http://db/passwd || exit 9; done\n"})
	b := begin(t, d, nil, "--progress=plain", "--no-cache", "--build-arg", "HOLDFAST_NETWORK=inner", slow)
	b.until("begun")
	d.Kill9()
	d.Start()
	if err := b.end(); err != nil {
		t.Errorf("%v\n%s", err, &b.seen)
	}
	d.Docker("rm", "-f", "db")
	d.Docker("network", "rm", "inner")
}

func TestLimitsOfOldClientsHold(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	dir := files(t, map[string]string{"Dockerfile": "FROM base\nRUN cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us\n"})
	r := classic(d, "--no-cache", "--memory", "64m", "--memory-swap", "64m", "--cpu-quota", "20000", "--cpu-period", "100000", "--cpu-shares", "512", dir)
	if r.Code != 0 || !strings.Contains(r.Stdout, "67108864") || !strings.Contains(r.Stdout, "20000") {
		t.Errorf("exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	r = classic(d, "--no-cache", "--memory", "16m", "--memory-swap", "16m", files(t, map[string]string{"Dockerfile": "FROM base\nRUN head -c 100m /dev/zero | tail -c 90m >/dev/null\n"}))
	if r.Code == 0 || !strings.Contains(r.Stderr, "non-zero code: 137") {
		t.Errorf("a step that takes more memory than it may: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
}

func TestParentCgroupOfSteps(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	top := d.Cgroup + "-of-a-build"
	parent := top + "/and/deeper"
	dir := files(t, map[string]string{"Dockerfile": "FROM base\nRUN echo begun >&2; sleep 98763\n"})
	left := func() bool {
		for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			if found, _ := filepath.Glob(pattern + top); len(found) > 0 {
				return true
			}
		}
		return false
	}
	for name, end := range map[string]func(b *running){
		"cancelled": func(b *running) { b.kill() },
		"the build process is killed": func(*running) {
			kit.Kill(t, builder(t, d))
			build(t, d, files(t, map[string]string{"Dockerfile": "FROM base\nRUN true\n"}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := begin(t, d, nil, "--progress=plain", "--cgroup-parent", parent, dir)
			kit.Eventually(t, "the step runs", func() bool { return len(processes(t, "98763")) > 0 })
			found := ""
			for _, pid := range processes(t, "98763") {
				text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
				if err == nil {
					found += string(text)
				}
			}
			if !strings.Contains(found, parent+"/buildkit/") || !left() {
				t.Errorf("the step is in %q, want it below %s", found, parent)
			}
			end(b)
			_ = b.end()
			kit.Eventually(t, "the step ends", func() bool { return len(processes(t, "98763")) == 0 })
			kit.Eventually(t, "its cgroups are removed", func() bool { return !left() })
		})
	}
}
