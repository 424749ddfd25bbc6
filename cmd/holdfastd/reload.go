// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"

	"holdfast/internal/api"
	"holdfast/internal/config"
)

// reload reads the configuration again and applies it. If anything in it is
// wrong, the daemon stays as it is. Only the main loop calls it.
func (d *daemon) reload(ctx context.Context) (api.Plan, error) {
	if d.ready { // before that, READY=1 would come too early
		d.tell(d.notify.Reloading())
	}
	status := "ready"
	plan, err := d.takeConfig(ctx)
	if err != nil {
		status = "ready; the last reload failed: " + err.Error()
		d.log.Error("the configuration was not reloaded, the old one stays", "error", err)
	}
	if d.ready {
		d.tell(d.notify.Ready(status))
	}
	return plan, err
}

func (d *daemon) takeConfig(ctx context.Context) (api.Plan, error) {
	loaded, err := loadConfig(d.flags)
	if err != nil {
		return api.Plan{}, invalid(err)
	}
	plan := d.planOf(loaded, nil)
	next, left := config.TakeLive(d.cfg, loaded)
	parts := append([]config.Reloader{d.reloadLog(), d.reloadGuard()}, d.service.Reloaders()...)
	if err := config.Reload(ctx, parts, d.cfg, next); err != nil {
		return api.Plan{}, err
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
	return plan, nil
}

// planOf returns the effect of each change. unusable is the reason why next
// can't be used, or nil.
func (d *daemon) planOf(next *config.Config, unusable error) api.Plan {
	return api.Plan{File: next.ConfigFile, Changes: config.Plan(d.cfg, next, d.service.Running(), unusable)}
}

// PlanReload and Reload serve the API. They run in the main loop, like a reload
// by a signal.
func (d *daemon) PlanReload(ctx context.Context) (plan api.Plan, err error) {
	return d.inLoop(ctx, func(context.Context) (api.Plan, error) {
		next, err := config.Read(d.flags, os.ReadFile)
		if err != nil {
			return api.Plan{}, invalid(err)
		}
		bad := usable(next)
		plan := d.planOf(next, bad)
		if err := errors.Join(next.Refused(), bad); err != nil {
			plan.Error = err.Error()
		}
		return plan, nil
	})
}

func (d *daemon) Reload(ctx context.Context) (api.Plan, error) {
	return d.inLoop(ctx, d.reload)
}

// inLoop runs a function in the main loop, and waits for it or for the end of
// ctx.
func (d *daemon) inLoop(ctx context.Context, do func(context.Context) (api.Plan, error)) (api.Plan, error) {
	type answer struct {
		plan api.Plan
		err  error
	}
	answers := make(chan answer, 1) // the caller may have left
	task := func(ctx context.Context) {
		plan, err := do(ctx)
		answers <- answer{plan, err}
	}
	select {
	case d.tasks <- task:
	case <-ctx.Done():
		return api.Plan{}, ctx.Err()
	}
	select {
	case a := <-answers:
		return a.plan, a.err
	case <-ctx.Done():
		return api.Plan{}, ctx.Err()
	}
}

// invalid marks an error as caused by the input.
func invalid(err error) error {
	return errdefs.ErrInvalidArgument.WithMessage(err.Error())
}

func (d *daemon) reloadLog() config.Reloader {
	return config.NewReloader("log level", func(_ context.Context, _, next *config.Config) (func(), func(), error) {
		return func() { d.level.Set(logLevel(next)) }, nil, nil
	})
}
