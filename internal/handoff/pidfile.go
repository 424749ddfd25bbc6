// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Pidfile is the file that has the daemon's process ID, for scripts. The daemon
// ignores its earlier content: the Lock decides which daemon runs.
type Pidfile struct{ path string }

// WritePidfile writes this process's ID into path and replaces what was there.
// The Lock must be held.
func WritePidfile(path string) (*Pidfile, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("write the pid file %s: %w", path, err)
	}
	// It is renamed into place, so that no reader sees half a number.
	tmp := path + "~"
	if err := os.WriteFile(tmp, []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return nil, fmt.Errorf("write the pid file %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(tmp)
		return nil, fmt.Errorf("write the pid file %s: %w", path, err)
	}
	return &Pidfile{path}, nil
}

// Remove removes the file if it still names this process.
func (p *Pidfile) Remove() {
	if b, err := os.ReadFile(p.path); err == nil && strings.TrimSpace(string(b)) == strconv.Itoa(os.Getpid()) {
		os.Remove(p.path)
	}
}
