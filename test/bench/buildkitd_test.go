// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"golang.org/x/sys/unix"
)

// buildkitd is BuildKit's own daemon with its OCI worker, without an engine. Its client
// is buildctl, whose start is a part of each build.
type buildkitd struct {
	t       testing.TB
	root    string
	base    string // digest of the base image, in an OCI layout
	cmd     *exec.Cmd
	release string
}

// newBuildkitd starts one. It returns nil if none is installed.
func newBuildkitd(t testing.TB) *buildkitd {
	for _, program := range []string{"buildkitd", "buildctl"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil
		}
	}
	b := &buildkitd{t: t, root: tempDir(t)}
	img := image(t)
	store, err := layout.Write(b.root+"/base", empty.Index)
	if err == nil {
		err = store.AppendImage(img)
	}
	if err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	b.base = digest.String()
	log, err := os.Create(b.root + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	b.cmd = exec.Command("buildkitd", "--root", b.root+"/data", "--addr", b.address(), "--config", b.root+"/none",
		"--oci-worker-binary", "runc", "--oci-worker-snapshotter", "overlayfs", "--containerd-worker=false")
	b.cmd.Stdout, b.cmd.Stderr = log, log
	b.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.cleanup)
	deadline := time.Now().Add(patience)
	for {
		_, err := b.client("debug", "workers")
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("buildkitd does not answer: %v", err)
		}
		<-time.After(50 * time.Millisecond)
	}
	out, err := exec.Command("buildkitd", "--version").Output()
	if f := strings.Fields(string(out)); err == nil && len(f) > 2 {
		b.release = f[2]
	}
	return b
}

func (*buildkitd) name() string      { return "buildkitd" }
func (b *buildkitd) address() string { return "unix://" + b.root + "/socket" }

func (b *buildkitd) client(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, "buildctl", append([]string{"--addr", b.address()}, args...)...).CombinedOutput()
	if err != nil {
		err = errors.Join(err, errors.New(string(out)))
	}
	return string(out), err
}

// build builds a context, which is unpacked before the time counts.
func (b *buildkitd) build(t testing.TB, packed []byte, tag string) time.Duration {
	t.Helper()
	dir, err := os.MkdirTemp(b.root, "context-")
	if err != nil {
		t.Error(err)
		return 0
	}
	defer os.RemoveAll(dir)
	if err := unpack(dir, packed); err != nil {
		t.Error(err)
		return 0
	}
	output := "type=image"
	if tag != "" {
		output += ",name=" + tag
	}
	begin := time.Now()
	if _, err := b.client("build", "--progress=plain", "--frontend=dockerfile.v0", "--local", "context="+dir, "--local", "dockerfile="+dir,
		"--oci-layout", "base="+b.root+"/base", "--opt", "context:"+imageRef+"=oci-layout://base@"+b.base, "--output", output); err != nil {
		t.Errorf("buildkitd: build: %v", err)
	}
	return time.Since(begin)
}

// unpack unpacks what buildContext has packed.
func unpack(dir string, packed []byte) error {
	r := tar.NewReader(bytes.NewReader(packed))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, h.Name)
		text, err := io.ReadAll(r)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(path), 0o755)
		}
		if err == nil {
			err = os.WriteFile(path, text, 0o644)
		}
		if err != nil {
			return err
		}
	}
}

func (b *buildkitd) cleanup() {
	_ = b.cmd.Process.Signal(unix.SIGTERM)
	ended := make(chan struct{})
	go func() { _ = b.cmd.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(patience):
		_ = b.cmd.Process.Kill()
		<-ended
	}
	if b.t.Failed() {
		if text, err := os.ReadFile(b.root + "/log"); err == nil {
			b.t.Logf("buildkitd said:\n%s", text[max(0, len(text)-4000):])
		}
	}
	removeTree(b.t, b.root)
}
