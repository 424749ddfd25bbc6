// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

func TestMain(m *testing.M) { kit.Main(m) }

//go:embed versions.txt
var versionsText string

// version is a release of the engine.
type version struct {
	name      string
	holdfastd string // its shim is in the same directory
}

func listed() []string {
	var out []string
	for line := range strings.Lines(versionsText) {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	return out
}

var all struct {
	sync.Once
	versions []version
	errs     []error
}

// versions returns the listed releases, from the oldest, and then the one of
// the work tree.
func versions(t *testing.T) []version {
	t.Helper()
	all.Do(func() {
		names := listed()
		all.versions, all.errs = make([]version, len(names)), make([]error, len(names))
		root := moduleRoot(t)
		var wg sync.WaitGroup
		two := make(chan struct{}, 2) // at most two builds at a time, because each uses all cores
		for i, name := range names {
			wg.Go(func() {
				two <- struct{}{}
				defer func() { <-two }()
				all.versions[i], all.errs[i] = build(root, name)
			})
		}
		wg.Wait()
		all.versions = append(all.versions, version{"tree", kit.Binary(t, "holdfastd")})
		kit.Binary(t, "holdfast-shim")
		kit.Binary(t, "holdfast-init")
	})
	for _, err := range all.errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	return all.versions
}

func moduleRoot(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatalf("go env GOMOD: %v", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out)))
}

// build builds a commit's daemon and shim unless they exist.
func build(root, name string) (version, error) {
	fail := func(what string, err error) (version, error) {
		return version{}, fmt.Errorf("version %s: %s: %w", name, what, err)
	}
	git := func(args ...string) *exec.Cmd {
		// The clone may belong to another user than the one who tests it.
		return exec.Command("git", append([]string{"-c", "safe.directory=*", "-C", root}, args...)...)
	}
	var words bytes.Buffer
	rev := git("rev-parse", "--verify", "--quiet", name+"^{commit}")
	rev.Stderr = &words
	out, err := rev.Output()
	if err != nil {
		return fail("this commit does not exist here; the test needs a clone with the whole history", fmt.Errorf("%w %s", err, &words))
	}
	commit := strings.TrimSpace(string(out))
	cache := filepath.Join(root, ".cache", "versions")
	dir := filepath.Join(cache, commit)
	v := version{name: name[:min(7, len(name))], holdfastd: dir + "/holdfastd"}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return fail("cache", err)
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fail("cache", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fail("lock of the cache", err)
	}
	if _, err := os.Stat(v.holdfastd); err == nil {
		return v, nil
	}
	source, bins := dir+".source", dir+".new"
	for _, d := range []string{source, bins} {
		if err := os.RemoveAll(d); err != nil {
			return fail("cache", err)
		}
		if err := os.Mkdir(d, 0o755); err != nil {
			return fail("cache", err)
		}
	}
	defer os.RemoveAll(source)
	tar := source + "/.tar"
	if out, err := git("archive", "--output", tar, "--format", "tar", commit).CombinedOutput(); err != nil {
		return fail("its files", fmt.Errorf("%w: %s", err, out))
	}
	if out, err := exec.Command("tar", "-xf", tar, "-C", source).CombinedOutput(); err != nil {
		return fail("its files", fmt.Errorf("%w: %s", err, out))
	}
	args := []string{"build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w -X holdfast/internal/version.Version=" + v.name + " -X main.release=" + v.name,
		"-o", bins + "/", "./cmd/holdfastd", "./cmd/holdfast-shim", "./cmd/holdfast-init"}
	// The first releases have no swarm mode.
	if _, err := os.Stat(source + "/cmd/holdfast-swarm"); err == nil {
		args = append(args, "./cmd/holdfast-swarm")
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fail("build", fmt.Errorf("%w\n%s", err, out))
	}
	if err := os.Rename(bins, dir); err != nil {
		return fail("cache", err)
	}
	return v, nil
}
