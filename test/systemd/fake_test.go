// SPDX-License-Identifier: Apache-2.0

package systemd

import (
	"bufio"
	"encoding/binary"
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

	"github.com/godbus/dbus/v5"

	"holdfast/test/kit"
)

// systemd plays the service manager of a host on which the daemon is a service.
// The daemon finds the manager's socket at its usual path, and is in a control
// group with a service's name. The fake answers the daemon's calls, and moves
// processes as systemd does.
type systemd struct {
	t     *testing.T
	d     *kit.Daemon
	group string // directory of the slice's control group

	mu         sync.Mutex
	state      string // SystemState
	properties map[string]dbus.Variant
	silent     bool // accepts calls and does not answer
}

// start starts a daemon under a new systemd. Live restore is on.
func start(t *testing.T) *systemd {
	t.Helper()
	s := &systemd{t: t, state: "running"}
	t.Cleanup(func() { // runs after the daemon has exited
		if s.group == "" {
			return
		}
		entries, _ := os.ReadDir(s.group)
		for _, e := range entries {
			if e.IsDir() {
				if err := os.Remove(filepath.Join(s.group, e.Name())); err != nil {
					t.Error(err)
				}
			}
		}
		if err := os.Remove(s.group); err != nil {
			t.Error(err)
		}
	})
	var enter []string
	s.d = kit.New(t, kit.Options{
		LiveRestore: true,
		// The fake does not support scopes of containers.
		Config: map[string]any{"exec-opts": []string{"native.cgroupdriver=cgroupfs"}},
		Wrap: func(cmd *exec.Cmd) {
			cmd.Args = append(slices.Clone(enter), cmd.Args...)
			cmd.Args[len(enter)] = cmd.Path
			cmd.Path = enter[0]
		},
	})
	s.groups()
	enter = []string{"/usr/bin/nsenter", "-m" + s.mounts(), "sh", "-c", "echo $$ >" + s.path(s.unit()) + "/cgroup.procs && exec \"$0\" \"$@\""}
	s.d.Start()
	return s
}

func (s *systemd) unit() string  { return s.d.ID + ".service" }
func (s *systemd) scope() string { return s.d.ID + "-shims.scope" }

// path is the directory of a unit's control group.
func (s *systemd) path(unit string) string { return filepath.Join(s.group, unit) }

// groups makes the control group of the daemon's unit.
func (s *systemd) groups() {
	s.t.Helper()
	root := "/sys/fs/cgroup/systemd"
	if _, err := os.Stat(root); err != nil {
		root = "/sys/fs/cgroup"
	}
	group := filepath.Join(root, s.d.ID+".slice")
	if err := os.MkdirAll(filepath.Join(group, s.unit()), 0o755); err != nil {
		s.t.Fatal(err)
	}
	s.group = group
}

// mounts makes a mount namespace in which /run/systemd belongs to the fake, and
// returns its path. Mounts of the host propagate into it, and none propagates
// out.
func (s *systemd) mounts() string {
	s.t.Helper()
	dir := s.d.Root + "/systemd"
	if err := os.MkdirAll(dir+"/system", 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Mkdir("/run/systemd", 0o755); err == nil {
		s.t.Cleanup(func() { os.Remove("/run/systemd") })
	}
	l, err := net.Listen("unix", dir+"/private")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if err := s.serve(c); err != nil && !errors.Is(err, io.EOF) {
					s.t.Error("the fake systemd:", err)
				}
			}()
		}
	}()
	holder := exec.Command("unshare", "-m", "--propagation", "slave", "sh", "-c", "mount --bind "+dir+" /run/systemd && echo ready && exec sleep infinity")
	out, err := holder.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		holder.Process.Kill()
		holder.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		s.t.Fatal(line, err)
	}
	return fmt.Sprintf("/proc/%d/ns/mnt", holder.Process.Pid)
}

// set changes the properties that the fake reports.
func (s *systemd) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// serve serves one client: first the authentication of D-Bus, then calls.
func (s *systemd) serve(c net.Conn) error {
	in := bufio.NewReader(c)
	if b, err := in.ReadByte(); err != nil || b != 0 {
		return errors.Join(err, errors.New("no null byte first"))
	}
	for begun := false; !begun; {
		line, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		answer := ""
		switch word := strings.Fields(line); {
		case len(word) == 0:
			return fmt.Errorf("an empty line")
		case word[0] == "AUTH" && len(word) == 1:
			answer = "REJECTED EXTERNAL"
		case word[0] == "AUTH" && word[1] == "EXTERNAL":
			answer = "OK 0123456789abcdef0123456789abcdef"
		case word[0] == "NEGOTIATE_UNIX_FD":
			answer = "ERROR"
		case word[0] == "BEGIN":
			begun = true
			continue
		default:
			return fmt.Errorf("not understood: %q", line)
		}
		if _, err := io.WriteString(c, answer+"\r\n"); err != nil {
			return err
		}
	}
	for {
		call, err := dbus.DecodeMessage(in)
		if err != nil {
			return err
		}
		s.mu.Lock()
		silent := s.silent
		s.mu.Unlock()
		if silent {
			continue
		}
		reply := &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{dbus.FieldReplySerial: dbus.MakeVariant(call.Serial())}}
		member, _ := call.Headers[dbus.FieldMember].Value().(string)
		if v, err := s.answer(member, call.Body); err != nil {
			reply.Type = dbus.TypeError
			reply.Headers[dbus.FieldErrorName] = dbus.MakeVariant("org.freedesktop.systemd1.NoSuchUnit")
			reply.Body = []any{err.Error()}
		} else if v != nil {
			reply.Body = []any{v}
		}
		if len(reply.Body) > 0 {
			reply.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(reply.Body...))
		}
		if err := reply.EncodeTo(c, binary.LittleEndian); err != nil {
			return err
		}
	}
}

func (s *systemd) answer(member string, body []any) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	scope := s.path(s.scope())
	// systemd removes a scope when its last process has exited.
	if b, err := os.ReadFile(scope + "/cgroup.procs"); err == nil && len(b) == 0 {
		os.Remove(scope)
	}
	switch member {
	case "Get":
		return dbus.MakeVariant(s.state), nil
	case "AttachProcessesToUnit":
		if body[0] != s.scope() {
			return nil, fmt.Errorf("no unit %v", body[0])
		}
		return nil, s.move(scope, body[2].([]uint32))
	case "StartTransientUnit":
		if body[0] != s.scope() {
			return nil, fmt.Errorf("a scope named %v", body[0])
		}
		s.properties = map[string]dbus.Variant{}
		for _, p := range body[2].([][]any) {
			s.properties[p[0].(string)] = p[1].(dbus.Variant)
		}
		if err := os.Mkdir(scope, 0o755); err != nil {
			return nil, err
		}
		return dbus.ObjectPath("/org/freedesktop/systemd1/job/1"), s.move(scope, s.properties["PIDs"].Value().([]uint32))
	}
	return nil, fmt.Errorf("no method %s", member)
}

func (s *systemd) move(scope string, pids []uint32) error {
	for _, pid := range pids {
		if err := os.WriteFile(scope+"/cgroup.procs", []byte(strconv.Itoa(int(pid))), 0); err != nil {
			return err
		}
	}
	return nil
}
