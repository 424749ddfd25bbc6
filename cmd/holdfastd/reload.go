package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"holdfast/internal/config"
)

// reload takes the file again. Whatever is wrong with it leaves the daemon as
// it is.
func (d *daemon) reload(ctx context.Context) {
	if d.ready { // before, there is nothing to be ready again from
		d.tell(d.notify.Reloading())
	}
	status := "ready"
	if err := d.takeConfig(ctx); err != nil {
		status = "ready; the last reload failed: " + err.Error()
		d.log.Error("the configuration was not reloaded, the old one stays", "error", err)
	}
	if d.ready {
		d.tell(d.notify.Ready(status))
	}
}

func (d *daemon) takeConfig(ctx context.Context) error {
	loaded, err := config.Load(d.flags, os.ReadFile)
	if err != nil {
		return err
	}
	next, left := config.TakeLive(d.cfg, loaded)
	parts := append([]config.Reloader{d.reloadLog()}, d.service.Reloaders()...)
	if err := config.Reload(ctx, parts, d.cfg, next); err != nil {
		return err
	}
	var taken []string
	for _, c := range config.Diff(d.cfg, next) {
		taken = append(taken, fmt.Sprintf("%s=%s", c.Key, c.New))
	}
	d.cfg = next
	for _, w := range next.Warnings() {
		d.log.Warn(w)
	}
	if len(left) > 0 {
		var keys []string
		for _, c := range left {
			keys = append(keys, c.Key)
		}
		d.log.Warn("changed keys not taken until restart: " + strings.Join(keys, ", "))
	}
	d.log.Info("Reloaded configuration", "changed", strings.Join(taken, " "))
	return nil
}

func (d *daemon) reloadLog() config.Reloader {
	return config.NewReloader("log level", func(_ context.Context, _, next *config.Config) (func(), func(), error) {
		return func() { d.level.Set(logLevel(next)) }, nil, nil
	})
}
