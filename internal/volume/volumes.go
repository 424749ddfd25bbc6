// SPDX-License-Identifier: Apache-2.0

// Package volume owns volumes/ of the data root: the volumes of the local driver,
// their mounts, and their initial content.
//
//	volumes/<name>/
//	  meta.json      schema 1: what the volume was created with
//	  _data/         the volume; options are mounted on it while it is in use
//	  .filling/      a copy of an image's contents that is under way
//	  .filled/       the same, complete, on its way into _data
//	volumes/.creating-*, .removing-*   begun; finished or undone at Open
//
// A volume's options are mounted while a container runs that uses it. The caller
// reports from its records which containers use which volume; no reference counts
// are stored. The package changes nothing outside of its directory, except for
// what a user's own options name.
package volume

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/volume"
	"golang.org/x/sys/unix"

	"holdfast/internal/durable"
	"holdfast/internal/errs"
)

const (
	// Driver is the only driver.
	Driver = "local"
	// AnonymousLabel marks a volume that was created without a name.
	AnonymousLabel = "com.docker.volume.anonymous"

	metaSchema = 1
	metaFile   = "meta.json"
	dataDir    = "_data"
	creating   = ".creating-"
	removing   = ".removing-"
)

// CreateOptions are the arguments of POST /volumes/create.
type CreateOptions struct {
	Name       string // empty means a generated name of 64 hexadecimal digits
	Driver     string // empty means local
	DriverOpts map[string]string
	Labels     map[string]string
}

// Options of Open.
type Options struct {
	// InUse returns the containers whose records refer to a volume, running or not.
	// It must not call into the package.
	InUse func(name string) []string
}

// meta is the content of meta.json.
type meta struct {
	Schema  int               `json:"schema"`
	Name    string            `json:"name"`
	Created time.Time         `json:"created"`
	Options map[string]string `json:"options,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
}

// entry is one volume. Its mutex is held while its files are changed. Lock order:
// an entry's mutex, then Volumes.mu.
type entry struct {
	mu   sync.Mutex
	meta meta
	gone bool
	refs map[string]struct{} // running containers that it is mounted for
	held int                 // creates in progress that will refer to it
}

// Volumes manages the volumes of a host. Its methods may be called concurrently.
type Volumes struct {
	dir   string
	inUse func(string) []string

	mu      sync.Mutex
	entries map[string]*entry
	broken  []error
}

// Open reads the volumes in dir and finishes what a crash interrupted. A volume
// whose meta.json can't be read is left alone and reported by Broken.
func Open(dir string, opts Options) (*Volumes, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open volumes: %w", err)
	}
	v := &Volumes{inUse: opts.InUse, entries: map[string]*entry{}}
	if v.inUse == nil {
		v.inUse = func(string) []string { return nil }
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open volumes: %w", err)
	}
	// The kernel lists mounts by their real paths.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, fmt.Errorf("open volumes: %w", err)
	}
	v.dir = dir
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open volumes: %w", err)
	}
	for _, n := range names {
		name := n.Name()
		switch {
		case strings.HasPrefix(name, creating), strings.HasPrefix(name, removing):
			// A directory that can't be deleted, because something is mounted on it, is
			// left for the next Open.
			if err := v.delete(filepath.Join(dir, name)); err != nil {
				v.broken = append(v.broken, err)
			}
		case n.IsDir():
			m, err := readMeta(filepath.Join(dir, name, metaFile))
			if err == nil && m.Name != name {
				err = fmt.Errorf("%s belongs to the volume %q: %w", filepath.Join(dir, name, metaFile), m.Name, errdefs.ErrDataLoss)
			}
			if err != nil {
				v.broken = append(v.broken, err)
				continue
			}
			v.entries[name] = &entry{meta: m, refs: map[string]struct{}{}}
		}
	}
	return v, nil
}

// Broken returns what Open could not read or finish.
func (v *Volumes) Broken() []error { return v.broken }

func readMeta(path string) (m meta, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return m, fmt.Errorf("read volume: %w", err)
	}
	// Check the schema first: a file of a newer schema may not even decode.
	var top struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(text, &top); err == nil && top.Schema > metaSchema {
		return m, fmt.Errorf("%s was written by a newer release: its schema is %d, this release reads up to %d: %w", path, top.Schema, metaSchema, errdefs.ErrFailedPrecondition)
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, fmt.Errorf("%s is damaged: %w: %w", path, err, errdefs.ErrDataLoss)
	}
	return m, nil
}

var (
	validName    = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)
	validOptions = []string{"device", "o", "size", "type"}
)

func checkName(name string) error {
	if len(name) == 1 {
		return errs.Invalid("create %s: volume name is too short, names should be at least two alphanumeric characters", name)
	}
	if !validName.MatchString(name) {
		return errs.Invalid("create %s: %q includes invalid characters for a local volume name, only %q are allowed. If you intended to pass a host directory, use absolute path", name, name, "[a-zA-Z0-9][a-zA-Z0-9_.-]")
	}
	if len(name) > 255-len(removing) {
		return errs.Invalid("create %s: volume name %q is too long: use at most %d characters", name, name, 255-len(removing))
	}
	return nil
}

func checkOptions(name string, opts map[string]string) error {
	bad := func(format string, args ...any) error {
		return errs.Invalid("create %s: "+format, append([]any{name}, args...)...)
	}
	for _, k := range slices.Sorted(maps.Keys(opts)) {
		if !slices.Contains(validOptions, k) {
			return bad("invalid option: %q", k)
		}
	}
	if opts["size"] != "" {
		return bad("quota size requested but no quota support")
	}
	for _, need := range []struct {
		option string
		also   []string
	}{{"device", []string{"type"}}, {"type", []string{"device"}}, {"o", []string{"device", "type"}}} {
		if _, ok := opts[need.option]; !ok {
			continue
		}
		for _, k := range need.also {
			if _, ok := opts[k]; !ok {
				return bad("missing required option: %q", k)
			}
		}
	}
	return nil
}

// Create creates a volume. If one of the same name and options exists it is
// returned, with created false. Errors: ErrInvalidArgument, ErrNotFound for
// another driver, ErrConflict for other options.
func (v *Volumes) Create(opts CreateOptions) (vol volume.Volume, created bool, err error) {
	if opts.Driver != "" && opts.Driver != Driver {
		return volume.Volume{}, false, errs.NotFound("create %s: error looking up volume plugin %s: plugin %q not found", opts.Name, opts.Driver, opts.Driver)
	}
	m := meta{Schema: metaSchema, Name: opts.Name, Created: time.Now().UTC(), Options: maps.Clone(opts.DriverOpts), Labels: maps.Clone(opts.Labels)}
	if m.Name == "" {
		var b [32]byte
		rand.Read(b[:])
		m.Name = hex.EncodeToString(b[:])
		if m.Labels == nil {
			m.Labels = map[string]string{}
		}
		m.Labels[AnonymousLabel] = ""
	}
	if err := checkName(m.Name); err != nil {
		return volume.Volume{}, false, err
	}
	if err := checkOptions(m.Name, m.Options); err != nil {
		return volume.Volume{}, false, err
	}

	v.mu.Lock()
	defer v.mu.Unlock()
	if have, ok := v.entries[m.Name]; ok {
		if len(m.Options) > 0 && !maps.Equal(m.Options, have.meta.Options) {
			return volume.Volume{}, false, errs.Conflict("create %s: a volume named %s already exists with other options: choose a different volume name", m.Name, m.Name)
		}
		return v.describe(have), false, nil
	}
	if err := v.write(m); err != nil {
		return volume.Volume{}, false, fmt.Errorf("create %s: %w", m.Name, err)
	}
	e := &entry{meta: m, refs: map[string]struct{}{}}
	v.entries[m.Name] = e
	return v.describe(e), true, nil
}

// write creates the volume's directory under another name and renames it.
func (v *Volumes) write(m meta) (err error) {
	text, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return err
	}
	temp, err := os.MkdirTemp(v.dir, creating)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(temp)
		}
	}()
	if err := os.Chmod(temp, 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(temp, dataDir), 0o755); err != nil {
		return err
	}
	// The umask must not restrict what a container may read.
	if err := os.Chmod(filepath.Join(temp, dataDir), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(temp, metaFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(append(text, '\n')); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	// The names in the directory, too: on btrfs a sync of the parent makes the
	// directory's own name durable and not those in it, and a volume without its
	// data directory can't be used.
	if err := durable.SyncDir(temp); err != nil {
		return err
	}
	// An existing directory that is not a volume is a broken one.
	if err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, v.path(m.Name), unix.RENAME_NOREPLACE); err != nil {
		return &os.PathError{Op: "rename", Path: v.path(m.Name), Err: err}
	}
	return durable.SyncDir(v.dir)
}

func (v *Volumes) path(name string) string { return filepath.Join(v.dir, name) }

func (v *Volumes) data(name string) string { return filepath.Join(v.dir, name, dataDir) }

func (v *Volumes) describe(e *entry) volume.Volume {
	out := volume.Volume{
		CreatedAt:  e.meta.Created.Format(time.RFC3339),
		Driver:     Driver,
		Labels:     maps.Clone(e.meta.Labels),
		Mountpoint: v.data(e.meta.Name),
		Name:       e.meta.Name,
		Options:    maps.Clone(e.meta.Options),
		Scope:      "local",
	}
	return out
}

// find returns the volume without locking it.
func (v *Volumes) find(name string) (*entry, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e, ok := v.entries[name]
	if !ok {
		return nil, noSuch(name)
	}
	return e, nil
}

func noSuch(name string) error {
	return errs.NotFound("get %s: no such volume", name)
}

// lock returns the volume, locked. The caller unlocks it.
func (v *Volumes) lock(name string) (*entry, error) {
	e, err := v.find(name)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	if e.gone {
		e.mu.Unlock()
		return nil, noSuch(name)
	}
	return e, nil
}

// List returns all volumes, sorted by name.
func (v *Volumes) List() []volume.Volume {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := make([]volume.Volume, 0, len(v.entries))
	for _, name := range slices.Sorted(maps.Keys(v.entries)) {
		out = append(out, v.describe(v.entries[name]))
	}
	return out
}

// Get returns one volume, or ErrNotFound.
func (v *Volumes) Get(name string) (volume.Volume, error) {
	e, err := v.find(name)
	if err != nil {
		return volume.Volume{}, err
	}
	return v.describe(e), nil
}

// Path returns the directory of a volume's content, or ErrNotFound. The options
// are mounted there between Mount and Unmount.
func (v *Volumes) Path(name string) (string, error) {
	if _, err := v.find(name); err != nil {
		return "", err
	}
	return v.data(name), nil
}

// Anonymous reports whether a volume was created without a name.
func Anonymous(vol volume.Volume) bool {
	_, ok := vol.Labels[AnonymousLabel]
	return ok
}

// Hold keeps a volume from being removed until release is called. It covers the
// time between the decision to use the volume and the record of it. Error:
// ErrNotFound.
func (v *Volumes) Hold(name string) (release func(), err error) {
	e, err := v.lock(name)
	if err != nil {
		return nil, err
	}
	e.held++
	e.mu.Unlock()
	return sync.OnceFunc(func() {
		e.mu.Lock()
		e.held--
		e.mu.Unlock()
	}), nil
}

// Remove deletes a volume with its content. What its options mount is unmounted
// and never deleted. Errors: ErrNotFound, ErrConflict while a container's record
// refers to it.
func (v *Volumes) Remove(name string) error {
	e, err := v.lock(name)
	if err != nil {
		return err
	}
	defer e.mu.Unlock()
	users := v.inUse(name)
	for ref := range e.refs {
		if !slices.Contains(users, ref) {
			users = append(users, ref)
		}
	}
	if len(users) > 0 || e.held > 0 {
		if len(users) == 0 {
			users = []string{"a container that is being created"}
		}
		return errs.Conflict("remove %s: volume is in use - [%s]", name, strings.Join(users, ", "))
	}
	if err := unmountAll(v.path(name)); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	// The name is free as soon as the volume has another one. A volume that is created
	// with it may be removed while this one is still deleted, so each gets a directory of
	// its own.
	gone, err := os.MkdirTemp(v.dir, removing)
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	// os.Rename refuses to replace a directory, also an empty one.
	if err := unix.Rename(v.path(name), gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		_ = os.Remove(gone) // empty; the next Open would remove it, too
		return fmt.Errorf("remove %s: %w", name, err)
	}
	e.gone = true
	v.forget(name)
	if err := durable.SyncDir(v.dir); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	if err := v.delete(gone); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

func (v *Volumes) forget(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.entries, name)
}

// delete removes a directory of the tree. It first makes sure that nothing is
// mounted below it, because the content of another file system must not be
// deleted.
func (v *Volumes) delete(path string) error {
	below, err := mountsBelow(path)
	if err != nil {
		return err
	}
	if len(below) > 0 {
		if err := unmountAll(path); err != nil {
			return err
		}
	}
	return os.RemoveAll(path)
}
