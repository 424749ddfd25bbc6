// SPDX-License-Identifier: Apache-2.0

package build

import (
	"fmt"
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
	for _, plugin := range []bool{true, false} {
		t.Run(fmt.Sprintf("plugin=%v", plugin), func(t *testing.T) {
			if !plugin {
				if err := os.RemoveAll(filepath.Join(d.Root, "docker", "cli-plugins")); err != nil {
					t.Fatal(err)
				}
			}
			r := d.TryHoldfast("build", "-t", "built", dir)
			if r.Code != 0 || strings.Contains(r.Stderr, "exporting to image") != plugin || strings.Contains(r.Stderr, "not installed") == plugin {
				t.Fatalf("exit code %d, %s%s", r.Code, r.Stdout, r.Stderr)
			}
			if got := d.Holdfast("run", "--rm", "built", "cat", "/file"); got != "made" {
				t.Errorf("the image has %q", got)
			}
			d.Holdfast("image", "rm", "built")
		})
	}
}

func TestWhatCantBeBuiltIsRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	dir := files(t, map[string]string{"Dockerfile": "FROM base\nRUN true\n", "other": "FROM --platform=linux/riscv64 scratch\nCOPY other /\nRUN [\"/x\"]\n", "insecure": "FROM base\nRUN --security=insecure true\n"})
	for _, c := range []struct {
		name, words string
		args        []string
	}{
		{"platform", "qemu-riscv64", []string{"-f", filepath.Join(dir, "other"), "--platform", "linux/riscv64", dir}},
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
