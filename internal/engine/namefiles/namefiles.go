// SPDX-License-Identifier: Apache-2.0

// Package namefiles writes the files from which the containers' shims answer DNS
// queries: one for each user-defined network, with the containers on it, and one for
// each container, with its networks, links and upstream servers. A file is replaced
// by renaming, so a shim never reads a part of it. The format is that of package
// names. This package knows neither containers nor networks; the engine derives the
// places from its records.
package namefiles

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"holdfast/internal/shim/names"
)

// Place is a container on a user-defined network, as other containers find it.
type Place struct {
	Network, Name string   // the network's ID and name
	Container     string   // the container's name
	Names         []string // its other names
	Addresses     []netip.Addr
}

// Files are the networks' files. Until Begin they are not written.
type Files struct {
	dir     string
	subnets func(networkID string) []netip.Prefix
	log     *slog.Logger

	mu       sync.Mutex        // guards all below, and is held while the files are written
	written  map[string][]byte // by path
	complete bool              // all containers are known; see Begin
}

// New returns the files in a folder, which need not exist.
func New(dir string, subnets func(networkID string) []netip.Prefix, log *slog.Logger) *Files {
	return &Files{dir: dir, subnets: subnets, log: log}
}

// Path returns the path of a network's file.
func (f *Files) Path(networkID string) string {
	return filepath.Join(f.dir, networkID+".json")
}

// Begin begins to write the files. It is called when all containers are known: files
// that are written earlier would lack the names of the others, which would not
// resolve meanwhile. With clean, files of an earlier daemon that no place needs are
// removed.
func (f *Files) Begin(clean bool, places func() []Place) {
	written := map[string][]byte{}
	if clean {
		written = writtenFiles(f.dir)
	}
	f.mu.Lock()
	f.complete, f.written = true, written
	f.mu.Unlock()
	f.Update(places)
}

// Update writes the files from the containers' places, which it reads while no other
// Update runs. Files that are up to date are not written, and those of networks
// without a place are removed.
func (f *Files) Update(places func() []Place) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.complete {
		return
	}
	nets := map[string]*names.Network{}
	for _, p := range places() {
		n := nets[p.Network]
		if n == nil {
			n = &names.Network{Schema: names.Schema, Name: p.Name}
			for _, s := range f.subnets(p.Network) {
				n.Subnets = append(n.Subnets, s.String())
			}
			nets[p.Network] = n
		}
		m := names.Member{Name: p.Container, Names: p.Names}
		for _, a := range p.Addresses {
			m.Addresses = append(m.Addresses, a.String())
		}
		n.Members = append(n.Members, m)
	}
	if len(nets) == 0 && len(f.written) == 0 {
		return
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		f.log.Error("the files of names could not be updated", "error", err)
		return
	}
	for id, n := range nets {
		slices.SortFunc(n.Members, func(a, b names.Member) int { return strings.Compare(a.Name, b.Name) })
		if err := f.put(f.Path(id), n); err != nil {
			f.log.Error("the file of a network's names could not be updated", "network", n.Name, "error", err)
		}
	}
	for path := range maps.Clone(f.written) {
		id := filepath.Base(path[:len(path)-len(".json")])
		if nets[id] == nil {
			os.Remove(path)
			delete(f.written, path)
		}
	}
}

// put replaces a file if its content has changed. It is not synced, because the exec
// root need not survive a reboot.
func (f *Files) put(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if bytes.Equal(f.written[path], b) {
		return nil
	}
	if err := replace(path, b); err != nil {
		return err
	}
	f.written[path] = b
	return nil
}

// writtenFiles returns the files of an earlier daemon and their contents. They may
// include files of networks without containers, if that daemon died before it
// removed them.
func writtenFiles(dir string) map[string][]byte {
	out := map[string][]byte{}
	entries, _ := os.ReadDir(dir) // the first daemon finds no folder
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		if filepath.Ext(path) != ".json" {
			os.Remove(path) // a temporary file that was not renamed
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			b = nil // differs from any content, so that it is replaced or removed
		}
		out[path] = b
	}
	return out
}

// View is what a container's name server answers from.
type View struct {
	Networks []string // the files of networks, in the order in which they are searched
	// Links are "name:alias" or "name". A later one takes precedence.
	Links    []string
	Upstream []netip.Addr // servers for all other names
}

// WriteView writes the file of a container's name server.
func (f *Files) WriteView(path string, v View) error {
	file := names.View{Schema: names.Schema, Networks: v.Networks, Links: map[string]string{}}
	addLinks(file.Links, v.Links)
	for _, a := range v.Upstream {
		file.Upstream = append(file.Upstream, netip.AddrPortFrom(a, 53).String())
	}
	b, err := json.Marshal(file)
	if err != nil {
		return err
	}
	return replace(path, b)
}

func replace(path string, b []byte) error {
	if err := os.WriteFile(path+".tmp", b, 0o640); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// addLinks parses links, "name:alias" or "name", and adds them to a map from alias to
// name.
func addLinks(to map[string]string, links []string) {
	for _, l := range links {
		name, alias := l, l
		for i := range l {
			if l[i] == ':' {
				name, alias = l[:i], l[i+1:]
				break
			}
		}
		to[filepath.Base(alias)] = filepath.Base(name)
	}
}
