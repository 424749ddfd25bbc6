// SPDX-License-Identifier: Apache-2.0

// Command holdfastd is Holdfast's daemon: it serves the Docker Engine API and
// manages containers, none of which needs it to run.
//
// This package only wires other packages, which do not know each other: the
// configuration (package config), the resources of the process (package
// handoff), the API (package api) and the engine (package engine).
//
// "holdfastd observe" is not a daemon: holdfast starts it for the duration of
// one command when no daemon answers. Nor is "holdfastd serve-events": the
// daemon starts it to serve GET /events.
package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"holdfast/internal/config"
	"holdfast/internal/eventserver"
	"holdfast/internal/version"
)

func main() {
	os.Exit(run(os.Args[1:]))
}

// run is main, but returns the exit code.
func run(args []string) int {
	if len(args) > 0 {
		switch args[0] {
		case "observe":
			return observe(args[1:])
		case eventserver.Command:
			return serveEvents(args[1:])
		}
	}
	flags, err := config.ParseFlags(args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%v\nSee 'holdfastd --help'.\n", err)
		return 125
	}
	switch {
	case flags.Help:
		fmt.Print(config.Usage())
		return 0
	case flags.Version:
		fmt.Printf("Holdfast version %s, build %s\n", version.Version, version.Commit)
		return 0
	}
	cfg, err := loadConfig(flags)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if flags.Validate {
		for _, w := range cfg.Warnings() {
			fmt.Fprintln(os.Stderr, "warning:", w)
		}
		fmt.Println("configuration OK")
		return 0
	}
	if err := serve(flags, cfg); err != nil {
		fmt.Fprintln(os.Stderr, "failed to start daemon:", err)
		return 1
	}
	return 0
}

// serveEvents runs the event server, see package eventserver.
func serveEvents(args []string) int {
	var st unix.Stat_t
	if err := unix.Fstat(eventserver.ControlFD, &st); len(args) != 1 || err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		fmt.Fprintln(os.Stderr, "holdfastd serve-events can only be started by the daemon")
		return 125
	}
	if err := eventserver.Run(os.NewFile(eventserver.ControlFD, "control"), args[0]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
