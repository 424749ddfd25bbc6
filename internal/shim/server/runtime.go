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
	dir    string // its log files go there
	env    []string
	reaper *reaper
	calls  atomic.Uint64

	// oomScore is what children get back; empty when the shim has the same.
	oomScore string
}

// newRuntime finds the runtime. Where it is not found the error says so, and the
// result is good for when it is there again.
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
	// The systemd cgroup driver of a runtime asks for these.
	for _, name := range []string{"DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return &ociRuntime{id: boot.ID, path: path, args: boot.Runtime.Args, dir: boot.RunDir, env: env, reaper: r}, err
}

// stdio are the three descriptors that a call and its container get; -1 is
// /dev/null. Numbers and not files: these are blocking descriptors, of which
// the poller must not know.
type stdio [3]int

var noStdio = stdio{-1, -1, -1}

func (s stdio) close() {
	for _, fd := range s {
		if fd >= 0 {
			syscall.Close(fd)
		}
	}
}

// call runs one verb to its end. On failure the error is the runtime's last
// word in its log.
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
		// Best effort, and long before the runtime makes the container.
		os.WriteFile("/proc/"+strconv.Itoa(p.pid)+"/oom_score_adj", []byte(o.oomScore), 0)
	}
	p.forget()
	if p.status.Exited() && p.status.ExitStatus() == 0 {
		os.Remove(log)
		return nil
	}
	if msg := lastError(log); msg != "" {
		return errors.New(msg)
	}
	return fmt.Errorf("%s %s ended with status %d and left no message in %s", filepath.Base(o.path), verb, p.exitCode(), log)
}

// lastError finds the runtime's last error in its JSON log.
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
		return 0, fmt.Errorf("%s: no process number in %q", path, b)
	}
	return pid, nil
}

// Exit codes of a process that could not be started, as in a shell.
const (
	exitRuntime       = 125 // the runtime failed for another reason
	exitNotExecutable = 126
	exitNotFound      = 127
)

// startExitCode reads the exit code out of the runtime's message, by the same
// words that Docker goes by.
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
