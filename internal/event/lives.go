// SPDX-License-Identifier: Apache-2.0

package event

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// LivesFile is the name of the record of the daemon's lives.
const LivesFile = "lives.json"

// How a life of the daemon ended.
const (
	EndClean    = "clean"    // it was asked to stop
	EndHandover = "handover" // another daemon took over
	EndCrash    = "crash"    // it recorded no end
	EndReboot   = "reboot"   // it recorded no end, and the machine has been rebooted since
)

// Life is one life of the daemon.
type Life struct {
	Number  uint64    `json:"number"` // from 1, never used again
	Release string    `json:"release,omitempty"`
	Pid     int       `json:"pid,omitempty"`
	BootID  string    `json:"bootID,omitempty"`
	Start   time.Time `json:"start"`
	// End is zero for the present life. For a life that recorded no end, it is
	// the time when the next one began.
	End time.Time `json:"end,omitzero"`
	How string    `json:"how,omitempty"`
	// ContainersStopped: the daemon stopped its containers before it ended,
	// because live restore was off or the machine was shut down.
	ContainersStopped bool `json:"containersStopped,omitempty"`
}

// livesKept bounds the number of lives in the file. Numbers are never reused.
const livesKept = 1000

// livesSchema is the schema number of the file.
const livesSchema = 1

type livesFile struct {
	Schema int    `json:"schema"`
	Lives  []Life `json:"lives"`
}

// Lives is the record of the daemon's lives. Its methods may be called by
// several goroutines.
type Lives struct {
	path     string
	setAside string
	mu       sync.Mutex
	list     []Life
}

// OpenLives reads the record in dir. A file that can't be parsed is renamed and
// a new record begun. A file of a newer schema is an error.
func OpenLives(dir string) (*Lives, error) {
	l := &Lives{path: filepath.Join(dir, LivesFile)}
	list, whole, err := readLives(l.path)
	if err != nil {
		return nil, err
	}
	if !whole {
		l.setAside = l.path + ".damaged"
		if err := os.Rename(l.path, l.setAside); err != nil {
			return nil, fmt.Errorf("set the damaged record of the daemon's lives aside: %w", err)
		}
	}
	l.list = list
	return l, nil
}

// SetAside returns the path that a damaged record was renamed to, or an empty
// string.
func (l *Lives) SetAside() string { return l.setAside }

// readLives reads a record; without a file it is empty. whole is false if the
// record is damaged.
func readLives(path string) (list []Life, whole bool, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, true, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read the daemon's lives: %w", err)
	}
	// Decode the schema number first, because a newer schema may not decode at
	// all.
	var top struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(text, &top); err == nil && top.Schema > livesSchema {
		return nil, false, fmt.Errorf("%s was written by a newer release: its schema is %d, this release reads up to %d", path, top.Schema, livesSchema)
	}
	var f livesFile
	if json.Unmarshal(text, &f) != nil || highest(f.Lives) == math.MaxUint64 {
		return nil, false, nil
	}
	return f.Lives, true, nil
}

// highest returns the highest number in a record.
func highest(list []Life) (n uint64) {
	for _, life := range list {
		n = max(n, life.Number)
	}
	return n
}

// Begin records that a life begins. If the previous life recorded no end, its
// end is a crash, or a reboot if the boot ID differs.
func (l *Lives) Begin(life Life) (Life, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	life.Number = highest(l.list) + 1
	list := append([]Life(nil), l.list...)
	if n := len(list); n > 0 {
		before := &list[n-1]
		if before.How == "" {
			before.How, before.End = EndCrash, life.Start
			if before.BootID != life.BootID {
				before.How = EndReboot
			}
		}
	}
	list = append(list, life)
	if len(list) > livesKept {
		list = list[len(list)-livesKept:]
	}
	return life, l.write(list)
}

// End records how the present life ends.
func (l *Lives) End(how string, at time.Time, containersStopped bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := append([]Life(nil), l.list...)
	if len(list) == 0 {
		return errors.New("record the daemon's end: no life has begun")
	}
	last := &list[len(list)-1]
	last.How, last.End, last.ContainersStopped = how, at, containersStopped
	return l.write(list)
}

// Resume reverts the end of a life by a handover that failed, and removes the
// lives that were recorded since: those daemons served nothing. It fails if
// there is no life of that number.
func (l *Lives) Resume(number uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, life := range l.list {
		if life.Number == number {
			list := append([]Life(nil), l.list[:i+1]...)
			list[i].How, list[i].End, list[i].ContainersStopped = "", time.Time{}, false
			return l.write(list)
		}
	}
	return fmt.Errorf("resume the daemon's life %d: no such life is recorded", number)
}

// List returns the lives, oldest first. The last one is the present life.
func (l *Lives) List() []Life {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Life(nil), l.list...)
}

// Since returns the lives that existed at or after t: an object created at t
// has lived through these.
func (l *Lives) Since(t time.Time) []Life {
	list := l.List()
	for len(list) > 0 && list[0].How != "" && list[0].End.Before(t) {
		list = list[1:]
	}
	return list
}

func (l *Lives) write(list []Life) error {
	text, err := json.MarshalIndent(livesFile{livesSchema, list}, "", "\t")
	if err != nil {
		return fmt.Errorf("record the daemon's life: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(l.path), 0o700); err != nil {
		return fmt.Errorf("record the daemon's life: %w", err)
	}
	temp := l.path + ".tmp"
	if err := writeSynced(temp, append(text, '\n')); err != nil {
		os.Remove(temp)
		return fmt.Errorf("record the daemon's life: %w", err)
	}
	if err := os.Rename(temp, l.path); err != nil {
		return fmt.Errorf("record the daemon's life: %w", err)
	}
	l.list = list
	return nil
}

// writeSynced writes a file whose content is on the disk before it gets its name
// by a rename: otherwise a loss of power may leave an empty file with that name.
func writeSynced(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}
