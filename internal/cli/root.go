// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/commands"
	"github.com/docker/cli/cli/context/store"
	cliflags "github.com/docker/cli/cli/flags"
	"github.com/spf13/cobra"

	"holdfast/internal/version"
)

// newRoot builds the tree of commands. It opens no connection.
func newRoot(docker *command.DockerCli) (*cli.TopLevelCommand, *cliflags.ClientOptions) {
	root := &cobra.Command{
		Use:                   "holdfast [OPTIONS] COMMAND [ARG...]",
		Short:                 "A container engine whose containers never notice the daemon",
		Version:               fmt.Sprintf("%s, build %s", version.Version, version.Commit),
		SilenceUsage:          true,
		SilenceErrors:         true,
		TraverseChildren:      true,
		DisableFlagsInUseLine: true,
		CompletionOptions: cobra.CompletionOptions{
			HiddenDefaultCmd:    true,
			DisableDescriptions: os.Getenv("DOCKER_CLI_DISABLE_COMPLETION_DESCRIPTION") != "",
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return command.ShowHelp(docker.Err())(cmd, args)
			}
			return unknownCommand(args[0])
		},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return supported(cmd, docker)
		},
	}
	// A command or flag completes file names only if it asks for it.
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.SetIn(docker.In())
	root.SetOut(docker.Out())
	root.SetErr(docker.Err())

	opts, help := cli.SetupRootCommand(root)
	root.SetVersionTemplate("Holdfast version {{.Version}}\n")
	root.Annotations["additionalHelp"] = "The commands are Docker's; 'demo' and 'daemon' are Holdfast's own."
	root.Flags().BoolP("version", "v", false, "Print version information and quit")
	// Registration fails only for a flag that does not exist.
	must(root.RegisterFlagCompletionFunc("context", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		names, _ := store.Names(docker.ContextStore())
		return names, cobra.ShellCompDirectiveNoFileComp
	}))
	must(root.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions(
		[]string{"debug", "info", "warn", "error", "fatal", "panic"}, cobra.ShellCompDirectiveNoFileComp)))

	flagError := root.FlagErrorFunc()
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		// A flag may be unknown because the whole command is unsupported.
		if err := supported(cmd, docker); err != nil {
			return err
		}
		return flagError(cmd, err)
	})
	setHelp(docker, root, help)

	commands.AddCommands(root, docker)
	root.AddCommand(newDaemonCommand(docker), newDemoCommand(docker))
	checkSupportBeforeArgs(docker, root)
	return cli.NewTopLevelCommand(root, docker, opts, root.Flags()), opts
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func unknownCommand(name string) error {
	return fmt.Errorf("holdfast: unknown command: holdfast %s\n\nRun 'holdfast --help' for more information", name)
}

// setHelp adds plugins to the help and hides what the daemon can't do.
func setHelp(docker *command.DockerCli, root, helpCommand *cobra.Command) {
	show := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		showsHelp.Store(true)
		err := addPluginStubs(docker, root)
		if err == nil && len(args) > 0 {
			err = helpOfPlugin(docker, root, args)
			if err == nil {
				return
			}
			if errdefs.IsNotFound(err) {
				err = nil
			}
		}
		if err == nil {
			err = supported(cmd, docker)
		}
		if err != nil {
			cmd.PrintErrln(err)
			return
		}
		hideUnsupported(cmd, docker)
		show(cmd, args)
	})

	builtin := helpCommand.RunE
	helpCommand.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			plugin, err := pluginCommand(docker, root, args[0])
			if err == nil {
				return plugin.Run()
			}
			if !errdefs.IsNotFound(err) {
				return err
			}
		}
		return builtin(cmd, args)
	}
}

// completing reports whether the shell asks for completions.
func completing(args []string) bool {
	return slices.Contains(args, cobra.ShellCompRequestCmd) || slices.Contains(args, cobra.ShellCompNoDescRequestCmd)
}
