// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"slices"

	"github.com/docker/cli/cli/command"
	"github.com/moby/moby/client/pkg/versions"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Docker's commands and flags are annotated with the features of a daemon that
// they need. The names of the annotations are those of docker/cli.
const (
	needsVersion      = "version" // API version
	needsOS           = "ostype"
	needsExperimental = "experimental"
	needsSwarm        = "swarm" // "", "active" or "manager"
)

// daemon returns the properties with which the needs are compared. Its methods
// connect when they are first called, so they are called only if there is a
// need to compare.
type daemon interface {
	CurrentVersion() string
	ServerInfo() command.ServerInfo
}

// unmet returns an error if the daemon lacks a feature that the annotations
// need. Swarm is not checked: the daemon explains that itself best.
func unmet(name string, need func(string) (string, bool), d daemon) error {
	if v, ok := need(needsVersion); ok && v != "" && versions.LessThan(d.CurrentVersion(), v) {
		return fmt.Errorf("%s requires API version %s, but the daemon's API version is %s", name, v, d.CurrentVersion())
	}
	if os, ok := need(needsOS); ok && os != "" {
		if have := d.ServerInfo().OSType; have != "" && have != os {
			return fmt.Errorf("%s is only supported on a daemon running on %s, but the daemon is running on %s", name, os, have)
		}
	}
	if _, ok := need(needsExperimental); ok && !d.ServerInfo().HasExperimental {
		return fmt.Errorf("%s is only supported on a daemon with experimental features enabled", name)
	}
	return nil
}

func needOfCommand(cmd *cobra.Command) func(string) (string, bool) {
	return func(key string) (string, bool) {
		v, ok := cmd.Annotations[key]
		return v, ok
	}
}

func needOfFlag(f *pflag.Flag) func(string) (string, bool) {
	return func(key string) (string, bool) {
		v, ok := f.Annotations[key]
		if len(v) == 0 {
			return "", ok
		}
		return v[0], ok
	}
}

// supported returns an error if the daemon lacks a feature that the command or
// one of the given flags needs. "stack ls" also has the needs of "stack".
func supported(cmd *cobra.Command, d daemon) error {
	for c := cmd; c != nil; c = c.Parent() {
		if err := unmet(cmd.CommandPath(), needOfCommand(c), d); err != nil {
			return err
		}
	}
	var errs []error
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if err := unmet(`"--`+f.Name+`"`, needOfFlag(f), d); err != nil {
			errs = append(errs, err)
		}
	})
	return errors.Join(errs...)
}

// checkSupportBeforeArgs checks the needs of commands before their arguments,
// so that "requires API version" is reported first.
func checkSupportBeforeArgs(d daemon, cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		checkSupportBeforeArgs(d, sub)
	}
	args := cmd.Args
	if args == nil || !annotated(cmd) {
		return
	}
	cmd.Args = func(cmd *cobra.Command, given []string) error {
		if err := supported(cmd, d); err != nil {
			return err
		}
		return args(cmd, given)
	}
}

func annotated(cmd *cobra.Command) bool {
	for c := cmd; c != nil; c = c.Parent() {
		if len(c.Annotations) > 0 {
			return true
		}
	}
	return false
}

// hideUnsupported hides commands and flags that the daemon does not support
// now.
func hideUnsupported(cmd *cobra.Command, d daemon) {
	hidden := func(need func(string) (string, bool)) bool {
		return unmet("", need, d) != nil || noSwarm(need, d)
	}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if only, ok := f.Annotations["top-level"]; ok && cmd.HasParent() && !under(cmd, only) {
			f.Hidden = true
		}
		f.Hidden = f.Hidden || hidden(needOfFlag(f))
	})
	for _, sub := range cmd.Commands() {
		sub.Hidden = sub.Hidden || hidden(needOfCommand(sub))
	}
}

// noSwarm reports whether the need is a swarm and the node is not in one. If
// the daemon does not report its state, the need counts as met.
func noSwarm(need func(string) (string, bool), d daemon) bool {
	role, ok := need(needsSwarm)
	if !ok || role == "" {
		return false
	}
	status := d.ServerInfo().SwarmStatus
	if status == nil {
		return false
	}
	switch role {
	case "manager":
		return !status.ControlAvailable
	case "active":
		return status.NodeState == "inactive"
	}
	return false
}

// under reports whether the command or one of its parents has one of the names.
func under(cmd *cobra.Command, names []string) bool {
	for c := cmd; c != nil; c = c.Parent() {
		if slices.Contains(names, c.Name()) {
			return true
		}
	}
	return false
}
