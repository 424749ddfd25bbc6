// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/continuity/fs"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/llbsolver/file"
	"github.com/moby/buildkit/solver/llbsolver/ops"
	"github.com/moby/buildkit/solver/llbsolver/ops/fileoptypes"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/worker"
	goarchive "github.com/moby/go-archive"
	"github.com/moby/go-archive/chrootarchive"
	"github.com/moby/go-archive/compression"
	"github.com/tonistiigi/fsutil"
	fscopy "github.com/tonistiigi/fsutil/copy"

	"holdfast/internal/buildserver/largefile"
)

// ResolveOp returns the operation of a step. The operations on files are BuildKit's, but
// end when the build is cancelled: BuildKit copies, unpacks and hashes one file to
// its end.
func (w *stepWorker) ResolveOp(v solver.Vertex, bridge frontend.FrontendLLBBridge, sm *session.Manager, proxy worker.ProxyOpt) (solver.Op, error) {
	described, known := v.Sys().(*pb.Op)
	if known {
		if err := w.runs(described); err != nil {
			return nil, err
		}
	}
	op, err := w.Worker.ResolveOp(v, bridge, sm, proxy)
	if err != nil || !known {
		return op, err
	}
	if of := described.GetFile(); of != nil {
		return &fileOp{op, w, v.Name(), of}, nil
	}
	return op, nil // BuildKit records the origin of images by the type of the others
}

// fileOp is a COPY or an ADD, or an operation of a frontend on files.
type fileOp struct {
	solver.Op
	worker *stepWorker
	name   string
	op     *pb.FileOp
}

func (o *fileOp) Exec(ctx context.Context, job solver.JobContext, inputs []solver.Result) ([]solver.Result, error) {
	refs := make([]fileoptypes.Ref, 0, len(inputs))
	for _, in := range inputs {
		ref, ok := in.Sys().(*worker.WorkerRef)
		if !ok {
			return nil, fmt.Errorf("a step on files has an input of type %T", in.Sys())
		}
		refs = append(refs, ref.ImmutableRef)
	}
	stock, err := file.NewFileOpBackend(readOwner)
	if err != nil {
		return nil, err
	}
	solved := ops.NewFileOpSolver(o.worker, &fileBackend{stock, o.worker.scratch}, file.NewRefManager(o.worker.CacheMgr, o.name))
	outs, err := solved.Solve(ctx, refs, o.op.Actions, job.Session())
	if err != nil {
		return nil, err
	}
	results := make([]solver.Result, 0, len(outs))
	for _, out := range outs {
		results = append(results, o.result(out))
	}
	return results, nil
}

// fileBackend is BuildKit's, with a copy that can be cancelled.
type fileBackend struct {
	*file.Backend
	scratch string // directory for the views of sources
}

func (b *fileBackend) Copy(ctx context.Context, from, to, user, group fileoptypes.Mount, action *pb.FileActionCopy) error {
	src, dst := snapshot.LocalMounter(mountable(from)), snapshot.LocalMounter(mountable(to))
	srcRoot, err := src.Mount()
	if err != nil {
		return err
	}
	defer func() { _ = src.Unmount() }() // what remains is removed with the next process
	dstRoot, err := dst.Mount()
	if err != nil {
		return err
	}
	defer func() { _ = dst.Unmount() }()
	owner, err := readOwner(action.Owner, mountable(user), mountable(group))
	if err != nil {
		return err
	}
	c := &copying{action: action, from: srcRoot, to: dstRoot, dest: cleanPath(action.Dest), owner: owner, scratch: b.scratch}
	return c.shorten(c.run(ctx))
}

func mountable(m fileoptypes.Mount) snapshot.Mountable {
	if m, ok := m.(*file.Mount); ok && m != nil {
		return m.Mountable()
	}
	return nil
}

// copying is one copy: of a path, or of all that a pattern matches.
type copying struct {
	action   *pb.FileActionCopy
	from, to string // roots
	dest     string // in to
	owner    *fscopy.User
	scratch  string
}

func (c *copying) run(ctx context.Context) error {
	if !c.action.CreateDestPath {
		p, err := fs.RootPath(c.to, filepath.Join("/", c.action.Dest))
		if err != nil {
			return err
		}
		if _, err := os.Lstat(filepath.Dir(p)); err != nil {
			return fmt.Errorf("failed to stat %s: %w", c.action.Dest, err)
		}
	}
	sources := []string{cleanPath(c.action.Src)}
	if c.action.AllowWildcard {
		var err error
		if sources, err = fscopy.ResolveWildcards(c.from, sources[0], c.action.FollowSymlink); err != nil {
			return err
		}
		if len(sources) == 0 && !c.action.AllowEmptyWildcard {
			return fmt.Errorf("%s not found", cleanPath(c.action.Src))
		}
	}
	for _, s := range sources {
		if c.action.AttemptUnpackDockerCompatibility {
			if done, err := c.unpack(ctx, s); err != nil || done {
				if err != nil {
					return err
				}
				continue
			}
		}
		if err := c.copy(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// copy copies a path of the source.
func (c *copying) copy(ctx context.Context, path string) error {
	real, err := realPath(c.from, path, c.action.FollowSymlink)
	if err != nil {
		return err
	}
	large, err := largefile.Find(ctx, c.from, real)
	if err != nil {
		return err
	}
	view, err := largefile.NewView(c.from, c.scratch, large)
	if err != nil {
		return err
	}
	err = fscopy.Copy(ctx, view.Root, path, c.to, c.dest, c.options, fscopy.WithXAttrErrorHandler(unsupportedAttribute), fscopy.WithChangeNotifier(
		func(_ fsutil.ChangeKind, target string, source os.FileInfo, _ error) error {
			return view.Fill(ctx, filepath.Join(c.to, target), source)
		}))
	return errors.Join(err, view.Close())
}

func (c *copying) options(o *fscopy.CopyInfo) {
	o.IncludePatterns, o.ExcludePatterns = c.action.IncludePatterns, c.action.ExcludePatterns
	o.Chown, o.Utime = c.chown, c.time()
	o.ModeStr = c.action.ModeStr
	if mode := int(c.action.Mode); mode != -1 && o.ModeStr == "" {
		o.Mode = &mode
	}
	o.CopyDirContents, o.FollowLinks = c.action.DirCopyContents, c.action.FollowSymlink
	o.AlwaysReplaceExistingDestPaths = c.action.AlwaysReplaceExistingDestPaths
}

// unsupportedAttribute records that an attribute could not be copied, which is no
// failure of the copy.
func unsupportedAttribute(_, _, _ string, err error) error {
	logf("%v", err)
	return nil
}

// chown returns the owner of the copy of a file, or nil for the default of what has none
// before.
func (c *copying) chown(old *fscopy.User) (*fscopy.User, error) {
	if c.owner != nil {
		own := *c.owner
		return &own, nil
	}
	return old, nil
}

// time is what the copies get as their time of modification; nil is that of the source.
func (c *copying) time() *time.Time {
	if c.action.Timestamp == -1 {
		return nil
	}
	t := time.Unix(0, c.action.Timestamp)
	return &t
}

// unpack unpacks path if it is an archive, as ADD does, and reports whether it is one.
func (c *copying) unpack(ctx context.Context, path string) (bool, error) {
	real, err := fs.RootPath(c.from, path)
	if err != nil {
		return false, err
	}
	f, err := openArchive(real)
	if f == nil || err != nil {
		return false, err
	}
	defer f.Close()
	dest, err := fs.RootPath(c.to, c.dest)
	if err != nil {
		return false, err
	}
	if _, err := fscopy.MkdirAll(dest, 0o755, c.chown, c.time()); err != nil {
		return false, err
	}
	plain, err := compression.DecompressStream(f)
	if err != nil {
		return false, err
	}
	defer plain.Close()
	o := &goarchive.TarOptions{BestEffortXattrs: true}
	if c.owner != nil {
		o.ChownOpts = &goarchive.ChownOpts{UID: c.owner.UID, GID: c.owner.GID}
	}
	return true, chrootarchive.UntarUncompressed(largefile.Reader(ctx, plain), dest, o)
}

// openArchive opens a tar archive, which may be compressed. It returns nil if the file is
// anything else.
func openArchive(path string) (_ *os.File, err error) {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() {
		return nil, nil //nolint:nilerr // the copy reports what is missing
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	is, err := isArchive(f)
	if err == nil && is {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil || !is {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func isArchive(f *os.File) (bool, error) {
	plain, err := compression.DecompressStream(f)
	if err != nil {
		var missing *exec.Error // the program that decompresses it
		if errors.As(err, &missing) {
			return false, err
		}
		return false, nil
	}
	defer plain.Close()
	_, err = tar.NewReader(plain).Next()
	return err == nil, nil
}

// shorten takes the roots out of the path that an error names.
func (c *copying) shorten(err error) error {
	var at *os.PathError
	if errors.As(err, &at) {
		at.Path = strings.TrimPrefix(strings.TrimPrefix(at.Path, c.from), c.to)
	}
	return err
}

// realPath resolves the links in a path, that in its last element only if follow is set.
func realPath(root, path string, follow bool) (string, error) {
	path = filepath.Join("/", path)
	if follow || path == "/" {
		return fs.RootPath(root, path)
	}
	dir, err := fs.RootPath(root, filepath.Dir(path))
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(path)), nil
}

// cleanPath cleans a path and keeps "/" and "/." at its end, which have a meaning for
// copies.
func cleanPath(path string) string {
	clean := filepath.Join("/", path)
	for _, end := range []string{"/", "/."} {
		if strings.HasSuffix(path, end) && (clean != "/" || end == "/.") {
			return strings.TrimSuffix(clean, "/") + end
		}
	}
	return clean
}
