// SPDX-License-Identifier: Apache-2.0

package reader

import (
	"io"
	"time"

	"holdfast/internal/logs/format"
)

// Line is one line, or a part of a line that was split.
type Line = format.Line

// decoder reads one format of log files.
type decoder interface {
	format.Decoder
	// tail finds where the last need records before size begin, and how many
	// there are.
	tail(f io.ReaderAt, size int64, need int) (from int64, found int, err error)
	// since finds the beginning of a record before size such that all records
	// before it are older than t, in a file whose records are in order of time.
	// Older records may follow it.
	since(f io.ReaderAt, size int64, t time.Time) (from int64, err error)
}

type jsonDecoder struct{ format.JSONDecoder }

type localDecoder struct{ format.LocalDecoder }
