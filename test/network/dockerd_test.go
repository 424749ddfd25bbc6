// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// dockerd is a dockerd on the same host, with directories of its own.
type dockerd struct {
	*host
	root string
	end  func()
}

func newDockerd(h *host) *dockerd {
	h.t.Helper()
	root, err := os.MkdirTemp("", "hfdk")
	h.ok(err)
	d := &dockerd{host: h, root: root}
	h.t.Cleanup(func() {
		if err := os.RemoveAll(root); err != nil {
			h.t.Error(err)
		}
		cgroups, _ := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Base(root))
		for _, dir := range append(cgroups, "/sys/fs/cgroup/"+filepath.Base(root)) {
			_ = os.Remove(dir) // the directory did not exist before, so it must not remain
		}
	})
	return d
}

// start starts dockerd and waits until it answers. It finds forwarding
// disabled, so it enables it and sets the policy of FORWARD to DROP.
func (d *dockerd) start() {
	d.t.Helper()
	d.ok(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0))
	config := filepath.Join(d.root, "daemon.json")
	d.ok(os.WriteFile(config, []byte("{}"), 0o600))
	log, err := os.Create(filepath.Join(d.root, "log"))
	d.ok(err)
	defer log.Close()
	cmd := d.command("dockerd", "--config-file", config, "--data-root", d.root+"/data", "--exec-root", d.root+"/run",
		"--pidfile", d.root+"/pid", "-H", "unix://"+d.socket(), "--group", "", "--bip", "10.61.0.1/24",
		"--cgroup-parent", "/"+filepath.Base(d.root), "--storage-driver", "vfs", "--shutdown-timeout", "1")
	cmd.Stdout, cmd.Stderr = log, log
	d.ok(cmd.Start())
	exited := make(chan struct{})
	go func() { cmd.Wait(); close(exited) }()
	ended := false
	d.end = func() {
		if ended {
			return
		}
		ended = true
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(30 * time.Second):
			d.t.Error("dockerd did not exit")
			_ = cmd.Process.Kill()
			<-exited
		}
	}
	d.t.Cleanup(d.end)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	late := time.After(time.Minute)
	for {
		c, err := net.Dial("unix", d.socket())
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-again.C:
		case <-exited:
			b, _ := os.ReadFile(log.Name())
			d.t.Fatalf("dockerd ended: %s", b)
		case <-late:
			b, _ := os.ReadFile(log.Name())
			d.t.Fatalf("dockerd does not answer: %s", b)
		}
	}
}

func (d *dockerd) socket() string { return d.root + "/docker.sock" }

// docker runs the client of the same release as dockerd, because a newer client
// may not support its API version.
func (d *dockerd) docker(input io.Reader, args ...string) string {
	d.t.Helper()
	cmd := d.command("docker", append([]string{"-H", "unix://" + d.socket()}, args...)...)
	if own := filepath.Join(debian, "usr/bin/docker"); exists(own) {
		cmd.Path = own
	}
	cmd.Stdin = input
	out, err := cmd.CombinedOutput()
	if err != nil {
		b, _ := os.ReadFile(filepath.Join(d.root, "log"))
		d.t.Fatalf("docker %q: %v: %s\n%s", args, err, out, b)
	}
	return strings.TrimSpace(string(out))
}

// web starts a container that answers on port 80, published on port 8090, and
// returns its address.
func (d *dockerd) web() string {
	d.t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	d.ok(err)
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	d.ok(w.WriteHeader(&tar.Header{Name: "busybox", Mode: 0o755, Size: int64(len(busybox)), Typeflag: tar.TypeReg}))
	_, err = w.Write(busybox)
	d.ok(err)
	d.ok(w.Close())
	d.docker(&image, "import", "-", "busybox")
	id := d.docker(nil, "run", "-d", "-p", "8090:80", "busybox", "/busybox", "nc", "-ll", "-p", "80", "-e", "/busybox", "echo", "docker", "x")
	d.serve("/proc/"+d.docker(nil, "inspect", "-f", "{{.State.Pid}}", id)+"/ns/net", "tcp4", ":81", "hidden")
	return d.docker(nil, "inspect", "-f", "{{.NetworkSettings.IPAddress}}", id)
}

// beside checks that the containers of both engines are reachable as they
// should be.
func (d *dockerd) beside(w *crowd, web string) {
	d.t.Helper()
	w.works()
	d.answers(d.lan, "tcp", hostAddr+":8090", "docker", "")
	d.answers("", "tcp", hostAddr+":8090", "docker", "")
	d.answers("", "tcp", web+":80", "docker", "")
	d.answers(w.a.Netns, "tcp", hostAddr+":8090", "docker", "")
	// Packets from Holdfast's containers to unpublished ports of dockerd's
	// containers are dropped.
	d.answers("", "tcp", web+":81", "hidden", "")
	d.silent(w.a.Netns, "tcp", web+":81")
}

func TestEverythingWorksBesideDockerd(t *testing.T) {
	clean(t)
	h := newHost(t, sixes)
	h.filterFrames()
	h.ok(h.m.Close())
	d := newDockerd(h)

	// dockerd starts before Holdfast.
	d.start()
	web := d.web()
	h.open(nil)
	w := newCrowd(h)
	d.beside(w, web)
	if got := h.saved("nft"); !strings.Contains(got, ":FORWARD DROP") || !strings.Contains(got, "DOCKER-USER") {
		t.Fatalf("dockerd's rules differ from the expected ones:\n%s", got)
	}

	// dockerd restarts while Holdfast's rules exist.
	d.docker(nil, "rm", "-f", d.docker(nil, "ps", "-q"))
	d.end()
	d.start()
	web = d.web()
	d.beside(w, web)

	// No daemon of Holdfast runs.
	h.ok(h.m.Close())
	d.beside(w, web)
	before := generation(t)
	h.open(h.stored(w.a, w.b, w.c))
	if now := generation(t); now != before {
		t.Errorf("the next daemon sent %d transactions", now-before)
	}

	// Rules in DOCKER-USER apply to Holdfast's containers, too.
	h.do("", "iptables", "-I", "DOCKER-USER", "-s", lanAddr, "-j", "DROP")
	h.silent(h.lan, "tcp", hostAddr+":8080")
	h.silent(h.lan, "tcp", hostAddr+":8090")
	h.do("", "iptables", "-D", "DOCKER-USER", "-s", lanAddr, "-j", "DROP")
	d.beside(w, web)
	d.docker(nil, "rm", "-f", d.docker(nil, "ps", "-q"))
	for _, c := range []*container{w.a, w.b, w.c} {
		h.ok(h.m.Release(context.Background(), c.Sandbox))
	}
}

func TestDockerdMayStartBesideUs(t *testing.T) {
	clean(t)
	h := newHost(t, sixes)
	w := newCrowd(h)
	w.works()
	h.log.take()
	d := newDockerd(h)
	d.start()
	h.says("it now accepts")
	web := d.web()
	d.beside(w, web)
	d.docker(nil, "rm", "-f", d.docker(nil, "ps", "-q"))
}
