// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
)

func touch(b *box, path string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, path), nil, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func TestTeardownUndoesMountsAndFilesAndNothingElse(t *testing.T) {
	b := newBox(t, "true")
	mounted := filepath.Join(b.dir, "run/mounted")
	kept := filepath.Join(b.dir, "run/kept")
	data := filepath.Join(b.dir, "data/precious")
	for _, dir := range []string{mounted, kept, data, filepath.Join(b.dir, "run/files/deep")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	touch(b, "run/files/deep/file")
	touch(b, "data/precious/file")
	if err := unix.Mount("tmpfs", mounted, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	// A mount that is not in the list: the files in it must survive.
	if err := unix.Mount(data, kept, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(kept, unix.MNT_DETACH)
	b.boot.Teardown = proto.Teardown{
		Unmount: []string{mounted, filepath.Join(b.dir, "run/not-there")},
		Remove:  []string{mounted, kept, filepath.Join(b.dir, "run/files"), data, filepath.Join(b.dir, "run/none")},
	}
	s, _ := b.started()
	b.ended(s)
	for _, gone := range []string{mounted, filepath.Join(b.dir, "run/files")} {
		if _, err := os.Lstat(gone); !os.IsNotExist(err) {
			t.Errorf("%s: %v", gone, err)
		}
	}
	if _, err := os.Stat(filepath.Join(data, "file")); err != nil {
		t.Errorf("data in a mount or outside of the run directory was removed: %v", err)
	}
	left, err := os.ReadDir(b.boot.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range left {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != "bootstrap.json config.json journal kept shim.log state.json" {
		t.Errorf("left in the run directory: %s", got)
	}
}

func TestProcessesThatShareTheHostsPidsDieWithTheContainer(t *testing.T) {
	b := newBox(t, "sleep 987654 & echo $!; exit 0")
	b.spec["linux"].(map[string]any)["namespaces"] = []any{ns("mount")}
	delete(b.spec, "hostname")
	s, ev := b.started()
	ev.action(proto.ActionExited)
	b.ended(s)
	pid := strings.TrimSpace(b.logLines("stdout"))
	if cmd, err := os.ReadFile("/proc/" + pid + "/cmdline"); err == nil && bytes.Contains(cmd, []byte("987654")) {
		t.Errorf("process %s still runs", pid)
	}
}

func TestOOMKillIsTold(t *testing.T) {
	b := newBox(t, "dd if=/dev/zero of=/dev/big bs=1M count=64")
	b.spec["linux"].(map[string]any)["resources"] = map[string]any{"memory": map[string]any{"limit": 16 << 20}}
	b.boot.OOMKey = "oom_kill"
	b.boot.OOMFile = "/sys/fs/cgroup/memory" + b.cgroup + "/memory.oom_control"
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err != nil {
		b.boot.OOMFile = "/sys/fs/cgroup" + b.cgroup + "/memory.events"
	}
	s, ev := b.started()
	ev.action(proto.ActionOOM)
	if st := b.ended(s); !st.OOMKilled || st.ExitCode == 0 {
		t.Errorf("state: %+v", st)
	}
}

func TestUpdateChangesPolicyAndResources(t *testing.T) {
	b := newBox(t, "sleep 0.5; exit 1")
	s, ev := b.started()
	if err := s.Update(ctx(t), proto.Update{Restart: &proto.RestartPolicy{Name: "on-failure", MaxRetries: 1},
		Attributes: map[string]string{"name": "renamed"}, Resources: raw(t, map[string]any{"pids": map[string]any{"limit": 77}})}); err != nil {
		t.Fatal(err)
	}
	limit, err := os.ReadFile("/sys/fs/cgroup/pids" + b.cgroup + "/pids.max")
	if err != nil {
		limit, err = os.ReadFile("/sys/fs/cgroup" + b.cgroup + "/pids.max")
	}
	if strings.TrimSpace(string(limit)) != "77" {
		t.Errorf("pids limit: %q, %v", limit, err)
	}
	if e := ev.action(proto.ActionDie); e.Attributes["name"] != "renamed" {
		t.Errorf("die: %+v", e)
	}
	if st := b.ended(s); st.RestartCount != 1 {
		t.Errorf("state: %+v", st)
	}
}

// reserve returns a bound socket as the daemon would.
func reserve(t *testing.T, l interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestReservedPortsForwardWhatComesToThem(t *testing.T) {
	// Servers here stand for the container. The shim forwards connections,
	// whatever the target is.
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				body, _ := io.ReadAll(c) // until the client has closed its half
				c.Write(body)
			}()
		}
	}()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			udp.WriteTo(append([]byte("re:"), buf[:n]...), from)
		}
	}()
	tcpPort, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	udpPort, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	b := newBox(t, "sleep 100")
	b.boot.Ports = []proto.Port{{Proto: "tcp", Target: echo.Addr().String()}, {Proto: "udp", Target: udp.LocalAddr().String()}}
	b.ports = []*os.File{reserve(t, tcpPort), reserve(t, udpPort)}
	s, _ := b.started()
	tcpPort.Close()
	udpPort.Close()
	for _, f := range b.ports {
		f.Close()
	}
	s.Close() // the daemon's connection is not needed

	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	c, err := net.Dial("tcp", tcpPort.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	go func() {
		c.Write(body)
		c.(*net.TCPConn).CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, body) {
		t.Errorf("tcp: %d bytes of %d came back, %v", len(got), len(body), err)
	}
	u, err := net.Dial("udp", udpPort.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	u.SetDeadline(time.Now().Add(10 * time.Second))
	for _, word := range []string{"one", "two"} {
		u.Write([]byte(word))
		buf := make([]byte, 64)
		if n, err := u.Read(buf); err != nil || string(buf[:n]) != "re:"+word {
			t.Errorf("udp: %q, %v", buf[:n], err)
		}
	}
	// The port is in use while the container runs, and free afterwards.
	if l, err := net.Listen("tcp", tcpPort.Addr().String()); err == nil {
		l.Close()
		t.Error("another process could bind the port")
	}
	again := b.dial()
	if _, err := again.Stop(ctx(t), proto.Stop{}); err != nil {
		t.Fatal(err)
	}
	<-again.Done()
	pid := s.Hello().Pid
	if !exited(pid, b.pids[pid]) {
		t.Fatal("the shim did not exit")
	}
	l, err := net.Listen("tcp", tcpPort.Addr().String())
	if err != nil {
		t.Fatalf("the port is not free: %v", err)
	}
	l.Close()
}

func TestLongRunDirectoryWorks(t *testing.T) {
	b := newBox(t, "stty size")
	long := filepath.Join(b.dir, strings.Repeat("a", 90), strings.Repeat("b", 90))
	if err := os.MkdirAll(long, 0o755); err != nil {
		t.Fatal(err)
	}
	b.boot.RunDir, b.boot.Bundle = long, long
	b.spec["process"].(map[string]any)["terminal"] = true
	b.boot.Terminal, b.boot.ConsoleSize = true, [2]uint{10, 20}
	s := b.spawn()
	other := b.dial()
	if _, err := other.Start(ctx(t)); err != nil {
		t.Fatal(err)
	}
	b.ended(s)
	if got := b.logLines("stdout"); got != "10 20\r\n" {
		t.Errorf("log: %q", got)
	}
}

func TestContainerInheritsNoIgnoredOrBlockedSignal(t *testing.T) {
	b := newBoxArgs(t, "cat", "/proc/self/status") // a shell would change its own signal masks
	s, _ := b.started()
	b.ended(s)
	for line := range strings.Lines(b.logLines("stdout")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch name {
		case "SigIgn", "SigBlk":
			if strings.Trim(value, "\t 0") != "" {
				t.Errorf("%s: %s", name, value)
			}
		}
	}
}

// Without a pid namespace of its own, orphans of a container become the shim's
// children. Unless the shim reaps them, they remain zombies as long as it runs.
func TestOrphansOfASharedPidNamespaceAreReaped(t *testing.T) {
	b := newBox(t, "(sh -c 'echo $$; exit 3' &); sleep 0.2; echo second; read x")
	b.spec["linux"].(map[string]any)["namespaces"] = []any{ns("mount")}
	delete(b.spec, "hostname")
	b.boot.OpenStdin = true
	s := b.spawn()
	c := b.attach(s, proto.Attach{Stdin: true, Stdout: true, Raw: true})
	if _, err := s.Start(ctx(t)); err != nil {
		t.Fatal(err)
	}
	pid, _, _ := strings.Cut(c.until("second"), "\n")
	// A later exit proves that the shim has reaped before.
	for i := range 2 {
		if err := s.ExecCreate(ctx(t), proto.ExecCreate{Exec: itoa(i), Process: raw(t, process("true"))}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ExecStart(ctx(t), proto.ExecStart{Exec: itoa(i)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err == nil && strings.Contains(string(stat), " "+itoa(s.Hello().Pid)+" ") {
		t.Errorf("still there: %s", stat)
	}
	c.write("end\n")
	b.ended(s)
}
