package kit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
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

	"holdfast/internal/network/firewall"
)

// Leaks lists what of the daemon's containers is left on the host: processes,
// mounts, links, nftables elements, rules in other programs' packet filters,
// cgroups and files. It is meant for when no container should be; what the
// daemon needs for itself (its bridge, the table's frame and the bridge's rules
// in other tables, images) is not listed.
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
	rules, err := d.rulesOfNothing()
	add("rule in another program's filter", rules, err)
	add("cgroup", d.childCgroups(), nil)
	for _, pattern := range []string{d.DataRoot + "/containers/*", d.ExecRoot + "/shim/*", d.DataRoot + "/volumes/*/_data"} {
		files, err := filepath.Glob(pattern)
		add("file", files, err)
	}
	return out
}

// foreignMounts leaves out the mounts that belong to the image store and not
// to a container.
func (d *Daemon) foreignMounts(all []string) []string {
	var out []string
	for _, m := range all {
		if !strings.HasPrefix(m, d.DataRoot+"/images") {
			out = append(out, m)
		}
	}
	return out
}

type process struct {
	pid     int
	cmdline string
}

// shimName is what a shim calls itself, before its container's ID.
const shimName = "holdfast-shim "

// isShim reports whether a process is a shim of the daemon's: it has files open
// below the root, which may be gone.
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

// settledProcesses are the processes once shims had their time: a shim leaves
// after its container's end was told.
func (d *Daemon) settledProcesses() ([]process, error) {
	late := time.Now().Add(patience)
	for {
		procs, err := d.processes()
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(procs, func(p process) bool { return strings.HasPrefix(p.cmdline, shimName) })
		if i < 0 {
			return procs, nil
		}
		fd, err := unix.PidfdOpen(procs[i].pid, 0)
		if err != nil {
			continue // it has just gone
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, max(0, int(time.Until(late).Milliseconds())))
		unix.Close(fd)
		if n == 0 && err == nil {
			return procs, nil
		}
	}
}

// processes are those that have the daemon's root in their command line, those
// in its cgroup, and its shims. Zombies hold nothing and are left out.
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

// mounts are the mount points below the root, the deepest first.
func (d *Daemon) mounts() ([]string, error) {
	list, err := mountinfo.GetMounts(mountinfo.PrefixFilter(d.Root))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range list {
		out = append(out, m.Mountpoint)
	}
	sort.Sort(sort.Reverse(sort.StringSlice(out)))
	return out, nil
}

// ports are the links that hang on the daemon's bridge.
func (d *Daemon) ports() ([]netlink.Link, error) {
	bridge, err := netlink.LinkByName(d.Bridge)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all, err := netlink.LinkList()
	for range 1000 {
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
		all, err = netlink.LinkList() // of a host on which other tests run
	}
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

// settledPorts are the ports once the kernel had its time: a network namespace
// that was given up takes its links along from a work queue, later.
func (d *Daemon) settledPorts() ([]netlink.Link, error) {
	changes := make(chan netlink.LinkUpdate, 64)
	done := make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribe(changes, done); err != nil {
		return nil, err
	}
	late := time.After(15 * time.Second) // the queue is one for the whole machine
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

// tables are the daemon's nftables tables, of any family.
func (d *Daemon) tables(c *nftables.Conn) ([]*nftables.Table, error) {
	all, err := c.ListTables()
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

// nftElements are the elements of the table's maps: each is a published port.
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
		sets, err := c.GetSets(t)
		if err != nil {
			return out, err
		}
		for _, s := range sets {
			if s.Anonymous {
				continue
			}
			elements, err := c.GetSetElements(s)
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

// rulesOfNothing are the daemon's rules in other programs' packet filters that
// name an interface that is gone.
func (d *Daemon) rulesOfNothing() ([]string, error) {
	var out []string
	look := func(where, name string) {
		if _, err := net.InterfaceByName(name); err != nil {
			out = append(out, where+": "+name)
		}
	}
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, err
	}
	for _, chain := range chains {
		if chain.Name != d.Table || chain.Table.Name == d.Table {
			continue
		}
		rules, err := c.GetRules(chain.Table, chain)
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
		// Who asks for a table makes it.
		names, _ := os.ReadFile("/proc/net/" + family + "_tables_names") // without legacy tables there is none
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

// withdraw takes the daemon's rules out of other programs' packet filters.
func (d *Daemon) withdraw() error {
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

// cgroups are the daemon's parent cgroups, one in each hierarchy.
func (d *Daemon) cgroups() []string {
	var out []string
	for _, pattern := range []string{"/sys/fs/cgroup" + d.Cgroup, "/sys/fs/cgroup/*" + d.Cgroup} {
		dirs, _ := filepath.Glob(pattern) // fails on bad patterns alone
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

// scrub removes everything that has the daemon's names, whoever left it.
func (d *Daemon) scrub() error {
	var errs []error
	d.thaw()
	// Killing a shim may leave its container to the next round.
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
	if l, err := netlink.LinkByName(d.Bridge); err == nil {
		if err := netlink.LinkDel(l); err != nil && err != unix.ENODEV {
			errs = append(errs, fmt.Errorf("delete link %s: %w", d.Bridge, err))
		}
	}
	errs = append(errs, d.dropTables(), d.withdraw())
	for _, dir := range d.cgroups() {
		errs = append(errs, removeCgroup(dir))
	}
	errs = append(errs, os.RemoveAll(d.Root))
	return errors.Join(errs...)
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

// thaw lets the processes of paused containers run, for frozen ones don't die.
// What has no freezer has nothing frozen.
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

// killAndWait kills a process, whichever it is, by a descriptor that can't
// come to mean another one.
func killAndWait(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // gone
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Until(deadline).Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return fmt.Errorf("process %d does not die: %w", pid, errors.Join(err))
		}
		return nil
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

// rmdirWhenFree removes a cgroup once the processes that were just killed in
// it have left. On a v1 hierarchy nothing tells when that is, so it tries
// again for a while.
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

// sweep removes what test processes left that were killed.
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
			continue // it lives
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
