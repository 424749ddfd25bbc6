// SPDX-License-Identifier: Apache-2.0

package stores

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
)

// Leases is the daemon's manager of leases. A lease is made with the first call that needs
// it, because a lease that keeps nothing is of no use, and each transaction of the daemon's
// database is synced to the disk. So Create does not report that a lease exists already.
func (c *Client) Leases() leases.Manager { return remoteLeases{c} }

type remoteLeases struct{ *Client }

// unmade are the leases that the daemon does not know yet.
type unmade struct {
	mu   sync.Mutex
	byID map[leaseKey]leases.Lease
}

type leaseKey struct{ namespace, id string }

func (u *unmade) add(k leaseKey, l leases.Lease) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.byID == nil {
		u.byID = map[leaseKey]leases.Lease{}
	}
	u.byID[k] = l
}

func (u *unmade) get(k leaseKey) (l leases.Lease, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	l, ok = u.byID[k]
	return l, ok
}

// drop removes a lease and reports whether it was there.
func (u *unmade) drop(k leaseKey) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, ok := u.byID[k]
	delete(u.byID, k)
	return ok
}

// needLease makes the lease of a call if it does not exist yet.
func (c *Client) needLease(ctx context.Context, id string) error {
	k := leaseKey{c.namespaceOf(ctx), id}
	l, ok := c.unmade.get(k)
	if !ok {
		return nil
	}
	if _, _, err := ask(ctx, c, leaseCreate, l); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	c.unmade.drop(k)
	return nil
}

func (l remoteLeases) Create(ctx context.Context, opts ...leases.Opt) (leases.Lease, error) {
	var want leases.Lease
	for _, opt := range opts {
		if err := opt(&want); err != nil {
			return leases.Lease{}, err
		}
	}
	if want.ID == "" {
		return leases.Lease{}, errdefs.ErrInvalidArgument.WithMessage("a lease needs an ID")
	}
	want.CreatedAt = time.Now()
	l.unmade.add(leaseKey{l.namespaceOf(ctx), want.ID}, want)
	return want, nil
}

func (l remoteLeases) Delete(ctx context.Context, lease leases.Lease, opts ...leases.DeleteOpt) error {
	var o leases.DeleteOptions
	for _, opt := range opts {
		if err := opt(ctx, &o); err != nil {
			return err
		}
	}
	if o.Synchronous {
		if err := l.needLease(ctx, lease.ID); err != nil {
			return err
		}
	}
	if l.unmade.drop(leaseKey{l.namespaceOf(ctx), lease.ID}) {
		return nil
	}
	_, again, err := ask(ctx, l.Client, leaseDelete, leased{Lease: lease.ID, Sync: o.Synchronous})
	if again && errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

func (l remoteLeases) List(ctx context.Context, filters ...string) ([]leases.Lease, error) {
	all, _, err := ask(ctx, l.Client, leaseList, filters)
	return all, err
}

func (l remoteLeases) AddResource(ctx context.Context, lease leases.Lease, r leases.Resource) error {
	k := leaseKey{l.namespaceOf(ctx), lease.ID}
	if made, ok := l.unmade.get(k); ok {
		_, _, err := ask(ctx, l.Client, leaseAdd, leased{Lease: lease.ID, Resource: r, New: true, Labels: made.Labels})
		if err == nil {
			l.unmade.drop(k)
		}
		if !errdefs.IsNotFound(err) {
			return err
		}
		if err := l.needLease(ctx, lease.ID); err != nil { // a daemon of an earlier release
			return err
		}
	}
	_, _, err := ask(ctx, l.Client, leaseAdd, leased{Lease: lease.ID, Resource: r})
	return err
}

func (l remoteLeases) DeleteResource(ctx context.Context, lease leases.Lease, r leases.Resource) error {
	if err := l.needLease(ctx, lease.ID); err != nil {
		return err
	}
	_, _, err := ask(ctx, l.Client, leaseRemove, leased{Lease: lease.ID, Resource: r})
	return err
}

func (l remoteLeases) ListResources(ctx context.Context, lease leases.Lease) ([]leases.Resource, error) {
	if _, ok := l.unmade.get(leaseKey{l.namespaceOf(ctx), lease.ID}); ok {
		return nil, nil
	}
	all, _, err := ask(ctx, l.Client, leaseResources, lease)
	return all, err
}

// Images are the daemon's names of images.
func (c *Client) Images() images.Store { return remoteImages{c} }

type remoteImages struct{ *Client }

func (i remoteImages) Get(ctx context.Context, name string) (images.Image, error) {
	img, _, err := ask(ctx, i.Client, imageGet, name)
	return img, err
}

func (i remoteImages) List(ctx context.Context, filters ...string) ([]images.Image, error) {
	all, _, err := ask(ctx, i.Client, imageList, filters)
	return all, err
}

func (i remoteImages) Create(ctx context.Context, img images.Image) (images.Image, error) {
	made, again, err := ask(ctx, i.Client, imageCreate, img)
	if again && errdefs.IsAlreadyExists(err) {
		return i.Get(ctx, img.Name)
	}
	return made, err
}

func (i remoteImages) Update(ctx context.Context, img images.Image, fields ...string) (images.Image, error) {
	img, _, err := ask(ctx, i.Client, imageUpdate, updated[images.Image]{img, fields})
	return img, err
}

func (i remoteImages) Delete(ctx context.Context, name string, _ ...images.DeleteOpt) error {
	_, again, err := ask(ctx, i.Client, imageDelete, name)
	if again && errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
