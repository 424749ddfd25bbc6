// SPDX-License-Identifier: Apache-2.0

package copy

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"
)

func TestCommittedContainerIsAnImageThatRuns(t *testing.T) {
	drivers(t, func(t *testing.T, d *kit.Daemon) {
		d.Docker("run", "-d", "--name", "box", "-v", "vol:/vol", "-e", "KEPT=yes", "--label", "l=1", "--expose", "81", "-w", "/www", image, "sh", "-c", "touch /vol/in; "+alter)
		d.Docker("exec", "box", "sh", "-c", "until [ -e /ready ]; do usleep 1000; done")
		pid := d.Docker("inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", "box")
		id := d.Docker("commit", "-a", "somebody", "-m", "because", "-c", `CMD ["sh", "-c", "cat /new/deep/file; echo $KEPT $ADDED; ls /vol /bin/zcat /home /www /usr2 | tr '\n' ' '"]`, "-c", "ENV ADDED=too", "box", "made:1")
		if got := d.Docker("inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", "box"); got != pid || d.Docker("inspect", "-f", "{{.State.Status}}", "box") != "running" {
			t.Errorf("the container was %s and is %s", pid, got)
		}
		if got := d.Docker("images", "-q", "--no-trunc", "made:1"); got != id {
			t.Errorf("made:1 is %s, want %s", got, id)
		}
		r := d.TryDocker("run", "--rm", "made:1")
		if want := "y\nyes too\n"; !strings.HasPrefix(r.Stdout, want) || !strings.Contains(r.Stderr, "/bin/zcat: No such file") || strings.Contains(r.Stdout, "in ") || strings.Contains(r.Stdout, "index.html") || strings.Contains(r.Stdout, "app") {
			t.Errorf("a container of the committed image: %+v", r)
		}
		var got []struct {
			Author, Comment string
			Config          struct {
				Labels       map[string]string
				ExposedPorts map[string]any
				WorkingDir   string
			}
			RootFS struct{ Layers []string }
		}
		if err := json.Unmarshal([]byte(d.Docker("image", "inspect", "made:1", image)), &got); err != nil {
			t.Fatal(err)
		}
		if i := got[0]; i.Author != "somebody" || i.Config.Labels["l"] != "1" || i.Config.WorkingDir != "/www" || len(i.Config.ExposedPorts) != 1 || len(i.RootFS.Layers) != len(got[1].RootFS.Layers)+1 {
			t.Errorf("%+v", i)
		}
		if h := d.Docker("history", "--format", "{{.Comment}}", "made:1"); !strings.HasPrefix(h, "because\n") {
			t.Errorf("history: %q", h)
		}
		told := events(d, "--filter", "container=box", "--format", "{{.Action}}")
		if !strings.HasSuffix(told, "pause\nunpause\ncommit") {
			t.Errorf("events: %q", told)
		}

		// Commit a stopped container with holdfast and without a name, and
		// commit a container of the resulting image.
		d.Docker("kill", "box")
		bare := d.Holdfast("commit", "--no-pause", "box")
		if out := d.Docker("run", "--rm", bare, "cat", "/new/deep/file"); out != "y" {
			t.Errorf("a container of the unnamed image printed %q", out)
		}
		d.Docker("run", "--name", "second", "made:1", "sh", "-c", "rm -r /new; echo two > /two")
		d.Docker("commit", "second", "made:2")
		if r := d.TryDocker("run", "--rm", "made:2", "cat", "/two", "/new/deep/file"); r.Stdout != "two\n" || r.Code == 0 {
			t.Errorf("a container of the second image: %+v", r)
		}
		// A commit of a container that changed no file adds no layer.
		d.Docker("create", "--name", "same", image, "true")
		d.Docker("commit", "same", "same:1")
		if a, b := d.Docker("inspect", "-f", "{{.RootFS.Layers}}", "same:1"), d.Docker("inspect", "-f", "{{.RootFS.Layers}}", image); a != b {
			t.Errorf("layers %s, want %s", a, b)
		}
		// A committed image can be saved and loaded like any other.
		file := filepath.Join(t.TempDir(), "made.tar")
		d.Docker("save", "-o", file, "made:2")
		d.Docker("rm", "second", "same")
		d.Docker("rmi", "made:2")
		d.Docker("load", "-i", file)
		if out := d.Docker("run", "--rm", "made:2", "cat", "/two"); out != "two" {
			t.Errorf("a container of the loaded image printed %q", out)
		}
	})
}

func TestBadCommitsAreRefusedAndSayWhy(t *testing.T) {
	d := live(t)
	d.Docker("create", "--name", "box", image, "true")
	for query, want := range map[string]struct {
		code int
		says string
	}{
		"":                                          {400, "missing parameter"},
		"?container=nobody":                         {404, "No such container: nobody"},
		"?container=box&repo=NOT+GOOD":              {400, "invalid reference format"},
		"?container=box&repo=a&tag=:":               {400, "invalid tag"},
		"?container=box&repo=a&changes=FROM+x":      {400, "FROM is not a valid change command"},
		"?container=box&repo=a&changes=CMD":         {400, "requires at least one argument"},
		"?container=box&repo=a@sha256:" + zeros64(): {400, "refusing to create a tag with a digest reference"},
	} {
		res, err := d.HTTP().Post("http://d/commit"+query, "application/json", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		var said struct{ Message string }
		_ = json.NewDecoder(res.Body).Decode(&said)
		res.Body.Close()
		if res.StatusCode != want.code || !strings.Contains(said.Message, want.says) {
			t.Errorf("%s: %d %q, want %d %q", query, res.StatusCode, said.Message, want.code, want.says)
		}
	}
	// Without the container's image there are no layers to build on.
	d.Docker("rmi", "-f", d.Docker("images", "-q", "--no-trunc", image))
	late := time.Now().Add(patience)
	var r kit.Result
	for r = d.TryDocker("commit", "box"); r.Code == 0 && time.Now().Before(late); r = d.TryDocker("commit", "box") {
		d.Docker("rmi", "-f", strings.TrimSpace(r.Stdout)) // the garbage collector has not run yet
	}
	if !strings.Contains(r.Stderr, "the image of the container is gone") {
		t.Errorf("%+v", r)
	}
}

func TestContainerFrozenForACommitGoesOnWhenTheDaemonIsKilled(t *testing.T) {
	d := live(t)
	d.Docker("run", "-d", "--name", "box", "-p", "127.0.0.1::80", image, "sh", "-c", "echo here > /index.html; exec httpd -f -p 80 -h /")
	page := "http://" + d.Docker("port", "box", "80") + "/index.html"
	d.Term()
	d.SetEnv("HOLDFAST_FAILPOINT=commit.frozen")
	d.Start()
	d.SetEnv()
	d.TryHoldfast("commit", "box", "made:1")
	d.WaitExit()
	client := &http.Client{Timeout: 5 * time.Second}
	r, err := client.Get(page)
	if err != nil {
		t.Fatalf("without a daemon: %v", err)
	}
	r.Body.Close()
	d.Start()
	if got := d.Docker("inspect", "-f", "{{.State.Status}}", "box"); got != "running" {
		t.Errorf("under the next daemon the container is %s", got)
	}
	// A commit leaves a container paused if the user paused it.
	d.Docker("pause", "box")
	d.Kill9()
	d.Start()
	if got := d.Docker("inspect", "-f", "{{.State.Status}}", "box"); got != "paused" {
		t.Errorf("the container that its user paused is %s", got)
	}
	d.Docker("unpause", "box")
	d.Docker("commit", "box", "made:2")
}

func zeros64() string { return strings.Repeat("0", 64) }
