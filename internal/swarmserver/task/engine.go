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
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"holdfast/internal/event"
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

// NetworkName returns the name of a network of this host.
func (e *Engine) NetworkName(ctx context.Context, ref string) (string, error) {
	res, err := e.api.NetworkInspect(ctx, ref, client.NetworkInspectOptions{})
	return res.Network.Name, err
}

// create creates the container of a task. ErrConflict: its name is in use, which is
// the case after an earlier attempt whose answer got lost.
func (e *Engine) create(ctx context.Context, task, name string, req *container.CreateRequest) error {
	text, err := json.Marshal(req)
	if err != nil {
		return err
	}
	return e.post(ctx, "create the container", swarm.TasksPath+url.PathEscape(task)+"?name="+url.QueryEscape(name), text)
}

// Report has the daemon record events of the swarm. Those whose source it has
// recorded before it leaves out.
func (e *Engine) Report(ctx context.Context, events []event.Message) error {
	text, err := json.Marshal(events)
	if err != nil {
		return err
	}
	return e.post(ctx, "report events", swarm.EventsPath, text)
}

// post sends a request that only the process makes. It waits for a daemon.
func (e *Engine) post(ctx context.Context, what, path string, body []byte) error {
	return do(ctx, func() error {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://daemon"+path, bytes.NewReader(body))
		if err != nil {
			return err
		}
		r.Header.Set("Content-Type", "application/json")
		resp, err := e.http.Do(r)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode < http.StatusBadRequest {
			_, err := io.Copy(io.Discard, resp.Body)
			return err
		}
		var refused common.ErrorResponse
		if err := json.NewDecoder(resp.Body).Decode(&refused); err != nil {
			return fmt.Errorf("%s: %s: %w", what, resp.Status, err)
		}
		return refusal{refused.Message, errhttp.ToNative(resp.StatusCode)}
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
