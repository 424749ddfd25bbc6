// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"encoding/json"
	"holdfast/test/golden"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

const netDev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0: 1000000000000 20 3 4 5 6 7 8 9 10 11 12 13 14 15 16
eth1:0:1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
`

var procFiles = map[string]string{
	"stat":       "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 1 1 1 1 1 1 0 0 0\ncpu1 1 1 1 1 1 1 1 0 0 0\nintr 5\n",
	"77/net/dev": netDev,
}

func TestReadOfBothCgroupVersions(t *testing.T) {
	for name, tc := range map[string]struct {
		controllers []string
		files       map[string]string
	}{
		"v1": {[]string{"memory", "cpu", "cpuacct", "pids", "blkio", ""}, map[string]string{
			"cpuacct/cpuacct.usage":                           "5000000000\n",
			"cpuacct/cpuacct.usage_percpu":                    "3000000000 2000000000 \n",
			"cpuacct/cpuacct.stat":                            "user 300\nsystem 150\n",
			"cpu/cpu.stat":                                    "nr_periods 10\nnr_throttled 4\nthrottled_time 12345\n",
			"memory/memory.usage_in_bytes":                    "1048576\n",
			"memory/memory.max_usage_in_bytes":                "2097152\n",
			"memory/memory.limit_in_bytes":                    "9223372036854771712\n",
			"memory/memory.failcnt":                           "2\n",
			"memory/memory.stat":                              "cache 4096\nrss 8192\ntotal_inactive_file 4096\n",
			"pids/pids.current":                               "3\n",
			"pids/pids.max":                                   "max\n",
			"blkio/blkio.bfq.io_service_bytes_recursive":      "Total 0\n",
			"blkio/blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 0\n8:0 Total 4096\nTotal 4096\n",
			"blkio/blkio.throttle.io_serviced_recursive":      "8:0 Read 1\nTotal 1\n",
			"blkio/blkio.time_recursive":                      "8:0 99\n",
			"unified/cgroup.procs":                            "",
		}},
		"v2": {[]string{""}, map[string]string{
			"unified/cpu.stat":       "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 10\nnr_throttled 4\nthrottled_usec 12\n",
			"unified/memory.current": "1048576\n",
			"unified/memory.peak":    "2097152\n",
			"unified/memory.max":     "67108864\n",
			"unified/memory.events":  "low 0\noom 2\noom_kill 1\n",
			"unified/memory.stat":    "anon 8192\nfile 4096\ninactive_file 4096\n",
			"unified/pids.current":   "3\n",
			"unified/pids.max":       "100\n",
			"unified/io.stat":        "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n253:1 \n",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir, proc := t.TempDir(), t.TempDir()
			write(t, dir, tc.files)
			write(t, proc, procFiles)
			cg := Cgroup{}
			for _, c := range tc.controllers {
				cg[c] = filepath.Join(dir, c)
				if c == "" {
					cg[c] = filepath.Join(dir, "unified")
				}
			}
			r, err := Read(t.Context(), Source{Cgroup: cg, NetPid: 77, MemTotal: 1 << 30, proc: proc})
			if err != nil {
				t.Fatal(err)
			}
			if since := time.Since(r.Read); since < 0 || since > time.Minute {
				t.Errorf("read at %v", r.Read)
			}
			r.Read = time.Time{}
			b, err := json.MarshalIndent(r, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden.Compare(t, filepath.Join("testdata", name+".json"), append(b, '\n'))
		})
	}
}

func TestGoneContainerIsNotFound(t *testing.T) {
	cg := Cgroup{"memory": "/nonexistent/holdfast/a", "pids": "/nonexistent/holdfast/b", "": "/"}
	if _, err := Read(t.Context(), Source{Cgroup: cg}); !errdefs.IsNotFound(err) {
		t.Errorf("Read: %v", err)
	}
	if _, err := Pids(cg); !errdefs.IsNotFound(err) {
		t.Errorf("Pids: %v", err)
	}
	if _, err := Pids(Cgroup{}); !errdefs.IsNotFound(err) {
		t.Errorf("Pids of nothing: %v", err)
	}
}

func TestPidsOfNestedGroups(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"pids/cgroup.procs":       "20\n3\n",
		"pids/a/cgroup.procs":     "20\n100\n0\n",
		"pids/a/b/cgroup.procs":   "7\n",
		"unified/cgroup.procs":    "1\n",
		"unified/x/cgroup.procs":  "2\n",
		"unified/x/cgroup.events": "populated 1\n",
	})
	for _, tc := range []struct {
		name string
		cg   Cgroup
		want []int
	}{
		{"hybrid", Cgroup{"pids": dir + "/pids", "": dir + "/unified"}, []int{3, 7, 20, 100}},
		{"v2", Cgroup{"": dir + "/unified"}, []int{1, 2}},
	} {
		if got, err := Pids(tc.cg); err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, %v", tc.name, got, err)
		}
	}
}

func TestHostsCountersOfThisMachine(t *testing.T) {
	usage, online, err := systemCPU("/proc")
	if err != nil || usage == 0 || online == 0 {
		t.Errorf("%d, %d, %v", usage, online, err)
	}
	if _, err := interfaces("/proc", os.Getpid()); err != nil {
		t.Error(err)
	}
	if _, err := interfaces("/proc", 1<<30); !errdefs.IsNotFound(err) {
		t.Errorf("interfaces of nobody: %v", err)
	}
}

func TestTopListsOnlyTheContainersProcesses(t *testing.T) {
	me := os.Getpid()
	for _, args := range []string{"", "aux", "-eo pid,args", "-o pid,comm -e"} {
		r, err := Top(t.Context(), []int{me}, args)
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		if len(r.Processes) != 1 || len(r.Processes[0]) != len(r.Titles) {
			t.Errorf("%q: %+v", args, r)
		}
	}
}

func TestTopRefuses(t *testing.T) {
	for args, want := range map[string]string{
		"-o comm":                "Couldn't find PID field in ps output",
		"-e -o comm=PID,pid=X":   `specifying "comm=PID,pid=X" is not allowed`,
		"-o pid=PID -o user=PID": `specifying "user=PID" is not allowed`,
		"--nonsense-option":      "ps: ",
	} {
		_, err := Top(t.Context(), []int{os.Getpid()}, args)
		if err == nil || !strings.Contains(err.Error(), want) || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
}

func TestPsOutput(t *testing.T) {
	out := "UID  PID  TTY CMD\nroot   5 ?   sleep  1 2\nroot   - -   -\nroot   6 ?   other\nroot   - -   -\nweb   7 pts/0 sh -c  'a b'\n\n"
	r, err := parsePs(out, []int{5, 7})
	if err != nil {
		t.Fatal(err)
	}
	want := [][]string{{"root", "5", "?", "sleep  1 2"}, {"root", "-", "-", "-"}, {"web", "7", "pts/0", "sh -c  'a b'"}}
	if !slices.EqualFunc(r.Processes, want, slices.Equal) {
		t.Errorf("%q", r.Processes)
	}
	if _, err := parsePs("PID\nx\n", nil); err == nil {
		t.Error("a pid that is no number was taken")
	}
}

func FuzzParsers(f *testing.F) {
	f.Add(netDev)
	f.Add("8:0 Read 5\n8:0 rbytes=4 wbytes=\ncpu 1 2 3 4 5 6 7\nUID PID\nroot 1\n")
	f.Fuzz(func(t *testing.T, s string) {
		parseNetDev(s)
		parseBlkio(s)
		parseIOStat(s)
		parseKeyed(s)
		parseSystemCPU(s)
		if r, err := parsePs(s, []int{1}); err == nil {
			for _, p := range r.Processes {
				if len(p) > len(r.Titles) {
					t.Errorf("%d fields under %d titles", len(p), len(r.Titles))
				}
			}
		}
	})
}

func TestMemoryLimit(t *testing.T) {
	for _, tc := range []struct {
		limit uint64
		total int64
		want  uint64
	}{{0, 100, 100}, {50, 100, 50}, {1 << 62, 100, 100}, {50, 0, 50}} {
		if got := memoryLimit(tc.limit, tc.total); got != tc.want {
			t.Errorf("memoryLimit(%d, %d) = %d", tc.limit, tc.total, got)
		}
	}
}
