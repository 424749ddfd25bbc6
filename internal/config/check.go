// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// check validates the values, individually and in combination, and normalizes
// them. Every message names the option and what it accepts.
func (c *Config) check() error {
	for _, check := range []func(*Config) error{
		checkPaths, checkLogging, checkHosts, checkLabels, checkNumbers, checkSwarm, checkRegistries, checkProxies,
		checkRuntimes, checkModes, checkBridge, checkDNS, checkAPI, checkBrowsers, checkBuilder,
	} {
		if err := check(c); err != nil {
			return err
		}
	}
	return nil
}

func checkPaths(c *Config) error {
	for _, p := range []struct {
		name     string
		value    *string
		optional bool
	}{
		{"data-root", &c.DataRoot, false},
		{"exec-root", &c.ExecRoot, false},
		{"pidfile", &c.Pidfile, true},
		{"shim", &c.Shim, true},
	} {
		if *p.value == "" && p.optional {
			continue
		}
		v, err := cleanPath(p.name, *p.value)
		if err != nil {
			return err
		}
		*p.value = v
	}
	if c.DataRoot == "/" || c.ExecRoot == "/" {
		return errors.New("invalid data-root or exec-root \"/\": want a folder of the daemon's own")
	}
	if c.SeccompProfile != "builtin" && c.SeccompProfile != "unconfined" {
		v, err := cleanPath("seccomp-profile", c.SeccompProfile)
		if err != nil {
			return fmt.Errorf("%w, builtin or unconfined", err)
		}
		c.SeccompProfile = v
	}
	return nil
}

func checkLogging(c *Config) error {
	switch strings.ToLower(c.LogLevel) {
	case "panic", "fatal", "error", "warn", "info", "debug", "trace":
		c.LogLevel = strings.ToLower(c.LogLevel)
	default:
		return fmt.Errorf("invalid logging level: %s: want debug, info, warn, error or fatal", c.LogLevel)
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		return fmt.Errorf("invalid log format: %s: want text or json", c.LogFormat)
	}
	return nil
}

func checkHosts(c *Config) error {
	for i, h := range c.Hosts {
		h = strings.TrimSpace(h)
		if !strings.Contains(h, "://") {
			h = "tcp://" + h // as dockerd reads -H 127.0.0.1:2375
		}
		if err := checkHost(h); err != nil {
			return err
		}
		c.Hosts[i] = h
	}
	return nil
}

func checkHost(h string) error {
	proto, rest, _ := strings.Cut(h, "://")
	switch proto {
	case "unix":
		if rest != "" && !strings.HasPrefix(rest, "/") {
			return fmt.Errorf("invalid bind address (%s): want an absolute path as in unix:///run/holdfast/holdfast.sock", h)
		}
	case "tcp":
		if strings.ContainsAny(rest, "/?#@ ") {
			return fmt.Errorf("invalid bind address (%s): should not contain a path element", h)
		}
		host, port := rest, ""
		if i := strings.LastIndexByte(rest, ':'); i >= 0 && !strings.HasSuffix(rest, "]") {
			host, port = rest[:i], rest[i+1:]
		}
		if port != "" {
			if _, err := strconv.ParseUint(port, 10, 16); err != nil {
				return fmt.Errorf("invalid bind address (%s): invalid port %s", h, port)
			}
		}
		if strings.Contains(host, ":") && !strings.HasPrefix(host, "[") {
			return fmt.Errorf("invalid bind address (%s): put an IPv6 address into brackets", h)
		}
	case "fd":
	default:
		return fmt.Errorf("invalid bind address (%s): unsupported proto '%s': want unix, tcp or fd", h, proto)
	}
	return nil
}

func checkLabels(c *Config) error {
	values := map[string]string{}
	var out []string
	for _, l := range c.Labels {
		k, v, ok := strings.Cut(l, "=")
		if !ok {
			return fmt.Errorf("bad attribute format: %s: want key=value", l)
		}
		if k == "" || strings.ContainsAny(k, " \t\n") {
			return fmt.Errorf("bad attribute format: %s: want a key without spaces", l)
		}
		if have, twice := values[k]; twice {
			if have != v {
				return fmt.Errorf("conflict labels for %s=%s and %s=%s", k, v, k, have)
			}
			continue
		}
		values[k] = v
		out = append(out, l)
	}
	c.Labels = out
	return nil
}

func checkNumbers(c *Config) error {
	for _, n := range []struct {
		name  string
		value int
	}{
		{"max concurrent downloads", c.MaxConcurrentDownloads},
		{"max concurrent uploads", c.MaxConcurrentUploads},
		{"max download attempts", c.MaxDownloadAttempts},
	} {
		if n.value < 1 {
			return fmt.Errorf("invalid %s: %d: want 1 or more", n.name, n.value)
		}
	}
	if c.MTU != 0 && (c.MTU < 68 || c.MTU > 65535) {
		return fmt.Errorf("invalid default MTU: %d: want 68 to 65535", c.MTU)
	}
	if c.OOMScoreAdjust < -1000 || c.OOMScoreAdjust > 1000 {
		return fmt.Errorf("invalid oom-score-adjust: %d: want -1000 to 1000", c.OOMScoreAdjust)
	}
	if c.ShmSize <= 0 {
		return fmt.Errorf("invalid default-shm-size: %d: want more than 0 bytes", c.ShmSize)
	}
	return nil
}

func checkRegistries(c *Config) error {
	for i, m := range c.RegistryMirrors {
		u, err := url.Parse(m)
		switch {
		case err != nil:
			return fmt.Errorf("invalid mirror: %q is not a valid URI: %w", m, err)
		case u.Scheme != "http" && u.Scheme != "https":
			return fmt.Errorf("invalid mirror: %q: no scheme specified: must use either 'https://' or 'http://'", m)
		case u.Host == "":
			return fmt.Errorf("invalid mirror: %q has no host", m)
		case u.RawQuery != "" || u.Fragment != "":
			return fmt.Errorf("invalid mirror: query or fragment at end of the URI %q", m)
		case u.User != nil:
			return fmt.Errorf("invalid mirror: username/password not allowed in URI %q", MaskCredentials(m))
		}
		c.RegistryMirrors[i] = strings.TrimSuffix(m, "/") + "/"
	}
	for i, r := range c.InsecureRegistries {
		for _, scheme := range []string{"http://", "https://"} {
			if rest, had := strings.CutPrefix(strings.ToLower(r), scheme); had {
				c.warnings = append(c.warnings, fmt.Sprintf("insecure registry %s should not contain '%s' and '%s' has been removed from the insecure registry config", r, scheme, scheme))
				r = rest
			}
		}
		if _, err := netip.ParsePrefix(r); err != nil {
			host, port := r, ""
			if j := strings.LastIndexByte(r, ':'); j >= 0 && !strings.HasSuffix(r, "]") {
				host, port = r[:j], r[j+1:]
				if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
					return fmt.Errorf("insecure registry %s is not valid: invalid port %q", r, port)
				}
			}
			if host == "" || strings.HasPrefix(host, "-") || strings.HasSuffix(host, "-") || strings.ContainsAny(host, "/ ?#@") {
				return fmt.Errorf("insecure registry %s is not valid: want HOST, HOST:PORT or a network such as 10.0.0.0/8", r)
			}
		}
		c.InsecureRegistries[i] = r
	}
	for _, pair := range c.RegistryTokenHosts {
		registry, host, ok := strings.Cut(pair, "=")
		if !ok || registry == "" || host == "" || strings.ContainsAny(pair, "/ ?#@") || strings.Contains(host, "=") {
			return fmt.Errorf("registry token host %s is not valid: want REGISTRY=HOST or REGISTRY=HOST:PORT", pair)
		}
	}
	return nil
}

func checkProxies(c *Config) error {
	for _, p := range []struct{ name, value string }{{"http-proxy", c.HTTPProxy}, {"https-proxy", c.HTTPSProxy}} {
		if p.value == "" {
			continue
		}
		if !isProxy(p.value) {
			return fmt.Errorf("invalid %s %q: want a URL such as http://proxy.example.com:3128", p.name, MaskCredentials(p.value))
		}
	}
	return nil
}

// isProxy reports whether requests can be sent by a proxy. Libraries ignore one that
// they can't read, so that requests would silently go to their host directly.
func isProxy(value string) bool {
	if !strings.Contains(value, "://") {
		if strings.ContainsAny(value, " /") {
			return false
		}
		value = "http://" + value // "host:port" is accepted, but is no URL
	}
	u, err := url.Parse(value)
	if err != nil || u.Hostname() == "" {
		return false
	}
	switch u.Scheme {
	case "http", "https", "socks5", "socks5h":
		return true
	}
	return false
}

var runtimeName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

func checkRuntimes(c *Config) error {
	for _, name := range sorted(c.Runtimes) {
		r := c.Runtimes[name]
		if name == StockRuntime || name == ShimRuntime {
			return fmt.Errorf("runtime name '%s' is reserved: give yours another name and make it the default-runtime", name)
		}
		if !runtimeName.MatchString(name) {
			return fmt.Errorf("invalid runtime name %q: only letters, digits and _.- are allowed", name)
		}
		if r.Path == "" {
			return fmt.Errorf("runtime %q: either a path or a runtimeType must be configured", name)
		}
	}
	if c.DefaultRuntime != StockRuntime && c.DefaultRuntime != ShimRuntime {
		if _, ok := c.Runtimes[c.DefaultRuntime]; !ok {
			return fmt.Errorf("specified default runtime '%s' does not exist: add it with --add-runtime or the key runtimes", c.DefaultRuntime)
		}
	}
	return nil
}

func parseExecOpts(list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range list {
		k, v, ok := strings.Cut(s, "=")
		k, v = strings.ToLower(strings.TrimSpace(k)), strings.TrimSpace(v)
		if !ok || k == "" || v == "" {
			return nil, fmt.Errorf("invalid exec-opt (%s): must be formatted 'opt=value'", s)
		}
		switch k {
		case "native.cgroupdriver":
			if v != "cgroupfs" && v != "systemd" {
				return nil, fmt.Errorf("invalid exec-opt (%s): native.cgroupdriver option %s is not supported: want cgroupfs or systemd", s, v)
			}
		case "isolation":
			return nil, fmt.Errorf("invalid exec-opt (%s): option 'isolation' is only supported on windows", s)
		default:
			return nil, fmt.Errorf("invalid exec-opt (%s): unknown option: '%s': native.cgroupdriver is known", s, k)
		}
		out[k] = v
	}
	return out, nil
}

func checkModes(c *Config) error {
	opts, err := parseExecOpts(c.ExecOpts)
	if err != nil {
		return err
	}
	if opts["native.cgroupdriver"] == "systemd" && c.CgroupParent != "" && !strings.HasSuffix(c.CgroupParent, ".slice") {
		return fmt.Errorf("cgroup-parent for systemd cgroup should be a valid slice named as \"xxx.slice\", not %q", c.CgroupParent)
	}
	if c.IpcMode != "private" && c.IpcMode != "shareable" {
		return fmt.Errorf("IPC mode %q is not supported as default value; use \"shareable\" or \"private\"", c.IpcMode)
	}
	if c.CgroupnsMode != "" && c.CgroupnsMode != "host" && c.CgroupnsMode != "private" {
		return fmt.Errorf("invalid default cgroup namespace (%s): use \"host\" or \"private\"", c.CgroupnsMode)
	}
	return nil
}

// An interface name as the kernel allows it: IFNAMSIZ minus the terminating zero
// byte.
var ifaceName = regexp.MustCompile(`^[^\s/:]{1,15}$`)

func checkBridge(c *Config) error {
	if b := c.Bridge; b != "" && (!ifaceName.MatchString(b) || b == "." || b == "..") {
		return fmt.Errorf("invalid bridge %q: want an interface's name of at most 15 characters, or none", b)
	}
	if c.Bridge == "none" && (c.BIP != "" || c.BIP6 != "") {
		return errors.New("invalid bip with bridge none: there would be no bridge to carry the address")
	}
	bip, err := hostInNetwork("bip", c.BIP, 4)
	if err != nil {
		return err
	}
	bip6, err := hostInNetwork("bip6", c.BIP6, 6)
	if err != nil {
		return err
	}
	fixed, err := network("fixed-cidr", c.FixedCIDR, 4)
	if err != nil {
		return err
	}
	fixed6, err := network("fixed-cidr-v6", c.FixedCIDRv6, 6)
	if err != nil {
		return err
	}
	if bip.IsValid() && fixed.IsValid() && (!bip.Masked().Contains(fixed.Addr()) || fixed.Bits() < bip.Bits()) {
		return fmt.Errorf("invalid fixed-cidr %s: it is not within the bridge's network %s", fixed, bip.Masked())
	}
	if a := c.DefaultGateway; a.IsValid() {
		if !a.Is4() {
			return fmt.Errorf("invalid default-gateway %s: want an IPv4 address", a)
		}
		if net := known(bip, fixed); net.IsValid() && !net.Contains(a) {
			return fmt.Errorf("invalid default-gateway %s: it is not within the bridge's network %s", a, net.Masked())
		}
	}
	if a := c.DefaultGatewayV6; a.IsValid() {
		if !a.Is6() || a.Is4In6() {
			return fmt.Errorf("invalid default-gateway-v6 %s: want an IPv6 address", a)
		}
		if net := known(bip6, fixed6); net.IsValid() && !net.Contains(a) && !a.IsLinkLocalUnicast() {
			return fmt.Errorf("invalid default-gateway-v6 %s: it is not within the bridge's network %s", a, net.Masked())
		}
	}
	for i, p := range c.AddressPools {
		for _, q := range c.AddressPools[:i] {
			if p.Base.Overlaps(q.Base) {
				return fmt.Errorf("default-address-pools %s and %s overlap", q.Base, p.Base)
			}
		}
	}
	return nil
}

// known returns the subnet that the configuration gives for the bridge's network:
// that of the bridge's address or, if that is not set, the range of the
// containers' addresses.
func known(bridge, containers netip.Prefix) netip.Prefix {
	if bridge.IsValid() {
		return bridge
	}
	return containers
}

// hostInNetwork parses a host's address with its network's prefix length.
func hostInNetwork(name, s string, family int) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4() != (family == 4) {
		example := map[int]string{4: "192.168.5.1/24", 6: "fd00:5::1/64"}[family]
		return p, fmt.Errorf("invalid %s %q: want an IPv%d address with its network, such as %s", name, s, family, example)
	}
	if p.IsSingleIP() {
		return p, fmt.Errorf("invalid %s %q: there is no room for a container in it", name, s)
	}
	if a := p.Addr().Next(); family == 4 && p.Bits() < 31 && !p.Contains(a) {
		return p, fmt.Errorf("invalid %s %q: that is the network's broadcast address: want one of a host in it", name, s)
	}
	if p.Addr() == p.Masked().Addr() && p.Bits() < p.Addr().BitLen()-1 {
		return p, fmt.Errorf("invalid %s %q: that is the network's own address: want one of a host in it", name, s)
	}
	return p, nil
}

func network(name, s string, family int) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4() != (family == 4) {
		example := map[int]string{4: "192.168.5.0/25", 6: "fd00:5::/64"}[family]
		return p, fmt.Errorf("invalid %s %q: want an IPv%d network such as %s", name, s, family, example)
	}
	return p.Masked(), nil
}

var dnsName = regexp.MustCompile(`^[a-zA-Z0-9_]([a-zA-Z0-9_-]*[a-zA-Z0-9_])?(\.[a-zA-Z0-9_]([a-zA-Z0-9_-]*[a-zA-Z0-9_])?)*\.?$`)

func checkDNS(c *Config) error {
	for i, s := range c.DNSSearch {
		s = strings.Trim(s, " ")
		if s != "." && (len(s) > 255 || !dnsName.MatchString(s)) {
			return fmt.Errorf("%s is not a valid domain", s)
		}
		c.DNSSearch[i] = s
	}
	var v4, v6 int
	for _, a := range c.HostGatewayIPs {
		if a.Is4() {
			v4++
		} else {
			v6++
		}
	}
	if v4 > 1 || v6 > 1 {
		return errors.New("only one IPv4 and one IPv6 address may be given as host-gateway-ips")
	}
	return nil
}

// Bounds of min-api-version: the oldest version of the Engine API that any
// release of Holdfast supports. The API's server knows its newest version and
// checks it.
const oldestAPI = 24

func checkAPI(c *Config) error {
	major, minor, ok := strings.Cut(c.MinAPIVersion, ".")
	n, err := strconv.Atoi(minor)
	if !ok || major != "1" || err != nil {
		return fmt.Errorf("invalid min-api-version %q: want a version such as 1.24, without \"v\"", c.MinAPIVersion)
	}
	if n < oldestAPI {
		return fmt.Errorf("invalid min-api-version: minimum supported API version is 1.%d: %s", oldestAPI, c.MinAPIVersion)
	}
	return nil
}

// checkBrowsers validates the options for browsers' access to the API.
func checkBrowsers(c *Config) error {
	for _, h := range c.APIAllowedHosts {
		if h == "*" {
			continue
		}
		if h == "" || strings.ContainsAny(h, "/:*@ \t\r\n") {
			return fmt.Errorf("invalid api-allowed-hosts %q: want a host name without scheme and port such as docker.example.com, or *", h)
		}
	}
	for _, o := range c.APIAllowedOrigins {
		if o == "*" {
			continue
		}
		u, err := url.Parse(o)
		if err != nil || u.Scheme == "" || u.Host == "" || o != u.Scheme+"://"+u.Host {
			return fmt.Errorf("invalid api-allowed-origins %q: want an origin such as https://ui.example.com:8443, without a path, or *", o)
		}
	}
	return nil
}
