// SPDX-License-Identifier: Apache-2.0

// Package build tests image builds with Docker's own client and buildx.
package build

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/kit"
)

func TestMain(m *testing.M) { kit.Main(m) }

// start starts a daemon that can build, with a base image called base.
func start(t *testing.T, o kit.Options) *kit.Daemon {
	t.Helper()
	kit.Binary(t, "holdfast-build")
	d := kit.Start(t, o)
	prepare(t, d)
	return d
}

// prepare gives a daemon the base image, and its clients the plugin.
func prepare(t *testing.T, d *kit.Daemon) {
	t.Helper()
	d.Load("base:latest", kit.Busybox(t, nil))
	plugins := filepath.Join(d.Root, "docker", "cli-plugins")
	if err := os.MkdirAll(plugins, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(kit.Tool(t, "docker-buildx"), filepath.Join(plugins, "docker-buildx")); err != nil {
		t.Fatal(err)
	}
}

// files writes the files of a build's context and returns their directory.
func files(t *testing.T, all map[string]string) string { return kit.Files(t, all) }

// build runs buildx build and returns what it prints.
func build(t *testing.T, d *kit.Daemon, args ...string) string {
	t.Helper()
	r := tryBuild(t, d, args...)
	if r.Code != 0 {
		t.Fatalf("buildx build %s: exit code %d\n%s%s\n%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr, buildLog(d))
	}
	return r.Stdout + r.Stderr
}

// tryBuild is build, but never fails the test.
func tryBuild(t *testing.T, d *kit.Daemon, args ...string) kit.Result {
	t.Helper()
	return d.Run(buildCommand(t, d, args...))
}

// buildCommand returns buildx build, not started. The plugin is run by itself, because
// docker build starts it several times. The tests of what happens during a build run
// docker build.
func buildCommand(t *testing.T, d *kit.Daemon, args ...string) *exec.Cmd {
	t.Helper()
	cmd := d.DockerCommand(context.Background(), append([]string{"build", "--progress=plain"}, args...)...)
	cmd.Path = kit.Tool(t, "docker-buildx")
	cmd.Args[0] = cmd.Path
	return cmd
}

// buildLog is the log of the build process.
func buildLog(d *kit.Daemon) string {
	text, _ := os.ReadFile(d.ExecRoot + "/build/build.log")
	return "log of the build process:\n" + string(text)
}

func TestBuiltImageRunsAtOnceFromTheSameLayers(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	dir := files(t, map[string]string{
		"Dockerfile": `FROM base AS one
ARG WORD=none
RUN echo "$WORD" >/word && id -u >/uid
FROM base
COPY --from=one /word /uid /
COPY hello /hello
RUN --network=none ip -o link | wc -l >/links
RUN ip -o link | wc -l >/default-links && grep Seccomp: /proc/self/status >/seccomp
CMD ["cat", "/word", "/hello"]
`,
		"hello": "hello\n",
	})
	build(t, d, "-t", "app:1", "-t", "app:2", "--build-arg", "WORD=there", dir)
	if got := d.Docker("run", "--rm", "app:1"); got != "there\nhello" {
		t.Errorf("the built image prints %q", got)
	}
	if got := d.Docker("run", "--rm", "app:2", "cat", "/links", "/default-links", "/seccomp"); got != "1\n2\nSeccomp:\t2" {
		t.Errorf("links without network, links, seccomp of RUN steps: %q", got)
	}
	again := build(t, d, "-t", "app:3", "--build-arg", "WORD=there", dir)
	if n := strings.Count(again, "CACHED"); n < 5 {
		t.Errorf("%d steps of a repeated build are cached, want 5:\n%s", n, again)
	}
	out, err := exec.CommandContext(context.Background(), "sh", "-c", "find "+d.DataRoot+"/images/snapshots -name busybox -size +100k | wc -l").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "1" {
		t.Errorf("the base's layer is unpacked %s times, %v: want once", out, err)
	}
	out, err = exec.CommandContext(context.Background(), "sh", "-c", "find "+d.DataRoot+"/images/snapshots -name default-links | wc -l").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "1" {
		t.Errorf("a built layer is there %s times, %v: want once", out, err)
	}
}

func TestBuiltImageIsAnImageLikeAnyOther(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"overlay2", "vfs"} {
		t.Run(driver, func(t *testing.T) {
			d := start(t, kit.Options{Config: map[string]any{"storage-driver": driver}})
			r := kit.StartRegistry(t, nil)
			name := r.Host + "/built"
			dir := files(t, map[string]string{"Dockerfile": "FROM base\nRUN echo one >/one && rm /www/index.html\nRUN echo two >/two\nENTRYPOINT [\"cat\"]\n"})
			build(t, d, "-t", name, dir)
			d.Docker("push", name)
			archive := filepath.Join(t.TempDir(), "saved.tar")
			d.Docker("save", "-o", archive, name)
			d.Docker("create", "--name", "made", name)
			d.Docker("commit", "made", "committed")
			d.Docker("rm", "made")
			d.Docker("rmi", name)
			d.Docker("builder", "prune", "-af")
			if got := d.Docker("run", "--rm", "committed", "/one", "/two"); got != "one\ntwo" {
				t.Errorf("an image committed on it has %q", got)
			}
			d.Docker("load", "-i", archive)
			if got := d.Docker("run", "--rm", name, "/one", "/two"); got != "one\ntwo" {
				t.Errorf("saved and loaded: %q", got)
			}
			d.Docker("rmi", "-f", name, "committed")
			d.Docker("pull", name)
			if got := d.Docker("run", "--rm", "--entrypoint", "ls", name, "/www"); got != "" {
				t.Errorf("a file that a step has removed is there again: %q", got)
			}
			again := files(t, map[string]string{"Dockerfile": "FROM " + name + "\nRUN cat /two >/three\n"})
			build(t, d, "-t", "above", again)
			if got := d.Docker("run", "--rm", "above", "/one", "/three"); got != "one\ntwo" {
				t.Errorf("an image built on it has %q", got)
			}
		})
	}
}
