// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/containerd/errdefs"

	"holdfast/internal/shim/proto"
)

// ReadState reads the state that a shim left in its run directory. ErrNotFound:
// there is no file. ErrDataLoss: it is truncated or not a state.
// ErrFailedPrecondition: a newer release wrote it.
func ReadState(runDir string) (proto.State, error) {
	return readState(filepath.Join(runDir, proto.StateFile))
}

// ReadBootstrap reads the parameters of the shim of a run directory, for a shim
// that adopts the container. The caller fills in Ports and Adopt. ErrNotFound:
// there is no file, as with an older release. ErrDataLoss: it can't be decoded.
func ReadBootstrap(runDir string) (proto.Bootstrap, error) {
	path := filepath.Join(runDir, proto.BootstrapFile)
	var b proto.Bootstrap
	raw, err := proto.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return b, fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	} else if err != nil {
		return b, err
	}
	if err := proto.Unmarshal(raw, &b); err != nil {
		return b, fmt.Errorf("%s: %w: %w", path, errdefs.ErrDataLoss, err)
	}
	if b.ID == "" || b.RunDir == "" {
		return b, fmt.Errorf("%s: %w: it has no id or no run directory", path, errdefs.ErrDataLoss)
	}
	b.Ports, b.Adopt = nil, nil
	return b, nil
}

// ReadExit reads the durable exit record of the data directory. Errors are
// those of ReadState.
func ReadExit(dataDir string) (proto.State, error) {
	return readState(filepath.Join(dataDir, proto.ExitFile))
}

func readState(path string) (proto.State, error) {
	b, err := proto.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return proto.State{}, fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	} else if err != nil {
		return proto.State{}, err
	}
	var st proto.State
	if err := proto.Unmarshal(b, &st); err == nil && st.Schema >= 1 && st.Schema <= proto.StateSchema {
		return st, nil
	}
	// Find the reason. The schema is checked first, as a newer one may not even
	// decode.
	var head struct{ Schema int }
	if err := json.Unmarshal(b, &head); err != nil {
		return proto.State{}, fmt.Errorf("%s: %w: the file is cut short or damaged: %w", path, errdefs.ErrDataLoss, err)
	}
	if head.Schema > proto.StateSchema {
		return proto.State{}, fmt.Errorf("%s: %w: it has schema %d and this release knows schemas up to %d: a newer release wrote it, use that one",
			path, errdefs.ErrFailedPrecondition, head.Schema, proto.StateSchema)
	}
	if head.Schema < 1 {
		return proto.State{}, fmt.Errorf("%s: %w: it has no schema number", path, errdefs.ErrDataLoss)
	}
	st = proto.State{}
	if err := proto.Unmarshal(b, &st); err != nil {
		return proto.State{}, fmt.Errorf("%s: %w: %w", path, errdefs.ErrDataLoss, err)
	}
	return st, nil
}

// ReadJournal reads the entries with a number above after that a shim left in its
// run directory. Without a file there are no entries. A torn last line is ignored.
// If other lines are damaged, it returns the valid entries and ErrDataLoss.
func ReadJournal(runDir string, after uint64) ([]proto.Entry, error) {
	path := filepath.Join(runDir, proto.JournalFile)
	b, err := proto.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var entries []proto.Entry
	n := 0
	for line := range bytes.Lines(b) {
		n++
		var e proto.Entry
		if jerr := proto.Unmarshal(line, &e); jerr != nil || e.Seq == 0 {
			if line[len(line)-1] == '\n' && err == nil {
				err = fmt.Errorf("%s: %w: line %d is not a journal entry", path, errdefs.ErrDataLoss, n)
			}
			continue
		}
		if e.Seq > after {
			entries = append(entries, e)
		}
	}
	return entries, err
}
