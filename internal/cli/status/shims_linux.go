// SPDX-License-Identifier: Apache-2.0

package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"time"

	"holdfast/internal/shim/proto"
)

// ShimDir is the directory in the exec root with one directory per container.
const ShimDir = "shim"

// helloTimeout is how long a shim may take to answer.
const helloTimeout = time.Second

// ReadShims lists the containers whose shims have a state file under execRoot.
// An error about one container becomes its Note. The returned error is about
// the directory; if it does not exist the list is empty.
func ReadShims(ctx context.Context, execRoot string) ([]Container, error) {
	entries, err := os.ReadDir(filepath.Join(execRoot, ShimDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []Container
	for _, e := range entries {
		if e.IsDir() {
			list = append(list, readShim(ctx, filepath.Join(execRoot, ShimDir, e.Name())))
		}
	}
	sort.Slice(list, func(i, j int) bool {
		a, b := list[i], list[j]
		if !a.Started.Equal(b.Started) {
			return a.Started.After(b.Started)
		}
		return a.ID < b.ID
	})
	return list, nil
}

// readShim asks the shim, and reads its state file if it does not answer.
func readShim(ctx context.Context, dir string) Container {
	c := Container{ID: filepath.Base(dir), Status: "unknown", Name: name(dir)}
	if reply, err := hello(ctx, dir); err == nil {
		c.take(reply.State)
		c.ShimPid, c.ShimVersion = reply.Pid, reply.Release
		return c
	}
	state, err := readState(filepath.Join(dir, proto.StateFile))
	if err != nil {
		c.Note = err.Error()
		return c
	}
	c.take(state)
	switch {
	case alive(state.ShimPid):
		c.ShimPid = state.ShimPid
		c.Note = "its shim is running but does not answer; this is its last recorded state"
	case running(state.Status):
		c.Note = "its shim is gone; the daemon gives it a new one when it starts"
	}
	return c
}

func (c *Container) take(s proto.State) {
	c.Status, c.Pid, c.Started = s.Status, s.Pid, s.Started
}

func readState(path string) (proto.State, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return proto.State{}, errors.New("its shim has recorded no state")
	} else if err != nil {
		return proto.State{}, err
	}
	var state proto.State
	if err := json.Unmarshal(raw, &state); err != nil {
		return proto.State{}, fmt.Errorf("%s can't be understood: %w", path, err)
	}
	if state.Schema > proto.StateSchema {
		return proto.State{}, fmt.Errorf("%s has schema %d and was written by a newer release; this one reads up to %d",
			path, state.Schema, proto.StateSchema)
	}
	return state, nil
}

// hello asks the shim for its state. It changes nothing in the shim.
func hello(ctx context.Context, dir string) (proto.HelloReply, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, proto.SocketFile))
	if err != nil {
		return proto.HelloReply{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	params, err := json.Marshal(proto.Hello{Version: proto.Version})
	if err != nil {
		return proto.HelloReply{}, err
	}
	frame, err := proto.AppendFrame(nil, proto.Message{ID: 1, Method: proto.MethodHello, Params: params})
	if err != nil {
		return proto.HelloReply{}, err
	}
	if _, err := conn.Write(frame); err != nil {
		return proto.HelloReply{}, err
	}
	for buf := []byte(nil); ; {
		payload, rest, missing, err := proto.SplitFrame(buf)
		if err != nil {
			return proto.HelloReply{}, err
		}
		if payload == nil {
			more := make([]byte, missing)
			if _, err := io.ReadFull(conn, more); err != nil {
				return proto.HelloReply{}, err
			}
			buf = append(buf, more...)
			continue
		}
		buf = rest
		var m proto.Message
		if err := json.Unmarshal(payload, &m); err != nil {
			return proto.HelloReply{}, err
		}
		switch {
		case m.ID != 1: // an event
		case m.Error != nil:
			return proto.HelloReply{}, m.Error
		default:
			var reply proto.HelloReply
			return reply, json.Unmarshal(m.Result, &reply)
		}
	}
}

func running(status string) bool {
	switch status {
	case proto.StatusRunning, proto.StatusPaused, proto.StatusRestarting:
		return true
	}
	return false
}

// alive reports whether pid is a running shim. A zombie is not, nor is another
// program that reuses the pid.
func alive(pid int) bool {
	if pid <= 0 {
		return false
	}
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	// The format is "pid (comm) state …". comm is cut at 15 characters and may
	// contain anything.
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open || end+2 >= len(stat) {
		return false
	}
	comm, state := string(stat[open+1:end]), stat[end+2]
	return comm == "holdfast-shim" && state != 'Z' && state != 'X'
}

// name is the container's name in the last whole line of the journal, or empty.
func name(dir string) string {
	raw, err := os.ReadFile(filepath.Join(dir, proto.JournalFile))
	if err != nil {
		return ""
	}
	lines := bytes.Split(raw, []byte("\n"))
	for i := len(lines) - 1; i >= 0; i-- {
		var entry proto.Entry
		if json.Unmarshal(lines[i], &entry) == nil && entry.Attributes["name"] != "" {
			return entry.Attributes["name"]
		}
	}
	return ""
}
