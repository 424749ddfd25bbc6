// SPDX-License-Identifier: Apache-2.0

package takeover

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
	"holdfast/test/kit"
)

// manager plays the service manager: it keeps the descriptors that a daemon
// stores, and passes them to the next daemon.
type manager struct {
	t      *testing.T
	d      *kit.Daemon
	socket *net.UnixConn

	mu      sync.Mutex
	changed chan struct{} // closed and replaced with each message
	said    []string      // messages that no test has waited for yet
	fds     map[string]*os.File
}

func newManager(t *testing.T, d *kit.Daemon) *manager {
	t.Helper()
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: d.Root + "/manager", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{t: t, d: d, socket: socket, changed: make(chan struct{}), fds: map[string]*os.File{}}
	over := make(chan struct{})
	go func() {
		defer close(over)
		for m.hear() {
		}
	}()
	t.Cleanup(func() {
		socket.Close()
		<-over
		for _, f := range m.fds {
			f.Close()
		}
	})
	return m
}

// hear receives a message, and returns false at the end of the socket.
func (m *manager) hear() bool {
	b, oob := make([]byte, 4096), make([]byte, 256)
	n, oobn, _, _, err := m.socket.ReadMsgUnix(b, oob)
	if err != nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	text := string(b[:n])
	_, name, _ := strings.Cut(text, "FDNAME=")
	name, _, _ = strings.Cut(name, "\n")
	switch {
	case strings.Contains(text, "FDSTOREREMOVE=1"):
		if f := m.fds[name]; f != nil {
			f.Close()
			delete(m.fds, name)
		}
	case strings.Contains(text, "FDSTORE=1"):
		msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(msgs) != 1 {
			m.t.Error(msgs, err)
			break
		}
		fds, err := unix.ParseUnixRights(&msgs[0])
		if err != nil {
			m.t.Error(name, err)
			break
		}
		f := os.NewFile(uintptr(fds[0]), name)
		if old := m.fds[name]; old != nil {
			// systemd keeps only one descriptor of an open file.
			was, err1 := old.Stat()
			is, err2 := f.Stat()
			if err := errors.Join(err1, err2); err != nil || !os.SameFile(was, is) {
				m.t.Error("another file is stored under the same name:", name, err)
			}
			f.Close()
			break
		}
		m.fds[name] = f
	}
	m.said = append(m.said, text)
	close(m.changed)
	m.changed = make(chan struct{})
	return true
}

// wait waits until is returns true. It calls is with the lock held.
func (m *manager) wait(what string, is func() bool) {
	m.t.Helper()
	late := time.After(patience)
	for {
		m.mu.Lock()
		there, changed := is(), m.changed
		m.mu.Unlock()
		if there {
			return
		}
		select {
		case <-changed:
		case <-late:
			m.t.Fatalf("not in time: %s\n%s", what, m.d.Log())
		}
	}
}

// until waits for a message of the daemon.
func (m *manager) until(word string) {
	m.t.Helper()
	m.wait("the daemon says "+word, func() bool {
		i := slices.IndexFunc(m.said, func(s string) bool { return strings.Contains(s, word) })
		m.said = m.said[i+1:]
		return i >= 0
	})
}

// keeps waits until exactly these descriptors of a container are stored.
func (m *manager) keeps(id string, want ...string) {
	m.t.Helper()
	m.wait(fmt.Sprintf("%q kept of %s", want, id), func() bool {
		var got []string
		for name := range m.fds {
			if strings.Contains(name, id) {
				got = append(got, name[strings.LastIndexByte(name, '-')+1:])
			}
		}
		slices.Sort(got)
		return slices.Equal(got, want)
	})
}

// start starts a daemon with the stored descriptors.
func (m *manager) start() *exec.Cmd {
	m.t.Helper()
	cmd := m.d.Command()
	log, err := os.OpenFile(m.d.LogFile(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+m.d.Root+"/manager", "FDSTORE=64")
	if len(m.fds) > 0 {
		var names []string
		for name, f := range m.fds {
			names, cmd.ExtraFiles = append(names, name), append(cmd.ExtraFiles, f)
		}
		cmd.Env = append(cmd.Env, "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
		// LISTEN_PID must be the pid of the daemon, which only the process
		// itself knows before exec.
		cmd.Args = append([]string{"sh", "-c", `export LISTEN_PID=$$; exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
		cmd.Path = "/bin/sh"
	}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.until("READY=1")
	return cmd
}

func TestConnectionThatWaitsOutlivesACrashWhereTheServiceManagerKeepsTheSocket(t *testing.T) {
	t.Parallel()
	d := kit.New(t, kit.Options{LiveRestore: true})
	m := newManager(t, d)
	first := m.start()
	if len(m.fds) != 1 {
		t.Fatalf("%d sockets stored", len(m.fds))
	}
	before := inode(t, d.Socket)
	first.Process.Kill()
	first.Wait()
	// No daemon lives, and connections are not refused.
	conn, err := net.Dial("unix", d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET /_ping HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
	second := m.start()
	conn.SetReadDeadline(time.Now().Add(patience))
	if b, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 200 OK") {
		t.Errorf("%q %v", b, err)
	}
	if inode(t, d.Socket) != before {
		t.Error("the socket's file was replaced")
	}
	second.Process.Signal(unix.SIGTERM)
	if err := second.Wait(); err != nil {
		t.Error(err)
	}
}

// end sends a signal to a process and waits for its end.
func (m *manager) end(pid int, sig unix.Signal) {
	m.t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil {
		m.t.Fatal(err)
	}
	if err := kit.WaitReadable(fd, patience); err != nil {
		m.t.Fatalf("process %d did not exit: %v", pid, err)
	}
}

// Daemon and shim are killed together. The descriptors that only they held
// still exist: the terminal, the data in the pipe, and the exit code of a
// container that ended while neither lived.
func TestNothingIsLostWithDaemonAndShimWhereTheServiceManagerKeepsIt(t *testing.T) {
	t.Parallel()
	d := kit.New(t, kit.Options{LiveRestore: true})
	m := newManager(t, d)
	first := m.start()
	d.Load(image, kit.Busybox(t, nil))
	ends := d.Docker("run", "-d", "--name", "ends", image, "sh", "-c", "trap 'echo last words; exit 42' TERM; echo first; while :; do sleep 0.05; done")
	shell := d.Docker("run", "-dit", "--name", "shell", image, "sh", "-c", "trap 'echo hung up; exit 1' HUP; stty -echo; while read x; do echo \"<$x>\"; done")
	m.keeps(ends, "pidfd", "stderr", "stdout")
	m.keeps(shell, "pidfd", "terminal")

	// A takeover does not change the stored descriptors.
	d.Holdfast("daemon", "upgrade")
	if err := first.Wait(); err != nil {
		t.Error(err)
	}
	m.keeps(ends, "pidfd", "stderr", "stdout")
	m.keeps(shell, "pidfd", "terminal")
	second := pidfile(t, d)
	logs := d.DockerCommand(t.Context(), "logs", "-f", "ends")
	out, err := logs.StdoutPipe()
	if err != nil || logs.Start() != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "first\n" {
		t.Fatalf("%q %v", line, err)
	}
	logs.Process.Kill()
	logs.Wait()

	pid, err := strconv.Atoi(d.Docker("inspect", "-f", "{{.State.Pid}}", "ends"))
	if err != nil {
		t.Fatal(err)
	}
	m.end(second, unix.SIGKILL)
	for _, id := range []string{ends, shell} {
		b, err := os.ReadFile(filepath.Join(d.ExecRoot, "shim", id, proto.StateFile))
		var st proto.State
		if err := errors.Join(err, json.Unmarshal(b, &st)); err != nil {
			t.Fatal(err)
		}
		m.end(st.ShimPid, unix.SIGKILL)
	}
	m.end(pid, unix.SIGTERM)
	third := m.start()
	if got := d.Docker("wait", "ends"); got != "42" {
		t.Errorf("exit code %s", got)
	}
	if got := d.Docker("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}", "ends"); got != "exited 42 " {
		t.Errorf("%q", got)
	}
	if got := d.Docker("logs", "ends"); got != "first\nlast words" {
		t.Errorf("logs: %q", got)
	}
	conn, err := net.Dial("unix", d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	io.WriteString(conn, "POST /containers/shell/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: h\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n\r\nhello\n")
	var said []byte
	for b := make([]byte, 100); !strings.Contains(string(said), "<hello>"); {
		n, err := conn.Read(b)
		if said = append(said, b[:n]...); err != nil {
			t.Fatalf("%q %v", said, err)
		}
	}
	if got := d.Docker("logs", "shell"); strings.Contains(got, "hung up") {
		t.Errorf("the terminal said %q", got)
	}
	d.Docker("rm", "-f", "shell", "ends")
	m.keeps(ends)
	m.keeps(shell)
	third.Process.Signal(unix.SIGTERM)
	if err := third.Wait(); err != nil {
		t.Error(err)
	}
}
