// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"holdfast/internal/engine/oci"
	"holdfast/internal/engine/stats"
)

// status prints the state of the container's own process.
const status = `
while read k v; do case $k in
CapBnd:) echo capbnd=$v;; CapEff:) echo capeff=$v;; Seccomp:) echo seccomp=$v;; NoNewPrivs:) echo nnp=$v;;
esac; done < /proc/self/status
`

const defaultCaps = "00000000a80425fb" // Docker's fourteen

func want(t *testing.T, got map[string]string, pairs ...string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if got[pairs[i]] != pairs[i+1] {
			t.Errorf("%s = %q, want %q", pairs[i], got[pairs[i]], pairs[i+1])
		}
	}
}

func TestPlainContainerIsConfinedAsDockers(t *testing.T) {
	b := newBox(t, "sh", "-c", status+`
echo host=$(hostname)
echo id=$(id -u):$(id -g)
echo home=$HOME path=$PATH
echo pwd=$(pwd)
touch /written && echo root=writable
touch /sys/x 2>/dev/null || echo sys=readonly
echo 1 2>/dev/null >/proc/sys/kernel/panic || echo procsys=readonly
echo ports=$(cat /proc/sys/net/ipv4/ip_unprivileged_port_start)
echo keys=$(cat /proc/keys | grep -c .)
echo links=$(ls /sys/class/net | grep -c -v '^lo$')
echo shm=$(df -k /dev/shm | grep -o ' 65536 ')
echo pid=$$
echo hosts=$(cat /etc/hosts)
mknod /dev/disk b 254 0 && ! cat /dev/disk 2>/dev/null && echo disk=denied
cat /dev/null && echo null=read
`)
	b.in.Config.WorkingDir = "/made/by/the/runtime"
	b.in.Files.Hosts = b.file("hosts", "127.0.0.1 localhost\n", 0o644)
	got := answers(b.run())
	want(t, got,
		"host", "box", "id", "0:0", "home", "/root path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"pwd", "/made/by/the/runtime", "root", "writable", "sys", "readonly", "procsys", "readonly", "ports", "0", "keys", "0",
		"links", "0", "pid", "1", "hosts", "127.0.0.1 localhost", "capbnd", defaultCaps, "capeff", defaultCaps, "seccomp", "2", "nnp", "0",
		"disk", "denied", "null", "read")
	if !strings.HasPrefix(strings.TrimSpace(got["shm"]), "65536") {
		t.Errorf("size of /dev/shm: %q", got["shm"])
	}
}

func TestHardenedContainerKeepsNothingItDidNotAskFor(t *testing.T) {
	b := newBox(t, "sh", "-c", status+`
echo id=$(id -u):$(id -g)
echo groups=$(id -G)
echo home=$HOME
echo umask=$(umask)
touch /x 2>/dev/null || echo root=readonly
touch /tmp/x && echo tmp=writable
echo tmpsize=$(df -k /tmp | grep -c ' 1024 ')
touch /data/x 2>/dev/null || echo data=readonly
touch /data/inner/x 2>/dev/null || echo inner=readonly
echo files=$(ulimit -n)
echo score=$(cat /proc/self/oom_score_adj)
echo somaxconn=$(cat /proc/sys/net/core/somaxconn)
`)
	b.in.Config.User = "web"
	hc := b.in.HostConfig
	hc.ReadonlyRootfs = true
	hc.CapDrop, hc.CapAdd = []string{"ALL"}, []string{"NET_RAW"}
	hc.SecurityOpt = []string{"no-new-privileges"}
	hc.GroupAdd = []string{"video", "4242"}
	hc.Umask = ptr(uint32(0o027))
	hc.OomScoreAdj = 500
	hc.Sysctls = map[string]string{"net.core.somaxconn": "321"}
	hc.Ulimits = []*units.Ulimit{{Name: "nofile", Soft: 77, Hard: 78}}
	hc.Tmpfs = map[string]string{"/tmp": "size=1m,mode=1777"}
	hc.IpcMode = "none"
	b.in.Mounts = oci.TmpfsMounts(hc.Tmpfs)

	// A mount below the read-only one is read-only, too.
	source := filepath.Join(b.dir, "source")
	if err := os.MkdirAll(filepath.Join(source, "inner"), 0o777); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{source, filepath.Join(source, "inner")} {
		if err := os.Chmod(p, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	mountTmpfs(t, filepath.Join(source, "inner"))
	b.in.Mounts = append(b.in.Mounts, oci.Mount{Type: mount.TypeBind, Source: source, Destination: "/data"})

	want(t, answers(b.run()),
		"id", "101:102", "groups", "102 29 44 4242", "home", "/var/www", "umask", "0027",
		"root", "readonly", "tmp", "writable", "tmpsize", "1", "data", "readonly", "inner", "readonly",
		"files", "77", "score", "500", "somaxconn", "321",
		"capbnd", "0000000000002000", "capeff", "0000000000000000", "seccomp", "2", "nnp", "1")
}

func TestPrivilegedContainerHasAllThatTheDaemonHas(t *testing.T) {
	b := newBox(t, "sh", "-c", status+`
touch /sys/fs/cgroup/x 2>/dev/null; mount -t tmpfs none /data && echo mount=allowed
echo devices=$(ls /dev | grep -c .)
grep -q ' /sys sysfs rw' /proc/mounts && echo sys=writable
`)
	b.in.HostConfig.Privileged = true
	got := answers(b.run())
	var mask uint64
	for i, name := range capNames {
		if b.in.Host.HasCap(name) {
			mask |= 1 << i
		}
	}
	all := fmt.Sprintf("%016x", mask)
	want(t, got, "capbnd", all, "capeff", all, "seccomp", "0", "mount", "allowed", "sys", "writable")
	for _, d := range b.spec.Linux.Devices {
		if _, err := os.Stat(d.Path); err != nil {
			t.Errorf("a device that the host doesn't have: %v", err)
		}
	}
	if len(b.spec.Linux.Devices) < 5 {
		t.Errorf("%d devices of the host", len(b.spec.Linux.Devices))
	}
}

func TestLimitsStatsAndUpdateOfARunningContainer(t *testing.T) {
	b := newBox(t, "sh", "-c", "sleep 1000 & echo > /ready; wait")
	b.in.HostConfig.Resources = container.Resources{
		Memory: 64 << 20, MemoryReservation: 32 << 20, NanoCPUs: 500_000_000, CPUShares: 512, CpusetCpus: "0", PidsLimit: ptr(int64(50)),
	}
	ready := b.fifo("rootfs/ready")
	pid := b.start()
	ready()
	v1 := b.in.Host.Cgroup.Mode != oci.CgroupV2
	dirs := b.in.Host.CgroupDirs(oci.DriverCgroupfs, b.spec.Linux.CgroupsPath)
	group := func(controller, v1File, v2File string) string {
		t.Helper()
		dir, file := dirs[controller], v1File
		if !v1 {
			dir, file = dirs[""], v2File
		}
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	check := func(got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("limit %q, want %q", got, want)
		}
	}
	check(group("memory", "memory.limit_in_bytes", "memory.max"), "67108864")
	check(group("pids", "pids.max", "pids.max"), "50")
	check(group("cpuset", "cpuset.cpus", "cpuset.cpus"), "0")
	if v1 {
		check(group("memory", "memory.memsw.limit_in_bytes", ""), "134217728")
		check(group("cpu", "cpu.cfs_quota_us", ""), "50000")
		check(group("cpu", "cpu.shares", ""), "512")
	} else {
		check(group("memory", "", "memory.swap.max"), "67108864")
		check(group("cpu", "", "cpu.max"), "50000 100000")
	}

	pids, err := stats.Pids(stats.Cgroup(dirs))
	if err != nil || len(pids) != 2 || !slices.Contains(pids, pid) {
		t.Errorf("processes %v of %d, %v", pids, pid, err)
	}
	top, err := stats.Top(t.Context(), pids, "")
	if err != nil || len(top.Processes) != len(pids) {
		t.Errorf("top: %+v, %v", top, err)
	}
	s, err := stats.Read(t.Context(), stats.Source{Cgroup: dirs, NetPid: pid, MemTotal: b.in.Host.MemTotal})
	if err != nil {
		t.Fatal(err)
	}
	if s.MemoryStats.Limit != 64<<20 || s.MemoryStats.Usage == 0 || s.CPUStats.CPUUsage.TotalUsage == 0 ||
		s.CPUStats.SystemUsage == 0 || s.PidsStats.Current != 2 || s.PidsStats.Limit != 50 || s.Networks == nil {
		t.Errorf("stats: %+v", s)
	}

	merged, lr, _, err := oci.Update(b.in.Host, b.in.HostConfig, container.UpdateConfig{Resources: container.Resources{
		Memory: 128 << 20, MemorySwap: -1, NanoCPUs: 250_000_000, PidsLimit: ptr(int64(0)),
	}})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(lr)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := b.runc("update", "--resources", b.file("update.json", string(text), 0o644), b.in.ID).CombinedOutput(); err != nil {
		t.Fatalf("runc update: %v\n%s", err, out)
	}
	check(group("memory", "memory.limit_in_bytes", "memory.max"), "134217728")
	check(group("pids", "pids.max", "pids.max"), "max")
	if v1 {
		check(group("cpu", "cpu.cfs_quota_us", ""), "25000")
		check(group("cpu", "cpu.shares", ""), "512")
		if got := group("memory", "memory.memsw.limit_in_bytes", ""); len(got) < 18 {
			t.Errorf("swap is still limited: %s", got)
		}
	} else {
		check(group("cpu", "", "cpu.max"), "25000 100000")
		check(group("memory", "", "memory.swap.max"), "max")
	}
	if merged.Memory != 128<<20 || merged.CPUShares != 512 {
		t.Errorf("merged %+v", merged.Resources)
	}
}

func TestExecRunsAsAskedInARunningContainer(t *testing.T) {
	b := newBox(t, "sleep", "1000")
	b.in.Config.Env = []string{"FROM=container"}
	b.in.Config.WorkingDir = "/data"
	b.start()
	root := b.in.Rootfs
	for _, tc := range []struct {
		name string
		req  container.ExecCreateRequest
		want []string
	}{
		{"plain", container.ExecCreateRequest{}, []string{"id", "0:0", "home", "/root", "from", "container", "pwd", "/data", "capeff", defaultCaps, "seccomp", "2"}},
		{"user", container.ExecCreateRequest{User: "web:video", Env: []string{"FROM=exec"}, WorkingDir: "/tmp"},
			[]string{"id", "101:44", "home", "/var/www", "from", "exec", "pwd", "/tmp", "capeff", "0000000000000000", "capbnd", defaultCaps}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.req.Cmd = []string{"sh", "-c", status + "echo id=$(id -u):$(id -g); echo home=$HOME; echo from=$FROM; echo pwd=$(pwd)"}
			p, err := oci.ExecProcess(b.spec.Process, root, tc.req, oci.ExecOptions{Host: b.in.Host, Config: b.in.Config, HostConfig: b.in.HostConfig})
			if err != nil {
				t.Fatal(err)
			}
			text, err := json.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			out, err := b.runc("exec", "--process", b.file("process.json", string(text), 0o644), b.in.ID).CombinedOutput()
			if err != nil {
				t.Fatalf("runc exec: %v\n%s", err, out)
			}
			want(t, answers(string(out)), tc.want...)
		})
	}
}

func TestSharedNamespacesAndMemory(t *testing.T) {
	donor := newBox(t, "sleep", "1000")
	shm := filepath.Join(donor.dir, "shm")
	if err := os.Mkdir(shm, 0o777); err != nil {
		t.Fatal(err)
	}
	mountTmpfs(t, shm)
	donor.in.ShmPath = shm
	donor.in.HostConfig.IpcMode = "shareable"
	pid := donor.start()
	ns := func(name string) string { return fmt.Sprintf("/proc/%d/ns/%s", pid, name) }
	link := func(name string) string {
		l, err := os.Readlink(ns(name))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}

	b := newBox(t, "sh", "-c", "for n in net ipc pid uts; do echo $n=$(stat -c %N /proc/self/ns/$n); done; touch /dev/shm/seen; mount | grep -c shm")
	hc := b.in.HostConfig
	hc.NetworkMode, hc.IpcMode, hc.PidMode = "container:donor", "container:donor", "container:donor"
	b.in.Namespaces = oci.Namespaces{Net: ns("net"), IPC: ns("ipc"), PID: ns("pid")}
	b.in.ShmPath = shm
	got := answers(b.run())
	for _, name := range []string{"net", "ipc", "pid"} {
		if !strings.Contains(got[name], link(name)) {
			t.Errorf("%s is %q, want %s", name, got[name], link(name))
		}
	}
	if strings.Contains(got["uts"], link("uts")) {
		t.Error("the hostname is shared too")
	}
	if _, err := os.Stat(filepath.Join(shm, "seen")); err != nil {
		t.Error(err)
	}
}

func TestCgroupNamespaceOfItsOwn(t *testing.T) {
	b := newBox(t, "sh", "-c", "cat /proc/self/cgroup")
	b.in.HostConfig.CgroupnsMode = "private"
	for line := range strings.Lines(b.run()) {
		if !strings.HasSuffix(strings.TrimSpace(line), ":/") && strings.Contains(line, b.in.ID) {
			t.Errorf("the container sees the path of its control group: %s", line)
		}
	}
}
