// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/handover"
	"holdfast/internal/shim/log"
	"holdfast/internal/shim/ports"
	"holdfast/internal/shim/proto"
)

// logf writes a line to the shim's log, for people to read.
func logf(format string, args ...any) { log.Printf(format, args...) }

// bootTime bounds how long the first frame may take. A shim without a container is
// useless, so it then exits.
const bootTime = 30 * time.Second

// Main runs the shim. It reads the Bootstrap from descriptor 0, or continues from
// the handover state after a re-exec. It serves until the container has ended for
// good, and returns the exit status of the process.
func Main(release string) int {
	ignoreSignals()
	start := boot
	if env := os.Getenv(handover.Env); env != "" {
		start = func(release string) (*Shim, error) { return resumeFromHandover(release, env) }
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		logf("become subreaper: %v", err)
		return 1
	}
	os.WriteFile("/proc/self/comm", []byte("holdfast-shim"), 0)
	s, err := start(release)
	if err != nil {
		logf("%v", err)
		return 1
	}
	<-s.life.done
	return 0
}

func boot(release string) (*Shim, error) {
	oomScore := protectFromOOM()

	frames, err := firstConnection()
	if err != nil {
		return nil, err
	}
	frames.File().SetReadDeadline(time.Now().Add(bootTime))
	b := &proto.Bootstrap{}
	if err := frames.Receive(b); err != nil {
		return nil, fmt.Errorf("read bootstrap: %w", err)
	}
	frames.File().SetReadDeadline(time.Time{})
	fds, err := frames.TakeFDs(len(b.Ports) + adoptedFDs(b.Adopt))
	if err != nil {
		return nil, fmt.Errorf("read bootstrap: descriptors: %w", err)
	}
	fds, more := fds[:len(b.Ports)], fds[len(b.Ports):]
	if b.Version < 1 || !validName(b.ID) || b.RunDir == "" || b.DataDir == "" || b.Bundle == "" {
		return nil, fmt.Errorf("bootstrap is not usable: version %d, id %q, run directory %q, data directory %q, bundle %q",
			b.Version, b.ID, b.RunDir, b.DataDir, b.Bundle)
	}
	dirfd, err := unix.Open(b.RunDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: b.RunDir, Err: err}
	}
	locked, err := lock(b.RunDir)
	if err != nil {
		return nil, err
	}
	reaper := newReaper()
	runtime, err := newRuntime(b, reaper)
	if err != nil {
		return nil, err
	}
	runtime.oomScore = oomScore
	rec, err := newRecord(b)
	if err != nil {
		return nil, err
	}
	s := newShim(b, release, rec, reaper, runtime)
	s.dirfd, s.lockFD, s.life.rows, s.life.cols = dirfd, locked, b.ConsoleSize[0], b.ConsoleSize[1]
	if s.server.listener, err = listenUnix(dirfd, proto.SocketFile); err != nil {
		return nil, err
	}
	if s.ports, err = ports.Serve(b.Ports, fds); err != nil {
		return nil, fmt.Errorf("ports: %w", err)
	}
	if err := s.saveBootstrap(); err != nil {
		return nil, err
	}
	if b.Adopt != nil {
		in, _ := takeInherited(b.Adopt, more)
		if err := s.adopt(in); err != nil {
			return nil, err
		}
	}
	go s.server.acceptAll()
	s.server.serve(frames)
	return s, nil
}

// validName reports whether a name from outside is safe as a file name.
func validName(s string) bool {
	if len(s) == 0 || len(s) > 128 || s[0] == '.' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

// firstConnection moves descriptor 0 to another number that is close-on-exec, so
// that no child inherits the connection.
func firstConnection() (*proto.Conn, error) {
	fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("descriptor 0", err)
	}
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open "+os.DevNull, err)
	}
	defer unix.Close(null)
	if err := unix.Dup3(null, 0, 0); err != nil {
		return nil, os.NewSyscallError("dup3", err)
	}
	return proto.NewConn(fd)
}

// protectFromOOM makes the OOM killer spare the shim, if permitted. It returns the
// previous score, which is restored in children; "" means that nothing was changed.
func protectFromOOM() string {
	const file = "/proc/self/oom_score_adj"
	old, err := os.ReadFile(file)
	if err != nil || os.WriteFile(file, []byte("-999"), 0) != nil {
		return ""
	}
	return strings.TrimSpace(string(old))
}
