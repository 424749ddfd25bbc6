// SPDX-License-Identifier: Apache-2.0

package power

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/test/kit"
	"holdfast/test/power/disk"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == initName {
		os.Exit(initMain(os.Args[2:]))
	}
	kit.Main(m)
}

// machine is what a daemon runs on: namespaces for processes, mounts and the
// network, and a disk. When its first process is killed, the kernel takes all of
// it away at once, as a loss of power does, apart from the disk.
type machine struct {
	t  testing.TB
	d  *kit.Daemon
	fs filesystem
	// device is the disk of the next boot.
	device string
	// alive is open for writing as long as the test's process lives.
	alive *os.File
	read  *os.File
}

// newMachine makes a machine without a disk.
func newMachine(t testing.TB, fs filesystem, config map[string]any) *machine {
	t.Helper()
	m := &machine{t: t, fs: fs}
	var err error
	if m.read, m.alive, err = os.Pipe(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.read.Close()
		m.alive.Close()
	})
	m.d = kit.New(t, kit.Options{Config: config, Wrap: m.wrap})
	return m
}

// wrap makes the daemon's command the one that the machine boots.
func (m *machine) wrap(cmd *exec.Cmd) {
	self, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	boot := m.d.Root + "/boot_id"
	if err := os.WriteFile(boot, []byte(uuid.NewString()+"\n"), 0o444); err != nil {
		m.t.Fatal(err)
	}
	if err := os.MkdirAll(m.d.DataRoot, 0o700); err != nil {
		m.t.Fatal(err)
	}
	cmd.Args = append([]string{self, initName, m.device, m.fs.name, m.fs.options, m.d.DataRoot, boot, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = self
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET
	cmd.ExtraFiles = []*os.File{m.read}
}

// boot starts the machine with a disk, and returns when the daemon is ready. The
// daemon's log begins anew.
func (m *machine) boot(device string) error {
	m.device = device
	if err := os.RemoveAll(m.d.LogFile()); err != nil {
		return err
	}
	return m.d.TryStart()
}

// forward makes an address of the host's loopback interface reachable at the same
// address in the machine. The listener keeps the machine's network until it is
// closed.
func (m *machine) forward(address string) net.Listener {
	m.t.Helper()
	var l net.Listener
	err := kit.InNetns(fmt.Sprintf("/proc/%d/ns/net", m.d.Pid()), func() (err error) {
		l, err = net.Listen("tcp4", address)
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return // it was closed
			}
			go relay(in, address)
		}
	}()
	return l
}

func relay(in net.Conn, address string) {
	defer in.Close()
	out, err := net.Dial("tcp4", address)
	if err != nil {
		return // the client sees the connection end
	}
	defer out.Close()
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(out, in)
		close(done)
	}()
	_, _ = io.Copy(in, out)
	in.Close()
	<-done
}

// off takes the power away.
func (m *machine) off() {
	m.t.Helper()
	m.d.PowerOff()
}

// initName is the first argument of the machine's first process.
const initName = "machine-init"

// initMain is that process. It ends with the daemon, and when the test's process
// does.
func initMain(args []string) int {
	if err := bootUp(args); err != nil {
		fmt.Fprintln(os.Stderr, "machine:", err)
		return 1
	}
	daemon := exec.Command(args[5], args[6:]...)
	daemon.Stdout, daemon.Stderr = os.Stdout, os.Stderr
	ended := make(chan os.Signal, 16)
	signal.Notify(ended, unix.SIGCHLD)
	passed := make(chan os.Signal, 16)
	signal.Notify(passed, unix.SIGTERM, unix.SIGHUP)
	gone := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.NewFile(3, "alive"))
		close(gone)
	}()
	if err := daemon.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "machine:", err)
		return 1
	}
	for {
		select {
		case <-gone:
			return 1
		case s := <-passed:
			_ = daemon.Process.Signal(s) // it may just have ended
		case <-ended:
			if code, over := reap(daemon.Process.Pid); over {
				return code
			}
		}
	}
}

// reap reaps every child that has ended, as the first process of a machine does,
// and reports whether the daemon was one of them.
func reap(daemon int) (code int, over bool) {
	for {
		var s unix.WaitStatus
		pid, err := unix.Wait4(-1, &s, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid == 0 {
			return code, over
		}
		if pid == daemon {
			code, over = s.ExitStatus(), true
		}
	}
}

// bootUp sets up what the machine's processes see.
func bootUp(args []string) error {
	device, fs, options, dir, boot := args[0], args[1], args[2], args[3], args[4]
	var errs []error
	do := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	do("make all mounts private", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	do("mount /proc", unix.Mount("proc", "/proc", "proc", 0, ""))
	do("change the boot ID", unix.Mount(boot, "/proc/sys/kernel/random/boot_id", "", unix.MS_BIND, ""))
	do("mount the disk", unix.Mount(device, dir, fs, 0, options))
	lo, err := netlink.LinkByName("lo")
	do("look for lo", err)
	if err == nil {
		do("set lo up", netlink.LinkSetUp(lo))
	}
	return errors.Join(errs...)
}

// filesystem is a kind of file system that a disk has.
type filesystem struct {
	name    string
	mkfs    []string // the command, without the path
	size    int64
	options string // that make as little durable as the kernel may
	whole   int    // what it needs the disk to write as a whole, in bytes
}

// filesystems are those that a data root may be on. Each has another idea of what
// a sync of one file makes durable besides: ext4 all that happened before; XFS all
// names, but no content of other files; btrfs that file, its names and little else.
var filesystems = []filesystem{
	{"ext4", []string{"mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-J", "size=8", "-E", "lazy_itable_init=0,lazy_journal_init=0"}, 192 << 20,
		// By default the kernel writes a replaced file before the rename, for programs
		// that don't, and commits its journal every five seconds.
		// It can't be mounted with a torn superblock, of the disk or of the journal.
		"noauto_da_alloc,commit=600", 1024},
	{"xfs", []string{"mkfs.xfs", "-q", "-f"}, 320 << 20, "noquota", disk.Sector},
	{"btrfs", []string{"mkfs.btrfs", "-q", "-f", "-m", "single", "-d", "single"}, 320 << 20, "commit=600",
		// It can't be mounted with a torn superblock.
		4096},
}

// make makes an empty file system in a file.
func (f filesystem) make(t testing.TB, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, f.size); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(f.mkfs[0], append(f.mkfs[1:], path)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
}
