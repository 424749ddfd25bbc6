// SPDX-License-Identifier: Apache-2.0

package task

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errhttp"
	"github.com/moby/moby/api/types/common"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"holdfast/internal/event"
	"holdfast/internal/network/overlay"
	"holdfast/internal/swarm"
)

// Engine is the daemon as the swarm process sees it. Each call waits until a daemon
// answers, or its context ends: that no daemon lives is never the failure of a task.
type Engine struct {
	api  *client.Client
	http *http.Client
}

// NewEngine returns the daemon that listens at the socket.
func NewEngine(socket string) (*Engine, error) {
	api, err := client.New(client.WithHost("unix://" + socket))
	if err != nil {
		return nil, err
	}
	return &Engine{api: api, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}}, nil
}

// pause is the time between two attempts to reach a daemon.
const pause = 200 * time.Millisecond

// away reports whether an error means that no daemon lives, that it ended before it
// answered, or that it is about to end. The request may have been carried out.
func away(err error) bool { return lost(err) || errdefs.IsUnavailable(err) }

// lost reports whether no daemon has answered.
func lost(err error) bool {
	return client.IsErrConnectionFailed(err) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) ||
		errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT)
}

// do calls fn until a daemon answers. fn must be idempotent.
func do(ctx context.Context, fn func() error) error {
	for {
		err := fn()
		if err == nil || !away(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// Info returns what the daemon says of the host. It does not wait for a daemon.
func (e *Engine) Info(ctx context.Context) (system.Info, error) {
	res, err := e.api.Info(ctx, client.InfoOptions{})
	return res.Info, err
}

// NetworkName returns the name of a network that the daemon knows by itself.
func (e *Engine) NetworkName(ctx context.Context, ref string) (string, error) {
	n, err := e.network(ctx, ref)
	return n.Name, err
}

// network inspects a network that the daemon knows by itself: it must not ask this
// process in turn.
func (e *Engine) network(ctx context.Context, ref string) (network.Inspect, error) {
	res, err := e.api.NetworkInspect(ctx, ref, client.NetworkInspectOptions{Scope: "local"})
	return res.Network, err
}

// HasNetwork reports whether this host has a network of that name, which is not the
// swarm's.
func (e *Engine) HasNetwork(ctx context.Context, name string) bool {
	found, err := e.network(ctx, name)
	return err == nil && found.Name == name && found.Scope != "swarm"
}

// create creates the container of a task. ErrConflict: its name is in use, which is
// the case after an earlier attempt whose answer got lost.
func (e *Engine) create(ctx context.Context, task, name string, req *container.CreateRequest) error {
	return e.call(ctx, http.MethodPost, swarm.TasksPath+url.PathEscape(task)+"?name="+url.QueryEscape(name), req, nil)
}

// Report has the daemon record events of the swarm. Those whose source it has
// recorded before it leaves out. It waits for a daemon.
func (e *Engine) Report(ctx context.Context, events []event.Message) error {
	return e.call(ctx, http.MethodPost, swarm.EventsPath, events, nil)
}

// call makes a request that only this process may make, and decodes the answer into v
// unless it is nil. It waits for a daemon.
func (e *Engine) call(ctx context.Context, method, path string, body, v any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return do(ctx, func() error {
		r, err := http.NewRequestWithContext(ctx, method, "http://daemon"+path, bytes.NewReader(text))
		if err != nil {
			return err
		}
		r.Header.Set("Content-Type", "application/json")
		resp, err := e.http.Do(r)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode >= http.StatusBadRequest {
			var refused common.ErrorResponse
			if err := json.NewDecoder(resp.Body).Decode(&refused); err != nil {
				return fmt.Errorf("%s %s: %s: %w", method, path, resp.Status, err)
			}
			return refusal{refused.Message, errhttp.ToNative(resp.StatusCode)}
		}
		if v == nil {
			_, err := io.Copy(io.Discard, resp.Body)
			return err
		}
		return json.NewDecoder(resp.Body).Decode(v)
	})
}

// DefineOverlay makes an overlay network known to the daemon. It waits for a daemon.
func (e *Engine) DefineOverlay(ctx context.Context, d overlay.Definition) error {
	return e.call(ctx, http.MethodPut, swarm.OverlaysPath+url.PathEscape(d.ID), d, nil)
}

// ForgetOverlay removes an overlay network from this host. It waits for a daemon.
func (e *Engine) ForgetOverlay(ctx context.Context, id string) error {
	return e.call(ctx, http.MethodDelete, swarm.OverlaysPath+url.PathEscape(id), nil, nil)
}

// Overlays returns the IDs of the overlay networks that the daemon knows.
func (e *Engine) Overlays(ctx context.Context) (ids []string, err error) {
	err = e.call(ctx, http.MethodGet, swarm.OverlaysPath, nil, &ids)
	return ids, err
}

// Disconnect disconnects all containers from an overlay network: those that are no tasks
// of it run on. It waits for a daemon.
func (e *Engine) Disconnect(ctx context.Context, id string) error {
	return do(ctx, func() error {
		n, err := e.network(ctx, id)
		if errdefs.IsNotFound(err) {
			return nil
		}
		var failed []error
		for container := range n.Containers {
			_, err := e.api.NetworkDisconnect(ctx, id, client.NetworkDisconnectOptions{Container: container, Force: true})
			failed = append(failed, err)
		}
		return errors.Join(append(failed, err)...)
	})
}

// EnsureGateway makes the network by which the containers of overlay networks reach
// other hosts. As in Docker they can't reach each other by it.
func (e *Engine) EnsureGateway(ctx context.Context) error {
	return do(ctx, func() error {
		_, err := e.network(ctx, GatewayNetwork)
		if !errdefs.IsNotFound(err) {
			return err
		}
		_, err = e.api.NetworkCreate(ctx, GatewayNetwork, client.NetworkCreateOptions{
			Driver: "bridge", Options: map[string]string{"com.docker.network.bridge.enable_icc": "false"},
		})
		if errdefs.IsConflict(err) {
			return nil // another task has made it meanwhile
		}
		return err
	})
}

// RemoveGateway removes that network, unless a container is on it.
func (e *Engine) RemoveGateway(ctx context.Context) error {
	return do(ctx, func() error {
		_, err := e.network(ctx, GatewayNetwork)
		if err == nil {
			_, err = e.api.NetworkRemove(ctx, GatewayNetwork, client.NetworkRemoveOptions{})
		}
		if errdefs.IsNotFound(err) || errdefs.IsPermissionDenied(err) {
			return nil
		}
		return err
	})
}

// refusal is the daemon's answer, with its own text and a kind.
type refusal struct {
	text string
	kind error
}

func (r refusal) Error() string { return r.text }
func (r refusal) Unwrap() error { return r.kind }

func (e *Engine) start(ctx context.Context, id string) error {
	return do(ctx, func() error {
		_, err := e.api.ContainerStart(ctx, id, client.ContainerStartOptions{})
		return err
	})
}

// remove removes a container with its anonymous volumes. It waits for a daemon.
func (e *Engine) remove(ctx context.Context, id string) error {
	return do(ctx, func() error {
		_, err := e.api.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		if errdefs.IsNotFound(err) {
			return nil
		}
		return err
	})
}

// Remove removes a container with its anonymous volumes. It waits for a daemon.
func (e *Engine) Remove(ctx context.Context, id string) error { return e.remove(ctx, id) }

// stop stops a container. It does not wait for a daemon.
func (e *Engine) stop(ctx context.Context, id string) error {
	_, err := e.api.ContainerStop(ctx, id, client.ContainerStopOptions{})
	return err
}

// kill kills a container. It does not wait for a daemon.
func (e *Engine) kill(ctx context.Context, id string) error {
	_, err := e.api.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: "KILL"})
	return err
}

// pulls is how often a pull is tried that a daemon answers with "unavailable": either
// it is about to end, or the registry can't be reached.
const pulls = 3

// pull pulls an image with the credentials that the service has.
func (e *Engine) pull(ctx context.Context, image, auth string) error {
	for answers := 0; ; {
		resp, err := e.api.ImagePull(ctx, image, client.ImagePullOptions{RegistryAuth: auth})
		if err == nil {
			err = resp.Wait(ctx)
		}
		if errdefs.IsUnavailable(err) && !lost(err) {
			answers++
		}
		if err == nil || answers == pulls || !away(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// has reports whether an image is on this host.
func (e *Engine) has(ctx context.Context, image string) (found bool, err error) {
	err = do(ctx, func() error {
		_, err := e.api.ImageInspect(ctx, image)
		found = err == nil
		if errdefs.IsNotFound(err) {
			return nil
		}
		return err
	})
	return found, err
}

// inspect returns what the daemon shows of a container. It does not wait for a daemon.
func (e *Engine) inspect(ctx context.Context, id string) (container.InspectResponse, error) {
	res, err := e.api.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	return res.Container, err
}

// logs opens the log of a container, with a time before each line.
func (e *Engine) logs(ctx context.Context, id string, o client.ContainerLogsOptions) (io.ReadCloser, error) {
	return e.api.ContainerLogs(ctx, id, o)
}
