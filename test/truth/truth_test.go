// SPDX-License-Identifier: Apache-2.0

// Package truth tests that the daemon's answers are true and equal to
// dockerd's: accepted names work, lists leave out removed objects, and
// interrupted operations continue. It needs root.
package truth

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

func TestMain(m *testing.M) { kit.Main(m) }

const image = "busybox:test"

func start(t *testing.T, o kit.Options) *kit.Daemon {
	t.Helper()
	d := kit.Start(t, o)
	d.Load(image, kit.Busybox(t, nil))
	return d
}

// both runs a test on a daemon of Holdfast and on a current dockerd.
func both(t *testing.T, test func(t *testing.T, d *kit.Daemon)) {
	t.Run("holdfast", func(t *testing.T) { test(t, start(t, kit.Options{})) })
	t.Run("dockerd", func(t *testing.T) {
		p := kit.StartPeer(t, kit.PeerOptions{})
		p.Load(image, kit.Busybox(t, nil))
		test(t, p.Daemon)
	})
}

func same(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func get(t *testing.T, d *kit.Daemon, path string, into any) {
	t.Helper()
	resp, err := d.HTTP().Get("http://holdfast" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v: %s", path, resp.Status, err, body)
	}
	if err := json.Unmarshal(body, into); err != nil {
		t.Fatalf("%s: %v: %s", path, err, body)
	}
}

// TestContainersAnswerAsInDocker compares single answers with those of dockerd.
func TestContainersAnswerAsInDocker(t *testing.T) {
	both(t, func(t *testing.T, d *kit.Daemon) {
		d.Docker("run", "-d", "--name", "c1", image, "sleep", "600")

		// Programs recognize by these two files that they run in a container.
		same(t, "files of every container", d.Docker("exec", "c1", "sh", "-c", "stat -c '%n %F %a' /.dockerenv; readlink /etc/mtab"), "/.dockerenv regular empty file 755\n/proc/mounts")
		same(t, "they are no change", strings.Join(strings.Fields(d.Docker("diff", "c1")), " "), "")
		same(t, "nor in what an image keeps", d.Docker("run", "--rm", image, "sh", "-c", "ls -A / | grep -c dockerenv"), "1")

		r := d.TryDocker("exec", "-u", "nobody-there", "c1", "true")
		if r.Code != 1 || r.Stdout != "" || !strings.Contains(r.Stderr, "unable to find user nobody-there: no matching entries in passwd file") {
			t.Errorf("exec of nobody: %+v", r)
		}

		same(t, "runtime by its shim", d.Docker("run", "--rm", "--runtime", "io.containerd.runc.v2", image, "echo", "hi"), "hi")

		d.Docker("run", "--name", "l1", "--log-driver", "local", "--log-opt", "tag={{.Name}}", "--log-opt", "labels=a", "--label", "a=b", image, "echo", "hi")
		same(t, "details of a local log", d.Docker("logs", "--details", "l1"), "a=b,tag=l1 hi")

		d.Docker("run", "--rm", "-v", "vol:/v", image, "mkdir", "-p", "/v/sub/empty")
		same(t, "an empty part of a volume is filled", d.Docker("run", "--rm", "--mount", "type=volume,src=vol,dst=/www,volume-subpath=sub/empty", image, "ls", "/www"), "index.html")
		same(t, "one that is not stays", d.Docker("run", "--rm", "--mount", "type=volume,src=vol,dst=/www,volume-subpath=sub", image, "ls", "/www"), "empty")
		d.Docker("run", "--rm", "-v", "vol:/v", image, "ln", "-s", "/etc", "/v/out")
		for _, sub := range []string{"out", "out/x"} {
			if r := d.TryDocker("run", "--rm", "--mount", "type=volume,src=vol,dst=/www,volume-subpath="+sub, image, "ls", "/www"); r.Code != 125 && r.Code != 127 || r.Stdout != "" {
				t.Errorf("subpath %s: %+v", sub, r)
			}
		}

		dir := filepath.Join(d.Root, "devices")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mknod(dir+"/n", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
			t.Fatal(err)
		}
		for name, target := range map[string]string{"/dir": dir, "/node": dir + "/n"} {
			if err := os.Symlink(target, d.Root+name); err != nil {
				t.Fatal(err)
			}
		}
		same(t, "devices by links", d.Docker("run", "--rm", "--device", d.Root+"/dir:/dev/dir", "--device", d.Root+"/node:/dev/node", image, "sh", "-c", "stat -c '%n %t:%T' /dev/dir/n /dev/node"), "/dev/dir/n 1:3\n/dev/node 1:3")

		body := `{"Image":"` + image + `","Cmd":["grep","Seccomp:","/proc/self/status"],"HostConfig":{"SecurityOpt":["seccomp="]}}`
		resp, err := d.HTTP().Post("http://holdfast/containers/create?name=s1", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		same(t, "an empty seccomp profile is the default one", strings.Join(strings.Fields(d.Docker("start", "-a", "s1")), " "), "Seccomp: 2")
	})
}

// TestImagesAnswerAsInDocker compares answers about images with those of
// dockerd.
func TestImagesAnswerAsInDocker(t *testing.T) {
	both(t, func(t *testing.T, d *kit.Daemon) {
		d.Docker("run", "--name", "c1", image, "true")
		id := d.Docker("images", "-q", "--no-trunc", image)
		for pattern, want := range map[string]string{
			"docker.io/library/busybox": image, "docker.io/library/busybox:test": image, "docker.io/*/*:*": image,
			"busybox": image, "library/busybox": "", "busy*": image, "other": "",
		} {
			same(t, "images of "+pattern, d.Docker("images", "--filter", "reference="+pattern, "--format", "{{.Repository}}:{{.Tag}}"), want)
		}

		var list []struct {
			Manifests []struct{ ImageData struct{ Containers []string } }
		}
		get(t, d, "/v1.51/images/json?manifests=1", &list)
		c := d.Docker("inspect", "-f", "{{.Id}}", "c1")
		if len(list) != 1 || len(list[0].Manifests) != 1 || strings.Join(list[0].Manifests[0].ImageData.Containers, " ") != c {
			t.Errorf("users of the manifests: %+v, want %s", list, c)
		}

		d.Docker("tag", image, "t:1")
		d.Docker("tag", image, "t:2")
		out := d.Docker("image", "prune", "-af")
		if !strings.Contains(out, "untagged: t:1") || !strings.Contains(out, "untagged: t:2") || strings.Contains(out, "deleted:") {
			t.Errorf("prune of two tags: %s", out)
		}
		same(t, "the name in use stays", d.Docker("images", "--format", "{{.Repository}}:{{.Tag}}"), image)

		index := func(ref string) string {
			tar, err := exec.Command("sh", "-c", `"$0" -H "$1" save "$2" | tar xO index.json`, "docker", d.Host, ref).Output()
			if err != nil {
				t.Fatal(err)
			}
			return string(tar)
		}
		if got := index("busybox@" + id); strings.Contains(got, "org.opencontainers.image.ref.name") || !strings.Contains(got, id) {
			t.Errorf("an image saved by its digest has a tag: %s", got)
		}

		commit := d.Docker("commit", "-m", "hello", "c1", "made:1")
		// dockerd records the events in no particular order.
		want := "create " + commit + " " + commit + "\ntag " + commit + " made:1"
		kit.Eventually(t, "events of a commit", func() bool {
			return strings.HasSuffix(d.Docker("events", "--since", "1h", "--until", "0s", "--filter", "event=create", "--filter", "event=tag", "--filter", "event=commit",
				"--filter", "type=image", "--format", "{{.Action}} {{.Actor.ID}} {{.Actor.Attributes.name}}"), want)
		})
		kit.Eventually(t, "the events of the committed image", func() bool {
			return d.Docker("events", "--since", "1h", "--until", "0s", "--filter", "event=commit", "--format", "{{.Actor.Attributes.imageRef}}") == "made:1"
		})

		tar := exec.Command("tar", "c", "-C", d.Root, "daemon.json")
		archive, err := tar.Output()
		if err != nil {
			t.Fatal(err)
		}
		d.DockerWith(strings.NewReader(string(archive)), "import", "-", "imported:1")
		same(t, "comment of an import", d.Docker("inspect", "-f", "{{.Comment}}", "imported:1"), "Imported from -")

		for _, query := range []string{"", "?verbose=0", "?verbose=1"} {
			var du struct {
				ImageUsage struct{ Items []any }
				Images     []any
			}
			get(t, d, "/v1.55/system/df"+query, &du)
			if n := len(du.Images); len(du.ImageUsage.Items) == 0 || (n == 0) != (query == "?verbose=1") {
				t.Errorf("system/df%s has %d items and %d of the older form", query, len(du.ImageUsage.Items), n)
			}
		}
	})
}

func TestInfoTellsTheProxiesThatAreUsed(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{Env: []string{"HTTPS_PROXY=http://me:secret@127.0.0.1:3128", "no_proxy=example.com"}, Config: map[string]any{"http-proxy": "http://me:secret@127.0.0.1:3129"}})
	same(t, "proxies", d.Docker("info", "-f", "{{.HTTPProxy}} {{.HTTPSProxy}} {{.NoProxy}}"), "http://xxxxx:xxxxx@127.0.0.1:3129 http://xxxxx:xxxxx@127.0.0.1:3128 example.com")
}

// TestListsLeaveOutWhatHasGone: lists don't fail while containers, volumes and
// images are created and removed.
func TestListsLeaveOutWhatHasGone(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			id := d.TryDocker("create", "-v", "/v", image, "true").Stdout
			d.TryDocker("rm", "-fv", strings.TrimSpace(id))
			d.TryDocker("commit", strings.TrimSpace(d.TryDocker("create", "--name", "base", image).Stdout), "gone:1")
			d.TryDocker("rmi", "gone:1")
			d.TryDocker("rm", "-f", "base")
		}
	}()
	for range 150 {
		for _, path := range []string{"/system/df", "/containers/json?all=1&size=1", "/images/json?shared-size=1&manifests=1", "/volumes", "/networks"} {
			resp, err := d.HTTP().Get("http://holdfast/v1.51" + path)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s: %s %s", path, resp.Status, body)
			}
		}
	}
	cancel()
	<-done
	if strings.Contains(d.Log(), "an image is marked as damaged") {
		t.Error("a removed image is reported as damaged")
	}
}

func TestStatsThatASignalEndsSaySo(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	d.Docker("run", "-d", "--name", "c1", image, "sleep", "600")
	cmd := d.HoldfastCommand(context.Background(), "stats", "--format", "{{.Name}}", "c1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, out)
	if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 130 {
		t.Errorf("exit code %d", cmd.ProcessState.ExitCode())
	}
}

func TestHelpSaysNothingOfADaemonThatIsNotThere(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	d.Kill9()
	for _, args := range [][]string{{"--help"}, {"run", "--help"}, {"help"}} {
		if r := d.TryHoldfast(args...); r.Code != 0 || r.Stderr != "" || r.Stdout == "" {
			t.Errorf("holdfast %v: %+v", args, r)
		}
	}
}
