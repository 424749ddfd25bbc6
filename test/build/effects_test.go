// SPDX-License-Identifier: Apache-2.0

package build

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"

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
		"speaks no gRPC": {"head -c 1000 /dev/urandom", "exit code|EOF|error|preface|closed|no result"},
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

func TestCopyOfASparseFileHasItsHoles(t *testing.T) {
	t.Parallel()
	d, free := onDisk(t, "4g")
	dir := files(t, map[string]string{"Dockerfile": `FROM base AS from
ARG SIZE
RUN mkdir /in && echo begin >/in/sparse && truncate -s $SIZE /in/sparse && echo end >>/in/sparse
FROM base
COPY --from=from /in/sparse /file
COPY --from=from /in /dir
RUN for f in /file /dir/sparse; do echo "$f $(stat -c %s $f) $(head -c 6 $f)$(tail -c 4 $f) $(test $(stat -c %b $f) -lt 100 && echo holes)"; done
`})
	build(t, d, files(t, map[string]string{"Dockerfile": "FROM base\nRUN true\n"})) // unpacks the base
	before := free()
	out := build(t, d, "--output", "type=cacheonly", "--build-arg", "SIZE=3G", dir)
	for _, want := range []string{"/file 3221225476 begin\n", "/dir/sparse 3221225476 begin\n"} {
		if !strings.Contains(out, strings.TrimSpace(want)) || strings.Count(out, "end holes\n") != 2 {
			t.Errorf("the copies are not complete or have no holes:\n%s", out)
		}
	}
	if used := before - free(); used > 50<<20 {
		t.Errorf("the build has used %d bytes of the disk", used)
	}
	// More than the disk could ever hold.
	for _, line := range []string{"COPY --from=from /huge /", "COPY --from=from / /copy/", "COPY --from=from /h* /copy/", "COPY --from=from --exclude=bin / /copy/"} {
		r := tryBuild(t, d, files(t, map[string]string{"Dockerfile": "FROM base AS from\nRUN truncate -s 3072G /huge\nFROM base\n" + line + "\n"}))
		if r.Code == 0 || !strings.Contains(r.Stderr, "/huge has 3298534883328 bytes, most of them holes") {
			t.Errorf("%s: exit code %d\n%s", line, r.Code, r.Stderr)
		}
	}
	nothingLeft(t, d)
}

// What a copy keeps of large files is what it keeps of small ones.
func TestLargeFilesAreCopiedLikeSmallOnes(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	const tree = `mkdir -p /in/a/b && cd /in
echo mine >small && truncate -s 40M large && echo data >>large && chown 7:8 small large && chmod 4750 small large
for f in small large; do ln $f a/$f; ln -s ../$f a/b/$f; echo x >a/b/o$f; done
truncate -s 40M a/b/olarge; chmod 600 a/b/o*
touch -d '2001-02-03 04:05:06' small large a/b a
`
	const list = `cd $1; find . -name "*$2" | sed "s/$2$//" | sort | while read n; do stat -c '%n %a %u %g %h %Y %F' $n$2 | sed "s/$2 / /"; done`
	const same = `for n in 0 1 2 3 4 5 6 7; do
  sh /list /$n small >/small; sh /list /$n large >/large
  cmp /small /large && test -s /large || { echo "/$n:"; cat /small /large; exit 1; }
  for f in $(find /$n -name large -type f); do cmp /in/large $f || exit 1; done
done
cd /in && find . -type d -exec stat -c '%n %a %Y' {} + >/dirs && cd /0 && find . -type d -exec stat -c '%n %a %Y' {} + | cmp - /dirs
`
	lines := []string{"FROM base AS from", "COPY tree list same /", "RUN sh /tree", "FROM from"}
	for n, line := range []string{"/in /N", "--chown=3:4 /in /N", "--chmod=640 /in /N", "--link /in /N", "--exclude=a/b /in /N", "--parents /in/./a/*arge /in/./a/small /N/", "/in/* /N/", "/in/large /in/small /N/"} {
		lines = append(lines, "COPY --from=from "+strings.ReplaceAll(line, "N", strconv.Itoa(n)))
	}
	lines = append(lines, "RUN sh /same")
	build(t, d, "--output", "type=cacheonly", files(t, map[string]string{"tree": tree, "list": list, "same": same, "Dockerfile": strings.Join(lines, "\n") + "\n"}))
}

// The work of a build ends with its client, also in the middle of one large file.
func TestCancelledBuildUsesNoMoreTime(t *testing.T) {
	t.Parallel()
	d, _ := onDisk(t, "64g") // in memory; all but the unpacked file are holes
	add := files(t, map[string]string{"Dockerfile": "FROM base\nADD large.tar.zst /\n"})
	writeZeros(t, filepath.Join(add, "large.tar.zst"), 6<<30)
	const made = "FROM base AS from\nRUN truncate -s 40G /large\n"
	for _, c := range []struct{ name, dir string }{
		{"hash", files(t, map[string]string{"Dockerfile": made + "FROM base\nCOPY --from=from /large /\n"})},
		{"hash of a directory", files(t, map[string]string{"Dockerfile": made + "FROM base\nCOPY --from=from / /all\n"})},
		{"unpack", add},
		{"export", files(t, map[string]string{"Dockerfile": made})},
	} {
		build(t, d, files(t, map[string]string{"Dockerfile": "FROM base\nRUN true\n"}))
		pids := []int{builder(t, d), d.Pid()}
		begun := used(t, pids)
		b := begin(t, d, []string{"BUILDKIT_PROGRESS=plain"}, "--no-cache", "-t", "large", c.dir)
		go func() { _ = b.end() }()
		kit.Eventually(t, c.name+" is at work", func() bool { return used(t, pids) > begun+time.Second })
		b.kill()
		<-time.After(time.Second)
		before := used(t, pids)
		<-time.After(time.Second)
		if more := used(t, pids) - before; more > 200*time.Millisecond {
			t.Errorf("%s: a second after the client's end, the build uses %v of the next second", c.name, more)
		}
		nothingLeft(t, d)
	}
}

// writeZeros writes an archive with one file of zeros, which takes little room.
func writeZeros(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Name: "large", Mode: 0o644, Size: size}); err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 1<<20)
	for range size >> 20 {
		if _, err := w.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
}

// used is the processor time of processes.
func used(t *testing.T, pids []int) (sum time.Duration) {
	t.Helper()
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		for _, n := range fields[11:13] {
			ticks, err := strconv.Atoi(n)
			if err != nil {
				t.Fatal(err)
			}
			sum += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return sum
}

func TestNothingIsLeftOfACopyThatIsCutOff(t *testing.T) {
	t.Parallel()
	d, free := onDisk(t, "6g")
	dir := files(t, map[string]string{"Dockerfile": "FROM base AS from\nRUN head -c 2500000000 /dev/zero >/large\nFROM base\nCOPY --from=from /large /copy\n"})
	build(t, d, "--target", "from", "--output", "type=cacheonly", dir)
	before := free()
	for name, end := range map[string]func(b *running){
		"cancelled": func(b *running) { b.kill() },
		"killed":    func(*running) { kit.Kill(t, builder(t, d)) },
	} {
		b := begin(t, d, nil, dir)
		kit.Eventually(t, "the file is copied", func() bool { return free() < before-50<<20 })
		end(b)
		if err := b.end(); err == nil {
			t.Errorf("%s: the build succeeds", name)
		}
		// The next process removes what one has left that was killed.
		build(t, d, "--no-cache", files(t, map[string]string{"Dockerfile": "FROM base\nRUN true\n"}))
		kit.Eventually(t, name+": what the copy wrote is removed", func() bool { return free() > before-4<<20 })
	}
	nothingLeft(t, d)
}
