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

// sandboxFiles writes /etc/hosts, /etc/resolv.conf and /etc/hostname of a life.
// A container that is in another's network namespace has those of that one.
func (e *Engine) sandboxFiles(spec container.Spec, req request, sandbox network.Sandbox) (oci.Files, error) {
	f, err := e.filesOf(spec, req)
	if err != nil || req.HostConfig.NetworkMode.IsContainer() {
		return f, err
	}
	in, resolv, err := e.fileInputs(req, sandbox)
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
		return f, e.writeView(spec.ID, req, sandbox, resolv.Upstream)
	}
	return f, nil
}

// moveFiles brings the files of a running container up to date that has joined or
// left a network. What somebody in the container has written into them stays. It
// may be repeated.
func (e *Engine) moveFiles(spec container.Spec, req request, sandbox network.Sandbox) error {
	f, err := e.filesOf(spec, req)
	if err != nil {
		return err
	}
	in, resolv, err := e.fileInputs(req, sandbox)
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
		// In place: the container has it mounted.
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
		return e.writeView(spec.ID, req, sandbox, resolv.Upstream)
	}
	return nil
}

// bringFiles does so for a container that was found, if a daemon may have died
// before it could.
func (a *actor) bringFiles() {
	if !a.sandbox.Moved {
		return
	}
	if err := a.e.moveFiles(a.spec, a.req, a.sandbox); err != nil {
		a.log.Warn("the container's files of names were not brought up to date", "error", err)
	}
}

// writeResolv writes a resolv.conf, and beside it what tells it from one that
// somebody in the container has changed. That comes last: cut off in between,
// the file counts as changed, and is left alone.
func writeResolv(path string, content []byte) error {
	if err := os.WriteFile(path, content, 0o644); err != nil {
		return err
	}
	return os.WriteFile(path+".hash", resolvHash(content), 0o644)
}

func resolvHash(content []byte) []byte { return fmt.Appendf(nil, "%x", sha256.Sum256(content)) }

// writtenByUs: nobody has changed the file since writeResolv. Earlier releases
// left no hash; by their first line they can be told from no change but one
// below it.
func writtenByUs(path string, content []byte) bool {
	hash, err := os.ReadFile(path + ".hash")
	if err != nil {
		return bytes.HasPrefix(content, []byte(oci.ResolvHead))
	}
	return bytes.Equal(hash, resolvHash(content))
}

// filesOf names the files that a container has mounted.
func (e *Engine) filesOf(spec container.Spec, req request) (oci.Files, error) {
	dir := e.store.ContainerDir(spec.ID)
	if mode := req.HostConfig.NetworkMode; mode.IsContainer() {
		peer, err := e.index.find(mode.ConnectedContainer())
		if err != nil {
			return oci.Files{}, err
		}
		dir = e.store.ContainerDir(peer.id)
	}
	return oci.Files{
		Hosts: filepath.Join(dir, "hosts"), Resolv: filepath.Join(dir, "resolv.conf"), Hostname: filepath.Join(dir, "hostname"),
	}, nil
}

// fileInputs are what a sandbox makes of them.
func (e *Engine) fileInputs(req request, sandbox network.Sandbox) (oci.HostsInput, oci.Resolv, error) {
	h := req.HostConfig
	kept := e.config.Load().of(req)
	var own, gateways []netip.Addr
	v6 := false
	for _, ep := range sandbox.Endpoints {
		for _, a := range []network.Addressing{ep.IPv4, ep.IPv6} {
			if a.Address.IsValid() {
				own = append(own, a.Address.Addr())
				v6 = v6 || a.Address.Addr().Is6()
			}
			if a.BridgeAddress.IsValid() {
				gateways = append(gateways, a.BridgeAddress.Addr())
			}
		}
	}
	if len(kept.HostGatewayIPs) > 0 {
		gateways = kept.HostGatewayIPs
	}
	in := oci.HostsInput{
		Hostname: req.Config.Hostname, Domainname: req.Config.Domainname,
		Addresses: own, ExtraHosts: h.ExtraHosts, HostGateway: gateways, IPv6: true,
	}
	in.Links = e.legacyLinks(req, sandbox)
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
		Host:     host, DNS: firstSet(h.DNS, kept.DNS), Search: firstSet(h.DNSSearch, kept.DNSSearch),
		Options: firstSet(h.DNSOptions, kept.DNSOptions), HostNetwork: h.NetworkMode.IsHost(), IPv6: v6,
	}), nil
}

// firstSet is a container's own list, or else that of the daemon which created
// it.
func firstSet[T any](own, daemon []T) []T {
	if len(own) > 0 {
		return own
	}
	return daemon
}
