// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"fmt"

	moby "github.com/moby/moby/api/types/container"

	"holdfast/internal/network"
)

// buildSteps give the steps of builds the networks and names that containers have.
type buildSteps struct {
	index *index
	files *sandboxFiles
	names *nameService
}

// StepMode returns the network mode of a build step with the ID of the container that
// it names. ErrNotFound: there is no such container.
func (b *buildSteps) StepMode(ctx context.Context, mode string) (string, error) {
	m := moby.NetworkMode(mode)
	if !m.IsContainer() {
		return mode, nil
	}
	a, err := b.index.findForChange(ctx, m.ConnectedContainer())
	if err != nil {
		return "", err
	}
	return "container:" + a.id, nil
}

// StepNames writes the file, at path, of the name server of a build step on a
// user-defined network, and returns the step's resolv.conf.
func (b *buildSteps) StepNames(path string, sandbox network.Sandbox) ([]byte, error) {
	req := request{Config: &moby.Config{}, HostConfig: &moby.HostConfig{NetworkMode: moby.NetworkMode(sandbox.Mode)}}
	_, resolv, err := b.files.inputs(req, sandbox)
	if err != nil {
		return nil, fmt.Errorf("names for a build step: %w", err)
	}
	if err := b.names.writeView(path, req, sandbox, resolv.Upstream); err != nil {
		return nil, fmt.Errorf("names for a build step: %w", err)
	}
	return resolv.Content, nil
}
