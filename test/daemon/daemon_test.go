// SPDX-License-Identifier: Apache-2.0

// Package daemon tests the daemon's own life, without regard to containers:
// start, lock, sockets, configuration, signals, stop. It needs root.
package daemon

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

func TestMain(m *testing.M) { kit.Main(m) }

func ping(t *testing.T, d *kit.Daemon) {
	t.Helper()
	resp, err := d.HTTP().Get("http://holdfast/_ping")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
}

func TestZombieStaleSocketAndStalePidFileDontStopTheNextStart(t *testing.T) {
	d := kit.Start(t, kit.Options{})
	d.KillZombie()
	if state := procState(t, d.Pid()); state != "Z" {
		t.Fatalf("the killed daemon has the state %s and is not a zombie", state)
	}
	for _, left := range []string{d.Socket, d.ExecRoot + "/holdfastd.pid"} {
		if _, err := os.Stat(left); err != nil {
			t.Fatalf("no stale file exists before the start: %v", err)
		}
	}
	zombie := d.Pid()
	d.Start()
	ping(t, d)
	if state := procState(t, zombie); state != "Z" {
		t.Errorf("the zombie was reaped meanwhile: %s", state)
	}
	b, err := os.ReadFile(d.ExecRoot + "/holdfastd.pid")
	if err != nil || string(b) != strconv.Itoa(d.Pid()) {
		t.Errorf("pid file %q %v", b, err)
	}
}

func procState(t *testing.T, pid int) string {
	t.Helper()
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))[0]
}

// second starts another daemon that is expected to exit at once.
func second(t *testing.T, d *kit.Daemon, args ...string) string {
	t.Helper()
	cmd := d.Command()
	cmd.Args = append(cmd.Args, args...)
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET=")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	timer := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	err := cmd.Run()
	timer.Stop()
	if err == nil {
		t.Fatalf("the second daemon exited with success:\n%s", &errs)
	}
	return errs.String()
}

func TestSecondDaemonOnARootIsToldWhoHoldsIt(t *testing.T) {
	d := kit.Start(t, kit.Options{})
	for root, args := range map[string][]string{
		"the data root " + d.DataRoot: {"--exec-root", d.Root + "/other-run"},
		"the exec root " + d.ExecRoot: {"--data-root", d.Root + "/other-data"},
	} {
		got := second(t, d, args...)
		for _, want := range []string{root, "process ID " + strconv.Itoa(d.Pid()), "since ", "stop it, or use another --"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s lacks %q", got, want)
			}
		}
	}
	ping(t, d) // the first daemon continues to serve
}

func TestSocketOfALiveDaemonIsNotTaken(t *testing.T) {
	d := kit.Start(t, kit.Options{})
	got := second(t, d, "--data-root", d.Root+"/other-data", "--exec-root", d.Root+"/other-run", "-H", d.Host)
	if !strings.Contains(got, "another program listens on "+d.Socket) {
		t.Error(got)
	}
	ping(t, d)
}

func TestDataRootThatCantBeWrittenIsNamed(t *testing.T) {
	d := kit.New(t, kit.Options{})
	got := second(t, d, "--data-root", "/proc/holdfast")
	if !strings.Contains(got, "data root /proc/holdfast") {
		t.Error(got)
	}
	if err := os.WriteFile(d.Root+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := second(t, d, "--data-root", d.Root+"/file/data"); !strings.Contains(got, "data root "+d.Root+"/file/data") {
		t.Error(got)
	}
}

func TestMissingRootsAreMade(t *testing.T) {
	d := kit.New(t, kit.Options{})
	for _, root := range []string{d.DataRoot, d.ExecRoot} {
		if _, err := os.Stat(root); err == nil {
			t.Fatalf("%s is there already", root)
		}
	}
	d.Start()
	ping(t, d)
	st, err := os.Stat(d.Socket)
	if err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("%v %v", st, err)
	}
}

func TestLiveRestoreAsFlagAndInTheFileStopsTheStart(t *testing.T) {
	d := kit.New(t, kit.Options{LiveRestore: true, Flags: []string{"--live-restore"}})
	err := d.TryStart()
	want := "the daemon ended: unable to configure the Holdfast daemon with file " + d.ConfigFile() + ": the following directives are specified both as a flag and in the configuration file: live-restore: (from flag: true, from file: true)"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if _, err := os.Stat(d.DataRoot); err == nil {
		t.Error("the failed start created the data root")
	}
}

func TestReloadTakesLiveKeysAndNamesTheOthers(t *testing.T) {
	d := kit.Start(t, kit.Options{})
	info := func() (v struct {
		LiveRestoreEnabled bool
		Labels             []string
		Debug              bool
	}) {
		t.Helper()
		resp, err := d.HTTP().Get("http://holdfast/info")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	if v := info(); v.LiveRestoreEnabled || v.Debug {
		t.Fatalf("%+v", v)
	}
	d.WriteConfig(map[string]any{"live-restore": true, "labels": []string{"a=b"}, "debug": true, "mtu": 1400, "default-shm-size": "1m"})
	d.Hup()
	if v := info(); !v.LiveRestoreEnabled || !v.Debug || len(v.Labels) != 1 {
		t.Errorf("%+v", v)
	}
	if !strings.Contains(d.Log(), "changed keys not taken until restart: mtu") {
		t.Error(d.Log())
	}

	// A bad file changes nothing, and the log gives the reason.
	for _, bad := range []string{"{", `{"foo": 1}`, `{"live-restore": "x"}`} {
		if err := os.WriteFile(d.ConfigFile(), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		d.Hup()
		if v := info(); !v.LiveRestoreEnabled || len(v.Labels) != 1 {
			t.Errorf("after %s: %+v", bad, v)
		}
	}
	if n := strings.Count(d.Log(), "the configuration was not reloaded"); n != 3 {
		t.Errorf("the log has %d refusals of 3:\n%s", n, d.Log())
	}
	d.WriteConfig(nil)
	d.Hup()
	if v := info(); v.LiveRestoreEnabled || v.Debug || len(v.Labels) > 0 {
		t.Errorf("keys removed from the file are still set: %+v", v)
	}
}

func TestSignalDumpsTheStacks(t *testing.T) {
	for _, s := range []unix.Signal{unix.SIGUSR1, unix.SIGQUIT} {
		d := kit.Start(t, kit.Options{})
		d.Signal(s)
		// Signals are handled one after the other. If two are pending, the
		// kernel delivers SIGHUP first.
		d.Hup()
		d.Hup()
		files, _ := filepath.Glob(d.ExecRoot + "/goroutine-stacks-*.log")
		if len(files) != 1 {
			t.Fatalf("%v: %q", s, files)
		}
		if b, err := os.ReadFile(files[0]); err != nil || !bytes.Contains(b, []byte("main.(*daemon).loop")) {
			t.Errorf("%v %s", err, b)
		}
		ping(t, d)
	}
}

func TestCleanStopRemovesSocketAndPidFileAndFreesTheLock(t *testing.T) {
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		d := kit.Start(t, kit.Options{})
		d.Signal(s)
		if code := d.WaitExit(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		for _, f := range []string{d.Socket, d.ExecRoot + "/holdfastd.pid"} {
			if _, err := os.Stat(f); err == nil {
				t.Errorf("%s stays", f)
			}
		}
		d.Start()
	}
}

func TestStreamsDontHoldUpTheStop(t *testing.T) {
	d := kit.Start(t, kit.Options{})
	resp, err := d.HTTP().Get("http://holdfast/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	idle, err := net.Dial("unix", d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	start := time.Now()
	d.Term()
	if took := time.Since(start); took > 1500*time.Millisecond {
		t.Errorf("stopping took %s", took)
	}
}

func TestDaemonListensWhereverItIsTold(t *testing.T) {
	d := kit.New(t, kit.Options{})
	extra := d.Root + "/extra.sock"
	d.SetFlags("-H", d.Host, "-Hunix://"+extra, "-H", "tcp://127.0.0.1:0")
	d.Start()
	for _, host := range []string{d.Host, "unix://" + extra} {
		if r := d.TryDocker("-H", host, "version", "--format", "{{.Server.Os}}"); r.Code != 0 || strings.TrimSpace(r.Stdout) != "linux" {
			t.Errorf("%s: %+v", host, r)
		}
	}
	_, rest, ok := strings.Cut(d.Log(), "API listen on tcp://")
	if !ok {
		t.Fatal(d.Log())
	}
	address := rest[:strings.IndexAny(rest, "\"\n")]
	if got := d.Docker("-H", "tcp://"+address, "version", "--format", "{{.Server.Os}}"); got != "linux" {
		t.Error(got)
	}
	if !strings.Contains(d.Log(), "without TLS") {
		t.Error("no warning about plain TCP")
	}
}

func TestIgnoredOptionIsTakenWithAWarning(t *testing.T) {
	d := kit.Start(t, kit.Options{
		Flags:  []string{"--containerd", "/run/containerd.sock", "--firewall-backend=iptables"},
		Config: map[string]any{"userland-proxy-path": "/x", "cri-containerd": true},
	})
	for _, key := range []string{"containerd", "firewall-backend", "userland-proxy-path", "cri-containerd"} {
		if !strings.Contains(d.Log(), key+" is ignored: ") {
			t.Errorf("no warning of %s", key)
		}
	}
	if got := second(t, d, "--userns-remap=default"); !strings.Contains(got, "userns-remap can't be used: ") {
		t.Error(got)
	}
}

func TestUnprivilegedStartIsRefusedClearly(t *testing.T) {
	d := kit.New(t, kit.Options{})
	cmd := d.Command()
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	if err := os.Chmod(d.ConfigFile(), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "needs to be started with root privileges") {
		t.Errorf("%v %s", err, out)
	}
}
