package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ReadLives is OpenLives for one who may change nothing: a damaged record stays
// where it is and counts as none.
func ReadLives(dir string) (*Lives, error) {
	l := &Lives{path: filepath.Join(dir, LivesFile)}
	text, err := os.ReadFile(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the daemon's lives: %w", err)
	}
	var f livesFile
	if json.Unmarshal(text, &f) != nil {
		return l, nil
	}
	if f.Schema > livesSchema {
		return nil, fmt.Errorf("%s was written by a newer release: its schema is %d, this release reads up to %d", l.path, f.Schema, livesSchema)
	}
	l.list = f.Lives
	return l, nil
}

// ReadHistory reads the events from since on (the zero time is no bound) that
// match from the files of the journal in dir, in the order of their time. It
// may be called while a daemon writes them, or none lives.
func ReadHistory(dir string, since time.Time, match func(Message) bool) ([]Message, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read event journal: %w", err)
	}
	var found []Message
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), segmentSuffix)
		if _, err := strconv.ParseUint(name, 10, 64); !ok || err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // the oldest goes when there is too much
		}
		if err != nil {
			return nil, fmt.Errorf("read event journal: %w", err)
		}
		for line := range bytes.Lines(text) {
			if m, ok := parse(line); ok && !m.At().Before(since) && match(m) {
				found = append(found, m)
			}
		}
	}
	slices.SortStableFunc(found, func(a, b Message) int { return a.At().Compare(b.At()) })
	return found, nil
}
