// SPDX-License-Identifier: Apache-2.0

// Package config turns the command line and daemon.json into one immutable
// Config, reports the differences between two of them, and applies a change to
// the daemon as a whole or not at all.
//
// It owns the table of options: every flag of dockerd and every key of Docker's
// daemon.json, each with its treatment here. It only imports the standard library
// and accesses neither files nor environment nor clock: the caller passes a
// function that reads files.
package config

import (
	"fmt"
	"net/netip"
	"path"
	"strings"
)

// DefaultFile is read if --config-file is not given. It may be missing.
const DefaultFile = "/etc/holdfast/daemon.json"

// Default paths.
const (
	DefaultDataRoot = "/var/lib/holdfast"
	DefaultExecRoot = "/run/holdfast"
)

// StockRuntime is the name of the built-in runtime.
const StockRuntime = "runc"

// ShimRuntime is containerd's name for the shim of StockRuntime. Clients use it
// as a runtime's name, so it is a built-in alias of StockRuntime.
const ShimRuntime = "io.containerd.runc.v2"

// Config is the daemon's configuration. It is immutable after Load; a reload
// makes a new one. Fields without a comment are Docker's option of that name.
type Config struct {
	ConfigFile string // path that was read, or would have been
	Shim       string // path of holdfast-shim; empty means next to the daemon's executable

	DataRoot string
	ExecRoot string
	Pidfile  string // empty means in ExecRoot; see PidfilePath

	Hosts     []string // as given, empty means the default; see Addresses
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
	ShutdownTimeout int // seconds; negative waits without limit
	Labels          []string
	Experimental    bool
	Features        map[string]bool
	MinAPIVersion   string
	// Access to the API over TCP without TLS from browsers: accepted host names of
	// requests, and origins of web pages. "*" means all.
	APIAllowedHosts   []string
	APIAllowedOrigins []string
	OOMScoreAdjust    int

	NodeGenericResources []string // see GenericResources
	SwarmAdvertiseAddr   string   // an address or an interface; empty chooses the only one
	// Ticks of a second after which a swarm's managers send heartbeats, and miss them.
	// 0 is the default.
	SwarmHeartbeatTick int
	SwarmElectionTick  int

	StorageDriver          string // empty chooses automatically
	RegistryMirrors        []string
	InsecureRegistries     []string
	RegistryTokenHosts     []string // REGISTRY=HOST[:PORT]
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
	CgroupnsMode    string // host, private, or empty: depends on the version of cgroups
	IpcMode         string // private or shareable
	ShmSize         int64  // bytes
	Ulimits         map[string]Ulimit
	Init            bool
	InitPath        string
	NoNewPrivileges bool
	SeccompProfile  string // builtin, unconfined, or a path
	LogDriver       string
	LogOpts         map[string]string

	Builder     Builder
	builderText string // the key builder, as JSON

	DNS            []netip.Addr
	DNSOptions     []string
	DNSSearch      []string
	HostGatewayIPs []netip.Addr

	Bridge           string // empty means the engine's own; "none" disables it
	BIP              string // CIDR of the bridge's address
	BIP6             string
	FixedCIDR        string
	FixedCIDRv6      string
	DefaultGateway   netip.Addr
	DefaultGatewayV6 netip.Addr
	DefaultBindIP    netip.Addr // --ip
	AddressPools     []Pool
	MTU              int
	NetworkOpts      map[string]map[string]string // for new networks, by driver
	IPv6             bool
	ICC              bool
	IPMasq           bool
	IPForward        bool
	IPForwardNoDrop  bool
	Iptables         bool // false: no firewall rules at all
	Ip6tables        bool
	UserlandProxy    bool
	// AllowDirectRouting lets other hosts reach published ports at the containers'
	// own addresses.
	AllowDirectRouting bool

	// other holds the values of options without a field, by key, as pointers to the
	// kind's type. Nothing in the daemon reads them.
	other map[string]any
	// given are the keys that the user set, by flag or in the file.
	given    map[string]bool
	warnings []string
	// refused are the options that can't be used, with the reason. Only Read leaves
	// any.
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

// Pool is a range of addresses from which networks get their subnets.
type Pool struct {
	Base netip.Prefix `json:"base"`
	Size int          `json:"size"` // prefix length of each subnet
}

// Given reports whether the user set the daemon.json key, by flag or file.
func (c *Config) Given(key string) bool { return c.given[key] }

// Warnings returns the options that were accepted without effect, and why. The
// daemon logs them once when it starts or reloads.
func (c *Config) Warnings() []string { return c.warnings }

// Addresses returns where the API listens: Hosts, or the socket in ExecRoot.
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

// PidfilePath returns where the daemon writes its process ID for users and
// scripts. The daemon itself does not rely on the file.
func (c *Config) PidfilePath() string {
	if c.Pidfile != "" {
		return c.Pidfile
	}
	return path.Join(c.ExecRoot, "holdfastd.pid")
}

// CgroupDriver returns cgroupfs, systemd, or "" if the user did not choose.
func (c *Config) CgroupDriver() string {
	opts, err := parseExecOpts(c.ExecOpts)
	if err != nil {
		return "" // Load has refused any other value
	}
	return opts["native.cgroupdriver"]
}

// ExposedWarnings returns a warning for each address at which the API is served
// without authentication.
func (c *Config) ExposedWarnings() []string {
	var out []string
	for _, a := range c.Addresses() {
		rest, tcp := strings.CutPrefix(a, "tcp://")
		switch {
		case !tcp:
		case !c.UseTLS():
			out = append(out, fmt.Sprintf("WARNING: API is accessible on http://%s without encryption: whoever can open a connection to it has root on this host. Use --tlsverify, or the unix socket alone", rest))
		case !c.VerifyClients():
			out = append(out, fmt.Sprintf("WARNING: API is accessible on https://%s without TLS client verification: whoever can open a connection to it has root on this host. Use --tlsverify", rest))
		}
	}
	return out
}

// HostNames returns the names, not addresses, on which the API is configured to
// listen.
func (c *Config) HostNames() []string {
	var names []string
	for _, a := range c.Addresses() {
		rest, tcp := strings.CutPrefix(a, "tcp://")
		if !tcp || strings.HasPrefix(rest, "[") {
			continue
		}
		name, _, _ := strings.Cut(rest, ":")
		if _, err := netip.ParseAddr(name); err != nil && name != "" {
			names = append(names, name)
		}
	}
	return names
}

// UseTLS reports whether TCP listeners use TLS: with --tls, or with --tlsverify
// at all. Even --tlsverify=false means TLS, without verification of clients.
func (c *Config) UseTLS() bool { return c.TLS || c.TLSVerify || c.given["tlsverify"] }

// VerifyClients reports whether clients need a certificate that TLSCACert signed.
// With TLS they do, unless --tlsverify=false is given.
func (c *Config) VerifyClients() bool {
	return c.UseTLS() && (c.TLSVerify || !c.given["tlsverify"])
}
