// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"holdfast/internal/build"
	"holdfast/internal/config"
	"holdfast/internal/engine/oci"
	"holdfast/internal/network"
)

// newBuilds makes the daemon's side of builds. holdfast-build is beside this
// executable.
func (c *composed) newBuilds(cfg *config.Config, shims shims, log *slog.Logger) (*build.Builder, error) {
	program, err := besideThis("holdfast-build")
	if err != nil {
		return nil, err
	}
	lent, err := c.images.Lend()
	if err != nil {
		return nil, err
	}
	c.contentDir, c.database = lent.Dir, lent.Database
	c.buildConfig.Store(c.buildConfigOf(cfg))
	return build.New(build.Options{
		Binary: program, DataRoot: cfg.DataRoot, ExecRoot: cfg.ExecRoot, Networks: c.nets, Log: log, Started: shims.place,
		Mode:  func(ctx context.Context, mode string) (string, error) { return c.engine.StepMode(ctx, mode) },
		Names: func(view string, s network.Sandbox) ([]byte, error) { return c.engine.StepNames(view, s) },
		Stores: build.Stores{
			Content: lent.Content, Snapshots: lent.Snapshots, Leases: lent.Leases, LeaseWith: lent.LeaseWith, Images: lent.Images, Layers: c.images,
			Config: c.presentBuildConfig, Usage: c.images.Usage,
		},
	}), nil
}

// besideThis is the path of a program of ours beside this executable.
func besideThis(program string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	return filepath.Join(filepath.Dir(strings.TrimSuffix(self, " (deleted)")), program), nil
}

// buildCgroup is the parent cgroup of RUN steps, unless a plain one is configured.
const buildCgroup = "/holdfast"

func (c *composed) buildConfigOf(cfg *config.Config) *build.Config {
	conf := &build.Config{
		Driver: c.images.Driver(), ContentDir: c.contentDir, Database: c.database,
		Mirrors: cfg.RegistryMirrors, Insecure: cfg.InsecureRegistries, TokenHosts: cfg.RegistryTokenHosts,
		Search: cfg.DNSSearch, Options: cfg.DNSOptions, CgroupParent: buildCgroup,
		Runtime: "runc", Entitlements: cfg.Builder.Entitlements,
		HistoryAge: cfg.Builder.HistoryAge, HistoryEntries: cfg.Builder.HistoryEntries,
		GC: build.GC{
			Off: cfg.Builder.GCOff, ReservedSpace: cfg.Builder.ReservedSpace, MaxUsedSpace: cfg.Builder.MaxUsedSpace, MinFreeSpace: cfg.Builder.MinFreeSpace,
		},
	}
	for _, r := range cfg.Builder.Policy {
		conf.GC.Policy = append(conf.GC.Policy, build.Rule(r))
	}
	if p := cfg.CgroupParent; p != "" && !strings.HasSuffix(p, ".slice") {
		conf.CgroupParent = p
	}
	for _, a := range cfg.DNS {
		conf.DNS = append(conf.DNS, a.String())
	}
	if own, ok := cfg.Runtimes[cfg.DefaultRuntime]; ok && own.Path != "" {
		conf.Runtime = own.Path
	}
	if path, err := exec.LookPath(conf.Runtime); err == nil {
		conf.Runtime = path
	}
	if c.host.AppArmor {
		conf.AppArmor = oci.AppArmorProfile
	}
	if text, err := seccompProfile(cfg); err == nil && text != "builtin" { // an error was reported with the engine's configuration
		conf.Seccomp = text
	}
	if len(cfg.HostGatewayIPs) > 0 {
		conf.HostGateway = cfg.HostGatewayIPs[0].String()
	}
	return conf
}

// presentBuildConfig adds what is known only when the networks are restored.
func (c *composed) presentBuildConfig() build.Config {
	conf := *c.buildConfig.Load()
	if at := c.nets.HostGateway(); conf.HostGateway == "" && len(at) > 0 {
		conf.HostGateway = at[0].String()
	}
	return conf
}

// builderVersion is the builder that clients should use.
func builderVersion(b *build.Builder) string {
	if b.Installed() {
		return "2"
	}
	return "1"
}

// stepNetworks are the networks of containers, which also keep those of RUN steps
// that go on while there is no daemon.
type stepNetworks struct {
	*network.Manager
	builds *build.Builder
}

func (n stepNetworks) Restore(ctx context.Context, sandboxes map[string]network.Sandbox, unread []string) error {
	all := n.builds.Steps()
	maps.Copy(all, sandboxes)
	return n.Manager.Restore(ctx, all, unread)
}
