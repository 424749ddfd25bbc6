// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// cgroupDirs are the directories of a cgroup in the hierarchies that have it.
func cgroupDirs(cgroup string) (dirs []string) {
	tops, _ := filepath.Glob("/sys/fs/cgroup/*") // it fails only for bad patterns
	for _, top := range append([]string{"/sys/fs/cgroup"}, tops...) {
		dir := filepath.Join(top, filepath.Clean("/"+cgroup))
		if st, err := os.Stat(dir); err == nil && st.IsDir() {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// stepsCgroup is the cgroup, in their parent, that BuildKit makes for steps.
const stepsCgroup = "buildkit"

// removeCgroup removes the cgroup of all steps in a parent, if it is empty.
func removeCgroup(parent string) { removeCgroups([]string{filepath.Join("/", parent, stepsCgroup)}) }

// removeCgroups removes cgroups, the inner ones first, if they are empty.
func removeCgroups(all []string) {
	for _, cgroup := range all {
		for _, dir := range cgroupDirs(cgroup) {
			_ = unix.Rmdir(dir) // a step may be running, of another daemon
		}
	}
}

// parents removes the parent cgroups that clients asked for and that did not exist. Each
// parent in use has a record in dir, so that the next process removes what one leaves
// that is killed.
type parents struct {
	dir string

	mu   sync.Mutex
	used map[string]*parent
}

// parent is a parent cgroup in use.
type parent struct {
	steps  int
	record string // path
	// Made are the cgroups that the steps make, the inner ones first.
	Made []string `json:"made"`
}

// use is called before a step, and its result after it.
func (p *parents) use(name string) (end func(), _ error) {
	name = filepath.Clean("/" + name)
	p.mu.Lock()
	defer p.mu.Unlock()
	use := p.used[name]
	if use == nil {
		use = &parent{Made: []string{filepath.Join(name, stepsCgroup)}}
		for cgroup := name; cgroup != "/" && len(cgroupDirs(cgroup)) == 0; cgroup = filepath.Dir(cgroup) {
			use.Made = append(use.Made, cgroup)
		}
		if err := p.write(use); err != nil {
			return nil, fmt.Errorf("record the parent cgroup of a step: %w", err)
		}
		if p.used == nil {
			p.used = map[string]*parent{}
		}
		p.used[name] = use
	}
	use.steps++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if use.steps--; use.steps > 0 {
			return
		}
		delete(p.used, name)
		removeCgroups(use.Made)
		if err := os.Remove(use.record); err != nil {
			logf("the record of a parent cgroup: %v", err)
		}
	}, nil
}

func (p *parents) write(use *parent) error {
	text, err := json.Marshal(use)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(p.dir, strconv.Itoa(os.Getpid())+"-*")
	if err != nil {
		return err
	}
	use.record = f.Name()
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

// sweepParents removes the parent cgroups that a killed process left, when its steps are
// removed.
func sweepParents(dir string) error {
	records, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, r := range records {
		var left parent
		// A record that is not whole was written before anything was made.
		if text, err := os.ReadFile(filepath.Join(dir, r.Name())); err == nil && json.Unmarshal(text, &left) == nil {
			removeCgroups(left.Made)
		}
	}
	return os.RemoveAll(dir)
}
