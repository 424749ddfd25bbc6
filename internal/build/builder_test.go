// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"holdfast/internal/beside"
	"holdfast/internal/build/stores"
	"holdfast/internal/network"
)

// TestMain is a build process if a Builder has started it.
func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == "--data-root" {
		process(os.Args[2], os.Args[4])
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// process writes to each client what the client has sent, and its own pid. A client
// that sends "leave" makes it end before it has accepted the client.
func process(dataRoot, execRoot string) {
	ready := os.NewFile(3, "ready")
	if _, err := os.Stat(filepath.Join(dataRoot, "broken")); err == nil {
		fmt.Fprint(ready, "it is broken")
		return
	}
	lock, err := os.OpenFile(beside.LockPath(Dir(execRoot)), os.O_RDWR, 0)
	if err != nil || unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		os.Exit(1)
	}
	_ = os.Remove(beside.ControlPath(Dir(execRoot)))
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: beside.ControlPath(Dir(execRoot)), Net: "unixpacket"})
	if err != nil {
		os.Exit(1)
	}
	conf, err := stores.NewClient(StoresPath(execRoot), "test").Config(context.Background())
	if err != nil {
		os.Exit(1)
	}
	fmt.Fprint(ready, "+")
	ready.Close()
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		buf, oob := make([]byte, beside.MaxMessage), make([]byte, 100)
		n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
		var m beside.Message
		if err != nil || json.Unmarshal(buf[:n], &m) != nil || m.Stop != "" {
			return
		}
		messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
		fds, _ := unix.ParseUnixRights(&messages[0])
		head := ""
		for len(head) < m.Length {
			n, _ := c.Read(buf)
			head += string(buf[:n])
		}
		if head == "leave" {
			if _, err := os.Stat(filepath.Join(dataRoot, "left")); err != nil {
				_ = os.WriteFile(filepath.Join(dataRoot, "left"), nil, 0o600)
				return
			}
		}
		client := os.NewFile(uintptr(fds[0]), "client")
		fmt.Fprintf(client, "%d %s %s %d\n", len(head), head[:min(len(head), 5)], conf.Driver, os.Getpid())
		client.Close()
		fmt.Fprint(c, "{}")
		c.Close()
	}
}

// The stores of a daemon that nothing is built with.
type (
	noContent   struct{ content.Store }
	noSnapshots struct{ snapshots.Snapshotter }
	noLeases    struct{ leases.Manager }
	noImages    struct{ images.Store }
	noLayers    struct{ stores.Layers }
)

func newBuilder(t *testing.T, s Sandboxes) *Builder {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b := builderAt(t, t.TempDir(), self, s)
	t.Cleanup(func() {
		b.Stop(true)
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func builderAt(t *testing.T, root, binary string, s Sandboxes) *Builder {
	t.Helper()
	return New(Options{
		Mode:   func(_ context.Context, mode string) (string, error) { return mode, nil },
		Names:  func(view string, _ network.Sandbox) ([]byte, error) { return []byte(view), nil },
		Binary: binary, DataRoot: root, ExecRoot: root, Networks: s, Log: slog.New(slog.DiscardHandler),
		Stores: Stores{
			Content: noContent{}, Snapshots: noSnapshots{}, Leases: noLeases{}, Images: noImages{}, Layers: noLayers{},
			Usage: func(context.Context) (int64, error) { return 0, nil }, Config: func() Config { return Config{Driver: "a-driver"} },
		},
	})
}

// give passes a client with a head and returns what it is answered.
func give(t *testing.T, b *Builder, head string) (size, start, driver, pid string) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")
	defer near.Close()
	err = b.Give(t.Context(), beside.Client{File: far, Pending: []byte(head)}, nil)
	far.Close()
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(near).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(line, &size, &start, &driver, &pid); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return size, start, driver, pid
}

func TestClientReachesTheProcessThatTheFirstOneStarts(t *testing.T) {
	b := newBuilder(t, &sandboxes{})
	large := strings.Repeat("x", 3*beside.MaxMessage)
	size, start, driver, pid := give(t, b, large)
	if size != fmt.Sprint(len(large)) || start != "xxxxx" || driver != "a-driver" {
		t.Errorf("%s %s %s", size, start, driver)
	}
	if _, _, _, again := give(t, b, "hello"); again != pid {
		t.Errorf("process %s, then %s", pid, again)
	}
	// The next daemon uses the process that runs.
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	next := builderAt(t, b.o.ExecRoot, "/not/installed/any/more", &sandboxes{})
	if err := next.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	next.process.Binary = b.process.Binary
	if _, _, _, again := give(t, next, "hello"); again != pid {
		t.Errorf("process %s, and with the next daemon %s", pid, again)
	}
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestClientOfAProcessThatEndsReachesTheNext(t *testing.T) {
	b := newBuilder(t, &sandboxes{})
	_, _, _, pid := give(t, b, "hello")
	if _, start, _, next := give(t, b, "leave"); start != "leave" || next == pid {
		t.Errorf("%s by process %s, after %s", start, next, pid)
	}
}

func TestProcessThatCantStartSaysWhy(t *testing.T) {
	b := newBuilder(t, &sandboxes{})
	if err := os.WriteFile(filepath.Join(b.o.DataRoot, "broken"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.Ready(t.Context()); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "it is broken") {
		t.Errorf("%v", err)
	}
	b.process.Binary = "/not/there"
	if err := b.Ready(t.Context()); !errdefs.IsNotImplemented(err) || b.Installed() {
		t.Errorf("%v", err)
	}
}

// sandboxes notes what is made and removed.
type sandboxes struct {
	calls []string
	fails string
}

func (s *sandboxes) do(what string, sb network.Sandbox) error {
	s.calls = append(s.calls, what+" "+filepath.Base(sb.Netns))
	if s.fails == what {
		return errors.New("it fails")
	}
	return nil
}

func (s *sandboxes) Prepare(_ context.Context, r network.Request) (network.Sandbox, []network.Reserved, error) {
	sb := network.Sandbox{Container: r.ID, Mode: r.Mode}
	return sb, nil, s.do("prepare", sb)
}
func (s *sandboxes) Join(_ context.Context, sb network.Sandbox) error    { return s.do("join", sb) }
func (s *sandboxes) Publish(_ context.Context, sb network.Sandbox) error { return s.do("publish", sb) }
func (s *sandboxes) Release(_ context.Context, sb network.Sandbox) error { return s.do("release", sb) }

func TestNetworkOfAStepIsRecordedBeforeItIsMade(t *testing.T) {
	id := strings.Repeat("ab", 32)
	s := &sandboxes{}
	b := newBuilder(t, s)
	path, err := b.networks.Connect(t.Context(), id, "")
	if err != nil || path != filepath.Join(b.o.ExecRoot, "build/net", id, "netns") {
		t.Fatal(path, err)
	}
	if again, err := b.networks.Connect(t.Context(), id, ""); again != path || err != nil {
		t.Errorf("repeated: %s, %v", again, err)
	}
	if got := strings.Join(s.calls, ", "); got != "prepare ., join netns, publish netns, join netns, publish netns" {
		t.Error(got)
	}
	if n := len(b.Steps()); n != 0 {
		t.Errorf("%d networks of steps of a process that does not run", n)
	}
	give(t, b, "hello") // starts a process, and removes what an earlier one left
	if got := s.calls[len(s.calls)-1]; got != "release netns" {
		t.Error(got)
	}
	if _, err := b.networks.Connect(t.Context(), id, ""); err != nil || b.Steps()[id].Container != id {
		t.Errorf("%v, %v", b.Steps(), err)
	}
	for range 2 {
		if err := b.networks.Disconnect(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	for _, fails := range []string{"prepare", "join", "publish"} {
		s.fails = fails
		if _, err := b.networks.Connect(t.Context(), id, ""); err == nil {
			t.Errorf("%s fails, but Connect does not", fails)
		}
		if left, _ := os.ReadDir(filepath.Join(b.o.ExecRoot, "build/net")); len(left) > 0 {
			t.Errorf("%s fails, and %v is left", fails, left)
		}
	}
	if _, err := b.networks.Connect(t.Context(), "../../etc", ""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v", err)
	}
}
