// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/eventserver"
	"holdfast/internal/network/bridge"
	"holdfast/internal/network/dump"
	"holdfast/internal/network/firewall"
)

// Leaks lists what the daemon's containers have left on the host: processes,
// mounts, links, nftables elements, rules in other programs' packet filters,
// cgroups and files. It is meant to be called when there are no containers. It
// does not list what the daemon needs for itself: its bridge, its nftables
// table, the bridge's rules in other tables, and images.
func (d *Daemon) Leaks() []string {
	var out []string
	add := func(kind string, items []string, err error) {
		for _, i := range items {
			out = append(out, kind+" "+i)
		}
		if err != nil {
			out = append(out, fmt.Sprintf("%s can't be looked for: %v", kind, err))
		}
	}
	procs, err := d.settledProcesses()
	var shown []string
	for _, p := range procs {
		if p.pid != d.Pid() || !d.Running() {
			shown = append(shown, fmt.Sprintf("%d: %s", p.pid, p.cmdline))
		}
	}
	add("process", shown, err)
	mounts, err := d.mounts()
	if err == nil {
		add("mount", d.foreignMounts(mounts), nil)
	} else {
		add("mount", nil, err)
	}
	links, err := d.settledPorts()
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	add("link", names, err)
	elements, err := d.nftElements()
	add("nftables element", elements, err)
	rules, err := d.staleRules()
	add("rule in another program's filter", rules, err)
	add("cgroup", d.childCgroups(), nil)
	for _, pattern := range []string{d.DataRoot + "/containers/*", d.ExecRoot + "/shim/*", d.DataRoot + "/volumes/*/_data"} {
		files, err := filepath.Glob(pattern)
		add("file", files, err)
	}
	return out
}

// foreignMounts leaves out the mounts of the image store, which belong to no
// container, and the file system that a test has given the data root.
func (d *Daemon) foreignMounts(all []string) []string {
	var out []string
	for _, m := range all {
		if m != d.DataRoot && !strings.HasPrefix(m, d.DataRoot+"/images") {
			out = append(out, m)
		}
	}
	return out
}

type process struct {
	pid     int
	cmdline string
}

// shimName begins the command line of a shim, before its container's ID.
const shimName = "holdfast-shim "

// isShim reports whether a process is a shim of this daemon: it has files open
// below the root, which may have been removed.
func (d *Daemon) isShim(pid int, cmdline string) bool {
	if !strings.HasPrefix(cmdline, shimName) {
		return false
	}
	links, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/fd/*")
	return slices.ContainsFunc(links, func(link string) bool {
		path, _ := os.Readlink(link)
		return strings.HasPrefix(path, d.Root+"/")
	})
}

// settledProcesses returns the processes, after waiting for those that exit by
// themselves: a shim after it has reported its container's end, an event server
// after its daemon and its clients, a build process that its daemon has stopped, a swarm process whose node has left.
func (d *Daemon) settledProcesses() ([]process, error) {
	late := time.Now().Add(patience)
	for {
		procs, err := d.processes()
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(procs, func(p process) bool {
			return strings.HasPrefix(p.cmdline, shimName) || strings.Contains(p.cmdline, " "+eventserver.Command+" ") ||
				strings.Contains(p.cmdline, "/holdfast-build --data-root ") || strings.Contains(p.cmdline, "/holdfast-swarm --data-root ")
		})
		if i < 0 {
			return procs, nil
		}
		fd, err := unix.PidfdOpen(procs[i].pid, 0)
		if err != nil {
			continue // it has just exited
		}
		err = WaitReadable(fd, time.Until(late))
		unix.Close(fd)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return procs, nil
		}
	}
}

// processes returns the processes with the daemon's root in their command line,
// those in its cgroup, and its shims. Zombies are left out, because they hold
// nothing.
func (d *Daemon) processes() ([]process, error) {
	in := map[int]bool{}
	for _, dir := range d.cgroups() {
		filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
			if err == nil && e.Name() == "cgroup.procs" {
				b, _ := os.ReadFile(path)
				for _, f := range strings.Fields(string(b)) {
					if pid, err := strconv.Atoi(f); err == nil {
						in[pid] = true
					}
				}
			}
			return nil
		})
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if _, err := startTime(pid); err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil {
			continue
		}
		cmdline := strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
		if in[pid] || strings.Contains(cmdline, d.Root+"/") || d.isShim(pid, cmdline) {
			out = append(out, process{pid, cmdline})
		}
	}
	return out, nil
}

// mounts returns the mount points below the root, the deepest first.
func (d *Daemon) mounts() ([]string, error) {
	list, err := mountinfo.GetMounts(mountinfo.PrefixFilter(d.Root))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range list {
		if m.Mountpoint != d.Root { // the kit's own; see Options.Disk
			out = append(out, m.Mountpoint)
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(out)))
	return out, nil
}

// ports returns the links attached to the daemon's bridge.
func (d *Daemon) ports() ([]netlink.Link, error) {
	bridge, err := netlink.LinkByName(d.Bridge)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all, err := dump.Interfaces()
	if err != nil {
		return nil, err
	}
	var out []netlink.Link
	for _, l := range all {
		if l.Attrs().MasterIndex == bridge.Attrs().Index {
			out = append(out, l)
		}
	}
	return out, nil
}

// ownedLinks returns the daemon's bridge, and the links that are described as those
// of its data root: the bridges of user-defined networks, and what is on them.
func (d *Daemon) ownedLinks() ([]netlink.Link, error) {
	all, err := dump.Interfaces()
	if err != nil {
		return nil, err
	}
	var out []netlink.Link
	for _, l := range all {
		a := l.Attrs()
		if root, ours := bridge.Foreign(a.Alias, ""); a.Name == d.Bridge || ours && strings.HasPrefix(root, d.Root+"/") {
			out = append(out, l)
		}
	}
	return out, nil
}

// settledPorts returns the ports after waiting for the kernel: it removes the
// links of an unused network namespace later, from a work queue.
func (d *Daemon) settledPorts() ([]netlink.Link, error) {
	changes := make(chan netlink.LinkUpdate, 64)
	done := make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribe(changes, done); err != nil {
		return nil, err
	}
	late := time.After(15 * time.Second) // the whole machine has one such queue
	for {
		links, err := d.ports()
		if err != nil || len(links) == 0 {
			return links, err
		}
		select {
		case <-changes:
		case <-late:
			return links, nil
		}
	}
}

// listRules lists nftables without gaps, although other tests change it.
func listRules[T any](list func() ([]T, error)) ([]T, error) {
	var rules dump.Nftables
	defer rules.Close()
	return dump.Ruleset(&rules, list)
}

// tables returns the daemon's nftables tables of any family.
func (d *Daemon) tables(c *nftables.Conn) ([]*nftables.Table, error) {
	all, err := listRules(c.ListTables)
	if err != nil {
		return nil, err
	}
	var out []*nftables.Table
	for _, t := range all {
		if t.Name == d.Table {
			out = append(out, t)
		}
	}
	return out, nil
}

// nftElements returns the elements of the table's maps. Each is a published
// port.
func (d *Daemon) nftElements() ([]string, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	tables, err := d.tables(c)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, t := range tables {
		sets, err := listRules(func() ([]*nftables.Set, error) { return c.GetSets(t) })
		if err != nil {
			return out, err
		}
		for _, s := range sets {
			if s.Anonymous {
				continue
			}
			elements, err := listRules(func() ([]nftables.SetElement, error) { return c.GetSetElements(s) })
			if err != nil {
				return out, err
			}
			for _, e := range elements {
				out = append(out, fmt.Sprintf("%s: %x → %x %s", s.Name, e.Key, e.Val, e.Comment))
			}
		}
	}
	return out, nil
}

// staleRules returns the daemon's rules in other programs' packet filters
// that name an interface which no longer exists.
func (d *Daemon) staleRules() ([]string, error) {
	var out []string
	look := func(where, name string) {
		if _, err := netlink.LinkByName(name); err != nil {
			out = append(out, where+": "+name)
		}
	}
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	chains, err := listRules(c.ListChains)
	if err != nil {
		return nil, err
	}
	for _, chain := range chains {
		if chain.Name != d.Table || chain.Table.Name == d.Table {
			continue
		}
		rules, err := listRules(func() ([]*nftables.Rule, error) { return c.GetRules(chain.Table, chain) })
		if err != nil {
			return out, err
		}
		for _, r := range rules {
			named := false
			for _, e := range r.Exprs {
				switch e := e.(type) {
				case *expr.Meta:
					named = e.Key == expr.MetaKeyIIFNAME || e.Key == expr.MetaKeyOIFNAME
				case *expr.Cmp:
					if named {
						look("nft "+chain.Table.Name, unix.ByteSliceToString(e.Data))
					}
				}
			}
		}
	}
	for _, family := range []string{"ip", "ip6"} {
		// Listing a legacy table would create it, so check first whether it
		// exists.
		names, _ := os.ReadFile("/proc/net/" + family + "_tables_names") // without legacy tables the file does not exist
		if !slices.Contains(strings.Fields(string(names)), "filter") {
			continue
		}
		save, err := exec.Command("/usr/sbin/"+family+"tables-legacy-save", "-t", "filter").Output()
		if err != nil {
			return out, fmt.Errorf("%stables-legacy-save: %w", family, err)
		}
		for line := range strings.Lines(string(save)) {
			if f := strings.Fields(line); len(f) > 3 && f[0] == "-A" && f[1] == d.Table {
				look("legacy "+family, f[3])
			}
		}
	}
	return out, nil
}

// removeRules removes the daemon's rules from other programs' packet filters.
func (d *Daemon) removeRules() error {
	t, err := firewall.Open(d.Table)
	if err != nil {
		return err
	}
	_, err = t.Admit(firewall.Admission{})
	_, err2 := firewall.Legacy{}.Admit(d.Table, firewall.Admission{})
	var zones firewall.Firewalld
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return errors.Join(err, err2, zones.Forget(ctx, d.Bridge), zones.Close(), t.Close())
}

// cgroups returns the daemon's parent cgroups, one in each hierarchy.
func (d *Daemon) cgroups() []string {
	var out []string
	for _, pattern := range []string{"/sys/fs/cgroup" + d.Cgroup, "/sys/fs/cgroup/*" + d.Cgroup} {
		dirs, _ := filepath.Glob(pattern) // it fails only for bad patterns
		out = append(out, dirs...)
	}
	return out
}

func (d *Daemon) childCgroups() []string {
	var out []string
	for _, dir := range d.cgroups() {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.IsDir() {
				out = append(out, filepath.Join(dir, e.Name()))
			}
		}
	}
	return out
}

// scrub removes everything with the daemon's names, whichever process left it.
func (d *Daemon) scrub() error {
	var errs []error
	d.thaw()
	// When a shim is killed, its container's process may only be found in the
	// next round.
	for range 10 {
		procs, err := d.processes()
		if err != nil || len(procs) == 0 {
			errs = append(errs, err)
			break
		}
		for _, p := range procs {
			errs = append(errs, killAndWait(p.pid))
		}
	}
	mounts, err := d.mounts()
	errs = append(errs, err)
	for _, m := range mounts {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	ports, err := d.ports()
	errs = append(errs, err)
	for _, l := range ports {
		if err := netlink.LinkDel(l); err != nil && err != unix.ENODEV {
			errs = append(errs, fmt.Errorf("delete link %s: %w", l.Attrs().Name, err))
		}
	}
	owned, err := d.ownedLinks()
	errs = append(errs, err)
	for _, l := range owned {
		if err := netlink.LinkDel(l); err != nil && err != unix.ENODEV {
			errs = append(errs, fmt.Errorf("delete link %s: %w", l.Attrs().Name, err))
		}
	}
	errs = append(errs, d.dropTables(), d.removeRules())
	for _, dir := range d.cgroups() {
		errs = append(errs, removeCgroup(dir))
	}
	// Keep the root after an error: it names its owner, so the next sweep can
	// find the rest.
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if !d.opts.Disk {
		if err := unix.Unmount(d.Root, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			return fmt.Errorf("unmount %s: %w", d.Root, err)
		}
	}
	return os.RemoveAll(d.Root)
}

func (d *Daemon) dropTables() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := d.tables(c)
	if err != nil || len(tables) == 0 {
		return err
	}
	for _, t := range tables {
		c.DelTable(t)
	}
	return c.Flush()
}

// thaw resumes paused containers, because frozen processes do not die. A cgroup
// without a freezer has nothing frozen.
func (d *Daemon) thaw() {
	for _, root := range d.cgroups() {
		_ = filepath.WalkDir(root, func(dir string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				_ = os.WriteFile(dir+"/freezer.state", []byte("THAWED"), 0)
				_ = os.WriteFile(dir+"/cgroup.freeze", []byte("0"), 0)
			}
			return nil
		})
	}
}

// killAndWait kills a process by a pidfd, which can't refer to a process that
// reuses the pid.
func killAndWait(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // it has exited
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	if err := WaitReadable(fd, 10*time.Second); err != nil {
		return fmt.Errorf("process %d does not die: %w", pid, err)
	}
	return nil
}

// WaitReadable waits until a descriptor is readable. A pidfd (pidfd_open(2)) is
// when its process has ended. Go's scheduler may interrupt poll at any time, so
// it is repeated.
func WaitReadable(fd int, within time.Duration) error {
	for late := time.Now().Add(within); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, max(0, int(time.Until(late).Milliseconds())))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return os.NewSyscallError("poll", err)
		case n == 0:
			return os.ErrDeadlineExceeded
		default:
			return nil
		}
	}
}

// removeCgroup removes a cgroup with all below it.
func removeCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	errs := []error{err}
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := rmdirWhenFree(dirs[i]); err != nil && err != unix.ENOENT {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dirs[i], err))
		}
	}
	return errors.Join(errs...)
}

// rmdirWhenFree removes a cgroup once the processes that were just killed in it
// have left. A v1 hierarchy sends no event for that, so it tries again for a
// while.
func rmdirWhenFree(dir string) error {
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	enough := time.After(5 * time.Second)
	for {
		err := unix.Rmdir(dir)
		if err != unix.EBUSY {
			return err
		}
		select {
		case <-again.C:
		case <-enough:
			return err
		}
	}
}

var sweepOnce sync.Once

// sweep removes what killed test processes have left.
func sweep() {
	owners, _ := filepath.Glob("/tmp/hf-*/owner")
	for _, path := range owners {
		b, err := os.ReadFile(path)
		f := strings.Fields(string(b))
		if err != nil || len(f) != 2 {
			continue
		}
		pid, err := strconv.Atoi(f[0])
		if err != nil {
			continue
		}
		if start, err := startTime(pid); err == nil && start == f[1] {
			continue // its test process is running
		}
		root := filepath.Dir(path)
		id := filepath.Base(root)
		d := &Daemon{ID: id, Root: root, DataRoot: root + "/data", ExecRoot: root + "/run", Bridge: "hf" + id[3:], Cgroup: "/" + id}
		d.Table = "holdfast-" + d.Bridge
		if err := d.scrub(); err != nil {
			fmt.Fprintf(os.Stderr, "sweep %s: %v\n", root, err)
		}
	}
	bins, _ := filepath.Glob("/tmp/hfbin-*")
	for _, dir := range bins {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), "hfbin-"))
		if err != nil {
			continue
		}
		if _, err := startTime(pid); err != nil {
			os.RemoveAll(dir)
		}
	}
}
