package event

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// LivesFile is the name of the record of the daemon's lives.
const LivesFile = "lives.json"

// How a life of the daemon ended.
const (
	EndClean    = "clean"    // it stopped when it was told to
	EndHandover = "handover" // another daemon took over
	EndCrash    = "crash"    // it left no word
	EndReboot   = "reboot"   // it left no word, and the machine was started since
)

// Life is one life of the daemon.
type Life struct {
	Number  uint64    `json:"number"` // from 1, never used again
	Release string    `json:"release,omitempty"`
	Pid     int       `json:"pid,omitempty"`
	BootID  string    `json:"bootID,omitempty"`
	Start   time.Time `json:"start"`
	// End is empty for the present life. Of one that left no word it is when
	// the next one began.
	End time.Time `json:"end,omitzero"`
	How string    `json:"how,omitempty"`
}

// livesKept bounds the file. Numbers go on counting.
const livesKept = 1000

// livesSchema is the number of the file's form.
const livesSchema = 1

type livesFile struct {
	Schema int    `json:"schema"`
	Lives  []Life `json:"lives"`
}

// Lives is the record of the daemon's lives. Its methods may be called by
// several goroutines.
type Lives struct {
	path string
	mu   sync.Mutex
	list []Life
}

// OpenLives reads the record in dir. A file that can't be read as one is kept
// under another name, and the record begins anew; one of a newer schema is an
// error.
func OpenLives(dir string) (*Lives, error) {
	l := &Lives{path: filepath.Join(dir, LivesFile)}
	text, err := os.ReadFile(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the daemon's lives: %w", err)
	}
	// The schema first: a newer one may not even decode.
	var top struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(text, &top); err == nil && top.Schema > livesSchema {
		return nil, fmt.Errorf("%s was written by a newer release: its schema is %d, this release reads up to %d", l.path, top.Schema, livesSchema)
	}
	var f livesFile
	if err := json.Unmarshal(text, &f); err != nil {
		if err := os.Rename(l.path, l.path+".damaged"); err != nil {
			return nil, fmt.Errorf("set the damaged record of the daemon's lives aside: %w", err)
		}
		return l, nil
	}
	l.list = f.Lives
	return l, nil
}

// Begin records that a life begins. Where the one before left no word of its
// end, it was a crash, or a reboot if the boot ID is another.
func (l *Lives) Begin(life Life) (Life, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	life.Number = 1
	list := append([]Life(nil), l.list...)
	if n := len(list); n > 0 {
		before := &list[n-1]
		life.Number = before.Number + 1
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
func (l *Lives) End(how string, at time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := append([]Life(nil), l.list...)
	if len(list) == 0 {
		return errors.New("record the daemon's end: no life has begun")
	}
	list[len(list)-1].How, list[len(list)-1].End = how, at
	return l.write(list)
}

// Resume takes back that a life has ended by a handover that failed, and what a
// successor has recorded since: it served nothing. Without that life it is an
// error.
func (l *Lives) Resume(number uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, life := range l.list {
		if life.Number == number {
			list := append([]Life(nil), l.list[:i+1]...)
			list[i].How, list[i].End = "", time.Time{}
			return l.write(list)
		}
	}
	return fmt.Errorf("resume the daemon's life %d: it is not in the record", number)
}

// List returns the lives, oldest first; the last one is the present one.
func (l *Lives) List() []Life {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Life(nil), l.list...)
}

// Since returns the lives that were there at or after t: over how many of them
// something that began at t was kept.
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
	if err := os.WriteFile(temp, append(text, '\n'), 0o640); err != nil {
		os.Remove(temp)
		return fmt.Errorf("record the daemon's life: %w", err)
	}
	if err := os.Rename(temp, l.path); err != nil {
		return fmt.Errorf("record the daemon's life: %w", err)
	}
	l.list = list
	return nil
}
