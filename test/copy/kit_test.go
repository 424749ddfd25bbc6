// SPDX-License-Identifier: Apache-2.0

// Package copy tests the commands that copy file trees of containers and
// images: cp, diff, export, commit, save, push. It needs root.
package copy

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"
)

const (
	image    = "busybox:test"
	patience = 30 * time.Second
)

func TestMain(m *testing.M) {
	if a, b := os.Getenv("SWAP_A"), os.Getenv("SWAP_B"); a != "" {
		swap(a, b) // runs as a program inside a container
	}
	kit.Main(m)
}

func live(t *testing.T) *kit.Daemon {
	t.Helper()
	d := kit.Start(t, kit.Options{LiveRestore: true, Disk: true})
	d.Load(image, kit.Busybox(t, nil))
	return d
}

// clients are the two command lines, which must behave the same.
var clients = map[string]func(*kit.Daemon, ...string) *exec.Cmd{
	"docker":   func(d *kit.Daemon, args ...string) *exec.Cmd { return d.DockerCommand(context.Background(), args...) },
	"holdfast": func(d *kit.Daemon, args ...string) *exec.Cmd { return d.HoldfastCommand(context.Background(), args...) },
}

// run runs a command with an input and returns its output.
func run(t *testing.T, cmd *exec.Cmd, stdin io.Reader) string {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, &errs)
	}
	return out.String()
}

// entry is the header of a name in an archive.
type entry struct {
	*tar.Header
	body string
}

func entries(t *testing.T, r io.Reader) map[string]entry {
	t.Helper()
	all := map[string]entry{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		all[h.Name] = entry{h, string(body)}
	}
}

func archive(t *testing.T, list ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range list {
		body := h.Uname // a test stores the file's contents there
		h.Uname, h.Size = "", int64(len(body))
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// ask sends a request to /containers/NAME/archive and returns the status and
// the error's message.
func ask(t *testing.T, d *kit.Daemon, method, name, path, query string, body io.Reader) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://d/containers/"+name+"/archive?path="+url.QueryEscape(path)+query, body)
	if err != nil {
		t.Fatal(err)
	}
	res, err := d.HTTP().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var said struct{ Message string }
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	_ = json.Unmarshal(raw, &said)
	return res.StatusCode, said.Message
}

// events returns the events up to now. It does not use --until with a duration,
// because the command line would truncate it to seconds.
func events(d *kit.Daemon, args ...string) string {
	return d.Docker(append([]string{"events", "--since", "1h", "--until", time.Now().Format(time.RFC3339Nano)}, args...)...)
}
