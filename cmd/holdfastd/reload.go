package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"

	daemonapi "holdfast/internal/api/daemon"
	"holdfast/internal/config"
)

// reload takes the file again. Whatever is wrong with it leaves the daemon as
// it is. Only the main loop calls it.
func (d *daemon) reload(ctx context.Context) (daemonapi.Plan, error) {
	if d.ready { // before, there is nothing to be ready again from
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

func (d *daemon) takeConfig(ctx context.Context) (daemonapi.Plan, error) {
	loaded, err := config.Load(d.flags, os.ReadFile)
	if err != nil {
		return daemonapi.Plan{}, invalid(err)
	}
	plan := d.planOf(loaded)
	next, left := config.TakeLive(d.cfg, loaded)
	parts := append([]config.Reloader{d.reloadLog()}, d.service.Reloaders()...)
	if err := config.Reload(ctx, parts, d.cfg, next); err != nil {
		return daemonapi.Plan{}, err
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

func (d *daemon) planOf(next *config.Config) daemonapi.Plan {
	return daemonapi.Plan{File: next.ConfigFile, Changes: config.Plan(d.cfg, next, d.service.Running())}
}

// PlanReload and Reload are for the API; the main loop does them, as it does a
// signal.
func (d *daemon) PlanReload(ctx context.Context) (plan daemonapi.Plan, err error) {
	return d.inLoop(ctx, func(context.Context) (daemonapi.Plan, error) {
		next, err := config.Read(d.flags, os.ReadFile)
		if err != nil {
			return daemonapi.Plan{}, invalid(err)
		}
		plan := d.planOf(next)
		if err := next.Refused(); err != nil {
			plan.Error = err.Error()
		}
		return plan, nil
	})
}

func (d *daemon) Reload(ctx context.Context) (daemonapi.Plan, error) {
	return d.inLoop(ctx, d.reload)
}

// inLoop lets the main loop do something, and waits for it or for the client's
// patience to end.
func (d *daemon) inLoop(ctx context.Context, do func(context.Context) (daemonapi.Plan, error)) (daemonapi.Plan, error) {
	type answer struct {
		plan daemonapi.Plan
		err  error
	}
	answers := make(chan answer, 1) // who asked may be gone
	task := func(ctx context.Context) {
		plan, err := do(ctx)
		answers <- answer{plan, err}
	}
	select {
	case d.tasks <- task:
	case <-ctx.Done():
		return daemonapi.Plan{}, ctx.Err()
	}
	select {
	case a := <-answers:
		return a.plan, a.err
	case <-ctx.Done():
		return daemonapi.Plan{}, ctx.Err()
	}
}

// invalid makes an error one of what was given to the daemon.
func invalid(err error) error {
	return errdefs.ErrInvalidArgument.WithMessage(err.Error())
}

func (d *daemon) reloadLog() config.Reloader {
	return config.NewReloader("log level", func(_ context.Context, _, next *config.Config) (func(), func(), error) {
		return func() { d.level.Set(logLevel(next)) }, nil, nil
	})
}
