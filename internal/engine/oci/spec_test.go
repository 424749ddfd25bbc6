// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"encoding/json"
	"holdfast/test/golden"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const testID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// fakeRoot makes a root filesystem with users.
func fakeRoot(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/var/www:/bin/false\n1000:x:7:7::/named:/bin/sh\n")
	write(t, dir, "etc/group", "root:x:0:\nweb:x:102:\naudio:x:29:web,other\nvideo:x:44:\n")
	return dir
}

func write(t testing.TB, dir, name, content string) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// fakeSystem has two disks and a terminal, and one shared mount.
func fakeSystem() system {
	mode := os.FileMode(0o660)
	var uid, gid uint32 = 0, 6
	nodes := map[string]specs.LinuxDevice{
		"/dev/vda":  {Type: "b", Major: 254, Minor: 0},
		"/dev/vdb":  {Type: "b", Major: 254, Minor: 16},
		"/dev/fuse": {Type: "c", Major: 10, Minor: 229},
	}
	get := func(p string) (specs.LinuxDevice, error) {
		d, ok := nodes[p]
		if !ok {
			return d, &os.PathError{Op: "stat", Path: p, Err: os.ErrNotExist}
		}
		d.Path, d.FileMode, d.UID, d.GID = p, &mode, &uid, &gid
		return d, nil
	}
	return system{
		stat: get,
		devices: func() ([]specs.LinuxDevice, error) {
			a, _ := get("/dev/fuse")
			b, _ := get("/dev/vda")
			return []specs.LinuxDevice{a, b}, nil
		},
		mountOf: func(p string) (string, string, error) {
			if strings.HasPrefix(p, "/shared") {
				return "/shared", "shared:7", nil
			}
			return "/", "", nil
		},
	}
}

// plain is what an ordinary `run` asks.
func plain(t *testing.T) Input {
	return Input{
		ID:   testID,
		Host: probe(fakeTree(hybridFiles), nil),
		Config: &container.Config{
			Hostname: testID[:12],
			Env:      []string{"PATH=/bin", "LANG=C"},
			Cmd:      []string{"sleep", "60"},
		},
		HostConfig: &container.HostConfig{NetworkMode: "bridge"},
		Rootfs:     fakeRoot(t),
		RootPath:   "rootfs",
		Files:      Files{Hosts: "/run/x/hosts", Resolv: "/run/x/resolv.conf", Hostname: "/run/x/hostname"},
		Namespaces: Namespaces{Net: "/run/x/netns"},
		sys:        fakeSystem(),
	}
}

func buildAdapted(in Input) (*specs.Spec, []string, error) {
	Adapt(in.Host, in.HostConfig, in.Defaults)
	host := *in.Config
	host.Hostname = "" // as the client's request has it
	w, err := Validate(in.Host, &host, in.HostConfig, in.Defaults)
	if err != nil {
		return nil, w, err
	}
	s, err := Build(in)
	return s, w, err
}

func ptr[T any](v T) *T { return &v }

func TestSpecs(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Input)
	}{
		{"plain", func(*Input) {}},
		{"v2", func(in *Input) { in.Host = probe(fakeTree(v2Files), nil) }},
		{"systemd", func(in *Input) {
			in.Host = probe(fakeTree(v2Files), nil)
			in.Defaults.CgroupDriver = DriverSystemd
			in.HostConfig.CgroupParent = "web.slice"
		}},
		{"privileged", func(in *Input) {
			in.HostConfig.Privileged = true
			in.HostConfig.Devices = []container.DeviceMapping{{PathOnHost: "/dev/vdb", PathInContainer: "/dev/disk", CgroupPermissions: "r"}}
		}},
		{"privileged-v2", func(in *Input) {
			in.Host = probe(fakeTree(v2Files), nil)
			in.HostConfig.Privileged = true
		}},
		{"hardened", func(in *Input) {
			in.Config.User = "web"
			in.Config.Tty = true
			in.Config.WorkingDir = "/srv/../var/www"
			in.Config.Domainname = "example.org"
			hc := in.HostConfig
			hc.ReadonlyRootfs = true
			hc.CapDrop, hc.CapAdd = []string{"ALL"}, []string{"net_bind_service"}
			hc.SecurityOpt = []string{"no-new-privileges", "apparmor=unconfined"}
			hc.Tmpfs = map[string]string{"/tmp": "size=1m,exec"}
			hc.GroupAdd = []string{"video", "4242"}
			hc.ConsoleSize = [2]uint{24, 80}
			hc.Umask = ptr(uint32(0o077))
			hc.OomScoreAdj = 500
			hc.Annotations = map[string]string{"org.example": "x"}
			hc.Sysctls = map[string]string{"net.core.somaxconn": "512", "net.ipv4.ip_unprivileged_port_start": "80"}
			hc.NetworkMode = "none"
			hc.IpcMode = "none"
			hc.CgroupnsMode = "private"
			in.Namespaces.Net = ""
			in.Mounts = append(TmpfsMounts(hc.Tmpfs),
				Mount{Type: mount.TypeBind, Source: "/srv/data", Destination: "/data/inner"},
				Mount{Type: mount.TypeBind, Source: "/srv/conf", Destination: "/data", RW: true},
				Mount{Type: mount.TypeVolume, Source: "/vol/_data", Destination: "/vol", RW: true, NonRecursive: true},
				Mount{Type: mount.TypeBind, Source: "/srv/hosts", Destination: "/etc/hosts"},
				Mount{Type: mount.TypeBind, Source: "/shared/x", Destination: "/shared", RW: true, Propagation: mount.PropagationRShared},
			)
		}},
		{"resources", func(in *Input) {
			in.HostConfig.Resources = container.Resources{
				Memory: 256 << 20, MemoryReservation: 128 << 20, MemorySwappiness: ptr(int64(0)), OomKillDisable: ptr(true),
				NanoCPUs: 1_500_000_000, CPUShares: 1, CpusetCpus: "0-1,3", CpusetMems: "0",
				PidsLimit: ptr(int64(100)), BlkioWeight: 300,
				BlkioWeightDevice:    []*blkiodev.WeightDevice{{Path: "/dev/vda", Weight: 200}},
				BlkioDeviceReadBps:   []*blkiodev.ThrottleDevice{{Path: "/dev/vda", Rate: 1 << 20}},
				BlkioDeviceWriteBps:  []*blkiodev.ThrottleDevice{{Path: "/dev/vdb", Rate: 2 << 20}},
				BlkioDeviceReadIOps:  []*blkiodev.ThrottleDevice{{Path: "/dev/vda", Rate: 100}},
				BlkioDeviceWriteIOps: []*blkiodev.ThrottleDevice{{Path: "/dev/vdb", Rate: 200}},
				Devices:              []container.DeviceMapping{{PathOnHost: "/dev/fuse", CgroupPermissions: "rw"}},
				DeviceCgroupRules:    []string{"c 42:* rm", "a"},
				Ulimits:              []*units.Ulimit{{Name: "nofile", Soft: 1024, Hard: 2048}, {Name: "core", Soft: 0, Hard: -1}},
			}
			in.HostConfig.CgroupParent = "tenants/a"
			in.HostConfig.ShmSize = 1 << 20
			in.Defaults.Ulimits = map[string]*units.Ulimit{"nproc": {Name: "nproc", Soft: 10, Hard: 10}, "nofile": {Name: "nofile", Soft: 1, Hard: 1}}
		}},
		{"period-and-realtime", func(in *Input) {
			in.Host.CPURealtime = true
			in.HostConfig.Resources = container.Resources{
				CPUPeriod: 50000, CPUQuota: 25000, CPURealtimePeriod: 1000000, CPURealtimeRuntime: 950000,
				Memory: 64 << 20, MemorySwap: -1, PidsLimit: ptr(int64(0)),
			}
		}},
		{"host-namespaces", func(in *Input) {
			hc := in.HostConfig
			hc.NetworkMode, hc.PidMode, hc.IpcMode, hc.UTSMode = "host", "host", "host", "host"
			hc.Init = ptr(true) // no use beside the host's processes
			in.Config.Hostname = ""
			in.Files = Files{}
		}},
		{"joined", func(in *Input) {
			hc := in.HostConfig
			hc.NetworkMode, hc.PidMode, hc.IpcMode = "container:other", "container:other", "container:other"
			in.Namespaces = Namespaces{Net: "/proc/42/ns/net", PID: "/proc/42/ns/pid", IPC: "/proc/42/ns/ipc"}
			in.ShmPath = "/run/other/shm"
		}},
		{"init-and-overrides", func(in *Input) {
			in.Defaults.Init = true
			in.InitPath = "/usr/bin/tini"
			in.Defaults.NoNewPrivileges = true
			in.HostConfig.SecurityOpt = []string{"systempaths=unconfined", "seccomp=unconfined", "writable-cgroups=true"}
			in.Config.Entrypoint = []string{"/entry"}
			in.Config.Env = []string{"HOME=/elsewhere", "HOSTNAME", "TERM=dumb"}
			in.Env = []string{"LANG=de", "PATH=/opt"}
			in.Mounts = []Mount{{Type: mount.TypeBind, Source: "/dev", Destination: "/dev/", RW: true, Propagation: mount.PropagationRPrivate}}
		}},
		{"userns-remap", func(in *Input) {
			in.Defaults.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
			in.Defaults.GIDMappings = in.Defaults.UIDMappings
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := plain(t)
			in.Defaults.CgroupDriver = DriverCgroupfs
			tc.change(&in)
			s, warnings, err := buildAdapted(in)
			if err != nil {
				t.Fatal(err)
			}
			seccomp := "none"
			if s.Linux.Seccomp != nil {
				seccomp = string(s.Linux.Seccomp.DefaultAction) // the profile itself has a test of its own
				s.Linux.Seccomp = nil
			}
			b, err := json.MarshalIndent(struct {
				Warnings []string `json:",omitempty"`
				Seccomp  string
				Spec     *specs.Spec
			}{warnings, seccomp, s}, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden.Compare(t, "testdata/spec/"+tc.name+".json", append(b, '\n'))
		})
	}
}

func TestBuildRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Input)
		want   string
		kind   func(error) bool
	}{
		{"unknown user", func(in *Input) { in.Config.User = "foo" }, "unable to find user foo: no matching entries in passwd file", errdefs.IsInvalidArgument},
		{"unknown group", func(in *Input) { in.Config.User = "0:foo" }, "unable to find group foo: no matching entries in group file", errdefs.IsInvalidArgument},
		{"unknown additional group", func(in *Input) { in.HostConfig.GroupAdd = []string{"foo"} }, "unable to find group foo", errdefs.IsInvalidArgument},
		{"no command", func(in *Input) { in.Config.Cmd = nil }, "no command specified", errdefs.IsInvalidArgument},
		{"missing device", func(in *Input) {
			in.HostConfig.Devices = []container.DeviceMapping{{PathOnHost: "/dev/nope"}}
		}, `error gathering device information while adding custom device "/dev/nope"`, errdefs.IsInvalidArgument},
		{"init without a binary", func(in *Input) { in.HostConfig.Init = ptr(true) }, "none was found", errdefs.IsFailedPrecondition},
		{"shared mount of a private source", func(in *Input) {
			in.Mounts = []Mount{{Type: mount.TypeBind, Source: "/srv", Destination: "/srv", Propagation: mount.PropagationShared}}
		}, "path /srv is mounted on / but it is not a shared mount", errdefs.IsInvalidArgument},
		{"network without a namespace", func(in *Input) { in.Namespaces.Net = "" }, "needs the path of its network namespace", errdefs.IsFailedPrecondition},
		{"recursive read-only on an old kernel", func(in *Input) {
			in.Host.RecursiveReadOnly = false
			in.Mounts = []Mount{{Type: mount.TypeBind, Source: "/srv", Destination: "/srv", ReadOnlyForceRecursive: true}}
		}, "can't make mounts read-only recursively", errdefs.IsFailedPrecondition},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := plain(t)
			tc.change(&in)
			_, err := Build(in)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !tc.kind(err) {
				t.Errorf("Build: %v, want %q", err, tc.want)
			}
		})
	}
}

func TestSeccompFollowsTheRequest(t *testing.T) {
	custom := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}`
	for _, tc := range []struct {
		name   string
		change func(*Input)
		want   string // default action; "" is no profile
	}{
		{"built in", func(*Input) {}, "SCMP_ACT_ERRNO"},
		{"named built in", func(in *Input) { in.HostConfig.SecurityOpt = []string{"seccomp=builtin"} }, "SCMP_ACT_ERRNO"},
		{"unconfined", func(in *Input) { in.HostConfig.SecurityOpt = []string{"seccomp=unconfined"} }, ""},
		{"old separator", func(in *Input) { in.HostConfig.SecurityOpt = []string{"seccomp:unconfined"} }, ""},
		{"custom", func(in *Input) { in.HostConfig.SecurityOpt = []string{"seccomp=" + custom} }, "SCMP_ACT_ALLOW"},
		{"privileged", func(in *Input) { in.HostConfig.Privileged = true }, ""},
		{"privileged with custom", func(in *Input) {
			in.HostConfig.Privileged = true
			in.HostConfig.SecurityOpt = []string{"seccomp=" + custom}
		}, "SCMP_ACT_ALLOW"},
		{"daemon's default", func(in *Input) { in.Defaults.SeccompProfile = "unconfined" }, ""},
		{"kernel without", func(in *Input) { in.Host.Seccomp = false }, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := plain(t)
			tc.change(&in)
			s, _, err := buildAdapted(in)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if s.Linux.Seccomp != nil {
				got = string(s.Linux.Seccomp.DefaultAction)
			}
			if got != tc.want {
				t.Errorf("default action %q, want %q", got, tc.want)
			}
		})
	}
	// What the built-in profile lets through depends on the capabilities.
	in := plain(t)
	in.HostConfig.CapAdd = []string{"SYS_ADMIN"}
	s, _, err := buildAdapted(in)
	if err != nil {
		t.Fatal(err)
	}
	mounts := slices.ContainsFunc(s.Linux.Seccomp.Syscalls, func(c specs.LinuxSyscall) bool {
		return c.Action == specs.ActAllow && slices.Contains(c.Names, "mount")
	})
	if !mounts {
		t.Error("mount(2) is denied to a container with CAP_SYS_ADMIN")
	}
}

func TestUsersAreLookedUpInsideTheRoot(t *testing.T) {
	root := fakeRoot(t)
	for _, tc := range []struct {
		user     string
		groups   []string
		uid, gid uint32
		extra    []uint32
		home     string
	}{
		{"", nil, 0, 0, []uint32{0}, "/root"},
		{"web", nil, 101, 102, []uint32{102, 29}, "/var/www"},
		{"web:video", nil, 101, 44, []uint32{44}, "/var/www"},
		{"101:7", []string{"audio"}, 101, 7, []uint32{7, 29}, "/var/www"},
		{"4242", nil, 4242, 0, []uint32{0}, "/"},
		{"4242:4243", []string{"web", "102"}, 4242, 4243, []uint32{4243, 102}, "/"},
	} {
		u, home, err := resolveUser(root, tc.user, tc.groups)
		if err != nil || u.UID != tc.uid || u.GID != tc.gid || !slices.Equal(u.AdditionalGids, tc.extra) || home != tc.home {
			t.Errorf("%q: %+v home %q err %v", tc.user, u, home, err)
		}
	}
}

func TestUserFilesCantLeadOutOfTheRoot(t *testing.T) {
	outside := t.TempDir()
	write(t, outside, "passwd", "evil:x:0:0::/:/bin/sh\n")
	t.Run("link out", func(t *testing.T) {
		root := t.TempDir()
		write(t, root, "etc/group", "")
		if err := os.Symlink(filepath.Join(outside, "passwd"), filepath.Join(root, "etc/passwd")); err != nil {
			t.Fatal(err)
		}
		if _, _, err := resolveUser(root, "evil", nil); err == nil {
			t.Error("a user of the host's file was found")
		}
	})
	t.Run("absolute link within", func(t *testing.T) {
		root := t.TempDir()
		write(t, root, "nix/passwd", "me:x:5:6::/me:/bin/sh\n")
		if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/nix/passwd", filepath.Join(root, "etc/passwd")); err != nil {
			t.Fatal(err)
		}
		if u, _, err := resolveUser(root, "me", nil); err != nil || u.UID != 5 {
			t.Errorf("%+v, %v", u, err)
		}
	})
	t.Run("no files", func(t *testing.T) {
		if u, home, err := resolveUser(t.TempDir(), "5:6", nil); err != nil || u.UID != 5 || home != "/" {
			t.Errorf("%+v, %q, %v", u, home, err)
		}
	})
	t.Run("folder", func(t *testing.T) {
		root := t.TempDir()
		if err := os.MkdirAll(filepath.Join(root, "etc/passwd"), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, _, err := resolveUser(root, "0", nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("err = %v", err)
		}
	})
}

func TestExecTakesOverWhatItDoesNotChange(t *testing.T) {
	in := plain(t)
	in.HostConfig.CapDrop = []string{"CHOWN"}
	in.Config.WorkingDir = "/srv"
	s, _, err := buildAdapted(in)
	if err != nil {
		t.Fatal(err)
	}
	o := ExecOptions{Host: in.Host, Config: in.Config, HostConfig: in.HostConfig}
	exec := func(r container.ExecCreateRequest) *specs.Process {
		t.Helper()
		p, err := ExecProcess(s.Process, in.Rootfs, r, o)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}

	p := exec(container.ExecCreateRequest{Cmd: []string{"id"}})
	if p.Cwd != "/srv" || p.Terminal || !slices.Equal(p.Args, []string{"id"}) || !slices.Equal(p.Env, s.Process.Env) {
		t.Errorf("plain exec: %+v", p)
	}
	if slices.Contains(p.Capabilities.Effective, "CAP_CHOWN") || len(p.Capabilities.Effective) != 13 {
		t.Errorf("capabilities: %v", p.Capabilities.Effective)
	}

	p = exec(container.ExecCreateRequest{
		Cmd: []string{"sh"}, Tty: true, ConsoleSize: &[2]uint{40, 100}, User: "web", WorkingDir: "/tmp/..",
		Env: []string{"LANG=fr", "X=1", "PATH"},
	})
	want := []string{"HOSTNAME=" + testID[:12], "TERM=xterm", "LANG=fr", "X=1", "HOME=/var/www"}
	if !slices.Equal(p.Env, want) {
		t.Errorf("environment %v, want %v", p.Env, want)
	}
	if p.User.UID != 101 || p.Cwd != "/" || p.ConsoleSize.Height != 40 || p.ConsoleSize.Width != 100 {
		t.Errorf("exec with all: %+v", p)
	}
	if p.Capabilities.Effective != nil || len(p.Capabilities.Bounding) != 13 {
		t.Errorf("capabilities of a user: %+v", p.Capabilities)
	}

	p = exec(container.ExecCreateRequest{Cmd: []string{"sh"}, Privileged: true})
	if !slices.Equal(p.Capabilities.Effective, in.Host.Caps) {
		t.Errorf("privileged: %v", p.Capabilities.Effective)
	}
	if s.Process.Args[0] != "sleep" || len(s.Process.Capabilities.Bounding) != 13 {
		t.Error("the container's own process was changed")
	}

	for want, r := range map[string]container.ExecCreateRequest{
		"No exec command specified":     {},
		"Cwd must be an absolute path":  {Cmd: []string{"x"}, WorkingDir: "rel"},
		"unable to find user nope":      {Cmd: []string{"x"}, User: "nope"},
		"invalid environment variable:": {Cmd: []string{"x"}, Env: []string{"=1"}},
	} {
		if _, err := ExecProcess(s.Process, in.Rootfs, r, o); err == nil || !strings.Contains(err.Error(), want) || !errdefs.IsInvalidArgument(err) {
			t.Errorf("err = %v, want %q", err, want)
		}
	}
}

func TestDefaultCapabilitiesTheDaemonLacksAreLeftOut(t *testing.T) {
	in := plain(t)
	in.Host.Caps = []string{"CAP_CHOWN", "CAP_KILL"}
	s, _, err := buildAdapted(in)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"CAP_CHOWN", "CAP_KILL"}; !slices.Equal(s.Process.Capabilities.Bounding, want) {
		t.Errorf("bounding %v, want %v", s.Process.Capabilities.Bounding, want)
	}
}

func TestScoreThatCantBeLoweredIsInherited(t *testing.T) {
	in := plain(t)
	in.Host.OOMScoreAdj = 300
	in.Host.Caps = slices.DeleteFunc(in.Host.Caps, func(c string) bool { return c == "CAP_SYS_RESOURCE" })
	s, _, err := buildAdapted(in)
	if err != nil {
		t.Fatal(err)
	}
	if s.Process.OOMScoreAdj != nil {
		t.Errorf("oomScoreAdj %d", *s.Process.OOMScoreAdj)
	}
}

func TestPropagationThatNobodyAskedForNeedsNoSharedMount(t *testing.T) {
	for source, want := range map[string]string{"/shared/a": "rslave", "/a": "rprivate"} {
		in := plain(t)
		in.Mounts = []Mount{{Type: mount.TypeBind, Source: source, Destination: "/x", RW: true, Propagation: mount.PropagationRSlave, PropagationIfShared: true}}
		s, _, err := buildAdapted(in)
		if err != nil {
			t.Fatalf("%s: %v", source, err)
		}
		i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/x" })
		if got := s.Mounts[i].Options; !slices.Contains(got, want) {
			t.Errorf("%s: options %v, want %s", source, got, want)
		}
		if got := s.Linux.RootfsPropagation; (got == "rslave") != (want == "rslave") {
			t.Errorf("%s: the root's propagation is %q", source, got)
		}
	}
}
