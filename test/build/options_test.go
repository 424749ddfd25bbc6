// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/kit"
)

func TestHoldfastBuildsWithAndWithoutThePlugin(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	dir := files(t, map[string]string{"Dockerfile": "FROM base\nRUN echo made >/file\n"})
	users := filepath.Join(d.Root, "docker", "cli-plugins")
	// The directory that belongs to the program, in a prefix of its own.
	prefix := t.TempDir()
	ours := filepath.Join(prefix, "lib", "holdfast", "cli-plugins")
	for _, path := range []string{filepath.Join(prefix, "bin"), ours} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile(kit.Binary(t, "holdfast"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(prefix, "bin", "holdfast"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	holdfast := func(args ...string) kit.Result {
		cmd := d.HoldfastCommand(context.Background(), args...)
		cmd.Path = filepath.Join(prefix, "bin", "holdfast")
		return d.Run(cmd)
	}
	check := func(name string, plugin bool) {
		t.Helper()
		r := holdfast("build", "-t", "built", dir)
		if r.Code != 0 || strings.Contains(r.Stderr, "exporting to image") != plugin || strings.Contains(r.Stderr, "not installed") == plugin {
			t.Fatalf("%s: exit code %d, %s%s", name, r.Code, r.Stdout, r.Stderr)
		}
		if !plugin && (!strings.Contains(r.Stderr, users) || !strings.Contains(r.Stderr, ours)) {
			t.Errorf("%s: it does not say where to install the plugin: %s", name, r.Stderr)
		}
		if got := d.Holdfast("run", "--rm", "built", "cat", "/file"); got != "made" {
			t.Errorf("%s: the image has %q", name, got)
		}
		d.Holdfast("image", "rm", "built")
	}
	check("in the user's directory", true)
	if err := os.Remove(filepath.Join(users, "docker-buildx")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(kit.Tool(t, "docker-buildx"), filepath.Join(ours, "docker-buildx")); err != nil {
		t.Fatal(err)
	}
	check("in our directory", true)
	if r := holdfast("buildx", "version"); r.Code != 0 || !strings.Contains(r.Stdout, "buildx") {
		t.Errorf("holdfast buildx: %+v", r)
	}
	if r := holdfast("buildx", "--help"); r.Code != 0 || !strings.Contains(r.Stdout, "bake") {
		t.Errorf("holdfast buildx --help: %+v", r)
	}
	if text, err := os.ReadFile(filepath.Join(d.Root, "docker", "config.json")); err == nil && strings.Contains(string(text), ours) {
		t.Errorf("our directory is in the configuration: %s", text)
	}
	if err := os.Remove(filepath.Join(ours, "docker-buildx")); err != nil {
		t.Fatal(err)
	}
	check("nowhere", false)
	// It has the rest of Docker's first builder: the whole context is sent, and what needs
	// the plugin is refused.
	if r := holdfast("build", "--secret", "id=x", dir); r.Code == 0 || !strings.Contains(r.Stderr, "secret") {
		t.Errorf("an option of the plugin: %+v", r)
	}
}

func TestWhatCantBeBuiltIsRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	dir := files(t, map[string]string{"Dockerfile": "FROM base\nRUN true\n", "other": "FROM --platform=linux/sparc64 scratch\nCOPY other /\nRUN [\"/x\"]\n", "insecure": "FROM base\nRUN --security=insecure true\n"})
	for _, c := range []struct {
		name, words string
		args        []string
	}{
		{"platform", "qemu-sparc64", []string{"-f", filepath.Join(dir, "other"), "--platform", "linux/sparc64", dir}},
		{"entitlement", "security.insecure", []string{"--allow", "security.insecure", "-f", filepath.Join(dir, "insecure"), dir}},
		{"no Dockerfile", "no such file", []string{"-f", filepath.Join(dir, "none"), dir}},
		{"no base", "not-there", []string{files(t, map[string]string{"Dockerfile": "FROM localhost:1/not-there\n"})}},
		{"context climbs out", "not found", []string{files(t, map[string]string{"Dockerfile": "FROM base\nCOPY ../../etc/passwd /x\n"})}},
	} {
		r := d.TryDocker(append([]string{"build", "--progress=plain"}, c.args...)...)
		if r.Code == 0 || !strings.Contains(r.Stderr, c.words) {
			t.Errorf("%s: exit code %d, %s, want %q", c.name, r.Code, r.Stderr, c.words)
		}
	}
	d.WriteConfig(map[string]any{"builder": map[string]any{"entitlements": map[string]any{"security-insecure": true}}})
	d.Restart()
	r := d.TryDocker("build", "--allow", "security.insecure", "-f", filepath.Join(dir, "insecure"), dir)
	if r.Code != 0 {
		t.Errorf("an entitlement that is configured: exit code %d, %s", r.Code, r.Stderr)
	}
}

func TestDamagedCacheIsSetAside(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	dir := files(t, map[string]string{"Dockerfile": "FROM base\nRUN echo made >/file\n"})
	build(t, d, "-t", "one", dir)
	pid := builder(t, d)
	d.Term()
	kit.Eventually(t, "the build process ends with its daemon", func() bool { return !kit.Alive(pid) })
	for _, name := range []string{"cache.db", "metadata_v2.db", "history.db"} {
		path := filepath.Join(d.DataRoot, "build", name)
		if err := os.WriteFile(path, []byte(strings.Repeat("damage ", 5000)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d.Start()
	if got := d.Docker("run", "--rm", "one", "cat", "/file"); got != "made" {
		t.Errorf("an image of an earlier build: %q", got)
	}
	build(t, d, "-t", "two", dir)
	if got := d.Docker("run", "--rm", "two", "cat", "/file"); got != "made" {
		t.Errorf("an image that is built with a new cache: %q", got)
	}
	if log := buildLog(d); !strings.Contains(log, "set aside") {
		t.Errorf("nothing is said of the damage:\n%s", log)
	}
}
