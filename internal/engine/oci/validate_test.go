// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"holdfast/test/golden"
	"math"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestValidateRefusesInDockersWords(t *testing.T) {
	type request struct {
		*container.Config
		H *container.HostConfig
		D *Defaults
		M *Host
	}
	missing := filepath.Join(t.TempDir(), "missing")
	for _, tc := range []struct {
		name string
		ask  func(request)
		want string
	}{
		{"relative workdir", func(r request) { r.WorkingDir = "a/b" }, "the working directory 'a/b' is invalid, it needs to be an absolute path"},
		{"stop signal", func(r request) { r.StopSignal = "SIGFOO" }, "invalid signal: SIGFOO"},
		{"stop timeout", func(r request) { r.StopTimeout = ptr(-2) }, "invalid stop timeout -2"},
		{"env without a name", func(r request) { r.Env = []string{"A=1", "=foo"} }, "invalid environment variable: =foo"},
		{"empty env", func(r request) { r.Env = []string{""} }, "invalid environment variable: "},
		{"long hostname", func(r request) { r.Hostname = strings.Repeat("a", 65) }, "is too long (maximum 64 bytes)"},
		{"hostname with a newline", func(r request) { r.Hostname = "a\n1.2.3.4 b" }, "invalid hostname format"},
		{"health interval", func(r request) { r.Healthcheck = &container.HealthConfig{Interval: time.Microsecond} }, "Interval in Healthcheck cannot be less than 1ms"},
		{"health timeout", func(r request) { r.Healthcheck = &container.HealthConfig{Timeout: -1} }, "Timeout in Healthcheck cannot be less than 1ms"},
		{"health start period", func(r request) { r.Healthcheck = &container.HealthConfig{StartPeriod: 1} }, "StartPeriod in Healthcheck cannot be less than 1ms"},
		{"health start interval", func(r request) { r.Healthcheck = &container.HealthConfig{StartInterval: 1} }, "StartInterval in Healthcheck cannot be less than 1ms"},
		{"health retries", func(r request) { r.Healthcheck = &container.HealthConfig{Retries: -1} }, "Retries in Healthcheck cannot be negative"},
		{"health test", func(r request) { r.Healthcheck = &container.HealthConfig{Test: []string{"RUN", "x"}} }, `Unknown type "RUN" in Healthcheck`},
		{"exposed port", func(r request) { r.ExposedPorts = network.PortSet{network.Port{}: {}} }, "invalid port specification"},

		{"unknown capability", func(r request) { r.H.CapAdd = []string{"nope"} }, `invalid CapAdd: unknown capability: "CAP_NOPE"`},
		{"unavailable capability", func(r request) { r.M.Caps = nil; r.H.CapDrop = []string{"CAP_CHOWN"} }, `invalid CapDrop: capability not supported by your kernel or not available in the current environment: "CAP_CHOWN"`},
		{"little memory", func(r request) { r.H.Memory = 1 << 20 }, "Minimum memory limit allowed is 6MB"},
		{"swap below memory", func(r request) { r.H.Memory, r.H.MemorySwap = 64<<20, 32<<20 }, "Minimum memoryswap limit should be larger than memory limit, see usage"},
		{"swap without memory", func(r request) { r.H.MemorySwap = 64 << 20 }, "You should always set the Memory limit when using Memoryswap limit, see usage"},
		{"swappiness", func(r request) { r.H.MemorySwappiness = ptr(int64(101)) }, "Invalid value: 101, valid memory swappiness range is 0-100"},
		{"little reservation", func(r request) { r.H.MemoryReservation = 1 }, "Minimum memory reservation allowed is 6MB"},
		{"reservation above memory", func(r request) { r.H.Memory, r.H.MemoryReservation = 8<<20, 16<<20 }, "Minimum memory limit can not be less than memory reservation limit, see usage"},
		{"cpus and period", func(r request) { r.H.NanoCPUs, r.H.CPUPeriod = 1e9, 100000 }, "Conflicting options: Nano CPUs and CPU Period cannot both be set"},
		{"cpus and quota", func(r request) { r.H.NanoCPUs, r.H.CPUQuota = 1e9, 100000 }, "Conflicting options: Nano CPUs and CPU Quota cannot both be set"},
		{"cpus without scheduler", func(r request) { r.M.CPUCfs = false; r.H.NanoCPUs = 1e9 }, "NanoCPUs can not be set"},
		{"many cpus", func(r request) { r.H.NanoCPUs = 5e9 }, "range of CPUs is from 0.01 to 4.00, as there are only 4 CPUs available"},
		{"short period", func(r request) { r.H.CPUPeriod = 999 }, "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"},
		{"short quota", func(r request) { r.H.CPUQuota = 999 }, "CPU cfs quota can not be less than 1ms (i.e. 1000)"},
		{"negative shares", func(r request) { r.H.CPUShares = -1 }, "shares: invalid argument"},
		{"realtime", func(r request) { r.H.CPURealtimeRuntime = 1 }, "kernel does not support CPU real-time scheduler"},
		{"realtime order", func(r request) {
			r.M.CPURealtime = true
			r.H.CPURealtimeRuntime, r.H.CPURealtimePeriod = 2, 1
		}, "cpu real-time runtime cannot be higher than cpu real-time period"},
		{"cpuset syntax", func(r request) { r.H.CpusetCpus = "0-x" }, "Invalid value 0-x for cpuset cpus"},
		{"cpuset range", func(r request) { r.H.CpusetCpus = "2-4" }, "Requested CPUs are not available - requested 2-4, available: 0-3"},
		{"cpuset memory nodes", func(r request) { r.H.CpusetMems = "1" }, "Requested memory nodes are not available - requested 1, available: 0"},
		{"blkio weight", func(r request) { r.H.BlkioWeight = 5 }, "Range of blkio weight is from 10 to 1000"},
		{"blkio device", func(r request) { r.H.BlkioDeviceReadBps = []*blkiodev.ThrottleDevice{{}} }, "the path is empty"},
		{"windows limits", func(r request) { r.H.IOMaximumIOps = 1 }, "Invalid QoS settings: linux does not support Maximum IO Bandwidth or Maximum IO IOps"},
		{"oom score", func(r request) { r.H.OomScoreAdj = 1001 }, "Invalid value 1001, range for oom score adj is [-1000, 1000]"},
		{"shm size", func(r request) { r.H.ShmSize = -1 }, "SHM size can not be less than 0"},
		{"umask", func(r request) { r.H.Umask = ptr(uint32(0o1777)) }, "invalid umask"},

		{"auto-remove and restart", func(r request) { r.H.AutoRemove = true; r.H.RestartPolicy.Name = "always" }, "can't create 'AutoRemove' container with restart policy"},
		{"restart policy", func(r request) { r.H.RestartPolicy.Name = "sometimes" }, "invalid restart policy: unknown policy 'sometimes'"},
		{"restart count", func(r request) {
			r.H.RestartPolicy = container.RestartPolicy{Name: "always", MaximumRetryCount: 1}
		}, "maximum retry count can only be used with 'on-failure'"},
		{"isolation", func(r request) { r.H.Isolation = "hyperv" }, "invalid isolation (hyperv): linux only supports 'default'"},
		{"annotation", func(r request) { r.H.Annotations = map[string]string{"": "x"} }, "invalid Annotations: the empty string is not permitted as an annotation key"},
		{"runtime", func(r request) { r.H.Runtime = "nope" }, "unknown or invalid runtime name: nope"},
		{"slice", func(r request) { r.D.CgroupDriver = DriverSystemd; r.H.CgroupParent = "/a" }, `cgroup-parent for systemd cgroup should be a valid slice named as "xxx.slice"`},
		{"storage option", func(r request) { r.H.StorageOpt = map[string]string{"size": "1G"} }, `storage option "size" is not supported`},
		{"volume driver", func(r request) { r.H.VolumeDriver = "nfs" }, `volume driver "nfs" is not available`},

		{"log driver", func(r request) { r.H.LogConfig.Type = "nope" }, "error looking up logging plugin nope: plugin \"nope\" not found"},
		{"foreign log driver", func(r request) { r.H.LogConfig.Type = "journald" }, "log driver 'journald' is not available"},
		{"log option", func(r request) { r.H.LogConfig.Config = map[string]string{"nope": "1"} }, "unknown log opt 'nope' for json-file log driver"},

		{"ipc mode", func(r request) { r.H.IpcMode = "shared" }, "invalid IPC mode: shared"},
		{"ipc of nobody", func(r request) { r.H.IpcMode = "container:" }, "invalid IPC mode: container:"},
		{"pid mode", func(r request) { r.H.PidMode = "container:" }, "invalid PID mode: container:"},
		{"uts mode", func(r request) { r.H.UTSMode = "x" }, "invalid UTS mode: x"},
		{"userns mode", func(r request) { r.H.UsernsMode = "x" }, "invalid USER mode: x"},
		{"cgroupns mode", func(r request) { r.H.CgroupnsMode = "x" }, "invalid cgroup namespace mode: x"},
		{"hostname of the host", func(r request) { r.Hostname = "a"; r.H.UTSMode = "host" }, "conflicting options: hostname and the UTS mode"},
		{"network of nobody", func(r request) { r.H.NetworkMode = "container:" }, "invalid container format container:<name|id>"},
		{"network syntax", func(r request) { r.H.NetworkMode = "foo:bar" }, "invalid network mode: foo:bar"},
		{"host network and links", func(r request) { r.H.NetworkMode = "host"; r.H.Links = []string{"a:b"} }, "conflicting options: host type networking can't be used with links"},
		{"joined network and hostname", func(r request) { r.H.NetworkMode = "container:a"; r.Hostname = "a" }, "conflicting options: hostname and the network mode"},
		{"joined network and links", func(r request) { r.H.NetworkMode = "container:a"; r.H.Links = []string{"a"} }, "conflicting options: container type network can't be used with links"},
		{"joined network and dns", func(r request) {
			r.H.NetworkMode = "container:a"
			r.H.DNS = []netip.Addr{netip.MustParseAddr("1.1.1.1")}
		}, "conflicting options: dns and the network mode"},
		{"joined network and hosts", func(r request) { r.H.NetworkMode = "container:a"; r.H.ExtraHosts = []string{"a:1.1.1.1"} }, "conflicting options: custom host-to-IP mapping and the network mode"},
		{"joined network and publishing", func(r request) { r.H.NetworkMode = "container:a"; r.H.PublishAllPorts = true }, "conflicting options: port publishing and the container type network mode"},
		{"joined network and exposing", func(r request) {
			r.H.NetworkMode = "container:a"
			r.ExposedPorts = network.PortSet{network.MustParsePort("80/tcp"): {}}
		}, "conflicting options: port exposing and the container type network mode"},
		{"host port", func(r request) {
			r.H.PortBindings = network.PortMap{network.MustParsePort("80/tcp"): {{HostPort: "x"}}}
		}, `invalid port specification: "x"`},
		{"protocol", func(r request) {
			r.H.PortBindings = network.PortMap{network.MustParsePort("80/dccp"): {{HostPort: "1"}}}
		}, "unknown protocol"},
		{"extra host", func(r request) { r.H.ExtraHosts = []string{"a"} }, `bad format for add-host: "a"`},
		{"extra host's address", func(r request) { r.H.ExtraHosts = []string{"a:1.2.3"} }, `invalid IP address in add-host: "1.2.3"`},
		{"extra host's name", func(r request) { r.H.ExtraHosts = []string{"a\nb:1.2.3.4"} }, "bad format for add-host"},
		{"dns search", func(r request) { r.H.DNSSearch = []string{"a b"} }, `"a b" is not a valid DNS search domain`},
		{"dns option", func(r request) { r.H.DNSOptions = []string{"a\nnameserver 6.6.6.6"} }, "is not a valid DNS option"},
		{"link", func(r request) { r.H.Links = []string{"a:b:c"} }, "bad format for links: a:b:c"},

		{"security option", func(r request) { r.H.SecurityOpt = []string{"foo"} }, `invalid --security-opt 1: "foo"`},
		{"security key", func(r request) { r.H.SecurityOpt = []string{"foo=bar"} }, `invalid --security-opt 2: "foo=bar"`},
		{"security value", func(r request) { r.H.SecurityOpt = []string{"no-new-privileges=maybe"} }, `invalid --security-opt 2: "no-new-privileges=maybe"`},
		{"seccomp text", func(r request) { r.H.SecurityOpt = []string{"seccomp={"} }, "seccomp profile failed"},
		{"seccomp without kernel", func(r request) { r.M.Seccomp = false; r.H.SecurityOpt = []string{"seccomp={}"} }, "seccomp is not enabled in your kernel, cannot run a custom seccomp profile"},
		{"apparmor without kernel", func(r request) { r.H.SecurityOpt = []string{"apparmor=mine"} }, "AppArmor is not enabled"},
		{"gpu", func(r request) {
			r.H.DeviceRequests = []container.DeviceRequest{{Driver: "nvidia", Capabilities: [][]string{{"gpu"}}}}
		}, `could not select device driver "nvidia" with capabilities: [[gpu]]`},
		{"device access", func(r request) {
			r.H.Devices = []container.DeviceMapping{{PathOnHost: "/dev/null", CgroupPermissions: "rx"}}
		}, "invalid device mode: rx"},
		{"device path", func(r request) { r.H.Devices = []container.DeviceMapping{{PathOnHost: "null"}} }, "null is not an absolute path"},
		{"device rule", func(r request) { r.H.DeviceCgroupRules = []string{"c 1:2"} }, "invalid device cgroup rule format: 'c 1:2'"},
		{"ulimit name", func(r request) { r.H.Ulimits = []*units.Ulimit{{Name: "nope"}} }, "invalid ulimit type: nope"},
		{"ulimit order", func(r request) { r.H.Ulimits = []*units.Ulimit{{Name: "nofile", Soft: 2, Hard: 1}} }, "ulimit soft limit must be less than or equal to hard limit: 2 > 1"},
		{"ulimit endless", func(r request) { r.H.Ulimits = []*units.Ulimit{{Name: "nofile", Soft: -1, Hard: 1}} }, "soft: -1 (unlimited), hard: 1"},
		{"sysctl of the host", func(r request) { r.H.Sysctls = map[string]string{"vm.swappiness": "1"} }, `sysctl "vm.swappiness" is not in a separate kernel namespace`},
		{"sysctl in the host's network", func(r request) {
			r.H.NetworkMode = "host"
			r.H.Sysctls = map[string]string{"net/ipv4/ip_forward": "1"}
		}, `sysctl "net/ipv4/ip_forward" not allowed in host network namespace`},
		{"sysctl in the host's ipc", func(r request) { r.H.IpcMode = "host"; r.H.Sysctls = map[string]string{"kernel.msgmax": "1"} }, `sysctl "kernel.msgmax" not allowed in host ipc namespace`},
		{"remapped privileged", func(r request) { r.D.UIDMappings = make([]specs.LinuxIDMapping, 1); r.H.Privileged = true }, "privileged mode is incompatible with user namespaces"},
		{"remapped writable cgroups", func(r request) {
			r.D.UIDMappings = make([]specs.LinuxIDMapping, 1)
			r.H.SecurityOpt = []string{"writable-cgroups"}
		}, "option WritableCgroups conflicts with user namespaces and rootless mode"},

		{"bind without target", func(r request) { r.H.Binds = []string{"/a:rw"} }, "invalid volume specification: '/a:rw'"},
		{"bind mode", func(r request) { r.H.Binds = []string{"/a:/b:rx"} }, "invalid mode: rx"},
		{"bind modes twice", func(r request) { r.H.Binds = []string{"/a:/b:ro,rw"} }, "invalid mode: ro,rw"},
		{"bind over root", func(r request) { r.H.Binds = []string{"/a:/"} }, "destination can't be '/'"},
		{"bind to relative", func(r request) { r.H.Binds = []string{"/a:b"} }, "mount path must be absolute"},
		{"propagation of a volume", func(r request) { r.H.Binds = []string{"vol:/b:rshared"} }, "field BindOptions must not be specified"},
		{"duplicate", func(r request) { r.H.Binds = []string{"/a:/b", "c:/b/"} }, "Duplicate mount point: /b"},
		{"duplicate of kinds", func(r request) { r.H.Binds = []string{"/a:/b"}; r.H.Tmpfs = map[string]string{"/b": ""} }, "Duplicate mount point: /b"},
		{"tmpfs option", func(r request) { r.H.Tmpfs = map[string]string{"/b": "nope=1"} }, "invalid tmpfs option"},
		{"tmpfs at root", func(r request) { r.H.Tmpfs = map[string]string{"/": ""} }, "destination can't be '/'"},
		{"volumes-from mode", func(r request) { r.H.VolumesFrom = []string{"a:nocopy"} }, "invalid mode: nocopy"},
		{"missing source", func(r request) {
			r.H.Mounts = []mount.Mount{{Type: "bind", Source: missing, Target: "/b"}}
		}, `invalid mount config for type "bind": bind source path does not exist: ` + missing},
		{"mount without source", func(r request) { r.H.Mounts = []mount.Mount{{Type: "bind", Target: "/b"}} }, "field Source must not be empty"},
		{"mount without target", func(r request) { r.H.Mounts = []mount.Mount{{Type: "volume"}} }, `invalid mount config for type "volume": field Target must not be empty`},
		{"mount of no type", func(r request) { r.H.Mounts = []mount.Mount{{Type: "x", Target: "/b"}} }, "mount type unknown"},
		{"image without source", func(r request) { r.H.Mounts = []mount.Mount{{Type: "image", Target: "/b"}} }, "field Source must not be empty"},
		{"image out of itself", func(r request) {
			r.H.Mounts = []mount.Mount{{Type: "image", Source: "a", Target: "/b", ImageOptions: &mount.ImageOptions{Subpath: "x/../.."}}}
		}, "subpath must be a relative path"},
		{"image as devices", func(r request) { r.H.Mounts = []mount.Mount{{Type: "image", Source: "a", Target: "/dev/"}} }, "an image can't be mounted at /dev"},
		{"extra field", func(r request) {
			r.H.Mounts = []mount.Mount{{Type: "tmpfs", Target: "/b", BindOptions: &mount.BindOptions{}}}
		}, "field BindOptions must not be specified"},
		{"anonymous read-only", func(r request) {
			r.H.Mounts = []mount.Mount{{Type: "volume", Target: "/b", ReadOnly: true}}
		}, "must not set ReadOnly mode when using anonymous volumes"},
		{"propagation", func(r request) {
			r.H.Mounts = []mount.Mount{{Type: "bind", Source: "/", Target: "/b", BindOptions: &mount.BindOptions{Propagation: "x"}}}
		}, "invalid propagation mode: x"},
		{"subpath", func(r request) {
			r.H.Mounts = []mount.Mount{{Type: "volume", Source: "v", Target: "/b", VolumeOptions: &mount.VolumeOptions{Subpath: "a/../../b"}}}
		}, "subpath must be a relative path within the volume"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := probe(fakeTree(hybridFiles), nil)
			d := Defaults{Runtime: "runc", Runtimes: []string{"runc", "crun"}, CgroupDriver: DriverCgroupfs}
			c := &container.Config{Cmd: []string{"true"}}
			hc := &container.HostConfig{}
			tc.ask(request{c, hc, &d, &h})
			Adapt(h, hc, d)
			_, err := Validate(h, c, hc, d)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("Validate: %v, want %q", err, tc.want)
			}
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v is not of kind invalid argument", err)
			}
		})
	}
}

func TestValidateAcceptsWhatDockerAccepts(t *testing.T) {
	h := probe(fakeTree(hybridFiles), nil)
	c := &container.Config{
		Hostname: "web.example.org", WorkingDir: "/a/./b/", StopSignal: "SIGRTMIN+3", User: "a:b",
		Env:          []string{"A=", "B", "C=x=y"},
		Healthcheck:  &container.HealthConfig{Test: []string{"CMD-SHELL", "true"}, Interval: time.Millisecond},
		ExposedPorts: network.PortSet{network.MustParsePort("80/tcp"): {}},
		Volumes:      map[string]struct{}{"/data": {}},
	}
	hc := &container.HostConfig{
		NetworkMode: "mynet", IpcMode: "shareable", PidMode: "host", CapAdd: []string{"all"}, CapDrop: []string{"Mknod", "CAP_KILL"},
		Binds: []string{"/a:/a:ro,z,rshared,cached", "name:/b:nocopy", "/c"}, Tmpfs: map[string]string{"/d": "rw,size=787448k,mode=1777"},
		Mounts: []mount.Mount{
			{Type: "bind", Source: "/", Target: "/host", ReadOnly: true, BindOptions: &mount.BindOptions{ReadOnlyForceRecursive: true}},
			{Type: "bind", Source: "/not/there", Target: "/made", BindOptions: &mount.BindOptions{CreateMountpoint: true}},
			{Type: "tmpfs", Target: "/t", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 3 << 20, Mode: 0o1770, Options: [][]string{{"exec"}, {"uid", "5"}}}},
		},
		SecurityOpt:  []string{"no-new-privileges:true", "label=disable", "seccomp=unconfined", "apparmor:unconfined", "writable-cgroups=false"},
		ExtraHosts:   []string{"a:1.2.3.4", "b=::1", "c:[::1]", "d:host-gateway", "e:::1"},
		Links:        []string{"a", "a:b", "/web:/other/alias"},
		PortBindings: network.PortMap{network.MustParsePort("80/tcp"): {{HostPort: "8080"}, {HostPort: "8000-8010"}, {}}, network.MustParsePort("81/sctp"): {}},
		Sysctls:      map[string]string{"net.core.somaxconn": "1", "kernel.msgmax": "1", "fs.mqueue.msg_max": "10"},
		LogConfig:    container.LogConfig{Type: "local", Config: map[string]string{"max-size": "1m", "max-file": "3", "mode": "non-blocking", "max-buffer-size": "4m"}},
		Resources:    container.Resources{Memory: 6 << 20, MemorySwappiness: ptr(int64(-1)), CpusetCpus: "0,1", PidsLimit: ptr(int64(-1))},
		OomScoreAdj:  -1000,
	}
	d := Defaults{}
	Adapt(h, hc, d)
	warnings, err := Validate(h, c, hc, d)
	if err != nil || len(warnings) > 0 {
		t.Fatalf("Validate: %v, warnings %v", err, warnings)
	}
	if c.WorkingDir != "/a/b" {
		t.Errorf("workdir %q", c.WorkingDir)
	}
	if hc.MemorySwap != 12<<20 || hc.ShmSize != 64<<20 || hc.CgroupnsMode != "host" || hc.MemorySwappiness != nil || *hc.OomKillDisable {
		t.Errorf("defaults: %+v", hc)
	}
}

func TestWhatTheHostCantLimitIsDroppedWithAWarning(t *testing.T) {
	h := probe(fakeTree(commonFiles), nil) // no cgroups at all
	hc := &container.HostConfig{Resources: container.Resources{
		Memory: 64 << 20, MemoryReservation: 32 << 20, MemorySwappiness: ptr(int64(1)), OomKillDisable: ptr(true),
		CPUShares: 5, CPUPeriod: 1000, CpusetCpus: "77", PidsLimit: ptr(int64(5)), BlkioWeight: 1,
		BlkioDeviceReadBps: []*blkiodev.ThrottleDevice{{Path: "/dev/vda", Rate: 1}}, CPUPercent: 5,
	}}
	Adapt(h, hc, Defaults{})
	warnings, err := Validate(h, &container.Config{}, hc, Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "testdata/warnings.txt", []byte(strings.Join(warnings, "\n")+"\n"))
	lr, err := Resources(h, hc.Resources)
	if err != nil || lr.Memory != nil || lr.CPU != nil || lr.Pids != nil || lr.BlockIO != nil {
		t.Errorf("Resources: %+v, %v", lr, err)
	}
}

func TestDefaultsDependOnHostAndRequest(t *testing.T) {
	hybrid, v2 := probe(fakeTree(hybridFiles), nil), probe(fakeTree(v2Files), nil)
	for _, tc := range []struct {
		name       string
		host       Host
		privileged bool
		d          Defaults
		want       container.CgroupnsMode
	}{
		{"v1", hybrid, false, Defaults{}, "host"},
		{"v2", v2, false, Defaults{}, "private"},
		{"v2 privileged", v2, true, Defaults{}, "private"},
		{"v1, daemon says private", hybrid, false, Defaults{CgroupnsMode: "private"}, "private"},
		{"v1 privileged, daemon says private", hybrid, true, Defaults{CgroupnsMode: "private"}, "host"},
	} {
		hc := &container.HostConfig{Privileged: tc.privileged}
		Adapt(tc.host, hc, tc.d)
		if hc.CgroupnsMode != tc.want {
			t.Errorf("%s: cgroupns %q, want %q", tc.name, hc.CgroupnsMode, tc.want)
		}
		if (hc.MaskedPaths == nil) != tc.privileged {
			t.Errorf("%s: masked paths %v", tc.name, hc.MaskedPaths)
		}
	}
}

func TestDaemonsLogOptionsHoldForItsDriverOnly(t *testing.T) {
	d := Defaults{LogConfig: container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "1m", "max-file": "2"}}}
	own := &container.HostConfig{LogConfig: container.LogConfig{Config: map[string]string{"max-file": "7"}}}
	Adapt(Host{}, own, d)
	if lc := own.LogConfig; lc.Type != "json-file" || lc.Config["max-size"] != "1m" || lc.Config["max-file"] != "7" {
		t.Errorf("%+v", lc)
	}
	other := &container.HostConfig{LogConfig: container.LogConfig{Type: "local"}}
	Adapt(Host{}, other, d)
	if len(other.LogConfig.Config) != 0 {
		t.Errorf("%+v", other.LogConfig)
	}
	if len(d.LogConfig.Config) != 2 {
		t.Error("the daemon's options were changed")
	}
}

func TestLogOptions(t *testing.T) {
	type opts = map[string]string
	for _, tc := range []struct {
		name, driver string
		opts         opts
		size         int64
		files        int
		compress     bool
		bad          string
	}{
		{"json default", "json-file", nil, 0, 1, false, ""},
		{"none", "none", opts{"x": "y"}, 0, 1, false, ""},
		{"local default", "local", nil, 20 << 20, 5, true, ""},
		{"local with one file", "local", opts{"max-file": "1"}, 20 << 20, 1, false, ""},
		{"json all", "json-file", opts{"max-size": "10m", "max-file": "3", "compress": "true"}, 10_000_000, 3, true, ""},
		{"json unlimited", "json-file", opts{"max-size": "-1"}, 0, 1, false, ""},
		{"compress needs files", "json-file", opts{"max-size": "1m", "compress": "true"}, 0, 0, false, "compress cannot be true when max-file is less than 2 or max-size is not set"},
		{"compress needs size", "json-file", opts{"max-file": "2", "compress": "true"}, 0, 0, false, "compress cannot be true"},
		{"no files", "json-file", opts{"max-file": "0"}, 0, 0, false, "max-file cannot be less than 1"},
		{"size", "json-file", opts{"max-size": "big"}, 0, 0, false, "max-size"},
		{"zero size", "json-file", opts{"max-size": "0"}, 0, 0, false, "max-size must be a positive number"},
		{"mode", "json-file", opts{"mode": "x"}, 0, 0, false, "logger: logging mode not supported: x"},
		{"buffer needs mode", "json-file", opts{"max-buffer-size": "1m"}, 0, 0, false, "logger: max-buffer-size option is only supported with 'mode=non-blocking'"},
		{"regex", "json-file", opts{"env-regex": "("}, 0, 0, false, "env-regex"},
		{"tag", "json-file", opts{"tag": "{{"}, 0, 0, false, "tag"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ParseLog(container.LogConfig{Type: tc.driver, Config: tc.opts})
			if tc.bad != "" {
				if err == nil || !strings.Contains(err.Error(), tc.bad) || !errdefs.IsInvalidArgument(err) {
					t.Fatalf("err = %v, want %q", err, tc.bad)
				}
				return
			}
			if err != nil || got.MaxSize != tc.size || got.MaxFiles != tc.files || got.Compress != tc.compress {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestLogAttributes(t *testing.T) {
	lc, err := ParseLog(container.LogConfig{Type: "json-file", Config: map[string]string{
		"labels": "a, c", "labels-regex": "^x", "env": "E", "env-regex": "^F.", "tag": "{{.Name}}/{{.ID}}/{{.ImageID}}/{{.ImageName}}",
	}})
	if err != nil {
		t.Fatal(err)
	}
	attrs, err := lc.Attributes(LogInfo{
		ContainerID: testID, ContainerName: "/web", ContainerImageID: "sha256:" + testID, ContainerImageName: "img:1",
		Config: &container.Config{Labels: map[string]string{"a": "1", "b": "2", "xy": "3"}, Env: []string{"E=4", "F=5", "FF=6=7"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"a": "1", "xy": "3", "E": "4", "FF": "6=7", "tag": "web/0123456789ab/0123456789ab/img:1"}
	if len(attrs) != len(want) {
		t.Errorf("attributes %v", attrs)
	}
	for k, v := range want {
		if attrs[k] != v {
			t.Errorf("%s = %q, want %q", k, attrs[k], v)
		}
	}
}

func TestBinds(t *testing.T) {
	for _, tc := range []struct {
		in, driver string
		want       mount.Mount
		mode       string
	}{
		{"/a/../b:/c/", "", mount.Mount{Type: "bind", Source: "/b", Target: "/c"}, ""},
		{"/b:/c:ro", "local", mount.Mount{Type: "bind", Source: "/b", Target: "/c", ReadOnly: true}, "ro"},
		{"/c", "", mount.Mount{Type: "volume", Target: "/c"}, ""},
	} {
		m, mode, err := ParseBind(tc.in, tc.driver)
		if err != nil || m != tc.want || mode != tc.mode {
			t.Errorf("ParseBind(%q) = %+v, %q, %v", tc.in, m, mode, err)
		}
	}
	m, _, err := ParseBind("vol:/c:nocopy,ro", "local")
	if err != nil || !m.VolumeOptions.NoCopy || m.VolumeOptions.DriverConfig.Name != "local" || !m.ReadOnly {
		t.Errorf("%+v, %v", m, err)
	}
	m, _, err = ParseBind("/a:/c:rro,rprivate", "")
	if err != nil || !m.BindOptions.ReadOnlyForceRecursive || m.BindOptions.Propagation != "rprivate" || !m.ReadOnly {
		t.Errorf("%+v, %v", m, err)
	}
	if _, _, err := ParseBind("vol:/c:rro", ""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("rro of a volume: %v", err)
	}
}

func FuzzParseBind(f *testing.F) {
	for _, s := range []string{"/a:/b:ro", "v:/b", "/c", ":", "a:b:c:d", "/a:/b:ro,z,rslave"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, _, err := ParseBind(s, "")
		if err == nil && (m.Target == "/" || !filepath.IsAbs(m.Target)) {
			t.Errorf("ParseBind(%q) took the target %q", s, m.Target)
		}
	})
}

func TestUpdate(t *testing.T) {
	h := probe(fakeTree(hybridFiles), nil)
	base := func() *container.HostConfig {
		return &container.HostConfig{
			Resources:     container.Resources{Memory: 64 << 20, MemorySwap: 128 << 20, CPUShares: 10},
			RestartPolicy: container.RestartPolicy{Name: "no"},
		}
	}
	t.Run("shares are brought within the kernel's bounds, as at the creation", func(t *testing.T) {
		for asked, want := range map[int64]uint64{1: 2, 500: 500, math.MaxInt32: 262144} {
			merged, lr, _, err := Update(h, base(), container.UpdateConfig{Resources: container.Resources{CPUShares: asked}})
			if err != nil {
				t.Fatal(err)
			}
			if *lr.CPU.Shares != want || merged.CPUShares != int64(want) {
				t.Errorf("%d: told %d, kept %d, want %d", asked, *lr.CPU.Shares, merged.CPUShares, want)
			}
		}
	})
	t.Run("only what changes is told", func(t *testing.T) {
		hc := base()
		merged, lr, _, err := Update(h, hc, container.UpdateConfig{
			Resources:     container.Resources{Memory: 100 << 20, PidsLimit: ptr(int64(-1)), NanoCPUs: 500_000_000},
			RestartPolicy: container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 2},
		})
		if err != nil {
			t.Fatal(err)
		}
		if *lr.Memory.Limit != 100<<20 || lr.Memory.Swap != nil || *lr.Pids.Limit != -1 || *lr.CPU.Quota != 50000 || lr.CPU.Shares != nil {
			t.Errorf("resources %+v %+v", lr.Memory, lr.CPU)
		}
		if merged.Memory != 100<<20 || merged.MemorySwap != 128<<20 || merged.CPUShares != 10 || merged.RestartPolicy.MaximumRetryCount != 2 {
			t.Errorf("merged %+v", merged.Resources)
		}
		if hc.Memory != 64<<20 {
			t.Error("the present configuration was changed")
		}
	})
	t.Run("policy alone needs no runtime", func(t *testing.T) {
		_, lr, _, err := Update(h, base(), container.UpdateConfig{RestartPolicy: container.RestartPolicy{Name: "always"}})
		if err != nil || lr != nil {
			t.Errorf("%+v, %v", lr, err)
		}
	})
	t.Run("unlimited swap is told", func(t *testing.T) {
		_, lr, _, err := Update(h, base(), container.UpdateConfig{Resources: container.Resources{MemorySwap: -1}})
		if err != nil || *lr.Memory.Swap != -1 {
			t.Errorf("%+v, %v", lr, err)
		}
	})
	t.Run("a device that loses its limit gets zero", func(t *testing.T) {
		have := container.Resources{BlkioDeviceReadBps: []*blkiodev.ThrottleDevice{{Path: "/dev/vda", Rate: 5}, {Path: "/dev/vdb", Rate: 6}}}
		want := withDropped(have, container.Resources{BlkioDeviceReadBps: []*blkiodev.ThrottleDevice{{Path: "/dev/vdb", Rate: 7}}})
		b, err := blockIO(want, fakeSystem())
		if err != nil {
			t.Fatal(err)
		}
		got := b.ThrottleReadBpsDevice
		if len(got) != 2 || got[0].Minor != 16 || got[0].Rate != 7 || got[1].Minor != 0 || got[1].Rate != 0 {
			t.Errorf("%+v", got)
		}
	})
	for _, tc := range []struct {
		name     string
		change   func(*container.HostConfig, *container.UpdateConfig)
		want     string
		conflict bool
	}{
		{"memory above swap", func(_ *container.HostConfig, u *container.UpdateConfig) { u.Memory = 200 << 20 }, "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time", true},
		{"swap below memory", func(_ *container.HostConfig, u *container.UpdateConfig) { u.MemorySwap = 32 << 20 }, "Minimum memoryswap limit should be larger", false},
		{"cpus with quota", func(hc *container.HostConfig, u *container.UpdateConfig) { hc.CPUQuota = 5000; u.NanoCPUs = 1e9 }, "Nano CPUs cannot be updated as CPU Quota has already been set", true},
		{"cpus with period", func(hc *container.HostConfig, u *container.UpdateConfig) { hc.CPUPeriod = 5000; u.NanoCPUs = 1e9 }, "Nano CPUs cannot be updated as CPU Period has already been set", true},
		{"quota with cpus", func(hc *container.HostConfig, u *container.UpdateConfig) { hc.NanoCPUs = 1e9; u.CPUQuota = 5000 }, "CPU Quota cannot be updated as NanoCPUs has already been set", true},
		{"period with cpus", func(hc *container.HostConfig, u *container.UpdateConfig) { hc.NanoCPUs = 1e9; u.CPUPeriod = 5000 }, "CPU Period cannot be updated as NanoCPUs has already been set", true},
		{"policy of auto-remove", func(hc *container.HostConfig, u *container.UpdateConfig) {
			hc.AutoRemove = true
			u.RestartPolicy.Name = "always"
		}, "Restart policy cannot be updated because AutoRemove is enabled for the container", false},
		{"ulimits", func(_ *container.HostConfig, u *container.UpdateConfig) { u.Ulimits = []*units.Ulimit{{}} }, "can't be changed", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hc, u := base(), container.UpdateConfig{}
			tc.change(hc, &u)
			_, _, _, err := Update(h, hc, u)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("err = %v, want %q", err, tc.want)
			}
			if tc.conflict != errdefs.IsConflict(err) || tc.conflict == errdefs.IsInvalidArgument(err) {
				t.Errorf("kind of %v", err)
			}
		})
	}
}

func TestTmpfsOptions(t *testing.T) {
	for _, tc := range []struct {
		o    *mount.TmpfsOptions
		ro   bool
		want string
	}{
		{nil, true, "ro"},
		{&mount.TmpfsOptions{SizeBytes: 1 << 30}, false, "size=1g"},
		{&mount.TmpfsOptions{SizeBytes: 1500, Mode: 0o700}, false, "mode=700,size=1500"},
		{&mount.TmpfsOptions{SizeBytes: 4096, Options: [][]string{{"noexec"}, {"uid", "1"}}}, false, "size=4k,noexec,uid=1"},
	} {
		got, err := TmpfsOptions(tc.o, tc.ro)
		if err != nil || got != tc.want {
			t.Errorf("%+v: %q, %v, want %q", tc.o, got, err, tc.want)
		}
	}
}

func TestSecurityOptionsThatComeLaterWin(t *testing.T) {
	s, err := ParseSecurityOpts([]string{"no-new-privileges", "no-new-privileges=false", "label=user:a", "label:type:b", "seccomp:x", "seccomp=y"})
	if err != nil || *s.NoNewPrivileges || s.Seccomp != "y" || !slices.Equal(s.Labels, []string{"user:a", "type:b"}) {
		t.Errorf("%+v, %v", s, err)
	}
}
