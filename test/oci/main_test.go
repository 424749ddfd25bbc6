// SPDX-License-Identifier: Apache-2.0

// Package oci runs specifications of internal/engine/oci with a real OCI
// runtime, as root. It checks the results inside the container and in the
// control groups, and leaves nothing behind.
package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"holdfast/internal/engine/oci"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests start containers: run them as root")
		os.Exit(1)
	}
	for _, name := range []string{"runc", "busybox"} {
		if _, err := exec.LookPath(name); err != nil {
			fmt.Fprintf(os.Stderr, "these tests need %s: %v\n", name, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// box is a container that a test configures and runs.
type box struct {
	t    *testing.T
	dir  string // bundle and runtime state
	in   oci.Input
	spec *specs.Spec
}

// newBox creates a root file system with busybox and a few users.
func newBox(t *testing.T, cmd ...string) *box {
	t.Helper()
	dir, err := os.MkdirTemp("", "holdfast-oci-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b := &box{t: t, dir: dir}
	id := filepath.Base(dir)
	h := oci.Probe(t.Context())
	b.in = oci.Input{
		ID:   id,
		Host: h,
		Defaults: oci.Defaults{
			CgroupDriver: oci.DriverCgroupfs,
			CgroupParent: "/" + id + "-parent",
		},
		Config:     &container.Config{Cmd: cmd},
		HostConfig: &container.HostConfig{NetworkMode: "none"},
		Rootfs:     filepath.Join(dir, "rootfs"),
	}
	t.Cleanup(b.remove)

	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "data"} {
		if err := os.MkdirAll(filepath.Join(b.in.Rootfs, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// As in any image, because a runtime gives a tmpfs the mode of the
	// directory that it covers.
	if err := os.Chmod(filepath.Join(b.in.Rootfs, "tmp"), fs.ModeSticky|0o777); err != nil {
		t.Fatal(err)
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	bin, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	b.file("rootfs/bin/busybox", string(bin), 0o755)
	for _, applet := range []string{"sh", "cat", "id", "sleep", "touch", "mount", "df", "env", "hostname", "ls", "grep", "mkdir", "stat", "pwd", "mknod"} {
		if err := os.Symlink("busybox", filepath.Join(b.in.Rootfs, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	b.file("rootfs/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/var/www:/bin/sh\n", 0o644)
	b.file("rootfs/etc/group", "root:x:0:\nweb:x:102:\naudio:x:29:web\nvideo:x:44:\n", 0o644)
	return b
}

func (b *box) file(name, content string, mode os.FileMode) string {
	b.t.Helper()
	p := filepath.Join(b.dir, name)
	if err := os.WriteFile(p, []byte(content), mode); err != nil {
		b.t.Fatal(err)
	}
	return p
}

// fifo makes a FIFO that the container writes to once. The returned function
// waits for that.
func (b *box) fifo(name string) func() {
	b.t.Helper()
	p := filepath.Join(b.dir, name)
	if err := syscall.Mkfifo(p, 0o666); err != nil {
		b.t.Fatal(err)
	}
	// Opened for reading and writing, so that neither side waits for the other
	// to open it.
	f, err := os.OpenFile(p, os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { f.Close() })
	return func() {
		b.t.Helper()
		if err := f.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			b.t.Fatal(err)
		}
		if _, err := f.Read(make([]byte, 1)); err != nil {
			b.t.Fatalf("the container did not report that it is ready: %v", err)
		}
	}
}

// build makes the specification as the daemon does: Adapt, Validate, Build.
func (b *box) build() {
	b.t.Helper()
	oci.Adapt(b.in.Host, b.in.HostConfig, b.in.Defaults)
	warnings, err := oci.Validate(b.in.Host, b.in.Config, b.in.HostConfig, b.in.Defaults)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, w := range warnings {
		b.t.Log("warning:", w)
	}
	if b.in.Config.Hostname == "" && !b.in.HostConfig.UTSMode.IsHost() {
		b.in.Config.Hostname = "box"
	}
	if b.spec, err = oci.Build(b.in); err != nil {
		b.t.Fatal(err)
	}
	text, err := json.Marshal(b.spec)
	if err != nil {
		b.t.Fatal(err)
	}
	b.file("config.json", string(text), 0o644)
}

func (b *box) runc(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	b.t.Cleanup(cancel)
	return exec.CommandContext(ctx, "runc", append([]string{"--root", filepath.Join(b.dir, "state")}, args...)...)
}

// run starts the container, waits for its end and returns its output.
func (b *box) run() string {
	b.t.Helper()
	b.build()
	cmd := b.runc("run", "--bundle", b.dir, b.in.ID)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		b.t.Fatalf("runc run: %v\n%s%s", err, out.String(), errs.String())
	}
	return out.String()
}

// start leaves the container running and returns its process.
func (b *box) start() int {
	b.t.Helper()
	b.build()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	defer null.Close()
	log := filepath.Join(b.dir, "log")
	cmd := b.runc("--log", log, "run", "--detach", "--pid-file", filepath.Join(b.dir, "pid"), "--bundle", b.dir, b.in.ID)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = null, null, null
	if err := cmd.Run(); err != nil {
		why, _ := os.ReadFile(log)
		b.t.Fatalf("runc run --detach: %v\n%s", err, why)
	}
	text, err := os.ReadFile(filepath.Join(b.dir, "pid"))
	if err != nil {
		b.t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		b.t.Fatal(err)
	}
	return pid
}

// remove removes the container and its resources, whatever its state.
func (b *box) remove() {
	if out, err := b.runc("delete", "--force", b.in.ID).CombinedOutput(); err != nil {
		b.t.Errorf("runc delete: %v\n%s", err, out)
	}
	for _, dir := range b.in.Host.CgroupDirs(oci.DriverCgroupfs, b.in.Defaults.CgroupParent) {
		removeGroups(b.t, dir)
	}
	if err := os.RemoveAll(b.dir); err != nil {
		b.t.Error(err)
	}
}

// removeGroups removes a control group, nested ones first.
func removeGroups(t *testing.T, dir string) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			removeGroups(t, filepath.Join(dir, e.Name()))
		}
	}
	// Its last process may still be exiting.
	deadline := time.Now().Add(5 * time.Second)
	for {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("the control group remains: %v", err)
			return
		}
		<-time.After(10 * time.Millisecond)
	}
}

// answers splits the output of lines "key=value".
func answers(out string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(out) {
		if k, v, ok := strings.Cut(strings.TrimRight(line, "\n"), "="); ok {
			m[k] = v
		}
	}
	return m
}

func ptr[T any](v T) *T { return &v }
