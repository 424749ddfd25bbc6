package handoff

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Pidfile is the file that tells scripts the daemon's process ID. What it said
// before is of no account: who may run is the Lock's to say.
type Pidfile struct{ path string }

// WritePidfile puts this process's ID into path, in place of what was there.
// The Lock must be held.
func WritePidfile(path string) (*Pidfile, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("write the pid file %s: %w", path, err)
	}
	// Renamed into place, so that nobody reads half a number.
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
