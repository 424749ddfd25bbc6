// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// catchSignals catches every signal that the daemon handles.
func catchSignals() <-chan os.Signal {
	c := make(chan os.Signal, 16)
	signal.Notify(c, unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGUSR1, unix.SIGQUIT)
	// A log reader that has exited must not end the daemon. SIGPIPE is caught
	// and dropped instead of ignored, because children would inherit the
	// ignored signal.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	return c
}

// handle handles a signal and reports whether it ends the daemon.
func (d *daemon) handle(ctx context.Context, s os.Signal) (end bool) {
	switch s {
	case unix.SIGHUP:
		_, _ = d.reload(ctx) // it logs its own errors
	case unix.SIGUSR1, unix.SIGQUIT:
		path, err := dumpStacks(d.cfg.ExecRoot, time.Now())
		if err != nil {
			d.log.Error(err.Error())
			return false
		}
		d.log.Info("goroutine stacks written to " + path)
	case unix.SIGINT, unix.SIGTERM:
		return true
	}
	return false
}

// forceOn exits the process at the second further signal to stop while it is
// stopping. The next start completes what was interrupted.
func forceOn(signals <-chan os.Signal, log *slog.Logger) {
	told := 1
	for s := range signals {
		sig, _ := s.(unix.Signal)
		if sig != unix.SIGINT && sig != unix.SIGTERM {
			continue
		}
		if told++; told == 3 {
			log.Info("Forcing daemon shutdown without cleanup; 3 interrupts received")
			os.Exit(128 + int(sig))
		}
	}
}
