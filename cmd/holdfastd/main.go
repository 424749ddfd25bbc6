// Command holdfastd is Holdfast's daemon: it serves the Docker Engine API and
// manages containers, none of which needs it to run.
//
// This folder only wires: what the command line says (package config), what the
// process holds (package handoff), what is served (package api) and what does
// the work (package engine) are put together here and know nothing of it.
//
// "holdfastd observe" is no daemon: holdfast starts it for the time of one
// command when no daemon answers.
package main

import (
	"fmt"
	"os"

	"holdfast/internal/config"
	"holdfast/internal/version"
)

func main() {
	os.Exit(run(os.Args[1:]))
}

// run is main with its exit code.
func run(args []string) int {
	if len(args) > 0 && args[0] == "observe" {
		return observe(args[1:])
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
	cfg, err := config.Load(flags, os.ReadFile)
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
