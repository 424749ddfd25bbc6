// SPDX-License-Identifier: Apache-2.0

package task

import (
	"fmt"
	"maps"
	"net/netip"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	moby "github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/v2/daemon/cluster/convert"
	"github.com/moby/swarmkit/v2/api"
	"github.com/moby/swarmkit/v2/api/genericresource"

	"holdfast/internal/errs"
	"holdfast/internal/network/overlay"
	"holdfast/internal/swarmserver/nets"
)

// labelPrefix begins the labels of tasks' containers that Docker sets.
const labelPrefix = "com.docker.swarm."

// nameOf is the name of a task's container.
func nameOf(t *api.Task) string {
	if t.Annotations.Name != "" {
		return t.Annotations.Name
	}
	slot := t.NodeID // of a global service
	if t.Slot != 0 {
		slot = strconv.FormatUint(t.Slot, 10)
	}
	return fmt.Sprintf("%s.%s.%s", t.ServiceAnnotations.Name, slot, t.ID)
}

// request describes the container of a task whose templates are expanded. files are
// the mounts of its secrets and configs. It is a pure function.
func request(t *api.Task, files []mount.Mount) (*container.CreateRequest, error) {
	converted, err := convert.TaskFromGRPC(*t)
	if err != nil {
		return nil, err
	}
	spec := converted.Spec.ContainerSpec
	if spec == nil {
		return nil, fmt.Errorf("the task %s has no container", t.ID)
	}
	// The managers accept it, because the cluster may have nodes that run Windows.
	if spec.Privileges != nil && spec.Privileges.CredentialSpec != nil {
		return nil, errs.Invalid("a credential spec is for nodes that run Windows: remove it, or constrain the service to such nodes (--constraint node.platform.os==windows)")
	}
	config := &container.Config{
		Image: imageOf(spec.Image), Labels: labels(t, spec.Labels), Hostname: spec.Hostname, User: spec.User, WorkingDir: spec.Dir,
		Env: append(append([]string{}, spec.Env...), genericresource.EnvFormat(t.AssignedGenericResources, "DOCKER_RESOURCE")...),
		Tty: spec.TTY, OpenStdin: spec.OpenStdin, StopSignal: spec.StopSignal, Healthcheck: spec.Healthcheck,
		// A command replaces the entry point and the arguments of the image,
		// arguments alone only the latter.
		Entrypoint: spec.Command, Cmd: spec.Args,
	}
	if g := spec.StopGracePeriod; g != nil {
		seconds := int(g.Seconds())
		config.StopTimeout = &seconds
	}
	host := &container.HostConfig{
		Mounts: append(append([]mount.Mount{}, spec.Mounts...), files...), GroupAdd: spec.Groups, ReadonlyRootfs: spec.ReadOnly,
		Isolation: spec.Isolation, Init: spec.Init, Sysctls: spec.Sysctls, CapAdd: spec.CapabilityAdd, CapDrop: spec.CapabilityDrop,
		OomScoreAdj: int(spec.OomScoreAdj), SecurityOpt: securityOptions(spec.Privileges), ExtraHosts: hosts(spec.Hosts),
		// The cluster decides whether a task is started again.
		RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled},
		Resources:     resources(converted.Spec.Resources),
	}
	host.Ulimits = spec.Ulimits
	if d := spec.DNSConfig; d != nil {
		host.DNS, host.DNSSearch, host.DNSOptions = d.Nameservers, d.Search, d.Options
	}
	if l := t.LogDriver; l != nil {
		host.LogConfig = container.LogConfig{Type: l.Name, Config: l.Options}
	}
	networks := &network.NetworkingConfig{}
	if host.NetworkMode, networks.EndpointsConfig, err = networksOf(t); err != nil {
		return nil, err
	}
	config.ExposedPorts, host.PortBindings = ports(t)
	return &container.CreateRequest{Config: config, HostConfig: host, NetworkingConfig: networks}, nil
}

// imageOf is the name of an image with a tag, as users write it.
func imageOf(name string) string {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name // the engine says what is wrong with it
	}
	return reference.FamiliarString(reference.TagNameOnly(ref))
}

func labels(t *api.Task, own map[string]string) map[string]string {
	all := map[string]string{}
	maps.Copy(all, own)
	maps.Copy(all, t.Annotations.Labels)
	all[labelPrefix+"task"] = ""
	all[labelPrefix+"task.id"] = t.ID
	all[labelPrefix+"task.name"] = nameOf(t)
	all[labelPrefix+"node.id"] = t.NodeID
	all[labelPrefix+"service.id"] = t.ServiceID
	all[labelPrefix+"service.name"] = t.ServiceAnnotations.Name
	return all
}

// hosts turns lines of /etc/hosts, "ADDRESS NAME ALIAS…", into NAME:ADDRESS. Docker
// ignores the aliases, too.
func hosts(lines []string) (entries []string) {
	for _, line := range lines {
		if fields := strings.Fields(line); len(fields) > 1 {
			entries = append(entries, fields[1]+":"+fields[0])
		}
	}
	return entries
}

func resources(r *moby.ResourceRequirements) container.Resources {
	out := container.Resources{}
	if r == nil {
		return out
	}
	if l := r.Limits; l != nil {
		out.NanoCPUs, out.Memory = l.NanoCPUs, l.MemoryBytes
		if l.Pids > 0 {
			out.PidsLimit = &l.Pids
		}
	}
	if s := r.SwapBytes; s != nil && out.Memory > 0 {
		out.MemorySwap = -1 // no limit
		if *s >= 0 {
			out.MemorySwap = out.Memory + *s
		}
	}
	out.MemorySwappiness = r.MemorySwappiness
	return out
}

func securityOptions(p *moby.Privileges) (options []string) {
	if p == nil {
		return nil
	}
	if s := p.SELinuxContext; s != nil {
		if s.Disable {
			options = append(options, "label=disable")
		}
		for _, part := range [][2]string{{"user", s.User}, {"role", s.Role}, {"level", s.Level}, {"type", s.Type}} {
			if part[1] != "" {
				options = append(options, "label="+part[0]+":"+part[1])
			}
		}
	}
	if s := p.Seccomp; s != nil {
		switch s.Mode {
		case moby.SeccompModeUnconfined:
			options = append(options, "seccomp=unconfined")
		case moby.SeccompModeCustom:
			options = append(options, "seccomp="+string(s.Profile))
		}
	}
	if a := p.AppArmor; a != nil && a.Mode == moby.AppArmorModeDisabled {
		options = append(options, "apparmor=unconfined")
	}
	if p.NoNewPrivileges {
		options = append(options, "no-new-privileges=true")
	}
	return options
}

// GatewayNetwork is the daemon's network by which the containers of overlay networks
// reach other hosts.
const GatewayNetwork = "docker_gwbridge"

// networksOf are the networks of a task: one of this host, such as the default one or
// host, or overlay networks, with the addresses that the cluster has given the task.
func networksOf(t *api.Task) (mode container.NetworkMode, settings map[string]*network.EndpointSettings, err error) {
	outside := false
	for _, a := range t.Networks {
		n := a.Network
		switch {
		case n == nil:
			continue
		case nets.Own(n):
			return container.NetworkMode(n.Spec.Annotations.Name), nil, nil
		case len(a.Addresses) == 0:
			return "", nil, fmt.Errorf("the task has no address on the network %s", n.Spec.Annotations.Name)
		}
		address, err := netip.ParsePrefix(a.Addresses[0])
		if err != nil {
			return "", nil, fmt.Errorf("the address of the task on the network %s: %w", n.Spec.Annotations.Name, err)
		}
		if settings == nil {
			mode, settings = container.NetworkMode(n.Spec.Annotations.Name), map[string]*network.EndpointSettings{}
		}
		mac := overlay.MACOf(address.Addr())
		settings[n.Spec.Annotations.Name] = &network.EndpointSettings{
			NetworkID: n.ID, Aliases: a.Aliases, DriverOpts: a.DriverAttachmentOpts, MacAddress: mac[:],
			IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: address.Addr()},
		}
		outside = outside || !n.Spec.Internal
	}
	if outside {
		settings[GatewayNetwork] = &network.EndpointSettings{}
	}
	return mode, settings, nil
}

// ports are those that are published on this host, as opposed to on all nodes.
func ports(t *api.Task) (network.PortSet, network.PortMap) {
	exposed, bound := network.PortSet{}, network.PortMap{}
	if t.Endpoint == nil {
		return exposed, bound
	}
	for _, p := range t.Endpoint.Ports {
		port, ok := network.PortFrom(uint16(p.TargetPort), network.IPProtocol(strings.ToLower(p.Protocol.String())))
		if p.PublishMode != api.PublishModeHost || p.TargetPort > 65535 || !ok {
			continue
		}
		exposed[port] = struct{}{}
		b := network.PortBinding{}
		if p.PublishedPort != 0 {
			b.HostPort = strconv.FormatUint(uint64(p.PublishedPort), 10)
		}
		bound[port] = append(bound[port], b)
	}
	return exposed, bound
}

// published are the host ports that a container got.
func published(c container.InspectResponse) *api.PortStatus {
	status := &api.PortStatus{}
	if c.NetworkSettings == nil {
		return status
	}
	for port, bindings := range c.NetworkSettings.Ports {
		protocol, ok := api.PortConfig_Protocol_value[strings.ToUpper(string(port.Proto()))]
		if !ok {
			continue
		}
		seen := map[string]bool{} // the same port for IPv4 and IPv6
		for _, b := range bindings {
			n, err := strconv.ParseUint(b.HostPort, 10, 16)
			if err != nil || seen[b.HostPort] {
				continue
			}
			seen[b.HostPort] = true
			status.Ports = append(status.Ports, &api.PortConfig{
				PublishMode: api.PublishModeHost, Protocol: api.PortConfig_Protocol(protocol), TargetPort: uint32(port.Num()), PublishedPort: uint32(n),
			})
		}
	}
	return status
}
