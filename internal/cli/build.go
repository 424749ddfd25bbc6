// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/cli/cli-plugins/manager"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/config"
	"github.com/spf13/cobra"
)

// buildx is the plugin that shows BuildKit's progress, and sends secrets, agents and
// caches with a build.
const buildx = "buildx"

// withBuildx returns the arguments with which the plugin builds, if it is installed and
// the arguments are those of a build. As with Docker's client, DOCKER_BUILDKIT=0 builds
// without it. Without the plugin the command of Docker's client remains, which
// sends the whole context and knows fewer options; withBuildx tells the user so.
func withBuildx(docker command.Cli, root *cobra.Command, args []string) ([]string, bool) {
	build := args
	if len(build) > 1 && (build[0] == "image" || build[0] == "builder") {
		build = build[1:]
	}
	if len(build) == 0 || build[0] != "build" {
		return nil, false
	}
	if on, err := strconv.ParseBool(os.Getenv("DOCKER_BUILDKIT")); err == nil && !on {
		return nil, false
	}
	findPlugins(docker)
	if _, err := manager.GetPlugin(buildx, docker, root); err != nil {
		fmt.Fprintf(docker.Err(), "note: the plugin docker-buildx is not installed: without it, builds can use no secrets, ssh agents, named contexts or exported caches. Install it in %s or %s\n",
			filepath.Join(config.Dir(), "cli-plugins"), ownPlugins())
		return nil, false
	}
	return append([]string{buildx}, onNetwork(build)...), true
}

// onNetwork replaces the option --network by a build argument, if it names a network of
// the user's. The plugin knows only BuildKit's own modes and refuses others.
func onNetwork(build []string) []string {
	out := make([]string, 0, len(build)+1)
	for i := 0; i < len(build); i++ {
		if build[i] == "--" {
			return append(out, build[i:]...)
		}
		name, ok := strings.CutPrefix(build[i], "--network=")
		if !ok && build[i] == "--network" && i+1 < len(build) {
			name, ok = build[i+1], true
			i++
		}
		switch {
		case !ok:
			out = append(out, build[i])
		case name == "" || name == "default" || name == "host" || name == "none":
			out = append(out, "--network", name)
		default:
			out = append(out, "--build-arg", "HOLDFAST_NETWORK="+name)
		}
	}
	return out
}

// forward makes a plugin see other arguments than the user's. Plugins are started with
// the arguments of the process.
func forward(was, now []string) {
	global := os.Args[:len(os.Args)-len(was)]
	os.Args = append(append([]string(nil), global...), now...)
}
