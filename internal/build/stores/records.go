// SPDX-License-Identifier: Apache-2.0

package stores

import (
	"context"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
)

// Leases is the daemon's manager of leases.
func (c *Client) Leases() leases.Manager { return remoteLeases{c} }

type remoteLeases struct{ *Client }

func (l remoteLeases) Create(ctx context.Context, opts ...leases.Opt) (leases.Lease, error) {
	var want leases.Lease
	for _, opt := range opts {
		if err := opt(&want); err != nil {
			return leases.Lease{}, err
		}
	}
	got, again, err := ask(ctx, l.Client, leaseCreate, want)
	if again && errdefs.IsAlreadyExists(err) {
		return want, nil
	}
	return got, err
}

func (l remoteLeases) Delete(ctx context.Context, lease leases.Lease, opts ...leases.DeleteOpt) error {
	var o leases.DeleteOptions
	for _, opt := range opts {
		if err := opt(ctx, &o); err != nil {
			return err
		}
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
	_, _, err := ask(ctx, l.Client, leaseAdd, leased{Lease: lease.ID, Resource: r})
	return err
}

func (l remoteLeases) DeleteResource(ctx context.Context, lease leases.Lease, r leases.Resource) error {
	_, _, err := ask(ctx, l.Client, leaseRemove, leased{Lease: lease.ID, Resource: r})
	return err
}

func (l remoteLeases) ListResources(ctx context.Context, lease leases.Lease) ([]leases.Resource, error) {
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
