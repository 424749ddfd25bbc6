// SPDX-License-Identifier: Apache-2.0

// Package proto is the protocol between a daemon and a shim: the frames, the
// messages and their version. docs/protocol/shim.md describes it with
// transcripts. The shim links the package, so it stays small and imports only the
// standard library.
//
// Version rule: messages only ever gain fields and methods. A peer ignores
// fields that it does not know and answers an unknown method with
// KindUnimplemented.
package proto

import (
	"encoding/json"
	"fmt"
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
	LogFile     = "shim.log" // the shim's log, for people to read
	PidFile     = "init.pid"
	// BootstrapFile is the shim's Bootstrap with all later changes. If the shim is
	// killed, the next one gets it.
	BootstrapFile = "bootstrap.json"
	// LedgerFile holds output that was read from the container and is not in its log
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
	MethodStop       = "stop"       // Stop → State, once the container has ended for good
	MethodKill       = "kill"       // Kill → nothing
	MethodPause      = "pause"      // Pause or nothing → State
	MethodResume     = "resume"     // nothing → State
	MethodUpdate     = "update"     // Update → nothing
	MethodResize     = "resize"     // Resize → nothing
	MethodNames      = "names"      // Names + 2 descriptors → nothing
	MethodPorts      = "ports"      // Ports + 1 descriptor for each new port → PortsReply
	MethodAttach     = "attach"     // Attach + 1 descriptor → nothing
	MethodExecCreate = "execCreate" // ExecCreate → nothing
	MethodExecStart  = "execStart"  // ExecStart + 0 or 1 descriptors → ExecState
	MethodExecResize = "execResize" // Resize with Exec set → nothing
	MethodState      = "state"      // nothing → State
	MethodShutdown   = "shutdown"   // nothing → nothing; only without a running container
	MethodTerminal   = "terminal"   // nothing → nothing + 1 descriptor, the master of the container's terminal
	MethodHold       = "hold"       // Hold + 2 descriptors → nothing
	MethodFollow     = "follow"     // Follow + 2 descriptors → nothing
	MethodHeard      = "heard"      // Heard → nothing
	MethodUpgrade    = "upgrade"    // Upgrade → HelloReply, of the new binary in the same process
)

// Kinds of errors.
const (
	KindUnimplemented = "unimplemented" // this shim does not know the method
	KindInvalid       = "invalid"       // the parameters are invalid
	KindNotFound      = "not-found"     // no such exec
	KindConflict      = "conflict"      // not possible in the current state
	KindRuntime       = "runtime"       // the OCI runtime failed; ExitCode is 125, 126 or 127
	KindInternal      = "internal"
)

// Error is the error of a failed call.
type Error struct {
	Kind     string `json:"kind"`
	Message  string `json:"message"`
	ExitCode int    `json:"exitCode,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// Errorf makes an Error of a kind.
func Errorf(kind, format string, args ...any) error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// Message is one frame. A request has ID and Method, a response has ID and either
// Result, Error or neither, an event has Event.
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
	Life    uint64 `json:"life"` // the number of this start, Spec.Life

	RunDir  string `json:"runDir"`  // sockets, FIFOs, state, journal
	DataDir string `json:"dataDir"` // exit record
	Bundle  string `json:"bundle"`  // OCI bundle, which contains config.json

	Runtime Runtime `json:"runtime"`

	Terminal    bool    `json:"terminal,omitempty"`
	ConsoleSize [2]uint `json:"consoleSize,omitempty"` // rows, columns
	OpenStdin   bool    `json:"openStdin,omitempty"`
	StdinOnce   bool    `json:"stdinOnce,omitempty"` // stdin closes after the first client
	UID         uint32  `json:"uid"`                 // host user that owns the stdio
	GID         uint32  `json:"gid"`

	Log     Log           `json:"log"`
	Restart RestartPolicy `json:"restart"`
	// RestartCount is the initial count, from an earlier shim of the same life.
	RestartCount int  `json:"restartCount,omitempty"`
	AutoRemove   bool `json:"autoRemove,omitempty"`

	StopSignal  int `json:"stopSignal"`  // signal number
	StopTimeout int `json:"stopTimeout"` // seconds, -1 for no limit

	Health *Health `json:"health,omitempty"`
	Ports  []Port  `json:"ports,omitempty"`

	// Finished is when the container last ended before this life. HealthLog has the
	// results of its last checks, which are shown until there are newer ones.
	Finished  time.Time      `json:"finished,omitzero"`
	HealthLog []HealthResult `json:"healthLog,omitempty"`

	// OOMFile and OOMKey name the counter of OOM kills: memory.oom_control on
	// cgroup v1, memory.events on v2, key "oom_kill".
	OOMFile string `json:"oomFile,omitempty"`
	OOMKey  string `json:"oomKey,omitempty"`

	Teardown Teardown `json:"teardown"`

	// Join lists the containers whose namespaces this one joins. Before each run the
	// shim mounts these namespaces at JoinedPath, which config.json refers to.
	Join []Join `json:"join,omitempty"`

	// Attributes are added to every journal entry: name, image and labels.
	Attributes map[string]string `json:"attributes,omitempty"`

	// Adopt is set if the container runs already and its shim was killed.
	Adopt *Adopt `json:"adopt,omitempty"`
}

// Adopt is what a shim that takes over a container gets from the daemon. Everything
// else is in the run directory. The descriptors travel after those of Ports, in the
// order of the fields.
type Adopt struct {
	// Pidfd: a pidfd of the container's process, opened while it lived.
	Pidfd bool `json:"pidfd,omitempty"`
	// Terminal: the master of the container's terminal.
	Terminal bool `json:"terminal,omitempty"`
	// Stdin: the writing end of the container's input.
	Stdin bool `json:"stdin,omitempty"`
}

// Upgrade asks a shim to re-exec another binary.
type Upgrade struct {
	Binary string `json:"binary"` // absolute path
}

// Kinds of namespaces that can be joined, named as in /proc/PID/ns.
const (
	JoinNet = "net"
	JoinIPC = "ipc"
	JoinPID = "pid"
)

// JoinedKinds lists all of them.
var JoinedKinds = []string{JoinNet, JoinIPC, JoinPID}

// JoinedPath is where a joined namespace is mounted, in the run directory of the
// container that joins it.
func JoinedPath(runDir, kind string) string { return runDir + "/ns-" + kind }

// Join is a container whose namespaces are joined. Its process is found by the
// files that its shim wrote.
type Join struct {
	ID    string   `json:"id"`
	Name  string   `json:"name"`  // for messages
	What  string   `json:"what"`  // for messages: network, IPC or PID
	Dir   string   `json:"dir"`   // its run directory
	Kinds []string `json:"kinds"` // of namespaces
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
	MaxFiles int               `json:"maxFiles,omitempty"` // including the active one; at least 1
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

// Port is a published port. The descriptor that travels with it is bound on the
// host (tcp: listening), so that no other program can take the port. The shim
// forwards what arrives there because the kernel can't translate it.
type Port struct {
	Proto  string `json:"proto"`  // tcp, udp, sctp
	Target string `json:"target"` // container's address and port; empty: reserved, not forwarded
	// Host is the socket's own address and port; used in Ports.
	Host string `json:"host,omitempty"`
}

// Teardown is what the shim undoes, in this order, when the container has ended for
// good.
type Teardown struct {
	// Netlink are messages for NETLINK_NETFILTER, each one a batch. The error "no
	// such element" is ignored.
	Netlink [][]byte `json:"netlink,omitempty"`
	// Unmount lists mount points, in order. They are detached with MNT_DETACH; one
	// that is not mounted is ignored.
	Unmount []string `json:"unmount,omitempty"`
	// Remove lists files and folders in the run directory.
	Remove []string `json:"remove,omitempty"`
}

// Hello opens a connection.
type Hello struct {
	Version int    `json:"version"`
	Daemon  string `json:"daemon,omitempty"` // release of the daemon, for people; empty for other clients
}

// HelloReply is the reply to Hello.
type HelloReply struct {
	Version int    `json:"version"`
	Release string `json:"release"`
	Pid     int    `json:"pid"`
	State   State  `json:"state"`
	// Names: the shim runs the container's name server.
	Names bool `json:"names,omitempty"`
	// Chunks: the shim supports Follow.Chunked.
	Chunks bool `json:"chunks,omitempty"`
}

// Subscribe asks for all journal entries after a sequence number: first the past
// ones, then new ones as they come, without a gap or a repetition.
type Subscribe struct {
	After uint64 `json:"after"`
}

// Heard acknowledges all journal entries up to Seq: the daemon has applied them, so
// its answers reflect them, and resources that they free are free.
//
// A connection that has sent Heard once, even with entry 0, delays the end of
// clients' streams and the answers of waiting clients. They are sent after it has
// acknowledged the entry that caused them, or has ended, or after ten seconds.
type Heard struct {
	Seq uint64 `json:"seq"`
	// Kept: all entries up to this one are in the daemon's own journal, which outlives
	// the daemon. The shim may discard them.
	Kept uint64 `json:"kept,omitempty"`
}

// Stop ends the container and marks it as stopped by the user, so that the restart
// policy does not restart it. The shim carries the stop out even if the caller
// disconnects.
type Stop struct {
	Signal  int `json:"signal,omitempty"`  // 0: Bootstrap.StopSignal
	Timeout int `json:"timeout,omitempty"` // seconds, -1 for no limit
	// Default: use Bootstrap.StopTimeout.
	Default bool `json:"default,omitempty"`
	// User: a user requested the stop, as opposed to a daemon that shuts down.
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
	// Lent: only for the lifetime of this connection. A shim of a release without
	// this field pauses until Resume.
	Lent bool `json:"lent,omitempty"`
}

// Update changes a running container.
type Update struct {
	Restart   *RestartPolicy  `json:"restart,omitempty"`
	Resources json.RawMessage `json:"resources,omitempty"` // OCI linux.resources
	// Attributes replace Bootstrap.Attributes, such as after a rename.
	Attributes map[string]string `json:"attributes,omitempty"`
}

// Resize sets the size of a terminal, in characters.
type Resize struct {
	Exec   string `json:"exec,omitempty"`
	Height uint   `json:"height"`
	Width  uint   `json:"width"`
}

// Names starts the container's name server, or gives it new sockets: a bound UDP
// socket and a listening TCP socket travel with the frame. View is the path of the
// file that defines what the container sees; see package shim/names.
type Names struct {
	View string `json:"view"`
}

// Ports replaces the targets of all published ports, after the container has joined
// or left a network. Ports may be in any order. The sockets of New travel with the
// frame, in order.
type Ports struct {
	Ports []Port `json:"ports,omitempty"` // with Host
	New   []Port `json:"new,omitempty"`
	// Netlink replaces Teardown.Netlink.
	Netlink [][]byte `json:"netlink,omitempty"`
}

// PortsReply lists the indexes of those of Ports.Ports for which the shim has no
// socket.
type PortsReply struct {
	Missing []int `json:"missing,omitempty"`
}

// Attach attaches the client whose socket travels with the frame.
type Attach struct {
	Stdin, Stdout, Stderr bool
	// Raw: output is not framed, as with a terminal. Otherwise stdout and stderr are
	// multiplexed with Docker's 8-byte header.
	Raw bool `json:"raw,omitempty"`
	// DetachKeys are ignored without a terminal: every byte is data then.
	DetachKeys []byte `json:"detachKeys,omitempty"`
	// Pending is what the client had sent before the socket was handed over.
	Pending []byte `json:"pending,omitempty"`
}

// Conditions of Hold, named as in the API.
const (
	HoldNotRunning = "not-running"
	HoldNextExit   = "next-exit"
	HoldRemoved    = "removed"
)

// LeaseDrop is sent over the lease of Hold when the daemon takes the client back.
const LeaseDrop = '.'

// Hold hands a client that waits for the container's end over to the shim. The
// first descriptor is the client's socket, the second the lease: a stream socket
// whose other end the daemon keeps. Over the lease the daemon sends either the rest
// of the answer, which the shim writes to the client and acknowledges with one
// byte, or LeaseDrop. If the lease is closed before that, the daemon has died, and
// the shim answers by itself: one chunk {"StatusCode":N} and the last chunk.
type Hold struct {
	Condition string `json:"condition"`
	// Head is written to the client before the answer to this request.
	Head []byte `json:"head,omitempty"`
}

// Follow hands a client that follows the log over to the shim. The first descriptor
// is the client's socket, to which all earlier lines are written; the second is the
// log's active file. The shim sends the records from Offset on, until the container
// ends or Until. KindConflict: the file is no longer the active one, or the
// container has ended; the daemon keeps the client.
type Follow struct {
	Offset int64 `json:"offset"` // of the first record, in bytes
	// Head is written before the first record, if the daemon has written nothing
	// yet.
	Head []byte `json:"head,omitempty"`
	// Chunked: the body is chunked; the shim must support that (HelloReply.Chunks).
	// The last chunk is sent only at the log's end, not when following fails.
	Chunked        bool `json:"chunked,omitempty"`
	Stdout, Stderr bool
	// Raw: lines are not framed. Otherwise they have Docker's header, as in Attach.
	Raw        bool      `json:"raw,omitempty"`
	Timestamps bool      `json:"timestamps,omitempty"`
	Details    bool      `json:"details,omitempty"`
	Since      time.Time `json:"since,omitzero"`
	Until      time.Time `json:"until,omitzero"`
	// Within: the last line sent of stdout and of stderr has not ended yet, so its
	// continuation gets no timestamp.
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
	// Info is returned in ExecState: the daemon's own record of the exec, in the
	// API's form.
	Info json.RawMessage `json:"info,omitempty"`
}

// ExecStart runs an exec session. A descriptor is the client's socket; without one
// the session runs detached.
type ExecStart struct {
	Exec        string  `json:"exec"`
	ConsoleSize [2]uint `json:"consoleSize,omitempty"` // rows, columns
	Pending     []byte  `json:"pending,omitempty"`
	// Reframe gives the client the other form of stream than the session's terminal
	// implies: frames with a terminal, and the plain output without one.
	Reframe bool `json:"reframe,omitempty"`
}

// Status of a shim's container.
const (
	StatusCreated    = "created"
	StatusRunning    = "running"
	StatusPaused     = "paused"
	StatusRestarting = "restarting" // between two runs, during the backoff
	StatusExited     = "exited"     // for good
	StatusRemoved    = "removed"    // exited, and removed because of AutoRemove
)

// State is what the shim has observed, in state.json and, at the end, in exit.json.
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
	// Manual: a stop was requested.
	Manual bool `json:"manual,omitempty"`
	// UserStopped: a user requested the stop. If no daemon lived, the spec does not
	// have this yet.
	UserStopped  bool         `json:"userStopped,omitempty"`
	RestartCount int          `json:"restartCount,omitempty"`
	NextRestart  time.Time    `json:"nextRestart,omitzero"`
	LogDropped   uint64       `json:"logDropped,omitempty"` // lines dropped because the disk was full
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

// HealthResult is the result of one check.
type HealthResult struct {
	Start    time.Time `json:"start"`
	End      time.Time `json:"end"`
	ExitCode int       `json:"exitCode"`
	Output   string    `json:"output"` // at most 4096 bytes
}

// ExecState is the state of an exec session.
type ExecState struct {
	Exec     string          `json:"exec"`
	Running  bool            `json:"running"`
	Started  bool            `json:"started"`
	Pid      int             `json:"pid,omitempty"`
	ExitCode int             `json:"exitCode"`
	Info     json.RawMessage `json:"info,omitempty"`
}

// Event is a journal entry as sent to subscribers, with the state after it.
type Event struct {
	Entry
	State State `json:"state"`
}

// Actions of journal entries, named as in docker events.
const (
	ActionStart   = "start"
	ActionDie     = "die" // attributes exitCode, execDuration (seconds)
	ActionOOM     = "oom"
	ActionHealth  = "health_status" // attribute health: healthy or unhealthy
	ActionDestroy = "destroy"
	ActionExecDie = "exec_die" // attributes execID, exitCode
	// ActionKill: the timeout of a stop expired and SIGKILL was sent, unless the
	// stop's own signal was SIGKILL; attribute signal (number).
	ActionKill = "kill"
	// ActionUnpause: a paused container was resumed for the signal that ends it.
	ActionUnpause = "unpause"
	// ActionDetach: a client detached by its keys. ActionExecDetach: the same for an
	// exec session; attribute execID.
	ActionDetach     = "detach"
	ActionExecDetach = "exec_detach"
	// ActionState: the state changed in a way that is no event of the API, such as a
	// health result or a planned restart. It is not journalled, and its Seq is 0.
	ActionState = "state"
	// ActionExited: no run of this life will follow. It is journalled, but is no
	// event of the API.
	ActionExited = "exited"
)

// Entry is a line of the journal.
type Entry struct {
	Seq        uint64            `json:"seq"`
	Time       time.Time         `json:"time"`
	Action     string            `json:"action"`
	Attributes map[string]string `json:"attributes,omitempty"`
}
