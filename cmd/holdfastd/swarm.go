// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"

	"holdfast/internal/config"
	"holdfast/internal/swarm"
	"holdfast/internal/version"
)

// newBeside makes the daemon's sides of the processes beside it. It starts none.
func (c *composed) newBeside(cfg *config.Config, shims shims, log *slog.Logger) (err error) {
	c.liveRestore.Store(cfg.LiveRestore)
	if c.builds, err = c.newBuilds(cfg, shims, log); err != nil {
		return err
	}
	program, err := besideThis("holdfast-swarm")
	if err != nil {
		return err
	}
	c.swarm = swarm.New(swarm.Options{
		Binary: program, DataRoot: cfg.DataRoot, ExecRoot: cfg.ExecRoot, Release: version.Version, Log: log, Started: shims.place,
		Settings: swarm.Settings{AdvertiseAddr: cfg.SwarmAdvertiseAddr, HeartbeatTick: cfg.SwarmHeartbeatTick, ElectionTick: cfg.SwarmElectionTick},
	})
	return nil
}
