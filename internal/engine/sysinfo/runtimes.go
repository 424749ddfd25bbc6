// SPDX-License-Identifier: Apache-2.0

package sysinfo

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"holdfast/internal/config"
	"holdfast/internal/engine/oci"
)

// runtimePatience bounds how long an OCI runtime may take to print its version.
const runtimePatience = 2 * time.Second

// runtimeBuilds caches the version output of OCI runtimes until their files are
// replaced.
type runtimeBuilds struct {
	mu    sync.Mutex
	known map[string]runtimeBuild // by path
}

type runtimeBuild struct {
	file fileIdentity
	text string // the output of --version
}

// fileIdentity changes with a file's content, even if a package manager preserves the
// modification time.
type fileIdentity struct {
	dev, inode   uint64
	size         int64
	mtime, ctime syscall.Timespec
}

// version returns what the runtime prints for --version; empty if it can't be run.
func (b *runtimeBuilds) version(ctx context.Context, path string) string {
	path, err := exec.LookPath(path)
	if err != nil {
		return ""
	}
	fi, err := os.Stat(path)
	if err != nil {
		return ""
	}
	st := fi.Sys().(*syscall.Stat_t)
	file := fileIdentity{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
	b.mu.Lock()
	known, ok := b.known[path]
	b.mu.Unlock()
	if ok && known.file == file {
		return known.text
	}
	ctx, cancel := context.WithTimeout(ctx, runtimePatience)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "" // not cached: the next call tries again
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.known == nil {
		b.known = map[string]runtimeBuild{}
	}
	b.known[path] = runtimeBuild{file, string(out)}
	return string(out)
}

// commit returns the commit, or else the version output, of an OCI runtime;
// N/A if it can't be run.
func (s *System) commit(ctx context.Context, path string) string {
	text := s.builds.version(ctx, path)
	if text == "" {
		return "N/A"
	}
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "commit: "); ok {
			return v
		}
	}
	return strings.TrimSpace(text)
}

// runtimeWarnings returns a line for each configured OCI runtime with a known
// container escape, ordered by name.
func (s *System) runtimeWarnings(ctx context.Context) []string {
	var (
		all  = s.deps.Config().AllRuntimes
		mu   sync.Mutex
		out  []string
		each sync.WaitGroup
	)
	for name, rt := range all {
		if rt.Path == "" || name == config.ShimRuntime && all[config.StockRuntime].Path == rt.Path {
			continue // both names have the same binary
		}
		each.Go(func() {
			flaws := oci.RuntimeFlaws(s.builds.version(ctx, rt.Path))
			if flaws == "" {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, fmt.Sprintf("the runtime %q (%s) is not safe: %s", name, rt.Path, flaws))
		})
	}
	each.Wait()
	slices.Sort(out)
	return out
}

// WarnOfRuntimes logs which of the configured OCI runtimes have known container
// escapes. It executes the runtimes, so the daemon should not wait for it.
func (s *System) WarnOfRuntimes(ctx context.Context) {
	for _, w := range s.runtimeWarnings(ctx) {
		s.deps.Log.Warn(w)
	}
}
