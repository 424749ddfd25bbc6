package main

import (
	"io"
	"log/slog"
	"strings"
	"time"

	"holdfast/internal/config"
)

// levelFatal is above error: with --log-level fatal or panic only what ends
// the daemon is logged.
const levelFatal = slog.LevelError + 4

// newLogger writes lines as dockerd's: time, level, msg and attributes as
// key=value, or one JSON object. level changes what is written from then on.
func newLogger(w io.Writer, cfg *config.Config, level *slog.LevelVar) *slog.Logger {
	level.Set(logLevel(cfg))
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: dockerAttr}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// logLevel is what the configuration asks for; --debug wins.
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

// dockerAttr gives time and level the form that readers of dockerd's log know.
func dockerAttr(groups []string, a slog.Attr) slog.Attr {
	if len(groups) > 0 {
		return a
	}
	// A caller's own attribute may have these names too, with other values.
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
