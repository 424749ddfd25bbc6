// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"holdfast/test/soak/judge"
)

// recorder measures, and keeps the series in the order of their first point.
type recorder struct {
	h      *house
	series []*judge.Series
	born   map[int]time.Time // when a pid was first seen
	cpu    map[int]float64   // CPU seconds of a process at the last sample
	last   time.Time
	took   time.Duration // the longest sample
	worst  map[int]usage // of each shim, at the last sample
	// warm is how long the soak must last before sizes and times are judged, and full
	// before those of all shims together are: the heap of each grows to its bound first,
	// and with little to do that takes its time. The largest is judged before.
	warm, full, settle float64
}

// usage is what a process uses.
type usage struct {
	pss, anon, descriptors, threads, watches float64
}

func newRecorder(h *house, length time.Duration) *recorder {
	return &recorder{h: h, born: map[int]time.Time{}, cpu: map[int]float64{}, warm: 300, full: 1500, settle: min(120, length.Seconds()/20)}
}

// put adds a point. kind is the series' name and rule, used at its first point.
func (r *recorder) put(kind judge.Series, p judge.Point) {
	i := slices.IndexFunc(r.series, func(s *judge.Series) bool { return s.Group == kind.Group && s.Name == kind.Name })
	if i < 0 {
		i = len(r.series)
		r.series = append(r.series, &kind)
	}
	r.series[i].Points = append(r.series[i].Points, p)
}

// list returns the series, those of a group together.
func (r *recorder) list() (out []judge.Series) {
	var groups []string
	for _, s := range r.series {
		if !slices.Contains(groups, s.Group) {
			groups = append(groups, s.Group)
		}
		out = append(out, *s)
	}
	slices.SortStableFunc(out, func(a, b judge.Series) int {
		return slices.Index(groups, a.Group) - slices.Index(groups, b.Group)
	})
	return out
}

// sample measures everything once.
func (r *recorder) sample() error {
	began := time.Now()
	reapShims()
	o, err := r.h.d.Objects()
	if err != nil {
		return err
	}
	at := judge.Point{At: began.Sub(r.h.began).Seconds(), Age: began.Sub(r.h.began).Seconds()}
	point := func(v float64) judge.Point { p := at; p.Value = v; return p }
	used := map[int]usage{}
	for _, pids := range o.Own {
		for _, pid := range pids {
			if u, ok := use(pid); ok {
				used[pid] = u
			}
			if _, known := r.born[pid]; !known {
				r.born[pid] = began
			}
		}
	}
	spent := r.spent(o.Own, began)

	// One process at a time, whose lives are told apart.
	for _, kind := range []struct{ name, group string }{{"daemon", "daemon"}, {"events", "event server"}, {"build", "build process"}} {
		pids := o.Own[kind.name]
		if len(pids) == 0 {
			continue
		}
		// One that has handed over may serve its last streams still.
		pid := slices.MaxFunc(pids, func(a, b int) int { return r.born[a].Compare(r.born[b]) })
		u := used[pid]
		life := func(v float64) judge.Point {
			p := point(v)
			p.Life, p.Age = pid, began.Sub(r.born[pid]).Seconds()
			return p
		}
		rule := judge.Series{Group: kind.group, Settle: r.settle}
		size := rule
		size.Unit, size.Absolute, size.Relative, size.Least = "MB", 4, 0.2, r.warm
		size.Name = "anonymous memory"
		r.put(size, life(u.anon/1024))
		rule.Absolute, rule.Name = 8, "descriptors"
		r.put(rule, life(u.descriptors))
		if kind.name == "daemon" {
			rule.Absolute, rule.Relative, rule.Name = 30, 0.05, "goroutines"
			if n, ok := r.goroutines(); ok {
				r.put(rule, life(n))
			}
		} else {
			rule.Absolute, rule.Name = 4, "threads"
			r.put(rule, life(u.threads))
		}
		if s, ok := spent[kind.name]; ok {
			r.put(judge.Series{Group: kind.group, Name: "CPU time", Unit: "% of a core", Absolute: 6, Relative: 0.4, Settle: r.settle, Least: r.warm}, life(s))
		}
	}

	var all, most usage
	for _, pid := range o.Own["shim"] {
		u := used[pid]
		all.pss, all.anon, all.descriptors, all.threads, all.watches = all.pss+u.pss, all.anon+u.anon, all.descriptors+u.descriptors, all.threads+u.threads, all.watches+u.watches
		most.anon, most.descriptors = max(most.anon, u.anon), max(most.descriptors, u.descriptors)
	}
	r.worst = map[int]usage{}
	for _, pid := range o.Own["shim"] {
		r.worst[pid] = used[pid]
	}
	shims := func(name, unit string, absolute, relative, least, v float64) {
		r.put(judge.Series{Group: "all shims", Name: name, Unit: unit, Absolute: absolute, Relative: relative, Least: least}, point(v))
	}
	shims("PSS", "MB", 4, 0.05, r.full, all.pss/1024)
	shims("anonymous memory", "MB", 4, 0.05, r.full, all.anon/1024)
	shims("descriptors", "", 12, 0.003, 0, all.descriptors)
	shims("threads", "", 12, 0.02, r.full, all.threads)
	if s, ok := spent["shim"]; ok {
		shims("CPU time", "% of a core", 6, 0.4, r.warm, s)
	}
	shims("descriptors of the largest", "", 6, 0, 0, most.descriptors)
	shims("anonymous, of the largest", "MB", 0.5, 0.1, r.warm, most.anon/1024)

	objects := func(name string, absolute, relative, v float64) {
		r.put(judge.Series{Group: "kernel objects", Name: name, Absolute: absolute, Relative: relative}, point(v))
	}
	own, watches := 0, 0.0
	for _, pids := range o.Own {
		own += len(pids)
		for _, pid := range pids {
			watches += used[pid].watches
		}
	}
	objects("own processes", 4, 0, float64(own))
	objects("processes in containers", 8, 0, float64(o.Contained))
	objects("zombies", 2, 0, float64(o.Zombies))
	objects("mounts", 6, 0, float64(o.Mounts))
	objects("network namespaces", 3, 0, float64(o.Netns))
	objects("links", 3, 0, float64(o.Links))
	objects("nftables elements", 4, 0, float64(o.Elements))
	objects("cgroups", 8, 0, float64(o.Cgroups))
	objects("inotify watches", 4, 0, watches)

	data, err := usageOf(r.h.d.DataRoot, r.h.d.DataRoot+"/events")
	if err != nil {
		return err
	}
	events, err := usageOf(r.h.d.DataRoot+"/events", "")
	if err != nil {
		return err
	}
	run, err := usageOf(r.h.d.ExecRoot, "")
	if err != nil {
		return err
	}
	disk := judge.Series{Group: "disk", Least: r.warm}
	disk.Name, disk.Unit, disk.Absolute, disk.Relative = "data root, without events", "MB", 2, 0.05
	r.put(disk, point(data.bytes/1e6))
	disk.Name, disk.Unit, disk.Absolute, disk.Relative, disk.Least = "files in the data root", "", 40, 0.01, r.warm
	r.put(disk, point(data.files))
	r.put(judge.Series{Group: "disk", Name: "event journal", Unit: "MB", Most: 64 * 1.048576, Least: r.warm}, point(events.bytes/1e6))
	disk.Name, disk.Unit, disk.Absolute, disk.Relative = "run directory", "kB", 300, 0.05
	r.put(disk, point(run.bytes/1e3))
	disk.Name, disk.Unit, disk.Absolute, disk.Relative = "files in the run directory", "", 20, 0.01
	r.put(disk, point(run.files))

	r.last = began
	r.took = max(r.took, time.Since(began))
	return nil
}

// reapShims reaps ended shims whose daemon has died before them, as PID 1 of a host
// does.
func reapShims() {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, path := range lists {
		list, _ := os.ReadFile(path)
		for pid := range strings.FieldsSeq(string(list)) {
			if stat, _ := os.ReadFile("/proc/" + pid + "/stat"); strings.Contains(string(stat), "(holdfast-shim) Z") {
				n, _ := strconv.Atoi(pid)
				unix.Wait4(n, nil, unix.WNOHANG, nil)
			}
		}
	}
}

// goroutines asks the daemon. It may just be dead.
func (r *recorder) goroutines() (float64, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	info, err := r.h.api.Info(ctx, client.InfoOptions{})
	return float64(info.Info.NGoroutines), err == nil
}

// spent returns the CPU time since the last sample by the kind of process, in percent
// of one CPU, of the processes that were there at both.
func (r *recorder) spent(own map[string][]int, now time.Time) map[string]float64 {
	out, next := map[string]float64{}, map[int]float64{}
	for kind, pids := range own {
		for _, pid := range pids {
			s, ok := cpu(pid)
			if !ok {
				continue
			}
			next[pid] = s
			if before, known := r.cpu[pid]; known && !r.last.IsZero() {
				out[kind] += (s - before) / now.Sub(r.last).Seconds() * 100
			}
		}
	}
	r.cpu = next
	return out
}

// cpu returns the CPU seconds of a process, without its children.
func cpu(pid int) (float64, bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(f) < 13 {
		return 0, false
	}
	user, err := strconv.ParseFloat(f[11], 64)
	if err != nil {
		return 0, false
	}
	system, err := strconv.ParseFloat(f[12], 64)
	return (user + system) / 100, err == nil
}

// use reads what a process uses, sizes in kB. ok is false if it has ended.
func use(pid int) (u usage, ok bool) {
	proc := fmt.Sprintf("/proc/%d/", pid)
	rollup, err := os.ReadFile(proc + "smaps_rollup")
	if err != nil {
		return u, false
	}
	for line := range strings.Lines(string(rollup)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		kB, _ := strconv.ParseFloat(f[1], 64)
		switch f[0] {
		case "Pss:":
			u.pss = kB
		case "Pss_Anon:":
			u.anon = kB
		}
	}
	tasks, err := os.ReadDir(proc + "task")
	if err != nil {
		return u, false
	}
	u.threads = float64(len(tasks))
	fds, err := os.ReadDir(proc + "fd")
	if err != nil {
		return u, false
	}
	u.descriptors = float64(len(fds))
	for _, fd := range fds {
		if target, err := os.Readlink(proc + "fd/" + fd.Name()); err == nil && strings.HasSuffix(target, "inotify") {
			info, _ := os.ReadFile(proc + "fdinfo/" + fd.Name()) // closed meanwhile
			u.watches += float64(strings.Count(string(info), "inotify wd:"))
		}
	}
	return u, true
}

// space is what a folder takes on its own file system.
type space struct{ bytes, files float64 }

func usageOf(dir, except string) (s space, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return s, &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	device := st.Dev
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err != nil || unix.Lstat(path, &st) != nil {
			return nil // it was removed meanwhile
		}
		if e.IsDir() && (st.Dev != device || path == except) {
			return fs.SkipDir
		}
		s.bytes += float64(st.Blocks) * 512
		s.files++
		return nil
	})
	return s, err
}

// widest describes the shims with the most descriptors, for a report.
func (r *recorder) widest() string {
	pids := slices.Collect(func(yield func(int) bool) {
		for pid := range r.worst {
			if !yield(pid) {
				return
			}
		}
	})
	slices.SortFunc(pids, func(a, b int) int { return int(r.worst[b].descriptors - r.worst[a].descriptors) })
	var b strings.Builder
	for _, pid := range pids[:min(3, len(pids))] {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		fmt.Fprintf(&b, "shim %d (%s): %.0f descriptors\n", pid, strings.ReplaceAll(string(cmdline), "\x00", " "), r.worst[pid].descriptors)
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		kinds := map[string]int{}
		for _, fd := range fds {
			target, _ := os.Readlink(fd)
			kind, _, _ := strings.Cut(target, ":")
			kinds[kind]++
		}
		fmt.Fprintln(&b, kinds)
	}
	return b.String()
}
