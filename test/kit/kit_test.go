// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { Main(m) }

func TestDaemonStartsStopsAndLeavesNothing(t *testing.T) {
	var root, bridge string
	t.Run("life", func(t *testing.T) {
		d := Start(t, Options{LiveRestore: true})
		root, bridge = d.Root, d.Bridge
		if got := d.Docker("info", "--format", "{{.LiveRestoreEnabled}}"); got != "true" {
			t.Errorf("live restore: %s", got)
		}
		first := d.Pid()
		d.Kill9()
		if d.Running() {
			t.Error("the daemon is running after SIGKILL")
		}
		d.Start()
		if d.Pid() == first {
			t.Error("the daemon has the same pid after a restart")
		}
		d.Restart()
		if got := d.TryDocker("inspect", "no-such-thing"); got.Code == 0 || got.Stderr == "" {
			t.Errorf("%+v", got)
		}
	})
	if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", root, err)
	}
	if _, err := netlink.LinkByName(bridge); err == nil {
		t.Errorf("link %s is left", bridge)
	}
}

func TestFailedStartGivesTheDaemonsLastWords(t *testing.T) {
	d := New(t, Options{Config: map[string]any{"no-such-key": 1}})
	err := d.TryStart()
	if err == nil || !strings.Contains(err.Error(), "don't match any configuration option: no-such-key") {
		t.Errorf("got %v", err)
	}
	d.WriteConfig(nil)
	d.Start()
}

func TestEveryKindOfLeakIsFoundAndRemoved(t *testing.T) {
	var d *Daemon
	t.Run("leaks", func(t *testing.T) {
		d = New(t, Options{Binary: "/bin/true"})
		if l := d.Leaks(); len(l) > 0 {
			t.Fatalf("before anything was started: %q", l)
		}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(os.MkdirAll(d.DataRoot+"/containers/abc", 0o700))
		must(os.MkdirAll(d.ExecRoot+"/shim/abc/rootfs", 0o700))
		must(unix.Mount("leak", d.ExecRoot+"/shim/abc/rootfs", "tmpfs", 0, "size=4k"))

		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: d.Bridge}}
		must(netlink.LinkAdd(bridge))
		must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "p" + d.Bridge, MasterIndex: bridge.Index}, PeerName: "q" + d.Bridge}))

		c, err := nftables.New()
		must(err)
		table := c.AddTable(&nftables.Table{Name: d.Table, Family: nftables.TableFamilyINet})
		set := &nftables.Set{Table: table, Name: "ports", KeyType: nftables.TypeInetService}
		must(c.AddSet(set, []nftables.SetElement{{Key: []byte{0, 80}}}))
		foreign := c.AddTable(&nftables.Table{Name: "mine-" + d.ID, Family: nftables.TableFamilyIPv4})
		rules := c.AddChain(&nftables.Chain{Name: d.Table, Table: foreign})
		c.AddRule(&nftables.Rule{Table: foreign, Chain: rules, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Register: 1, Data: []byte("gone0\x00")},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}})
		must(c.Flush())
		t.Cleanup(func() {
			c.DelTable(foreign)
			must(c.Flush())
		})

		// A shell with the root in its command line, which waits for the end of
		// its input.
		sleep := exec.Command("sh", "-c", "read line; : "+d.ExecRoot+"/shim")
		stdin, err := sleep.StdinPipe()
		must(err)
		defer stdin.Close()
		must(sleep.Start())
		go sleep.Wait()

		dir := cgroupMount(t) + d.Cgroup
		must(os.MkdirAll(dir+"/abc", 0o755))
		inside := exec.Command("sleep", "1000")
		must(inside.Start())
		go inside.Wait()
		must(os.WriteFile(dir+"/abc/cgroup.procs", []byte(strconv.Itoa(inside.Process.Pid)), 0))

		all := strings.Join(d.Leaks(), "\n")
		for _, want := range []string{
			"process " + strconv.Itoa(sleep.Process.Pid), "process " + strconv.Itoa(inside.Process.Pid), "mount " + d.ExecRoot, "link p" + d.Bridge,
			"nftables element ports", "rule in another program's filter nft mine-" + d.ID + ": gone0", "cgroup " + dir + "/abc", "file " + d.DataRoot + "/containers/abc", "file " + d.ExecRoot + "/shim/abc",
		} {
			if !strings.Contains(all, want) {
				t.Errorf("not found: %s\nin %s", want, all)
			}
		}
	})
	if l := d.Leaks(); len(l) > 0 {
		t.Errorf("not removed: %q", l)
	}
	if _, err := os.Stat(cgroupMount(t) + d.Cgroup); err == nil {
		t.Error("the cgroup is left")
	}
	if _, err := netlink.LinkByName(d.Bridge); err == nil {
		t.Error("the bridge is left")
	}
}

// cgroupMount returns the mount point of a hierarchy with processes: v2, or
// pids on v1.
func cgroupMount(t *testing.T) string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.procs"); err == nil {
		return "/sys/fs/cgroup"
	}
	if _, err := os.Stat("/sys/fs/cgroup/pids"); err != nil {
		t.Fatal(err)
	}
	return "/sys/fs/cgroup/pids"
}

// TestChild is the body of the next tests, which run it in a process of its
// own.
func TestChild(t *testing.T) {
	mode := os.Getenv("KIT_CHILD")
	if mode == "" {
		// In a normal run of the package it does nothing.
		return
	}
	d := Start(t, Options{})
	d.Holdfast("network", "create", "own")
	os.Stdout.WriteString("root=" + d.Root + "\n")
	switch mode {
	case "panic":
		panic("on purpose")
	case "fatal":
		t.Fatal("on purpose")
	case "race":
		if err := os.WriteFile(d.Root+"/race.1", []byte("on purpose"), 0o600); err != nil {
			t.Log(err) // then the test passes, which fails its parent
		}
	case "killed":
		unix.Kill(os.Getpid(), unix.SIGKILL)
	}
}

// child runs TestChild in another process and returns the root of its daemon.
func child(t *testing.T, mode string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestChild$")
	cmd.Env = append(os.Environ(), "KIT_CHILD="+mode, "HOLDFAST_BIN="+binDir(t))
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatalf("the child did not fail:\n%s", out)
	}
	_, rest, ok := strings.Cut(string(out), "root=")
	if !ok {
		t.Fatalf("no daemon:\n%s", out)
	}
	root, _, _ := strings.Cut(rest, "\n")
	return root
}

func binDir(t *testing.T) string {
	path := Binary(t, "holdfastd")
	Binary(t, "holdfast-shim")
	return strings.TrimSuffix(path, "/holdfastd")
}

func TestNothingIsLeftOfATestThatFailedOrPanicked(t *testing.T) {
	for _, mode := range []string{"fatal", "panic"} {
		root := child(t, mode)
		if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %s is left: %v", mode, root, err)
		}
		if procs, err := (&Daemon{Root: root, Cgroup: "/none"}).processes(); len(procs) > 0 || err != nil {
			t.Errorf("%s: %v %v", mode, procs, err)
		}
		if links, err := (&Daemon{Root: root}).ownedLinks(); len(links) > 0 || err != nil {
			t.Errorf("%s: %v %v", mode, links, err)
		}
	}
}

// child fails the test if the other process's test passes.
func TestReportedDataRaceFailsTheTest(t *testing.T) { child(t, "race") }

func TestWhatAKilledTestLeftIsSwept(t *testing.T) {
	root := child(t, "killed")
	left := &Daemon{Root: root, Cgroup: "/none"}
	procs, err := left.processes()
	if len(procs) == 0 || err != nil {
		t.Fatalf("the daemon should have outlived its test: %v", err)
	}
	if links, err := left.ownedLinks(); len(links) < 2 || err != nil {
		t.Fatalf("its bridges should be there: %v %v", links, err)
	}
	mine := New(t, Options{Binary: "/bin/true"})
	sweep()
	if links, err := left.ownedLinks(); len(links) > 0 || err != nil {
		t.Errorf("%v %v", links, err)
	}
	if procs, err := left.processes(); len(procs) > 0 || err != nil {
		t.Errorf("%v %v", procs, err)
	}
	if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", root, err)
	}
	if _, err := os.Stat(mine.Root); err != nil {
		t.Errorf("swept a daemon whose test lives: %v", err)
	}
}

func TestRegistryServesPushedImages(t *testing.T) {
	var asked atomic.Int32
	r := StartRegistry(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			asked.Add(1)
			next.ServeHTTP(w, req)
		})
	})
	img := Busybox(t, func(c *v1.Config) { c.Labels = map[string]string{"a": "b"} })
	ref := r.Push("test/busybox:1", img)
	if ref != r.Host+"/test/busybox:1" || asked.Load() == 0 {
		t.Error(ref, asked.Load())
	}
	parsed, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	got, err := remote.Image(parsed)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := img.Digest()
	if have, err := got.Digest(); err != nil || have != want {
		t.Errorf("%v %v %v", have, want, err)
	}
	again, _ := Busybox(t, func(c *v1.Config) { c.Labels = map[string]string{"a": "b"} }).Digest()
	if again != want {
		t.Error("the same image has another digest")
	}
	// A range without an end, as a resumed download requests it.
	layers, err := got.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, _ := layers[0].Digest()
	size, _ := layers[0].Size()
	req, _ := http.NewRequest(http.MethodGet, "http://"+r.Host+"/v2/test/busybox/blobs/"+digest.String(), nil)
	req.Header.Set("Range", "bytes=1000-")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent || resp.ContentLength != size-1000 {
		t.Errorf("%s, %d bytes of %d", resp.Status, resp.ContentLength, size)
	}
}

func TestProberSeesEveryFailure(t *testing.T) {
	var fail atomic.Bool
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if fail.Load() {
			w.WriteHeader(http.StatusTeapot)
		}
	}))
	defer s.Close()
	p := Probe(t, s.URL)
	p.WaitAnswer(t)
	p.Wait(t, func(r Report) bool { return r.Answered >= 20 })
	if r := p.Report(); len(r.Failures) > 0 || r.Slowest == 0 || r.Asked != r.Answered {
		t.Error(r)
	}
	fail.Store(true)
	p.Wait(t, func(r Report) bool { return len(r.Failures) >= 3 })
	r := p.Stop()
	if !strings.Contains(r.String(), "418") || r.Asked != r.Answered+len(r.Failures) {
		t.Error(r)
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	p = Probe(t, "http://"+l.Addr().String())
	p.Wait(t, func(r Report) bool { return len(r.Failures) >= 3 })
	if r := p.Stop(); !strings.Contains(r.String(), "refused") {
		t.Error(r)
	}
}
