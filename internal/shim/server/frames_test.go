// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/descriptor"
	"holdfast/internal/shim/proto"
)

// fakeShim is a shim without a container, for real clients: its runtime is a
// script, its exec sessions are cat, and its container is a pipe.
type fakeShim struct {
	*Shim
	dir string
	log *os.File
	out *os.File // the container's end of its stdout
}

var fake = struct {
	sync.Once
	*fakeShim
	err error
}{}

func TestMain(m *testing.M) {
	code := m.Run()
	if fake.fakeShim != nil {
		os.RemoveAll(fake.dir)
	}
	os.Exit(code)
}

func fakeContainer(t testing.TB) *fakeShim {
	t.Helper()
	fake.Do(func() { fake.fakeShim, fake.err = newFake() })
	if fake.err != nil {
		t.Fatal(fake.err)
	}
	return fake.fakeShim
}

// fakeRuntime starts a cat, whatever the command.
const fakeRuntime = `#!/bin/sh
pid=
while [ $# -gt 0 ]; do
	case $1 in --pid-file) pid=$2 ;; esac
	shift
done
[ -n "$pid" ] || exit 0
exec 3<&0
cat <&3 3<&- &
echo $! >"$pid"
`

func newFake() (*fakeShim, error) {
	// The processes that the fake runtime leaves behind become children of this
	// process.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "holdfast-fake-shim-")
	if err != nil {
		return nil, err
	}
	f := &fakeShim{dir: dir}
	if err := os.WriteFile(dir+"/runtime", []byte(fakeRuntime), 0o700); err != nil {
		return nil, err
	}
	b := &proto.Bootstrap{Version: proto.Version, ID: "fake", Life: 1, RunDir: dir, DataDir: dir, Bundle: dir,
		OpenStdin: true, Runtime: proto.Runtime{Path: dir + "/runtime"},
		Log: proto.Log{Driver: "json-file", Path: filepath.Join(dir, "fake-json.log"), MaxSize: 1 << 20, MaxFiles: 2}}
	rec, err := newRecord(b)
	if err != nil {
		return nil, err
	}
	r := newReaper()
	rt, err := newRuntime(b, r)
	if err != nil {
		return nil, err
	}
	f.Shim = newShim(b, "test", rec, r, rt)
	if f.dirfd, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, err
	}
	if err := f.Shim.out.openLog(b.Log, dir, false); err != nil {
		return nil, err
	}
	io, err := f.Shim.out.newRunIO(b, f.dirfd, 0, 0)
	if err != nil {
		return nil, err
	}
	f.out = os.NewFile(uintptr(io.child[1]), "container's stdout")
	io.run(b)
	// A port makes the ports open their epoll instance, so that no test does.
	udp, _ := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if _, _, err := f.ports.Update(proto.Ports{New: []proto.Port{{Proto: "udp", Target: "127.0.0.1:1"}}}, []int{udp}); err != nil {
		return nil, err
	}
	f.ports.Clear()
	f.life.starting.Store(true)
	f.life.current = &run{proc: &process{pid: os.Getpid(), exited: make(chan struct{})}, io: io, started: time.Now()}
	rec.change(func(st *proto.State) { st.Status = proto.StatusRunning })
	if f.log, err = os.Open(b.Log.Path); err != nil {
		return nil, err
	}
	return f, nil
}

// connect makes a connection as a daemon would.
func (f *fakeShim) connect(t testing.TB) *proto.Conn {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.server.add(fds[0]); err != nil {
		t.Fatal(err)
	}
	c, err := proto.NewConn(fds[1])
	if err != nil {
		t.Fatal(err)
	}
	c.File().SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// ask sends a request and waits for its answer.
func ask(t testing.TB, c *proto.Conn, m *proto.Message, fds ...int) *proto.Message {
	t.Helper()
	if err := c.Send(m, fds...); err != nil {
		t.Fatalf("%s: %v", m.Method, err)
	}
	for {
		answer := &proto.Message{}
		if err := c.Receive(answer); err != nil {
			t.Fatalf("%s: %v", m.Method, err)
		}
		if answer.ID == m.ID {
			return answer
		}
	}
}

// wrongKinds make descriptors of every kind. The second one is the other end, which
// a client keeps open, or -1.
var wrongKinds = []func(f *fakeShim) (int, int){
	func(*fakeShim) (int, int) { return pairOf(unix.SOCK_STREAM) },
	func(*fakeShim) (int, int) { // a client that has gone
		a, b := pairOf(unix.SOCK_STREAM)
		unix.Close(b)
		return a, -1
	},
	func(*fakeShim) (int, int) { // a client that has sent and closed its sending side
		a, b := pairOf(unix.SOCK_STREAM)
		unix.Write(b, []byte("input\n"))
		unix.Shutdown(b, unix.SHUT_WR)
		return a, b
	},
	func(*fakeShim) (int, int) { // a client that resets the connection
		a, b := pairOf(unix.SOCK_STREAM)
		unix.Write(a, []byte("unread"))
		unix.Close(b)
		return a, -1
	},
	func(*fakeShim) (int, int) { return pairOf(unix.SOCK_DGRAM) },
	func(*fakeShim) (int, int) { return pairOf(unix.SOCK_SEQPACKET) },
	func(f *fakeShim) (int, int) { return opened(f.dir, unix.O_RDONLY|unix.O_DIRECTORY), -1 },
	func(f *fakeShim) (int, int) { return opened(f.dir, unix.O_PATH), -1 },
	func(*fakeShim) (int, int) { return opened(os.DevNull, unix.O_RDWR), -1 },
	func(*fakeShim) (int, int) { return opened("/dev/zero", unix.O_RDONLY), -1 },
	func(f *fakeShim) (int, int) { return opened(f.log.Name(), unix.O_RDONLY), -1 },
	func(*fakeShim) (int, int) { return opened("/proc/self/stat", unix.O_RDONLY), -1 },
	func(*fakeShim) (int, int) { // the read end of a pipe
		var p [2]int
		unix.Pipe2(p[:], unix.O_CLOEXEC)
		return p[0], p[1]
	},
	func(*fakeShim) (int, int) { // the write end of a pipe
		var p [2]int
		unix.Pipe2(p[:], unix.O_CLOEXEC)
		return p[1], p[0]
	},
	func(*fakeShim) (int, int) {
		fd, _ := unix.MemfdCreate("fuzz", unix.MFD_CLOEXEC)
		unix.Write(fd, []byte(`{"log":"x\n","stream":"stdout","time":"2026-01-01T00:00:00Z"}`+"\n"))
		unix.Seek(fd, 0, 0)
		return fd, -1
	},
	func(*fakeShim) (int, int) {
		fd, _ := unix.Eventfd(1, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		return fd, -1
	},
	func(*fakeShim) (int, int) {
		fd, _ := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		return fd, -1
	},
	func(*fakeShim) (int, int) { // a listening socket
		fd, _ := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		unix.Bind(fd, &unix.SockaddrUnix{})
		unix.Listen(fd, 1)
		return fd, -1
	},
	func(*fakeShim) (int, int) { // an unconnected socket
		fd, _ := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return fd, -1
	},
}

func pairOf(kind int) (int, int) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, -1
	}
	return fds[0], fds[1]
}

func opened(path string, flags int) int {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return fd
}

// calls are requests of a daemon, except those that would end the shim or run
// programs other than the runtime.
var calls = []struct{ method, params string }{
	{proto.MethodHello, `{"version":1,"daemon":"x"}`},
	{proto.MethodSubscribe, `{"after":0}`},
	{proto.MethodState, ``},
	{proto.MethodStart, ``},
	{proto.MethodShutdown, ``},
	{proto.MethodResize, `{"height":24,"width":80}`},
	{proto.MethodTerminal, ``},
	{proto.MethodNames, `{"view":"/dev/null"}`},
	{proto.MethodPorts, `{"new":[{"proto":"tcp","target":"127.0.0.1:1"}],"ports":[{"proto":"tcp","host":"127.0.0.1:1","target":""}]}`},
	{proto.MethodPorts, `{"new":[{"proto":"udp","target":"127.0.0.1:1"}]}`},
	{proto.MethodAttach, `{"Stdin":true,"Stdout":true,"Stderr":true}`},
	{proto.MethodAttach, `{"Stdout":true,"raw":true,"pending":"aGVsbG8="}`},
	{proto.MethodExecCreate, `{"exec":"EXEC","process":{"args":["x"]},"Stdin":true,"Stdout":true,"Stderr":true}`},
	{proto.MethodExecCreate, `{"exec":"EXEC","process":{"args":["x"]},"Stdout":true}`},
	{proto.MethodExecStart, `{"exec":"EXEC"}`},
	{proto.MethodExecStart, `{"exec":"EXEC","pending":"aGVsbG8="}`},
	{proto.MethodExecResize, `{"exec":"EXEC","height":24,"width":80}`},
	{proto.MethodHold, `{"condition":"not-running"}`},
	{proto.MethodHold, `{"condition":"next-exit","head":"SFRUUC8xLjE="}`},
	{proto.MethodFollow, `{"stdout":true,"stderr":true}`},
	{proto.MethodFollow, `{"stdout":true,"offset":-5,"since":"2026-01-01T00:00:00Z"}`},
	{proto.MethodFollow, `{"stdout":true,"offset":9000000000,"until":"2026-01-01T00:00:00Z"}`},
	{"nothing", ``},
}

// FuzzFramesWithDescriptors sends requests to a running shim, with descriptors of
// wrong kinds, too few or too many, and closes the connection. The shim must answer
// the next client, and release all resources.
//
// The input has 4 bytes for each request: the method, the change to make, and two
// descriptors. With some changes the next bytes are the parameters.
func FuzzFramesWithDescriptors(f *testing.F) {
	for call, c := range calls {
		f.Add([]byte{byte(call), 0, 0, 0})
		f.Add([]byte{byte(call), 0, 1, 0})
		f.Add([]byte{byte(call), 1, 1, 1})
		for kind := range wrongKinds {
			switch c.method {
			case proto.MethodAttach, proto.MethodExecStart, proto.MethodPorts:
				f.Add([]byte{12, 0, 0, 0, byte(call), 0, byte(kind + 1), 0})
			case proto.MethodHold, proto.MethodFollow, proto.MethodNames:
				f.Add([]byte{byte(call), 0, 1, byte(kind + 1)})
				f.Add([]byte{byte(call), 0, byte(kind + 1), 11})
			}
		}
	}
	f.Add([]byte{12, 0, 0, 0, 14, 0, 1, 0, 10, 0, 1, 0})
	f.Add([]byte{12, 0, 0, 0, 15, 0, 3, 0, 16, 0, 0, 0})
	f.Add([]byte{10, 1, 1, 0, 12, 2, 1, 1, 13, 3, 2, 2})
	f.Add(append([]byte{14, 4, 1, 0}, `{"exec":"x"} and more`...))
	var names uint64
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 256 {
			return
		}
		s := fakeContainer(t)
		names++
		exec := "fuzz" + strconv.FormatUint(names, 10)
		// Wait until nothing of earlier requests is left.
		before := settled(t, s, -1)
		c := s.connect(t)
		id := uint64(0)
		var held []int
		for len(in) >= 4 {
			call, change := calls[int(in[0])%len(calls)], in[1]
			kinds := in[2:4]
			in = in[4:]
			id++
			params := strings.ReplaceAll(call.params, "EXEC", exec)
			if change == 4 {
				n := min(len(in), 40)
				params, in = string(in[:n]), in[n:]
			}
			m := &proto.Message{ID: id, Method: call.method}
			if json.Valid([]byte(params)) {
				m.Params = []byte(params)
			}
			var fds []int
			for _, k := range kinds {
				if n := int(k) % (len(wrongKinds) + 1); n > 0 {
					fd, other := wrongKinds[n-1](s)
					if fd >= 0 {
						fds = append(fds, fd)
					}
					if other >= 0 {
						held = append(held, other)
					}
				}
			}
			m.FDs = len(fds)
			switch change {
			case 1:
				m.FDs++ // one more than is sent
			case 2:
				m.FDs = 0
			case 3:
				m.FDs = -1
			}
			err := c.Send(m, fds...)
			descriptor.CloseAll(fds)
			if err != nil {
				break // the shim has closed the connection, which is allowed
			}
			if change == 5 {
				s.out.Write([]byte("a line\n"))
			}
		}
		c.Close()
		descriptor.CloseAll(held)
		// The shim must answer the next client.
		next := s.connect(t)
		if a := ask(t, next, &proto.Message{ID: 1, Method: proto.MethodHello, Params: []byte(`{"version":1}`)}); a.Error != nil {
			t.Errorf("hello: %v", a.Error)
		}
		next.Close()
		settled(t, s, before)
	})
}

// settled waits until the shim has no resources of clients left, and until it has
// at most before descriptors; -1 means any number. It returns the number of
// descriptors.
func settled(t testing.TB, s *fakeShim, before int) int {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(time.Millisecond) // until the shim's goroutines, and processes, have ended
	defer tick.Stop()
	for {
		left := s.leftovers()
		fds := descriptors(t)
		if left == "" && (before < 0 || fds <= before) {
			return fds
		}
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("still in use: %s; %d descriptors, %d before: %v\n%s", left, fds, before, openFiles(), buf[:runtime.Stack(buf, true)])
		}
		<-tick.C
	}
}

// leftovers returns what the shim still does for clients, "" for nothing. It
// releases the name server and the ports, which the shim would keep.
func (f *fakeShim) leftovers() string {
	f.names.mu.Lock()
	names := f.names.server
	f.names.server = nil
	f.names.mu.Unlock()
	if names != nil {
		names.Close()
	}
	f.ports.Clear()
	// Every subscriber gets the whole journal, so empty it.
	f.rec.mu.Lock()
	f.rec.journal.f.Truncate(0)
	f.rec.journal.size = 0
	f.rec.mu.Unlock()
	f.server.mu.Lock()
	conns, clients := len(f.server.conns), len(f.server.clients)
	f.server.mu.Unlock()
	f.execs.mu.Lock()
	running, left := f.execs.busy(), len(f.execs.orphans)
	f.execs.mu.Unlock()
	f.reaper.mu.Lock()
	known := len(f.reaper.known)
	f.reaper.mu.Unlock()
	f.gate.mu.Lock()
	inside := f.gate.inside
	f.gate.mu.Unlock()
	if conns+clients+running+left+known+inside == 0 {
		return ""
	}
	return fmt.Sprintf("%d connections, %d clients, %d execs, %d streams, %d children, %d operations", conns, clients, running, left, known, inside)
}

func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func openFiles() (all []string) {
	list, _ := os.ReadDir("/proc/self/fd")
	for _, e := range list {
		name, _ := os.Readlink("/proc/self/fd/" + e.Name())
		all = append(all, name)
	}
	return all
}
