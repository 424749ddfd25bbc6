// SPDX-License-Identifier: Apache-2.0

package fuzz

import (
	"context"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/volume"

	"holdfast/internal/api"
	daemonapi "holdfast/internal/api/daemon"
	"holdfast/internal/api/swarm"
	"holdfast/internal/engine"
)

// process stands for the routes' dependency on the daemon's process.
type process struct{}

func (process) PlanReload(context.Context) (daemonapi.Plan, error) { return daemonapi.Plan{}, nil }
func (process) Reload(context.Context) (daemonapi.Plan, error)     { return daemonapi.Plan{}, nil }
func (process) Upgrade(context.Context, daemonapi.UpgradeOptions) (daemonapi.Upgraded, error) {
	return daemonapi.Upgraded{}, nil
}

// operations are all routes of the daemon, read from its own router, without those
// that make the host a node of a swarm: it would listen to the network from then on.
var operations = func() []string {
	var e *engine.Engine
	all := api.Operations(api.Options{
		Containers: e, Images: e, Volumes: e, Networks: e, System: e, Daemon: e, Reload: process{}, Upgrade: process{},
	})
	return slices.DeleteFunc(all, func(o string) bool { return o == "POST /swarm/init" || o == "POST /swarm/join" })
}()

// ofSwarm are the operations that a host in no swarm answers with 503, as Docker does.
var ofSwarm = func() map[string]bool {
	of := map[string]bool{}
	for _, o := range swarm.Operations {
		of[o] = true
	}
	return of
}()

// bodies are the operations that read JSON, and the type of each. The other
// operations must ignore or refuse a body.
var bodies = map[string]reflect.Type{
	"POST /auth":                        reflect.TypeFor[registry.AuthConfig](),
	"POST /commit":                      reflect.TypeFor[container.Config](),
	"POST /containers/create":           reflect.TypeFor[container.CreateRequest](),
	"POST /containers/{name...}/exec":   reflect.TypeFor[container.ExecCreateRequest](),
	"POST /containers/{name...}/update": reflect.TypeFor[container.UpdateConfig](),
	"POST /exec/{name}/start":           reflect.TypeFor[container.ExecStartRequest](),
	"POST /networks/create":             reflect.TypeFor[network.CreateRequest](),
	"POST /networks/{name}/connect":     reflect.TypeFor[network.ConnectRequest](),
	"POST /networks/{name}/disconnect":  reflect.TypeFor[network.DisconnectRequest](),
	"POST /volumes/create":              reflect.TypeFor[volume.CreateRequest](),
	"POST /holdfast/v1/upgrade":         reflect.TypeFor[badBinary](),
	"POST /holdfast/v1/shims/upgrade":   reflect.TypeFor[badBinary](),
}

// badBinary is the body of an upgrade. The upgrade must fail, so its binary
// never is one.
type badBinary struct {
	Binary string `json:"binary"`
	Wait   int    `json:"wait"`
}

// follows are the operations that may last until their client disconnects.
var follows = map[string]bool{
	"GET /events":                         true,
	"POST /containers/{name...}/attach":   true,
	"GET /containers/{name...}/attach/ws": true,
	"GET /containers/{name...}/logs":      true,
	"GET /containers/{name...}/stats":     true,
	"POST /containers/{name...}/wait":     true,
	"POST /exec/{name}/start":             true,
	// These wait for processes that may ignore a signal.
	"POST /containers/{name...}/stop":    true,
	"POST /containers/{name...}/restart": true,
}

// asksOthers are the operations that may fail because of another server.
var asksOthers = map[string]bool{
	"POST /auth":                       true,
	"POST /images/create":              true,
	"POST /images/{name...}/push":      true,
	"GET /distribution/{name...}/json": true,
}

func TestEveryOperationIsFuzzed(t *testing.T) {
	if len(operations) < 100 {
		t.Errorf("only %d operations: %s", len(operations), strings.Join(operations, ", "))
	}
	known := map[string]bool{}
	for _, o := range operations {
		known[o] = true
	}
	named := slices.Concat(
		slices.Collect(maps.Keys(bodies)), slices.Collect(maps.Keys(follows)), slices.Collect(maps.Keys(asksOthers)),
		[]string{"POST /holdfast/v1/reload"},
	)
	for _, o := range named {
		if !known[o] {
			t.Errorf("%s is listed here but is not an operation", o)
		}
	}
}
