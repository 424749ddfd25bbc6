// SPDX-License-Identifier: Apache-2.0

package build

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// showFile is a step that prints the file of a context.
const showFile = "RUN echo \"<$(cat /file | sed 's/ $//')>\"\n"

// TestContextsOfEveryKind builds from each place that a context and a Dockerfile can be
// in, with BuildKit's clients and with old ones.
func TestContextsOfEveryKind(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	// Each build shows the file that it has got from its context.
	dockerfile := "FROM base\nCOPY file /\n" + showFile
	tarred := archive(t, map[string]string{"Dockerfile": dockerfile, "file": "tarred\n", "sub/other.Dockerfile": "FROM base\nCOPY sub/f /file\n" + showFile, "sub/f": "sub\n"})
	url := web(t, map[string][]byte{"/context.tar": tarred, "/Dockerfile": []byte("FROM base\nRUN echo remote >/file\n" + showFile)})
	dir := files(t, map[string]string{
		"Dockerfile": dockerfile, "file": "dir\n", "named/file": "named\n", "other/Dockerfile": "FROM base\nCOPY --from=more file /\n" + showFile, "other/elsewhere": "FROM base\nCOPY --from=more /f /file\n" + showFile,
		"ctx/a.go": "", "ctx/b.txt": "", "ctx/keep/b.txt": "", "ctx/keep/c.txt": "", "ctx/.dockerignore": "a.go\n", "ctx/special": "FROM base\nCOPY . /x\nRUN find /x -type f | sort | tr '\\n' ' ' >/file\n" + showFile,
		"ctx/special.dockerignore": "**\n!keep\nkeep/c*\n!keep/c.txt\nspecial*\n",
	})
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, c := range []struct {
		name  string
		stdin []byte
		args  []string
		want  string
		// buildx alone: older clients do not know it.
		buildx bool
	}{
		{"directory", nil, []string{dir}, "dir", false},
		{"tar on stdin", tarred, []string{"-"}, "tarred", false},
		{"tar on stdin, other Dockerfile", tarred, []string{"-f", "sub/other.Dockerfile", "-"}, "sub", false},
		{"Dockerfile on stdin, no context", []byte("FROM base\nRUN echo stdin >/file\n" + showFile), []string{"-"}, "stdin", false},
		{"Dockerfile on stdin", []byte(dockerfile), []string{"-f", "-", at("named")}, "named", false},
		{"Dockerfile outside of the context", nil, []string{"-f", at("Dockerfile"), at("named")}, "named", false},
		{"git", nil, []string{url + "/repo.git"}, "from git", false},
		{"git branch", nil, []string{url + "/repo.git#other"}, "from other", false},
		{"git directory", nil, []string{url + "/repo.git#master:sub"}, "deep", false},
		{"remote tar", nil, []string{url + "/context.tar"}, "tarred", false},
		{"remote Dockerfile", nil, []string{url + "/Dockerfile"}, "remote", false},
		{"named context", nil, []string{"--build-context", "more=" + at("named"), at("other")}, "named", true},
		{"named context of an image", nil, []string{"--build-context", "more=docker-image://second", "-f", at("other/elsewhere"), at("other")}, "of an image", true},
		{"named context of git", nil, []string{"--build-context", "more=" + url + "/repo.git", at("other")}, "from git", true},
		{"own ignore file", nil, []string{"-f", at("ctx/special"), at("ctx")}, "/x/keep/b.txt /x/keep/c.txt", true},
	} {
		build := func(t *testing.T, cmd *exec.Cmd) {
			cmd.Stdin = bytes.NewReader(c.stdin)
			r := d.Run(cmd)
			if r.Code != 0 || !strings.Contains(r.Stdout+r.Stderr, "<"+c.want+">") {
				t.Errorf("exit code %d, want the file %q\n%s%s", r.Code, c.want, r.Stdout, r.Stderr)
			}
		}
		if strings.Contains(c.name, "of an image") {
			d.DockerWith(strings.NewReader("FROM base\nRUN echo of an image >/f\n"), "build", "-q", "-t", "second", "-")
		}
		args := append([]string{"--no-cache"}, c.args...)
		t.Run(c.name, func(t *testing.T) { build(t, buildCommand(t, d, args...)) })
		if !c.buildx {
			t.Run(c.name+", old client", func(t *testing.T) { build(t, classicCommand(d, args...)) })
		}
	}
}

// TestArchiveThatBeginsWithAnExtendedHeader sends the context that Docker's module for
// Python makes.
func TestArchiveThatBeginsWithAnExtendedHeader(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	body := pax(t, map[string]string{"Dockerfile": "FROM base\nCOPY file /\n", "file": "pax\n"})
	resp, err := d.HTTP().Post("http://x/v1.43/build?t=made", "application/x-tar", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if !strings.Contains(string(text), "Step 2/2 : COPY file /") || !strings.Contains(string(text), "Successfully tagged made:latest") {
		t.Fatalf("%s %s", resp.Status, text)
	}
	if got := d.Docker("run", "--rm", "made", "cat", "/file"); got != "pax" {
		t.Errorf("the image has %q", got)
	}
	body = pax(t, map[string]string{"Dockerfile": "FROM base\nRUN exit 3\n"})
	if resp, err = d.HTTP().Post("http://x/v1.43/build", "application/x-tar", bytes.NewReader(body)); err != nil {
		t.Fatal(err)
	}
	text, _ = io.ReadAll(resp.Body)
	resp.Body.Close()
	for _, want := range []string{`"error":"The command '/bin/sh -c exit 3' returned a non-zero code: 3"`, `"errorDetail":{"code":3,`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("a failing step: no %s in %s", want, text)
		}
	}
}

// TestHostileContextsAreRefused sends contexts that try to reach the host's files.
func TestHostileContextsAreRefused(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("FROM base\nRUN echo of the host >/file\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	url := web(t, nil)
	marker := filepath.Join(t.TempDir(), "ran")
	for _, c := range []struct {
		name  string
		stdin map[string]string
		args  []string
		words string // one of these is in the error
	}{
		{"Dockerfile is a link to a host's file", map[string]string{"Dockerfile": "-> " + secret}, []string{"-"}, "no such file|not found|Dockerfile"},
		{"Dockerfile is a link that climbs", map[string]string{"Dockerfile": "-> ../../../../../../../../" + secret}, []string{"-"}, "no such file|not found|Dockerfile"},
		{"COPY of a link that climbs", map[string]string{"Dockerfile": "FROM base\nCOPY l/secret /x\n", "l": "-> ../../../../../../../.." + filepath.Dir(secret)}, []string{"-"}, "not found"},
		{"an entry that climbs", map[string]string{"Dockerfile": "FROM base\nCOPY . /x\nRUN test ! -e /x/../../climbed\n", "../../../../../../../../tmp/hf-climbed": "x"}, []string{"-"}, "breakout|outside|invalid|not found|permitted|escapes"},
		{"git with an option as its ref", nil, []string{url + "/repo.git#--upload-pack=touch " + marker}, "invalid|ref|not found"},
		{"git with an option as its directory", nil, []string{url + "/repo.git#master:../../../../etc"}, "not found|no such file|invalid|escapes|outside|not within"},
		{"git with another transport", nil, []string{"ext::sh -c 'touch " + marker + "'.git"}, "not found|invalid|unable|path"},
	} {
		for _, client := range []string{"buildx", "old client"} {
			t.Run(c.name+", "+client, func(t *testing.T) {
				cmd := buildCommand(t, d, append([]string{"-t", "made"}, c.args...)...)
				if client == "old client" {
					cmd = classicCommand(d, append([]string{"-t", "made"}, c.args...)...)
				}
				if c.stdin != nil {
					cmd.Stdin = bytes.NewReader(archive(t, c.stdin))
				}
				r := d.Run(cmd)
				said := false
				for _, w := range strings.Split(c.words, "|") {
					said = said || strings.Contains(r.Stderr, w)
				}
				if r.Code == 0 {
					got := d.TryDocker("run", "--rm", "made", "cat", "/file")
					t.Errorf("the build succeeds:\n%s%s\n/file: %s", r.Stdout, r.Stderr, got.Stdout)
				} else if !said {
					t.Errorf("want an error with one of %q:\n%s", c.words, r.Stderr)
				}
				for _, path := range []string{"/tmp/hf-climbed", marker} {
					if _, err := os.Lstat(path); err == nil {
						t.Errorf("%s was made on the host", path)
						os.Remove(path)
					}
				}
			})
		}
	}
}

// TestArchiveOfAContextNeverLeadsToTheHost sends archives whose later entries use what the
// earlier ones have made. They may be refused, or stay within the context.
func TestArchiveOfAContextNeverLeadsToTheHost(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	host := t.TempDir()
	secret := filepath.Join(host, "secret")
	if err := os.WriteFile(secret, []byte("of the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 20)
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink, Mode: 0o777}
	}
	hard := func(name, to string) tar.Header {
		return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeLink, Mode: 0o644}
	}
	file := func(name string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}
	}
	for name, entries := range map[string][]tar.Header{
		"a file below a link":              {link("l", host), file("l/made")},
		"a file below a link that climbs":  {link("l", up+host), file("l/made")},
		"a file in the place of a link":    {link("l", filepath.Join(host, "made")), file("l")},
		"a link to a host's file":          {link("taken", secret)},
		"a hard link to a host's file":     {hard("taken", secret)},
		"a hard link that climbs":          {hard("taken", up+secret)},
		"a hard link through a link":       {link("l", host), hard("taken", "l/secret")},
		"an absolute name":                 {file(filepath.Join(host, "made"))},
		"a name that climbs in the middle": {file("a/" + up + filepath.Join(host, "made"))},
		"a device":                         {{Name: "taken", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 5, Mode: 0o666}},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		text := "FROM base\nCOPY . /x/\nRUN if [ -e /x/taken ]; then head -c 100 /x/taken; fi; find /x -type f -exec cat {} +\n"
		for i, h := range append([]tar.Header{{Name: "Dockerfile", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))}}, entries...) {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				_, _ = io.WriteString(w, text)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		for _, client := range []string{"buildx", "old client"} {
			cmd := buildCommand(t, d, "--no-cache", "-")
			if client == "old client" {
				cmd = classicCommand(d, "--no-cache", "-")
			}
			cmd.Stdin = bytes.NewReader(b.Bytes())
			if r := d.Run(cmd); strings.Contains(r.Stdout+r.Stderr, "of the host") {
				t.Errorf("%s, %s: the step sees the host's file:\n%s%s", name, client, r.Stdout, r.Stderr)
			}
			if left, err := os.ReadDir(host); err != nil || len(left) != 1 {
				t.Errorf("%s, %s: %v was made on the host, %v", name, client, left, err)
			}
		}
	}
	build(t, d, files(t, map[string]string{"Dockerfile": "FROM base\nRUN true\n"}))
	nothingLeft(t, d)
}
