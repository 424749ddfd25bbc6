// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"holdfast/internal/logs/format"
	"holdfast/internal/shim/proto"
)

// record is the only place where the container's State changes. A change is first
// journalled, then written to state.json, then sent to subscribers and waiters, so
// that no one learns of a change that is not on file.
type record struct {
	dir string

	mu      sync.Mutex
	st      proto.State
	attrs   map[string]string
	journal *journal
	sealed  bool // after the last entry, when the files belong to the daemon
	changed chan struct{}
	subs    map[*conn]struct{}
	dropped func() uint64 // lines lost by the log; set once it is open
}

func newRecord(boot *proto.Bootstrap) (*record, error) {
	r := &record{dir: boot.RunDir, attrs: boot.Attributes, changed: make(chan struct{}), subs: map[*conn]struct{}{}}
	// A journal of the same life is continued. One of an earlier life was processed
	// by the daemon.
	var before proto.State
	if b, err := os.ReadFile(filepath.Join(boot.RunDir, proto.StateFile)); err == nil {
		proto.Unmarshal(b, &before)
	}
	same := before.ID == boot.ID && before.Life == boot.Life
	if boot.Adopt != nil && !same {
		return nil, fmt.Errorf("%s is not the state of a shim of this life: there is nothing to adopt", filepath.Join(boot.RunDir, proto.StateFile))
	}
	var err error
	r.journal, err = openJournal(filepath.Join(boot.RunDir, proto.JournalFile), same)
	if err != nil {
		return nil, err
	}
	if same {
		// The last entries may not be in the journal.
		r.journal.seq = max(r.journal.seq, before.Seq)
	}
	if boot.Adopt != nil {
		// What the previous shim recorded still holds.
		r.st = before
		r.st.ShimPid, r.st.Seq = os.Getpid(), r.journal.seq
		return r, r.write()
	}
	bootID, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	r.st = proto.State{
		Schema: proto.StateSchema, ID: boot.ID, Life: boot.Life, Status: proto.StatusCreated,
		ShimPid: os.Getpid(), BootID: strings.TrimSpace(string(bootID)),
		RestartCount: boot.RestartCount, Seq: r.journal.seq, Finished: boot.Finished,
	}
	return r, r.write()
}

// resumeRecord continues a record after a re-exec.
func resumeRecord(boot *proto.Bootstrap, st proto.State) (*record, error) {
	r := &record{dir: boot.RunDir, attrs: boot.Attributes, changed: make(chan struct{}), subs: map[*conn]struct{}{}, st: st}
	var err error
	r.journal, err = openJournal(filepath.Join(boot.RunDir, proto.JournalFile), true)
	if err != nil {
		return nil, err
	}
	r.journal.seq = max(r.journal.seq, st.Seq)
	return r, nil
}

// note is a journal entry to be written with a change.
type note struct {
	action string
	attrs  map[string]string
}

// change applies fn to the state and journals the notes. fn must replace slices and
// pointers in the state and never write through them: subscribers hold older
// copies.
func (r *record) change(fn func(*proto.State), notes ...note) proto.State {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sealed {
		return r.st
	}
	fn(&r.st)
	if r.dropped != nil {
		r.st.LogDropped = r.dropped()
	}
	now := time.Now().UTC()
	entries := make([]proto.Entry, 0, 1)
	for _, n := range notes {
		attrs := make(map[string]string, len(r.attrs)+len(n.attrs))
		maps.Copy(attrs, r.attrs)
		maps.Copy(attrs, n.attrs)
		e := proto.Entry{Time: now, Action: n.action, Attributes: attrs}
		if err := r.journal.append(&e); err != nil {
			logf("journal %s: %v", n.action, err)
		}
		r.st.Seq = r.journal.seq
		entries = append(entries, e)
	}
	if len(entries) == 0 {
		entries = append(entries, proto.Entry{Time: now, Action: proto.ActionState})
	}
	if err := r.write(); err != nil {
		logf("write state: %v", err)
	}
	for _, e := range entries {
		for c := range r.subs {
			c.postEvent(&proto.Event{Entry: e, State: r.st})
		}
	}
	close(r.changed)
	r.changed = make(chan struct{})
	return r.st
}

// discard removes entries up to seq from the journal, which a daemon has in its own.
func (r *record) discard(seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.journal.discard(seq); err != nil {
		logf("shorten the journal: %v", err)
	}
}

// seal makes the current state final.
func (r *record) seal() {
	r.mu.Lock()
	r.sealed = true
	r.mu.Unlock()
}

func (r *record) write() error {
	b, err := proto.Marshal(&r.st)
	if err != nil {
		return err
	}
	path := filepath.Join(r.dir, proto.StateFile)
	if err := os.WriteFile(path+".tmp", b, 0o640); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

func (r *record) snapshot() proto.State {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dropped != nil && !r.sealed {
		r.st.LogDropped = r.dropped()
	}
	return r.st
}

// watch returns the state and a channel that is closed at its next change.
func (r *record) watch() (proto.State, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.st, r.changed
}

// waitFor waits until fn accepts the state, or cancel is closed. It reports false
// if cancelled.
func (r *record) waitFor(cancel <-chan struct{}, fn func(*proto.State) bool) (proto.State, bool) {
	for {
		st, changed := r.watch()
		if fn(&st) {
			return st, true
		}
		select {
		case <-changed:
		case <-cancel:
			return st, false
		}
	}
}

func (r *record) setAttributes(attrs map[string]string) {
	r.mu.Lock()
	r.attrs = attrs
	r.mu.Unlock()
}

// subscribe posts the reply to the connection, then all entries after seq, then new
// ones as they come, without a gap or a repetition. Past entries carry the current
// state, as the one of their time is not kept. A connection can subscribe once.
func (r *record) subscribe(c *conn, reply *proto.Message, seq uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, twice := r.subs[c]; twice {
		return conflict("this connection has subscribed already")
	}
	c.post(plain(reply))
	for _, e := range r.journal.after(seq) {
		c.post(plain(&proto.Message{Event: &proto.Event{Entry: e, State: r.st}}))
	}
	c.mu.Lock()
	over := c.closed
	c.mu.Unlock()
	if !over {
		r.subs[c] = struct{}{}
	}
	return nil
}

func (r *record) unsubscribe(c *conn) {
	r.mu.Lock()
	delete(r.subs, c)
	r.mu.Unlock()
}

// ended reports whether the container has ended for good.
func ended(st *proto.State) bool {
	return st.Status == proto.StatusExited || st.Status == proto.StatusRemoved
}

// writeExit writes the durable copy of the last state, with fsync.
func writeExit(dir string, st proto.State) error {
	b, err := proto.Marshal(&st)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, proto.ExitFile)
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	format.TakeGroup(int(f.Fd()), path)
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		os.Remove(path + ".tmp")
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// recordSection has the state. The journal is not in it: the next binary reads it
// from the run directory.
type recordSection struct {
	State   proto.State `json:"state"`
	Dropped uint64      `json:"dropped,omitempty"`
}

func (sec *recordSection) descriptors() []*int { return nil }

func (sec *recordSection) save(s *Shim) {
	s.rec.mu.Lock()
	defer s.rec.mu.Unlock()
	sec.State = s.rec.st
	if s.rec.dropped != nil {
		sec.Dropped = s.rec.dropped()
	}
}

// restore has nothing to do: a shim is built with its record.
func (sec *recordSection) restore(*Shim) {}
