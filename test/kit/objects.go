// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Objects counts what the daemon and its containers have on the host.
type Objects struct {
	// Own are the pids of the daemon's programs, by the kind: daemon, shim, events,
	// build, and other, such as OCI runtimes.
	Own map[string][]int
	// Contained are the processes in containers' cgroups.
	Contained int
	// Zombies are ended processes that an own process has not reaped.
	Zombies int
	// Netns are the network namespaces of all these processes.
	Netns int
	// Mounts are those below the root, Links those on the daemon's bridge, Elements
	// those of the nftables table's maps, and Cgroups those below the daemon's, in
	// all hierarchies.
	Mounts, Links, Elements, Cgroups int
}

// Objects looks at the host.
func (d *Daemon) Objects() (Objects, error) {
	o := Objects{Own: map[string][]int{}}
	inside := map[int]bool{}
	for _, dir := range d.cgroups() {
		o.Cgroups--
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return nil // it was removed meanwhile
			}
			if e.IsDir() {
				o.Cgroups++
			}
			if e.Name() == "cgroup.procs" {
				b, _ := os.ReadFile(path)
				for f := range strings.FieldsSeq(string(b)) {
					if pid, err := strconv.Atoi(f); err == nil {
						inside[pid] = true
					}
				}
			}
			return nil
		})
		if err != nil {
			return o, err
		}
	}
	procs, err := d.processes()
	if err != nil {
		return o, err
	}
	parents, netns := map[int]bool{}, map[string]bool{}
	for _, p := range procs {
		if ns, err := os.Readlink("/proc/" + strconv.Itoa(p.pid) + "/ns/net"); err == nil {
			netns[ns] = true
		}
		if inside[p.pid] {
			o.Contained++
			continue
		}
		parents[p.pid] = true
		kind := d.kind(p)
		o.Own[kind] = append(o.Own[kind], p.pid)
	}
	o.Netns = len(netns)
	if o.Zombies, err = zombies(parents); err != nil {
		return o, err
	}
	mounts, err := d.mounts()
	if err != nil {
		return o, err
	}
	links, err := d.ports()
	if err != nil {
		return o, err
	}
	elements, err := d.nftElements()
	o.Mounts, o.Links, o.Elements = len(mounts), len(links), len(elements)
	return o, err
}

// kind says which of the daemon's programs a process runs.
func (d *Daemon) kind(p process) string {
	switch program, _, _ := strings.Cut(p.cmdline, " "); {
	case strings.HasPrefix(p.cmdline, shimName):
		return "shim"
	case strings.Contains(p.cmdline, " serve-events "):
		return "events"
	case filepath.Base(program) == "holdfastd":
		return "daemon"
	case filepath.Base(program) == "holdfast-build":
		return "build"
	default:
		return "other"
	}
}

// zombies counts those with one of the parents.
func zombies(parents map[int]bool) (n int, err error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(f) < 2 || f[0] != "Z" {
			continue
		}
		if parent, err := strconv.Atoi(f[1]); err == nil && parents[parent] {
			n++
		}
	}
	return n, nil
}
