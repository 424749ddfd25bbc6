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

// ShimDir is the folder of the exec root with one folder per container.
const ShimDir = "shim"

// helloTimeout is what a shim may take to answer.
const helloTimeout = time.Second

// ReadShims lists the containers whose shims left their state under execRoot.
// What can't be learnt of one becomes its Note; the error is about the folder as
// a whole, and a missing one is no error but an empty list.
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

// readShim asks the shim, and reads what it has recorded if it doesn't answer.
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
		c.Note = "its shim lives but does not answer; this is what it recorded last"
	case running(state.Status):
		c.Note = "its shim is gone; a daemon's start gives it a new one"
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

// hello asks the shim how it is. It changes nothing there.
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

// alive reports whether the pid is a shim that runs. One that has ended and
// waits for its parent is not; nor is another program that got its number.
func alive(pid int) bool {
	if pid <= 0 {
		return false
	}
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	// pid (comm) state …; comm is cut at 15 characters and may hold anything.
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open || end+2 >= len(stat) {
		return false
	}
	comm, state := string(stat[open+1:end]), stat[end+2]
	return comm == "holdfast-shim" && state != 'Z' && state != 'X'
}

// name is the container's name as the journal's last whole line knows it;
// empty when there is none.
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
