// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/archutil"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/errs"
)

// How old the list of platforms may be. A step for another platform needs a new one,
// because handlers are installed after a build has failed for want of them, and removed.
const (
	shownAge = 20 * time.Second
	stepAge  = time.Second
)

// hostPlatforms are the host's platform, and those that it can run by binfmt_misc.
type hostPlatforms struct {
	mu  sync.Mutex
	all []ocispec.Platform
	at  time.Time // when they were found out
}

// get returns the platforms as they were not longer ago than age.
func (h *hostPlatforms) get(age time.Duration) []ocispec.Platform {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == nil || time.Since(h.at) > age {
		h.all, h.at = supportedPlatforms(), time.Now()
	}
	return slices.Clone(h.all)
}

// supportedPlatforms finds out the platforms by running a program for each. The caller
// has set archutil.CacheMaxAge to 0.
func supportedPlatforms() []ocispec.Platform {
	all := []ocispec.Platform{platforms.Normalize(platforms.DefaultSpec())}
	for _, p := range archutil.SupportedPlatforms(true) {
		if !platforms.Only(all[0]).Match(p) || p.Architecture != runtime.GOARCH {
			all = append(all, p)
		}
	}
	return all
}

// Platforms returns the host's platform, and then the others. fresh asks for a list that
// can be shown.
func (w *stepWorker) Platforms(fresh bool) []ocispec.Platform {
	if fresh {
		return w.host.get(shownAge)
	}
	return w.host.get(time.Hour)
}

// runs refuses a step for a platform that this host can't run, which would fail with
// "exec format error".
func (w *stepWorker) runs(op *pb.Op) error {
	if op.GetExec() == nil || op.Platform == nil {
		return nil
	}
	want := platforms.Normalize(ocispec.Platform{OS: op.Platform.OS, Architecture: op.Platform.Architecture, Variant: op.Platform.Variant})
	runs := func(p ocispec.Platform) bool { return platforms.Only(p).Match(want) }
	own := func(p ocispec.Platform) bool { return p.Architecture == runtime.GOARCH && runs(p) }
	if slices.ContainsFunc(w.Platforms(false), own) || slices.ContainsFunc(w.host.get(stepAge), runs) || slices.ContainsFunc(w.host.get(0), runs) {
		return nil
	}
	return errs.Unmet("this host can't run programs for %s: install qemu-user-static, or another handler %s of binfmt_misc", platforms.Format(want), handlerOf(want))
}

// handlerOf is the name of the handler in /proc/sys/fs/binfmt_misc.
func handlerOf(p ocispec.Platform) string {
	names := map[string]string{"amd64": "x86_64", "arm64": "aarch64", "386": "i386", "ppc64le": "ppc64le", "loong64": "loongarch64"}
	if name, ok := names[p.Architecture]; ok {
		return "qemu-" + name
	}
	return "qemu-" + p.Architecture
}
