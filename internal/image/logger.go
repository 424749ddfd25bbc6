// SPDX-License-Identifier: Apache-2.0

package image

import (
	"io"
	"log/slog"
	"strings"
	"sync"

	clog "github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// libraryDefault sets, when the process opens its first store, the logger for
// those places in the libraries that have no context.
var libraryDefault sync.Once

// libraryLogger is a logger for containerd's libraries that writes to ours.
// Their informational messages are debug messages here.
func libraryLogger(log *slog.Logger) *clog.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.SetLevel(logrus.InfoLevel)
	l.AddHook(toSlog{log})
	return logrus.NewEntry(l)
}

type toSlog struct{ log *slog.Logger }

func (toSlog) Levels() []logrus.Level { return logrus.AllLevels }

func (h toSlog) Fire(e *logrus.Entry) error {
	attrs := make([]any, 0, 2*len(e.Data))
	for k, v := range e.Data {
		attrs = append(attrs, k, v)
	}
	switch {
	case e.Level <= logrus.ErrorLevel:
		h.log.Error(e.Message, attrs...)
	case e.Level == logrus.WarnLevel && !strings.Contains(e.Message, "fsverity"): // most filesystems lack fsverity, and nothing needs it
		h.log.Warn(e.Message, attrs...)
	default:
		h.log.Debug(e.Message, attrs...)
	}
	return nil
}
