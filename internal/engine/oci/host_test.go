// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"encoding/json"
	"holdfast/test/golden"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

const allCapsMask = "000001ffffffffff"

// fakeTree makes a host's files: each name with its content.
func fakeTree(files map[string]string) fstest.MapFS {
	tree := fstest.MapFS{}
	for name, content := range files {
		tree[name] = &fstest.MapFile{Data: []byte(content)}
	}
	return tree
}

var commonFiles = map[string]string{
	"proc/sys/kernel/osrelease":                    "6.1.0-18-amd64\n",
	"etc/os-release":                               "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\n",
	"proc/meminfo":                                 "MemTotal:        8048536 kB\nMemFree:  1 kB\n",
	"proc/self/status":                             "Name:\tx\nCapBnd:\t" + allCapsMask + "\nSeccomp:\t0\nCpus_allowed_list:\t0-3\n",
	"proc/self/oom_score_adj":                      "-500\n",
	"proc/self/uid_map":                            "         0          0 4294967295\n",
	"proc/self/ns/cgroup":                          "",
	"proc/self/ns/user":                            "",
	"proc/sys/user/max_user_namespaces":            "31000\n",
	"proc/sys/net/ipv4/ip_forward":                 "1\n",
	"proc/sys/net/ipv4/ping_group_range":           "1\t0\n",
	"proc/sys/net/ipv4/ip_unprivileged_port_start": "1024\n",
	"proc/sys/net/ipv6/bindv6only":                 "0\n",
	"sys/devices/system/cpu/possible":              "0-3\n",
	"sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "0\n",
}

func with(more map[string]string) map[string]string {
	all := maps.Clone(commonFiles)
	maps.Copy(all, more)
	return all
}

var hybridFiles = with(map[string]string{
	"proc/self/mountinfo": `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset,clone_children
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
`,
	"proc/self/cgroup":                                     "9:name=systemd:/\n4:memory:/own/group\n2:cpu,cpuacct:/\n0::/\n",
	"sys/fs/cgroup/memory/memory.limit_in_bytes":           "1",
	"sys/fs/cgroup/memory/memory.soft_limit_in_bytes":      "1",
	"sys/fs/cgroup/memory/memory.memsw.limit_in_bytes":     "1",
	"sys/fs/cgroup/memory/memory.swappiness":               "60",
	"sys/fs/cgroup/memory/memory.oom_control":              "",
	"sys/fs/cgroup/cpu,cpuacct/cpu.shares":                 "1024",
	"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us":           "-1",
	"sys/fs/cgroup/cpuset/cpuset.cpus":                     "0-3\n",
	"sys/fs/cgroup/cpuset/cpuset.mems":                     "0\n",
	"sys/fs/cgroup/blkio/blkio.throttle.read_bps_device":   "",
	"sys/fs/cgroup/blkio/blkio.throttle.write_bps_device":  "",
	"sys/fs/cgroup/blkio/blkio.throttle.read_iops_device":  "",
	"sys/fs/cgroup/blkio/blkio.throttle.write_iops_device": "",
	"sys/fs/cgroup/blkio/some.group/blkio.bfq.weight":      "100",
})

var v2Files = with(map[string]string{
	"proc/self/mountinfo":                                    "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
	"proc/self/cgroup":                                       "0::/system.slice/holdfast.service\n",
	"run/systemd/system/x":                                   "",
	"sys/fs/cgroup/cgroup.controllers":                       "cpuset cpu io memory pids\n",
	"sys/fs/cgroup/cpuset.cpus.effective":                    "0-3\n",
	"sys/fs/cgroup/cpuset.mems.effective":                    "0\n",
	"sys/fs/cgroup/system.slice/holdfast.service/memory.max": "max\n",
	"sys/fs/cgroup/system.slice/memory.swap.max":             "max\n",
	"sys/fs/cgroup/system.slice/io.weight":                   "100\n",
	"sys/module/apparmor/parameters/enabled":                 "Y\n",
	"sys/kernel/security/apparmor/profiles":                  "",
})

func TestProbeTellsWhatEachKindOfHostCanDo(t *testing.T) {
	for name, files := range map[string]map[string]string{"hybrid": hybridFiles, "v2": v2Files, "bare": {}} {
		t.Run(name, func(t *testing.T) {
			h := probe(fakeTree(files), nil)
			h.Arch = "amd64"
			b, err := json.MarshalIndent(struct {
				Host
				Warnings []string
			}{h, h.InfoWarnings()}, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden.Compare(t, "testdata/host/"+name+".json", append(b, '\n'))
		})
	}
}

// Some files exist in every group except the root group.
func TestProbeLooksIntoANewGroupWhereNoneIsToBeFound(t *testing.T) {
	tree := fakeTree(hybridFiles)
	delete(tree, "sys/fs/cgroup/blkio/some.group/blkio.bfq.weight")
	if probe(tree, nil).BlkioWeight {
		t.Error("a weight is found where there is none")
	}
	made := 0
	h := probe(tree, func(mount string) (string, func(), error) {
		const name = "new"
		made++
		files := []string{strings.TrimPrefix(mount, "/") + "/" + name + "/blkio.bfq.weight"}
		for _, f := range files {
			tree[f] = &fstest.MapFile{}
		}
		return name, func() {
			made--
			for _, f := range files {
				delete(tree, f)
			}
		}, nil
	})
	if !h.BlkioWeight || h.BlkioWeightDevice || made != 0 {
		t.Errorf("weight %v, weight of devices %v, groups left %d", h.BlkioWeight, h.BlkioWeightDevice, made)
	}
}

func TestProbeOfThisHostFindsTheBasics(t *testing.T) {
	h := Probe(t.Context())
	if h.Kernel == "" || h.MemTotal <= 0 || h.NumCPU < 1 || h.OS == "" {
		t.Errorf("Probe() = %+v", h)
	}
}

func TestCgroupModes(t *testing.T) {
	for _, tc := range []struct{ name, mounts, want string }{
		{"no cgroups", "1 1 0:1 / / rw - ext4 /dev/a rw\n", "none"},
		{"v1 alone", "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", "v1"},
		{"named hierarchy with v2 is v2", "32 31 0:29 / /c/systemd rw - cgroup cgroup rw,name=systemd\n33 31 0:30 / /c rw - cgroup2 c rw\n", "v2"},
		{"torn line", "32 31 0:29 / /sys", "none"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := parseCgroup(strings.Lines(tc.mounts), ""); string(got.Mode) != tc.want {
				t.Errorf("mode %q, want %q", got.Mode, tc.want)
			}
		})
	}
}

func TestCgroupPathsOfBothDrivers(t *testing.T) {
	hybrid, v2 := probe(fakeTree(hybridFiles), nil), probe(fakeTree(v2Files), nil)
	for _, tc := range []struct {
		name, driver, parent, path string
		host                       Host
		key, dir                   string
	}{
		{"cgroupfs", DriverCgroupfs, "", "/holdfast/abc", hybrid, "memory", "/sys/fs/cgroup/memory/holdfast/abc"},
		{"co-mounted controllers", DriverCgroupfs, "", "/holdfast/abc", hybrid, "cpuacct", "/sys/fs/cgroup/cpu,cpuacct/holdfast/abc"},
		{"parent", DriverCgroupfs, "a/b", "/a/b/abc", hybrid, "pids", "/sys/fs/cgroup/pids/a/b/abc"},
		{"parent that climbs", DriverCgroupfs, "../../..", "/abc", hybrid, "pids", "/sys/fs/cgroup/pids/abc"},
		{"systemd", DriverSystemd, "", "system.slice:holdfast:abc", v2, "", "/sys/fs/cgroup/system.slice/holdfast-abc.scope"},
		{"nested slice", DriverSystemd, "a-b.slice", "a-b.slice:holdfast:abc", v2, "", "/sys/fs/cgroup/a.slice/a-b.slice/holdfast-abc.scope"},
		{"root slice", DriverSystemd, "-.slice", "-.slice:holdfast:abc", v2, "", "/sys/fs/cgroup/holdfast-abc.scope"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := CgroupPath(tc.driver, tc.parent, "abc")
			if p != tc.path {
				t.Errorf("path %q, want %q", p, tc.path)
			}
			if dir := tc.host.CgroupDirs(tc.driver, p)[tc.key]; dir != tc.dir {
				t.Errorf("dir %q, want %q", dir, tc.dir)
			}
		})
	}
	if d := hybrid.DefaultDriver(); d != DriverCgroupfs {
		t.Errorf("driver on hybrid: %s", d)
	}
	if d := v2.DefaultDriver(); d != DriverSystemd {
		t.Errorf("driver on v2 with systemd: %s", d)
	}
}

func TestLists(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want []int
		bad  bool
	}{
		{"", nil, false},
		{"0", []int{0}, false},
		{"0-2,1,7", []int{0, 1, 2, 7}, false},
		{"3-1", nil, true},
		{"a", nil, true},
		{"1,,2", nil, true},
		{"-1", nil, true},
		{"0-4000000000", nil, true},
		{"99999999999999999999", nil, true},
	} {
		got, err := expandList(tc.in)
		if (err != nil) != tc.bad || !slices.Equal(got, tc.want) {
			t.Errorf("expandList(%q) = %v, %v", tc.in, got, err)
		}
	}
}

func FuzzParseCgroup(f *testing.F) {
	f.Add(hybridFiles["proc/self/mountinfo"], hybridFiles["proc/self/cgroup"])
	f.Fuzz(func(t *testing.T, mounts, own string) {
		for key := range parseCgroup(strings.Lines(mounts), own).Mounts {
			if strings.Contains(key, ",") {
				t.Errorf("controller %q", key)
			}
		}
	})
}

func TestMountsOfContainersAreNotReadForTheCgroups(t *testing.T) {
	mounts := "30 20 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n" +
		"31 20 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n" +
		"40 20 0:30 / /run/rootfs rw - overlay overlay rw\n" +
		"41 40 0:26 / /run/rootfs/cgroup rw - cgroup cgroup rw,cpu\n"
	read := 0
	lines := func(yield func(string) bool) {
		for line := range strings.Lines(mounts) {
			if read++; !yield(line) {
				return
			}
		}
	}
	c := parseCgroup(lines, "1:cpu:/\n0::/\n")
	if c.Mode != CgroupHybrid || c.Mounts["cpu"] != "/sys/fs/cgroup/cpu" || read != 2 {
		t.Errorf("%+v after %d lines", c, read)
	}
	// For a controller that is not mounted all lines are read.
	if read = 0; parseCgroup(lines, "1:cpu:/\n2:pids:/\n0::/\n").Mounts["cpu"] != "/sys/fs/cgroup/cpu" || read != 4 {
		t.Errorf("%d lines were read", read)
	}
}
