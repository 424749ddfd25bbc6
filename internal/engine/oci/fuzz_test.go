// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"encoding/json"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// FuzzSpecGivesNothingThatWasNotAskedFor makes specifications from requests to
// create a container, and checks that they have no privilege that the request did
// not ask for.
func FuzzSpecGivesNothingThatWasNotAskedFor(f *testing.F) {
	for _, seed := range [][2]string{
		{`{"Cmd":["sh"]}`, `{}`},
		{`{"Cmd":["sh"],"User":"web:audio","WorkingDir":"/../x","Env":["A=b","C"]}`, `{"CapAdd":["net_admin","CAP_SYS_TIME"],"CapDrop":["CHOWN"]}`},
		{`{"Cmd":["sh"]}`, `{"CapAdd":["ALL"],"CapDrop":["SYS_ADMIN"],"NetworkMode":"none"}`},
		{`{"Cmd":["sh"]}`, `{"CapDrop":["all"],"SecurityOpt":["no-new-privileges","apparmor=mine","label=disable"]}`},
		{`{"Cmd":["sh"]}`, `{"Privileged":true,"IpcMode":"host","PidMode":"host","UTSMode":"host","CgroupnsMode":"host"}`},
		{`{"Cmd":["sh"]}`, `{"NetworkMode":"host","ReadonlyRootfs":true,"Tmpfs":{"/run":"size=1m","/sys":"","/dev/x/..":"exec"}}`},
		{`{"Cmd":["sh"]}`, `{"SecurityOpt":["seccomp=unconfined","systempaths=unconfined","writable-cgroups=true"],"MaskedPaths":["/proc/kcore"]}`},
		{`{"Cmd":["sh"]}`, `{"SecurityOpt":["seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}"],"ReadonlyPaths":[]}`},
		{`{"Cmd":["sh"]}`, `{"Devices":[{"PathOnHost":"/dev/fuse","PathInContainer":"/dev/../x","CgroupPermissions":"r"}],"DeviceCgroupRules":["c 1:* rwm","a"]}`},
		{`{"Cmd":["sh"]}`, `{"Sysctls":{"net.core.somaxconn":"1","kernel.msgmax":"2","kernel/../vm.x":"3"},"CgroupParent":"../../x"}`},
		{`{"Cmd":["sh"],"Domainname":"x.y","Hostname":"h"}`, `{"Binds":["/:/host:ro","v:/sys/fs","/etc:/proc/x:rw,rshared","/shared/a:/a:slave"],"Runtime":"x"}`},
		{`{"Cmd":["sh"],"Tty":true,"StopSignal":"KILL"}`, `{"Ulimits":[{"Name":"nofile","Soft":1,"Hard":-1}],"OomScoreAdj":-1000,"PidsLimit":-1,"Memory":6291456,"NanoCpus":1000000000,"Init":true}`},
		{`{"Entrypoint":[""],"Cmd":[]}`, `{"GroupAdd":["0","audio"],"UsernsMode":"host","Umask":511,"ShmSize":-1,"BlkioWeightDevice":[null]}`},
		{`{"Cmd":["sh"]}`, `{"Mounts":[{"Type":"bind","Source":"/x","Target":"/proc"},{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"Options":[["exec"]]}}],"ContainerIDFile":"/x","LogConfig":{"Type":"local","Config":{"max-size":"-1"}}}`},
		{`{"Cmd":["sh"]}`, `{"Ulimits":[null],"Devices":[{}],"DeviceRequests":[{"Count":-1}],"Links":[":"],"ExtraHosts":["a:b:c"],"PortBindings":{"80/tcp":[{"HostPort":"x"}]}}`},
	} {
		f.Add(seed[0], seed[1], len(seed[1])%2 == 0)
	}
	hosts := map[bool]Host{false: probe(fakeTree(hybridFiles), nil), true: probe(fakeTree(v2Files), nil)}
	rootfs := fakeRoot(f)
	f.Fuzz(func(t *testing.T, config, hostConfig string, v2 bool) {
		in := Input{
			ID: testID, Host: hosts[v2], Rootfs: rootfs, RootPath: "rootfs", InitPath: "/usr/bin/tini",
			Config: &container.Config{}, HostConfig: &container.HostConfig{},
			Files:      Files{Hosts: "/run/x/hosts", Resolv: "/run/x/resolv.conf", Hostname: "/run/x/hostname"},
			Namespaces: Namespaces{Net: "/run/x/netns", PID: "/proc/7/ns/pid", IPC: "/proc/7/ns/ipc"},
			sys:        fakeSystem(),
		}
		in.Host.Seccomp = true
		if json.Unmarshal([]byte(config), in.Config) != nil || json.Unmarshal([]byte(hostConfig), in.HostConfig) != nil {
			return
		}
		if in.HostConfig.NetworkMode == "" {
			in.HostConfig.NetworkMode = "bridge"
		}
		in.Mounts = TmpfsMounts(in.HostConfig.Tmpfs)
		for _, b := range in.HostConfig.Binds {
			if m, _, err := ParseBind(b, ""); err == nil {
				in.Mounts = append(in.Mounts, Mount{Type: mount.TypeBind, Source: "/source", Destination: m.Target, RW: !m.ReadOnly})
			}
		}
		asked := &container.HostConfig{}
		if err := json.Unmarshal([]byte(hostConfig), asked); err != nil {
			t.Fatal(err)
		}
		s, _, err := buildAdapted(in)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("no kind: %v", err)
			}
			return
		}
		for _, excess := range excesses(t, s, in, asked) {
			t.Errorf("asked for %s, given %s", hostConfig, excess)
		}
	})
}

// excesses returns the privileges of a specification that the request did not ask
// for.
func excesses(t *testing.T, s *specs.Spec, in Input, hc *container.HostConfig) (out []string) {
	t.Helper()
	excess := func(what string, value any) {
		text, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, what+" "+string(text))
	}
	sec, err := ParseSecurityOpts(hc.SecurityOpt)
	if err != nil {
		t.Fatalf("taken, with bad security options: %v", err)
	}

	// Capabilities. None may be inheritable or ambient, because a program without
	// file capabilities would get them.
	caps := s.Process.Capabilities
	allowed := without(defaultCaps, upper(hc.CapDrop))
	add := upper(hc.CapAdd)
	if slices.Contains(upper(hc.CapDrop), "CAP_ALL") {
		allowed = nil
	}
	allowed = append(allowed, add...)
	if slices.Contains(add, "CAP_ALL") {
		allowed = without(in.Host.Caps, upper(hc.CapDrop))
	}
	if hc.Privileged {
		allowed = in.Host.Caps
	}
	if more := without(caps.Bounding, allowed); len(more) > 0 {
		excess("capabilities", more)
	}
	if more := slices.Concat(without(caps.Effective, caps.Bounding), without(caps.Permitted, caps.Bounding), caps.Inheritable, caps.Ambient); len(more) > 0 {
		excess("capabilities beyond the bounding set", more)
	}
	if sec.NoNewPrivileges != nil && *sec.NoNewPrivileges && !s.Process.NoNewPrivileges {
		excess("new privileges", true)
	}

	// Private namespaces, unless the request shares another's.
	has := func(kind specs.LinuxNamespaceType) bool {
		return slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
	}
	for kind, host := range map[specs.LinuxNamespaceType]bool{
		specs.MountNamespace: false, specs.NetworkNamespace: hc.NetworkMode.IsHost(), specs.UTSNamespace: hc.UTSMode.IsHost(),
		specs.PIDNamespace: hc.PidMode.IsHost(), specs.IPCNamespace: hc.IpcMode.IsHost(),
	} {
		if !has(kind) && !host {
			excess("the host's namespace", kind)
		}
	}

	// Masked and read-only paths of the kernel.
	if !hc.Privileged && !sec.SystemPathsUnconfined {
		if hc.MaskedPaths == nil && !reflect.DeepEqual(s.Linux.MaskedPaths, maskedPaths(in.Host)) {
			excess("masked paths", s.Linux.MaskedPaths)
		}
		if hc.ReadonlyPaths == nil && !reflect.DeepEqual(s.Linux.ReadonlyPaths, readonlyPaths) {
			excess("read-only paths", s.Linux.ReadonlyPaths)
		}
	}
	own := map[string]bool{}
	for _, m := range in.Mounts {
		own[path.Clean(m.Destination)] = true
	}
	for _, m := range s.Mounts {
		if !path.IsAbs(m.Destination) || path.Clean(m.Destination) != m.Destination {
			excess("a mount at", m.Destination)
		}
		if own[m.Destination] {
			continue
		}
		for _, source := range []string{in.Files.Hosts, in.Files.Resolv, in.Files.Hostname, in.InitPath} {
			own[source] = true
		}
		shared := m.Destination == "/dev/shm" && !hc.IpcMode.IsPrivate() && !hc.IpcMode.IsEmpty()
		if m.Type == "bind" && !own[m.Source] && !shared {
			excess("a mount of the host", m)
		}
		if strings.HasPrefix(m.Destination, "/sys") && !slices.Contains(m.Options, "ro") && !hc.Privileged &&
			!(m.Destination == "/sys/fs/cgroup" && sec.WritableCgroups != nil && *sec.WritableCgroups) {
			excess("a writable", m)
		}
	}
	if hc.ReadonlyRootfs && !s.Root.Readonly {
		excess("a writable root", s.Root)
	}

	// Devices.
	rules := s.Linux.Resources.Devices
	if !hc.Privileged {
		if len(rules) == 0 || rules[0].Allow || rules[0].Type != "" && rules[0].Type != "a" || rules[0].Major != nil || rules[0].Access != "rwm" {
			excess("device rules", rules)
		}
		if n := len(rules) - len(defaultDeviceRules()); n > len(hc.Devices)+len(hc.DeviceCgroupRules) {
			excess("device rules", rules)
		}
		if len(s.Linux.Devices) > len(hc.Devices) {
			excess("devices", s.Linux.Devices)
		}
	}

	// Confinement.
	if s.Linux.Seccomp == nil && !hc.Privileged && sec.Seccomp != unconfined {
		excess("no seccomp profile", sec.Seccomp)
	}
	if in.Host.AppArmor && !hc.Privileged && sec.AppArmor == "" && s.Process.ApparmorProfile != AppArmorProfile {
		excess("the AppArmor profile", s.Process.ApparmorProfile)
	}
	for key := range s.Linux.Sysctl {
		if _, named := hc.Sysctls[key]; named || key == "net.ipv4.ping_group_range" || key == "net.ipv4.ip_unprivileged_port_start" || key == "kernel.domainname" {
			continue
		}
		excess("the sysctl", key)
	}
	for key := range s.Linux.Sysctl {
		if strings.HasPrefix(key, "net") && !has(specs.NetworkNamespace) || strings.Contains(key, "..") {
			excess("the host's sysctl", key)
		}
	}
	if s.Process.OOMScoreAdj != nil && *s.Process.OOMScoreAdj < hc.OomScoreAdj {
		excess("an OOM score of", *s.Process.OOMScoreAdj)
	}
	return out
}

// upper returns capability names in their full form, "ALL" as CAP_ALL.
func upper(names []string) (out []string) {
	for _, name := range names {
		out = append(out, "CAP_"+strings.TrimPrefix(strings.ToUpper(name), "CAP_"))
	}
	return out
}
