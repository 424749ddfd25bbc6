// SPDX-License-Identifier: Apache-2.0

package event

import (
	"bytes"
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

// ReadLives is OpenLives for a process that may change nothing. A damaged
// record is not renamed, and read as empty.
func ReadLives(dir string) (*Lives, error) {
	l := &Lives{path: filepath.Join(dir, LivesFile)}
	list, _, err := readLives(l.path)
	if err != nil {
		return nil, err
	}
	l.list = list
	return l, nil
}

// ReadHistory reads the matching events from since on (the zero time is no
// bound) from the files of the journal in dir, in order of their time. It may
// be called while a daemon writes them, or while none runs.
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
			continue // the oldest is deleted when the journal is full
		}
		if err != nil {
			return nil, fmt.Errorf("read event journal: %w", err)
		}
		for line := range bytes.Lines(text) {
			if m, ok := parse(line); ok && (since.IsZero() || !m.At().Before(since)) && match(m) {
				found = append(found, m)
			}
		}
	}
	slices.SortStableFunc(found, func(a, b Message) int { return a.At().Compare(b.At()) })
	return found, nil
}
