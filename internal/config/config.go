// Package config turns the command line and daemon.json into one immutable
// Config, says what changed between two of them, and carries a change through
// the daemon so that it happens as a whole or not at all.
//
// It owns the table of options: every flag of dockerd under its name and every
// key of Docker's daemon.json, each with what becomes of it here. It imports
// nothing but the standard library and touches no file, environment or clock:
// reading is the caller's, by a function that it hands in.
package config

import (
	"net/netip"
	"path"
)

// DefaultFile is read when --config-file is not given; it may be absent.
const DefaultFile = "/etc/holdfast/daemon.json"

// Defaults of paths.
const (
	DefaultDataRoot = "/var/lib/holdfast"
	DefaultExecRoot = "/run/holdfast"
)

// StockRuntime is the name of the runtime that is always there.
const StockRuntime = "runc"

// Config is what the daemon was told. Nobody changes it after Load; a reload
// makes a new one. Fields without a comment are Docker's option of that name.
type Config struct {
	ConfigFile string // path that was read, or would have been
	Shim       string // path of holdfast-shim; empty is beside the daemon's executable

	DataRoot string
	ExecRoot string
	Pidfile  string // empty is in ExecRoot; see PidfilePath

	Hosts     []string // as given, empty is the default; see Addresses
	Group     string   // group of the Unix socket, name or number; empty leaves it
	TLS       bool
	TLSVerify bool
	TLSCACert string
	TLSCert   string
	TLSKey    string

	Debug     bool
	LogLevel  string
	LogFormat string // text or json
	RawLogs   bool

	LiveRestore     bool
	ShutdownTimeout int // seconds; negative waits without end
	Labels          []string
	Experimental    bool
	Features        map[string]bool
	MinAPIVersion   string
	OOMScoreAdjust  int

	StorageDriver          string // empty chooses
	RegistryMirrors        []string
	InsecureRegistries     []string
	MaxConcurrentDownloads int
	MaxConcurrentUploads   int
	MaxDownloadAttempts    int
	HTTPProxy              string
	HTTPSProxy             string
	NoProxy                string

	DefaultRuntime  string
	Runtimes        map[string]Runtime // without StockRuntime unless it was given
	ExecOpts        []string           // see CgroupDriver
	CgroupParent    string
	CgroupnsMode    string // host, private, or empty: by the version of cgroups
	IpcMode         string // private or shareable
	ShmSize         int64  // bytes
	Ulimits         map[string]Ulimit
	Init            bool
	InitPath        string
	NoNewPrivileges bool
	SeccompProfile  string // builtin, unconfined, or a path
	LogDriver       string
	LogOpts         map[string]string

	DNS            []netip.Addr
	DNSOptions     []string
	DNSSearch      []string
	HostGatewayIPs []netip.Addr

	Bridge           string // empty is the engine's own; "none" disables it
	BIP              string // CIDR of the bridge's address
	BIP6             string
	FixedCIDR        string
	FixedCIDRv6      string
	DefaultGateway   netip.Addr
	DefaultGatewayV6 netip.Addr
	DefaultBindIP    netip.Addr // --ip
	AddressPools     []Pool
	MTU              int
	NetworkOpts      map[string]map[string]string // of new networks, by driver
	IPv6             bool
	ICC              bool
	IPMasq           bool
	IPForward        bool
	Iptables         bool // false: no firewall rules at all, whatever makes them
	Ip6tables        bool
	UserlandProxy    bool
	// AllowDirectRouting: other hosts may reach published ports at containers'
	// own addresses.
	AllowDirectRouting bool

	// other holds the values of options that have no field because nothing
	// here reads them, by key, as pointers to the kind's type.
	other map[string]any
	// given are the keys that the user set, on either side.
	given    map[string]bool
	warnings []string
	// refused are the options that can't be used, with the reason; only Read
	// leaves any.
	refused map[string]string
}

// Runtime is an OCI runtime: a command and its global arguments.
type Runtime struct {
	Path string   `json:"path"`
	Args []string `json:"runtimeArgs,omitempty"`
}

// Ulimit is a default resource limit of containers; -1 is unlimited.
type Ulimit struct {
	Name string
	Soft int64
	Hard int64
}

// Pool is a range that networks take their subnets from.
type Pool struct {
	Base netip.Prefix
	Size int // length of the prefix of each subnet
}

// Given reports whether the user set the daemon.json key, by flag or file.
func (c *Config) Given(key string) bool { return c.given[key] }

// Warnings name the options that were taken without effect, and why. They are
// to be logged once, when the daemon starts or reloads.
func (c *Config) Warnings() []string { return c.warnings }

// Addresses are where the API listens: Hosts, or the socket in ExecRoot.
func (c *Config) Addresses() []string {
	if len(c.Hosts) == 0 {
		return []string{"unix://" + path.Join(c.ExecRoot, "holdfast.sock")}
	}
	out := make([]string, len(c.Hosts))
	for i, h := range c.Hosts {
		if h == "unix://" {
			h = "unix://" + path.Join(c.ExecRoot, "holdfast.sock")
		}
		out[i] = h
	}
	return out
}

// PidfilePath is where the daemon writes its process ID, for people and
// scripts; nothing here trusts it.
func (c *Config) PidfilePath() string {
	if c.Pidfile != "" {
		return c.Pidfile
	}
	return path.Join(c.ExecRoot, "holdfastd.pid")
}

// CgroupDriver is cgroupfs, systemd, or empty where the user left the choice.
func (c *Config) CgroupDriver() string {
	opts, err := parseExecOpts(c.ExecOpts)
	if err != nil {
		return "" // Load has refused it
	}
	return opts["native.cgroupdriver"]
}

// UseTLS reports whether TCP listeners speak TLS: --tls, or --tlsverify at
// all, even as false, which is TLS without a check of clients.
func (c *Config) UseTLS() bool { return c.TLS || c.TLSVerify || c.given["tlsverify"] }

// VerifyClients reports whether clients must show a certificate that
// TLSCACert signed: always with TLS, unless --tlsverify=false says no.
func (c *Config) VerifyClients() bool {
	return c.UseTLS() && (c.TLSVerify || !c.given["tlsverify"])
}
