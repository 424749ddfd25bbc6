// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"holdfast/internal/shim/proto"
)

// ociRuntime calls the OCI runtime of one container.
type ociRuntime struct {
	id     string
	path   string
	args   []string
	dir    string // for its log files
	env    []string
	reaper *reaper
	calls  atomic.Uint64

	// oomScore is the oom_score_adj that children get back; "" if the shim's own was
	// not changed.
	oomScore string
}

// newRuntime looks the runtime up. If it is not found the error says so, and the
// result can still be used once the runtime is installed again.
func newRuntime(boot *proto.Bootstrap, r *reaper) (*ociRuntime, error) {
	path, err := exec.LookPath(boot.Runtime.Path)
	if err != nil {
		path, err = boot.Runtime.Path, fmt.Errorf("OCI runtime %q: %w", boot.Runtime.Path, err)
	}
	search := os.Getenv("PATH")
	if search == "" {
		search = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	env := []string{"PATH=" + search}
	// A runtime needs these for its systemd cgroup driver.
	for _, name := range []string{"DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return &ociRuntime{id: boot.ID, path: path, args: boot.Runtime.Args, dir: boot.RunDir, env: env, reaper: r}, err
}

// stdio are the three descriptors that a call and its container get; -1 means
// /dev/null. They are not files, because they are blocking and must not be
// registered with the poller.
type stdio [3]int

var noStdio = stdio{-1, -1, -1}

func (s stdio) close() {
	for _, fd := range s {
		if fd >= 0 {
			syscall.Close(fd)
		}
	}
}

// call runs a command of the runtime to its end. On failure the error is the last
// one in the runtime's log.
func (o *ociRuntime) call(files stdio, verb string, args ...string) error {
	null, err := syscall.Open(os.DevNull, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open "+os.DevNull, err)
	}
	defer syscall.Close(null)
	fds := make([]uintptr, 3)
	for i, fd := range files {
		if fd < 0 {
			fd = null
		}
		fds[i] = uintptr(fd)
	}
	log := filepath.Join(o.dir, "runtime.log")
	if verb != "run" {
		log = filepath.Join(o.dir, "runtime-"+strconv.FormatUint(o.calls.Add(1), 10)+".log")
	}
	os.Remove(log)
	argv := make([]string, 0, 16)
	argv = append(argv, o.path)
	argv = append(argv, o.args...)
	argv = append(argv, "--log", log, "--log-format", "json", verb)
	argv = append(argv, args...)
	p, err := o.reaper.spawn(o.path, argv, &syscall.ProcAttr{Dir: "/", Env: o.env, Files: fds})
	if err != nil {
		return err
	}
	if o.oomScore != "" {
		// Best effort. The runtime creates the container much later than this.
		os.WriteFile("/proc/"+strconv.Itoa(p.pid)+"/oom_score_adj", []byte(o.oomScore), 0)
	}
	p.closePidfd()
	if p.status.Exited() && p.status.ExitStatus() == 0 {
		os.Remove(log)
		return nil
	}
	msg := lastError(log)
	if verb != "run" {
		os.Remove(log) // every failed health check would leave one
	}
	if msg != "" {
		return errors.New(msg)
	}
	return fmt.Errorf("%s %s failed with exit code %d and logged no error", filepath.Base(o.path), verb, p.exitCode())
}

// lastError returns the runtime's last error in its JSON log, or "".
func lastError(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	var last string
	for line := range bytes.Lines(b) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && entry.Msg != "" &&
			(entry.Level == "error" || entry.Level == "fatal" || entry.Level == "panic") {
			last = strings.TrimSpace(entry.Msg)
		}
	}
	return last
}

// readPid reads a pid file that the runtime wrote.
func readPid(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("%s: no pid in %q", path, b)
	}
	return pid, nil
}

// Exit codes of a process that could not be started, as in a shell.
const (
	exitRuntime       = 125 // the runtime failed for another reason
	exitNotExecutable = 126
	exitNotFound      = 127
	exitUnknown       = 128 // Docker's for an exec that the runtime refused for another reason
)

// startFailure is the error that the user sees when the runtime could not start the
// container.
func startFailure(err error) error {
	hint := ""
	if msg := err.Error(); strings.Contains(msg, "error mounting") && strings.HasSuffix(msg, "not a directory") {
		hint = ": Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type"
	}
	return fmt.Errorf("OCI runtime failed: %w%s", err, hint)
}

// startExitCode derives the exit code from the runtime's message, by the same
// phrases as Docker.
func startExitCode(msg string) int {
	for _, s := range []string{"executable file not found", "no such file or directory", "not a directory"} {
		if strings.Contains(msg, s) {
			return exitNotFound
		}
	}
	for _, s := range []string{"permission denied", "is a directory", "exec format error"} {
		if strings.Contains(msg, s) {
			return exitNotExecutable
		}
	}
	return exitRuntime
}

// runtimeSection has what the calls of the OCI runtime need.
type runtimeSection struct {
	OOMScore string `json:"oomScore,omitempty"`
	Calls    uint64 `json:"calls"`
}

func (sec *runtimeSection) descriptors() []*int { return nil }

func (sec *runtimeSection) save(s *Shim) {
	sec.OOMScore, sec.Calls = s.runtime.oomScore, s.runtime.calls.Load()
}

// restore has nothing to do: a shim is built with its runtime.
func (sec *runtimeSection) restore(*Shim) {}

// build looks the runtime up. With fallback it need not be found: it may be missing
// only for a moment, such as during a package upgrade.
func (sec *runtimeSection) build(b *proto.Bootstrap, r *reaper, fallback bool) (*ociRuntime, error) {
	runtime, err := newRuntime(b, r)
	if err != nil {
		if !fallback {
			return nil, err
		}
		logf("%v", err)
	}
	runtime.oomScore = sec.OOMScore
	runtime.calls.Store(sec.Calls)
	return runtime, nil
}
