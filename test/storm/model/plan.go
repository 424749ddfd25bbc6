// SPDX-License-Identifier: Apache-2.0

package model

import "fmt"

// Dice gives chance. Equal seeds give equal sequences.
type Dice struct{ state uint64 }

// NewDice returns the dice of a seed. Other streams of the same seed are
// independent of each other.
func NewDice(seed uint64, stream ...uint64) *Dice {
	d := &Dice{seed}
	for _, s := range stream {
		d.state = d.next() ^ (s+1)*0x9e3779b97f4a7c15
	}
	return d
}

// next is SplitMix64, as published by Steele, Lea and Flood (OOPSLA 2014).
func (d *Dice) next() uint64 {
	d.state += 0x9e3779b97f4a7c15
	z := d.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// N returns a number from 0 up to but not including n.
func (d *Dice) N(n int) int { return int(d.next() % uint64(n)) }

// Between returns a number from low to high.
func (d *Dice) Between(low, high int) int { return low + d.N(high-low+1) }

// Kind is what an operation or a fault does.
type Kind string

// The operations.
const (
	Create     Kind = "create"
	Start      Kind = "start"
	Stop       Kind = "stop"
	Kill       Kind = "kill"
	Restart    Kind = "restart"
	Pause      Kind = "pause"
	Unpause    Kind = "unpause"
	Rename     Kind = "rename"
	Update     Kind = "update"
	Remove     Kind = "rm"
	Exec       Kind = "exec"        // attached, with input
	ExecTTY    Kind = "exec-tty"    // attached to a terminal
	ExecDetach Kind = "exec-detach" // without a client
	ExecLong   Kind = "exec-long"   // in the background, as long as the container lives
	Attach     Kind = "attach"      // in the background
	Follow     Kind = "logs-f"      // in the background
	Wait       Kind = "wait"        // in the background
	Logs       Kind = "logs"
	CopyIn     Kind = "cp-in"
	CopyOut    Kind = "cp-out"
	Commit     Kind = "commit"
	Diff       Kind = "diff"
	Export     Kind = "export"
	Inspect    Kind = "inspect"
	List       Kind = "list"
	Top        Kind = "top"
	Stats      Kind = "stats"
	Port       Kind = "port" // a connection to the published port
	NetJoin    Kind = "net-connect"
	NetLeave   Kind = "net-disconnect"
	NetCreate  Kind = "net-create"
	NetRemove  Kind = "net-rm"
	VolCreate  Kind = "vol-create"
	VolRemove  Kind = "vol-rm"
	Prune      Kind = "prune-containers"
	PruneVol   Kind = "prune-volumes"
	PruneNet   Kind = "prune-networks"
	PruneImg   Kind = "prune-images"
	Pull       Kind = "pull"
	Push       Kind = "push"
	Contend    Kind = "contend" // create and remove a container of a shared name
	Info       Kind = "info"
)

// The faults.
const (
	KillDaemon    Kind = "kill-daemon"
	Failpoint     Kind = "failpoint" // the next daemon dies at a named instruction
	KillShim      Kind = "kill-shim"
	KillBoth      Kind = "kill-all" // the daemon and all shims
	KillRuntime   Kind = "kill-runc"
	KillInit      Kind = "kill-runc-init"
	KillContainer Kind = "kill-container" // its first process, from the host
	KillEvents    Kind = "kill-event-server"
	FreezeDaemon  Kind = "freeze-daemon" // SIGSTOP, and SIGCONT later
	FreezeShim    Kind = "freeze-shim"
	FlushRules    Kind = "flush-rules"
	LinkGone      Kind = "remove-link"
	BridgeDown    Kind = "bridge-down"
	MountGone     Kind = "remove-mount"
	FillDisk      Kind = "fill-disk"
	FillInodes    Kind = "fill-inodes"
	RunFileGone   Kind = "remove-run-file"
	Reload        Kind = "reload"
	Takeover      Kind = "takeover"
	Upgrade       Kind = "upgrade-shims"
	Replace       Kind = "upgrade-daemon" // by the command
	TermDaemon    Kind = "term-daemon"
	NoFiles       Kind = "no-descriptors" // the daemon can open none for a while
	NoFilesShim   Kind = "no-descriptors-shim"
	NoMemory      Kind = "memory-limit" // the kernel kills the daemon when it needs more
	KillOther     Kind = "kill-other"   // the daemon of another data root on the same host
)

// Op is one operation of a client. Its fields are all that it depends on, so that
// a list of them can be run again, also with some of them left out.
type Op struct {
	Client int
	Slot   int
	Kind   Kind
	// CLI is 0 for the API, 1 for holdfast, 2 for docker.
	CLI int `json:",omitempty"`
	// Time is what the operation needs: the time-out of a stop or restart in
	// seconds.
	Time int `json:",omitempty"`
	// N is a number whose meaning depends on the kind: a signal, an exit code, a
	// number of bytes.
	N int `json:",omitempty"`
	// Vanish is after how many milliseconds the client goes away. 0 is never.
	Vanish int   `json:",omitempty"`
	Spec   *Spec `json:",omitempty"` // of Create
}

func (o Op) String() string {
	s := fmt.Sprintf("client %d slot %d: %s", o.Client, o.Slot, o.Kind)
	switch o.CLI {
	case 1:
		s += " by holdfast"
	case 2:
		s += " by docker"
	}
	if o.Kind == Stop || o.Kind == Restart {
		s += fmt.Sprintf(" -t %d", o.Time)
	}
	if o.N != 0 {
		s += fmt.Sprintf(" (%d)", o.N)
	}
	if o.Vanish > 0 {
		s += fmt.Sprintf(", client vanishes after %d ms", o.Vanish)
	}
	if o.Spec != nil {
		s += fmt.Sprintf(" %+v", *o.Spec)
	}
	return s
}

// Fault is one fault.
type Fault struct {
	// After is when it comes, in milliseconds after the fault before.
	After int
	Kind  Kind
	// N picks one of several victims or failpoints.
	N int `json:",omitempty"`
	// Time is how long it lasts, in milliseconds.
	Time int `json:",omitempty"`
}

func (f Fault) String() string {
	return fmt.Sprintf("after %d ms: %s (%d) for %d ms", f.After, f.Kind, f.N, f.Time)
}

// Policy is a restart policy.
type Policy string

// The policies. OnFailure allows two restarts.
const (
	Never     Policy = "no"
	Always    Policy = "always"
	OnFailure Policy = "on-failure"
)

// Spec is what a container is made with.
type Spec struct {
	Policy Policy
	// Life is after how many milliseconds the program ends by itself. 0 is never.
	Life int `json:",omitempty"`
	// Code is its exit code then.
	Code int `json:",omitempty"`
	// Stubborn programs ignore SIGTERM. Others end with StopCode.
	Stubborn bool `json:",omitempty"`
	TTY      bool `json:",omitempty"`
	Port     bool `json:",omitempty"`
	Volume   bool `json:",omitempty"` // the slot's named volume, else an anonymous one
	Health   bool `json:",omitempty"`
	Remove   bool `json:",omitempty"` // --rm
	Network  bool `json:",omitempty"` // the client's network instead of the bridge
	Joins    bool `json:",omitempty"` // the network namespace of the client's slot before
	// JoinsPid and JoinsIpc: these namespaces of the slot before.
	JoinsPid bool `json:",omitempty"`
	JoinsIpc bool `json:",omitempty"`
}

// Needs reports whether it can only start while another container runs.
func (s Spec) Needs() bool { return s.Joins || s.JoinsPid || s.JoinsIpc }

// StopCode is how programs end at SIGTERM.
const StopCode = 7

// EarlyStopCode is how they end at SIGTERM before they can handle it: Go's runtime
// can't end the first process of a container by the signal, and exits.
const EarlyStopCode = 2

// EarlyStopCodePid is EarlyStopCode of a program that is not the first process of
// its process namespace, which the signal ends.
const EarlyStopCodePid = 143

// HangUpCodePid is EarlyStopCodePid at SIGHUP.
const HangUpCodePid = 129

// Plan is what one round does.
type Plan struct {
	Seed    uint64
	Round   int
	Clients int
	Slots   int // of each client
	// Rest is how many operations each client still does after the last fault. 0 is
	// all.
	Rest   int `json:",omitempty"`
	Ops    []Op
	Faults []Fault
}

// Shared is how many names clients contend for.
const Shared = 2

type weighted struct {
	kind   Kind
	weight int
}

var opWeights = []weighted{
	{Create, 12}, {Start, 22}, {Stop, 10}, {Kill, 6}, {Restart, 6}, {Pause, 5}, {Unpause, 6}, {Rename, 4}, {Update, 3}, {Remove, 7},
	{Exec, 9}, {ExecTTY, 3}, {ExecDetach, 3}, {ExecLong, 2}, {Attach, 4}, {Follow, 4}, {Wait, 5}, {Logs, 5},
	{CopyIn, 4}, {CopyOut, 4}, {Commit, 2}, {Diff, 2}, {Export, 1}, {Inspect, 3}, {List, 3}, {Top, 2}, {Stats, 2}, {Port, 7},
	{NetJoin, 3}, {NetLeave, 3}, {NetCreate, 2}, {NetRemove, 2}, {VolCreate, 2}, {VolRemove, 2},
	{Prune, 2}, {PruneVol, 1}, {PruneNet, 1}, {PruneImg, 1}, {Pull, 2}, {Push, 1}, {Contend, 4}, {Info, 1},
}

var faultWeights = []weighted{
	{KillDaemon, 14}, {Failpoint, 16}, {KillShim, 14}, {KillBoth, 7}, {KillRuntime, 8}, {KillInit, 5}, {KillContainer, 8}, {KillEvents, 3},
	{FreezeDaemon, 5}, {FreezeShim, 6}, {FlushRules, 4}, {LinkGone, 3}, {BridgeDown, 2}, {MountGone, 2}, {FillDisk, 3}, {FillInodes, 2},
	{RunFileGone, 3}, {Reload, 4}, {Takeover, 7}, {Upgrade, 4}, {TermDaemon, 4},
	{Replace, 4}, {NoFiles, 4}, {NoFilesShim, 3}, {NoMemory, 3}, {KillOther, 2},
}

func pick(d *Dice, from []weighted) Kind {
	sum := 0
	for _, w := range from {
		sum += w.weight
	}
	n := d.N(sum)
	for _, w := range from {
		if n -= w.weight; n < 0 {
			return w.kind
		}
	}
	return from[0].kind
}

// OpKinds and FaultKinds are all that a plan can contain.
func OpKinds() []Kind    { return kinds(opWeights) }
func FaultKinds() []Kind { return kinds(faultWeights) }

func kinds(from []weighted) (out []Kind) {
	for _, w := range from {
		out = append(out, w.kind)
	}
	return out
}

// NewPlan makes the plan of a round: so many operations for each client, and so
// many faults.
func NewPlan(seed uint64, round, clients, slots, ops, faults int) Plan {
	p := Plan{Seed: seed, Round: round, Clients: clients, Slots: slots}
	if faults > 0 {
		p.Rest = 8
	}
	for c := range clients {
		d := NewDice(seed, uint64(round), uint64(c))
		for s := range slots { // something to act upon
			p.Ops = append(p.Ops, Op{Client: c, Slot: s, Kind: Create, Spec: newSpec(d, s)}, Op{Client: c, Slot: s, Kind: Start})
		}
		for range ops {
			p.Ops = append(p.Ops, newOp(d, c, slots))
		}
	}
	d := NewDice(seed, uint64(round), 1000)
	pause := 60
	if round%4 == 3 {
		pause = 900
	}
	for range faults {
		p.Faults = append(p.Faults, newFault(d, pause))
	}
	return p
}

// newFault mostly follows the fault before at once, so that faults meet each
// other's repair. Some faults, and those of some rounds, come after a pause, in which
// what was broken is whole again: then a request has no excuse.
func newFault(d *Dice, pause int) Fault {
	f := Fault{After: d.N(pause), Kind: pick(d, faultWeights), N: d.N(1000), Time: d.Between(1, 120)}
	if d.N(6) == 0 {
		f.After = d.Between(100, 900)
	}
	if d.N(6) == 0 {
		f.Time = d.Between(100, 900)
	}
	return f
}

func newOp(d *Dice, client, slots int) Op {
	o := Op{Client: client, Slot: d.N(slots), Kind: pick(d, opWeights), N: d.Between(1, 1000)}
	if d.N(3) == 0 {
		o.CLI = d.Between(1, 2)
	}
	switch o.Kind {
	case Stop, Restart:
		o.Time = d.N(3)
	case Create:
		o.Spec = newSpec(d, o.Slot)
	case Kill:
		o.N = d.N(3) // 0: KILL, 1: TERM, 2: USR1, which the program ignores
	case Remove:
		o.N = d.N(4) // 0: without force
	case Attach, Follow, Wait, ExecLong:
		if d.N(2) == 0 {
			o.Vanish = d.Between(1, 800)
		}
	}
	if o.Vanish == 0 && d.N(12) == 0 {
		o.Vanish = d.Between(1, 150)
	}
	return o
}

func newSpec(d *Dice, slot int) *Spec {
	s := &Spec{Policy: Never, Volume: d.N(2) == 0, Port: d.N(2) == 0, Health: d.N(4) == 0, Network: d.N(3) == 0, TTY: d.N(6) == 0}
	switch d.N(6) {
	case 0:
		s.Policy = Always
	case 1:
		s.Policy = OnFailure
	case 2:
		s.Remove = true
	}
	switch d.N(6) {
	case 0:
		s.Stubborn = true
	case 1, 2:
		s.Life, s.Code = d.Between(1, 1500), []int{0, 3, 255, 42}[d.N(4)]
	}
	if slot > 0 {
		if d.N(6) == 0 {
			s.Joins, s.Port, s.Network = true, false, false
		}
		s.JoinsPid, s.JoinsIpc = d.N(8) == 0, d.N(8) == 0
	}
	return s
}
