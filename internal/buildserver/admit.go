// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"context"
	"slices"
	"strings"

	controlapi "github.com/moby/buildkit/api/services/control"
	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/util/entitlements"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"holdfast/internal/errs"
)

// The options of a Dockerfile's frontend in which a client names the network of RUN
// steps. Clients refuse other modes than default, host and none before they ask us, so
// there is a build argument as well, which every client sends.
const (
	attrNetwork = "force-network-mode"
	argNetwork  = "build-arg:HOLDFAST_NETWORK"
	attrCgroup  = "cgroup-parent"
)

// onNetwork marks a cgroup parent that also names a network. It is the one option of a
// frontend that BuildKit hands down to the executor as it is.
const onNetwork = "holdfast-network="

// admit checks what a client asks for, by the present configuration, and translates
// what BuildKit does not know.
func (b *builder) admit(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	switch r := req.(type) {
	case *gatewayapi.SolveRequest: // of a client that is a frontend itself, as buildx is
		if err := moveNetwork(r.FrontendOpt); err != nil {
			return nil, err
		}
	case *controlapi.SolveRequest:
		allowed := b.present.now(ctx).Entitlements
		for _, e := range r.Entitlements {
			if slices.Contains(governed, e) && !slices.Contains(allowed, e) {
				return nil, errs.Forbidden("the entitlement %s is not allowed by the daemon's configuration: set it in builder.entitlements of daemon.json", e)
			}
		}
		if err := moveNetwork(r.FrontendAttrs); err != nil {
			return nil, err
		}
		defer b.worker.solves.begin()()
	}
	if r, ok := req.(*controlapi.UpdateBuildHistoryRequest); ok && r.Delete {
		err := b.forget(ctx, r.Ref, func() error { _, err := next(ctx, req); return err })
		return &controlapi.UpdateBuildHistoryResponse{}, err
	}
	resp, err := next(ctx, req)
	full := err != nil && strings.Contains(err.Error(), unix.ENOSPC.Error())
	if _, solve := req.(*controlapi.SolveRequest); full || err != nil && solve {
		go b.clear(context.WithoutCancel(ctx), full)
	}
	return resp, err
}

// governed are the entitlements that builder.entitlements decides on.
var governed = []string{entitlements.EntitlementNetworkHost.String(), entitlements.EntitlementSecurityInsecure.String()}

// moveNetwork translates the network of a build. Error: invalid argument.
func moveNetwork(attrs map[string]string) error {
	name := attrs[argNetwork]
	delete(attrs, argNetwork)
	switch mode := attrs[attrNetwork]; {
	case mode == "default", mode == "bridge":
		delete(attrs, attrNetwork)
	case !slices.Contains([]string{"", "host", "none", "sandbox"}, mode):
		name = mode
		delete(attrs, attrNetwork)
	}
	switch name {
	case "", "default", "bridge":
		return nil
	case "host", "none":
		return errs.Invalid("the network %s of a build is set by --network, not by the build argument HOLDFAST_NETWORK", name)
	}
	if strings.ContainsAny(name, ";\n\x00") {
		return errs.Invalid("%q is not the name of a network", name)
	}
	attrs[attrCgroup] = onNetwork + name + ";" + attrs[attrCgroup]
	return nil
}

type networkKey struct{}

// networkIn takes the network out of a step's cgroup parent.
func networkIn(ctx context.Context, parent string) (context.Context, string) {
	rest, ok := strings.CutPrefix(parent, onNetwork)
	if !ok {
		return ctx, parent
	}
	name, parent, _ := strings.Cut(rest, ";")
	return context.WithValue(ctx, networkKey{}, name), parent
}

// networkOf returns the daemon's network that a step is on; "" is the default one.
func networkOf(ctx context.Context) string {
	name, _ := ctx.Value(networkKey{}).(string)
	return name
}
