// SPDX-License-Identifier: Apache-2.0

package security

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

func init() {
	roles["peek"] = peek
	roles["siblings"] = siblings
}

// watchedShim is a shim that is observed through /proc. A pidfd identifies it.
type watchedShim struct {
	t     *testing.T
	pid   int
	pidfd int
	// Values before the first request.
	fds, threads, memory int // memory in kB
}

func watchShim(t *testing.T, d *kit.Daemon, container string) *watchedShim {
	t.Helper()
	id := d.Docker("inspect", "-f", "{{.Id}}", container)
	var st struct {
		Pid int `json:"shimPid"`
	}
	raw, err := os.ReadFile(filepath.Join(d.ExecRoot, "shim", id, "state.json"))
	if err == nil {
		err = json.Unmarshal(raw, &st)
	}
	if err != nil {
		t.Fatal(err)
	}
	w := &watchedShim{t: t, pid: st.Pid}
	if w.pidfd, err = unix.PidfdOpen(w.pid, 0); err != nil {
		t.Fatalf("shim %d: %v", w.pid, err)
	}
	t.Cleanup(func() { unix.Close(w.pidfd) })
	w.fds, w.threads, w.memory = w.now()
	return w
}

func (w *watchedShim) proc(name string) string {
	w.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", w.pid, name))
	if err != nil {
		w.t.Fatalf("the shim has gone: %v", err)
	}
	return string(b)
}

func (w *watchedShim) now() (fds, threads, memory int) {
	w.t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", w.pid))
	if err != nil {
		w.t.Fatal(err)
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", w.pid))
	if err != nil {
		w.t.Fatal(err)
	}
	for line := range strings.Lines(w.proc("smaps_rollup")) {
		if f := strings.Fields(line); f[0] == "Pss_Anon:" {
			memory, _ = strconv.Atoi(f[1])
		}
	}
	return len(list), len(tasks), memory
}

// ticks is the shim's CPU time, in clock ticks of 10 ms.
func (w *watchedShim) ticks() int {
	w.t.Helper()
	stat := w.proc("stat")
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return user + system
}

// zombies lists the shim's children that have exited and are not reaped.
func (w *watchedShim) zombies() (list []string) {
	w.t.Helper()
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", w.pid))
	for _, task := range tasks {
		children, _ := os.ReadFile(task)
		for _, pid := range strings.Fields(string(children)) {
			stat, err := os.ReadFile("/proc/" + pid + "/stat")
			if err == nil && strings.Contains(string(stat), ") Z ") {
				list = append(list, string(stat))
			}
		}
	}
	return list
}

const (
	window  = 1500 // milliseconds
	windows = 30
	// spare is the growth in kB that is permitted to a shim that has served
	// clients: threads that were needed once, and a larger heap.
	spare = 8 << 10
)

// atRest waits for a period in which the shim uses no CPU time and has released
// the resources of its clients.
func (w *watchedShim) atRest() {
	w.t.Helper()
	var why string
	for range windows {
		before := w.ticks()
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(w.pidfd), Events: unix.POLLIN}}, window); n != 0 && err == nil {
			w.t.Fatal("the shim has exited")
		}
		used := w.ticks() - before
		fds, threads, memory := w.now()
		zombies := w.zombies()
		why = fmt.Sprintf("%d ms of CPU in %d ms, %d descriptors (%d before), %d threads (%d), %d kB (%d), zombies: %q",
			used*10, window, fds, w.fds, threads, w.threads, memory, w.memory, zombies)
		if used <= 2 && fds <= w.fds+4 && threads <= w.threads+10 && memory <= w.memory+spare && len(zombies) == 0 {
			w.t.Log(why)
			return
		}
	}
	w.t.Errorf("the shim does not become idle: %s", why)
}

// stream is a connection that the API has upgraded.
type stream struct {
	*net.UnixConn
	status int
	buf    *bufio.Reader // the data that arrived with the header
}

// takeOver sends a request with a JSON body and upgrades the connection.
func takeOver(t *testing.T, d *kit.Daemon, path, body string) *stream {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: d.Socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		path, len(body), body)
	s := &stream{UnixConn: c, buf: bufio.NewReader(c)}
	r, err := http.ReadResponse(s.buf, nil)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	s.status = r.StatusCode
	return s
}

// all reads to the end. A connection reset is an error.
func (s *stream) all(t *testing.T) []byte {
	t.Helper()
	b, err := io.ReadAll(s.buf)
	if err != nil {
		t.Errorf("after %d bytes: %v", len(b), err)
	}
	return b
}

func start(t *testing.T, d *kit.Daemon, exec string) *stream {
	t.Helper()
	return takeOver(t, d, "/exec/"+exec+"/start", `{"Detach":false,"Tty":false}`)
}

func startTTY(t *testing.T, d *kit.Daemon, exec string) *stream {
	t.Helper()
	return takeOver(t, d, "/exec/"+exec+"/start", `{"Detach":false,"Tty":true}`)
}

// Sessions of every kind end, by themselves and by their clients. With the
// fault that this test covers, one plain exec was enough to keep a shim busy
// forever.
func TestShimIsAtRestAfterExecs(t *testing.T) {
	t.Parallel()
	d := live(t)
	d.Docker("run", "-d", "--name", "box", image, "sleep", "1000")
	w := watchShim(t, d, "box")
	d.Docker("exec", "box", "true")
	d.Docker("exec", "-t", "box", "true")
	w.atRest()
	for range 6 {
		plain := start(t, d, d.CreateExec("box", `{"AttachStdout":true,"AttachStderr":true,"Cmd":["echo","out"]}`))
		if got := plain.all(t); !bytes.HasSuffix(got, []byte("out\n")) {
			t.Errorf("got %q", got)
		}
		tty := startTTY(t, d, d.CreateExec("box", `{"AttachStdin":true,"AttachStdout":true,"Tty":true,"Cmd":["echo","out"]}`))
		if got := tty.all(t); string(got) != "out\r\n" {
			t.Errorf("with a terminal: got %q", got)
		}
		in := start(t, d, d.CreateExec("box", `{"AttachStdin":true,"AttachStdout":true,"Cmd":["cat"]}`))
		in.CloseWrite()
		in.all(t)
		// These clients disconnect at once, with and without unread output.
		start(t, d, d.CreateExec("box", `{"AttachStdin":true,"AttachStdout":true,"Cmd":["cat"]}`)).Close()
		start(t, d, d.CreateExec("box", `{"AttachStdout":true,"Cmd":["head","-c","1000000","/dev/zero"]}`)).Close()
		startTTY(t, d, d.CreateExec("box", `{"AttachStdin":true,"AttachStdout":true,"Tty":true,"Cmd":["sleep","0.5"]}`)).Close()
	}
	w.atRest()
	d.Docker("exec", "box", "true")
	d.Docker("rm", "-f", "box")
}

// TestCVE_2025_64329_ClientsThatLeaveTakeNothing: an attach whose client had
// gone leaked a goroutine, so a user who could attach could use up the host's
// memory. Here clients disconnect in every way, also while their input waits
// for a container that does not read. Afterwards the shim has as many
// descriptors and as much memory as before.
func TestCVE_2025_64329_ClientsThatLeaveTakeNothing(t *testing.T) {
	t.Parallel()
	d := live(t)
	d.Docker("run", "-d", "-i", "--name", "box", image, "sleep", "1000")
	w := watchShim(t, d, "box")
	const attach = "/containers/box/attach?stream=1&stdin=1&stdout=1&stderr=1"
	full := bytes.Repeat([]byte("x"), 200<<10) // more than the container's pipe can hold
	for i := range 40 {
		c := takeOver(t, d, attach, "")
		switch i % 4 {
		case 0:
			c.CloseWrite()
		case 1:
			c.Write([]byte("typed"))
		case 2:
			c.CloseRead()
		case 3:
			c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
			c.Write(full)
		}
		c.Close()
	}
	for range 3 {
		ctx, kill := context.WithCancel(context.Background())
		cmd := d.DockerCommand(ctx, "attach", "--sig-proxy=false", "box")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		in.Write(full)
		kill()
		cmd.Wait()
	}
	// Clients whose input is never read are dropped after half a minute.
	w.atRest()
	d.Docker("rm", "-f", "box")
}

// A client is attached to one run. Its stream ends with that run, and the
// container is started again.
func TestShimIsAtRestAfterRunsWithClients(t *testing.T) {
	t.Parallel()
	d := live(t)
	d.Docker("run", "-d", "-i", "--restart", "always", "--name", "box", image, "sh", "-c", "read x; exit 3")
	w := watchShim(t, d, "box")
	var clients []*stream
	for range 20 {
		clients = append(clients, takeOver(t, d, "/containers/box/attach?stream=1&stdin=1&stdout=1", ""))
	}
	// The daemon answers a client before the shim has it. A client that the shim gets
	// after this run's end would be attached to the next run.
	kit.Eventually(t, "all clients are attached", func() bool {
		return strings.Count(d.Docker("events", "--since", "1h", "--until", "0s", "--filter", "event=attach"), " attach ") >= len(clients)
	})
	clients[0].Write([]byte("end\n"))
	for _, c := range clients {
		c.all(t) // must end without a reset
	}
	w.atRest() // although the clients still have their sockets open
	for _, c := range clients {
		c.Close()
	}
	w.atRest()
	d.Docker("rm", "-f", "box")
}

// TestCVE_2022_23471_ResizesAreNotKept: for each terminal a goroutine waited to
// pass sizes on, and it never ended if the command could not be started. So
// failing commands used up the host's memory. Here a size is set or refused at
// once, also for processes that have ended or never started, and nothing is
// kept.
func TestCVE_2022_23471_ResizesAreNotKept(t *testing.T) {
	t.Parallel()
	d := live(t)
	d.Docker("run", "-d", "-t", "--name", "box", image, "sleep", "1000")
	w := watchShim(t, d, "box")
	exec := d.CreateExec("box", `{"AttachStdin":true,"AttachStdout":true,"Tty":true,"Cmd":["cat"]}`)
	session := startTTY(t, d, exec)
	over := d.CreateExec("box", `{"AttachStdout":true,"Tty":true,"Cmd":["true"]}`)
	startTTY(t, d, over).all(t)
	failed := d.CreateExec("box", `{"AttachStdout":true,"Tty":true,"Cmd":["/no/such/program"]}`)
	startTTY(t, d, failed).all(t)
	for i := range 200 {
		for _, path := range []string{"/containers/box", "/exec/" + exec, "/exec/" + over, "/exec/" + failed} {
			r, err := d.HTTP().Post(fmt.Sprintf("http://h%s/resize?h=%d&w=%d", path, i%60+1, i%200+1), "", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Body.Close()
		}
	}
	session.Close()
	w.atRest()
	d.Docker("rm", "-f", "box")
}

// TestCVE_2022_31030_OutputThatNobodyReadsIsNotKept: the engine collected a
// command's output in memory before it was read, so an exec or a health check
// could use up the host's memory. Here a session waits for its reader, and 4 kB
// of a health check's output are kept.
func TestCVE_2022_31030_OutputThatNobodyReadsIsNotKept(t *testing.T) {
	d := live(t)
	d.Docker("run", "-d", "--name", "box", image, "sleep", "1000")
	w := watchShim(t, d, "box")
	const output = 100 << 20
	spec := fmt.Sprintf(`{"AttachStdout":true,"Cmd":["head","-c","%d","/dev/zero"]}`, output)
	for range 3 {
		start(t, d, d.CreateExec("box", spec))
	}
	w.atRest2(6) // with three sessions that are never read
	read := start(t, d, d.CreateExec("box", spec))
	n, err := io.Copy(io.Discard, read.buf)
	if err != nil || n < output {
		t.Errorf("%d bytes, %v, want %d", n, err, output)
	}
	d.Docker("rm", "-f", "box")

	d.Docker("run", "-d", "--name", "checked", "--health-interval", "300ms", "--health-cmd", "head -c 20000000 /dev/zero; echo", image, "sleep", "1000")
	w = watchShim(t, d, "checked")
	for range 4 {
		awaitCheck(t, d, "checked")
	}
	if _, _, memory := w.now(); memory > w.memory+spare {
		t.Errorf("a health check with endless output: %d kB, before %d", memory, w.memory)
	}
	if log := d.Docker("inspect", "-f", "{{range .State.Health.Log}}{{len .Output}} {{end}}", "checked"); log == "" {
		t.Error("no result of the health check is kept")
	} else {
		for _, n := range strings.Fields(log) {
			if size, _ := strconv.Atoi(n); size > 3*4096 { // each byte may be encoded as three
				t.Errorf("%d bytes of one check are kept", size)
			}
		}
	}
	d.Docker("rm", "-f", "checked")
}

// atRest2 is atRest for a shim with sessions that hold more descriptors.
func (w *watchedShim) atRest2(more int) {
	w.t.Helper()
	w.fds += more
	w.atRest()
	w.fds -= more
}

// awaitCheck waits until the container has been checked once more.
func awaitCheck(t *testing.T, d *kit.Daemon, container string) {
	t.Helper()
	const checks = "{{range .State.Health.Log}} {{.Start}}{{end}}"
	last := d.Docker("inspect", "-f", checks, container)
	kit.Eventually(t, "a health check takes place", func() bool { return d.Docker("inspect", "-f", checks, container) != last })
}

// An endless line is cut, and the memory for a flood of output is released.
func TestShimIsAtRestAfterALogFlood(t *testing.T) {
	t.Parallel()
	d := live(t)
	d.Docker("run", "-d", "-i", "--name", "box", "--log-opt", "max-size=2m", "--log-opt", "max-file=2", image,
		"sh", "-c", "read x; head -c 60000000 /dev/zero; yes | head -c 10000000; echo; echo over; sleep 1000")
	w := watchShim(t, d, "box")
	follower := d.DockerCommand(context.Background(), "logs", "-f", "box")
	out, err := follower.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follower.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { follower.Process.Kill(); follower.Wait() }()
	c := takeOver(t, d, "/containers/box/attach?stream=1&stdin=1", "")
	c.Write([]byte("go\n"))
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if strings.HasSuffix(line, "over\n") {
			break
		}
		if err != nil {
			// A follower that is too slow for the rotation gets an error.
			break
		}
	}
	// The log file is truncated and removed by another process.
	path := d.Docker("inspect", "-f", "{{.LogPath}}", "box")
	follower2 := d.DockerCommand(context.Background(), "logs", "-f", "box")
	if err := follower2.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { follower2.Process.Kill(); follower2.Wait() }()
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	c.Close()
	w.atRest2(12) // the followers are still connected
	d.Docker("rm", "-f", "box")
}

// Clients beyond the limit of a shim get an error. The container runs on, and a
// place that becomes free can be used again.
func TestShimServesSoManyClientsAndNoMore(t *testing.T) {
	t.Parallel()
	const limit, more = 1024, 40
	d := live(t)
	d.Docker("run", "-d", "-i", "--name", "box", image, "sh", "-c", "while read x; do echo got $x; done")
	w := watchShim(t, d, "box")
	const attach = "/containers/box/attach?stream=1&stdin=1&stdout=1&stderr=1"
	clients := make([]*stream, limit+more)
	var all sync.WaitGroup
	each := make(chan int)
	for range 8 {
		all.Go(func() {
			for i := range each {
				clients[i] = takeOver(t, d, attach, "")
			}
		})
	}
	for i := range clients {
		each <- i
	}
	close(each)
	all.Wait()
	// At least one client is served, and at least one gets an error.
	served, refused := 0, 0
	for _, c := range clients {
		c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		head := make([]byte, 200)
		if n, _ := c.buf.Read(head); n > 0 && bytes.Contains(head, []byte("which is the limit")) {
			refused++
		} else {
			served++
			if served > 5 && refused > 0 {
				break
			}
		}
	}
	if refused == 0 || served == 0 {
		t.Errorf("%d are served, %d refused", served, refused)
	}
	if r := d.TryDocker("exec", "box", "true"); r.Code == 0 || !strings.Contains(r.Stderr, "limit") {
		t.Errorf("an exec beyond the limit: %+v", r)
	}
	_, _, memory := w.now()
	t.Logf("with %d clients: %d kB, before %d", limit, memory, w.memory)
	if memory > w.memory+60<<10 {
		t.Errorf("%d clients cost %d kB", limit, memory-w.memory)
	}
	for _, c := range clients {
		c.Close()
	}
	w.atRest()
	c := takeOver(t, d, attach, "")
	c.Write([]byte("it\n"))
	if got, err := c.buf.ReadString('\n'); !strings.HasSuffix(got, "got it\n") || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	d.Docker("exec", "box", "true")
	d.Docker("rm", "-f", "box")
}

// A container that exhausts its processes, descriptors or watches affects only
// itself.
func TestShimIsAtRestBesideAContainerThatIsExhausted(t *testing.T) {
	d := live(t)
	d.Docker("run", "-d", "--name", "box", "--pids-limit", "12", "--ulimit", "nofile=32:32", "--health-interval", "500ms", "--health-cmd", "true", image,
		"sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11; do sleep 1000 & done; wait")
	w := watchShim(t, d, "box")
	for range 6 { // no process is left for these, nor for the health checks
		d.TryDocker("exec", "box", "sh", "-c", "true | true | true")
	}
	awaitCheck(t, d, "box")
	if z := w.zombies(); len(z) > 1 { // a child may have exited just now
		t.Errorf("zombies: %q", z)
	}
	if left, _ := filepath.Glob(filepath.Join(d.ExecRoot, "shim", d.Docker("inspect", "-f", "{{.Id}}", "box"), "runtime-*.log")); len(left) > 2 {
		t.Errorf("logs of failed calls stay: %d", len(left))
	}
	done := time.Now()
	d.Docker("rm", "-f", "box")
	if took := time.Since(done); took > 30*time.Second {
		t.Errorf("rm -f took %v", took)
	}
}

// A process that exits before its client has sent all its input does not reset
// the connection. The client can read the last output and get the exit code.
func TestClientIsNotResetByAProcessThatEndsFirst(t *testing.T) {
	d := live(t)
	input := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	for range 4 {
		for _, args := range [][]string{
			{"run", "--rm", "-i", image, "sh", "-c", "head -c 10; exit 7"},
			{"exec", "-i", "box", "sh", "-c", "head -c 10; exit 7"},
		} {
			if args[0] == "exec" && d.TryDocker("inspect", "box").Code != 0 {
				d.Docker("run", "-d", "--name", "box", image, "sleep", "1000")
			}
			cmd := d.DockerCommand(context.Background(), args...)
			var out, errs bytes.Buffer
			cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &out, &errs
			cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != 7 || out.String() != "0123456789" {
				t.Errorf("%s: exit code %d, %q, %s", args[0], code, &out, &errs)
			}
		}
	}
	// Without a terminal no bytes are detach keys.
	const data = "abc\x10\x11def\n"
	if got := d.DockerWith(strings.NewReader(data), "run", "--rm", "-i", image, "cat"); got+"\n" != data {
		t.Errorf("got %q, want %q", got, data)
	}
	d.Docker("rm", "-f", "box")
}

// TestCVE_2016_9962_ExecLendsNothingOfTheHost: between the time when an exec's
// process had joined the container and the start of its program, a process of
// the container could trace it and reach the host's files through its
// descriptors. Here a process of the container examines every new process as
// fast as it can, and finds no descriptor that leads out.
func TestCVE_2016_9962_ExecLendsNothingOfTheHost(t *testing.T) {
	config := map[string]any{}
	args := map[string][]string{"the default runtime": nil}
	// The runtime must prevent it. Test a current runtime too, if "make" has
	// installed it.
	if home, err := os.UserHomeDir(); err == nil {
		current := filepath.Join(home, ".cache/holdfast/peer/runc")
		if _, err := os.Stat(current); err == nil {
			config["runtimes"] = map[string]any{"current": map[string]any{"path": current}}
			args["a current runtime"] = []string{"--runtime", "current"}
		}
	}
	d := kit.Start(t, kit.Options{LiveRestore: true, Config: config})
	d.Load(image, kit.Busybox(t, nil))
	for name, args := range args {
		t.Run(name, func(t *testing.T) {
			d.Docker(append(append([]string{"run", "-d", "--name", "box", "-v", self(t) + ":/peek:ro", "-e", "SECURITY_ROLE=peek"}, args...), image, "/peek")...)
			for range 8 {
				d.Docker("exec", "box", "true")
			}
			if log := d.Docker("logs", "box"); !strings.Contains(log, "looking") || strings.Contains(log, "FOUND") {
				t.Errorf("a process of the container saw:\n%s", log)
			}
			d.Docker("rm", "-f", "box")
		})
	}
}

// peek runs in a container and examines the targets of the descriptors, the
// root and the working directory of each other process.
func peek() {
	fmt.Println("looking")
	var root unix.Stat_t
	if err := unix.Stat("/", &root); err != nil {
		fmt.Println("FOUND no root:", err)
	}
	mine := strconv.Itoa(os.Getpid())
	for {
		list, err := os.ReadDir("/proc")
		if err != nil {
			fmt.Println("FOUND no /proc:", err)
			return
		}
		for _, e := range list {
			pid := e.Name()
			if pid[0] < '0' || pid[0] > '9' || pid == mine {
				continue
			}
			dir := "/proc/" + pid
			var st unix.Stat_t
			if unix.Stat(dir+"/root", &st) == nil && (st.Dev != root.Dev || st.Ino != root.Ino) {
				fmt.Println("FOUND another root of", pid)
			}
			if unix.Stat(dir+"/cwd", &st) == nil && (st.Dev != root.Dev || st.Ino != root.Ino) {
				fmt.Println("FOUND another working directory of", pid)
			}
			fds, _ := os.ReadDir(dir + "/fd")
			for _, fd := range fds {
				f, err := unix.Open(dir+"/fd/"+fd.Name(), unix.O_DIRECTORY|unix.O_RDONLY, 0)
				if err == nil {
					to, _ := os.Readlink(dir + "/fd/" + fd.Name())
					fmt.Println("FOUND a folder", to, "of", pid)
					unix.Close(f)
				}
			}
		}
	}
}

// A process of an exec session is the shim's child, and so are the siblings
// that it creates. Zombies in its pid namespace would keep the container from
// ending.
func TestShimReapsChildrenThatItNeverKnew(t *testing.T) {
	d := live(t)
	d.Docker("run", "-d", "--name", "box", "-v", self(t)+":/siblings:ro", image, "sleep", "1000")
	w := watchShim(t, d, "box")
	s := start(t, d, d.CreateExec("box", `{"AttachStdout":true,"Env":["SECURITY_ROLE=siblings"],"Cmd":["/siblings"]}`))
	line, err := s.buf.ReadString('\n')
	if err != nil || !strings.Contains(line, "made 50") {
		t.Fatalf("got %q, %v", line, err)
	}
	w.atRest2(4)
	if r := d.TryDocker("kill", "box"); r.Code != 0 {
		t.Errorf("kill: %+v", r)
	}
	d.Docker("wait", "box")
	d.Docker("rm", "box")
}

// siblings creates children of its parent. They exit at once.
func siblings() {
	made := 0
	for range 50 {
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_PARENT|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno == 0 && pid == 0 {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
		if errno == 0 {
			made++
		}
	}
	fmt.Println("made", made)
	unix.Pause()
}

// A kill ends a container, whatever happens in it at the same moment: execs
// that start, and a health check.
func TestKillEndsAContainerWhateverStartsInIt(t *testing.T) {
	d := live(t)
	const rounds = 30
	for round := range rounds {
		name := "box" + strconv.Itoa(round)
		args := []string{"run", "-d", "--name", name}
		if round%3 == 0 {
			args = append(args, "--health-interval", "20ms", "--health-cmd", "true")
		}
		d.Docker(append(args, image, "sleep", "1000")...)
		var execs sync.WaitGroup
		for range 4 {
			exec := d.CreateExec(name, `{"Cmd":["sleep","1000"]}`)
			execs.Go(func() {
				r, err := d.HTTP().Post("http://h/exec/"+exec+"/start", "application/json", strings.NewReader(`{"Detach":true}`))
				if err == nil {
					r.Body.Close()
				}
			})
		}
		how := [][]string{{"kill", name}, {"rm", "-f", name}, {"stop", "-t", "0", name}}[round%3]
		began := time.Now()
		r := d.TryDocker(how...)
		if took := time.Since(began); r.Code != 0 || took > 30*time.Second {
			t.Fatalf("round %d: %v after %v: %+v", round, how, took, r)
		}
		execs.Wait()
		if how[0] != "rm" {
			d.Docker("rm", "-f", name)
		}
	}
}
