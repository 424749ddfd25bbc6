// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"

	"holdfast/internal/api/guard"
	"holdfast/internal/config"
)

// guardRules returns which web pages may use the API. The names that the daemon
// listens on are those from its start, like the sockets.
func (d *daemon) guardRules(cfg *config.Config) guard.Rules {
	names := d.cfg.HostNames()
	if name, err := os.Hostname(); err == nil {
		names = append(names, name)
	}
	return guard.Rules{Names: names, Hosts: cfg.APIAllowedHosts, Origins: cfg.APIAllowedOrigins}
}

func (d *daemon) reloadGuard() config.Reloader {
	return config.NewReloader("who may use the API from a browser", func(_ context.Context, old, next *config.Config) (func(), func(), error) {
		if d.guard == nil { // the API is not served yet
			return nil, nil, nil
		}
		if err := d.guard.Set(d.guardRules(next)); err != nil {
			return nil, nil, err
		}
		return nil, func() { _ = d.guard.Set(d.guardRules(old)) }, nil
	})
}
