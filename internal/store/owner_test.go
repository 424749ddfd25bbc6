// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"holdfast/internal/container"
	"holdfast/internal/shim/proto"
)

func TestExecRootWithRunningContainersOfAnotherDataRootIsRefused(t *testing.T) {
	exec, first, second := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "second")
	if _, err := Open(first, exec); err != nil {
		t.Fatal(err)
	}
	if err := WriteRoots(Roots{DataRoot: first, ExecRoot: exec}); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(exec, "shim", "abc")
	state := func(s proto.State) {
		t.Helper()
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(run, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(run, proto.StateFile), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	state(proto.State{Status: proto.StatusRestarting, ShimPid: os.Getpid()})
	_, err := Open(second, exec)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), first) || !strings.Contains(err.Error(), "go on running") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(second); !os.IsNotExist(err) {
		t.Error("the refused data root was begun")
	}
	if _, err := Open(first, exec); err != nil {
		t.Errorf("the data root that they are of: %v", err)
	}
	for name, s := range map[string]proto.State{
		"ended":          {Status: proto.StatusExited, ShimPid: os.Getpid()},
		"of before boot": {Status: proto.StatusRunning, ShimPid: os.Getpid(), BootID: "another"},
		"dead":           {Status: proto.StatusRunning, Pid: os.Getpid(), PidStart: 1},
	} {
		state(s)
		if _, err := Open(second, exec); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := os.RemoveAll(second); err != nil {
			t.Fatal(err)
		}
	}
}

func TestContainerKeepsTheExecRootThatItsSpecNames(t *testing.T) {
	data, old, now := t.TempDir(), t.TempDir(), t.TempDir()
	s, err := Open(data, old)
	if err != nil {
		t.Fatal(err)
	}
	spec := &container.Spec{ID: "abc", Name: "web", ExecRoot: old, API: json.RawMessage("{}")}
	if err := s.WriteSpec(spec); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(data, now); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.LoadAll(); err != nil {
		t.Fatal(err)
	}
	if got, want := s.RunDir("abc"), filepath.Join(old, "shim", "abc"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	spec.ExecRoot = now
	if err := s.WriteSpec(spec); err != nil {
		t.Fatal(err)
	}
	if got, want := s.RunDir("abc"), filepath.Join(now, "shim", "abc"); got != want {
		t.Errorf("started again: got %s, want %s", got, want)
	}
}
