// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/docker/cli/cli/command"
)

// signalError is the cause of a context that was ended by a signal.
type signalError struct{ os.Signal }

func (signalError) Error() string { return "" }

// exitCode is that of a shell: 128 plus the signal's number.
func (e signalError) exitCode() int {
	if s, ok := e.Signal.(syscall.Signal); ok {
		return 128 + int(s)
	}
	return 1
}

// notifyContext returns a context that ends, with a signalError as its cause,
// at the first signal to stop.
func notifyContext(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, terminationSignals...)
	go func() {
		select {
		case <-ctx.Done():
		case s := <-signals:
			cancel(signalError{s})
		}
		signal.Stop(signals)
	}()
	return ctx, func() { cancel(nil) }
}

// laterSignals calls fn with 2, 3, … for each signal after the one that ended
// ctx. It returns when fn returns false.
func laterSignals(ctx context.Context, fn func(count int) bool) {
	<-ctx.Done()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, terminationSignals...)
	defer signal.Stop(signals)
	for n := 2; ; n++ {
		<-signals
		if !fn(n) {
			return
		}
	}
}

// exitAtThirdSignal ends a command that ignores its context.
func exitAtThirdSignal(ctx context.Context, streams command.Streams) {
	laterSignals(ctx, func(count int) bool { return count < 3 })
	forceExit(streams)
}

// forceExit restores the terminal and ends the process.
func forceExit(streams command.Streams) {
	fmt.Fprintln(streams.Err(), "\ngot 3 SIGTERM/SIGINTs, forcefully exiting")
	streams.In().RestoreTerminal()
	streams.Out().RestoreTerminal()
	streams.Err().RestoreTerminal()
	os.Exit(1)
}
