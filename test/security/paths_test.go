// SPDX-License-Identifier: Apache-2.0

package security

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	moby "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

// peerRunc is the name of a current runc, in addition to the host's own, which
// may be of any age.
const peerRunc = "runc-peer"

// withRuntimes starts a daemon with the image and both runtimes, and returns
// their names: the host's, and the current one.
func withRuntimes(t *testing.T) (*kit.Daemon, []string) {
	t.Helper()
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(home, ".cache/holdfast/peer/runc")
	if err := unix.Access(path, unix.X_OK); err != nil {
		t.Fatalf("no current runc at %s: run make peer (%v)", path, err)
	}
	d := kit.Start(t, kit.Options{LiveRestore: true, Config: map[string]any{"runtimes": map[string]any{peerRunc: map[string]any{"path": path}}}})
	d.Load(image, kit.Busybox(t, nil))
	return d, []string{"runc", peerRunc}
}

// hostDir is a directory of the host that no container may change or read. Its
// path is the same on the host and, if a container has such a directory, in the
// container.
type hostDir struct {
	t    *testing.T
	path string
	was  string
}

// secret is the content of the files in it.
const secret = "of the host"

func hostFolder(t *testing.T, d *kit.Daemon) *hostDir {
	t.Helper()
	f := &hostDir{t: t, path: filepath.Join(d.Root, "host")}
	for _, name := range []string{"ptmx", "hosts", "hostname", "resolv.conf", "null", "passwd", "in/secret", "secret"} {
		file := filepath.Join(f.path, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(secret), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f.was = f.state()
	return f
}

// state describes the directory: names, types, modes, owners, sizes, links, and
// mounts.
func (f *hostDir) state() string {
	f.t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(f.path, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st); err != nil {
			return err
		}
		link, _ := os.Readlink(path)
		fmt.Fprintf(&b, "%s %o %d:%d %d %s %v\n", path, st.Mode, st.Uid, st.Gid, st.Size, link, st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0)
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return b.String()
}

// untouched fails the test if the directory has changed.
func (f *hostDir) untouched(when string) {
	f.t.Helper()
	if now := f.state(); now != f.was {
		f.t.Errorf("%s: a folder of the host was changed from\n%sto\n%s", when, f.was, now)
		f.was = now
	}
}

// swapper runs a container that exchanges two names in /v as fast as the kernel
// can. volume is the source of /v, and prepare creates the names.
func swapper(t *testing.T, d *kit.Daemon, volume, prepare, a, b string) {
	t.Helper()
	name := "swap-" + filepath.Base(t.Name())
	d.Docker("run", "-d", "--name", name, "-v", self(t)+":/swap:ro", "-v", volume+":/v", "-e", "SECURITY_ROLE=swap", image,
		"sh", "-ec", "cd /v; "+prepare+"; exec /swap "+a+" "+b)
	logs := d.DockerCommand(context.Background(), "logs", "-f", name)
	out, err := logs.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := logs.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = logs.Process.Kill()
		_ = logs.Wait()
	}()
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
}

// races fails the test if a container that should exchange names has ended.
func races(t *testing.T, d *kit.Daemon, name string) {
	t.Helper()
	if d.Docker("inspect", "-f", "{{.State.Running}}", name) != "true" {
		t.Errorf("%s does not run, so there was no race: %+v", name, d.TryDocker("logs", name))
	}
}

// climb returns a relative path that leads from any depth to the root, and from
// there to path.
func climb(path string) string { return strings.Repeat("../", 40) + strings.TrimPrefix(path, "/") }

func TestSubpathNeverLeadsOutOfItsVolume(t *testing.T) {
	t.Parallel()
	d := live(t)
	host := hostFolder(t, d)
	d.Docker("volume", "create", "vol")
	swapper(t, d, "vol", "mkdir -p x/in; echo mine >x/secret; echo mine >x/in/secret; ln -s "+host.path+" y", "x", "y")
	mounted, refused := 0, 0
	for i := range 50 {
		sub := []string{"x", "x/in"}[i%2]
		box, err := startBox(t, d, &moby.HostConfig{NetworkMode: "none", Mounts: []mount.Mount{
			{Type: mount.TypeVolume, Source: "vol", Target: "/s", VolumeOptions: &mount.VolumeOptions{Subpath: sub}},
		}})
		switch {
		case err == nil:
			mounted++
			if got := box.read("/s/secret"); got != "mine\n" {
				t.Fatalf("round %d: the container has %q", i, got)
			}
		case strings.Contains(err.Error(), "leads out of the volume"), strings.Contains(err.Error(), "no such file"), strings.Contains(err.Error(), "not a directory"):
			refused++
			// The files of a stopped container are resolved in the same way.
			if i%8 == 0 && box.id != "" && strings.Contains(d.TryDocker("cp", box.id+":/s/secret", "-").Stdout, secret) {
				t.Fatalf("round %d: cp read a file of the host", i)
			}
		default:
			t.Fatalf("round %d: %v", i, err)
		}
		box.remove()
	}
	t.Logf("%d mounted, %d refused", mounted, refused)
	races(t, d, "swap-"+t.Name())
	if mounted == 0 || refused == 0 {
		t.Errorf("%d were mounted and %d refused: the race did not take place", mounted, refused)
	}
	host.untouched("by subpaths")
}

func TestSubpathIsWhatItWasWhenTheContainerStarted(t *testing.T) {
	t.Parallel()
	d := live(t)
	host := hostFolder(t, d)
	d.Docker("volume", "create", "vol")
	d.Docker("run", "--rm", "-v", "vol:/v", image, "sh", "-ec", "mkdir -p /v/a/b; echo mine >/v/a/b/secret; ln -s a /v/link; ln -s /a /v/absolute; ln -s "+climb(host.path)+" /v/out; echo f >/v/file")
	sub := func(sub, to string) []string {
		return []string{"--mount", "type=volume,source=vol,target=" + to + ",volume-subpath=" + sub}
	}
	for bad, says := range map[string]string{"out": "leads out of the volume", "absolute": "leads out of the volume", "link/../../x": "subpath must be a relative path", "none": "no such file", "file/x": "not a directory"} {
		args := append(append([]string{"run", "--rm"}, sub(bad, "/s")...), image, "true")
		if r := d.TryDocker(args...); r.Code == 0 || !strings.Contains(r.Stderr, says) {
			t.Errorf("%s: %+v, want %q", bad, r, says)
		}
	}
	// The container is restarted by its policy, by its own shim and by another
	// one, and under another daemon. It keeps the mounted folder, whatever the
	// name refers to by then.
	args := append([]string{"run", "-d", "--name", "box", "--restart", "always"}, sub("link/b", "/s")...)
	args = append(args, sub("file", "/f")...)
	d.Docker(append(args, image, "sh", "-c", "cat /s/secret /f; sleep 1000")...)
	d.Docker("run", "--rm", "-v", "vol:/v", image, "sh", "-ec", "mv /v/a /v/gone; ln -s "+climb(host.path)+" /v/a")
	runs := 1
	again := func(how string) {
		t.Helper()
		runs++
		kit.Eventually(t, how, func() bool { return strings.Count(d.Docker("logs", "box")+"\n", "mine\nf\n") == runs })
		if strings.Contains(d.Docker("logs", "box"), secret) {
			t.Errorf("%s: the container has a folder of the host", how)
		}
	}
	kit.Eventually(t, "the first run", func() bool { return d.Docker("logs", "box") == "mine\nf" })
	kill := func(pid int) {
		t.Helper()
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	kill(pidOf(t, d, "box"))
	again("restarted by its shim")
	pid := pidOf(t, d, "box")
	d.Kill9()
	kill(pid)
	d.Start()
	again("restarted while no daemon lived")
	kill(d.ShimState(d.Docker("inspect", "-f", "{{.Id}}", "box")).ShimPid)
	kit.Eventually(t, "another shim", func() bool { return d.TryDocker("exec", "box", "true").Code == 0 })
	kill(pidOf(t, d, "box"))
	again("restarted by the next shim")
	// A start that the user requests looks the name up again.
	d.Docker("stop", "-t", "0", "box")
	if left := subpaths(t, d); len(left) > 0 {
		t.Errorf("still mounted after the stop: %v", left)
	}
	if r := d.TryDocker("start", "box"); r.Code == 0 || !strings.Contains(r.Stderr, "leads out of the volume") {
		t.Errorf("started again: %+v", r)
	}
	if left := subpaths(t, d); len(left) > 0 {
		t.Errorf("still mounted after the start that failed: %v", left)
	}
	host.untouched("by subpaths")
}

func TestWhatIsMountedOnTheHostBelowASubpathOutlivesTheContainer(t *testing.T) {
	t.Parallel()
	d := live(t)
	at := d.DataRoot + "/volumes/vol/_data"
	d.Docker("volume", "create", "vol")
	if err := os.MkdirAll(at+"/a/mnt", 0o755); err != nil {
		t.Fatal(err)
	}
	// As under systemd, the volume is on a mount with shared propagation.
	for _, flags := range []uintptr{unix.MS_BIND, unix.MS_SHARED} {
		if err := unix.Mount(at, at, "", flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	d.Docker("run", "-d", "--name", "box", "--mount", "type=volume,source=vol,target=/s,volume-subpath=a", image, "sleep", "1000")
	if err := unix.Mount("tmpfs", at+"/a/mnt", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	d.Docker("rm", "-f", "box")
	if err := unix.Unmount(at+"/a/mnt", 0); err != nil {
		t.Errorf("a mount of the host was removed together with the container: %v", err)
	}
}

func TestImageWithLinksInThePlaceOfSystemFoldersChangesNothingOnTheHost(t *testing.T) {
	t.Parallel()
	d, runtimes := withRuntimes(t)
	host := hostFolder(t, d)
	link := func(to string, places ...string) []kit.File {
		var files []kit.File
		for _, place := range places {
			files = append(files, kit.File{Name: place, Link: to})
		}
		return files
	}
	for name, files := range map[string][]kit.File{
		"absolute":   link(host.path, "dev", "proc", "sys", "etc"),
		"up":         link(climb(host.path), "dev", "proc", "sys", "etc"),
		"files":      append(link(host.path+"/hosts", "etc/hosts", "etc/resolv.conf"), link(climb(host.path+"/hostname"), "etc/hostname")...),
		"no folders": {{Name: "dev", Body: []byte("x")}, {Name: "proc", Body: []byte("x")}, {Name: "sys", Link: "etc"}, {Name: "etc", Link: "etc"}},
	} {
		d.Load(name[:2], kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t, files...)))
		for _, runtime := range runtimes {
			d.Docker("run", "--name", "box", "--runtime", runtime, name[:2], "sh", "-ec",
				"for p in dev proc sys etc etc/hosts etc/resolv.conf etc/hostname; do test ! -L /$p; done; test -c /dev/null; test -e /dev/fd/0; test -d /proc/1; test -d /sys/fs; grep -q localhost /etc/hosts; test -s /etc/resolv.conf; test -s /etc/hostname; ! test -e "+host.path)
			host.untouched(name + " under " + runtime)
			// Files that the engine creates are not changes of the container.
			if changed := d.Docker("diff", "box"); changed != "" {
				t.Errorf("%s: changed: %q", name, changed)
			}
			d.Docker("start", "-a", "box")
			host.untouched(name + " at the second start under " + runtime)
			d.Docker("rm", "box")
		}
	}
}

func TestContainerThatReplacesItsSystemFoldersIsNotLedOutAtTheNextRun(t *testing.T) {
	t.Parallel()
	d, runtimes := withRuntimes(t)
	host := hostFolder(t, d)
	for _, runtime := range runtimes {
		// A container that can unmount can change the files below the mounts.
		d.Docker("run", "-d", "--name", "box", "--runtime", runtime, "--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined",
			"--restart", "on-failure:2", image, "/bin/busybox", "sh", "-c", `
				busybox umount /etc/hosts /etc/resolv.conf /etc/hostname
				for p in dev sys proc etc; do
					busybox umount -l /$p 2>/dev/null; busybox rm -rf /$p; busybox ln -s `+host.path+` /$p && [ -L /$p ] && echo replaced $p
				done; exit 1`)
		kit.Eventually(t, "the shim has given up", func() bool {
			return d.Docker("inspect", "-f", "{{.State.Status}} {{.RestartCount}}", "box") == "exited 2"
		})
		host.untouched("by a policy's restart under " + runtime)
		out := d.Docker("logs", "box")
		for _, place := range []string{"dev", "sys", "proc"} {
			if n := strings.Count(out, "replaced "+place); n < 2 {
				t.Errorf("%s: /%s was replaced in %d of 3 runs\n%s", runtime, place, n, out)
			}
		}
		d.TryDocker("start", "-a", "box")
		host.untouched("by the next start under " + runtime)
		d.Docker("rm", "-f", "box")
	}
}

func TestContainerKeepsWhatItMadeOfItsEtc(t *testing.T) {
	t.Parallel()
	d := live(t)
	d.Docker("run", "--name", "box", "--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined", image,
		"sh", "-ec", "[ -L /etc ] || { umount /etc/hosts /etc/resolv.conf /etc/hostname; mv /etc /e; ln -s e /etc; echo kept >/e/kept; }; cat /etc/kept")
	if out := d.Docker("start", "-a", "box"); out != "kept" {
		t.Errorf("after the second start: %q", out)
	}
}

// box is a container that runs sleep. It is created over the API, because
// hundreds are needed.
type box struct {
	t  *testing.T
	d  *kit.Daemon
	id string
}

// startBox creates and starts a container. The container exists also if the
// start fails.
func startBox(t *testing.T, d *kit.Daemon, h *moby.HostConfig) (box, error) {
	t.Helper()
	return startImage(t, d, image, h)
}

func startImage(t *testing.T, d *kit.Daemon, image string, h *moby.HostConfig) (box, error) {
	t.Helper()
	c := d.Client()
	created, err := c.ContainerCreate(context.Background(), client.ContainerCreateOptions{
		Config: &moby.Config{Image: image, Cmd: []string{"sleep", "1000"}}, HostConfig: h,
	})
	if err != nil {
		return box{t, d, ""}, err // create itself may report the error
	}
	_, err = c.ContainerStart(context.Background(), created.ID, client.ContainerStartOptions{})
	return box{t, d, created.ID}, err
}

func (b box) pid() int {
	b.t.Helper()
	r, err := b.d.Client().ContainerInspect(context.Background(), b.id, client.ContainerInspectOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	return r.Container.State.Pid
}

// read reads a file as the container sees it. The path must not contain links,
// because they would be followed on the host.
func (b box) read(path string) string {
	b.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/root%s", b.pid(), path))
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}

func (b box) remove() {
	b.t.Helper()
	if b.id == "" {
		return
	}
	if _, err := b.d.Client().ContainerRemove(context.Background(), b.id, client.ContainerRemoveOptions{Force: true}); err != nil {
		b.t.Fatal(err)
	}
}

// subpaths returns the parts of volumes that are mounted for containers.
func subpaths(t *testing.T, d *kit.Daemon) []string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], d.ExecRoot+"/") && strings.Contains(f[4], "/subpaths/") {
			out = append(out, f[4])
		}
	}
	return out
}

func pidOf(t *testing.T, d *kit.Daemon, name string) int {
	t.Helper()
	var pid int
	if _, err := fmt.Sscan(d.Docker("inspect", "-f", "{{.State.Pid}}", name), &pid); err != nil || pid == 0 {
		t.Fatalf("pid of %s: %d, %v", name, pid, err)
	}
	return pid
}
