// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line: Docker's own, embedded from
// github.com/docker/cli, under the name holdfast and with additional commands.
// It uses only the daemon's API, or that of an observer, a process that it
// starts when no daemon answers. There are two exceptions: "daemon status"
// reads the shims' state files if no daemon answers, and "demo" starts a
// private daemon.
package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	dockerversion "github.com/docker/cli/cli/version"
	"github.com/moby/moby/client"

	"holdfast/internal/version"
)

// Main runs the command given by os.Args and returns the exit code: that of the
// container for run, exec and start, 125 to 127 for errors before it ran, 128
// plus the signal's number if a signal ended the command, else 0 or 1.
func Main() int {
	ctx, stop := notifyContext(context.Background())
	defer stop()

	// The embedded commands use these in "version", "info" and the user agent.
	dockerversion.PlatformName = "Holdfast"
	dockerversion.Version = version.Version
	dockerversion.GitCommit = version.Commit
	dockerversion.BuildTime = version.BuildTime

	docker, err := command.NewDockerCli(
		command.WithBaseContext(ctx),
		command.WithAPIClientOptions(client.WithUserAgent(userAgent())),
	)
	if err == nil {
		err = run(ctx, docker)
	}
	if err == nil {
		return 0
	}
	// Some commands report only that their context has ended, not why.
	var sig signalError
	if (errdefs.IsCanceled(err) || errors.Is(err, context.Canceled)) && errors.As(context.Cause(ctx), &sig) {
		err = sig
	}
	if !errors.As(err, new(signalError)) && !errdefs.IsCanceled(err) && err.Error() != "" {
		if docker != nil {
			fmt.Fprintln(docker.Err(), err)
		}
	}
	return exitCode(err)
}

func exitCode(err error) int {
	var sig signalError
	if errors.As(err, &sig) {
		return sig.exitCode()
	}
	var status cli.StatusError
	if errors.As(err, &status) && status.StatusCode != 0 {
		return status.StatusCode
	}
	return 1
}

func run(ctx context.Context, docker *command.DockerCli) error {
	top, opts := newRoot(docker)
	root, args, err := top.HandleGlobalFlags()
	if err != nil {
		return err
	}
	target := chooseHost(opts)
	if err := top.Initialize(target.option()); err != nil {
		return err
	}

	if completing(args) {
		if err := addPluginStubs(docker, root); err != nil {
			return err
		}
	} else if len(args) > 0 {
		if now, ok := withBuildx(docker, root, args); ok {
			forward(args, now)
			return again(ctx, docker, args, func() error { return runPlugin(ctx, docker, root, buildx, target) })
		}
		// An unknown command may be a plugin: holdfast compose, holdfast
		// buildx.
		if found, _, err := root.Find(args); err != nil || isPlugin(found) {
			findPlugins(docker)
			err := runPlugin(ctx, docker, root, args[0], target)
			if err == nil || !errdefs.IsNotFound(err) {
				return err
			}
		}
	}

	if found, _, err := root.Find(args); err != nil || !aboutDaemon(found) {
		if err := fallBack(docker, completing(args)); err != nil {
			return err
		}
	}

	go exitAtThirdSignal(ctx, docker)
	root.SetArgs(args)
	ran, err := root.ExecuteContextC(ctx)
	if ran != nil && ran.Name() == "run" && client.IsErrConnectionFailed(err) {
		// As documented for run: 125 if the error is the daemon's.
		return cli.StatusError{Cause: err, Status: err.Error(), StatusCode: 125}
	}
	return err
}
