// SPDX-License-Identifier: Apache-2.0

package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

func TestBaseBuildAndRunTakeTheBaseOnce(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	r := kit.StartRegistry(t, nil)
	noise := make([]byte, 30<<20)
	_, _ = rand.Read(noise)
	ref := r.Push("big", kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t, kit.File{Name: "noise", Body: noise})))
	before := taken(t, d.DataRoot)
	d.Docker("pull", ref)
	base := taken(t, d.DataRoot) - before
	const added = 3 << 20
	build(t, d, "-t", "made", files(t, map[string]string{"Dockerfile": "FROM " + ref + "\nRUN head -c 3145728 /dev/urandom >/added\n"}))
	if got := d.Docker("run", "--name", "ran", "made", "sh", "-c", "wc -c </noise; wc -c </added"); got != "31457280\n3145728" {
		t.Fatalf("the container sees %q", got)
	}
	// The new layer is there twice: packed and unpacked.
	total := taken(t, d.DataRoot) - before
	if most := base + base/20 + 2*added + 1<<20; total > most {
		t.Errorf("the base takes %d bytes, and with a build and a container on it %d, more than %d", base, total, most)
	}
	d.Docker("rm", "ran")
}

// hostile makes an image with one layer of the headers.
func hostile(t *testing.T, all ...tar.Header) v1.Image {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range all {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	b.Write(make([]byte, 1024))
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return kit.Image(t, kit.Busybox(t, nil), nil, l)
}

func TestLayersThatABuildPullsAreCheckedAsThoseOfAPull(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	r := kit.StartRegistry(t, nil)
	redirect := r.Push("redirect", hostile(t, tar.Header{
		Name: "marked/", Typeflag: tar.TypeDir, Mode: 0o755, Format: tar.FormatPAX,
		PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.kept": "1"},
	}))
	long := r.Push("long", hostile(t, tar.Header{Name: strings.Repeat("d/", 2100) + "f", Typeflag: tar.TypeReg, Mode: 0o644, Format: tar.FormatPAX}))
	out := tryBuild(t, d, "-t", "made", files(t, map[string]string{"Dockerfile": "FROM " + redirect + "\nRUN true\n"}))
	if out.Code != 0 {
		t.Fatalf("exit code %d\n%s", out.Code, out.Stderr)
	}
	seen := 0
	err := filepath.WalkDir(d.DataRoot+"/images", func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Name() == "marked" {
			seen++
			for _, name := range []string{"trusted.overlay.redirect", "trusted.overlay.opaque"} {
				if n, err := unix.Lgetxattr(path, name, make([]byte, 100)); err == nil {
					t.Errorf("%s has the attribute %s of %d bytes", path, name, n)
				}
			}
		}
		return nil
	})
	if err != nil || seen == 0 {
		t.Fatalf("the layer is not unpacked: %v", err)
	}
	out = tryBuild(t, d, files(t, map[string]string{"Dockerfile": "FROM " + long + "\nRUN true\n"}))
	if out.Code == 0 || !strings.Contains(out.Stderr, "failed to register layer") {
		t.Errorf("a path that can't be unpacked: exit code %d\n%s", out.Code, out.Stderr)
	}
}

func TestSecretsOfABuildNeverReachTheDisk(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	const word = "a-word-that-nobody-else-uses-8471"
	// Steps that fail are recorded in other places, and their words are in an error.
	dir := files(t, map[string]string{
		"Dockerfile": "FROM base\nRUN --mount=type=secret,id=s --mount=type=secret,id=e,env=E --mount=type=ssh grep -q 8471 /run/secrets/s && test -n \"$E\" && echo begun >&2 && sleep 1.0471\nRUN --mount=type=secret,id=s,target=/at/a/place cat /at/a/place | wc -c >/n\n",
		"fails":      "FROM base\nRUN --mount=type=secret,id=s --mount=type=secret,id=e,env=E test -n \"$E\" && exit 3\n",
	})
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(word), 0o600); err != nil {
		t.Fatal(err)
	}
	key := sshKey(t)
	pem, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	hidden := map[string][]byte{"secret": []byte(word), "key": bytes.Split(pem, []byte("\n"))[1]}
	find := func(when string, roots ...string) {
		t.Helper()
		for _, root := range roots {
			err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
				if err != nil || !e.Type().IsRegular() {
					return nil
				}
				if strings.Contains(path, "/rootfs/proc/") || strings.Contains(path, "/rootfs/sys/") {
					return nil
				}
				text, err := os.ReadFile(path)
				if z, zErr := gzip.NewReader(bytes.NewReader(text)); err == nil && zErr == nil {
					text, _ = io.ReadAll(z)
				}
				for what, word := range hidden {
					if bytes.Contains(text, word) {
						t.Errorf("%s: %s has the %s", when, path, what)
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
	out := t.TempDir()
	with := []string{"--progress=plain", "--secret", "id=s,src=" + secret, "--secret", "id=e,src=" + secret, "--ssh", "default=" + key}
	b := begin(t, d, nil, append(with, "-t", "made", "--provenance=mode=max", "--cache-to", "type=local,mode=max,dest="+filepath.Join(out, "cache"), "--metadata-file", filepath.Join(out, "metadata"), dir)...)
	kit.Eventually(t, "the step runs", func() bool { return len(processes(t, "1.0471")) > 0 || len(d.Docker("images", "-q", "made")) > 0 })
	if err := b.end(); err != nil {
		t.Fatalf("%v\n%s", err, &b.seen)
	}
	failed := begin(t, d, nil, append(with, "-f", dir+"/fails", dir)...)
	if err := failed.end(); err == nil {
		t.Error("a step that fails")
	}
	d.Docker("save", "-o", filepath.Join(out, "saved"), "made")
	find("after the build", d.DataRoot, d.ExecRoot, out)
	said := d.Docker("history", "--no-trunc", "made") + d.Log() + b.seen.String() + failed.seen.String()
	for _, ref := range strings.Fields(d.Docker("buildx", "history", "ls", "--format", "{{.Ref}}")) {
		for _, of := range []string{"logs", "inspect"} {
			r := d.TryDocker("buildx", "history", of, filepath.Base(ref))
			said += r.Stdout + r.Stderr
		}
	}
	for what, word := range hidden {
		if strings.Contains(said, string(word)) {
			t.Errorf("the history, a log or the output has the %s", what)
		}
	}
	if got := d.Docker("run", "--rm", "made", "sh", "-c", "cat /n; ls /run/secrets /at/a 2>/dev/null | grep -v : || true"); strings.TrimSpace(got) != "33" {
		t.Errorf("the image has %q", got)
	}
	// A secret of a process that is killed is gone with the mount that it is in.
	killed := begin(t, d, nil, append(with, "--no-cache", dir)...)
	kit.Eventually(t, "the step runs", func() bool { return len(processes(t, "1.0471")) > 0 })
	kit.Kill(t, builder(t, d))
	_ = killed.end()
	d.Restart()
	kit.Eventually(t, "the step ends", func() bool { return len(processes(t, "1.0471")) == 0 })
	nothingLeft(t, d)
	find("after a kill", d.DataRoot, d.ExecRoot)
}

// onDisk starts a daemon whose data root is a file system of its own, and returns a
// function that tells how many bytes of it are free.
func onDisk(t *testing.T, size string) (*kit.Daemon, func() int64) {
	t.Helper()
	kit.Binary(t, "holdfast-build")
	d := kit.New(t, kit.Options{})
	if err := os.MkdirAll(d.DataRoot, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", d.DataRoot, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Term()
		if err := unix.Unmount(d.DataRoot, 0); err != nil {
			t.Error(err)
		}
	})
	d.Start()
	prepare(t, d)
	return d, func() int64 {
		var st unix.Statfs_t
		if err := unix.Statfs(d.DataRoot, &st); err != nil {
			t.Fatal(err)
		}
		return int64(st.Bavail) * st.Bsize
	}
}

func TestFullDiskEndsABuildAndLeavesNothing(t *testing.T) {
	t.Parallel()
	d, free := onDisk(t, "64m")
	small := files(t, map[string]string{"Dockerfile": "FROM base\nRUN echo x >/x\n"})
	if r := classic(d, "-t", "small", small); r.Code != 0 {
		t.Fatalf("%s%s", r.Stdout, r.Stderr)
	}
	before := free()
	r := classic(d, "-t", "big", files(t, map[string]string{"Dockerfile": "FROM base\nRUN head -c 80000000 /dev/urandom >/big\n"}))
	if r.Code == 0 || !strings.Contains(r.Stdout+r.Stderr, "No space left") && !strings.Contains(r.Stdout+r.Stderr, "I/O error") { // overlayfs on tmpfs says EIO
		t.Errorf("exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	kit.Eventually(t, "what the build wrote is removed", func() bool { return free() > before-2<<20 })
	// A layer that can be written but not packed.
	r = classic(d, "-t", "big", files(t, map[string]string{"Dockerfile": "FROM base\nRUN head -c 40000000 /dev/urandom >/big\n"}))
	if r.Code == 0 || !strings.Contains(r.Stdout+r.Stderr, "no space left") {
		t.Errorf("exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	d.Docker("builder", "prune", "-af")
	kit.Eventually(t, "what the build wrote is removed", func() bool { return free() > before-2<<20 })
	if r := classic(d, "--no-cache", "-t", "small", small); r.Code != 0 {
		t.Errorf("a small build after that: %s%s", r.Stdout, r.Stderr)
	}
}
