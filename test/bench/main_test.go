package bench

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

var (
	full  = flag.Bool("full", false, "measure with as many rounds and containers as the targets speak of, and beside other engines")
	write = flag.String("write", "", "`file` that gets the report")
	only  = flag.String("only", "", "comma separated parts to measure; empty is all: run, many, size, ps, restart, gaps, logs, net")
	alone = flag.Bool("alone", false, "measure no other engine")
	short = flag.Bool("short-beside", false, "measure beside other engines, as little as without -full")
)

// inside is set for the process in the namespace.
const inside = "HOLDFAST_BENCH_INSIDE"

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(inside) == "" && os.Geteuid() == 0 {
		os.Exit(inNamespace())
	}
	if os.Geteuid() == 0 {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "bring up lo:", err)
			os.Exit(1)
		}
	}
	kit.Main(m)
}

// inNamespace runs this program again in a new network namespace.
func inNamespace() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

// beside says whether other engines are measured.
func beside() bool { return (*full || *short) && !*alone }

func part(name string) bool {
	if *only == "" {
		return true
	}
	for p := range strings.SplitSeq(*only, ",") {
		if p == name {
			return true
		}
	}
	return false
}
