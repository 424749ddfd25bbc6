// SPDX-License-Identifier: Apache-2.0

package stores

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// maxCall bounds the JSON of a request, in bytes. Labels and names are short.
const maxCall = 4 << 20

// Server lends stores. Its methods may be called by several goroutines.
type Server struct {
	stores  Stores
	writers writers
	methods map[string]http.HandlerFunc
	http    http.Server
}

// NewServer makes a server of the stores in a namespace of containerd's metadata.
func NewServer(s Stores, log *slog.Logger) *Server {
	sv := &Server{stores: s, methods: map[string]http.HandlerFunc{}}
	sv.writers.store = s.Content
	sv.register()
	sv.http = http.Server{Handler: sv, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	return sv
}

// Serve answers calls until Shutdown.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown lets the calls that have begun end, and closes the writers, whose blobs
// can be continued. Calls that the context does not wait for are ended.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = s.http.Close()
	}
	s.writers.closeAll()
	return err
}

// CloseWriters closes the writers of a build process that has ended.
func (s *Server) CloseWriters() { s.writers.closeAll() }

// ServeHTTP answers one call.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h, ok := s.methods[strings.TrimPrefix(r.URL.Path, "/")]
	if !ok {
		refuse(w, errdefs.ErrNotImplemented.WithMessage("this daemon does not know the call "+r.URL.Path))
		return
	}
	ctx := r.Context()
	if ns := r.Header.Get(headerNamespace); ns != "" {
		ctx = namespaces.WithNamespace(ctx, ns)
	}
	if lease := r.Header.Get(headerLease); lease != "" {
		ctx = leases.WithLease(ctx, lease)
	}
	h(w, r.WithContext(ctx))
}

func refuse(w http.ResponseWriter, err error) {
	w.Header().Set(headerKind, kindOf(err))
	w.WriteHeader(http.StatusConflict)
	_, _ = io.WriteString(w, err.Error())
}

// on sets the function of a method.
func on[A, R any](s *Server, c call[A, R], fn func(context.Context, A) (R, error)) {
	s.methods[string(c)] = func(w http.ResponseWriter, r *http.Request) {
		var a A
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxCall)).Decode(&a); err != nil {
			refuse(w, errdefs.ErrInvalidArgument.WithMessage("the call can't be read: "+err.Error()))
			return
		}
		result, err := fn(r.Context(), a)
		if err != nil {
			refuse(w, err)
			return
		}
		_ = json.NewEncoder(w).Encode(result)
	}
}

// only makes a function without a result into one with.
func only[A any](fn func(context.Context, A) error) func(context.Context, A) (none, error) {
	return func(ctx context.Context, a A) (none, error) { return none{}, fn(ctx, a) }
}

func (s *Server) register() {
	on(s, getConfig, func(context.Context, none) (Config, error) { return s.stores.Config(), nil })
	on(s, getUsage, func(ctx context.Context, _ none) (int64, error) { return s.stores.Usage(ctx) })
	s.registerContent()
	s.registerSnapshots()
	s.registerLeases()
	s.registerImages()
	on(s, networkConnect, func(ctx context.Context, c connected) (string, error) {
		return s.stores.Networks.Connect(ctx, c.ID, c.Network)
	})
	on(s, networkNames, s.stores.Networks.Names)
	on(s, networkDisconnect, only(s.stores.Networks.Disconnect))
}

func (s *Server) registerContent() {
	c := s.stores.Content
	on(s, contentInfo, c.Info)
	on(s, contentInfos, func(ctx context.Context, all []digest.Digest) (infos []content.Info, _ error) {
		for _, d := range all {
			info, err := c.Info(ctx, d)
			if err == nil {
				infos = append(infos, info)
			} else if !errdefs.IsNotFound(err) {
				return nil, err
			}
		}
		return infos, nil
	})
	on(s, contentUpdate, func(ctx context.Context, u updated[content.Info]) (content.Info, error) {
		return c.Update(ctx, u.Value, u.Fields...)
	})
	on(s, contentWalk, func(ctx context.Context, filters []string) (all []content.Info, err error) {
		err = c.Walk(ctx, func(i content.Info) error { all = append(all, i); return nil }, filters...)
		return all, err
	})
	on(s, contentStatus, c.Status)
	on(s, contentStatuses, func(ctx context.Context, filters []string) ([]content.Status, error) {
		return c.ListStatuses(ctx, filters...)
	})
	on(s, contentAbort, only(c.Abort))
	on(s, contentOpen, s.writers.open)
	on(s, contentTruncate, s.writers.truncate)
	on(s, contentCommit, s.writers.commit)
	on(s, contentClose, only(s.writers.close))
	s.methods[writeCall] = func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		wr := writing{Ref: q.Get("ref"), Writer: q.Get("writer")}
		wr.Offset, _ = strconv.ParseInt(q.Get("offset"), 10, 64)
		wr.Desc.Size, _ = strconv.ParseInt(q.Get("size"), 10, 64)
		wr.Desc.Digest = digest.Digest(q.Get("digest"))
		result, err := s.writers.write(r.Context(), wr, r.Body)
		if err != nil {
			refuse(w, err)
			return
		}
		_ = json.NewEncoder(w).Encode(result)
	}
}

func (s *Server) registerSnapshots() {
	sn := s.stores.Snapshots
	on(s, snapshotStat, sn.Stat)
	on(s, snapshotUpdate, func(ctx context.Context, u updated[snapshots.Info]) (snapshots.Info, error) {
		return sn.Update(ctx, u.Value, u.Fields...)
	})
	on(s, snapshotUsage, sn.Usage)
	on(s, snapshotMounts, sn.Mounts)
	on(s, snapshotPrepare, func(ctx context.Context, p snapshot) ([]mount.Mount, error) {
		return sn.Prepare(ctx, p.Key, p.Parent, snapshots.WithLabels(p.Labels))
	})
	on(s, snapshotView, func(ctx context.Context, p snapshot) ([]mount.Mount, error) {
		return sn.View(ctx, p.Key, p.Parent, snapshots.WithLabels(p.Labels))
	})
	on(s, snapshotCommit, func(ctx context.Context, p snapshot) (none, error) {
		return none{}, sn.Commit(ctx, p.Name, p.Key, snapshots.WithLabels(p.Labels))
	})
	on(s, snapshotRemove, only(sn.Remove))
	on(s, snapshotWalk, func(ctx context.Context, filters []string) (all []snapshots.Info, err error) {
		err = sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error { all = append(all, i); return nil }, filters...)
		return all, err
	})
}

func (s *Server) registerLeases() {
	lm := s.stores.Leases
	on(s, leaseCreate, func(ctx context.Context, l leases.Lease) (leases.Lease, error) {
		return lm.Create(ctx, leases.WithID(l.ID), leases.WithLabels(l.Labels))
	})
	on(s, leaseDelete, func(ctx context.Context, l leased) (none, error) {
		var opts []leases.DeleteOpt
		if l.Sync {
			opts = append(opts, leases.SynchronousDelete)
		}
		return none{}, lm.Delete(ctx, leases.Lease{ID: l.Lease}, opts...)
	})
	on(s, leaseList, func(ctx context.Context, filters []string) ([]leases.Lease, error) { return lm.List(ctx, filters...) })
	on(s, leaseAdd, func(ctx context.Context, l leased) (none, error) {
		if l.New {
			return none{}, s.stores.LeaseWith(ctx, leases.Lease{ID: l.Lease, Labels: l.Labels}, l.Resource)
		}
		if has, err := lm.ListResources(ctx, leases.Lease{ID: l.Lease}); err == nil && slices.Contains(has, l.Resource) {
			return none{}, nil // nothing is to be written
		}
		return none{}, lm.AddResource(ctx, leases.Lease{ID: l.Lease}, l.Resource)
	})
	on(s, leaseRemove, func(ctx context.Context, l leased) (none, error) {
		return none{}, lm.DeleteResource(ctx, leases.Lease{ID: l.Lease}, l.Resource)
	})
	on(s, leaseResources, lm.ListResources)
}

func (s *Server) registerImages() {
	im := s.stores.Images
	on(s, imageGet, im.Get)
	on(s, imageList, func(ctx context.Context, filters []string) ([]images.Image, error) { return im.List(ctx, filters...) })
	on(s, imageCreate, im.Create)
	on(s, imageUpdate, func(ctx context.Context, u updated[images.Image]) (images.Image, error) {
		return im.Update(ctx, u.Value, u.Fields...)
	})
	on(s, imageDelete, func(ctx context.Context, name string) (none, error) { return none{}, im.Delete(ctx, name) })
	on(s, imageBuilt, only(s.stores.Layers.Built))
	on(s, layerAdopt, func(ctx context.Context, a adopted) (none, error) {
		return none{}, s.stores.Layers.Adopt(ctx, a.Chain, a.Snapshot)
	})
}
