// Package proto is what a daemon and a shim say to each other: the frames, the
// messages and their version. docs/protocol/shim.md describes it with
// transcripts. It knows nothing but the standard library, and the shim links
// it, so it stays small.
//
// Version rule: messages only ever gain fields and methods. A peer ignores
// fields that it does not know and answers an unknown method with
// KindUnimplemented.
package proto

import (
	"encoding/json"
	"time"
)

// Version is the protocol's version. A Hello carries the sender's.
const Version = 1

// StateSchema is the schema number of state.json, exit.json and the journal.
const StateSchema = 1

// Names of the files in a shim's run directory.
const (
	SocketFile  = "shim.sock"
	StateFile   = "state.json"
	JournalFile = "journal"
	LogFile     = "shim.log" // the shim's own words, for people
	PidFile     = "init.pid"
	// BootstrapFile is the Bootstrap as the shim has it now, for the shim that
	// takes over should this one be killed.
	BootstrapFile = "bootstrap.json"
	// LedgerFile holds what was read from the container and is not in its log
	// yet. Only shims read it.
	LedgerFile = "output"
)

// ExitFile is the durable copy of the last State, in the data directory.
const ExitFile = "exit.json"

// Methods that a daemon calls.
const (
	MethodHello      = "hello"      // Hello → HelloReply
	MethodSubscribe  = "subscribe"  // Subscribe → nothing, then events follow
	MethodStart      = "start"      // Start → State, once the container's process runs
	MethodStop       = "stop"       // Stop → State, once it is gone for good
	MethodKill       = "kill"       // Kill → nothing
	MethodPause      = "pause"      // Pause or nothing → State
	MethodResume     = "resume"     // nothing → State
	MethodUpdate     = "update"     // Update → nothing
	MethodResize     = "resize"     // Resize → nothing
	MethodNames      = "names"      // Names + 2 descriptors → nothing
	MethodPorts      = "ports"      // Ports + a descriptor for each that is new → PortsReply
	MethodAttach     = "attach"     // Attach + 1 descriptor → nothing
	MethodExecCreate = "execCreate" // ExecCreate → nothing
	MethodExecStart  = "execStart"  // ExecStart + 0 or 1 descriptors → ExecState
	MethodExecResize = "execResize" // Resize with Exec set → nothing
	MethodState      = "state"      // nothing → State
	MethodShutdown   = "shutdown"   // nothing → nothing; only without a running container
	MethodTerminal   = "terminal"   // nothing → nothing + 1 descriptor, the master of the container's terminal
	MethodHold       = "hold"       // Hold + 2 descriptors → nothing
	MethodFollow     = "follow"     // Follow + 2 descriptors → nothing
	MethodUpgrade    = "upgrade"    // Upgrade → HelloReply, of the new binary in the same process
)

// Kinds of errors.
const (
	KindUnimplemented = "unimplemented" // the method is not known here
	KindInvalid       = "invalid"       // the parameters make no sense
	KindNotFound      = "not-found"     // no such exec
	KindConflict      = "conflict"      // not in this state
	KindRuntime       = "runtime"       // the OCI runtime failed; ExitCode is 125, 126 or 127
	KindInternal      = "internal"
)

// Error is how a call failed.
type Error struct {
	Kind     string `json:"kind"`
	Message  string `json:"message"`
	ExitCode int    `json:"exitCode,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// Message is one frame. A request has ID and Method, a response ID and Result
// or Error, an event Event.
type Message struct {
	ID     uint64          `json:"id,omitempty"`
	Method string          `json:"method,omitempty"`
	Params json.RawMessage `json:"params,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  *Error          `json:"error,omitempty"`
	Event  *Event          `json:"event,omitempty"`
	// FDs is how many descriptors travel with this frame in SCM_RIGHTS.
	FDs int `json:"fds,omitempty"`
}

// Bootstrap is the first frame that a shim reads, on descriptor 0, which is
// one end of a socket pair and afterwards serves as the first connection.
// The descriptors of Ports travel with it, in their order.
type Bootstrap struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	Life    uint64 `json:"life"` // Spec.Life of this start

	RunDir  string `json:"runDir"`  // sockets, FIFOs, state, journal
	DataDir string `json:"dataDir"` // exit record
	Bundle  string `json:"bundle"`  // OCI bundle, its config.json is there

	Runtime Runtime `json:"runtime"`

	Terminal    bool    `json:"terminal,omitempty"`
	ConsoleSize [2]uint `json:"consoleSize,omitempty"` // rows, columns
	OpenStdin   bool    `json:"openStdin,omitempty"`
	StdinOnce   bool    `json:"stdinOnce,omitempty"` // stdin closes after the first client
	UID         uint32  `json:"uid"`                 // host user that owns stdio
	GID         uint32  `json:"gid"`

	Log     Log           `json:"log"`
	Restart RestartPolicy `json:"restart"`
	// RestartCount continues from an earlier shim of the same life.
	RestartCount int  `json:"restartCount,omitempty"`
	AutoRemove   bool `json:"autoRemove,omitempty"`

	StopSignal  int `json:"stopSignal"`  // number
	StopTimeout int `json:"stopTimeout"` // seconds, -1 without end

	Health *Health `json:"health,omitempty"`
	Ports  []Port  `json:"ports,omitempty"`

	// OOMFile and OOMKey name the counter of OOM kills: memory.oom_control on
	// cgroup v1, memory.events on v2, key "oom_kill".
	OOMFile string `json:"oomFile,omitempty"`
	OOMKey  string `json:"oomKey,omitempty"`

	Teardown Teardown `json:"teardown"`

	// Attributes go into every journal entry: name, image and labels.
	Attributes map[string]string `json:"attributes,omitempty"`

	// Adopt: the container runs already and its shim was killed.
	Adopt *Adopt `json:"adopt,omitempty"`
}

// Adopt is what a shim gets that takes over a container. All else it finds in
// the run directory. Its descriptors travel after those of Ports, in the order
// of the fields.
type Adopt struct {
	// Pidfd: a pidfd of the container's process, opened while it lived.
	Pidfd bool `json:"pidfd,omitempty"`
	// Terminal: the master of the container's terminal.
	Terminal bool `json:"terminal,omitempty"`
	// Stdin: the writing end of the container's input.
	Stdin bool `json:"stdin,omitempty"`
}

// Upgrade asks a shim to go on as another binary.
type Upgrade struct {
	Binary string `json:"binary"` // absolute path
}

// Runtime is how the OCI runtime is called: Path Args… verb …
type Runtime struct {
	Path string   `json:"path"`
	Args []string `json:"args,omitempty"` // global flags, such as --root
}

// RestartPolicy mirrors container.RestartPolicy.
type RestartPolicy struct {
	Name       string `json:"name,omitempty"`
	MaxRetries int    `json:"maxRetries,omitempty"`
}

// Log is where the container's output goes.
type Log struct {
	Driver   string            `json:"driver"` // json-file, local, none
	Path     string            `json:"path,omitempty"`
	MaxSize  int64             `json:"maxSize,omitempty"`  // bytes; 0 is no limit
	MaxFiles int               `json:"maxFiles,omitempty"` // with the active one; at least 1
	Compress bool              `json:"compress,omitempty"`
	Attrs    map[string]string `json:"attrs,omitempty"`
}

// Health is a health check. Times are nanoseconds, as in the API.
type Health struct {
	Process       json.RawMessage `json:"process"` // OCI process to run
	Interval      time.Duration   `json:"interval"`
	Timeout       time.Duration   `json:"timeout"`
	StartPeriod   time.Duration   `json:"startPeriod"`
	StartInterval time.Duration   `json:"startInterval"`
	Retries       int             `json:"retries"`
}

// Port is a published port: the descriptor with it is bound (tcp: listening)
// on the host, which keeps others from taking the port; what still arrives
// there because the kernel's translation can't carry it is forwarded.
type Port struct {
	Proto  string `json:"proto"`  // tcp, udp, sctp
	Target string `json:"target"` // container's address and port; empty is held and leads nowhere
	// Host is the socket's own address and port, in Ports.
	Host string `json:"host,omitempty"`
}

// Teardown is what the shim undoes, in this order, when the container has
// ended for good.
type Teardown struct {
	// Netlink are messages for NETLINK_NETFILTER, each one batch. Answers of
	// "no such element" are fine.
	Netlink [][]byte `json:"netlink,omitempty"`
	// Unmount is in order, with MNT_DETACH; what is not mounted is fine.
	Unmount []string `json:"unmount,omitempty"`
	// Remove are files and folders of the run directory.
	Remove []string `json:"remove,omitempty"`
}

// Hello opens a connection.
type Hello struct {
	Version int    `json:"version"`
	Daemon  string `json:"daemon,omitempty"` // release, for people
}

// HelloReply answers it.
type HelloReply struct {
	Version int    `json:"version"`
	Release string `json:"release"`
	Pid     int    `json:"pid"`
	State   State  `json:"state"`
	// Names says that the shim serves the container's names.
	Names bool `json:"names,omitempty"`
}

// Subscribe asks for all journal entries after a sequence number, first the
// past ones, then the new ones as they come, without a gap or a repetition.
type Subscribe struct {
	After uint64 `json:"after"`
}

// Stop ends the container and marks it as stopped by the user, so that no
// policy restarts it. The shim carries it out whether or not the caller lives.
type Stop struct {
	Signal  int `json:"signal,omitempty"`  // 0 is Bootstrap.StopSignal
	Timeout int `json:"timeout,omitempty"` // seconds, -1 without end
	// Default asks for Bootstrap.StopTimeout.
	Default bool `json:"default,omitempty"`
	// User: a user wants it stopped, not the daemon by its own end.
	User bool `json:"user,omitempty"`
}

// Kill sends a signal to the container's process.
type Kill struct {
	Signal int `json:"signal"`
	// Manual marks the container as stopped by the user.
	Manual bool `json:"manual,omitempty"`
	// User: as in Stop.
	User bool `json:"user,omitempty"`
}

// Pause freezes the container's processes.
type Pause struct {
	// Lent: not longer than this connection lives. A shim of a release that did
	// not know it freezes them until they are thawed.
	Lent bool `json:"lent,omitempty"`
}

// Update changes a running container.
type Update struct {
	Restart   *RestartPolicy  `json:"restart,omitempty"`
	Resources json.RawMessage `json:"resources,omitempty"` // OCI linux.resources
	// Attributes replace Bootstrap.Attributes, after a rename.
	Attributes map[string]string `json:"attributes,omitempty"`
}

// Resize sets the size of a terminal, in characters.
type Resize struct {
	Exec   string `json:"exec,omitempty"`
	Height uint   `json:"height"`
	Width  uint   `json:"width"`
}

// Names starts the container's name server, or gives it new sockets: one bound
// for UDP, one listening for TCP travel with the frame. View is the file that
// says what the container sees, in the form of package shim/names.
type Names struct {
	View string `json:"view"`
}

// Ports says where the published ports lead now, after the container has joined
// a network or left one: all of them, in any order. The sockets of New travel
// with the frame, in its order.
type Ports struct {
	Ports []Port `json:"ports,omitempty"` // with Host
	New   []Port `json:"new,omitempty"`
	// Netlink replaces Teardown.Netlink.
	Netlink [][]byte `json:"netlink,omitempty"`
}

// PortsReply names those of Ports.Ports that the shim has no socket of, by
// their index.
type PortsReply struct {
	Missing []int `json:"missing,omitempty"`
}

// Attach connects the client's socket that travels with the frame.
type Attach struct {
	Stdin, Stdout, Stderr bool
	// Raw: bytes as they are, as with a terminal. Otherwise stdout and stderr
	// are multiplexed with Docker's 8-byte header.
	Raw        bool   `json:"raw,omitempty"`
	DetachKeys []byte `json:"detachKeys,omitempty"`
	// Pending is what the client had sent before the socket was handed over.
	Pending []byte `json:"pending,omitempty"`
}

// What a Hold waits for, in the API's words.
const (
	HoldNotRunning = "not-running"
	HoldNextExit   = "next-exit"
	HoldRemoved    = "removed"
)

// LeaseDrop is what a daemon sends over a Hold's lease when the client is no
// longer the shim's to answer.
const LeaseDrop = '.'

// Hold gives a client that waits for the container's end into the shim's care.
// The first descriptor is the client's socket, the second the lease: a stream
// socket whose other end the daemon keeps. What comes over the lease is the
// rest of the answer, which the shim writes and acknowledges with one byte, or
// LeaseDrop. When the lease ends without either the daemon has died, and the
// shim answers by itself, with one chunk {"StatusCode":N} and the last chunk.
type Hold struct {
	Condition string `json:"condition"`
	// Head is written to the client before the answer to this request.
	Head []byte `json:"head,omitempty"`
}

// Follow makes a client that follows the log the shim's. The first descriptor
// is its socket, with all earlier lines written, the second the
// log's active file. The shim sends the records from Offset on, to the end of
// the container or of Until. KindConflict: the file is no longer the active one
// or the container has ended, and the client remains the daemon's.
type Follow struct {
	Offset int64 `json:"offset"` // of the first record, in bytes
	// Head is written before it, if the daemon has written nothing yet.
	Head           []byte `json:"head,omitempty"`
	Stdout, Stderr bool
	// Raw: lines as they are. Otherwise in Docker's frames, as in Attach.
	Raw        bool      `json:"raw,omitempty"`
	Timestamps bool      `json:"timestamps,omitempty"`
	Details    bool      `json:"details,omitempty"`
	Since      time.Time `json:"since,omitzero"`
	Until      time.Time `json:"until,omitzero"`
	// Within says that the last line sent of stdout and of stderr has not ended
	// yet: what follows of it has no timestamp.
	Within [2]bool `json:"within,omitempty"`
}

// ExecCreate prepares an exec session.
type ExecCreate struct {
	Exec                  string          `json:"exec"`
	Process               json.RawMessage `json:"process"` // OCI process
	Tty                   bool            `json:"tty,omitempty"`
	Stdin, Stdout, Stderr bool
	DetachKeys            []byte `json:"detachKeys,omitempty"`
	UID                   uint32 `json:"uid"`
	GID                   uint32 `json:"gid"`
	// Info is kept and given back in ExecState: the daemon's own record of
	// the exec in the API's terms.
	Info json.RawMessage `json:"info,omitempty"`
}

// ExecStart runs it. With a descriptor the client's socket is attached;
// without one it runs detached.
type ExecStart struct {
	Exec        string  `json:"exec"`
	ConsoleSize [2]uint `json:"consoleSize,omitempty"` // rows, columns
	Pending     []byte  `json:"pending,omitempty"`
}

// Status of a shim's container.
const (
	StatusCreated    = "created"
	StatusRunning    = "running"
	StatusPaused     = "paused"
	StatusRestarting = "restarting" // between two runs, waiting out the backoff
	StatusExited     = "exited"     // for good
	StatusRemoved    = "removed"    // exited, and --rm was carried out
)

// State is what the shim has seen, as in state.json and, at the end, exit.json.
type State struct {
	Schema    int       `json:"schema"`
	ID        string    `json:"id"`
	Life      uint64    `json:"life"`
	Status    string    `json:"status"`
	ShimPid   int       `json:"shimPid,omitempty"`
	Pid       int       `json:"pid,omitempty"`      // of the container's process, while it runs
	PidStart  uint64    `json:"pidStart,omitempty"` // start time of Pid in clock ticks since boot: field 22 of /proc/PID/stat
	BootID    string    `json:"bootID,omitempty"`
	Started   time.Time `json:"started,omitzero"`
	Finished  time.Time `json:"finished,omitzero"`
	ExitCode  int       `json:"exitCode"`
	OOMKilled bool      `json:"oomKilled,omitempty"`
	Error     string    `json:"error,omitempty"`
	// Manual: it was told to stop.
	Manual bool `json:"manual,omitempty"`
	// UserStopped: and it was a user who wanted it, of which the spec may know
	// nothing if no daemon lived.
	UserStopped  bool         `json:"userStopped,omitempty"`
	RestartCount int          `json:"restartCount,omitempty"`
	NextRestart  time.Time    `json:"nextRestart,omitzero"`
	LogDropped   uint64       `json:"logDropped,omitempty"` // lines that a full disk cost
	Health       *HealthState `json:"health,omitempty"`
	Execs        []ExecState  `json:"execs,omitempty"`
	// Seq is the number of the last journal entry that this state includes.
	Seq uint64 `json:"seq"`
}

// HealthState is the API's Health.
type HealthState struct {
	Status        string         `json:"status"` // starting, healthy, unhealthy
	FailingStreak int            `json:"failingStreak"`
	Log           []HealthResult `json:"log,omitempty"` // the last five
}

// HealthResult is one run of the check.
type HealthResult struct {
	Start    time.Time `json:"start"`
	End      time.Time `json:"end"`
	ExitCode int       `json:"exitCode"`
	Output   string    `json:"output"` // 4096 bytes at most
}

// ExecState is an exec session.
type ExecState struct {
	Exec     string          `json:"exec"`
	Running  bool            `json:"running"`
	Started  bool            `json:"started"`
	Pid      int             `json:"pid,omitempty"`
	ExitCode int             `json:"exitCode"`
	Info     json.RawMessage `json:"info,omitempty"`
}

// Event is a journal entry as it travels, with the state after it.
type Event struct {
	Entry
	State State `json:"state"`
}

// Actions of journal entries, in the words of docker events.
const (
	ActionStart   = "start"
	ActionDie     = "die" // attributes exitCode, execDuration (seconds)
	ActionOOM     = "oom"
	ActionHealth  = "health_status" // attribute health: healthy or unhealthy
	ActionDestroy = "destroy"
	ActionExecDie = "exec_die" // attributes execID, exitCode
	// ActionKill: a stop's time was up, and its signal was another; attribute
	// signal, a number.
	ActionKill = "kill"
	// ActionDetach: a client left by its detach keys; ActionExecDetach the
	// same of an exec, with attribute execID.
	ActionDetach     = "detach"
	ActionExecDetach = "exec_detach"
	// ActionState says that the state changed in a way that is no event of
	// the API (a health probe's result, a restart planned). It is not
	// journalled, and its Seq is 0.
	ActionState = "state"
	// ActionExited says that no run of this life will follow. It is
	// journalled, and no event of the API.
	ActionExited = "exited"
)

// Entry is a line of the journal.
type Entry struct {
	Seq        uint64            `json:"seq"`
	Time       time.Time         `json:"time"`
	Action     string            `json:"action"`
	Attributes map[string]string `json:"attributes,omitempty"`
}
