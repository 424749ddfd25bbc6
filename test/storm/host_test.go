// SPDX-License-Identifier: Apache-2.0

package storm

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
)

// onHost describes what is on the host, from which the cause of a violation may be
// found: processes, sockets, rules, what the shims have recorded, and the stacks of all
// daemons, of which those that were taken over may still serve clients.
func (s *storm) onHost() string {
	var b strings.Builder
	run := func(name string, args ...string) {
		out, err := exec.Command(name, args...).CombinedOutput()
		fmt.Fprintf(&b, "# %s %s\n%s", name, strings.Join(args, " "), out)
		if err != nil {
			fmt.Fprintf(&b, "%v\n", err)
		}
	}
	run("ps", "-eo", "pid,ppid,stat,lstart,args")
	run("ss", "-xapn")
	run("ss", "-tapn")
	run("nft", "list", "table", "inet", s.d.Table)
	run("ip", "address")
	records, _ := filepath.Glob(s.d.ExecRoot + "/shim/*/" + proto.StateFile) // it fails only for bad patterns
	for _, path := range records {
		record, err := os.ReadFile(path)
		fmt.Fprintf(&b, "# %s\n%s\n", path, record)
		if err != nil {
			fmt.Fprintf(&b, "%v\n", err)
		}
		var st proto.State
		if proto.Unmarshal(record, &st) == nil && st.Pid > 0 {
			pid := strconv.Itoa(st.Pid)
			run("nsenter", "-t", pid, "-n", "ip", "address")
			run("nsenter", "-t", pid, "-n", "ss", "-tan")
		}
	}
	cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range cmdlines {
		cmdline, _ := os.ReadFile(path) // the process may be gone
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		name, _, _ := bytes.Cut(cmdline, []byte{0})
		if err == nil && filepath.Base(string(name)) == "holdfastd" && bytes.Contains(cmdline, []byte(s.d.Root)) {
			unix.Kill(pid, unix.SIGUSR1)
		}
	}
	<-time.After(500 * time.Millisecond)
	stacks, _ := filepath.Glob(s.d.ExecRoot + "/goroutine-stacks-*")
	for _, path := range stacks {
		text, err := os.ReadFile(path)
		fmt.Fprintf(&b, "# %s\n%s\n", path, text)
		if err != nil {
			fmt.Fprintf(&b, "%v\n", err)
		}
	}
	return b.String()
}
