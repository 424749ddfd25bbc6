// SPDX-License-Identifier: Apache-2.0

package security

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	moby "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

// corePattern is a file of /proc. A container that can write it can run a
// program as root of the host.
const corePattern = "/proc/sys/kernel/core_pattern"

// pattern returns the host's core pattern, which no test may change.
func pattern(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(corePattern)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// unmasked reports a file of /proc that a container should not see: a file that
// should be masked and is not the null device, or a directory that should be
// read-only and is not. Files that this kernel lacks are ignored.
func (b box) unmasked() string {
	b.t.Helper()
	root := fmt.Sprintf("/proc/%d/root", b.pid())
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/latency_stats", "/proc/timer_stats", "/proc/sched_debug"} {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			continue
		}
		if err := unix.Lstat(root+path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
			return fmt.Sprintf("%s is not hidden: mode %o, device %d, %v", path, st.Mode, st.Rdev, err)
		}
	}
	for _, path := range []string{"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"} {
		if _, err := os.Lstat(path); err != nil {
			continue
		}
		var st unix.Statfs_t
		if err := unix.Statfs(root+path, &st); err != nil || st.Flags&unix.ST_RDONLY == 0 || st.Type != unix.PROC_SUPER_MAGIC {
			return fmt.Sprintf("%s is not read-only, or not of /proc: flags %x, type %x, %v", path, st.Flags, st.Type, err)
		}
	}
	for _, path := range []string{"/proc", "/proc/1", "/proc/1/attr"} {
		var st unix.Statfs_t
		if err := unix.Statfs(root+path, &st); err != nil || st.Type != unix.PROC_SUPER_MAGIC {
			return fmt.Sprintf("%s is not of /proc: type %x, %v", path, st.Type, err)
		}
	}
	return ""
}

func getJSON(t *testing.T, d *kit.Daemon, path string, into any) {
	t.Helper()
	res, err := d.HTTP().Get("http://d" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(into); err != nil || res.StatusCode != 200 {
		t.Fatalf("%s: %d, %v", path, res.StatusCode, err)
	}
}

// CVE-2015-3627: Docker opened the descriptor for a container's first process
// before it changed the root, so a link in an image could lead it to a file of
// the host. Here the first process has only its three standard streams.
func TestCVE_2015_3627_FirstProcessHasItsStreamsAlone(t *testing.T) {
	t.Parallel()
	d, runtimes := withRuntimes(t)
	host := hostFolder(t, d)
	d.Load("evil", kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t,
		kit.File{Name: "dev/console", Link: host.path + "/secret"}, kit.File{Name: "dev/null", Link: host.path + "/null"}, kit.File{Name: "dev/ptmx", Link: host.path + "/ptmx"},
		kit.File{Name: "dev/pts", Link: host.path}, kit.File{Name: "dev/fd", Link: host.path})))
	for _, runtime := range runtimes {
		for _, tty := range []string{"-i", "-t"} {
			d.Docker("run", "-d", tty, "--name", "box", "--runtime", runtime, "evil", "sleep", "1000")
			entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pidOf(t, d, "box")))
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) != 3 {
				t.Errorf("%s %s: %d descriptors", runtime, tty, len(entries))
			}
			d.Docker("rm", "-f", "box")
			host.untouched(runtime + " " + tty)
		}
	}
}

// CVE-2015-3630: Docker left files of /proc accessible that reveal or affect
// the host: asound, timer_stats, latency_stats, fs. Here these are masked or
// read-only.
func TestCVE_2015_3630_WhatOfProcIsTheHostsIsHiddenOrReadOnly(t *testing.T) {
	t.Parallel()
	d, runtimes := withRuntimes(t)
	for _, runtime := range runtimes {
		b, err := startBox(t, d, &moby.HostConfig{Runtime: runtime, NetworkMode: "none"})
		if err != nil {
			t.Fatal(err)
		}
		if unmasked := b.unmasked(); unmasked != "" {
			t.Errorf("%s: %s", runtime, unmasked)
		}
		if out := d.Docker("exec", b.id, "sh", "-c", "ls /proc/asound /proc/acpi /proc/scsi 2>/dev/null | grep -v :; for f in $(find /proc/fs /proc/bus /proc/irq /proc/sys/kernel -maxdepth 2 -type f 2>/dev/null); do test -w $f && (: >>$f) 2>/dev/null && echo $f; done; true"); strings.TrimSpace(out) != "" {
			t.Errorf("%s: shown or writable: %s", runtime, out)
		}
		b.remove()
	}
}

// CVE-2015-3631: Docker allowed volumes over files in /proc, by which a
// container could choose its own security profile. Here such a container does
// not start, whatever the notation of the path.
func TestCVE_2015_3631_VolumesDoNotLieOverProc(t *testing.T) {
	t.Parallel()
	d, runtimes := withRuntimes(t)
	links := kit.Layer(t, kit.File{Name: "p", Link: "/proc"}, kit.File{Name: "r", Link: "x/../proc"}, kit.File{Name: "x/"})
	d.Load("links", kit.Image(t, kit.Busybox(t, nil), nil, links))
	for _, path := range []string{"/proc/self/attr", "/p", "/r/self/attr"} {
		ref := "evil" + strings.ReplaceAll(path, "/", "-")
		d.Load(ref, kit.Image(t, kit.Busybox(t, nil), func(c *v1.Config) { c.Volumes = map[string]struct{}{path: {}} }, links))
		for _, runtime := range runtimes {
			for _, args := range [][]string{{ref}, {"-v", "vol:" + path, "links"}, {"--tmpfs", path, "links"}} {
				r := d.TryDocker(append(append([]string{"run", "--rm", "--runtime", runtime}, args...), "sh", "-c", "grep ' /proc' /proc/self/mountinfo; cat /proc/self/attr/current")...)
				if r.Code == 0 {
					t.Errorf("%s %v: it started:\n%s", runtime, args, r.Stdout)
				}
			}
		}
	}
}

// CVE-2019-16884: runc compared the destination of a mount before normalizing
// it, so an image with a VOLUME of /proc disabled its AppArmor profile. Here
// the volume is refused in every notation, and /proc is the kernel's in each
// container that runs.
func TestCVE_2019_16884_ImagesVolumeOfProcIsRefused(t *testing.T) {
	t.Parallel()
	d, runtimes := withRuntimes(t)
	fake := kit.Layer(t, kit.File{Name: "proc/self/", Mode: 0o755}, kit.File{Name: "proc/self/attr/"}, kit.File{Name: "proc/self/attr/exec"}, kit.File{Name: "proc/self/status", Body: []byte("x")})
	d.Load("evil", kit.Image(t, kit.Busybox(t, nil), func(c *v1.Config) { c.Volumes = map[string]struct{}{"/proc": {}} }, fake))
	for _, runtime := range runtimes {
		if r := d.TryDocker("run", "--rm", "--runtime", runtime, "evil", "true"); r.Code == 0 {
			t.Errorf("%s: it started", runtime)
		}
	}
}

// CVE-2023-27561: a change in runc reintroduced CVE-2019-19921. An image with a
// link in the place of /proc, into a volume that another container swaps, had a
// writable /proc/sys. Here the engine makes /proc a directory of the container
// before the runtime is called.
func TestCVE_2023_27561_ProcIsNoLinkIntoAVolume(t *testing.T) {
	t.Parallel()
	linkedProc(t, "/v/x/proc")
}

// CVE-2023-28642: runc followed a link in the place of /proc, so that with a
// suitable mount the AppArmor and SELinux labels were not applied. Here /proc
// and /sys are directories of the container, whatever the image contains.
func TestCVE_2023_28642_ProcIsNoLinkToAMount(t *testing.T) {
	t.Parallel()
	linkedProc(t, "/v/x")
}

func linkedProc(t *testing.T, to string) {
	d, runtimes := withRuntimes(t)
	d.Docker("volume", "create", "vol")
	swapper(t, d, "vol", "for i in x y; do mkdir -p $i/proc/self/attr $i/self/attr; touch $i/proc/self/attr/exec $i/self/attr/exec; done", "x", "y")
	d.Load("evil", kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t, kit.File{Name: "proc", Link: to}, kit.File{Name: "sys", Link: to})))
	for _, runtime := range runtimes {
		for i := range 4 {
			b, err := startImage(t, d, "evil", &moby.HostConfig{Runtime: runtime, NetworkMode: "none", Binds: []string{"vol:/v"}})
			if err != nil {
				t.Fatalf("%s, round %d: %v", runtime, i, err)
			}
			if unmasked := b.unmasked(); unmasked != "" {
				t.Fatalf("%s, round %d: %s", runtime, i, unmasked)
			}
			b.remove()
		}
	}
	races(t, d, "swap-"+t.Name())
}

// CVE-2026-41579: runc created the links and the terminal multiplexer of /dev
// by names from the host's root. An image with a link in the place of /dev
// could have them created in a directory of the host, and a file ptmx removed
// there. Here /dev is a directory before the runtime is called. Tests in
// paths_test.go cover the other system directories.
func TestCVE_2026_41579_LinkInThePlaceOfDevLeadsNowhere(t *testing.T) {
	t.Parallel()
	d, runtimes := withRuntimes(t)
	host := hostFolder(t, d)
	d.Load("evil", kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t, kit.File{Name: "dev", Link: host.path})))
	for _, runtime := range runtimes {
		d.Docker("run", "--rm", "--runtime", runtime, "evil", "test", "-L", "/dev/ptmx")
		host.untouched("under " + runtime)
	}
}

// CVE-2024-45310: runc resolved a mount's destination and later created its
// missing directories by name. A container that swapped a folder of a shared
// volume could have empty files and directories created anywhere on the host.
// The runtime creates them here, too. The current runtime does so within the
// root, and the daemon warns of older ones.
func TestCVE_2024_45310_NothingIsMadeOnTheHostForAMount(t *testing.T) {
	t.Parallel()
	d, _ := withRuntimes(t)
	host := hostFolder(t, d)
	raceBelowVolume(t, d, peerRunc, "x/new", "mkdir -p x; ln -s "+climb(host.path)+" y", 10)
	host.untouched("by making mount points")
}

// CVE-2025-31133: runc masked files of /proc by bind-mounting the container's
// /dev/null over them without checking it. A link in its place made another
// file of /proc writable. Here a volume at /dev gets the host's null device,
// mounted by descriptor, whatever the volume contains.
func TestCVE_2025_31133_NullDeviceIsTheHosts(t *testing.T) {
	t.Parallel()
	d, runtimes := withRuntimes(t)
	was := pattern(t)
	files := kit.Layer(t, kit.File{Name: "dev/null", Link: corePattern})
	d.Load("evil", kit.Image(t, kit.Busybox(t, nil), func(c *v1.Config) { c.Volumes = map[string]struct{}{"/dev": {}} }, files))
	for _, runtime := range runtimes {
		d.Docker("volume", "create", "empty-"+runtime)
		for what, h := range map[string]struct {
			image string
			*moby.HostConfig
		}{
			"of the image": {"evil", &moby.HostConfig{}},
			"empty":        {image, &moby.HostConfig{Binds: []string{"empty-" + runtime + ":/dev:nocopy"}}},
			"a part": {image, &moby.HostConfig{Mounts: []mount.Mount{
				{Type: mount.TypeVolume, Source: "parts", Target: "/dev", VolumeOptions: &mount.VolumeOptions{Subpath: "d"}},
			}}},
		} {
			d.Docker("run", "--rm", "-v", "parts:/v", image, "sh", "-c", "mkdir -p /v/d; ln -sf "+corePattern+" /v/d/null")
			h.Runtime, h.NetworkMode, h.RestartPolicy = runtime, "none", moby.RestartPolicy{Name: "always"}
			b, err := startImage(t, d, h.image, h.HostConfig)
			if err != nil {
				t.Fatalf("%s, %s: %v", runtime, what, err)
			}
			for run := range 2 {
				if unmasked := b.unmasked(); unmasked != "" {
					t.Errorf("%s, %s, run %d: %s", runtime, what, run, unmasked)
				}
				if run == 0 {
					// The container can't prepare an attack for its next run.
					if r := d.TryDocker("exec", b.id, "/bin/busybox", "sh", "-c", "rm -f /dev/null; ln -s "+corePattern+" /dev/null; mv /dev/null /dev/n"); !strings.Contains(r.Stderr, "busy") {
						t.Errorf("%s, %s: the null device could be replaced: %+v", runtime, what, r)
					}
					pid := b.pid()
					if err := unix.Kill(pid, unix.SIGKILL); err != nil {
						t.Fatal(err)
					}
					kit.Eventually(t, "the container runs again", func() bool { now := b.pid(); return now != 0 && now != pid })
				}
			}
			b.remove()
		}
	}
	if now := pattern(t); now != was {
		t.Errorf("the host's core pattern became %q", now)
	}
}

// CVE-2025-52565: runc bind-mounted the terminal over /dev/console by name
// before it masked /proc. A link in the place of either could bind a file of
// /proc instead. Here, if an image or another container fills /dev, the
// container starts with all files masked, or not at all.
func TestCVE_2025_52565_ConsoleIsTheTerminalOrNothing(t *testing.T) {
	t.Parallel()
	d, runtimes := withRuntimes(t)
	was := pattern(t)
	for i, files := range [][]kit.File{
		{{Name: "dev/console", Link: corePattern}},
		{{Name: "dev/console", Link: corePattern}, {Name: "dev/pts/"}, {Name: "dev/pts/0", Link: corePattern}, {Name: "dev/ptmx", Link: corePattern}},
		{{Name: "dev/pts", Link: "/proc/sys/kernel"}, {Name: "dev/ptmx", Link: "pts/core_pattern"}},
	} {
		for _, volume := range []bool{false, true} {
			ref := fmt.Sprint("evil", i, "-", volume)
			d.Load(ref, kit.Image(t, kit.Busybox(t, nil), func(c *v1.Config) {
				if volume {
					c.Volumes = map[string]struct{}{"/dev": {}}
				}
			}, kit.Layer(t, files...)))
			for _, runtime := range runtimes {
				r := d.TryDocker("run", "-d", "-t", "--name", "box", "--runtime", runtime, ref, "sleep", "1000")
				if r.Code != 0 && !volume {
					t.Errorf("%s, %s: %s", runtime, ref, r.Stderr)
				}
				if r.Code == 0 {
					b := box{t, d, strings.TrimSpace(r.Stdout)}
					if unmasked := b.unmasked(); unmasked != "" {
						t.Errorf("%s, %s: %s", runtime, ref, unmasked)
					}
					var fs unix.Statfs_t
					console := fmt.Sprintf("/proc/%d/root/dev/console", b.pid())
					if st, err := os.Lstat(console); err == nil && st.Mode()&os.ModeSymlink == 0 && unix.Statfs(console, &fs) == nil && fs.Type == unix.PROC_SUPER_MAGIC {
						t.Errorf("%s, %s: the console is a file of /proc", runtime, ref)
					}
				}
				d.Docker("rm", "-f", "box")
			}
		}
	}
	if now := pattern(t); now != was {
		t.Errorf("the host's core pattern became %q", now)
	}
}

// CVE-2025-52881: runc's writes to /proc, of labels and sysctls, could be
// redirected by a container that mounted over parts of /proc in a race with a
// shared volume. Here both runtimes refuse a mount over /proc without a race,
// and the current one has its own view of /proc in a race.
func TestCVE_2025_52881_NothingIsMountedOverProc(t *testing.T) {
	t.Parallel()
	d, runtimes := withRuntimes(t)
	was := pattern(t)
	d.Docker("run", "--rm", "-v", "static:/v", image, "ln", "-s", "/proc", "/v/x")
	for _, runtime := range runtimes {
		r := d.TryDocker("run", "--rm", "--runtime", runtime, "-v", "static:/v", "--tmpfs", "/v/x/self/attr", "--sysctl", "kernel.domainname=|evil", image, "grep", " /proc", "/proc/self/mountinfo")
		if r.Code == 0 {
			t.Errorf("%s: it started: %s", runtime, r.Stdout)
		}
	}
	raceBelowVolume(t, d, peerRunc, "x/self/attr", "mkdir -p x/self/attr; ln -s /proc y", 8)
	if now := pattern(t); now != was {
		t.Errorf("the host's core pattern became %q", now)
	}
}

// A path in a volume that another container can change is resolved again at
// each start.
func TestVolumesFromGivesNoWayOutOfASubpath(t *testing.T) {
	t.Parallel()
	d := live(t)
	host := hostFolder(t, d)
	d.Docker("run", "--rm", "-v", "vol:/v", image, "mkdir", "-p", "/v/a")
	d.Docker("create", "--name", "first", "--mount", "type=volume,source=vol,target=/s,volume-subpath=a", image, "true")
	d.Docker("run", "--rm", "-v", "vol:/v", image, "sh", "-c", "rmdir /v/a; ln -s "+climb(host.path)+" /v/a")
	r := d.TryDocker("run", "--rm", "--volumes-from", "first", image, "sh", "-c", "cat /s/secret; echo >/s/owned")
	if r.Code == 0 || !strings.Contains(r.Stderr, "leads out of the volume") {
		t.Errorf("%+v", r)
	}
	host.untouched("by --volumes-from")
}

// The removal of files that a container left behind never leaves their tree.
func TestRemovalOfATreeStaysInTheTree(t *testing.T) {
	t.Parallel()
	d := live(t)
	host := hostFolder(t, d)
	d.Docker("run", "--name", "box", "-v", "vol:/v", image, "sh", "-ec",
		"for at in / /v/; do mkdir -p ${at}d/d; ln -s "+host.path+" ${at}d/abs; ln -s "+climb(host.path)+" ${at}d/d/rel; mknod ${at}d/null c 1 3; mkfifo ${at}d/fifo; done")
	d.Docker("rm", "box")
	d.Docker("volume", "rm", "vol")
	host.untouched("by removals")
	if left, err := filepath.Glob(d.DataRoot + "/volumes/*vol*"); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
