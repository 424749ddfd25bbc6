// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/network/dump"

	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
)

// patience bounds the kit's waits for things that should take milliseconds.
const patience = 60 * time.Second

// Options are the options of Start.
type Options struct {
	LiveRestore bool
	// Config has further keys of daemon.json.
	Config map[string]any
	// Flags come after the kit's own.
	Flags []string
	// Env are variables as NAME=value, on top of the test's.
	Env []string
	// Binary is another holdfastd, such as one of a release. Empty means that
	// of the tree.
	Binary string
	// Shim is another holdfast-shim. Empty means the one beside the daemon.
	Shim string
	// Wrap may change the daemon's command before each start, for example to
	// start it in another namespace.
	Wrap func(*exec.Cmd)
	// Prefix is the number of bits of the default network's subnet, 24 if it is 0:
	// that has addresses for 253 containers.
	Prefix int
	// Disk leaves the daemon's files on the file system of /tmp, for tests that
	// measure, or that depend on its kind. Otherwise they are on a tmpfs, which halves
	// the time of most tests: a disk is waited for at each fsync.
	Disk bool
	// Netns is the network namespace of the daemon, which is then a host of its own.
	// The check for leaks does not see the links in it.
	Netns Netns
}

// Daemon is a private holdfastd.
type Daemon struct {
	// ID is part of all names of this daemon: hf- and eight hexadecimal digits.
	ID string
	// Root holds all files. DataRoot and ExecRoot are in it.
	Root, DataRoot, ExecRoot string
	// Socket is the path of the API's socket. Host is the same in the form of
	// DOCKER_HOST.
	Socket, Host string
	// Bridge is the default network's link. Address is its address and prefix
	// length.
	Bridge  string
	Address netip.Prefix
	// Cgroup is the parent of all containers' cgroups, without the mount point.
	Cgroup string
	// Table is the nftables table.
	Table string

	t    testing.TB
	opts Options
	conf map[string]any // the last argument of WriteConfig
	peer *Peer          // the peer that this is a part of, or nil

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended, whether or not it was reaped
	served bool          // it was ready once, so there may be containers
	notify *net.UnixConn
	// predecessors are the processes that handed over before the present one.
	predecessors []*Predecessor
}

// Start starts a private daemon and waits until it reports that it is ready.
// When the test ends, everything that it and its containers have left is
// reported and removed.
func Start(t testing.TB, o Options) *Daemon {
	t.Helper()
	d := New(t, o)
	d.Start()
	return d
}

// New prepares a private daemon without starting it.
func New(t testing.TB, o Options) *Daemon {
	t.Helper()
	needRoot(t)
	sweepOnce.Do(sweep)
	if o.Binary == "" {
		o.Binary = Binary(t, "holdfastd")
		if o.Shim == "" {
			Binary(t, "holdfast-shim")
		}
	}
	b := make([]byte, 4)
	rand.Read(b)
	id := "hf-" + hex.EncodeToString(b)
	root := "/tmp/" + id
	d := &Daemon{
		ID: id, Root: root, DataRoot: root + "/data", ExecRoot: root + "/run",
		Socket: root + "/run/holdfast.sock", Host: "unix://" + root + "/run/holdfast.sock",
		Bridge: "hf" + id[3:], Cgroup: "/" + id, t: t, opts: o,
	}
	d.Table = "holdfast-" + d.Bridge
	if err := os.Mkdir(root, 0o711); err != nil {
		t.Fatal(err)
	}
	if !o.Disk {
		if err := unix.Mount("holdfast-test", root, "tmpfs", 0, "mode=711"); err != nil {
			os.Remove(root)
			t.Fatalf("mount a tmpfs at %s: %v", root, err)
		}
	}
	t.Cleanup(d.cleanup)
	if err := writeOwner(root); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(root+"/docker", 0o700); err != nil {
		t.Fatal(err)
	}
	var err error
	if d.Address, err = freeSubnet(cmp.Or(o.Prefix, 24)); err != nil {
		t.Fatal(err)
	}
	d.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: root + "/notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	conf := map[string]any{}
	if o.LiveRestore {
		conf["live-restore"] = true
	}
	for k, v := range o.Config {
		conf[k] = v
	}
	d.WriteConfig(conf)
	return d
}

// WriteConfig replaces daemon.json; nil makes it empty. The daemon reads it at
// Hup or Restart. From the next start on, a key in it replaces the kit's own
// flag.
func (d *Daemon) WriteConfig(conf map[string]any) {
	d.t.Helper()
	if conf == nil {
		conf = map[string]any{}
	}
	b, err := json.MarshalIndent(conf, "", "  ")
	if err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(d.ConfigFile(), b, 0o600); err != nil {
		d.t.Fatal(err)
	}
	d.conf = conf
}

// ConfigFile is the path of daemon.json.
func (d *Daemon) ConfigFile() string { return d.Root + "/daemon.json" }

// LogFile is the path of the daemon's log, which spans all its lives.
func (d *Daemon) LogFile() string { return d.Root + "/daemon.log" }

// Log returns what the daemon has logged so far.
func (d *Daemon) Log() string {
	b, _ := os.ReadFile(d.LogFile())
	return string(b)
}

// Command returns the daemon's command, not started, for tests that start it
// differently.
func (d *Daemon) Command() *exec.Cmd {
	if d.peer != nil {
		return d.peer.command()
	}
	args := []string{"--config-file", d.ConfigFile()}
	for _, f := range [][2]string{
		{"data-root", d.DataRoot}, {"exec-root", d.ExecRoot}, {"bridge", d.Bridge}, {"bip", d.Address.String()},
		{"cgroup-parent", d.Cgroup}, {"group", ""},
	} {
		if _, instead := d.conf[f[0]]; !instead {
			args = append(args, "--"+f[0], f[1])
		}
	}
	if d.opts.Shim != "" {
		args = append(args, "--shim", d.opts.Shim)
	}
	cmd := exec.Command(d.opts.Binary, append(args, d.opts.Flags...)...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+d.Root+"/notify", d.raceReports())
	cmd.Env = append(cmd.Env, d.opts.Env...)
	// The terminal's signals are meant for the test.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if d.opts.Wrap != nil {
		d.opts.Wrap(cmd)
	}
	return cmd
}

// SetBinary sets the holdfastd for the next start, as an upgrade does.
func (d *Daemon) SetBinary(path string) { d.opts.Binary = path }

// SetFlags replaces Options.Flags from the next start on.
func (d *Daemon) SetFlags(flags ...string) { d.opts.Flags = flags }

// SetEnv replaces Options.Env from the next start on.
func (d *Daemon) SetEnv(env ...string) { d.opts.Env = env }

// Start starts the daemon, which must not be running, and waits until it is
// ready.
func (d *Daemon) Start() {
	d.t.Helper()
	if err := d.TryStart(); err != nil {
		d.t.Fatalf("%v\n%s", err, d.tail())
	}
}

// TryStart is Start, but returns an error instead of failing the test. If the
// daemon ends before it is ready, the error contains its output.
func (d *Daemon) TryStart() error {
	if d.Running() {
		return errors.New("the daemon runs already")
	}
	d.drainNotify()
	cmd := d.Command()
	start := func() error { return d.opts.Netns.Run(cmd.Start) }
	if d.peer != nil {
		start = func() error { return d.peer.Netns.Run(cmd.Start) }
	}
	output, err := d.startLogged(cmd, start)
	if err != nil {
		return err
	}
	exited := awaitExit(cmd.Process.Pid)
	d.mu.Lock()
	d.cmd, d.exited = cmd, exited
	d.mu.Unlock()
	if err := d.waitNotify("READY=1"); err != nil {
		select {
		case <-exited:
			d.Reap()
			return fmt.Errorf("the daemon ended: %s", output())
		default:
			return err
		}
	}
	d.mu.Lock()
	d.served = true
	d.mu.Unlock()
	return nil
}

// startLogged starts a daemon whose output goes to the log file. The function that it
// returns gives what the file got since.
func (d *Daemon) startLogged(cmd *exec.Cmd, start func() error) (output func() string, err error) {
	log, err := os.OpenFile(d.LogFile(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = log, log
	output = func() string {
		b, _ := os.ReadFile(d.LogFile())
		return strings.TrimSpace(string(b[min(int(from), len(b)):]))
	}
	return output, start()
}

// waitNotify waits for a message of the daemon to its service manager.
func (d *Daemon) waitNotify(want string) error {
	d.mu.Lock()
	exited := d.exited
	d.mu.Unlock()
	got := make(chan error, 1)
	deadline := time.Now().Add(patience)
	d.notify.SetReadDeadline(deadline)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := d.notify.Read(b)
			if err != nil {
				got <- fmt.Errorf("the daemon did not say %s: %w", want, err)
				return
			}
			for line := range strings.SplitSeq(string(b[:n]), "\n") {
				if line == want {
					got <- nil
					return
				}
			}
		}
	}()
	select {
	case err := <-got:
		return err
	case <-exited:
		// The message may have arrived just before. Stop the reader and wait
		// for it, because two readers must not read at the same time.
		d.notify.SetReadDeadline(time.Now())
		return <-got
	}
}

// drainNotify discards messages of an earlier process.
func (d *Daemon) drainNotify() {
	b := make([]byte, 4096)
	d.notify.SetReadDeadline(time.Now().Add(time.Millisecond))
	for {
		if _, err := d.notify.Read(b); err != nil {
			return
		}
	}
}

// Running reports whether the daemon's process is running.
func (d *Daemon) Running() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		return false
	}
	select {
	case <-d.exited:
		return false
	default:
		return true
	}
}

// Pid is the process ID of the last daemon.
func (d *Daemon) Pid() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		return 0
	}
	return d.cmd.Process.Pid
}

// Signal sends a signal without waiting.
func (d *Daemon) Signal(s unix.Signal) {
	d.t.Helper()
	d.mu.Lock()
	cmd := d.cmd
	d.mu.Unlock()
	if cmd == nil {
		d.t.Fatal("the daemon was not started")
	}
	if err := cmd.Process.Signal(s); err != nil {
		d.t.Fatalf("send %s to the daemon: %v", s, err)
	}
}

// Exited is closed when the daemon's process has ended.
func (d *Daemon) Exited() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.exited
}

// WaitExit waits until the daemon has ended and returns its exit code. -1 means
// that a signal killed it.
func (d *Daemon) WaitExit() int {
	d.t.Helper()
	select {
	case <-d.Exited():
	case <-time.After(patience):
		d.t.Fatalf("the daemon does not end\n%s", d.tail())
	}
	return d.Reap()
}

// Reap reaps the ended daemon and returns its exit code.
func (d *Daemon) Reap() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd.ProcessState == nil {
		d.cmd.Wait()
	}
	return d.cmd.ProcessState.ExitCode()
}

// Kill9 kills the daemon, and returns when its process has ended and was
// reaped.
func (d *Daemon) Kill9() {
	d.t.Helper()
	d.Signal(unix.SIGKILL)
	d.WaitExit()
}

// KillZombie kills the daemon and leaves it as a zombie, as a parent that does
// not wait would. The next start or the end of the test reaps it.
func (d *Daemon) KillZombie() {
	d.t.Helper()
	d.Signal(unix.SIGKILL)
	select {
	case <-d.Exited():
	case <-time.After(patience):
		d.t.Fatal("the daemon does not die")
	}
}

// Term stops the daemon with SIGTERM and waits until it has ended, which must
// be with exit code 0.
func (d *Daemon) Term() {
	d.t.Helper()
	d.Signal(unix.SIGTERM)
	if code := d.WaitExit(); code != 0 {
		d.t.Errorf("the daemon ended with %d after SIGTERM\n%s", code, d.tail())
	}
}

// Restart stops the daemon with SIGTERM and starts it again.
func (d *Daemon) Restart() {
	d.t.Helper()
	d.Term()
	d.Start()
}

// Hup makes the daemon reload its configuration, and waits until it has.
func (d *Daemon) Hup() {
	d.t.Helper()
	d.drainNotify()
	d.Signal(unix.SIGHUP)
	if err := d.waitNotify("RELOADING=1"); err != nil {
		d.t.Fatal(err)
	}
	if err := d.waitNotify("READY=1"); err != nil {
		d.t.Fatal(err)
	}
}

// HearOut reads the daemon's messages to its service manager from now until the
// test's end, for tests in which there are many. After that Hup and another
// Start receive none.
func (d *Daemon) HearOut() {
	_ = d.notify.SetReadDeadline(time.Time{})
	go func() {
		b := make([]byte, 4096)
		for {
			if _, err := d.notify.Read(b); err != nil {
				return
			}
		}
	}()
}

// Client is a client of the API. It is closed when the test ends.
func (d *Daemon) Client() *client.Client {
	d.t.Helper()
	c, err := client.New(client.WithHost(d.Host))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { c.Close() })
	return c
}

// HTTP is a plain HTTP client for the socket. The host in URLs is ignored.
func (d *Daemon) HTTP() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", d.Socket)
		},
		DisableKeepAlives: true,
	}}
}

// tail returns the end of the daemon's log, for failure messages.
func (d *Daemon) tail() string {
	log := d.Log()
	if len(log) > 8000 {
		log = "…" + log[len(log)-8000:]
	}
	return "log of the daemon:\n" + log
}

// cleanup cleans up after a test: it removes the containers, stops the daemon,
// and reports and removes leaks.
func (d *Daemon) cleanup() {
	t := d.t
	t.Helper()
	defer func() {
		d.checkRaces()
		if t.Failed() {
			t.Log(d.tail())
		}
		if err := d.scrub(); err != nil {
			t.Errorf("clean up: %v", err)
		}
	}()
	d.mu.Lock()
	started, served := d.cmd != nil, d.served
	d.mu.Unlock()
	defer d.notify.Close()
	if !started {
		return
	}
	if !d.Running() && served && !t.Failed() {
		// The daemon itself must remove what the containers have left, so start
		// it again.
		d.Reap()
		if err := d.TryStart(); err != nil {
			t.Errorf("start for cleaning up: %v", err)
		}
	}
	if d.Running() {
		if err := d.removeAll(); err != nil {
			t.Errorf("remove what the test left: %v", err)
		}
		d.Signal(unix.SIGTERM)
		select {
		case <-d.Exited():
		case <-time.After(patience):
			t.Errorf("the daemon does not end by SIGTERM")
			d.Signal(unix.SIGKILL)
			<-d.Exited()
		}
	}
	d.Reap()
	if t.Failed() || d.peer != nil {
		return // leaks are a consequence of the failure, or the peer's
	}
	for _, leak := range d.Leaks() {
		t.Errorf("left behind: %s", leak)
	}
}

// removeAll removes all containers, volumes and networks through the API.
func (d *Daemon) removeAll() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var errs []error
	var containers []struct{ ID string }
	if err := d.get(ctx, "/containers/json?all=1", &containers); err != nil {
		return err
	}
	for _, c := range containers {
		errs = append(errs, d.delete(ctx, "/containers/"+c.ID+"?force=1&v=1"))
	}
	var volumes struct{ Volumes []struct{ Name string } }
	if err := d.get(ctx, "/volumes", &volumes); err != nil {
		errs = append(errs, err)
	}
	for _, v := range volumes.Volumes {
		errs = append(errs, d.delete(ctx, "/volumes/"+v.Name+"?force=1"))
	}
	var networks []struct{ ID, Name string }
	if err := d.get(ctx, "/networks", &networks); err != nil {
		errs = append(errs, err)
	}
	for _, n := range networks {
		if n.Name != "bridge" && n.Name != "host" && n.Name != "none" {
			errs = append(errs, d.delete(ctx, "/networks/"+n.ID))
		}
	}
	return errors.Join(errs...)
}

func (d *Daemon) get(ctx context.Context, path string, into any) error {
	return d.call(ctx, http.MethodGet, path, into)
}

func (d *Daemon) delete(ctx context.Context, path string) error {
	return d.call(ctx, http.MethodDelete, path, nil)
}

func (d *Daemon) call(ctx context.Context, method, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://holdfast"+path, nil)
	if err != nil {
		return err
	}
	resp, err := d.HTTP().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return nil // it was removed meanwhile
	case resp.StatusCode >= 300:
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, body)
	case into == nil:
		return nil
	}
	return json.Unmarshal(body, into)
}

// freeSubnet picks a subnet in 10.64.0.0/10 and above, with a prefix of so many bits,
// that overlaps no subnet of the host. It returns the subnet's first address.
func freeSubnet(bits int) (netip.Prefix, error) {
	addrs, err := dump.Prefixes()
	if err != nil {
		return netip.Prefix{}, err
	}
next:
	for range 100 {
		b := make([]byte, 2)
		rand.Read(b)
		// Above 10.64, where fewer networks are in use.
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64 + b[0]%190, b[1], 0}), bits)
		p = netip.PrefixFrom(p.Masked().Addr().Next(), bits)
		for _, a := range addrs {
			if a.Overlaps(p) {
				continue next
			}
		}
		return p, nil
	}
	return netip.Prefix{}, errors.New("no free subnet in 10.64.0.0/10")
}

// writeOwner records the test process in a root, so that a later process can
// check whether it is still running.
func writeOwner(root string) error {
	start, err := startTime(os.Getpid())
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "owner"), []byte(strconv.Itoa(os.Getpid())+" "+start), 0o600)
}

// startTime returns when a process started, in clock ticks since boot. Together
// with the pid it identifies a process even if the pid is reused. A zombie is
// an error.
func startTime(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return "", fmt.Errorf("process %d has ended", pid)
	}
	return f[19], nil
}
