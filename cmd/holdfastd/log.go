// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"holdfast/internal/config"
)

// levelFatal is above error: with --log-level fatal or panic only errors that
// end the daemon are logged.
const levelFatal = slog.LevelError + 4

// newLogger writes lines in dockerd's format: time, level, msg and attributes
// as key=value, or one JSON object. level may be changed later.
func newLogger(w io.Writer, cfg *config.Config, level *slog.LevelVar) *slog.Logger {
	level.Set(logLevel(cfg))
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: dockerAttr}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	if f, ok := w.(*os.File); ok && isJournal(f, os.Getenv("JOURNAL_STREAM")) {
		return slog.New(newJournalHandler(f, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// isJournal reports whether a file is the stream to systemd's journal that
// $JOURNAL_STREAM names as DEVICE:INODE; see systemd.exec(5).
func isJournal(f *os.File, stream string) bool {
	st, err := f.Stat()
	if err != nil || stream == "" {
		return false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && stream == fmt.Sprintf("%d:%d", sys.Dev, sys.Ino)
}

// journalHandler writes lines for the journal: without the time, which the
// journal adds, and with the priority in front, as in sd-daemon(3).
type journalHandler struct {
	slog.Handler
	w *priorityWriter
}

type priorityWriter struct {
	mu     sync.Mutex // held from setting a prefix until its line is written
	prefix string
	w      io.Writer
}

func (p *priorityWriter) Write(line []byte) (int, error) {
	if _, err := p.w.Write(append([]byte(p.prefix), line...)); err != nil {
		return 0, err
	}
	return len(line), nil
}

func newJournalHandler(w io.Writer, opts *slog.HandlerOptions) journalHandler {
	attr := opts.ReplaceAttr
	o := *opts
	o.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime {
			return slog.Attr{}
		}
		return attr(groups, a)
	}
	p := &priorityWriter{w: w}
	return journalHandler{slog.NewTextHandler(p, &o), p}
}

func (h journalHandler) Handle(ctx context.Context, r slog.Record) error {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	switch { // priorities of syslog(3)
	case r.Level >= levelFatal:
		h.w.prefix = "<2>"
	case r.Level >= slog.LevelError:
		h.w.prefix = "<3>"
	case r.Level >= slog.LevelWarn:
		h.w.prefix = "<4>"
	case r.Level >= slog.LevelInfo:
		h.w.prefix = "<6>"
	default:
		h.w.prefix = "<7>"
	}
	return h.Handler.Handle(ctx, r)
}

func (h journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return journalHandler{h.Handler.WithAttrs(attrs), h.w}
}

func (h journalHandler) WithGroup(name string) slog.Handler {
	return journalHandler{h.Handler.WithGroup(name), h.w}
}

// logLevel is the configured level; --debug takes precedence.
func logLevel(cfg *config.Config) slog.Level {
	if cfg.Debug {
		return slog.LevelDebug
	}
	switch cfg.LogLevel {
	case "trace", "debug":
		return slog.LevelDebug
	case "warn":
		return slog.LevelWarn
	case "error":
		return slog.LevelError
	case "fatal", "panic":
		return levelFatal
	}
	return slog.LevelInfo
}

// dockerAttr formats time and level as in dockerd's log.
func dockerAttr(groups []string, a slog.Attr) slog.Attr {
	if len(groups) > 0 {
		return a
	}
	// Other attributes of a record may have these names too, with other values.
	if a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime {
		return slog.String("time", a.Value.Time().Format(time.RFC3339Nano))
	}
	level, ok := a.Value.Any().(slog.Level)
	if a.Key != slog.LevelKey || !ok {
		return a
	}
	switch {
	case level >= levelFatal:
		return slog.String("level", "fatal")
	case level == slog.LevelWarn:
		return slog.String("level", "warning")
	}
	return slog.String("level", strings.ToLower(level.String()))
}
