package takeover

import (
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

// manager plays the service manager: it keeps the descriptors that a daemon
// stores, and gives them to the next one.
type manager struct {
	t      *testing.T
	d      *kit.Daemon
	socket *net.UnixConn
	fds    map[string]*os.File
}

// until reads the daemon's words until it says one.
func (m *manager) until(word string) {
	m.t.Helper()
	b, oob := make([]byte, 4096), make([]byte, 256)
	m.socket.SetReadDeadline(time.Now().Add(patience))
	for {
		n, oobn, _, _, err := m.socket.ReadMsgUnix(b, oob)
		if err != nil {
			m.t.Fatalf("the daemon did not say %s: %v\n%s", word, err, m.d.Log())
		}
		text := string(b[:n])
		if _, name, ok := strings.Cut(text, "FDNAME="); ok && strings.Contains(text, "FDSTORE=1") {
			msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
			if err != nil || len(msgs) != 1 {
				m.t.Fatal(msgs, err)
			}
			fds, err := unix.ParseUnixRights(&msgs[0])
			if err != nil {
				m.t.Fatal(err)
			}
			m.fds[name] = os.NewFile(uintptr(fds[0]), name)
		}
		if strings.Contains(text, word) {
			return
		}
	}
}

// start starts a daemon with what is in the store.
func (m *manager) start() *exec.Cmd {
	m.t.Helper()
	cmd := m.d.Command()
	log, err := os.OpenFile(m.d.LogFile(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+m.d.Root+"/manager", "FDSTORE=16")
	if len(m.fds) > 0 {
		var names []string
		for name, f := range m.fds {
			names, cmd.ExtraFiles = append(names, name), append(cmd.ExtraFiles, f)
		}
		cmd.Env = append(cmd.Env, "LISTEN_FDS="+string(rune('0'+len(names))), "LISTEN_FDNAMES="+strings.Join(names, ":"))
		// The number of the process that they are for is known in it alone.
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
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: d.Root + "/manager", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	m := &manager{t, d, socket, map[string]*os.File{}}
	first := m.start()
	defer func() {
		for _, f := range m.fds {
			f.Close()
		}
	}()
	if len(m.fds) != 1 {
		t.Fatalf("%d sockets stored", len(m.fds))
	}
	before := inode(t, d.Socket)
	first.Process.Kill()
	first.Wait()
	// Nobody lives, and nobody is refused.
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
