// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/test/cert"
	"holdfast/test/kit"
)

// running is a docker build in progress.
type running struct {
	t     *testing.T
	kill  func()
	lines *bufio.Scanner
	wait  func() error
	seen  bytes.Buffer
}

// begin starts a build in the background.
func begin(t *testing.T, d *kit.Daemon, env []string, args ...string) *running {
	t.Helper()
	cmd := d.DockerCommand(context.Background(), append([]string{"build"}, args...)...)
	cmd.Env = append(cmd.Env, env...)
	return follow(t, cmd)
}

// follow starts a client in the background.
func follow(t *testing.T, cmd *exec.Cmd) *running {
	t.Helper()
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- cmd.Wait()
		w.Close()
	}()
	b := &running{t: t, kill: func() { _ = cmd.Process.Kill() }, lines: bufio.NewScanner(r), wait: func() error { return <-ended }}
	t.Cleanup(func() {
		b.kill()
		r.Close()
	})
	return b
}

// until reads until a line contains text.
func (b *running) until(text string) {
	b.t.Helper()
	for b.lines.Scan() {
		fmt.Fprintln(&b.seen, b.lines.Text())
		if strings.Contains(b.lines.Text(), text) {
			return
		}
	}
	b.t.Fatalf("the build ends before %q:\n%s", text, &b.seen)
}

// end reads the rest and waits.
func (b *running) end() error {
	for b.lines.Scan() {
		fmt.Fprintln(&b.seen, b.lines.Text())
	}
	return b.wait()
}

// processes returns the pids of processes with an argument.
func processes(t *testing.T, argument string) (pids []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		text, err := os.ReadFile(path)
		if err != nil || !strings.Contains("\x00"+string(text), "\x00"+argument+"\x00") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// builder returns the pid of a daemon's build process, or 0.
func builder(t *testing.T, d *kit.Daemon) int {
	for _, pid := range processes(t, d.DataRoot) {
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && strings.TrimSpace(string(comm)) == "holdfast-build" {
			return pid
		}
	}
	return 0
}

// TestNothingOfBuildsRunsBeforeTheFirst asks a daemon for all that could know of builds.
func TestNothingOfBuildsRunsBeforeTheFirst(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	none := func(when string) {
		t.Helper()
		if pid := builder(t, d); pid != 0 {
			t.Errorf("%s: the build process %d runs", when, pid)
		}
		if _, err := os.Stat(filepath.Join(d.DataRoot, "build")); err == nil {
			t.Errorf("%s: there is a directory of builds", when)
		}
	}
	none("after the start")
	for _, args := range [][]string{{"version"}, {"info"}, {"images", "-a"}, {"run", "--rm", "base", "true"}, {"system", "df", "-v"}, {"image", "prune", "-af"}, {"container", "prune", "-f"}} {
		d.Docker(args...)
		none(strings.Join(args, " "))
	}
	d.Restart()
	none("after a restart")
}

const ticking = `FROM base
RUN for i in $(seq 1 15); do echo tick $i; sleep 0.1; done >/dev/stderr; ip route >/routes
COPY Dockerfile /
RUN test -s /routes && echo done >/done
CMD ["cat", "/done"]
`

func TestBuildNeverNoticesTheDaemonsEnd(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{LiveRestore: true})
	for name, c := range map[string]struct {
		end func()
		env []string
	}{
		"killed":             {func() { d.Kill9(); d.Start() }, nil},
		"restarted":          {d.Restart, nil},
		"taken over":         {func() { d.Takeover() }, nil},
		"killed, old client": {func() { d.Kill9(); d.Start() }, []string{"DOCKER_BUILDKIT=0"}},
	} {
		t.Run(name, func(t *testing.T) {
			args := []string{"--no-cache", "-t", "survivor", files(t, map[string]string{"Dockerfile": ticking})}
			if c.env == nil {
				args = append([]string{"--progress=plain"}, args...)
			}
			b := begin(t, d, c.env, args...)
			b.until("tick 2")
			c.end()
			if err := b.end(); err != nil {
				t.Fatalf("%v\n%s\n%s", err, &b.seen, buildLog(d))
			}
			if got := d.Docker("run", "--rm", "survivor"); got != "done" {
				t.Errorf("the image prints %q", got)
			}
			d.Docker("image", "rm", "survivor")
		})
	}
}

func TestBuildNeverNoticesAnUpgrade(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{LiveRestore: true})
	for name, env := range map[string][]string{"buildx": nil, "old client": {"DOCKER_BUILDKIT=0"}} {
		t.Run(name, func(t *testing.T) {
			b := begin(t, d, env, "--no-cache", "-t", "survivor", files(t, map[string]string{"Dockerfile": ticking}))
			b.until("tick 2")
			d.Holdfast("daemon", "upgrade")
			pid := 0
			if _, err := fmt.Sscan(d.Holdfast("daemon", "status", "-f", "{{.Daemon.Pid}}"), &pid); err != nil || pid == d.Pid() {
				t.Fatalf("process %d is the daemon after the upgrade, %v", pid, err)
			}
			d.Became(pid)
			if err := b.end(); err != nil {
				t.Fatalf("%v\n%s\n%s", err, &b.seen, buildLog(d))
			}
			if got := d.Docker("run", "--rm", "survivor"); got != "done" {
				t.Errorf("the image prints %q", got)
			}
			d.Docker("image", "rm", "survivor")
		})
	}
}

// overTLS starts a daemon that listens on TCP with TLS, too, and returns the options of
// its clients.
func overTLS(t *testing.T) (*kit.Daemon, []string) {
	t.Helper()
	kit.Binary(t, "holdfast-build")
	d := kit.New(t, kit.Options{LiveRestore: true})
	pem, key := cert.New(t, "server", nil).Write(t, d.Root, "server")
	listen := func(tcp string) {
		d.SetFlags("-H", d.Host, "-H", tcp, "--tls", "--tlsverify=false", "--tlscert", pem, "--tlskey", key)
	}
	listen("tcp://127.0.0.1:0")
	d.Start()
	prepare(t, d)
	_, rest, _ := strings.Cut(d.Log(), "API listen on tcp://")
	tcp := "tcp://" + rest[:strings.IndexAny(rest, "\"\n")]
	listen(tcp) // the next daemon has the same port
	return d, []string{"-H", tcp, "--tlsverify", "--tlscacert", pem}
}

// The daemon holds the keys of a connection over TLS, so that the build of such a client
// ends when the daemon is killed. Nothing is left of it but its finished steps.
func TestBuildOverTLSIsRepeatedWhenTheDaemonIsKilled(t *testing.T) {
	t.Parallel()
	d, at := overTLS(t)
	dir := files(t, map[string]string{"Dockerfile": "FROM base\nRUN echo first >/first\n" + strings.TrimPrefix(ticking, "FROM base\n")})
	args := append(at, "build", "--progress=plain", "-t", "made", dir)
	ended := func() {
		t.Helper()
		kit.Eventually(t, "the step ends", func() bool {
			left, _ := os.ReadDir(filepath.Join(d.ExecRoot, "build", "net"))
			state, _ := os.ReadDir(filepath.Join(d.ExecRoot, "build", "runc"))
			return len(left)+len(state) == 0
		})
	}

	b := follow(t, d.DockerCommand(context.Background(), args...))
	b.until("tick 2")
	d.Kill9()
	if err := b.end(); err == nil {
		t.Errorf("docker build reports success without a daemon:\n%s", &b.seen)
	}
	d.Start()
	ended()

	b = follow(t, d.HoldfastCommand(context.Background(), args...))
	b.until("tick 2")
	d.Kill9()
	d.Start()
	if err := b.end(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, &b.seen, buildLog(d))
	}
	if seen := b.seen.String(); !strings.Contains(seen, "building again") || strings.Count(seen, "CACHED") != 2 || strings.Count(seen, "tick 1\n") != 2 {
		t.Errorf("holdfast build does not go on from the finished step:\n%s", seen)
	}
	if got := d.Docker("run", "--rm", "made", "cat", "/done", "/first"); got != "done\nfirst" {
		t.Errorf("the image has %q", got)
	}
	ended()

	// A build that fails by itself is not repeated.
	fails := files(t, map[string]string{"Dockerfile": "FROM base\nRUN exit 7\n"})
	r := d.TryHoldfast(append(at, "build", "--progress=plain", fails)...)
	if r.Code == 0 || strings.Contains(r.Stderr, "again") || strings.Count(r.Stderr, "ERROR: process") != 1 {
		t.Errorf("a build that fails: exit code %d\n%s", r.Code, r.Stderr)
	}
	// A takeover lets the build end where it began.
	b = follow(t, d.HoldfastCommand(context.Background(), append(at, "build", "--progress=plain", "--no-cache", dir)...))
	b.until("tick 2")
	d.Takeover()
	if err := b.end(); err != nil || strings.Contains(b.seen.String(), "again") {
		t.Errorf("a takeover: %v\n%s", err, &b.seen)
	}
}

func TestStepEndsWithItsClient(t *testing.T) {
	d := start(t, kit.Options{})
	for name, env := range map[string][]string{"buildx": nil, "old client": {"DOCKER_BUILDKIT=0"}} {
		t.Run(name, func(t *testing.T) {
			dir := files(t, map[string]string{"Dockerfile": "FROM base\nRUN echo begun >&2; sleep 98761\n"})
			b := begin(t, d, env, "--no-cache", dir)
			kit.Eventually(t, "the step runs", func() bool { return len(processes(t, "98761")) > 0 })
			b.kill()
			cut := time.Now()
			_ = b.end()
			kit.Eventually(t, "the step ends", func() bool { return len(processes(t, "98761")) == 0 })
			if took := time.Since(cut); took > 2*time.Second { // half of it for a machine under load
				t.Errorf("the step ran for %s after its client had ended", took)
			}
		})
	}
	left := filepath.Join(d.ExecRoot, "build", "net")
	kit.Eventually(t, "the step's network is removed", func() bool {
		entries, _ := os.ReadDir(left)
		return len(entries) == 0
	})
}

func TestNothingIsLeftOfAKilledBuildProcess(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	build := func() *running {
		dir := files(t, map[string]string{"secret": "x", "Dockerfile": "FROM base\nRUN echo first >/first\nRUN --mount=type=cache,target=/cache --mount=type=secret,id=s --mount=type=ssh echo begun >&2; sleep 98762\n"})
		b := begin(t, d, nil, "--progress=plain", "--secret", "id=s,src="+dir+"/secret", "--ssh", "default="+sshKey(t), dir)
		kit.Eventually(t, "the step runs", func() bool { return len(processes(t, "98762")) > 0 })
		if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || !strings.Contains(string(mounts), d.DataRoot+"/build/tmp/buildkit-secrets") {
			t.Fatalf("the secret is not mounted where it is found after a kill: %v", err)
		}
		return b
	}
	for name, next := range map[string]func(){
		"next build":   func() { d.Docker("build", files(t, map[string]string{"Dockerfile": "FROM base\nRUN true\n"})) },
		"next daemon":  func() { d.Restart() },
		"both at once": nil,
	} {
		t.Run(name, func(t *testing.T) {
			b := build()
			pid := builder(t, d)
			if pid == 0 {
				t.Fatal("there is no build process")
			}
			if next == nil {
				d.Kill9()
			}
			kit.Kill(t, pid)
			_ = b.end()
			if next == nil {
				d.Start()
			} else {
				next()
			}
			kit.Eventually(t, "the step is removed", func() bool { return len(processes(t, "98762")) == 0 })
			kit.Eventually(t, "its mounts are removed", func() bool {
				mounts, err := os.ReadFile("/proc/self/mountinfo")
				return err == nil && !strings.Contains(string(mounts), d.DataRoot+"/build") && !strings.Contains(string(mounts), d.ExecRoot+"/build/net")
			})
			entries, _ := os.ReadDir(filepath.Join(d.ExecRoot, "build", "net"))
			if len(entries) > 0 {
				t.Errorf("networks of steps are left: %v", entries)
			}
		})
	}
	// The step before the one that was killed is not repeated.
	b := build()
	if !strings.Contains(b.read(t), "CACHED") {
		t.Errorf("the finished step is repeated:\n%s", &b.seen)
	}
	b.kill()
	kit.Eventually(t, "the step ends", func() bool { return len(processes(t, "98762")) == 0 })
}

func TestNothingIsLeftOfABuildProcessThatIsKilledWhileItPacksALayer(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	mounted := func() bool {
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(mounts), d.DataRoot+"/build/layers/")
	}
	b := begin(t, d, nil, "-t", "made", files(t, map[string]string{"Dockerfile": "FROM base\nRUN head -c 150000000 /dev/urandom >/big\n"}))
	kit.Eventually(t, "the layer is packed", mounted)
	kit.Kill(t, builder(t, d))
	if err := b.end(); err == nil {
		t.Error("the build reports success")
	}
	build(t, d, files(t, map[string]string{"Dockerfile": "FROM base\nRUN true\n"}))
	kit.Eventually(t, "its mounts are removed", func() bool { return !mounted() })
	nothingLeft(t, d)
}

// read reads up to the line that the last step prints.
func (b *running) read(t *testing.T) string {
	t.Helper()
	b.until("begun")
	return b.seen.String()
}

// stalling is a registry that sends the beginning of a blob, and the rest when released is
// closed.
type stalling struct {
	*kit.Registry
	of       atomic.Pointer[string] // digest of the blob, nil if nothing stalls
	begun    chan struct{}          // gets an item when the beginning was sent
	released chan struct{}
}

func newStalling(t *testing.T) *stalling {
	t.Helper()
	s := &stalling{begun: make(chan struct{}, 100), released: make(chan struct{})}
	s.Registry = kit.StartRegistry(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			of := s.of.Load()
			if of == nil || r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/blobs/"+*of) {
				next.ServeHTTP(w, r)
				return
			}
			next.ServeHTTP(&stallingWriter{ResponseWriter: w, s: s, done: r.Context().Done()}, r)
		})
	})
	return s
}

type stallingWriter struct {
	http.ResponseWriter
	s     *stalling
	done  <-chan struct{}
	wrote bool
}

func (h *stallingWriter) Write(p []byte) (int, error) {
	if h.wrote || len(p) < 2 {
		return h.ResponseWriter.Write(p)
	}
	h.wrote = true
	n, err := h.ResponseWriter.Write(p[:len(p)/2])
	if err == nil {
		err = http.NewResponseController(h.ResponseWriter).Flush()
	}
	if err != nil {
		return n, err
	}
	h.s.begun <- struct{}{}
	select {
	case <-h.s.released:
	case <-h.done:
	}
	m, err := h.ResponseWriter.Write(p[n:])
	return n + m, err
}

func TestPullOfABaseGoesOnAfterKills(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{LiveRestore: true})
	for name, c := range map[string]struct {
		kill func()
		ends bool // the build ends with it
	}{
		"daemon":        {func() { d.Kill9(); d.Start() }, false},
		"build process": {func() { kit.Kill(t, builder(t, d)) }, true},
		"both":          {func() { pid := builder(t, d); d.Kill9(); kit.Kill(t, pid); d.Start() }, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newStalling(t)
			noise := make([]byte, 3<<20)
			_, _ = rand.Read(noise)
			layer := kit.Layer(t, kit.File{Name: "noise", Body: noise})
			ref := r.Push(strings.ReplaceAll(name, " ", "-"), kit.Image(t, kit.Busybox(t, nil), nil, layer))
			sum, err := layer.Digest()
			if err != nil {
				t.Fatal(err)
			}
			blob := sum.String()
			r.of.Store(&blob)
			dir := files(t, map[string]string{"Dockerfile": "FROM " + ref + "\nRUN wc -c </noise >/size\n"})
			b := begin(t, d, nil, "--progress=plain", "-t", "made", dir)
			<-r.begun
			c.kill()
			if !c.ends {
				close(r.released)
			}
			if err := b.end(); (err != nil) != c.ends {
				t.Fatalf("%v\n%s\n%s", err, &b.seen, buildLog(d))
			}
			if c.ends {
				close(r.released)
				build(t, d, "-t", "made", dir)
			}
			if got := d.Docker("run", "--rm", "made", "cat", "/size"); got != "3145728" {
				t.Errorf("the layer has %q bytes", got)
			}
			d.Docker("image", "rm", "made")
			d.Docker("builder", "prune", "-af")
			kit.Eventually(t, "nothing is left of the pull", func() bool {
				left, err := os.ReadDir(filepath.Join(d.DataRoot, "images", "content", "ingest"))
				return err == nil && len(left) == 0
			})
		})
	}
	nothingLeft(t, d)
}
