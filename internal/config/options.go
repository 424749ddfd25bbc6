// SPDX-License-Identifier: Apache-2.0

package config

// Kind is the type of an option's value.
type Kind int

// Kinds. Lists and the kinds after them may be given several times as flags.
const (
	Bool Kind = iota
	Int
	String
	IP
	Bytes
	List
	IPList
	Map
	MapMap
	BoolMap
	Pools
	Ulimits
	Runtimes
	Object
)

// Class says when a changed option takes effect, and for what. reload.go defines
// what a class means for a reload and for a restart.
type Class string

// Classes.
const (
	Live       Class = "live"         // at once, on SIGHUP
	NewObjects Class = "new-objects"  // at once, on SIGHUP, for what is created afterwards
	NewAtStart Class = "new-at-start" // at the next start, for what is created afterwards
	Restart    Class = "restart"      // at the next start, by the daemon itself
	Root       Class = "root"         // at the next start, unless a container prevents it
)

// Support is how an option is treated.
type Support string

// The values of Support.
const (
	Honoured Support = "honoured"
	// Ignored: it is accepted with a warning, because it has no meaning here.
	Ignored Support = "ignored"
	// Refused: it stops the start, because ignoring it would mislead the user.
	Refused Support = "refused"
)

// Option is one option of the daemon.
type Option struct {
	Flag   string // without dashes; empty means only in the file
	Short  string
	Key    string // in daemon.json; empty means only a flag
	Parent string // object of daemon.json that may contain Key
	Alias  string // older name of Key in daemon.json
	Kind   Kind
	// Default is the flag's default value as text. Empty means the kind's zero
	// value.
	Default string
	Usage   string
	Hidden  bool // not in --help

	Class   Class
	Support Support
	Reason  string // why it is ignored or refused
	// Note says how a change affects running containers, if the class does not say
	// it all.
	Note string

	// field returns where the value is stored. It is nil for options that nothing
	// reads.
	field func(*Config) any
}

// name returns the option's name in conflicts and changes.
func (o *Option) name() string {
	if o.Key != "" {
		return o.Key
	}
	return o.Flag
}

// Options returns the table, in the order of --help.
func Options() []Option {
	return append([]Option(nil), table...)
}

const (
	noContainerd = "Holdfast contains containerd's image libraries and starts no containerd"
	noSwarm      = "swarm mode does not use it in this release"
	noClusterKV  = "cluster stores were removed from Docker Engine 23.0; use overlay networks of swarm mode"
)

var table = []Option{
	{Flag: "add-runtime", Key: "runtimes", Kind: Runtimes, Class: Live, Support: Honoured, Note: "a container keeps the name of its runtime, and a running container also the command; if the name is removed, the container can't be started again", Usage: "Register an additional OCI compatible runtime", field: func(c *Config) any { return &c.Runtimes }},
	{Flag: "allow-direct-routing", Key: "allow-direct-routing", Kind: Bool, Class: Restart, Support: Honoured, Note: "it also applies to published ports of running containers", Usage: "Allow remote access to published ports on container IP addresses", field: func(c *Config) any { return &c.AllowDirectRouting }},
	{Flag: "allow-nondistributable-artifacts", Key: "allow-nondistributable-artifacts", Kind: List, Class: Live, Support: Ignored, Reason: "registries no longer have nondistributable layers", Usage: "Allow push of nondistributable artifacts to registry", Hidden: true},
	{Flag: "api-allowed-host", Key: "api-allowed-hosts", Kind: List, Class: Live, Support: Honoured, Usage: "Host name that requests over TCP without TLS may name, in addition to addresses, localhost, this host's name and the names in --host (\"*\" for any)", field: func(c *Config) any { return &c.APIAllowedHosts }},
	{Flag: "api-allowed-origin", Key: "api-allowed-origins", Kind: List, Class: Live, Support: Honoured, Usage: "Origin (scheme://host:port) of web pages that may use the API over TCP without TLS (\"*\" for any)", field: func(c *Config) any { return &c.APIAllowedOrigins }},
	{Flag: "api-cors-header", Key: "api-cors-header", Kind: String, Class: Restart, Support: Refused, Reason: "it was removed from the Engine API; use a reverse proxy if you need CORS headers", Usage: "Set CORS headers in the Engine API", Hidden: true},
	{Flag: "authorization-plugin", Key: "authorization-plugins", Kind: List, Class: Live, Support: Refused, Reason: "plugins can't be loaded in this release, and without them every request would be allowed", Usage: "Authorization plugins to load"},
	{Flag: "bip", Key: "bip", Kind: String, Class: NewAtStart, Support: Honoured, Note: "a running container keeps its address and its gateway, which stay on the bridge as long as it runs", Usage: "IPv4 address for the default bridge", field: func(c *Config) any { return &c.BIP }},
	{Flag: "bip6", Key: "bip6", Kind: String, Class: NewAtStart, Support: Honoured, Note: "a running container keeps its address and its gateway, which stay on the bridge as long as it runs", Usage: "IPv6 address for the default bridge", field: func(c *Config) any { return &c.BIP6 }},
	{Flag: "bridge", Short: "b", Key: "bridge", Kind: String, Class: NewAtStart, Support: Honoured, Note: "a running container stays on its bridge", Usage: "Attach containers to a network bridge", field: func(c *Config) any { return &c.Bridge }},
	{Flag: "bridge-accept-fwmark", Key: "bridge-accept-fwmark", Kind: String, Class: NewAtStart, Support: Refused, Reason: "firewall marks are not supported in this release", Usage: "In bridge networks, accept packets with this firewall mark/mask"},
	{Key: "builder", Kind: Object, Class: NewObjects, Support: Honoured, Note: "a running build process takes over the bounds of its history when it has built nothing for a minute", field: func(c *Config) any { return &c.builderText }},
	{Flag: "cdi-spec-dir", Key: "cdi-spec-dirs", Kind: List, Class: Restart, Support: Ignored, Reason: "CDI devices are not part of this release", Usage: "CDI specification directories to use"},
	{Flag: "cgroup-parent", Key: "cgroup-parent", Kind: String, Class: NewObjects, Support: Honoured, Note: "a container keeps its cgroup across restarts", Usage: "Set parent cgroup for all containers", field: func(c *Config) any { return &c.CgroupParent }},
	{Flag: "cluster-advertise", Key: "cluster-advertise", Kind: String, Class: Restart, Support: Refused, Reason: noClusterKV, Hidden: true},
	{Flag: "cluster-store", Key: "cluster-store", Kind: String, Class: Restart, Support: Refused, Reason: noClusterKV, Hidden: true},
	{Flag: "cluster-store-opt", Key: "cluster-store-opts", Kind: Map, Class: Restart, Support: Refused, Reason: noClusterKV, Hidden: true},
	{Flag: "config-file", Kind: String, Default: DefaultFile, Class: Restart, Support: Honoured, Usage: "Daemon configuration file", field: func(c *Config) any { return &c.ConfigFile }},
	{Flag: "containerd", Key: "containerd", Kind: String, Class: Restart, Support: Ignored, Reason: noContainerd, Usage: "containerd grpc address (no meaning here)"},
	{Flag: "containerd-namespace", Key: "containerd-namespace", Kind: String, Class: Restart, Support: Ignored, Reason: noContainerd, Usage: "Containerd namespace to use (no meaning here)"},
	{Flag: "containerd-plugins-namespace", Key: "containerd-plugins-namespace", Alias: "containerd-plugin-namespace", Kind: String, Class: Restart, Support: Ignored, Reason: noContainerd, Usage: "Containerd namespace to use for plugins (no meaning here)"},
	{Flag: "cpu-rt-period", Key: "cpu-rt-period", Kind: Int, Class: NewObjects, Support: Refused, Reason: "the parent cgroup gets no real-time budget in this release; set it with your service manager", Usage: "Limit the CPU real-time period in microseconds for the parent cgroup for all containers (not supported with cgroups v2)"},
	{Flag: "cpu-rt-runtime", Key: "cpu-rt-runtime", Kind: Int, Class: NewObjects, Support: Refused, Reason: "the parent cgroup gets no real-time budget in this release; set it with your service manager", Usage: "Limit the CPU real-time runtime in microseconds for the parent cgroup for all containers (not supported with cgroups v2)"},
	{Flag: "cri-containerd", Key: "cri-containerd", Kind: Bool, Class: Restart, Support: Ignored, Reason: noContainerd, Usage: "Start containerd with CRI (no meaning here)"},
	{Flag: "data-root", Key: "data-root", Kind: String, Default: DefaultDataRoot, Class: Root, Support: Honoured, Note: "the containers of the old data root run on, and the new daemon does not know them; it refuses to start if it would share their exec root, or if the data root belongs to Docker", Usage: "Root directory of persistent state", field: func(c *Config) any { return &c.DataRoot }},
	{Flag: "debug", Short: "D", Key: "debug", Kind: Bool, Class: Live, Support: Honoured, Usage: "Enable debug mode", field: func(c *Config) any { return &c.Debug }},
	{Flag: "default-address-pool", Key: "default-address-pools", Kind: Pools, Class: NewAtStart, Support: Honoured, Note: "a network keeps its subnet", Usage: "Default address pools for node specific local networks", field: func(c *Config) any { return &c.AddressPools }},
	{Flag: "default-cgroupns-mode", Key: "default-cgroupns-mode", Kind: String, Class: NewObjects, Support: Honoured, Usage: `Default mode for containers cgroup namespace ("host" | "private")`, field: func(c *Config) any { return &c.CgroupnsMode }},
	{Flag: "default-gateway", Key: "default-gateway", Kind: IP, Class: NewAtStart, Support: Honoured, Note: "a running container keeps its default route", Usage: "Default gateway IPv4 address for the default bridge network", field: func(c *Config) any { return &c.DefaultGateway }},
	{Flag: "default-gateway-v6", Key: "default-gateway-v6", Kind: IP, Class: NewAtStart, Support: Honoured, Note: "a running container keeps its default route", Usage: "Default gateway IPv6 address for the default bridge network", field: func(c *Config) any { return &c.DefaultGatewayV6 }},
	{Flag: "default-ipc-mode", Key: "default-ipc-mode", Kind: String, Default: "private", Class: NewObjects, Support: Honoured, Usage: `Default mode for containers ipc ("shareable" | "private")`, field: func(c *Config) any { return &c.IpcMode }},
	{Flag: "default-network-opt", Key: "default-network-opts", Kind: MapMap, Class: NewAtStart, Support: Honoured, Note: "a network keeps its options; options of the network itself take precedence", Usage: "Default network options", field: func(c *Config) any { return &c.NetworkOpts }},
	{Flag: "default-runtime", Key: "default-runtime", Kind: String, Default: StockRuntime, Class: NewObjects, Support: Honoured, Note: "a container keeps its runtime across restarts", Usage: "Default OCI runtime for containers", field: func(c *Config) any { return &c.DefaultRuntime }},
	{Flag: "default-shm-size", Key: "default-shm-size", Kind: Bytes, Default: "64MiB", Class: NewObjects, Support: Honoured, Usage: "Default shm size for containers", field: func(c *Config) any { return &c.ShmSize }},
	{Flag: "default-ulimit", Key: "default-ulimits", Kind: Ulimits, Class: NewObjects, Support: Honoured, Note: "a container keeps its limits across restarts", Usage: "Default ulimits for containers", field: func(c *Config) any { return &c.Ulimits }},
	{Key: "deprecated-key-path", Kind: String, Class: Restart, Support: Ignored, Reason: "trust keys were removed from Docker Engine"},
	{Key: "disable-legacy-registry", Kind: Bool, Class: Restart, Support: Ignored, Reason: "version 1 of the registry API is never used"},
	{Flag: "dns", Key: "dns", Kind: IPList, Class: NewObjects, Support: Honoured, Note: "a container keeps its name servers across restarts", Usage: "DNS server to use", field: func(c *Config) any { return &c.DNS }},
	{Flag: "dns-opt", Key: "dns-opts", Kind: List, Class: NewObjects, Support: Honoured, Note: "a container keeps its options across restarts", Usage: "DNS options to use", field: func(c *Config) any { return &c.DNSOptions }},
	{Flag: "dns-search", Key: "dns-search", Kind: List, Class: NewObjects, Support: Honoured, Note: "a container keeps its search domains across restarts", Usage: "DNS search domains to use", field: func(c *Config) any { return &c.DNSSearch }},
	{Flag: "exec-opt", Key: "exec-opts", Kind: List, Class: NewObjects, Support: Honoured, Note: "a container keeps its cgroup driver across restarts", Usage: "Runtime execution options", field: func(c *Config) any { return &c.ExecOpts }},
	{Flag: "exec-root", Key: "exec-root", Kind: String, Default: DefaultExecRoot, Class: Restart, Support: Honoured, Note: "a running container keeps its run directory below the old exec root until it stops; the default API socket moves", Usage: "Root directory for execution state files", field: func(c *Config) any { return &c.ExecRoot }},
	{Flag: "experimental", Key: "experimental", Kind: Bool, Class: Restart, Support: Honoured, Usage: "Enable experimental features", field: func(c *Config) any { return &c.Experimental }},
	{Flag: "feature", Key: "features", Kind: BoolMap, Class: Restart, Support: Honoured, Usage: "Enable feature in the daemon", field: func(c *Config) any { return &c.Features }},
	{Flag: "firewall-backend", Key: "firewall-backend", Kind: String, Class: Restart, Support: Ignored, Reason: "published ports are always nftables rules here", Usage: "Firewall backend to use (always nftables here)"},
	{Flag: "fixed-cidr", Key: "fixed-cidr", Kind: String, Class: NewAtStart, Support: Honoured, Note: "a running container keeps its address", Usage: "IPv4 subnet for the default bridge network", field: func(c *Config) any { return &c.FixedCIDR }},
	{Flag: "fixed-cidr-v6", Key: "fixed-cidr-v6", Kind: String, Class: NewAtStart, Support: Honoured, Note: "a running container keeps its address", Usage: "IPv6 subnet for the default bridge network", field: func(c *Config) any { return &c.FixedCIDRv6 }},
	{Flag: "graph", Short: "g", Key: "graph", Kind: String, Class: Restart, Support: Refused, Reason: "it is called data-root since Docker Engine 17.05", Hidden: true},
	{Flag: "group", Short: "G", Key: "group", Kind: String, Default: "docker", Class: Restart, Support: Honoured, Usage: "Group for the unix socket", field: func(c *Config) any { return &c.Group }},
	{Flag: "host", Short: "H", Key: "hosts", Kind: List, Class: Restart, Support: Honoured, Note: "the sockets are opened at the start; containers that have the old socket mounted keep that one", Usage: "Daemon socket(s) to connect to", field: func(c *Config) any { return &c.Hosts }},
	{Flag: "host-gateway-ip", Key: "host-gateway-ips", Alias: "host-gateway-ip", Kind: IPList, Class: NewObjects, Support: Honoured, Note: "a container keeps its addresses across restarts", Usage: "IP addresses that the special 'host-gateway' string in --add-host resolves to. Defaults to the IP addresses of the default bridge", field: func(c *Config) any { return &c.HostGatewayIPs }},
	{Flag: "http-proxy", Key: "http-proxy", Parent: "proxies", Kind: String, Class: Restart, Support: Honoured, Usage: "HTTP proxy URL to use for outgoing traffic", field: func(c *Config) any { return &c.HTTPProxy }},
	{Flag: "https-proxy", Key: "https-proxy", Parent: "proxies", Kind: String, Class: Restart, Support: Honoured, Usage: "HTTPS proxy URL to use for outgoing traffic", field: func(c *Config) any { return &c.HTTPSProxy }},
	{Flag: "icc", Key: "icc", Kind: Bool, Default: "true", Class: NewAtStart, Support: Honoured, Note: "a running container keeps the rule with which it was started", Usage: "Enable inter-container communication for the default bridge network", field: func(c *Config) any { return &c.ICC }},
	{Flag: "init", Key: "init", Kind: Bool, Class: NewObjects, Support: Honoured, Note: "a container keeps its setting across restarts", Usage: "Run an init in the container to forward signals and reap processes", field: func(c *Config) any { return &c.Init }},
	{Flag: "init-path", Key: "init-path", Alias: "default-init", Kind: String, Class: NewObjects, Support: Honoured, Usage: "Path to the docker-init binary", field: func(c *Config) any { return &c.InitPath }},
	{Flag: "insecure-registry", Key: "insecure-registries", Kind: List, Class: Live, Support: Honoured, Usage: "Enable insecure registry communication", field: func(c *Config) any { return &c.InsecureRegistries }},
	{Flag: "ip", Key: "ip", Kind: IP, Default: "0.0.0.0", Class: NewAtStart, Support: Honoured, Note: "a running container keeps its host ports and their addresses", Usage: "Host IP for port publishing from the default bridge network", field: func(c *Config) any { return &c.DefaultBindIP }},
	{Flag: "ip-forward", Key: "ip-forward", Kind: Bool, Default: "true", Class: Restart, Support: Honoured, Usage: "Enable IP forwarding in system configuration", field: func(c *Config) any { return &c.IPForward }},
	{Flag: "ip-forward-no-drop", Key: "ip-forward-no-drop", Kind: Bool, Class: Restart, Support: Honoured, Note: "if the engine has enabled forwarding, its own rules drop other forwarded packets; it never changes the policy of a FORWARD chain", Usage: "Do not drop packets that are forwarded between the host's other interfaces when enabling IP forwarding", field: func(c *Config) any { return &c.IPForwardNoDrop }},
	{Flag: "ip-masq", Key: "ip-masq", Kind: Bool, Default: "true", Class: NewAtStart, Support: Honoured, Note: "a running container keeps the rule with which it was started", Usage: "Enable IP masquerading for the default bridge network", field: func(c *Config) any { return &c.IPMasq }},
	{Flag: "ip6tables", Key: "ip6tables", Kind: Bool, Default: "true", Class: NewAtStart, Support: Honoured, Note: "the rules of a running container stay as long as it runs, and also apply to new containers on its bridge", Usage: "Enable addition of IPv6 firewall rules", field: func(c *Config) any { return &c.Ip6tables }},
	{Flag: "iptables", Key: "iptables", Kind: Bool, Default: "true", Class: NewAtStart, Support: Honoured, Note: "the rules of a running container stay as long as it runs, and also apply to new containers on its bridge", Usage: "Enable addition of firewall rules", field: func(c *Config) any { return &c.Iptables }},
	{Flag: "ipv6", Key: "ipv6", Kind: Bool, Class: NewAtStart, Support: Honoured, Note: "a running container keeps its addresses", Usage: "Enable IPv6 networking for the default bridge network", field: func(c *Config) any { return &c.IPv6 }},
	{Flag: "label", Key: "labels", Kind: List, Class: Live, Support: Honoured, Usage: "Set key=value labels to the daemon", field: func(c *Config) any { return &c.Labels }},
	{Flag: "live-restore", Key: "live-restore", Kind: Bool, Class: Live, Support: Honoured, Note: "the new value applies when the daemon stops or is killed the next time", Usage: "Keep containers running while the daemon is away", field: func(c *Config) any { return &c.LiveRestore }},
	{Flag: "log-driver", Key: "log-driver", Kind: String, Default: "json-file", Class: NewObjects, Support: Honoured, Note: "a container keeps its driver across restarts, and its old log stays readable", Usage: "Default driver for container logs", field: func(c *Config) any { return &c.LogDriver }},
	{Flag: "log-format", Key: "log-format", Kind: String, Default: "text", Class: Restart, Support: Honoured, Usage: `Set the logging format ("text"|"json")`, field: func(c *Config) any { return &c.LogFormat }},
	{Flag: "log-level", Short: "l", Key: "log-level", Kind: String, Default: "info", Class: Live, Support: Honoured, Usage: `Set the logging level ("debug"|"info"|"warn"|"error"|"fatal")`, field: func(c *Config) any { return &c.LogLevel }},
	{Flag: "log-opt", Key: "log-opts", Kind: Map, Class: NewObjects, Support: Honoured, Note: "a container keeps its options across restarts", Usage: "Default log driver options for containers", field: func(c *Config) any { return &c.LogOpts }},
	{Flag: "max-concurrent-downloads", Key: "max-concurrent-downloads", Kind: Int, Default: "3", Class: Live, Support: Honoured, Usage: "Set the max concurrent downloads", field: func(c *Config) any { return &c.MaxConcurrentDownloads }},
	{Flag: "max-concurrent-uploads", Key: "max-concurrent-uploads", Kind: Int, Default: "5", Class: Live, Support: Honoured, Usage: "Set the max concurrent uploads", field: func(c *Config) any { return &c.MaxConcurrentUploads }},
	{Flag: "max-download-attempts", Key: "max-download-attempts", Kind: Int, Default: "5", Class: Live, Support: Honoured, Usage: "Set the max download attempts for each pull", field: func(c *Config) any { return &c.MaxDownloadAttempts }},
	{Flag: "metrics-addr", Key: "metrics-addr", Kind: String, Class: Restart, Support: Refused, Reason: "metrics are not served in this release", Usage: "Set default address and port to serve the metrics api on"},
	{Flag: "min-api-version", Key: "min-api-version", Kind: String, Default: "1.24", Class: Restart, Support: Honoured, Usage: "Set the minimum API version that clients may speak", field: func(c *Config) any { return &c.MinAPIVersion }},
	{Flag: "mtu", Key: "mtu", Kind: Int, Default: "1500", Class: NewAtStart, Support: Honoured, Note: "a running container keeps the MTU of its interface", Usage: `Set the MTU for the default "bridge" network`, field: func(c *Config) any { return &c.MTU }},
	{Flag: "network-control-plane-mtu", Key: "network-control-plane-mtu", Kind: Int, Default: "1500", Class: Restart, Support: Ignored, Reason: noSwarm, Usage: "Network Control plane MTU (no meaning here)"},
	{Flag: "network-diagnostic-port", Key: "network-diagnostic-port", Kind: Int, Class: Restart, Support: Ignored, Reason: "there is no network diagnostic server", Hidden: true},
	{Flag: "no-new-privileges", Key: "no-new-privileges", Kind: Bool, Class: NewObjects, Support: Honoured, Note: "a container keeps its setting across restarts", Usage: "Set no-new-privileges by default for new containers", field: func(c *Config) any { return &c.NoNewPrivileges }},
	{Flag: "no-proxy", Key: "no-proxy", Parent: "proxies", Kind: String, Class: Restart, Support: Honoured, Usage: "Comma-separated list of hosts or IP addresses for which the proxy is skipped", field: func(c *Config) any { return &c.NoProxy }},
	{Flag: "node-generic-resource", Key: "node-generic-resources", Kind: List, Class: Restart, Support: Honoured, Usage: "Advertise user-defined resource to a swarm", field: func(c *Config) any { return &c.NodeGenericResources }},
	{Flag: "nri-opts", Key: "nri-opts", Kind: Object, Class: Restart, Support: Refused, Reason: "the Node Resource Interface is not part of this release", Usage: "Node Resource Interface configuration"},
	{Flag: "oom-score-adjust", Key: "oom-score-adjust", Kind: Int, Class: Restart, Support: Honoured, Usage: "Set the oom_score_adj for the daemon", field: func(c *Config) any { return &c.OOMScoreAdjust }},
	{Flag: "pidfile", Short: "p", Key: "pidfile", Kind: String, Class: Restart, Support: Honoured, Usage: "Path to use for daemon PID file (default holdfastd.pid in the exec root)", field: func(c *Config) any { return &c.Pidfile }},
	{Flag: "raw-logs", Key: "raw-logs", Kind: Bool, Class: Restart, Support: Honoured, Usage: "Full timestamps without ANSI coloring", field: func(c *Config) any { return &c.RawLogs }},
	{Flag: "registry-mirror", Key: "registry-mirrors", Kind: List, Class: Live, Support: Honoured, Usage: "Preferred registry mirror", field: func(c *Config) any { return &c.RegistryMirrors }},
	{Flag: "registry-token-host", Key: "registry-token-hosts", Kind: List, Class: Live, Support: Honoured, Usage: "Host of another domain that may be given a registry's login for a token, as REGISTRY=HOST[:PORT]", field: func(c *Config) any { return &c.RegistryTokenHosts }},
	{Key: "resolv-conf", Kind: String, Class: NewObjects, Support: Refused, Reason: "containers take name servers from the host's /etc/resolv.conf; use dns, dns-opts and dns-search"},
	{Flag: "restart", Short: "r", Kind: Bool, Default: "true", Class: Restart, Support: Ignored, Reason: "give containers a restart policy instead", Hidden: true},
	{Flag: "rootless", Key: "rootless", Kind: Bool, Class: Restart, Support: Refused, Reason: "the daemon runs as root in this release", Usage: "Enable rootless mode"},
	{Flag: "seccomp-profile", Key: "seccomp-profile", Kind: String, Default: "builtin", Class: NewObjects, Support: Honoured, Note: "a container keeps its profile across restarts", Usage: `Path to seccomp profile. Set to "unconfined" to disable the default seccomp profile`, field: func(c *Config) any { return &c.SeccompProfile }},
	{Flag: "selinux-enabled", Key: "selinux-enabled", Kind: Bool, Class: NewObjects, Support: Refused, Reason: "containers get no SELinux labels in this release", Usage: "Enable selinux support"},
	{Flag: "shim", Kind: String, Class: NewAtStart, Support: Honoured, Note: "a running container keeps its shim", Usage: "Path to holdfast-shim (default beside holdfastd)", field: func(c *Config) any { return &c.Shim }},
	{Flag: "shutdown-timeout", Key: "shutdown-timeout", Kind: Int, Default: "15", Class: Live, Support: Honoured, Usage: "Set the default shutdown timeout", field: func(c *Config) any { return &c.ShutdownTimeout }},
	{Flag: "storage-driver", Short: "s", Key: "storage-driver", Kind: String, Class: NewAtStart, Support: Honoured, Note: "a container keeps its driver and its layers", Usage: "Storage driver to use", field: func(c *Config) any { return &c.StorageDriver }},
	{Flag: "storage-opt", Key: "storage-opts", Kind: List, Class: NewAtStart, Support: Refused, Reason: "the storage drivers have no options in this release", Usage: "Storage driver options"},
	{Flag: "swarm-default-advertise-addr", Key: "swarm-default-advertise-addr", Kind: String, Class: Restart, Support: Honoured, Usage: "Set default address or interface for swarm advertised address", field: func(c *Config) any { return &c.SwarmAdvertiseAddr }},
	{Key: "swarm-raft-election-tick", Kind: Int, Class: Restart, Support: Honoured, field: func(c *Config) any { return &c.SwarmElectionTick }},
	{Key: "swarm-raft-heartbeat-tick", Kind: Int, Class: Restart, Support: Honoured, field: func(c *Config) any { return &c.SwarmHeartbeatTick }},
	{Flag: "tls", Key: "tls", Kind: Bool, Class: Restart, Support: Honoured, Usage: "Use TLS; implied by --tlsverify", field: func(c *Config) any { return &c.TLS }},
	{Flag: "tlscacert", Key: "tlscacert", Kind: String, Class: Restart, Support: Honoured, Usage: `Trust certs signed only by this CA (default "~/.docker/ca.pem")`, field: func(c *Config) any { return &c.TLSCACert }},
	{Flag: "tlscert", Key: "tlscert", Kind: String, Class: Restart, Support: Honoured, Usage: `Path to TLS certificate file (default "~/.docker/cert.pem")`, field: func(c *Config) any { return &c.TLSCert }},
	{Flag: "tlskey", Key: "tlskey", Kind: String, Class: Restart, Support: Honoured, Usage: `Path to TLS key file (default "~/.docker/key.pem")`, field: func(c *Config) any { return &c.TLSKey }},
	{Flag: "tlsverify", Key: "tlsverify", Kind: Bool, Class: Restart, Support: Honoured, Usage: "Use TLS and verify the remote", field: func(c *Config) any { return &c.TLSVerify }},
	{Flag: "userland-proxy", Key: "userland-proxy", Kind: Bool, Default: "true", Class: NewAtStart, Support: Honoured, Note: "a running container keeps its shim's forwarding", Usage: "Forward published ports that the kernel can't translate", field: func(c *Config) any { return &c.UserlandProxy }},
	{Flag: "userland-proxy-path", Key: "userland-proxy-path", Kind: String, Class: Restart, Support: Ignored, Reason: "the kernel translates published ports, and the container's shim forwards connections that the kernel can't translate", Usage: "Path to the userland proxy binary (no meaning here)"},
	{Flag: "userns-remap", Key: "userns-remap", Kind: String, Class: NewObjects, Support: Refused, Reason: "user namespaces are not part of this release, and without them containers would run with the host's root", Usage: "User/Group setting for user namespaces"},
}
