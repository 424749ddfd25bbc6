// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"holdfast/test/kit"
)

// nothingLeft waits until no RUN step of a daemon has anything on the host.
func nothingLeft(t *testing.T, d *kit.Daemon) {
	t.Helper()
	kit.Eventually(t, "nothing is left of the steps", func() bool {
		for _, dir := range []string{d.ExecRoot + "/build/net", d.ExecRoot + "/build/runc", d.DataRoot + "/build/cachemounts"} {
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				return false
			}
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		return err == nil && !strings.Contains(string(mounts), d.DataRoot+"/build")
	})
}

func TestBuildIsCancelledByItsID(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	post := func(path string, body io.Reader) *http.Response {
		t.Helper()
		resp, err := d.HTTP().Post("http://x/v1.43"+path, "application/x-tar", body)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	for _, build := range []string{"one", "other"} {
		n := map[string]string{"one": "98765", "other": "98766"}[build]
		resp := post("/build?buildid="+build, bytes.NewReader(archive(t, map[string]string{"Dockerfile": "FROM base\nRUN sleep " + n + "\n"})))
		kit.Eventually(t, "the step runs", func() bool { return len(processes(t, n)) > 0 })
		if got := post("/build/cancel?id=absent", nil); got.StatusCode != http.StatusOK || len(processes(t, n)) == 0 {
			t.Errorf("%s: a build with another ID is cancelled: %s", build, got.Status)
		}
		if got := post("/build/cancel?id="+build, nil); got.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", build, got.Status)
		}
		text, err := io.ReadAll(resp.Body)
		if err != nil || !strings.Contains(string(text), `"error":"build cancelled"`) || strings.Contains(string(text), "Successfully") {
			t.Errorf("%s: %v, %s", build, err, text)
		}
		kit.Eventually(t, "the step ends", func() bool { return len(processes(t, n)) == 0 })
	}
	if got := post("/build/cancel", nil); got.StatusCode != http.StatusBadRequest {
		t.Errorf("without an ID: %s", got.Status)
	}
	nothingLeft(t, d)
}

func TestHealthcheckAndStopSignalOfABuiltImageHaveAnEffect(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	build(t, d, "-t", "made", files(t, map[string]string{"Dockerfile": `FROM base
HEALTHCHECK --interval=100ms --timeout=5s --retries=1 CMD test -e /well
STOPSIGNAL SIGUSR1
CMD ["sh", "-c", "trap 'echo stopped by SIGUSR1; exit 5' USR1; while :; do usleep 10000; done"]
`}))
	d.Docker("run", "-d", "--name", "run", "made")
	health := func(want string) {
		t.Helper()
		kit.Eventually(t, "the container is "+want, func() bool { return d.Docker("inspect", "-f", "{{.State.Health.Status}}", "run") == want })
	}
	health("unhealthy")
	d.Docker("exec", "run", "touch", "/well")
	health("healthy")
	d.Docker("stop", "-t", "60", "run")
	if got := d.Docker("inspect", "-f", "{{.State.ExitCode}}", "run") + d.Docker("logs", "run"); got != "5stopped by SIGUSR1" {
		t.Errorf("after the stop: %q", got)
	}
	d.Docker("rm", "run")
}

func TestFrontendThatLiesEndsItsBuildAlone(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	r := kit.StartRegistry(t, nil)
	for name, c := range map[string]struct{ script, words string }{
		"has no result":  {"exit 0", "frontend|result|return|EOF|closed"},
		"fails":          {"echo last words >&2; exit 7", "exit code: 7"},
		"speaks no gRPC": {"head -c 100000 /dev/urandom", "exit code|EOF|error|preface|closed"},
	} {
		t.Run(name, func(t *testing.T) {
			image := r.Push(strings.ToLower(strings.ReplaceAll(name, " ", "-")), kit.Image(t, kit.Busybox(t, nil), func(c1 *v1.Config) { c1.Entrypoint = []string{"sh", "-c", c.script} }))
			out := tryBuild(t, d, "-t", "made", files(t, map[string]string{"Dockerfile": "# syntax=" + image + "\nFROM base\n"}))
			said := false
			for _, w := range strings.Split(c.words, "|") {
				said = said || strings.Contains(out.Stderr, w)
			}
			if out.Code == 0 || !said {
				t.Errorf("exit code %d, want one of %s:\n%s", out.Code, c.words, out.Stderr)
			}
			nothingLeft(t, d)
		})
	}
	// One that never ends runs until its client leaves.
	hangs := r.Push("hangs", kit.Image(t, kit.Busybox(t, nil), func(c *v1.Config) { c.Entrypoint = []string{"sleep", "98767"} }))
	b := begin(t, d, nil, files(t, map[string]string{"Dockerfile": "# syntax=" + hangs + "\nFROM base\n"}))
	kit.Eventually(t, "the frontend runs", func() bool { return len(processes(t, "98767")) > 0 })
	// The others are not disturbed.
	build(t, d, files(t, map[string]string{"Dockerfile": "FROM base\nRUN true\n"}))
	b.kill()
	_ = b.end()
	kit.Eventually(t, "the frontend ends", func() bool { return len(processes(t, "98767")) == 0 })
	nothingLeft(t, d)
}

func TestStepUsesTheAgentOfItsClient(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	img, _ := teller(t, kit.Arch())
	d.Load("tells:latest", img)
	out := t.TempDir()
	dir := files(t, map[string]string{"Dockerfile": "FROM tells\nRUN --mount=type=ssh,id=two [\"/bin/teller\", \"agent\", \"/two\"]\nRUN --mount=type=ssh [\"/bin/teller\", \"agent\", \"/one\"]\n"})
	build(t, d, "--ssh", "default="+sshKey(t), "--ssh", "two="+sshKey(t)+","+sshKey(t), "-o", "type=local,dest="+out, dir)
	for name, want := range map[string]string{"one": "1\n", "two": "2\n"} {
		if got, err := os.ReadFile(filepath.Join(out, name)); err != nil || string(got) != want {
			t.Errorf("the agent %s has %q keys, %v", name, got, err)
		}
	}
}

func TestDevicesThatStepsRequireAreRefused(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	dir := files(t, map[string]string{"Dockerfile": "FROM base\nRUN --device=example.com/class=one,required true\n", "optional": "FROM base\nRUN --device=example.com/class=one ls /dev\n"})
	for _, args := range [][]string{{dir}, {"--allow", "device", dir}} {
		if r := tryBuild(t, d, args...); r.Code == 0 || !strings.Contains(r.Stderr, "device") {
			t.Errorf("%v: exit code %d\n%s", args, r.Code, r.Stderr)
		}
	}
	build(t, d, "-f", dir+"/optional", dir)
}

// A copy of a sparse file has no holes, so a small file may not fit on the disk.
func TestSparseFileIsCopiedWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	d, free := onDisk(t, "300m")
	dir := files(t, map[string]string{"Dockerfile": `FROM base AS from
ARG SIZE
RUN echo begin >/sparse && truncate -s $SIZE /sparse && echo end >>/sparse
FROM base
COPY --from=from /sparse /sparse
`})
	build(t, d, "-t", "made", "--build-arg", "SIZE=50M", dir)
	if got := d.Docker("run", "--rm", "made", "sh", "-c", "stat -c %s /sparse; head -c 6 /sparse; tail -c 4 /sparse; tr -d '\\0' </sparse | wc -c"); got != "52428804\nbegin\nend\n10" {
		t.Errorf("the copy is %q", got)
	}
	before := free()
	for range 2 {
		r := tryBuild(t, d, "--build-arg", "SIZE=3G", dir)
		if r.Code == 0 || !strings.Contains(r.Stderr, "no space left on device") {
			t.Errorf("a copy that does not fit: exit code %d\n%s", r.Code, r.Stderr)
		}
		kit.Eventually(t, "what the build wrote is removed", func() bool { return free() > before-2<<20 })
	}
	nothingLeft(t, d)
}

func TestNothingIsLeftOfACopyThatIsCutOff(t *testing.T) {
	t.Parallel()
	d, free := onDisk(t, "4g")
	build(t, d, files(t, map[string]string{"Dockerfile": "FROM base\nRUN true\n"})) // unpacks the base
	before := free()
	for name, end := range map[string]func(b *running){
		"cancelled": func(b *running) { b.kill() },
		"killed":    func(*running) { kit.Kill(t, builder(t, d)) },
	} {
		b := begin(t, d, nil, files(t, map[string]string{"Dockerfile": "FROM base AS from\nRUN truncate -s 2G /" + name + "\nFROM base\nCOPY --from=from /" + name + " /sparse\n"}))
		kit.Eventually(t, "the file is copied", func() bool { return free() < before-50<<20 })
		end(b)
		if err := b.end(); err == nil {
			t.Errorf("%s: the build succeeds", name)
		}
		build(t, d, "--no-cache", files(t, map[string]string{"Dockerfile": "FROM base\nRUN true\n"}))
		if name == "cancelled" {
			// A copy that was complete before it could be ended is in the cache.
			kit.Eventually(t, "the copy ends", func() bool {
				d.Docker("builder", "prune", "-af")
				return free() > before-2<<20
			})
		}
		// The next process removes what one has left that was killed.
		kit.Eventually(t, "what the copy wrote is removed", func() bool { return free() > before-2<<20 })
	}
	nothingLeft(t, d)
}
