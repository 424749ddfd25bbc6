// SPDX-License-Identifier: Apache-2.0

package proto

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"holdfast/test/golden"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func pair(t *testing.T) (a, b *Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if a, err = NewConn(fds[0]); err != nil {
		t.Fatal(err)
	}
	if b, err = NewConn(fds[1]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestDescriptorsArriveInOrderEvenWhenTheyAreMany(t *testing.T) {
	a, b := pair(t)
	const n = 600 // more than two sendmsg calls carry
	boot := Bootstrap{ID: "c1"}
	var fds []int
	dir := t.TempDir()
	for i := range n {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fmt.Fprint(f, i)
		fds = append(fds, int(f.Fd()))
		boot.Ports = append(boot.Ports, Port{Proto: "tcp", Target: fmt.Sprintf("10.0.0.1:%d", i)})
	}
	sent := make(chan error, 1)
	go func() { sent <- a.Send(boot, fds...) }()
	var got Bootstrap
	if err := b.Receive(&got); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if len(got.Ports) != n {
		t.Fatalf("%d ports, want as many as were sent", len(got.Ports))
	}
	received, err := b.TakeFDs(n)
	if err != nil {
		t.Fatal(err)
	}
	for i, fd := range received {
		var buf [16]byte
		k, err := syscall.Pread(fd, buf[:], 0)
		syscall.Close(fd)
		if err != nil || string(buf[:k]) != fmt.Sprint(i) {
			t.Fatalf("descriptor %d reads %q, %v", i, buf[:k], err)
		}
	}
	if _, err := b.TakeFDs(1); !errors.Is(err, ErrFrame) {
		t.Fatalf("TakeFDs of a descriptor that was not sent: %v", err)
	}
}

func TestFramesOfAnySizePassWhole(t *testing.T) {
	a, b := pair(t)
	sizes := []int{0, 1, 511, 512, 70_000, 5 << 20, 3}
	go func() {
		for i, n := range sizes {
			a.Send(Message{ID: uint64(i + 1), Method: strings.Repeat("x", n)})
		}
		a.Close()
	}()
	for i, n := range sizes {
		var m Message
		if err := b.Receive(&m); err != nil {
			t.Fatal(err)
		}
		if m.ID != uint64(i+1) || len(m.Method) != n {
			t.Fatalf("frame %d: id %d, %d bytes", i, m.ID, len(m.Method))
		}
	}
	if err := b.Receive(&Message{}); err != io.EOF {
		t.Fatalf("after the last frame: %v", err)
	}
}

func TestBrokenInputIsRefused(t *testing.T) {
	tests := []struct {
		name  string
		bytes string
		want  error
	}{
		{"end inside the header", "\x00\x00", io.ErrUnexpectedEOF},
		{"end inside the payload", "\x00\x00\x00\x05{}", io.ErrUnexpectedEOF},
		{"longer than the limit", "\x7f\xff\xff\xff{}", ErrFrame},
		{"empty payload", "\x00\x00\x00\x00", ErrFrame},
		{"no JSON", "\x00\x00\x00\x02{x", ErrFrame},
		{"another protocol", "GET / HTTP/1.1\r\n\r\n", ErrFrame},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := pair(t)
			if err := a.write([]byte(tt.bytes), nil); err != nil {
				t.Fatal(err)
			}
			a.Close()
			if err := b.Receive(&Message{}); !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// The transcripts document the protocol and keep it compatible: a frame that an
// earlier release wrote decodes to the same message for ever.
func TestGoldenTranscripts(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)
	raw := func(v any) json.RawMessage {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	state := State{Schema: 1, ID: "c1", Life: 1, Status: StatusRunning, ShimPid: 100, Pid: 101, PidStart: 5000, Started: at, Seq: 1}
	ended := state
	ended.Status, ended.Pid, ended.PidStart, ended.ExitCode, ended.Finished, ended.Seq = StatusExited, 0, 0, 3, at.Add(time.Second), 2
	tests := []struct {
		name  string
		lines []any
	}{
		{"start", []any{
			Bootstrap{Version: 1, ID: "c1", Life: 1, RunDir: "/run/holdfast/shim/c1", DataDir: "/var/lib/holdfast/containers/c1",
				Bundle: "/run/holdfast/shim/c1", Runtime: Runtime{Path: "runc", Args: []string{"--root", "/run/holdfast/runc"}},
				Log: Log{Driver: "json-file", Path: "/var/lib/holdfast/containers/c1/c1-json.log"}, StopSignal: 15, StopTimeout: 10,
				Ports: []Port{{Proto: "tcp", Target: "172.17.0.2:80"}}},
			Message{ID: 1, Method: MethodHello, Params: raw(Hello{Version: 1, Daemon: "1.0.0"})},
			Message{ID: 1, Result: raw(HelloReply{Version: 1, Release: "1.0.0", Pid: 100, State: State{Schema: 1, ID: "c1", Life: 1, Status: StatusCreated, ShimPid: 100}})},
			Message{ID: 2, Method: MethodSubscribe, Params: raw(Subscribe{})},
			Message{ID: 2},
			Message{ID: 3, Method: MethodStart},
			Message{Event: &Event{Entry: Entry{Seq: 1, Time: at, Action: ActionStart, Attributes: map[string]string{"name": "web"}}, State: state}},
			Message{ID: 3, Result: raw(state)},
			Message{Event: &Event{Entry: Entry{Seq: 2, Time: at.Add(time.Second), Action: ActionDie, Attributes: map[string]string{"exitCode": "3", "execDuration": "1"}}, State: ended}},
		}},
		{"errors", []any{
			Message{ID: 1, Method: "fly"},
			Message{ID: 1, Error: &Error{Kind: KindUnimplemented, Message: "this shim knows no method \"fly\""}},
			Message{ID: 2, Method: MethodStart},
			Message{ID: 2, Error: &Error{Kind: KindRuntime, Message: "OCI runtime failed: exec: \"x\": executable file not found in $PATH", ExitCode: 127}},
		}},
		{"attach", []any{
			Message{ID: 1, Method: MethodAttach, FDs: 1, Params: raw(Attach{Stdin: true, Stdout: true, Stderr: true, DetachKeys: []byte{16, 17}})},
			Message{ID: 1},
			Message{ID: 2, Method: MethodExecCreate, Params: raw(ExecCreate{Exec: "e1", Process: json.RawMessage(`{"args":["sh"],"cwd":"/"}`), Tty: true, Stdin: true, Stdout: true})},
			Message{ID: 2},
			Message{ID: 3, Method: MethodExecStart, FDs: 1, Params: raw(ExecStart{Exec: "e1", ConsoleSize: [2]uint{24, 80}})},
			Message{ID: 3, Result: raw(ExecState{Exec: "e1", Running: true, Started: true, Pid: 110})},
		}},
		{"ports", []any{
			Message{ID: 1, Method: MethodPorts, Params: raw(Ports{Ports: []Port{
				{Proto: "tcp", Target: "172.18.0.2:80", Host: "0.0.0.0:8080"}, {Proto: "udp", Host: "[::]:53"}}, Netlink: [][]byte{{1, 2}}})},
			Message{ID: 1, Result: raw(PortsReply{Missing: []int{1}})},
			Message{ID: 2, Method: MethodPorts, FDs: 1, Params: raw(Ports{New: []Port{{Proto: "udp"}}})},
			Message{ID: 2, Result: raw(PortsReply{})},
		}},
		{"sessions", []any{
			Message{ID: 1, Method: MethodHold, FDs: 2, Params: raw(Hold{Condition: HoldNextExit, Head: []byte("HTTP/1.1 200 OK\r\n\r\n")})},
			Message{ID: 1},
			Message{ID: 2, Method: MethodFollow, FDs: 2, Params: raw(Follow{Offset: 4096, Stdout: true, Stderr: true, Timestamps: true, Until: at, Within: [2]bool{true, false}})},
			Message{ID: 2},
			Message{ID: 3, Method: MethodFollow, FDs: 2, Params: raw(Follow{Stdout: true, Raw: true, Details: true, Since: at})},
			Message{ID: 3, Error: &Error{Kind: KindConflict, Message: "the log was rotated meanwhile"}},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got bytes.Buffer
			for _, v := range tt.lines {
				frame, err := AppendFrame(nil, v)
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&got, "%x %s\n", frame[:headerSize], frame[headerSize:])
			}
			golden.Compare(t, filepath.Join("testdata", tt.name+".txt"), got.Bytes())
		})
	}
}

func FuzzSplitFrame(f *testing.F) {
	frame, _ := AppendFrame(nil, Message{ID: 1, Method: MethodHello})
	f.Add(frame)
	f.Add(frame[:3])
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		payload, rest, missing, err := SplitFrame(b)
		switch {
		case err != nil, payload == nil:
			if err == nil && missing <= 0 {
				t.Fatal("no frame, no error, and no missing bytes")
			}
			if !bytes.Equal(rest, b) {
				t.Fatal("consumed bytes without returning a frame")
			}
		case headerSize+len(payload)+len(rest) != len(b):
			t.Fatalf("%d bytes became %d and %d", len(b), len(payload), len(rest))
		}
	})
}
