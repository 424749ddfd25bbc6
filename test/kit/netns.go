// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/osthread"
)

// Netns is a network namespace. The zero value is that of the test process.
type Netns struct{ file *os.File }

// NewNetns makes a network namespace in which only lo is up. It exists until
// its last process ends, and at least until the test ends.
func NewNetns(t testing.TB) Netns {
	t.Helper()
	var n Netns
	err := osthread.RunInNetns(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if n.file, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		return setLoopbackUp()
	})
	if n.file != nil {
		t.Cleanup(func() { n.file.Close() })
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// File is a descriptor of the namespace. It is valid until the test ends.
func (n Netns) File() *os.File { return n.file }

// NetnsOf returns the network namespace of a process. Its descriptor is closed when
// the test ends.
func NetnsOf(t testing.TB, pid int) Netns {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return Netns{f}
}

// Run calls fn in the namespace. Descriptors that fn opens and processes that
// it starts belong to the namespace.
func (n Netns) Run(fn func() error) error {
	if n.file == nil {
		return fn()
	}
	return osthread.RunInNetns(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return fn()
	})
}

// InNetns calls fn on a thread in the network namespace at path, such as
// /proc/PID/ns/net. fn may only use what stays on its thread: plain system calls.
func InNetns(path string, fn func() error) error {
	return osthread.Run(func() error {
		ns, err := os.Open(path)
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return fn()
	})
}

// isolatedEnv is set in the environment of a test process in namespaces of its
// own.
const isolatedEnv = "HOLDFAST_TEST_ISOLATED"

// Isolate moves the test process, with all threads and later children, into a
// network namespace of its own in which only lo is up, and into new namespaces of
// the kinds in more, such as unix.CLONE_NEWNS. So tests don't affect the
// interfaces, rules and ports of the host. TestMain calls it first: a process can't
// move its other threads, so it executes itself again. It needs root.
func Isolate(more int) {
	if os.Getenv(isolatedEnv) == "" {
		err := osthread.Run(func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET | more); err != nil {
				return os.NewSyscallError("unshare", err)
			}
			return syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), isolatedEnv+"=1"))
		})
		fmt.Fprintln(os.Stderr, "these tests need root and namespaces of their own:", err)
		os.Exit(1)
	}
	if err := setLoopbackUp(); err != nil {
		fmt.Fprintln(os.Stderr, "set the interface lo up:", err)
		os.Exit(1)
	}
}

// aloneEnv is set in the environment of a test process that Alone has started.
const aloneEnv = "HOLDFAST_TEST_ALONE"

// Alone reports whether the test has the namespaces of Isolate to itself. If not, it
// runs the test in a process that has. It is for a test after which the kernel treats
// a namespace differently for good, even if everything is removed again.
func Alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv(aloneEnv) == t.Name() {
		return true
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, isolatedEnv+"=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, aloneEnv+"="+t.Name())
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()+" ") {
		t.Errorf("%v:\n%s", err, out)
	}
	return false
}

func setLoopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}
