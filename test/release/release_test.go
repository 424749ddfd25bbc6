// SPDX-License-Identifier: Apache-2.0

// Package release tests how a release is made. Equal sources must give equal
// bytes, and nothing may be built or tagged that differs from the changelog and
// the repository. It needs git and the Go toolchain, and no root.
package release

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func moduleRoot(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(strings.TrimSpace(string(out)))
}

// copyTree copies directories and files of the module into dir.
func copyTree(t *testing.T, dir string, names ...string) {
	t.Helper()
	root := moduleRoot(t)
	for _, name := range names {
		err := filepath.WalkDir(filepath.Join(root, name), func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			to := filepath.Join(dir, rel)
			if e.IsDir() {
				return os.MkdirAll(to, 0o755)
			}
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(to, raw, info.Mode().Perm())
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// run runs a command in dir and returns its output, stdout and stderr together.
func run(dir string, env []string, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	// The variables of a "make" that runs the tests must not reach the "make"
	// under test.
	for _, v := range os.Environ() {
		switch key, _, _ := strings.Cut(v, "="); key {
		case "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL", "VERSION", "COMMIT", "BUILT", "TAG", "VERIFY", "PLATFORMS":
		default:
			if !strings.HasPrefix(key, "GIT_") {
				cmd.Env = append(cmd.Env, v)
			}
		}
	}
	cmd.Env = append(cmd.Env,
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=Test", "GIT_AUTHOR_EMAIL=test@example.org", "GIT_AUTHOR_DATE=2026-01-02T03:04:05Z",
		"GIT_COMMITTER_NAME=Test", "GIT_COMMITTER_EMAIL=test@example.org", "GIT_COMMITTER_DATE=2026-01-02T03:04:05Z")
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func must(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	out, err := run(dir, nil, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// TestTwoBuildsAreTheSame builds the smallest of our binaries with the Makefile
// in two directories whose paths differ in length.
func TestTwoBuildsAreTheSame(t *testing.T) {
	var sums [2][sha256.Size]byte
	for i, name := range []string{"a", "another/folder"} {
		dir := filepath.Join(t.TempDir(), name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		copyTree(t, dir, "Makefile", "go.mod", "go.sum", "cmd/holdfast-shim", "internal")
		must(t, dir, "make", "build", "BINARIES=holdfast-shim", "VERSION=1.2.3", "COMMIT=0123456789ab", "BUILT=2026-01-02T03:04:05Z")
		raw, err := os.ReadFile(filepath.Join(dir, "bin", "holdfast-shim"))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(raw, []byte(dir)) {
			t.Errorf("the binary contains the path of its build directory, %s", dir)
		}
		if out := must(t, dir, "bin/holdfast-shim", "--version"); out != "holdfast-shim 1.2.3\n" {
			t.Errorf("the version is %q", out)
		}
		sums[i] = sha256.Sum256(raw)
	}
	if sums[0] != sums[1] {
		t.Error("two builds of the same source differ")
	}
}

const changelog = `# Changelog

## [Unreleased]

## [1.1.0] - 2026-02-03

- more

## [1.0.0] - 2026-01-02

- all
`

// repository makes a clean repository with the release script. A small program
// and documents replace ours.
func repository(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	copyTree(t, dir, "Makefile", ".gitignore", ".ci/release")
	for name, text := range map[string]string{
		"go.mod":                    "module holdfast\n\ngo 1.26\n",
		"CHANGELOG.md":              changelog,
		"LICENSE":                   "licence\n",
		"README.md":                 "readme\n",
		"SECURITY.md":               "security\n",
		"docs/a.md":                 "page\n",
		"contrib/systemd/x":         "unit\n",
		"contrib/sysusers.d/x":      "users\n",
		"cmd/holdfast-init/main.go": "package main\n\nvar release string\n\nfunc main() { println(release) }\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	must(t, dir, "git", "init", "-q", "-b", "main")
	must(t, dir, "git", "add", "-A")
	must(t, dir, "git", "commit", "-q", "-m", "first")
	return dir
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func commit(t *testing.T, dir string) {
	t.Helper()
	must(t, dir, "git", "add", "-A")
	must(t, dir, "git", "commit", "-q", "-m", "more")
}

func TestReleaseIsRefusedWithAReason(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(t *testing.T, dir string)
		args    []string
		want    string
	}{
		"changed file": {
			func(t *testing.T, dir string) { write(t, dir, "README.md", "other\n") },
			nil, "the work tree has changes that are not committed",
		},
		"new file": {
			func(t *testing.T, dir string) { write(t, dir, "new.go", "package x\n") },
			nil, "?? new.go",
		},
		"no heading": {
			func(t *testing.T, dir string) { write(t, dir, "CHANGELOG.md", "# Changelog\n"); commit(t, dir) },
			nil, `"" is not a version: want X.Y.Z`,
		},
		"heading without a date": {
			func(t *testing.T, dir string) {
				write(t, dir, "CHANGELOG.md", "## [1.2.0]\n\n"+changelog)
				commit(t, dir)
			},
			[]string{"VERSION=1.2.0"}, `CHANGELOG.md has no heading "## [1.2.0] - YYYY-MM-DD"`,
		},
		"no version": {
			func(*testing.T, string) {}, []string{"VERSION=next"}, `"next" is not a version`,
		},
		"tag here, and one is asked for": {
			func(t *testing.T, dir string) { must(t, dir, "git", "tag", "v1.1.0") },
			[]string{"TAG=1"}, "the tag v1.1.0 exists already",
		},
		"tag elsewhere": {
			func(t *testing.T, dir string) {
				must(t, dir, "git", "tag", "v1.1.0")
				write(t, dir, "more.txt", "more\n")
				commit(t, dir)
			},
			nil, "the tag v1.1.0 is on another commit",
		},
		"toolchain that cannot be had": {
			func(t *testing.T, dir string) {
				write(t, dir, "go.mod", "module holdfast\n\ngo 1.26\n\ntoolchain go1.26.999\n")
				commit(t, dir)
			},
			[]string{"GOPROXY=off"}, "go.mod requires go1.26.999",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := repository(t)
			tc.prepare(t, dir)
			out, err := run(dir, nil, "make", append([]string{"release"}, tc.args...)...)
			if err == nil || !strings.Contains(out, tc.want) {
				t.Errorf("%v, want %q in\n%s", err, tc.want, out)
			}
			if _, err := os.Stat(filepath.Join(dir, "dist")); err == nil {
				t.Error("something was built")
			}
			if tags := must(t, dir, "git", "tag"); strings.Contains(tags, "1.2.0") {
				t.Errorf("tagged: %s", tags)
			}
		})
	}
}

func TestReleaseIsReproducible(t *testing.T) {
	var sums []string
	for _, umask := range []string{"022", "077"} {
		dir := repository(t)
		// One binary is enough, because all are built in the same way.
		out, err := run(dir, nil, "sh", "-c", "umask "+umask+" && make release BINARIES=holdfast-init VERIFY=0 TAG=1")
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		raw, err := os.ReadFile(filepath.Join(dir, "dist", "SHA256SUMS"))
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, string(raw))

		if got := must(t, dir, "git", "describe", "--exact-match"); got != "v1.1.0\n" {
			t.Errorf("the commit is %s", got)
		}
		for _, machine := range []string{"amd64", "arm64"} {
			checkArchive(t, dir, "holdfast-1.1.0-linux-"+machine, string(raw))
		}
		// A tagged commit may be built again.
		if out, err := run(dir, nil, "make", "release", "BINARIES=holdfast-init", "VERIFY=0", "PLATFORMS=linux/amd64"); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		first, _, _ := strings.Cut(string(raw), "\n")
		if again, err := os.ReadFile(filepath.Join(dir, "dist", "SHA256SUMS")); err != nil || string(again) != first+"\n" {
			t.Errorf("built again: %v\n%s\n%s", err, first, again)
		}
	}
	if sums[0] != sums[1] {
		t.Errorf("two releases of the same commit differ:\n%s\n%s", sums[0], sums[1])
	}
}

func checkArchive(t *testing.T, dir, name, sums string) {
	t.Helper()
	path := filepath.Join(dir, "dist", name+".tar.gz")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	if want := hex.EncodeToString(sum[:]) + "  " + name + ".tar.gz\n"; !strings.Contains(sums, want) {
		t.Errorf("SHA256SUMS does not contain %q:\n%s", want, sums)
	}
	list := must(t, dir, "tar", "--utc", "--full-time", "--numeric-owner", "-tvzf", path)
	for _, file := range []string{"holdfast-init", "LICENSE", "README.md", "CHANGELOG.md", "SECURITY.md", "docs/a.md", "systemd/x", "sysusers.d/x"} {
		if !strings.Contains(list, " "+name+"/"+file+"\n") {
			t.Errorf("%s has no %s:\n%s", name, file, list)
		}
	}
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); f[1] != "0/0" || f[3]+" "+f[4] != "2026-01-02 03:04:05" {
			t.Errorf("%s contains the owner or the time of the build: %s", name, line)
		}
	}
}
