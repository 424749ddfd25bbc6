// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/handover"
	"holdfast/internal/shim/proto"
)

// section is what one part of the shim puts into the handover state. Its exported
// fields are keys of the state's JSON object, so a key belongs to one section, and
// a new one concerns no other file. Releases before and after this one read the same
// keys: they are only added, with a meaning when they are absent. Descriptors keep
// their numbers; a negative number means none.
type section interface {
	// descriptors returns pointers to all descriptors in the section.
	descriptors() []*int
	// save fills the section. The gate is closed, and motion is held for writing.
	save(*Shim)
	// restore makes the shim, which was built without them, continue with the
	// section's streams and operations. It is called when the state is accepted, and
	// cannot fail: it logs what is lost.
	restore(*Shim)
}

// handoverState is the state that a re-exec hands to the next binary in the same
// process, as one JSON object. The journal and the ledger are not in it: the next
// binary reads them from the run directory.
type handoverState struct {
	Schema int `json:"schema"`

	bootSection
	recordSection
	runtimeSection
	logSection
	portsSection
	clientsSection
	followersSection
	runSection
	execsSection
	waitersSection
	namesSection
	connsSection
	stopsSection
	upgradeSection
}

// sections returns all sections, in the order in which they are restored.
func (h *handoverState) sections() []section {
	h.stopsSection.conns, h.upgradeSection.conns = &h.connsSection, &h.connsSection
	return []section{
		&h.bootSection, &h.recordSection, &h.runtimeSection, &h.logSection, &h.portsSection,
		&h.clientsSection, &h.followersSection, &h.runSection, // clients before the run: its output is read from then on
		&h.execsSection, &h.waitersSection, &h.namesSection,
		&h.connsSection, &h.stopsSection, &h.upgradeSection, // both count requests of the connections
	}
}

func (h *handoverState) allDescriptors() (list []*int) {
	for _, sec := range h.sections() {
		list = append(list, sec.descriptors()...)
	}
	return list
}

// capture collects the state for the request of an upgrade. The caller has closed
// the gate and holds motion for writing.
func (s *Shim) capture(asked *conn, request uint64) *handoverState {
	h := &handoverState{Schema: handover.Schema}
	h.asked, h.Request = asked, request
	for _, sec := range h.sections() {
		sec.save(s)
	}
	return h
}

// loadHandover reads the state from a memfd. No child inherits its descriptors.
func loadHandover(fd int) (*handoverState, error) {
	h := &handoverState{}
	h.Program = -1
	if err := handover.Read(fd, h); err != nil {
		return nil, err
	}
	handover.Inherit(h.allDescriptors(), false)
	return h, nil
}

// buildShim makes a shim from the state without starting anything. When it fails it
// has had no visible effect, so the previous binary can still take the state back.
// fallback: this is the previous binary, running again because the next one refused
// the state.
func (h *handoverState) buildShim(release string, fallback bool) (*Shim, error) {
	if !handover.Accepts(h.Schema) || h.Boot == nil {
		return nil, fmt.Errorf("the handover state has version %d, this release reads versions up to %d", h.Schema, handover.Schema)
	}
	reaper := newReaper()
	runtime, err := h.runtimeSection.build(h.Boot, reaper, fallback)
	if err != nil {
		return nil, err
	}
	rec, err := resumeRecord(h.Boot, h.State)
	if err != nil {
		return nil, err
	}
	s := newShim(h.Boot, release, rec, reaper, runtime)
	s.dirfd, s.lockFD = h.Dir, h.Lock
	s.life.starting.Store(true)
	if err := h.logSection.build(s); err != nil {
		return nil, err
	}
	s.countDropped(h.Dropped)
	if s.server.listener, err = newListener(h.Listener); err != nil {
		return nil, err
	}
	h.listener = s.server.listener
	return s, nil
}

// restore makes everything run again that buildShim has not started. A refused that
// is not empty is the reason why the other binary did not take over; the caller of
// Upgrade gets it as the error.
func (h *handoverState) restore(s *Shim, refused string) {
	h.refused = refused
	s.reaper.beginAdoption() // no child is registered yet
	defer s.reaper.endAdoption()
	for _, sec := range h.sections() {
		sec.restore(s)
	}
	h.connsSection.start(s)
}

// bootSection has the parameters and the run directory.
type bootSection struct {
	Boot *proto.Bootstrap `json:"boot"`
	Dir  int              `json:"dir"`
	Lock int              `json:"lock"`
}

func (sec *bootSection) descriptors() []*int { return []*int{&sec.Dir, &sec.Lock} }

func (sec *bootSection) save(s *Shim) {
	sec.Boot, sec.Dir, sec.Lock = s.bootstrap(), s.dirfd, s.lockFD
}

// restore has nothing to do: a shim is built with its parameters.
func (sec *bootSection) restore(*Shim) {}

// upgradeSection has the request that asked for the re-exec.
type upgradeSection struct {
	Program int    `json:"program"` // the binary that runs now, O_PATH, to exec back to
	Asked   int    `json:"asked"`   // position of the caller's connection, or -1
	Request uint64 `json:"request"` // the ID of the caller's request

	conns   *connsSection
	asked   *conn
	refused string
}

func (sec *upgradeSection) descriptors() []*int { return []*int{&sec.Program} }

func (sec *upgradeSection) save(*Shim) {
	program, err := unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		program = -1 // without it the next binary can't exec back
	}
	sec.Program, sec.Asked = program, sec.conns.position(sec.asked)
}

// restore answers the request.
func (sec *upgradeSection) restore(s *Shim) {
	if c := sec.conns.at(sec.Asked); c != nil {
		if sec.refused != "" {
			c.answer(sec.Request, nil, invalid("upgrade: the other release did not take over: %s", sec.refused))
		} else {
			c.answer(sec.Request, s.hello(), nil)
		}
	}
	if sec.Program >= 0 {
		unix.Close(sec.Program)
	}
}
