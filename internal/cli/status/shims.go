package status

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"

	"holdfast/internal/shim/proto"
)

// ShimDir is the folder of the exec root with one folder per container.
const ShimDir = "shim"

// ReadShims lists the containers whose shims left their state under execRoot.
// What can't be read of one becomes its Note; the error is about the folder as
// a whole, and a missing one is no error but an empty list.
func ReadShims(execRoot string) ([]Container, error) {
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
			list = append(list, readShim(filepath.Join(execRoot, ShimDir, e.Name())))
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

func readShim(dir string) Container {
	c := Container{ID: filepath.Base(dir), Status: "unknown", Name: name(dir)}
	path := filepath.Join(dir, proto.StateFile)
	raw, err := os.ReadFile(path)
	var state proto.State
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.Note = "its shim has recorded no state"
		return c
	case err != nil:
		c.Note = err.Error()
		return c
	}
	if err := json.Unmarshal(raw, &state); err != nil {
		c.Note = fmt.Sprintf("%s can't be understood: %v", path, err)
		return c
	}
	if state.Schema > proto.StateSchema {
		c.Note = fmt.Sprintf("%s has schema %d and was written by a newer release; this one reads up to %d",
			path, state.Schema, proto.StateSchema)
		return c
	}
	c.Status, c.Pid, c.Started = state.Status, state.Pid, state.Started
	if !alive(state.ShimPid) {
		// The record is then as old as the shim's death.
		if running(state.Status) {
			c.Note = "its shim is gone; a daemon's start gives it a new one"
		}
		return c
	}
	c.ShimPid = state.ShimPid
	return c
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
