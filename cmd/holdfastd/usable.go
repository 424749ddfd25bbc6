// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"slices"

	moby "github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"holdfast/internal/config"
	"holdfast/internal/engine/oci"
	"holdfast/internal/handoff"
	"holdfast/internal/image"
	"holdfast/internal/network"
)

// loadConfig reads the configuration and checks all of it, so that --validate,
// a start, a reload and its dry run accept the same files.
func loadConfig(flags *config.Flags) (*config.Config, error) {
	cfg, err := config.Load(flags, os.ReadFile)
	if err != nil {
		return nil, err
	}
	if err := usable(cfg); err != nil {
		return nil, fmt.Errorf("the configuration can't be used: %w", err)
	}
	return cfg, nil
}

// usable checks whether a valid configuration can be used on this host: whether
// the files, programs, groups and drivers that it names exist. It changes
// nothing. The error is a config.KeyError, or several.
func usable(cfg *config.Config) error {
	var errs []error
	check := func(key string, err error) {
		if err != nil {
			errs = append(errs, &config.KeyError{Key: key, Err: err})
		}
	}
	if _, err := oci.ParseLog(moby.LogConfig{Type: cfg.LogDriver}); err != nil {
		check("log-driver", err)
	} else {
		_, err := oci.ParseLog(moby.LogConfig{Type: cfg.LogDriver, Config: cfg.LogOpts})
		check("log-opts", err)
	}
	check("storage-driver", image.CheckDriver(cfg.StorageDriver))
	_, err := seccompProfile(cfg)
	check("seccomp-profile", err)
	if cfg.Given("group") && cfg.Group != "" {
		_, err := handoff.GroupID(cfg.Group)
		check("group", err)
	}
	if cfg.UseTLS() {
		_, err := handoff.ServerTLS(tlsFiles(cfg))
		check(tlsKey(err), err)
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Runtimes)) {
		if err := program(cfg.Runtimes[name].Path); err != nil {
			check("runtimes", fmt.Errorf("runtime %q: %w", name, err))
		}
	}
	if cfg.InitPath != "" {
		check("init-path", program(cfg.InitPath))
	}
	if cfg.Shim != "" {
		check("shim", program(cfg.Shim))
	}
	for _, dir := range []struct{ key, path string }{{"data-root", cfg.DataRoot}, {"exec-root", cfg.ExecRoot}} {
		if fi, err := os.Stat(dir.path); err == nil && !fi.IsDir() {
			check(dir.key, fmt.Errorf("%s is not a folder: give a folder, or a path that does not exist", dir.path))
		}
	}
	check("default-network-opts", network.CheckDefaults(cfg.NetworkOpts))
	check("default-gateway", onBridge(cfg, cfg.DefaultGateway))
	check("default-gateway-v6", onBridge(cfg, cfg.DefaultGatewayV6))
	return errors.Join(errs...)
}

// tlsKey returns the key of the file that ServerTLS could not use.
func tlsKey(err error) string {
	var at *handoff.TLSError
	if errors.As(err, &at) {
		return at.Key
	}
	return "tls"
}

// program returns why a path or a name in PATH can't be run.
func program(path string) error {
	if _, err := exec.LookPath(path); err != nil {
		return fmt.Errorf("%s can't be run: %w: install it, or give the path of a program", path, errors.Unwrap(err))
	}
	return nil
}

// seccompProfile returns the default profile of containers: builtin,
// unconfined, or the content of the file.
func seccompProfile(cfg *config.Config) (string, error) {
	switch cfg.SeccompProfile {
	case "", "builtin", "unconfined":
		return cfg.SeccompProfile, nil
	}
	text, err := readFile(cfg.SeccompProfile)
	if err != nil {
		return "", fmt.Errorf("%w: name a file with a profile in JSON, or builtin or unconfined", err)
	}
	if err := oci.CheckSeccomp(string(text)); err != nil {
		return "", fmt.Errorf("%s is not a seccomp profile: %w: correct it, or use builtin or unconfined", cfg.SeccompProfile, err)
	}
	return string(text), nil
}

// readFile reads a regular file named in the configuration. Reading a pipe or a
// device might never end.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return io.ReadAll(f)
}

// onBridge returns an error if a gateway is not within the networks of a bridge
// that the user has made. For a bridge that the daemon makes, the configuration
// alone decides.
func onBridge(cfg *config.Config, gateway netip.Addr) error {
	if !gateway.IsValid() || cfg.Bridge == "" || gateway.Is4() && cmp.Or(cfg.BIP, cfg.FixedCIDR) != "" || gateway.Is6() && cmp.Or(cfg.BIP6, cfg.FixedCIDRv6) != "" || gateway.IsLinkLocalUnicast() {
		return nil
	}
	addrs, _, err := network.BridgeAddresses(cfg.Bridge)
	if err != nil {
		return nil
	}
	known := false
	for _, p := range addrs {
		if p.Addr().Is4() != gateway.Is4() {
			continue
		}
		if p.Contains(gateway) {
			return nil
		}
		known = true
	}
	if !known {
		return nil
	}
	return fmt.Errorf("%s is not within the networks of the bridge %s: give an address in one of them, or another bridge", gateway, cfg.Bridge)
}
