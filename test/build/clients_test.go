// SPDX-License-Identifier: Apache-2.0

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

// Each client builds the same directory with an argument, and a Dockerfile with a step
// that fails, and prints what it is told.
func clientsContext(t *testing.T) string {
	t.Helper()
	return files(t, map[string]string{
		"Dockerfile": "FROM base\nARG WORD\nCOPY file /file\nRUN echo $WORD >/word\n", "file": "copied\n",
		"fails": "FROM base\nRUN echo last words; exit 3\n", ".dockerignore": "ignored\n", "ignored": "",
	})
}

// runClient runs a client's program and wants parts of its output.
func runClient(t *testing.T, d *kit.Daemon, cmd *exec.Cmd, parts ...string) {
	t.Helper()
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+d.Host, "DOCKER_CONFIG="+d.Root+"/docker")
	r := d.Run(cmd)
	if r.Code != 0 {
		t.Fatalf("exit code %d\n%s%s\n%s", r.Code, r.Stdout, r.Stderr, buildLog(d))
	}
	for _, want := range parts {
		if !strings.Contains(r.Stdout, want) {
			t.Errorf("the client does not print %q:\n%s%s", want, r.Stdout, r.Stderr)
		}
	}
}

func TestDockersModuleForPythonBuilds(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	const program = `
import docker, sys
c = docker.from_env()
image, log = c.images.build(path=sys.argv[1], tag="made:py", buildargs={"WORD": "there"}, labels={"a": "b"}, rm=True)
print("tags", image.tags, image.labels)
print("".join(line.get("stream", "") for line in log))
print("prints", c.containers.run("made:py", ["cat", "/word", "/file"], remove=True))
try:
    c.images.build(path=sys.argv[1], dockerfile="fails")
except docker.errors.BuildError as e:
    print("fails:", e.msg, [line for line in e.build_log if "stream" in line])
print("deleted", c.api.prune_builds()["SpaceReclaimed"] > 0)
`
	runClient(t, d, exec.Command("python3", "-c", program, clientsContext(t)),
		"tags ['made:py'] {'a': 'b'}", "Step 1/4 : FROM base", "Successfully tagged made:py", `prints b'there\ncopied\n'`,
		"fails: The command '/bin/sh -c echo last words; exit 3' returned a non-zero code: 3", "last words", "deleted True")
}

func TestDockerodeBuilds(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	const program = `
const Docker = require(process.argv[1] + '/dockerode')
const docker = new Docker({socketPath: process.argv[2]})
const build = async (options) => {
	const stream = await docker.buildImage({context: process.argv[3], src: ['Dockerfile', 'fails', 'file']}, options)
	return new Promise((resolve, reject) => docker.modem.followProgress(stream, (err, out) => err ? reject(err) : resolve(out)))
}
const main = async () => {
	const out = await build({t: 'made:js', buildargs: {WORD: 'there'}, labels: {a: 'b'}})
	console.log(out.map((line) => line.stream || '').join(''))
	console.log('aux', out.some((line) => line.aux && line.aux.ID.startsWith('sha256:')))
	console.log('labels', JSON.stringify((await docker.getImage('made:js').inspect()).Config.Labels))
	await build({dockerfile: 'fails'}).then((out) => {
		const last = out[out.length - 1]
		console.log('fails:', last.error, JSON.stringify(last.errorDetail))
	}, (err) => console.log('fails:', err.message))
}
main().catch((err) => { console.error(err); process.exit(1) })
`
	modules, err := filepath.Abs("../../.cache/node/node_modules")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(modules, "dockerode")); err != nil {
		t.Fatalf("%v: run make tools", err)
	}
	runClient(t, d, exec.Command("node", "-e", program, modules, d.Socket, clientsContext(t)),
		"Step 1/4 : FROM base", "Successfully tagged made:js", "aux true", `labels {"a":"b"}`,
		"fails: The command '/bin/sh -c echo last words; exit 3' returned a non-zero code: 3")
	if got := d.Docker("run", "--rm", "made:js", "cat", "/word", "/file"); got != "there\ncopied" {
		t.Errorf("the image has %q", got)
	}
}

func TestComposeBuilds(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	plugin := filepath.Join(d.Root, "docker", "cli-plugins", "docker-compose")
	if err := os.Symlink(kit.Tool(t, "docker-compose"), plugin); err != nil {
		t.Fatal(err)
	}
	dir := files(t, map[string]string{
		"compose.yaml": `name: built
services:
  one:
    build:
      context: one
      args: {WORD: first}
  two:
    build:
      context: one
      target: second
      dockerfile_inline: |
        FROM base AS first
        FROM first AS second
        RUN echo second >/word
        CMD ["cat", "/word"]
    image: named:two
`,
		"one/Dockerfile": "FROM base\nARG WORD\nRUN echo $WORD >/word\nCMD [\"cat\", \"/word\"]\n",
	})
	compose := func(env []string, args ...string) kit.Result {
		t.Helper()
		cmd := d.DockerCommand(context.Background(), append([]string{"compose", "--progress=plain"}, args...)...)
		cmd.Dir = dir
		cmd.Env = append(cmd.Env, env...)
		r := d.Run(cmd)
		if r.Code != 0 {
			t.Fatalf("compose %s: exit code %d\n%s%s\n%s", args, r.Code, r.Stdout, r.Stderr, buildLog(d))
		}
		return r
	}
	for _, c := range []struct {
		name     string
		env      []string
		services []string
		images   map[string]string
	}{
		{"bake", []string{"COMPOSE_BAKE=true"}, nil, map[string]string{"built-one": "first", "named:two": "second"}},
		{"BuildKit", []string{"COMPOSE_BAKE=false"}, nil, map[string]string{"built-one": "first", "named:two": "second"}},
		// Without BuildKit compose does not send a Dockerfile of its own.
		{"old builder", []string{"DOCKER_BUILDKIT=0"}, []string{"one"}, map[string]string{"built-one": "first"}},
	} {
		compose(c.env, append([]string{"build", "--no-cache"}, c.services...)...)
		for image, want := range c.images {
			if got := d.Docker("run", "--rm", image); got != want {
				t.Errorf("%s: the image %s prints %q", c.name, image, got)
			}
			d.Docker("image", "rm", image)
		}
	}
	if r := compose(nil, "up", "--build"); !strings.Contains(r.Stdout, "first") || !strings.Contains(r.Stdout, "second") {
		t.Errorf("up --build prints\n%s%s", r.Stdout, r.Stderr)
	}
	if err := os.WriteFile(filepath.Join(dir, "one", "Dockerfile"), []byte("FROM base\nCMD [\"echo\", \"changed\"]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := compose(nil, "up", "--build"); !strings.Contains(r.Stdout, "changed") {
		t.Errorf("after a change up --build prints\n%s%s", r.Stdout, r.Stderr)
	}
	compose(nil, "down")
}
