// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"context"
	"errors"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/contenthash"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/llbsolver/ops/fileoptypes"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/worker"
	"github.com/opencontainers/go-digest"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"

	"holdfast/internal/buildserver/largefile"
)

// reads is what an operation reads of an input.
type reads struct {
	path string
	opts contenthash.ChecksumOpts
}

// CacheMap describes how the operation is cached: by the hash of what it copies. BuildKit
// hashes one file to its end. The large ones are hashed here first, into the same cache,
// and that ends when the build is cancelled.
func (o *fileOp) CacheMap(ctx context.Context, job solver.JobContext, index int) (*solver.CacheMap, bool, error) {
	m, done, err := o.Op.CacheMap(ctx, job, index)
	if err != nil || m == nil {
		return m, done, err
	}
	all := readByCopies(o.op, len(m.Deps))
	for i := range m.Deps {
		hash := m.Deps[i].ComputeDigestFunc
		if hash == nil || len(all[i]) == 0 {
			continue
		}
		m.Deps[i].ComputeDigestFunc = func(ctx context.Context, res solver.Result, g session.Group) (digest.Digest, error) {
			if ref, ok := res.Sys().(*worker.WorkerRef); ok && ref.ImmutableRef != nil {
				if err := hashLarge(ctx, ref.ImmutableRef, g, all[i]); err != nil {
					return "", err
				}
			}
			return hash(ctx, res, g)
		}
	}
	return m, done, nil
}

// readByCopies returns what the copies of an operation read of its inputs.
func readByCopies(op *pb.FileOp, inputs int) map[int][]reads {
	all := map[int][]reads{}
	for _, a := range op.Actions {
		from := int(a.SecondaryInput)
		if c := a.GetCopy(); c != nil && from >= 0 && from < inputs {
			all[from] = append(all[from], reads{path.Join("/", c.Src), contenthash.ChecksumOpts{
				FollowLinks: c.FollowSymlink, Wildcard: c.AllowWildcard && strings.ContainsAny(c.Src, `*?[\`),
				IncludePatterns: c.IncludePatterns, ExcludePatterns: c.ExcludePatterns,
			}})
		}
	}
	return all
}

// errUnread is the error of unread.
var errUnread = errors.New("not hashed yet")

// unread is an input that can't be read, for questions to the cache of hashes alone.
type unread struct{}

func (unread) Mount(context.Context, bool, session.Group) (snapshot.Mountable, error) {
	return nil, errUnread
}

// hashLarge hashes the large files that are read of ref and are not hashed yet.
func hashLarge(ctx context.Context, ref cache.ImmutableRef, g session.Group, of []reads) error {
	md, ok := ref.GetEqualMutable()
	if !ok {
		md = ref
	}
	hashes, err := contenthash.GetCacheContext(ctx, md)
	if err != nil {
		return err
	}
	known := func(p string, o contenthash.ChecksumOpts) bool {
		_, err := hashes.Checksum(ctx, unread{}, p, o, g)
		return !errors.Is(err, errUnread)
	}
	var unhashed []reads
	for _, r := range of {
		if !known(r.path, r.opts) {
			unhashed = append(unhashed, r)
		}
	}
	if len(unhashed) == 0 {
		return nil
	}
	mounted, err := ref.Mount(ctx, true, g)
	if err != nil {
		return err
	}
	lm := snapshot.LocalMounter(mounted)
	root, err := lm.Mount()
	if err != nil {
		return err
	}
	defer func() { _ = lm.Unmount() }() // what remains is removed with the next process
	scanned := false
	for _, r := range unhashed {
		files, err := largeOf(ctx, root, r)
		if err != nil {
			return err
		}
		for _, f := range files {
			if !scanned {
				// A change can be recorded only of what was scanned. Nothing matches.
				if _, err := hashes.Checksum(ctx, ref, "/"+unmatched, contenthash.ChecksumOpts{Wildcard: true}, g); err != nil {
					return err
				}
				scanned = true
			}
			if known(path.Join("/", f.Path), contenthash.ChecksumOpts{}) {
				continue
			}
			if err := hashFile(ctx, hashes, root, f); err != nil {
				return err
			}
		}
	}
	if !scanned {
		return nil
	}
	return contenthash.SetCacheContext(ctx, md, hashes)
}

// unmatched is a pattern that no name matches.
const unmatched = "[^\x01-\U0010ffff]"

// largeOf returns the large files that r reads.
func largeOf(ctx context.Context, root string, r reads) ([]largefile.File, error) {
	p := r.path
	if r.opts.Wildcard {
		p = path.Dir(p[:strings.IndexAny(p, `*?[\`)] + "x")
	}
	real, err := realPath(root, p, r.opts.FollowLinks || r.opts.Wildcard)
	if err != nil {
		return nil, err
	}
	return largefile.Find(ctx, root, real)
}

// hashFile records the hash of a large file.
func hashFile(ctx context.Context, hashes contenthash.CacheContext, root string, f largefile.File) error {
	at := filepath.Join(root, f.Path)
	h, err := contenthash.NewFileHash(at, f.Info)
	if err != nil {
		return err
	}
	if err := largefile.Feed(ctx, h, at); err != nil {
		return err
	}
	return hashes.HandleChange(fsutil.ChangeKindModify, f.Path, hashedFile{f.Info, digest.NewDigest(digest.SHA256, h)}, nil)
}

// hashedFile is a file with its hash, as the cache of hashes wants it.
type hashedFile struct {
	os.FileInfo
	digest digest.Digest
}

func (f hashedFile) Digest() digest.Digest { return f.digest }
func (f hashedFile) Sys() any              { return &fstypes.Stat{} }

// result is a result of an operation on files.
func (o *fileOp) result(out fileoptypes.Ref) solver.Result {
	return worker.NewWorkerRefResult(out.(cache.ImmutableRef), o.worker)
}
