package main

import (
	"context"

	"holdfast/internal/engine"
	"holdfast/internal/shim/client"
	"holdfast/internal/shim/proto"
)

// shims gives the engine its shims through package client.
type shims struct{ release string }

func (s shims) Spawn(ctx context.Context, o client.Options) (engine.Shim, error) {
	o.Release = s.release
	shim, err := client.Spawn(ctx, o)
	if err != nil {
		return nil, err // not a nil *client.Shim in an interface
	}
	return shim, nil
}

func (s shims) Dial(ctx context.Context, runDir string) (engine.Shim, error) {
	shim, err := client.Dial(ctx, runDir, s.release)
	if err != nil {
		return nil, err
	}
	return shim, nil
}

// guest is shims for an observer: to them it is no daemon.
type guest struct{ shims }

func (guest) Dial(ctx context.Context, runDir string) (engine.Shim, error) {
	shim, err := client.DialGuest(ctx, runDir)
	if err != nil {
		return nil, err
	}
	return shim, nil
}

func (shims) State(runDir string) (proto.State, error) { return client.ReadState(runDir) }
func (shims) Exit(dataDir string) (proto.State, error) { return client.ReadExit(dataDir) }

// Bootstrap is what the last shim of a run directory was told.
func (shims) Bootstrap(runDir string) (proto.Bootstrap, error) { return client.ReadBootstrap(runDir) }

func (shims) Journal(runDir string, after uint64) ([]proto.Entry, error) {
	return client.ReadJournal(runDir, after)
}
