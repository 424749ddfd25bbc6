// SPDX-License-Identifier: Apache-2.0

package stores

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
)

// Waits between two tries to reach a daemon: doubling up to the second.
const (
	firstWait = 10 * time.Millisecond
	lastWait  = 500 * time.Millisecond
)

// Client uses the stores of the daemon that listens at a path. Its methods may be
// called by several goroutines.
type Client struct {
	http *http.Client
	// namespace is that of calls whose context has none.
	namespace string
	patience  time.Duration
	reads     *reads // nil if nothing is remembered
	unmade    unmade
}

// Remember has answers about blobs and layers remembered while the daemon's database, the
// file with that path, is unchanged. It is called before other methods; "" is none.
func (c *Client) Remember(database string) { c.reads = &reads{database: database} }

// NewClient makes a client. It connects with the first call.
func NewClient(socket, namespace string) *Client {
	var d net.Dialer
	return &Client{
		namespace: namespace,
		patience:  Patience,
		http: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return d.DialContext(ctx, "unix", socket)
			},
			MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute, DisableCompression: true,
		}},
	}
}

// Config returns the present configuration.
func (c *Client) Config(ctx context.Context) (Config, error) {
	conf, _, err := ask(ctx, c, getConfig, none{})
	return conf, err
}

// Usage returns how many bytes the daemon's store takes on disk.
func (c *Client) Usage(ctx context.Context) (int64, error) {
	n, _, err := ask(ctx, c, getUsage, none{})
	return n, err
}

// ask makes a call. again reports that the call was repeated because a daemon died,
// so that it may have had its effect before.
func ask[A, R any](ctx context.Context, c *Client, method call[A, R], a A) (result R, again bool, err error) {
	body, err := json.Marshal(a)
	if err != nil {
		return result, false, err
	}
	if lease, ok := leases.FromContext(ctx); ok && !slices.Contains(leaseless, string(method)) {
		if err := c.needLease(ctx, lease); err != nil {
			return result, false, err
		}
	}
	if c.reads == nil || !slices.Contains(remembered, string(method)) {
		again, err = c.send(ctx, string(method), body, &result)
		return result, again, err
	}
	state, ok := c.reads.now()
	about := question(method, c.namespaceOf(ctx), a)
	if text, known := c.reads.recall(state, about); ok && known {
		return result, false, json.Unmarshal(text, &result)
	}
	var text json.RawMessage
	if again, err = c.send(ctx, string(method), body, &text); err != nil {
		return result, again, err
	}
	if ok {
		c.reads.note(state, about, text)
	}
	return result, again, json.Unmarshal(text, &result)
}

// namespaceOf returns the namespace of a call.
func (c *Client) namespaceOf(ctx context.Context) string {
	if ns, ok := namespaces.Namespace(ctx); ok {
		return ns
	}
	return c.namespace
}

// send sends a request until a daemon answers, and reads the answer into result.
func (c *Client) send(ctx context.Context, path string, body []byte, result any) (again bool, _ error) {
	began, wait := time.Now(), firstWait
	for {
		reached, err := c.try(ctx, path, body, result)
		if err == nil || reached {
			return again, err
		}
		if ctx.Err() != nil {
			return again, context.Cause(ctx)
		}
		if time.Since(began) > c.patience {
			return again, errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("the daemon did not come back within %s: %v", c.patience, err))
		}
		var refused *net.OpError
		if !errors.As(err, &refused) || refused.Op != "dial" {
			again = true // the request was sent
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return again, context.Cause(ctx)
		}
		wait = min(2*wait, lastWait)
	}
}

// try sends a request once. reached reports that a daemon has answered.
func (c *Client) try(ctx context.Context, path string, body []byte, result any) (reached bool, _ error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://stores/"+path, bytes.NewReader(body))
	if err != nil {
		return true, err
	}
	req.Header.Set(headerNamespace, c.namespaceOf(ctx))
	if lease, ok := leases.FromContext(ctx); ok {
		req.Header.Set(headerLease, lease)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return false, err
	}
	if resp.StatusCode != http.StatusOK {
		return true, &remoteError{string(text), kinds[resp.Header.Get(headerKind)]}
	}
	if err := json.Unmarshal(text, result); err != nil {
		return false, fmt.Errorf("the daemon's answer to %s: %w", path, err)
	}
	return true, nil
}
