// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

// engine is a daemon with Docker's API.
type engine interface {
	name() string
	socket() string
	// start starts the daemon and returns when its process runs.
	start()
	// stop ends the daemon with SIGTERM and waits for it. Live restore is on.
	stop()
	// kill kills the daemon with SIGKILL and waits for it.
	kill()
	// again restarts the daemon if it has exited by itself.
	again()
	// upgrade lets a new daemon take over. It may be called only if upgrades
	// returns true.
	upgrade()
	upgrades() bool
	// programs returns the names of the engine's executables.
	programs() []string
	version() string
}

const (
	imageRef  = "bench/busybox:1"
	patience  = 60 * time.Second
	lineBytes = 100
	// blockFile is a whole number of lines and of blocks of 64 KiB.
	blockFile = 400 * (64 << 10)
)

// image contains the host's static busybox, a page, and a file of numbered
// lines of 100 bytes.
func image(t testing.TB) v1.Image {
	var lines strings.Builder
	for i := range blockFile / lineBytes {
		n := strconv.Itoa(i)
		lines.WriteString(strings.Repeat("0", 9-len(n)) + n + " " + strings.Repeat("x", lineBytes-11) + "\n")
	}
	return kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t, kit.File{Name: "lines", Body: []byte(lines.String())}))
}

func archive(t testing.TB) io.Reader { return kit.Archive(t, imageRef, image(t)) }

// holdfast is the engine of this repository.
type holdfast struct {
	*kit.Daemon
	t  testing.TB
	ns kit.Netns // the namespace in which it runs
}

func newHoldfast(t testing.TB) engine {
	kit.Binary(t, "holdfast-build")
	return &holdfast{kit.New(t, kit.Options{LiveRestore: true, Prefix: 20, Disk: true}), t, kit.Netns{}}
}

// bareExec calls the runtime directly to do what the engine does for an exec.
func (h *holdfast) bareExec(id string, command ...string) {
	h.t.Helper()
	args := append([]string{"--root", h.ExecRoot + "/runtime/runc", "exec", id}, command...)
	if out, err := exec.Command("runc", args...).CombinedOutput(); err != nil {
		h.t.Errorf("runc exec: %v: %s", err, out)
	}
}

// bareRun calls the runtime directly to start a container with the configuration and the
// root file system of a running one. It returns how long the call took.
func (h *holdfast) bareRun(id string) time.Duration {
	h.t.Helper()
	text, err := os.ReadFile(filepath.Join(h.ExecRoot, "shim", id, "bundle", "config.json"))
	if err != nil {
		h.t.Fatal(err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		h.t.Fatal(err)
	}
	name := filepath.Base(h.ExecRoot) + "-bare"
	spec.Linux.CgroupsPath = "/" + name
	bundle := h.t.TempDir()
	if text, err = json.Marshal(spec); err == nil {
		err = os.WriteFile(filepath.Join(bundle, "config.json"), text, 0o600)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	runc := func(args ...string) {
		h.t.Helper()
		// Without an output: the container would have it open.
		if err := exec.Command("runc", append([]string{"--root", bundle}, args...)...).Run(); err != nil {
			h.t.Errorf("runc %s: %v", args[0], err)
		}
	}
	begin := time.Now()
	runc("run", "--detach", "--pid-file", filepath.Join(bundle, "pid"), "--bundle", bundle, name)
	took := time.Since(begin)
	runc("delete", "--force", name)
	return took
}

func (*holdfast) name() string       { return "Holdfast" }
func (h *holdfast) socket() string   { return h.Socket }
func (*holdfast) programs() []string { return []string{"holdfastd", "holdfast-shim"} }
func (h *holdfast) stop()            { h.Term() }
func (h *holdfast) kill()            { h.Kill9() }
func (h *holdfast) upgrade()         { h.Takeover() }
func (*holdfast) upgrades() bool     { return true }
func (*holdfast) again()             {}
func (h *holdfast) version() string  { return daemonVersion(h.t, h.socket()) }

func (h *holdfast) start() {
	h.t.Helper()
	if err := h.ns.Run(h.TryStart); err != nil {
		h.t.Fatal(err)
	}
}

// dockerd is the first dockerd in PATH, with roots and a bridge of its own.
type dockerd struct {
	t      testing.TB
	root   string
	flags  []string  // in addition to the usual ones
	ns     kit.Netns // the namespace in which it runs
	cmd    *exec.Cmd
	exited chan struct{}
}

// newDockerd returns nil if no dockerd is installed.
func newDockerd(t testing.TB, ns kit.Netns, flags ...string) engine {
	if _, err := exec.LookPath("dockerd"); err != nil {
		return nil
	}
	d := &dockerd{t: t, root: tempDir(t), ns: ns, flags: flags}
	t.Cleanup(d.cleanup)
	return d
}

func (*dockerd) name() string     { return "dockerd" }
func (d *dockerd) socket() string { return d.root + "/docker.sock" }
func (*dockerd) programs() []string {
	return []string{"dockerd", "containerd", "containerd-shim-runc-v2", "docker-proxy"}
}
func (d *dockerd) version() string { return daemonVersion(d.t, d.socket()) }

func (d *dockerd) cgroup() string { return "/" + filepath.Base(d.root) }

func (d *dockerd) start() {
	d.t.Helper()
	config := d.root + "/daemon.json"
	if err := os.WriteFile(config, []byte("{}"), 0o600); err != nil {
		d.t.Fatal(err)
	}
	log, err := os.OpenFile(d.root+"/daemon.log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close()
	d.cmd = exec.Command("dockerd", append([]string{"--data-root", d.root + "/data", "--exec-root", d.root + "/run",
		"--pidfile", d.root + "/pid", "--config-file", config, "-H", "unix://" + d.socket(), "--group", "",
		"--bip", "10.61.0.1/16", "--live-restore", "--cgroup-parent", d.cgroup()}, d.flags...)...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := d.ns.Run(d.cmd.Start); err != nil {
		d.t.Fatal(err)
	}
	exited := make(chan struct{})
	d.exited = exited
	go func(cmd *exec.Cmd) { cmd.Wait(); close(exited) }(d.cmd)
}

// again restarts a dockerd that exited during its own start, as a service
// manager would. dockerd waits for its containerd for 15 seconds at most.
func (d *dockerd) again() {
	d.t.Helper()
	select {
	case <-d.exited:
		d.start()
	default:
	}
}

func (d *dockerd) stop() { d.end(unix.SIGTERM) }

// kill also kills dockerd's containerd, which asks the kernel for that with a
// parent-death signal. The containerd must be reaped before dockerd starts
// again, because dockerd would take a zombie for a running process. Not every
// PID 1 reaps it.
func (d *dockerd) kill() {
	d.t.Helper()
	text, err := os.ReadFile(d.root + "/run/containerd/containerd.pid")
	if errors.Is(err, os.ErrNotExist) { // dockerd uses a containerd that it did not start
		d.end(unix.SIGKILL)
		return
	}
	if err != nil {
		d.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		d.t.Fatal(err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		d.t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	d.end(unix.SIGKILL)
	reaped := make(chan struct{})
	go func() {
		defer close(reaped)
		for {
			if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
				return
			}
		}
	}()
	select {
	case <-reaped:
	case <-time.After(10 * time.Second): // the containerd has outlived dockerd, and the next dockerd uses it
	}
}

func (*dockerd) upgrades() bool { return false }
func (d *dockerd) upgrade()     { d.t.Error("dockerd can't hand over to another one") }

func (d *dockerd) end(signal unix.Signal) {
	d.t.Helper()
	d.cmd.Process.Signal(signal)
	select {
	case <-d.exited:
	case <-time.After(patience):
		d.t.Fatal("dockerd did not exit")
	}
}

func (d *dockerd) cleanup() {
	if d.cmd != nil {
		select {
		case <-d.exited:
			d.start()
		default:
		}
		if c, err := connect(d.socket()); err == nil && c.waitUp() == nil {
			c.removeAll()
		}
		d.cmd.Process.Signal(unix.SIGTERM)
		select {
		case <-d.exited:
		case <-time.After(patience):
			d.cmd.Process.Kill()
		}
	}
	if d.t.Failed() {
		if b, err := os.ReadFile(d.root + "/daemon.log"); err == nil {
			d.t.Logf("dockerd said:\n%s", b[max(0, len(b)-4000):])
		}
	}
	// No other dockerd runs in this network namespace.
	for _, pid := range processesIn(d.ns, d.programs()) {
		unix.Kill(pid, unix.SIGKILL)
	}
	removeTree(d.t, d.root, d.cgroup())
}

// podman runs whole commands.
type podman struct {
	t    testing.TB
	root string
}

// newPodman is nil where there is no podman.
func newPodman(t testing.TB) *podman {
	if _, err := exec.LookPath("podman"); err != nil {
		return nil
	}
	p := &podman{t, tempDir(t)}
	t.Cleanup(func() {
		p.try("rm", "--all", "--force", "--time", "0")
		removeTree(t, p.root, "/"+filepath.Base(p.root), "/libpod_parent")
	})
	path := p.root + "/image.tar"
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(f, archive(t)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	p.run("load", "--quiet", "--input", path)
	return p
}

func (p *podman) try(args ...string) (string, error) {
	all := append([]string{"--root", p.root + "/data", "--runroot", p.root + "/run", "--tmpdir", p.root + "/tmp",
		"--cgroup-manager", "cgroupfs", "--events-backend", "none", "--network-config-dir", p.root + "/cni",
		"--runtime", "runc"}, args...)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "podman", all...)
	cmd.Dir = "/"
	// Not a pipe: what podman leaves behind holds it open.
	out, err := os.CreateTemp(p.root, "out")
	if err != nil {
		return "", err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	b, _ := os.ReadFile(out.Name())
	if err != nil {
		err = errors.Join(err, errors.New(string(b)))
	}
	return strings.TrimSpace(string(b)), err
}

func (p *podman) run(args ...string) string {
	p.t.Helper()
	out, err := p.try(args...)
	if err != nil {
		p.t.Fatalf("podman %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// bare is the OCI runtime without an engine.
type bare struct {
	t    testing.TB
	root string
	n    int
}

func newBare(t testing.TB) *bare {
	b := &bare{t: t, root: tempDir(t)}
	t.Cleanup(func() { removeTree(t, b.root) })
	if err := os.MkdirAll(b.root+"/bundle/rootfs/bin", 0o755); err != nil {
		t.Fatal(err)
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"proc", "dev", "sys"} {
		if err := os.Mkdir(b.root+"/bundle/rootfs/"+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(b.root+"/bundle/rootfs/bin/true", busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	b.command("spec", "--bundle", b.root+"/bundle")
	config, err := os.ReadFile(b.root + "/bundle/config.json")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(config), `"sh"`, `"/bin/true"`, 1)
	text = strings.Replace(text, `"terminal": true`, `"terminal": false`, 1)
	if err := os.WriteFile(b.root+"/bundle/config.json", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bare) command(args ...string) {
	b.t.Helper()
	cmd := exec.Command("runc", append([]string{"--root", b.root + "/state"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("runc %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (b *bare) run() {
	b.t.Helper()
	b.n++
	b.command("run", "--bundle", b.root+"/bundle", filepath.Base(b.root)+"-"+strconv.Itoa(b.n))
}

func tempDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/tmp", "hfbench-")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// removeTree unmounts all file systems below a folder, and removes the folder
// and the cgroups of that name.
func removeTree(t testing.TB, root string, cgroups ...string) {
	for range 10 {
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Error(err)
			return
		}
		found := false
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], root+"/") {
				found = true
				unix.Unmount(f[4], unix.MNT_DETACH)
			}
		}
		if !found {
			break
		}
	}
	if err := os.RemoveAll(root); err != nil {
		t.Error(err)
	}
	for _, cg := range cgroups {
		for _, glob := range []string{"/sys/fs/cgroup" + cg, "/sys/fs/cgroup/*" + cg} {
			dirs, _ := filepath.Glob(glob)
			for _, dir := range dirs {
				removeCgroup(dir)
			}
		}
	}
}

func removeCgroup(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			removeCgroup(filepath.Join(dir, e.Name()))
		}
	}
	unix.Rmdir(dir)
}

// processes returns the pids in this network namespace whose executable is one
// of the programs.
func processes(programs []string) []int { return processesIn(kit.Netns{}, programs) }

// processesIn returns the pids in a network namespace whose executable is one
// of the programs.
func processesIn(n kit.Netns, programs []string) []int {
	var own string
	err := n.Run(func() (err error) {
		own, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil
	}
	entries, _ := os.ReadDir("/proc")
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		ns, err := os.Readlink("/proc/" + e.Name() + "/ns/net")
		if err != nil || ns != own {
			continue
		}
		exe, err := os.Readlink("/proc/" + e.Name() + "/exe")
		if err != nil {
			continue
		}
		for _, p := range programs {
			if filepath.Base(exe) == p {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// pss is the sum of the programs' proportional set sizes, in kB.
func pss(t testing.TB, programs []string) int {
	t.Helper()
	return pssOf(t, processes(programs))
}

// pssOf returns the proportional memory of processes in kB.
func pssOf(t testing.TB, pids []int) int {
	t.Helper()
	sum := 0
	for _, pid := range pids {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
		if err != nil {
			continue // the process has exited
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
				n, _ := strconv.Atoi(f[1])
				sum += n
			}
		}
	}
	if sum == 0 {
		t.Fatal("no process of the engine was found")
	}
	return sum
}

// each calls fn concurrently with 0 to n-1.
func each(n int, fn func(int)) {
	var g sync.WaitGroup
	for i := range n {
		g.Go(func() { fn(i) })
	}
	g.Wait()
}
