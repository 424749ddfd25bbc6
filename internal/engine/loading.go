// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strconv"

	"github.com/containerd/errdefs"

	"holdfast/internal/container"
	"holdfast/internal/event"
	"holdfast/internal/network"
	"holdfast/internal/shim/proto"
)

// Load reads the specs and creates the actors, so that requests that only read can
// be answered. It reads the shims' files, but does not connect to the shims.
func (e *Engine) Load() error {
	specs, broken, err := e.store.LoadAll()
	if err != nil {
		return err
	}
	for _, b := range broken {
		e.leaveAlone(b.ID, b.Err)
	}
	read := make([]loaded, len(specs))
	inParallel(len(specs), runtime.GOMAXPROCS(0), func(i int) { read[i] = e.records.load(specs[i]) })
	for i, spec := range specs {
		r := &read[i]
		if r.err != nil {
			e.leaveAlone(spec.ID, r.err)
			continue
		}
		if err := e.index.reserve(spec.Name, spec.ID); err != nil {
			// A crash during a rename can't cause this; manual changes of the files can.
			e.log.Error("two containers have the same name: this one is named after its ID", "container", spec.ID, "error", err)
			spec.Name = spec.ID[:12]
			_ = e.index.reserve(spec.Name, spec.ID)
		}
		a := newActor(e, spec, r.asked)
		var last container.Record
		a.rec, last = e.records.last(spec, r.files)
		a.descriptors.restore(a.rec)
		p := container.Loaded(spec.Desired, last, a.hasRun())
		p.Committing = spec.Committing && !e.observes.Load()
		a.enter(p)
		e.index.add(a)
	}
	return nil
}

// loaded is what was read from the files of one container.
type loaded struct {
	asked
	files written
	err   error // why the container can't be used; nil if it can
}

// load reads the files of a container. It changes nothing, and may run
// concurrently for several containers.
func (rd *records) load(spec *container.Spec) (l loaded) {
	if l.asked, l.err = decodeSpec(spec); l.err == nil {
		l.files = rd.read(spec)
		l.err = l.files.newer()
	}
	return l
}

// records reads what shims have recorded of their containers, and how the daemon has
// begun.
type records struct {
	*progress
	store Store
	shims Shims
	lives Lives
	log   *slog.Logger
}

// written are a shim's state file and the durable record of its end.
type written struct {
	state, exit       proto.State
	stateErr, exitErr error
}

func (rd *records) read(spec *container.Spec) (r written) {
	r.state, r.stateErr = rd.shims.State(rd.store.RunDir(spec.ID))
	r.exit, r.exitErr = rd.shims.Exit(rd.store.ContainerDir(spec.ID))
	return r
}

// completed returns the files of a shim that is gone. A shim journals the end of a run
// before it records it in its state: if it was killed in between, the journal alone has
// the exit code. Without it, the end would be recorded with another code than its event
// has.
func (rd *records) completed(spec *container.Spec) written {
	files := rd.read(spec)
	st := &files.state
	if files.stateErr != nil || st.Life != spec.Life || st.Pid == 0 {
		return files
	}
	entries, err := rd.shims.Journal(rd.store.RunDir(spec.ID), st.Seq)
	if err != nil {
		return files // ingest logs the error
	}
	for _, entry := range entries {
		if entry.Seq <= st.Seq || entry.Action != proto.ActionOOM && entry.Action != proto.ActionDie {
			continue
		}
		if entry.Action == proto.ActionOOM {
			st.OOMKilled = true
			continue
		}
		code, err := strconv.Atoi(entry.Attributes["exitCode"])
		if err != nil {
			rd.log.Warn("the shim's journal has an end without an exit code", "container", spec.ID[:12], "error", err)
			continue
		}
		st.Status, st.Pid, st.PidStart = proto.StatusExited, 0, 0
		st.ExitCode, st.Finished = code, entry.Time
	}
	return files
}

// newer returns an error if a newer release wrote the shim's state or the exit
// record. Such a record must not be treated like a missing one.
func (r written) newer() error {
	for _, err := range []error{r.stateErr, r.exitErr} {
		if errdefs.IsFailedPrecondition(err) {
			return err
		}
	}
	return nil
}

// leaveAlone marks a container whose records can't be used. Its files stay as they
// are, for a newer daemon or a repair, and if it runs, it runs on.
func (e *Engine) leaveAlone(id string, err error) {
	e.index.unread = append(e.index.unread, id)
	e.log.Error("a container's record can't be used: the container is left as it is and can't be managed", "container", id, "error", err)
}

// asked is the decoded part of a spec that only the engine interprets.
type asked struct {
	req     request
	mounts  []mountPoint
	sandbox network.Sandbox
}

// decodeSpec decodes that part of a spec.
func decodeSpec(spec *container.Spec) (d asked, err error) {
	if d.req, err = decodeRequest(spec.API); err != nil {
		return d, err
	}
	if len(spec.Mounts) > 0 {
		if err := json.Unmarshal(spec.Mounts, &d.mounts); err != nil {
			return d, fmt.Errorf("the container's mounts can't be decoded: %w", err)
		}
	}
	if len(spec.Sandbox) > 0 {
		if err := json.Unmarshal(spec.Sandbox, &d.sandbox); err != nil {
			return d, fmt.Errorf("the container's network record can't be decoded: %w", err)
		}
		if n := d.sandbox.Schema; n > network.SandboxSchema {
			return d, fmt.Errorf("the container's network record was written by a newer release: its schema is %d, this release reads up to %d", n, network.SandboxSchema)
		}
	}
	return d, nil
}

// last returns the last record of a container. A record of an earlier life is
// returned, too, because it contains when the container last ran, but it counts as
// RecordNone.
func (rd *records) last(spec *container.Spec, files written) (proto.State, container.Record) {
	rec, seen := rd.ofLife(spec, files)
	return withLastRun(rec, spec), seen
}

// withLastRun adds to a record without a run when the container ran before: the start
// of this life failed or is not over, and its shim replaced the earlier record.
func withLastRun(rec proto.State, spec *container.Spec) proto.State {
	if rec.Started.IsZero() && spec.Ran != nil {
		rec.Started, rec.Finished = spec.Ran.Started, spec.Ran.Finished
		if rec.Status == proto.StatusCreated { // this life has no code of its own yet
			rec.ExitCode = spec.Ran.ExitCode
		}
	}
	return rec
}

// ofLife is last without what is known of earlier lives from the spec.
func (rd *records) ofLife(spec *container.Spec, files written) (proto.State, container.Record) {
	rec, seen := rd.ofShim(spec, files)
	f := spec.Failure
	if f == nil {
		if seen == container.RecordNone && spec.Desired == container.DesiredStopped && spec.Life > 0 {
			// The container ran and a stop was requested, and its end was not recorded.
			seen = container.RecordRunning
		}
		if seen == container.RecordNone && spec.Desired == container.DesiredRunning && !rd.booted() {
			// A shim writes its record before the container runs, and without a reboot
			// the record would still exist: the start did not get that far.
			seen = container.RecordCreated
		}
		return rec, seen
	}
	// An earlier daemon found that the life is over and recorded that.
	rec.Pid, rec.Status = 0, proto.StatusExited
	if f.Lost {
		rec.Life, rec.ExitCode, rec.Error, rec.Finished = spec.Life, f.ExitCode, f.Error, f.Time
		if rec.Started.IsZero() {
			rec.Started = spec.Created
		}
	}
	return rec, container.RecordExited
}

func (rd *records) ofShim(spec *container.Spec, files written) (proto.State, container.Record) {
	rec, err := files.state, files.stateErr
	if err != nil {
		if !errors.Is(err, errdefs.ErrNotFound) {
			rd.log.Warn("the shim's state can't be read", "container", spec.ID[:12], "error", err)
		}
		if rec, err = files.exit, files.exitErr; err != nil {
			if !errors.Is(err, errdefs.ErrNotFound) {
				rd.log.Warn("the exit record can't be read", "container", spec.ID[:12], "error", err)
			}
			return proto.State{}, container.RecordNone
		}
	}
	if rec.Life != spec.Life {
		rec.Pid = 0
		return rec, container.RecordNone
	}
	return rec, recordOf(rec)
}

// recordOf returns what a shim's record says of its life. The record is as the shim
// wrote it, without the times of earlier lives (see withLastRun).
func recordOf(rec proto.State) container.Record {
	ended := rec.Status == proto.StatusExited || rec.Status == proto.StatusRemoved
	if ended && rec.Started.IsZero() {
		return container.RecordFailed
	}
	switch rec.Status {
	case proto.StatusCreated:
		return container.RecordCreated
	case proto.StatusRunning:
		return container.RecordRunning
	case proto.StatusPaused:
		return container.RecordPaused
	case proto.StatusRestarting:
		return container.RecordRestarting
	case proto.StatusExited:
		return container.RecordExited
	case proto.StatusRemoved:
		return container.RecordRemoved
	}
	return container.RecordNone
}

// booted reports whether the machine was booted since the last daemon's life. It
// returns true if that is not known.
func (rd *records) booted() bool {
	lives := rd.lives.List()
	n := len(lives)
	return n < 2 || lives[n-1].BootID == "" || lives[n-2].BootID != lives[n-1].BootID
}

// begins returns how this daemon has begun; container.Living once the restore is
// done.
func (rd *records) begins() container.Begin {
	if rd.isRestored() {
		return container.Living
	}
	lives := rd.lives.List()
	switch {
	case rd.handedOver:
		return container.BeginTakeover
	case len(lives) > 1 && lives[len(lives)-2].How == event.EndCrash:
		return container.BeginCrash
	case rd.booted():
		return container.BeginBoot
	}
	return container.BeginStart
}
