// SPDX-License-Identifier: Apache-2.0

// Command app is the program in the demo's container: it writes numbered lines
// to stdout and answers HTTP on port 8080. Its only state is in memory, so a
// restart of it is always noticed.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

// linesEvery is the interval between two lines.
const linesEvery = 2 * time.Millisecond

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	started := time.Now()
	var lines atomic.Uint64
	say := func(what string) error {
		_, err := fmt.Printf("%d %s\n", lines.Add(1), what)
		return err
	}

	listener, err := net.Listen("tcp", ":8080")
	if err != nil {
		return err
	}
	server := &http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			// An error means that the client has left.
			_ = json.NewEncoder(w).Encode(map[string]any{
				"pid":     os.Getpid(),
				"started": started.UTC().Format(time.RFC3339Nano),
				"lines":   lines.Load(),
			})
		}),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()

	// The first line shows that the port accepts connections.
	if err := say("listening on port 8080"); err != nil {
		return err
	}
	tick := time.NewTicker(linesEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := say("still here"); err != nil {
				return err
			}
		case err := <-failed:
			if !errors.Is(err, http.ErrServerClosed) {
				return err
			}
		case <-ctx.Done():
			return server.Close()
		}
	}
}
