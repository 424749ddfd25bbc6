// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli-plugins/manager"
	"github.com/docker/cli/cli-plugins/socket"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/config"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// Plugins are Docker's: programs named docker-compose, docker-buildx and so on
// in Docker's plugin directories, or in our own.

// ownPlugins is our own directory of plugins, for a package that brings some: with
// PREFIX/bin/holdfast it is PREFIX/lib/holdfast/cli-plugins.
func ownPlugins() string {
	self, err := os.Executable()
	if err != nil {
		return ""
	}
	return filepath.Join(filepath.Dir(filepath.Dir(self)), "lib", "holdfast", "cli-plugins")
}

// findPlugins has plugins searched for in our own directory, after the user's. Only
// commands that need plugins may call it: commands that change the configuration file
// would write our directory into it.
func findPlugins(docker command.Cli) {
	conf := docker.ConfigFile()
	conf.CLIPluginsExtraDirs = append(slices.Clone(conf.CLIPluginsExtraDirs), filepath.Join(config.Dir(), "cli-plugins"), ownPlugins())
}

func addPluginStubs(docker command.Cli, root *cobra.Command) error {
	findPlugins(docker)
	return manager.AddPluginCommandStubs(docker, root)
}

func isPlugin(cmd *cobra.Command) bool { return cmd != nil && manager.IsPluginCommand(cmd) }

// pluginCommand returns the plugin's program with the arguments of this
// command, or an error of kind not found.
func pluginCommand(docker command.Cli, root *cobra.Command, name string) (*exec.Cmd, error) {
	return manager.PluginRunCommand(docker, name, root)
}

func helpOfPlugin(docker command.Cli, root *cobra.Command, args []string) error {
	cmd, _, err := root.Traverse(args)
	if err != nil {
		return err
	}
	plugin, err := pluginCommand(docker, root, cmd.Name())
	if err != nil {
		return err
	}
	return plugin.Run()
}

// runPlugin runs a plugin and returns its exit code.
//
// At the first signal, the closing of a socket that the plugin watches tells it
// to stop; on a terminal the kernel signals it as well. The third signal kills
// it.
func runPlugin(ctx context.Context, docker command.Cli, root *cobra.Command, name string, t *target) error {
	plugin, err := pluginCommand(docker, root, name)
	if err != nil {
		return err
	}
	if t.host != "" {
		plugin.Env = append(plugin.Env, client.EnvOverrideHost+"="+t.host)
	}
	if srv, err := socket.NewPluginServer(nil); err == nil {
		plugin.Env = append(plugin.Env, socket.EnvKey+"="+srv.Addr().String())
		defer srv.Close()
		defer context.AfterFunc(ctx, func() {
			if !docker.Out().IsTerminal() {
				srv.Close()
			}
		})()
	}

	if err := plugin.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	forced := make(chan struct{})
	go func() { ended <- plugin.Wait() }()
	go laterSignals(ctx, func(count int) bool {
		if count == 3 {
			close(forced)
		}
		return count < 3
	})
	select {
	case <-forced:
		// An error means that it has ended already.
		_ = plugin.Process.Kill()
		<-ended
		forceExit(docker)
	case err = <-ended:
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return cli.StatusError{StatusCode: exit.ExitCode()}
	}
	return err
}
