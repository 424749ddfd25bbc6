// SPDX-License-Identifier: Apache-2.0

package copy

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

func TestFilesAreCopiedBothWaysWithAllThatDockerKeeps(t *testing.T) {
	d := live(t)
	d.Docker("run", "-d", "--name", "runs", image, "sleep", "9999")
	d.Docker("create", "--name", "idle", image, "true")
	src := t.TempDir()
	tree := filepath.Join(src, "tree")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(tree+"/sub", 0o750))
	must(os.WriteFile(tree+"/plain", []byte("plain\n"), 0o640))
	must(os.WriteFile(tree+"/suid", []byte("suid\n"), 0o755))
	must(os.Lchown(tree+"/plain", 1000, 2000))
	must(unix.Chmod(tree+"/suid", 0o4755))
	must(os.Link(tree+"/plain", tree+"/sub/linked"))
	must(os.Symlink("/etc/passwd", tree+"/sub/away"))
	must(unix.Mkfifo(tree+"/fifo", 0o600))
	must(os.Chtimes(tree+"/plain", time.Unix(1700000000, 0), time.Unix(1700000000, 0)))
	// cap_net_raw=ep
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	must(unix.Setxattr(tree+"/suid", "security.capability", []byte(capability), 0))

	for name, client := range clients {
		for _, box := range []string{"runs", "idle"} {
			t.Run(name+"/"+box, func(t *testing.T) {
				at := "/home/" + name
				run(t, client(d, "cp", tree, box+":"+at), nil)
				got := entries(t, strings.NewReader(run(t, client(d, "cp", box+":"+at, "-"), nil)))
				plain, ok := got[name+"/plain"]
				if !ok || plain.body != "plain\n" || plain.Mode != 0o640 || plain.Uid != 1000 || plain.Gid != 2000 || plain.ModTime.Unix() != 1700000000 {
					t.Errorf("plain: %+v", plain)
				}
				if e := got[name+"/suid"]; e.Header == nil || e.Mode != 0o4755 || e.PAXRecords["SCHILY.xattr.security.capability"] != capability {
					t.Errorf("suid: %+v", e)
				}
				if e := got[name+"/sub/linked"]; e.Header == nil || e.Typeflag != tar.TypeLink || e.Linkname != name+"/plain" {
					t.Errorf("linked: %+v", e)
				}
				if e := got[name+"/sub/away"]; e.Header == nil || e.Typeflag != tar.TypeSymlink || e.Linkname != "/etc/passwd" {
					t.Errorf("away: %+v", e)
				}
				if e := got[name+"/sub/"]; e.Header == nil || e.Mode != 0o750 {
					t.Errorf("sub: %+v", e)
				}
				if e := got[name+"/fifo"]; e.Header == nil || e.Typeflag != tar.TypeFifo {
					t.Errorf("fifo: %+v", e)
				}

				// Copy a folder into an existing folder, the contents of a
				// folder, a file over a file, and an archive from standard
				// input.
				back := t.TempDir()
				run(t, client(d, "cp", box+":"+at+"/.", back), nil)
				if b, err := os.ReadFile(back + "/plain"); err != nil || string(b) != "plain\n" {
					t.Errorf("copied out: %q, %v", b, err)
				}
				must(os.WriteFile(src+"/one", []byte("one\n"), 0o644))
				run(t, client(d, "cp", src+"/one", box+":"+at+"/plain"), nil)
				run(t, client(d, "cp", "-", box+":"+at), bytes.NewReader(archive(t, tar.Header{Name: "deep/er/file", Uname: "by tar\n"})))
				got = entries(t, strings.NewReader(run(t, client(d, "cp", box+":"+at, "-"), nil)))
				if got[name+"/plain"].body != "one\n" || got[name+"/deep/er/file"].body != "by tar\n" {
					t.Errorf("after the second copy: %+v", got)
				}
				// With -L a symbolic link is resolved within the container.
				run(t, client(d, "cp", "-L", box+":"+at+"/sub/away", back+"/passwd"), nil)
				if b, err := os.ReadFile(back + "/passwd"); err != nil || !strings.HasPrefix(string(b), "root:x:0:0:root:/root:/bin/sh\n") || strings.Contains(string(b), "daemon:") {
					t.Errorf("the copy of the container's /etc/passwd has %q: %v", b, err)
				}
			})
		}
	}
	if out := d.Docker("exec", "runs", "stat", "-c", "%a %u:%g", "/home/docker/suid", "/home/docker/fifo"); out != "4755 0:0\n600 0:0" {
		t.Errorf("inside: %q", out)
	}
	d.Docker("start", "idle")
	told := events(d, "--filter", "event=archive-path", "--filter", "event=extract-to-dir", "--filter", "container=idle", "--format", "{{.Action}}")
	if !strings.Contains(told, "archive-path") || !strings.Contains(told, "extract-to-dir") {
		t.Errorf("events: %q", told)
	}
}

func TestCopyOwnedByTheContainersUserWhenAsked(t *testing.T) {
	d := live(t)
	d.Docker("create", "--name", "box", "--user", "app:extra", image, "true")
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Docker("cp", "-a", file, "box:/tmp/kept")
	d.Docker("cp", file, "box:/tmp/plain")
	got := entries(t, strings.NewReader(d.Docker("cp", "box:/tmp", "-")+"\n"))
	if e := got["tmp/kept"]; e.Header == nil || e.Uid != 1000 || e.Gid != 2000 {
		t.Errorf("with -a: %+v", e.Header)
	}
	if e := got["tmp/plain"]; e.Header == nil || e.Uid != 0 {
		t.Errorf("without: %+v", e.Header)
	}
}

func TestCopySeesWhatTheContainerSees(t *testing.T) {
	d := live(t)
	host := t.TempDir()
	args := []string{"-v", "vol:/vol", "-v", host + ":/bind", "--tmpfs", "/mem", "-v", "sub:/vol/inner"}
	d.Docker(append(append([]string{"run", "-d", "--name", "box"}, args...), image, "sh", "-c",
		"for d in vol bind mem vol/inner; do echo $d > /$d/seen; done; touch /ready; sleep 9999")...)
	d.Docker("exec", "box", "sh", "-c", "until [ -e /ready ]; do usleep 1000; done")
	see := func(path, want string) {
		t.Helper()
		got := entries(t, strings.NewReader(d.Docker("cp", "box:"+path, "-")+"\n"))
		if got["seen"].body != want+"\n" {
			t.Errorf("%s: %+v", path, got)
		}
	}
	see("/vol/seen", "vol")
	see("/bind/seen", "bind")
	see("/mem/seen", "mem")
	see("/vol/inner/seen", "vol/inner")
	if hosts := d.Docker("cp", "box:/etc/hosts", "-"); !strings.Contains(hosts, d.Docker("inspect", "-f", "{{.Config.Hostname}}", "box")) {
		t.Errorf("/etc/hosts: %q", hosts)
	}
	// Files of the container's proc file system can't be copied.
	if code, said := ask(t, d, "GET", "box", "/proc/1/environ", "", nil); code != 404 {
		t.Errorf("/proc/1/environ: %d %s", code, said)
	}
	if code, _ := ask(t, d, "PUT", "box", "/proc/sys/kernel", "", bytes.NewReader(archive(t, tar.Header{Name: "x", Uname: "x"}))); code != 404 {
		t.Errorf("unpack below /proc: %d", code)
	}
	for name := range entries(t, strings.NewReader(d.Docker("cp", "box:/", "-")+"\n")) {
		if strings.HasPrefix(name, "/proc/") && name != "/proc/" || strings.HasPrefix(name, "/sys/") && name != "/sys/" {
			t.Fatalf("copied with /: %s", name)
		}
	}
	d.Docker("stop", "-t", "0", "box")
	see("/vol/seen", "vol")
	see("/bind/seen", "bind")
	see("/vol/inner/seen", "vol/inner")
	if code, _ := ask(t, d, "GET", "box", "/mem/seen", "", nil); code != 404 {
		t.Errorf("a tmpfs of a stopped container: status %d", code)
	}
	d.DockerWith(bytes.NewReader(archive(t, tar.Header{Name: "new", Uname: "by cp\n"})), "cp", "-", "box:/bind")
	if b, err := os.ReadFile(host + "/new"); err != nil || string(b) != "by cp\n" {
		t.Errorf("through the bind: %q, %v", b, err)
	}
	// A container that has never run has its mounts, too.
	d.Docker("create", "--name", "fresh", "-v", "vol:/made/here", image, "true")
	if got := entries(t, strings.NewReader(d.Docker("cp", "fresh:/made/here/seen", "-")+"\n")); got["seen"].body != "vol\n" {
		t.Errorf("cp from a container that has never run: %+v", got)
	}
}

func TestWhatIsReadOnlyIsNotWritten(t *testing.T) {
	d := live(t)
	for _, state := range []string{"created", "running"} {
		box := "ro-" + state
		d.Docker("create", "--name", box, "--read-only", "-v", "ro:/ro:ro", "-v", "rw:/rw", image, "sleep", "9999")
		if state == "running" {
			d.Docker("start", box)
		}
		for path, want := range map[string]string{
			"/": "container rootfs is marked read-only", "/tmp": "container rootfs is marked read-only",
			"/ro": "mounted volume is marked read-only", "/rw": "",
		} {
			code, said := ask(t, d, "PUT", box, path, "", bytes.NewReader(archive(t, tar.Header{Name: "f", Uname: "x"})))
			if want == "" && code != 200 || want != "" && (code != 400 || said != want) {
				t.Errorf("%s %s: %d %q, want %q", state, path, code, said, want)
			}
		}
	}
}

func TestBadCopiesAreRefusedAndSayWhy(t *testing.T) {
	d := live(t)
	d.Docker("run", "-d", "--name", "box", image, "sleep", "9999")
	d.Docker("exec", "box", "sh", "-c", "mkdir /d; touch /f; ln -s /loop2 /loop1; ln -s /loop1 /loop2")
	good := archive(t, tar.Header{Name: "f", Uname: strings.Repeat("body", 1000)})
	for _, c := range []struct {
		method, box, path, query string
		body                     []byte
		code                     int
		says                     string
	}{
		{"GET", "nobody", "/", "", nil, 404, "No such container: nobody"},
		{"GET", "box", "", "", nil, 400, "path cannot be empty"},
		{"GET", "box", "/none", "", nil, 404, "Could not find the file /none in container box"},
		{"HEAD", "box", "/none", "", nil, 404, ""},
		{"HEAD", "box", "/f", "", nil, 200, ""},
		{"GET", "box", "/f/below", "", nil, 400, "not a directory"},
		{"GET", "box", "/f/", "", nil, 400, "not a directory"},
		{"PUT", "box", "/none", "", good, 404, "Could not find the file /none in container box"},
		{"PUT", "box", "/f", "", good, 400, "extraction point is not a directory"},
		{"PUT", "box", "/loop1", "", good, 400, "too many levels of symbolic links"},
		{"PUT", "box", "/d", "", good[:700], 400, "unexpected EOF"},
		{"PUT", "box", "/d", "", []byte(strings.Repeat("no archive ", 200)), 400, "the archive can't be read"},
		{"PUT", "box", "/d", "", archive(t, tar.Header{Name: "../../../../tmp/out", Uname: "x"}), 400, "leads out of it"},
		{"PUT", "box", "/d", "", archive(t, tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "../../../etc/passwd"}), 400, "leads out of it"},
		{"PUT", "box", "/d", "", archive(t, tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "none/such"}), 400, "which is not there"},
		{"PUT", "box", "/", "&noOverwriteDirNonDir=true", archive(t, tar.Header{Name: "d", Uname: "x"}), 400, "cannot overwrite directory"},
		{"PUT", "box", "/", "&noOverwriteDirNonDir=true", archive(t, tar.Header{Name: "f/", Typeflag: tar.TypeDir}), 400, "cannot overwrite non-directory"},
		{"PUT", "box", "/", "", archive(t, tar.Header{Name: "d", Uname: "x"}), 200, ""},
	} {
		code, said := ask(t, d, c.method, c.box, c.path, c.query, bytes.NewReader(c.body))
		if code != c.code || !strings.Contains(said, c.says) {
			t.Errorf("%s %s:%s%s: %d %q, want %d %q", c.method, c.box, c.path, c.query, code, said, c.code, c.says)
		}
	}
	// The error must reach a client that still has much to send.
	large := archive(t, tar.Header{Name: "f", Uname: strings.Repeat("large", 2<<20)})
	for range 10 {
		if code, said := ask(t, d, "PUT", "box", "/none", "", bytes.NewReader(large)); code != 404 || !strings.Contains(said, "/none") {
			t.Errorf("large: %d %q", code, said)
		}
	}
	if out := d.Docker("exec", "box", "cat", "/d"); out != "x" {
		t.Errorf("error for a file in the place of a folder: %q", out)
	}
}

// swap exchanges two names in an endless loop, as fast as it can.
func swap(a, b string) {
	for {
		_ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	}
}

func TestHostileContainerNeverLeadsOutOfItsRoot(t *testing.T) {
	d := live(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	host := filepath.Join(d.Root, "host")
	if err := os.MkdirAll(host+"/in", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/secret", "/in/secret"} {
		if err := os.WriteFile(host+name, []byte("of the host"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// On the host the links lead to the folder host; in the container no such
	// path exists. The magic link leads through /proc of a process of the host,
	// which this container can see.
	for name, link := range map[string]string{"absolute": host, "up": strings.Repeat("../", 40) + host[1:], "magic": "/proc/" + strconv.Itoa(os.Getpid()) + "/root" + host} {
		d.Docker("run", "-d", "--name", name, "--pid=host", "-v", self+":/swap:ro", "-e", "SWAP_A=/w/x", "-e", "SWAP_B=/w/y", image,
			"sh", "-c", "mkdir -p /w/x/in; echo mine > /w/x/secret; echo mine > /w/x/in/secret; ln -s "+link+" /w/y; touch /ready; exec /swap")
		d.Docker("exec", name, "sh", "-c", "until [ -e /ready ]; do usleep 1000; done")
	}
	evil := archive(t, tar.Header{Name: "x/planted", Uname: "evil"}, tar.Header{Name: "x/in/", Typeflag: tar.TypeDir, Mode: 0o777}, tar.Header{Name: "x/in/planted", Uname: "evil"})
	served := map[string]int{}
	for i := range 100 {
		for _, box := range []string{"absolute", "up", "magic"} {
			for _, path := range []string{"/w/x/secret", "/w/x/in", "/w/x/", "/w"} {
				res, err := d.HTTP().Get("http://d/containers/" + box + "/archive?path=" + path)
				if err != nil {
					t.Fatalf("%s %s: %v\n%s", box, path, err, d.Log())
				}
				b, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil {
					served["GET broken off"]++
				}
				if bytes.Contains(b, []byte("of the host")) {
					t.Fatalf("round %d: %s read a file of the host through %s", i, box, path)
				}
				served[fmt.Sprint("GET ", res.StatusCode)]++
			}
			for _, path := range []string{"/w", "/w/x"} {
				code, _ := ask(t, d, "PUT", box, path, "", bytes.NewReader(evil))
				served[fmt.Sprint("PUT ", code)]++
			}
		}
	}
	t.Log(served)
	if served["GET 200"] == 0 || served["PUT 200"] == 0 {
		t.Errorf("no copy succeeded: %v", served)
	}
	var names []string
	err = filepath.WalkDir(host, func(path string, e os.DirEntry, err error) error {
		names = append(names, strings.TrimPrefix(path, host))
		return err
	})
	if want := " /in /in/secret /secret"; err != nil || strings.Join(names, " ") != want {
		t.Errorf("the file on the host contains %q, want %q (%v)", names, want, err)
	}
	if st, err := os.Stat(host + "/in"); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("the mode of a folder on the host is %v: %v", st.Mode(), err)
	}
}

// slow requests an archive, reads its beginning, and leaves the rest to the
// caller.
func slow(t *testing.T, d *kit.Daemon, box, path string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", strings.TrimPrefix(d.Host, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "GET /containers/%s/archive?path=%s HTTP/1.1\r\nHost: d\r\n\r\n", box, path); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 4096)
	if n, err := io.ReadFull(conn, head); err != nil || !bytes.HasPrefix(head, []byte("HTTP/1.1 200")) {
		t.Fatalf("%q, %v", head[:n], err)
	}
	return conn
}

func withBigFile(t *testing.T, d *kit.Daemon, name string) {
	t.Helper()
	d.Docker("run", "--name", name, "-v", "vol:/vol", image, "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=64")
}

func TestStartAndRemovalWaitForACopyOfAStoppedContainer(t *testing.T) {
	d := live(t)
	withBigFile(t, d, "box")
	conn := slow(t, d, "box", "/big")
	defer conn.Close()
	start := d.DockerCommand(context.Background(), "start", "-a", "box")
	if err := start.Start(); err != nil {
		t.Fatal(err)
	}
	if d.Docker("inspect", "-f", "{{.State.Status}}", "box") != "exited" {
		t.Error("started under a copy")
	}
	conn.Close()
	if err := start.Wait(); err != nil {
		t.Error(err)
	}
	conn = slow(t, d, "box", "/big")
	conn.Close()
	d.Docker("rm", "box")
}

func TestKilledDaemonLeavesNothingOfACopy(t *testing.T) {
	d := live(t)
	withBigFile(t, d, "box")
	d.Docker("run", "-d", "--name", "runs", image, "sh", "-c", "truncate -s 64M /big; touch /ready; sleep 9999")
	d.Docker("exec", "runs", "sh", "-c", "until [ -e /ready ]; do usleep 1000; done")
	for _, box := range []string{"box", "runs"} {
		out := slow(t, d, box, "/big")
		r, w := io.Pipe()
		put := d.DockerCommand(context.Background(), "cp", "-", "runs:/tmp")
		put.Stdin = r
		if err := put.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(archive(t, tar.Header{Name: "half", Uname: strings.Repeat("x", 100000)})[:50000]); err != nil {
			t.Fatal(err)
		}
		d.Kill9()
		w.Close()
		_ = put.Wait() // fails, because its daemon was killed
		if n, _ := io.Copy(io.Discard, out); n > 64<<20 {
			t.Errorf("%s: the whole archive arrived although the daemon was killed", box)
		}
		out.Close()
		if left := mountsBelow(t, d.DataRoot+"/containers"); len(left) > 0 {
			t.Errorf("still mounted after the daemon's death: %q", left)
		}
		d.Start()
	}
	if got := d.Docker("inspect", "-f", "{{.State.Status}}", "runs"); got != "running" {
		t.Errorf("the state of the copied container: %s", got)
	}
	d.Docker("start", "-a", "box")
	d.Docker("rm", "box")
	d.Docker("rm", "-f", "runs")
}

func TestRunningContainersAreCopiedFromAndToWithoutADaemon(t *testing.T) {
	d := live(t)
	d.Docker("run", "-d", "--name", "box", "--tmpfs", "/mem", image, "sleep", "9999")
	d.Docker("create", "--name", "idle", image, "true")
	d.Kill9()
	into := d.HoldfastCommand(context.Background(), "cp", "-", "box:/mem")
	run(t, into, bytes.NewReader(archive(t, tar.Header{Name: "f", Uname: "by nobody's daemon"})))
	out := run(t, d.HoldfastCommand(context.Background(), "cp", "box:/mem/f", "-"), nil)
	if got := entries(t, strings.NewReader(out)); got["f"].body != "by nobody's daemon" {
		t.Errorf("%+v", got)
	}
	if r := d.TryHoldfast("cp", "idle:/etc/passwd", "-"); r.Code == 0 || !strings.Contains(r.Stderr, "needs the daemon") {
		t.Errorf("cp from a stopped container: %+v", r)
	}
	d.Start()
}

func mountsBelow(t *testing.T, dir string) []string {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(raw)) {
		if strings.Contains(line, " "+dir+"/") {
			out = append(out, line)
		}
	}
	return out
}

func TestLargeArchivesTakeNoMemory(t *testing.T) {
	d := live(t)
	d.Docker("run", "-d", "--name", "box", image, "sh", "-c", "truncate -s 512M /big; touch /ready; sleep 9999")
	d.Docker("exec", "box", "sh", "-c", "until [ -e /ready ]; do usleep 1000; done")
	before := peak(t, d.Pid())
	cmd := d.DockerCommand(context.Background(), "cp", "box:/big", "-")
	cmd.Stdout = io.Discard
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	go func() {
		tw := tar.NewWriter(w)
		_ = tw.WriteHeader(&tar.Header{Name: "back", Size: 256 << 20, Mode: 0o644})
		_, err := io.CopyN(tw, zeros{}, 256<<20)
		_ = tw.Close()
		w.CloseWithError(err)
	}()
	d.DockerWith(r, "cp", "-", "box:/tmp")
	grown := peak(t, d.Pid()) - before
	t.Logf("768 MB took %d kB", grown)
	if grown > 32<<10 {
		t.Errorf("the daemon grew by %d kB", grown)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// peak is the peak resident memory of a process, in kB.
func peak(t *testing.T, pid int) int {
	t.Helper()
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(raw), "VmHWM:")
	n, err := strconv.Atoi(strings.Fields(after)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
