// SPDX-License-Identifier: Apache-2.0

package stores

import (
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// reads remembers answers about blobs and layers as long as the daemon's database of them
// is unchanged. A build asks for the same ones again and again.
//
// Each transaction that changes the database replaces one of the two meta pages at the
// beginning of its file, before any reader can see the change. As long as their bytes are
// the same, an answer is what the daemon would say now. It is also right while no daemon
// lives. Only answers without an error are remembered.
type reads struct {
	database string

	mu    sync.Mutex
	state dbState
	texts map[string][]byte // by question
	blobs []asked           // the blobs that were asked for most recently
}

// asked is a blob that was asked for in a namespace.
type asked struct {
	namespace string
	blob      digest.Digest
}

// maxTogether bounds how many blobs one call asks for.
const maxTogether = 32

// remembered are the calls whose answers depend on the database alone.
var remembered = []string{string(contentInfo), string(snapshotStat)}

// Of bbolt's file format: the meta page has a header of 16 bytes, and begins with a magic
// number.
const (
	metaSize   = 80
	metaHeader = 16
	metaMagic  = 0xED0CDAED
)

// maxRemembered bounds the number of answers.
const maxRemembered = 4096

// dbState identifies a state of the database: its file and the two meta pages.
type dbState struct {
	inode uint64
	meta  [2][metaSize]byte
}

// now returns the database's state. ok is false if it can't be told.
func (r *reads) now() (s dbState, ok bool) {
	if r == nil || r.database == "" {
		return s, false
	}
	// Package os would make the file known to the poller, which takes longer than the rest.
	fd, err := unix.Open(r.database, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return s, false
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return s, false
	}
	s.inode = st.Ino
	for n := range s.meta {
		if got, err := unix.Pread(fd, s.meta[n][:], int64(n*os.Getpagesize())); err != nil || got != metaSize {
			return s, false
		}
		if binary.NativeEndian.Uint32(s.meta[n][metaHeader:]) != metaMagic {
			return s, false // pages have another size
		}
	}
	return s, true
}

// recall returns the answer to a question in a state.
func (r *reads) recall(s dbState, question string) (text []byte, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state != s {
		return nil, false
	}
	text, ok = r.texts[question]
	return text, ok
}

// has reports whether the answer to a question is remembered.
func (r *reads) has(s dbState, question string) bool {
	_, ok := r.recall(s, question)
	return ok
}

// question identifies a call with its argument.
func question[A, R any](method call[A, R], namespace string, a A) string {
	return fmt.Sprint(string(method), " ", namespace, " ", a)
}

// note remembers an answer. s is the state before the question was asked.
func (r *reads) note(s dbState, question string, text []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state != s || r.texts == nil || len(r.texts) >= maxRemembered {
		r.state, r.texts = s, map[string][]byte{}
	}
	r.texts[question] = text
}

// together returns a blob and those that were asked for before, of a namespace. After a
// change of the database a build asks for all of them again.
func (r *reads) together(a asked) (all []digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs = slices.DeleteFunc(r.blobs, func(b asked) bool { return b == a })
	r.blobs = append(r.blobs, a)
	if len(r.blobs) > maxTogether {
		r.blobs = slices.Delete(r.blobs, 0, len(r.blobs)-maxTogether)
	}
	for _, b := range r.blobs {
		if b.namespace == a.namespace {
			all = append(all, b.blob)
		}
	}
	return all
}

// forget removes blobs that are no longer there.
func (r *reads) forget(namespace string, gone []digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs = slices.DeleteFunc(r.blobs, func(b asked) bool { return b.namespace == namespace && slices.Contains(gone, b.blob) })
}

// changes reports whether an update of a blob's labels changes any. An update that
// changes nothing need not be written.
func changes(old, update content.Info, fields []string) bool {
	if len(fields) == 0 {
		return true
	}
	return slices.ContainsFunc(fields, func(field string) bool {
		if field == "labels" {
			return !maps.Equal(old.Labels, update.Labels)
		}
		key, ok := strings.CutPrefix(field, "labels.")
		if !ok {
			return true
		}
		value, has := old.Labels[key]
		return value != update.Labels[key] || has != (update.Labels[key] != "")
	})
}
