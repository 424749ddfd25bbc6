// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"holdfast/test/cert"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The tests also run the test binary as the other daemon.
func TestMain(m *testing.M) {
	switch os.Getenv("HANDOFF_TEST") {
	case "hold": // locks both roots and stays until stdin closes
		l, err := Acquire(context.Background(), os.Getenv("DATA"), os.Getenv("EXEC"))
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		defer l.Release()
		fmt.Println("locked")
		io.Copy(io.Discard, os.Stdin)
	default:
		os.Exit(m.Run())
	}
}

// hold starts another process that holds the lock.
func hold(t *testing.T, data, exec_ string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "HANDOFF_TEST=hold", "DATA="+data, "EXEC="+exec_)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	b := make([]byte, 200)
	if n, _ := out.Read(b); string(b[:n]) != "locked\n" {
		t.Fatalf("holder: %s", b[:n])
	}
	return cmd
}

func acquire(t *testing.T, data, exec string) *Lock {
	t.Helper()
	l, err := Acquire(t.Context(), data, exec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Release)
	return l
}

func TestSecondDaemonIsToldWhoHoldsTheLock(t *testing.T) {
	data, run := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "run")
	held := hold(t, data, run)
	for _, tc := range []struct{ data, exec, want string }{
		{data, filepath.Join(t.TempDir(), "run"), "the data root " + data},
		{filepath.Join(t.TempDir(), "data"), run, "the exec root " + run},
	} {
		_, err := Acquire(t.Context(), tc.data, tc.exec)
		if !errors.Is(err, errdefs.ErrConflict) {
			t.Fatalf("got %v", err)
		}
		for _, part := range []string{tc.want, "process ID " + strconv.Itoa(held.Process.Pid), "since " + strconv.Itoa(time.Now().Year()), "whose data root is " + data} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q lacks %q", err, part)
			}
		}
	}
}

func TestFailedLockOfOneRootLeavesTheOtherFree(t *testing.T) {
	data, run := t.TempDir(), t.TempDir()
	hold(t, t.TempDir(), run)
	if _, err := Acquire(t.Context(), data, run); err == nil {
		t.Fatal("took a held root")
	}
	acquire(t, data, t.TempDir())
}

func TestKilledDaemonThatIsStillAZombieHoldsNothing(t *testing.T) {
	data, run := t.TempDir(), t.TempDir()
	held := hold(t, data, run)
	if err := held.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitZombie(t, held.Process.Pid)
	acquire(t, data, run)
	if alive(held.Process.Pid) {
		t.Error("a zombie is alive")
	}
}

// waitZombie waits until a child has ended, without reaping it.
func waitZombie(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
}

func TestDyingHolderIsWaitedFor(t *testing.T) {
	data, run := t.TempDir(), t.TempDir()
	// The lock's record names a process that has ended, and a descriptor that is
	// closed later holds the lock. This happens while a process forks.
	f, err := os.Create(filepath.Join(data, LockFile))
	if err != nil {
		t.Fatal(err)
	}
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(f, `{"pid": %d}`, gone.Process.Pid)
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, func() { f.Close() })
	acquire(t, data, run)
}

func TestDeadHoldersLockIsNotWaitedForForever(t *testing.T) {
	data := t.TempDir()
	f, err := os.Create(filepath.Join(data, LockFile))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fmt.Fprint(f, `{"pid": 2147483646}`)
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = Acquire(ctx, data, t.TempDir())
	if !errors.Is(err, errdefs.ErrConflict) || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("got %v", err)
	}
}

func TestLockIsHandedOverWithItsDescriptors(t *testing.T) {
	data, run := t.TempDir(), t.TempDir()
	old := acquire(t, data, run)
	var copies []*os.File
	for _, f := range old.Files() {
		fd, err := unix.Dup(int(f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		copies = append(copies, os.NewFile(uintptr(fd), f.Name()))
	}
	heir, err := Adopt(copies, data, run)
	if err != nil {
		t.Fatal(err)
	}
	old.Release()
	if _, err := Acquire(t.Context(), data, run); !errors.Is(err, errdefs.ErrConflict) {
		t.Errorf("the lock was free after the handover: %v", err)
	}
	heir.Release()
	acquire(t, data, run)

	other, err := os.Open(filepath.Join(data, LockFile))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := Adopt([]*os.File{other}, data, run); err == nil {
		t.Error("a file that is not the lock was adopted")
	}
}

func TestRootsAreMadeWhereTheyAreMissing(t *testing.T) {
	base := t.TempDir()
	data, run := filepath.Join(base, "a/b/data"), filepath.Join(base, "run/holdfast")
	acquire(t, data, run)
	for _, dir := range []string{data, run} {
		if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o710 {
			t.Errorf("%s: %v %v", dir, st, err)
		}
	}
	acquire(t, filepath.Join(base, "one"), filepath.Join(base, "one"))
}

func TestRootThatCantBeUsedIsNamed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "x"), "/proc/holdfast/data"} {
		if _, err := Acquire(t.Context(), dir, t.TempDir()); err == nil || !strings.Contains(err.Error(), "data root "+dir) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

func TestPidfileReplacesWhatWasThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "d.pid")
	first, err := WritePidfile(path)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(path); string(b) != strconv.Itoa(os.Getpid()) {
		t.Errorf("%q", b)
	}
	os.WriteFile(path, []byte("1\n"), 0o644)
	first.Remove()
	if _, err := os.Stat(path); err != nil {
		t.Error("another's pid file was removed")
	}
	again, err := WritePidfile(path)
	if err != nil {
		t.Fatal(err)
	}
	again.Remove()
	if _, err := os.Stat(path); err == nil {
		t.Error("the pid file stays after a clean stop")
	}
}

// listen opens sockets and returns them with the log output.
func listen(t *testing.T, o ListenOptions) (*Listeners, *bytes.Buffer, error) {
	t.Helper()
	var log bytes.Buffer
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	ls, err := Listen(t.Context(), o)
	if err == nil {
		t.Cleanup(func() { ls.Close(); ls.Remove() })
	}
	return ls, &log, err
}

// answer accepts one connection and sends hello on it.
func answer(l net.Listener) {
	if c, err := l.Accept(); err == nil {
		io.WriteString(c, "hello")
		c.Close()
	}
}

func ask(t *testing.T, network, address string) {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, err := io.ReadAll(c); string(b) != "hello" {
		t.Fatalf("%q %v", b, err)
	}
}

func TestUnixSocketHasItsModeAndIsRemovedAtACleanStop(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "h.sock")
	ls, _, err := listen(t, ListenOptions{Addresses: []string{"unix://" + path}, Group: strconv.Itoa(os.Getgid()), GroupRequired: true})
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o660 || int(st.Sys().(*syscall.Stat_t).Gid) != os.Getgid() {
		t.Errorf("%v %v", st, err)
	}
	go answer(ls.All()[0])
	ask(t, "unix", path)
	if got := ls.All()[0].Shown(); got != "unix://"+path {
		t.Error(got)
	}
	ls.Close()
	if _, err := os.Stat(path); err != nil {
		t.Error("closing unlinked the socket")
	}
	ls.Remove()
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket stays")
	}
}

func TestStaleSocketIsReplacedAndALiveOneIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h.sock")
	o := ListenOptions{Addresses: []string{"unix://" + path}}
	first, _, err := listen(t, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := listen(t, o); !errors.Is(err, errdefs.ErrConflict) || !strings.Contains(err.Error(), "another program listens") {
		t.Fatalf("got %v", err)
	}
	first.Close() // as if killed: the file is still there
	second, _, err := listen(t, o)
	if err != nil {
		t.Fatal(err)
	}
	first.Remove()
	go answer(second.All()[0])
	ask(t, "unix", path)
}

func TestWhatIsNoSocketIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h.sock")
	os.WriteFile(path, []byte("mine"), 0o600)
	if _, _, err := listen(t, ListenOptions{Addresses: []string{"unix://" + path}}); !errors.Is(err, errdefs.ErrConflict) {
		t.Errorf("got %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "mine" {
		t.Error("the file was changed")
	}
	if _, _, err := listen(t, ListenOptions{Addresses: []string{"unix://" + strings.Repeat("/x", 60)}}); err == nil || !strings.Contains(err.Error(), "106 characters") {
		t.Errorf("got %v", err)
	}
}

func TestMissingGroupWarnsUnlessItWasAskedFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h.sock")
	o := ListenOptions{Addresses: []string{"unix://" + path}, Group: "no-such-group-here"}
	ls, log, err := listen(t, o)
	if err != nil || !strings.Contains(log.String(), "group no-such-group-here not found") {
		t.Fatalf("%v, log %s", err, log)
	}
	ls.Close()
	o.GroupRequired = true
	if _, _, err := listen(t, o); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestPlainTCPIsWarnedOf(t *testing.T) {
	for address, want := range map[string]string{"tcp://127.0.0.1:0": "without TLS", "tcp://0.0.0.0:0": "[SECURITY]"} {
		ls, log, err := listen(t, ListenOptions{Addresses: []string{address}})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(log.String(), want) {
			t.Errorf("%s: %s", address, log)
		}
		go answer(ls.All()[0])
		_, port, _ := net.SplitHostPort(ls.All()[0].Addr().String())
		ask(t, "tcp", "127.0.0.1:"+port)
	}
}

func TestOneBadAddressOpensNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h.sock")
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	_, _, err = listen(t, ListenOptions{Addresses: []string{"unix://" + path, "tcp://" + busy.Addr().String()}})
	if err == nil || !strings.Contains(err.Error(), "listen on tcp://"+busy.Addr().String()) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket stays")
	}
	if _, _, err := listen(t, ListenOptions{Addresses: []string{"fd://"}}); err == nil || !strings.Contains(err.Error(), "socket activation") {
		t.Errorf("got %v", err)
	}
}

func TestHandedOverSocketKeepsItsFileAndItsBacklog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h.sock")
	addresses := []string{"unix://" + path, "tcp://127.0.0.1:0"}
	old, _, err := listen(t, ListenOptions{Addresses: addresses})
	if err != nil {
		t.Fatal(err)
	}
	before, err := statSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	files, err := old.HandOver()
	if err != nil {
		t.Fatal(err)
	}
	old.Close()
	old.Remove()
	// No process accepts, but the connection is not refused.
	waiting, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	tcp, err := net.Dial("tcp", old.All()[1].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	heir, _, err := listen(t, ListenOptions{Addresses: addresses, Inherited: FromPredecessor(files)})
	if err != nil {
		t.Fatal(err)
	}
	go answer(heir.All()[0])
	go answer(heir.All()[1])
	for _, c := range []net.Conn{waiting, tcp} {
		if b, err := io.ReadAll(c); string(b) != "hello" {
			t.Errorf("%q %v", b, err)
		}
	}
	if after, err := statSocket(path); err != nil || after.ino != before.ino {
		t.Errorf("the socket's file was replaced: %v %v %v", before, after, err)
	}
}

// manager returns the service manager's end of sd_notify, and a Notifier.
func manager(t *testing.T) (*net.UnixConn, *Notifier) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	n := NewNotifier()
	if os.Getenv("NOTIFY_SOCKET") != "" {
		t.Error("children would inherit NOTIFY_SOCKET")
	}
	return c, n
}

func receive(t *testing.T, c *net.UnixConn) (string, int) {
	t.Helper()
	b, oob := make([]byte, 4096), make([]byte, 256)
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, on, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		t.Fatal(err)
	}
	fds := 0
	if msgs, err := unix.ParseSocketControlMessage(oob[:on]); err == nil {
		for _, m := range msgs {
			got, _ := unix.ParseUnixRights(&m)
			for _, fd := range got {
				unix.Close(fd)
				fds++
			}
		}
	}
	return string(b[:n]), fds
}

func TestServiceManagerHearsOfReadyReloadAndStop(t *testing.T) {
	c, n := manager(t)
	for _, tc := range []struct {
		send func() error
		want string
	}{
		{func() error { return n.Ready("all\nwell") }, fmt.Sprintf("READY=1\nMAINPID=%d\nSTATUS=all well", os.Getpid())},
		{n.Reloading, "RELOADING=1\nMONOTONIC_USEC="},
		{n.Stopping, "STOPPING=1"},
	} {
		if err := tc.send(); err != nil {
			t.Fatal(err)
		}
		if got, _ := receive(t, c); !strings.HasPrefix(got, tc.want) {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
	var none *Notifier
	if err := none.Ready(""); err != nil {
		t.Error(err)
	}
}

func TestServiceManagerKeepsCopiesOfTheSockets(t *testing.T) {
	c, n := manager(t)
	path := filepath.Join(t.TempDir(), "h.sock")
	ls, _, err := listen(t, ListenOptions{Addresses: []string{"unix://" + path}})
	if err != nil {
		t.Fatal(err)
	}
	stale, _ := os.Open(os.DevNull)
	in := &Inherited{own: map[string][]*os.File{"holdfast-old": {stale}}}
	t.Setenv("FDSTORE", "16")
	if err := ls.Store(n, in); err != nil {
		t.Fatal(err)
	}
	if got, _ := receive(t, c); got != "FDSTOREREMOVE=1\nFDNAME=holdfast-old" {
		t.Error(got)
	}
	if got, fds := receive(t, c); got != "FDSTORE=1\nFDNAME="+storeName("unix://"+path) || fds != 1 {
		t.Errorf("%q with %d descriptors", got, fds)
	}
	raw, err := ls.All()[0].raw.(*net.UnixListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("storing made the listener block: %x %v", flags, err)
		}
	})
	ls.Close()
	ls.Remove()
	if _, err := os.Stat(path); err != nil {
		t.Error("a socket that the service manager keeps was unlinked")
	}
	os.Remove(path)
}

func TestOnlyVerifiedClientsGetInWithTLSVerify(t *testing.T) {
	dir := t.TempDir()
	ca := cert.New(t, "ca", nil)
	caFile, _ := ca.Write(t, dir, "ca")
	certFile, keyFile := cert.New(t, "server", &ca).Write(t, dir, "server")
	client := cert.New(t, "client", &ca).TLS(t)
	pool := ca.Pool(t)

	for _, verify := range []bool{true, false} {
		conf, err := ServerTLS(TLSFiles{CA: caFile, Cert: certFile, Key: keyFile, Verify: verify})
		if err != nil {
			t.Fatal(err)
		}
		ls, log, err := listen(t, ListenOptions{Addresses: []string{"tcp://127.0.0.1:0"}, TLS: conf})
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(log.String(), "not verified") == verify {
			t.Errorf("verify %v: %s", verify, log)
		}
		for _, certs := range [][]tls.Certificate{{client}, nil} {
			go answer(ls.All()[0])
			c, err := tls.Dial("tcp", ls.All()[0].Addr().String(), &tls.Config{RootCAs: pool, Certificates: certs})
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(c)
			c.Close()
			if let := string(b) == "hello"; let != (!verify || certs != nil) {
				t.Errorf("verify %v, certificate %v: %q %v", verify, certs != nil, b, err)
			}
		}
	}
	if _, err := ServerTLS(TLSFiles{Cert: "/no/such", Key: "/no/such"}); err == nil || !strings.Contains(err.Error(), "--tlscert") {
		t.Errorf("got %v", err)
	}
	if _, err := ServerTLS(TLSFiles{Cert: certFile, Key: keyFile, CA: "/no/such", Verify: true}); err == nil || !strings.Contains(err.Error(), "--tlscacert") {
		t.Errorf("got %v", err)
	}
}

func TestKeeperSendsInOrderOnceItMayAndGivesBackWhatNobodyTakes(t *testing.T) {
	c, n := manager(t)
	t.Setenv("FDSTORE", "16")
	k := NewKeeper(n, slog.New(slog.DiscardHandler))
	open := func() *os.File {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	socket := open()
	defer socket.Close()
	in := &Inherited{own: map[string][]*os.File{
		keepPrefix + "wanted": {open()}, keepPrefix + "over": {open()}, storeName("unix:///x"): {socket},
	}}
	k.Found(in)
	if len(in.own) != 1 {
		t.Errorf("what is left for the listeners: %v", in.own)
	}
	f := k.Take("wanted")
	if f == nil || k.Take("wanted") != nil || k.Take("other") != nil {
		t.Fatal("not given once")
	}
	defer f.Close()
	k.Keep("new", int(f.Fd()))
	c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := c.Read(make([]byte, 100)); err == nil {
		t.Error("it speaks before it may")
	}
	k.Open()
	k.Forget("wanted")
	for _, want := range []struct {
		text string
		fds  int
	}{
		{"FDSTOREREMOVE=1\nFDNAME=" + keepPrefix + "new", 0},
		{"FDSTORE=1\nFDNAME=" + keepPrefix + "new\nFDPOLL=0", 1},
		{"FDSTOREREMOVE=1\nFDNAME=" + keepPrefix + "over", 0},
		{"FDSTOREREMOVE=1\nFDNAME=" + keepPrefix + "wanted", 0},
	} {
		if got, fds := receive(t, c); got != want.text || fds != want.fds {
			t.Errorf("got %q with %d descriptors, want %q", got, fds, want.text)
		}
	}
	k.Close()
	k.Keep("late", int(f.Fd()))
	c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := c.Read(make([]byte, 100)); err == nil {
		t.Error("it speaks after its end")
	}
}

func TestServiceManagerHearsThatTheDaemonLives(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", "1")
	c, n := manager(t)
	for _, name := range []string{"WATCHDOG_USEC", "WATCHDOG_PID"} {
		if _, there := os.LookupEnv(name); there {
			t.Errorf("children would inherit %s", name)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	var ill atomic.Bool
	complaints := make(chan error, 1000)
	go func() {
		n.Watch(ctx, func(ctx context.Context) error {
			if ill.Load() {
				<-ctx.Done() // it hangs
				return errors.New("ill")
			}
			return nil
		}, func(err error) { complaints <- err })
		close(over)
	}()
	for range 3 {
		if got, _ := receive(t, c); got != "WATCHDOG=1" {
			t.Errorf("got %q", got)
		}
	}
	// While the daemon does not work, no WATCHDOG=1 is sent.
	ill.Store(true)
	for range 3 {
		if err := <-complaints; err == nil || err.Error() != "ill" {
			t.Error(err)
		}
	}
	for {
		c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := c.Read(make([]byte, 100)); err != nil {
			break // skip what was sent before
		}
	}
	if len(complaints) == 0 {
		t.Error("it complains once and no more")
	}
	ill.Store(false)
	c.SetReadDeadline(time.Time{})
	if got, _ := receive(t, c); got != "WATCHDOG=1" {
		t.Errorf("got %q when it works again", got)
	}
	cancel()
	<-over
	_, silent := manager(t)
	silent.Watch(t.Context(), nil, nil)
}
