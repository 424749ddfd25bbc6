// SPDX-License-Identifier: Apache-2.0

package systemd

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestUnitIsFoundInTheControlGroups(t *testing.T) {
	for _, tc := range []struct{ name, cgroup, unit, slice string }{
		{"v2", "0::/system.slice/holdfast.service\n", "holdfast.service", "system.slice"},
		{"below the unit", "0::/system.slice/holdfast.service/daemon\n", "holdfast.service", "system.slice"},
		{"nested slice", "0::/a.slice/a-b.slice/x@1.service\n", "x@1.service", "a-b.slice"},
		{"no slice", "0::/x.service\n", "x.service", "-.slice"},
		{"hybrid", "5:memory:/else\n1:name=systemd:/system.slice/a.service\n0::/other.slice/b.service\n", "a.service", "system.slice"},
		{"hybrid, in the other order", "0::/other.slice/b.service\n1:name=systemd:/system.slice/a.service\n", "a.service", "system.slice"},
		{"v1 of somebody else", "1:name=systemd:/\n0::/system.slice/b.service\n", "b.service", "system.slice"},
		{"a shell's", "0::/user.slice/user-0.slice/session-1.scope\n", "", ""},
		{"the root", "0::/\n", "", ""},
		{"nothing", "", "", ""},
		{"torn", "0:\n", "", ""},
	} {
		if unit, slice := unitOf(tc.cgroup); unit != tc.unit || slice != tc.slice {
			t.Errorf("%s: got %q in %q, want %q in %q", tc.name, unit, slice, tc.unit, tc.slice)
		}
	}
}

func TestSystemdIsFoundWhereItManagesTheHost(t *testing.T) {
	root := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("proc/self/cgroup", "0::/system.slice/holdfast.service\n")
	if m := find(root); m != nil {
		t.Errorf("%+v on a host without systemd", m)
	}
	if err := os.MkdirAll(filepath.Join(root, "run/systemd/system"), 0o755); err != nil {
		t.Fatal(err)
	}
	if m := find(root); m.Scope() != "holdfast-shims.scope" || m.slice != "system.slice" {
		t.Errorf("%+v", m)
	}
	put("proc/self/cgroup", "0::/user.slice/user-0.slice/session-1.scope\n")
	if m := find(root); m != nil {
		t.Errorf("%+v for a process that is no service", m)
	}
}

func TestWithoutSystemdNothingIsAsked(t *testing.T) {
	var m *Manager
	if down, err := m.GoesDown(t.Context()); down || err != nil {
		t.Error(down, err)
	}
	if err := m.Move(t.Context(), 1); err != nil || m.Beside(1) || m.Scope() != "" {
		t.Error(err)
	}
}

// A manager that does not answer, not even during authentication, blocks the
// caller no longer than the context allows.
func TestQuestionEndsWithItsContext(t *testing.T) {
	m := &Manager{socket: t.TempDir() + "/private", unit: "x.service"}
	if _, err := m.GoesDown(t.Context()); err == nil {
		t.Error("no error without a socket")
	}
	l, err := net.Listen("unix", m.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // no connection is accepted
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := m.GoesDown(ctx); err == nil {
		t.Error("no error without an answer")
	}
}
