package reader

import (
	"io"

	"holdfast/internal/logs/format"
)

// Line is one line, or a part of a line that was split.
type Line = format.Line

// decoder knows one format of log files.
type decoder interface {
	format.Decoder
	// tail finds where the last need records before size begin, and how many
	// there are.
	tail(f io.ReaderAt, size int64, need int) (from int64, found int, err error)
}

type jsonDecoder struct{ format.JSONDecoder }

type localDecoder struct{ format.LocalDecoder }
