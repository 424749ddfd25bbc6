// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	"holdfast/internal/network"
)

// sandboxFiles makes the files that are mounted in containers.
type sandboxFiles struct {
	config   *settings
	store    Store
	networks Networks
	index    *index
	names    *nameService
}

// write writes /etc/hosts, /etc/resolv.conf and /etc/hostname for a life. A
// container that joins another's network namespace uses the files of that
// container.
func (s *sandboxFiles) write(spec container.Spec, req request, sandbox network.Sandbox) (oci.Files, error) {
	f, err := s.paths(spec, req)
	if err != nil || req.HostConfig.NetworkMode.IsContainer() {
		return f, err
	}
	in, resolv, err := s.inputs(req, sandbox)
	if err != nil {
		return f, err
	}
	hosts, err := oci.Hosts(in)
	if err != nil {
		return f, err
	}
	for path, data := range map[string][]byte{f.Hosts: hosts, f.Hostname: oci.Hostname(req.Config.Hostname)} {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return f, err
		}
	}
	if err := writeResolv(f.Resolv, resolv.Content); err != nil {
		return f, err
	}
	if sandbox.Named() {
		return f, s.names.writeView(s.names.viewPath(spec.ID), req, sandbox, resolv.Upstream)
	}
	return f, nil
}

// update updates the files of a running container that has joined or left a
// network. It preserves changes that were made in the container. It is
// idempotent.
func (s *sandboxFiles) update(spec container.Spec, req request, sandbox network.Sandbox) error {
	f, err := s.paths(spec, req)
	if err != nil {
		return err
	}
	in, resolv, err := s.inputs(req, sandbox)
	if err != nil {
		return err
	}
	have, err := os.ReadFile(f.Hosts)
	if err != nil {
		return err
	}
	want := oci.Rehost(have, in)
	if len(in.Links) > 0 {
		want = oci.Relink(want, in.Links)
	}
	if !bytes.Equal(have, want) {
		// Written in place, because the file is bind-mounted in the container.
		if err := os.WriteFile(f.Hosts, want, 0o644); err != nil {
			return err
		}
	}
	if have, err = os.ReadFile(f.Resolv); err != nil {
		return err
	}
	if !bytes.Equal(have, resolv.Content) && writtenByUs(f.Resolv, have) {
		if err := writeResolv(f.Resolv, resolv.Content); err != nil {
			return err
		}
	}
	if sandbox.Named() {
		return s.names.writeView(s.names.viewPath(spec.ID), req, sandbox, resolv.Upstream)
	}
	return nil
}

// writeResolv writes a resolv.conf and, in a file beside it, its hash, which shows
// whether it was changed in the container. The hash is written last: after a
// crash in between, the file counts as changed and is left alone.
func writeResolv(path string, content []byte) error {
	if err := os.WriteFile(path, content, 0o644); err != nil {
		return err
	}
	return os.WriteFile(path+".hash", resolvHash(content), 0o644)
}

func resolvHash(content []byte) []byte { return fmt.Appendf(nil, "%x", sha256.Sum256(content)) }

// writtenByUs reports whether the file is as writeResolv wrote it. Earlier releases
// wrote no hash. Their files are recognised by the first line, so that changes
// below it are not noticed.
func writtenByUs(path string, content []byte) bool {
	hash, err := os.ReadFile(path + ".hash")
	if err != nil {
		return bytes.HasPrefix(content, []byte(oci.ResolvHead))
	}
	return bytes.Equal(hash, resolvHash(content))
}

// paths returns the paths of the files that are mounted in a container.
func (s *sandboxFiles) paths(spec container.Spec, req request) (oci.Files, error) {
	owner, err := s.index.ownerOf(&view{spec: spec, req: req}, networkOf)
	if err != nil {
		return oci.Files{}, err
	}
	dir := s.store.ContainerDir(owner.spec.ID)
	return oci.Files{
		Hosts: filepath.Join(dir, "hosts"), Resolv: filepath.Join(dir, "resolv.conf"), Hostname: filepath.Join(dir, "hostname"),
	}, nil
}

// inputs returns what the content of the files is made from.
func (s *sandboxFiles) inputs(req request, sandbox network.Sandbox) (oci.HostsInput, oci.Resolv, error) {
	h := req.HostConfig
	fixed := s.config.Load().fixedOf(req)
	var own, gateways []netip.Addr
	v6 := false
	for _, ep := range sandbox.Endpoints {
		for _, a := range []network.Addressing{ep.IPv4, ep.IPv6} {
			if a.Address.IsValid() {
				own = append(own, a.Address.Addr())
				v6 = v6 || a.Address.Addr().Is6()
			}
			if a.BridgeAddress.IsValid() && len(gateways) == 0 {
				gateways = append(gateways, a.BridgeAddress.Addr()) // used if there is no default network
			}
		}
	}
	if all := s.networks.HostGateway(); len(all) > 0 {
		gateways = all
	}
	if len(fixed.HostGatewayIPs) > 0 {
		gateways = fixed.HostGatewayIPs
	}
	in := oci.HostsInput{
		Hostname: req.Config.Hostname, Domainname: req.Config.Domainname,
		Addresses: own, ExtraHosts: h.ExtraHosts, HostGateway: gateways, IPv6: !withoutIPv6(req),
	}
	in.Links = s.names.legacyLinks(req, sandbox)
	if h.NetworkMode.IsHost() {
		base, err := os.ReadFile("/etc/hosts")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return in, oci.Resolv{}, err
		}
		in.Base = base
	}
	host, err := oci.ReadHostResolv()
	if err != nil {
		return in, oci.Resolv{}, err
	}
	var internal netip.Addr
	if sandbox.Named() {
		internal = network.NameServer
	}
	return in, oci.ResolvConf(oci.ResolvInput{
		Internal: internal,
		Host:     host, DNS: firstSet(h.DNS, fixed.DNS), Search: firstSet(h.DNSSearch, fixed.DNSSearch),
		Options: firstSet(h.DNSOptions, fixed.DNSOptions), HostNetwork: h.NetworkMode.IsHost(), IPv6: v6,
	}), nil
}

// firstSet is a container's own list, or if that is empty the list of the daemon
// which created it.
func firstSet[T any](own, daemon []T) []T {
	if len(own) > 0 {
		return own
	}
	return daemon
}
