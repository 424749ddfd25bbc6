// SPDX-License-Identifier: Apache-2.0

// Package container serves the operations on containers and on the commands
// run in them (exec). It may not keep state.
package container

import (
	"context"
	"io"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"holdfast/internal/engine"
	"holdfast/internal/filter"
)

// Backend is what this package needs of the engine. ref is a name, an ID or an
// abbreviated ID. Errors carry a kind (containerd/errdefs).
type Backend interface {
	ContainerCreate(ctx context.Context, o engine.CreateOptions) (container.CreateResponse, error)
	ContainerList(ctx context.Context, o engine.ListOptions) ([]container.Summary, error)
	ContainerInspect(ctx context.Context, ref string, size bool) (container.InspectResponse, error)
	// ContainerMAC is the MAC address that the user requested on the
	// container's main network, or nil.
	ContainerMAC(ref string) (network.HardwareAddr, error)
	ContainerStart(ctx context.Context, ref string) error
	ContainerStop(ctx context.Context, ref string, o engine.StopOptions) error
	ContainerRestart(ctx context.Context, ref string, o engine.StopOptions) error
	ContainerKill(ctx context.Context, ref, signal string) error
	ContainerPause(ctx context.Context, ref string) error
	ContainerUnpause(ctx context.Context, ref string) error
	ContainerRename(ctx context.Context, ref, name string) error
	ContainerUpdate(ctx context.Context, ref string, u container.UpdateConfig) (container.UpdateResponse, error)
	// ContainerWait returns once the wait is registered. The channel then
	// delivers one answer.
	ContainerWait(ctx context.Context, ref string, c container.WaitCondition) (<-chan container.WaitResponse, error)
	// ContainerWaitHeld is ContainerWait with an answer that outlives the
	// daemon: once the wait is registered it takes over the connection.
	ContainerWaitHeld(ctx context.Context, ref string, c container.WaitCondition, hijack func() (*engine.Client, []byte, error)) error
	ContainerRemove(ctx context.Context, ref string, o engine.RemoveOptions) error
	ContainerAttach(ctx context.Context, ref string, o engine.AttachOptions) error
	ContainerResize(ctx context.Context, ref string, height, width uint) error
	ContainerLogs(ctx context.Context, ref string, o engine.LogsOptions) (r engine.LogReader, tty bool, err error)
	// ContainerFollow is ContainerLogs for a client whose connection can be
	// handed over. It takes over the connection and serves it, or returns
	// false.
	ContainerFollow(ctx context.Context, ref string, o engine.FollowOptions) (bool, error)
	ContainerTop(ctx context.Context, ref, psArgs string) (container.TopResponse, error)
	ContainerStats(ctx context.Context, ref string, stream, oneShot bool, emit func(container.StatsResponse) error) error
	ContainerStatPath(ctx context.Context, ref, path string) (container.PathStat, error)
	// ContainerArchive writes a tar to the writer that begin returns. Before it
	// calls begin it has written nothing.
	ContainerArchive(ctx context.Context, ref, path string, begin func(container.PathStat) io.Writer) error
	ContainerExtract(ctx context.Context, ref, path string, o engine.ExtractOptions, src io.Reader) error
	// ContainerExport calls begin before it writes anything.
	ContainerExport(ctx context.Context, ref string, begin func() io.Writer) error
	ContainerCommit(ctx context.Context, ref string, o engine.CommitOptions) (imageID string, err error)
	ContainerChanges(ctx context.Context, ref string) ([]container.FilesystemChange, error)
	ContainersPrune(ctx context.Context, f filter.Args) (container.PruneReport, error)

	ExecCreate(ctx context.Context, ref string, r container.ExecCreateRequest) (string, error)
	ExecStart(ctx context.Context, id string, o engine.ExecStartOptions) error
	ExecResize(ctx context.Context, id string, height, width uint) error
	ExecInspect(ctx context.Context, id string) (container.ExecInspectResponse, error)
}
