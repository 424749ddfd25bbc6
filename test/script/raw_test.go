// SPDX-License-Identifier: Apache-2.0

package script

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

// ask sends a request unchanged. It returns the status and the message of an
// error, or the whole body if it is not an error.
func ask(t *testing.T, d *kit.Daemon, method, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://holdfast"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := d.HTTP().Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	var e struct{ Message *string }
	if resp.StatusCode >= 400 {
		if err := json.Unmarshal(b, &e); err != nil || e.Message == nil {
			t.Fatalf("%s %s: %s without a message: %q", method, path, resp.Status, b)
		}
		return resp.StatusCode, *e.Message
	}
	return resp.StatusCode, string(b)
}

func TestBadInputIsRefusedClearlyAndLeavesNothing(t *testing.T) {
	t.Parallel()
	kit.Binary(t, "holdfast-build")
	d := kit.Start(t, kit.Options{})
	d.Load(image, kit.Busybox(t, nil))
	d.Docker("run", "-d", "--name", "here", image, "sleep", "1000")
	create := func(rest string) string { return `{"Image":"` + image + `"` + rest + `}` }
	host := func(fields string) string { return create(`,"HostConfig":{` + fields + `}`) }
	for _, c := range []struct {
		method, path, body string
		status             int
		message            string // a substring
	}{
		// Bodies.
		{"POST", "/containers/create", `{`, 400, "invalid JSON"},
		{"POST", "/containers/create", `[]`, 400, "invalid JSON"},
		{"POST", "/containers/create", ``, 400, "invalid JSON"},
		{"POST", "/containers/create", `null`, 400, "config cannot be empty"},
		{"POST", "/containers/create", create("") + create(""), 400, "unexpected content after JSON"},
		{"POST", "/containers/create", `{"Image":5}`, 400, "field Image: got number, want a string"},
		{"POST", "/containers/create", host(`"Memory":"much"`), 400, "field HostConfig.Memory: got string"},
		{"POST", "/containers/create", create(`,"Env":["=x"]`), 400, "invalid environment variable: =x"},
		{"POST", "/volumes/create", `{"Name":7}`, 400, "field Name: got number"},
		{"POST", "/auth", `{`, 400, "invalid JSON"},
		// Names.
		{"POST", "/containers/create?name=-x", create(""), 400, "Invalid container name (-x)"},
		{"POST", "/containers/create?name=..%2F..%2Fetc", create(""), 400, "Invalid container name"},
		{"POST", "/containers/create?name=here", create(""), 409, `The container name "/here" is already in use by container`},
		{"POST", "/containers/here/rename?name=a%20b", ``, 400, "Invalid container name"},
		{"POST", "/volumes/create", `{"Name":"../x"}`, 400, "includes invalid characters for a local volume name"},
		{"GET", "/containers/nothing/json", ``, 404, "No such container: nothing"},
		{"GET", "/images/nothing/json", ``, 404, "No such image: nothing:latest"},
		{"GET", "/volumes/nothing", ``, 404, "no such volume"},
		{"GET", "/networks/nothing", ``, 404, "network nothing not found"},
		{"GET", "/exec/nothing/json", ``, 404, "No such exec instance: nothing"},
		// Image references.
		{"POST", "/containers/create", `{"Image":"No::Good"}`, 400, "invalid reference format"},
		{"POST", "/containers/create", `{"Image":"nothing:1"}`, 404, "No such image: nothing:1"},
		{"POST", "/images/create?fromImage=No%3A%3AGood", ``, 400, "invalid reference format"},
		{"POST", "/images/create?fromImage=UPPER", ``, 400, "must be lowercase"},
		{"POST", "/images/" + image + "/tag?repo=UPPER", ``, 400, "must be lowercase"},
		{"POST", "/images/" + image + "/tag?repo=x&tag=a:b", ``, 400, "invalid tag"},
		// Settings.
		{"POST", "/containers/create", host(`"Runtime":"nonsense"`), 400, "unknown or invalid runtime name: nonsense"},
		{"POST", "/containers/create", host(`"Binds":["/a:b"]`), 400, "mount path must be absolute"},
		{"POST", "/containers/create", host(`"Binds":["/a:/b:nonsense"]`), 400, "invalid mode: nonsense"},
		{"POST", "/containers/create", host(`"Mounts":[{"Type":"nonsense","Target":"/x"}]`), 400, "mount type unknown"},
		{"POST", "/containers/create", host(`"PortBindings":{"80/nonsense":[{}]}`), 400, "unknown protocol"},
		{"POST", "/containers/create", host(`"PortBindings":{"80/tcp":[{"HostPort":"70000"}]}`), 400, "invalid port specification"},
		{"POST", "/containers/create", host(`"RestartPolicy":{"Name":"nonsense"}`), 400, "unknown policy 'nonsense'"},
		{"POST", "/containers/create", host(`"Ulimits":[{"Name":"nonsense"}]`), 400, "invalid ulimit type: nonsense"},
		{"POST", "/containers/create", host(`"LogConfig":{"Type":"nonsense"}`), 400, "nonsense"},
		{"POST", "/containers/create", host(`"CapAdd":["NONSENSE"]`), 400, "NONSENSE"},
		{"POST", "/containers/create", host(`"SecurityOpt":["nonsense"]`), 400, "nonsense"},
		{"POST", "/containers/create", create(`,"StopSignal":"NONSENSE"`), 400, "nvalid signal: NONSENSE"},
		{"POST", "/containers/create?platform=a/b/c/d", create(""), 400, "invalid platform"},
		{"POST", "/containers/here/kill?signal=NONSENSE", ``, 400, "nvalid signal: NONSENSE"},
		{"POST", "/containers/here/update", `{"Memory":1}`, 400, "Minimum memory limit"},
		{"POST", "/containers/here/exec", `{}`, 400, "No exec command specified"},
		{"POST", "/containers/here/wait?condition=nonsense", ``, 400, "invalid condition"},
		// Query values and versions.
		{"GET", "/containers/json?filters=nonsense", ``, 400, "invalid filters"},
		{"GET", "/containers/json?filters=%7B%22nonsense%22%3A%5B%22x%22%5D%7D", ``, 400, "invalid filter 'nonsense'"},
		{"GET", "/containers/json?limit=nonsense", ``, 400, `parameter "limit"`},
		{"GET", "/containers/here/logs", ``, 400, "must specify at least one of 'stdout' or 'stderr'"},
		{"GET", "/containers/here/logs?stdout=1&tail=nonsense", ``, 400, `parameter "tail"`},
		{"GET", "/events?since=nonsense", ``, 400, `parameter "since"`},
		{"POST", "/containers/here/resize?h=a&w=b", ``, 400, `invalid resize height "a": invalid syntax`},
		{"POST", "/build", ``, 400, "the Dockerfile cannot be empty"},
		{"POST", "/build?shmsize=nonsense", ``, 400, "not a size in bytes"},
		{"POST", "/build?memory=nonsense", ``, 400, "memory"},
		{"POST", "/build/prune?keep-storage=nonsense", ``, 400, "not a size in bytes"},
		{"POST", "/grpc", ``, 400, "upgrade to h2c"},
		{"GET", "/v1.23/info", ``, 400, "client version 1.23 is too old. Minimum supported API version is 1.24"},
		{"GET", "/v1.999/info", ``, 400, "client version 1.999 is too new"},
		{"GET", "/nothing", ``, 404, "page not found"},
		// A missing object or route is reported as such.
		{"GET", "/swarm", ``, 503, "This node is not a swarm manager"},
		{"GET", "/services", ``, 503, "This node is not a swarm manager"},
		{"POST", "/swarm/leave", ``, 503, "This node is not part of a swarm"},
		{"POST", "/containers/here/checkpoints", `{}`, 501, "not available in this release of Holdfast"},
	} {
		status, message := ask(t, d, c.method, c.path, c.body)
		if status != c.status || !strings.Contains(message, c.message) {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, status, message)
		}
	}
	if got := d.Docker("ps", "-a", "--format", "{{.Names}} {{.State}}"); got != "here running" {
		t.Errorf("left behind: %s", got)
	}
	if got := d.Docker("volume", "ls", "-q"); got != "" {
		t.Errorf("left behind: %s", got)
	}
	if got := d.Docker("images", "-aq"); len(strings.Fields(got)) != 1 {
		t.Errorf("left behind: %s", got)
	}
	if entries, err := os.ReadDir(d.DataRoot + "/containers"); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v %v", entries, err)
	}
}

// A tar archive that leads out of its root by a name or by a symbolic link in
// it.
func TestArchiveThatClimbsOutIsKeptInside(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{})
	target := filepath.Join(d.Root, "outside")
	for name, entries := range map[string][]tar.Header{
		"by name":      {{Name: strings.Repeat("../", 20) + target[1:], Typeflag: tar.TypeReg}},
		"by link":      {{Name: "way", Typeflag: tar.TypeSymlink, Linkname: d.Root}, {Name: "way/outside", Typeflag: tar.TypeReg}},
		"by hard link": {{Name: "file", Typeflag: tar.TypeLink, Linkname: strings.Repeat("../", 20) + d.ConfigFile()[1:]}, {Name: "file", Typeflag: tar.TypeReg}},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range entries {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeReg {
				h.Size = 4
			}
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if h.Size > 0 {
				io.WriteString(w, "evil")
			}
		}
		w.Close()
		before, err := os.ReadFile(d.ConfigFile())
		if err != nil {
			t.Fatal(err)
		}
		status, answer := ask(t, d, "POST", "/images/create?fromSrc=-&repo=climber", b.String())
		t.Logf("%s: %d %s", name, status, answer)
		if _, err := os.Lstat(target); err == nil {
			t.Errorf("%s: %s was made", name, target)
		}
		if after, err := os.ReadFile(d.ConfigFile()); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s: %s was changed: %v", name, d.ConfigFile(), err)
		}
	}
}

// Unpacked layers are mounted only in the data root. Mounts that a dead daemon
// left there are removed.
func TestUnpackingNeedsNoFolderOfTheHost(t *testing.T) {
	t.Parallel()
	d := kit.New(t, kit.Options{Env: []string{"TMPDIR=/nonexistent"}})
	left := d.DataRoot + "/images/mounts/containerd-mount1"
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("left", left, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	d.Start()
	if _, err := os.Stat(left); err == nil {
		t.Errorf("%s is still there", left)
	}
	d.Load(image, kit.Busybox(t, nil))
	if got := d.Docker("run", "--rm", image, "echo", "hello"); got != "hello" {
		t.Error(got)
	}
	if entries, err := os.ReadDir(filepath.Dir(left)); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v %v", entries, err)
	}
}

func TestAttachOverAWebsocket(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{})
	d.Load(image, kit.Busybox(t, nil))
	d.Docker("run", "-d", "-i", "--name", "echo", image, "sh", "-c", "while read line; do echo got $line; [ $line = last ] && exit; done")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, resp, err := websocket.Dial(ctx, "ws://holdfast/containers/echo/attach/ws?stream=1&stdin=1&stdout=1", &websocket.DialOptions{HTTPClient: d.HTTP()})
	if err != nil {
		t.Fatalf("%v %v", err, resp)
	}
	defer conn.CloseNow()
	var seen strings.Builder
	for i, line := range []string{"one\n", "last\n"} {
		if err := conn.Write(ctx, websocket.MessageBinary, []byte(line)); err != nil {
			t.Fatal(err)
		}
		for strings.Count(seen.String(), "\n") <= i {
			_, b, err := conn.Read(ctx)
			if err != nil {
				t.Fatalf("%q %v", &seen, err)
			}
			seen.Write(b)
		}
	}
	if seen.String() != "got one\ngot last\n" {
		t.Errorf("%q", &seen)
	}
	if _, b, err := conn.Read(ctx); err == nil {
		t.Errorf("the connection outlives the container: %q", b)
	}
	if got := d.Docker("wait", "echo"); got != "0" {
		t.Error(got)
	}
	// If the container can't be attached to, the error comes before the
	// protocol switch.
	if _, resp, err := websocket.Dial(ctx, "ws://holdfast/containers/nothing/attach/ws?stream=1", &websocket.DialOptions{HTTPClient: d.HTTP()}); err == nil || resp == nil || resp.StatusCode != 404 {
		t.Errorf("%v %v", err, resp)
	}
}

// A full disk loses lines of the log, and has no other effect.
func TestFullDiskUnderTheLogStopsNobody(t *testing.T) {
	t.Parallel()
	d := kit.New(t, kit.Options{LiveRestore: true})
	containers := d.DataRoot + "/containers"
	if err := os.MkdirAll(containers, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("small", containers, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(containers, unix.MNT_DETACH) })
	d.Start()
	d.Load(image, kit.Busybox(t, nil))
	d.Docker("run", "-d", "--name", "writer", image, "sh", "-c", "seq 1 100000; echo done > /tmp/finished; exec sleep 1000")
	d.Docker("exec", "writer", "sh", "-c", "until [ -e /tmp/finished ]; do sleep 0.02; done")
	for _, line := range strings.Split(d.Docker("logs", "--tail", "10", "writer"), "\n") {
		var n int
		if _, err := fmt.Sscan(line, &n); err != nil || fmt.Sprint(n) != line {
			t.Errorf("the log holds %q", line)
		}
	}
	if got := d.Docker("inspect", "-f", "{{.State.Status}}", "writer"); got != "running" {
		t.Error(got)
	}
	if r := d.TryDocker("run", "--rm", image, "true"); r.Code == 0 || !strings.Contains(r.Stderr, "no space left on device") {
		t.Errorf("a new container on the full disk: %+v", r)
	}
	d.Docker("stop", "-t", "0", "writer")
	d.Docker("rm", "writer")
	if got := d.Docker("run", "--rm", image, "echo", "room again"); got != "room again" {
		t.Error(got)
	}
}

func TestDataRootThatCantBeWrittenIsSaid(t *testing.T) {
	t.Parallel()
	d := kit.New(t, kit.Options{})
	if err := os.MkdirAll(d.DataRoot, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("still", d.DataRoot, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(d.DataRoot, unix.MNT_DETACH) })
	err := d.TryStart()
	if err == nil || !strings.Contains(err.Error(), "read-only file system") || !strings.Contains(err.Error(), d.DataRoot) {
		t.Errorf("got %v", err)
	}
}
