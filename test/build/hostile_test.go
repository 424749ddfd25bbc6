// SPDX-License-Identifier: Apache-2.0

package build

import (
	"archive/tar"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

// saysOne fails the test unless a build has failed with one of words, separated by "|".
func saysOne(t *testing.T, r kit.Result, words string) {
	t.Helper()
	for _, w := range strings.Split(words, "|") {
		if r.Code != 0 && strings.Contains(r.Stdout+r.Stderr, w) {
			return
		}
	}
	t.Errorf("exit code %d, want an error with one of %q:\n%s%s", r.Code, words, r.Stdout, r.Stderr)
}

// falsified is an answer of a registry that is changed on its way.
func falsified(h http.Handler, change func(r *http.Request, a *httptest.ResponseRecorder)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, "/manifests/") || r.Method == http.MethodPut {
			h.ServeHTTP(w, r)
			return
		}
		a := httptest.NewRecorder()
		h.ServeHTTP(a, r)
		change(r, a)
		for name, values := range a.Header() {
			w.Header()[name] = values
		}
		if r.Method != http.MethodHead {
			w.Header().Set("Content-Length", strconv.Itoa(a.Body.Len()))
		}
		w.WriteHeader(a.Code)
		_, _ = w.Write(a.Body.Bytes())
	})
}

func TestFrontendImageThatIsNotWhatItClaimsIsRefused(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	program, err := os.ReadFile(kit.Tool(t, "dockerfile-frontend"))
	if err != nil {
		t.Fatal(err)
	}
	frontend := kit.Image(t, empty.Image, func(c *v1.Config) { c.Entrypoint = []string{"/frontend"} }, kit.Layer(t, kit.File{Name: "frontend", Body: program, Mode: 0o755}))
	never := make(chan struct{})
	t.Cleanup(func() { close(never) })
	absent := "sha256:" + strings.Repeat("0", 64)
	for _, c := range []struct {
		name   string
		change func(r *http.Request, a *httptest.ResponseRecorder)
		at     string // follows the reference
		words  string
	}{
		{"a digest that is not there", func(*http.Request, *httptest.ResponseRecorder) {}, "@" + absent, "not found"},
		{"another digest than its content", func(_ *http.Request, a *httptest.ResponseRecorder) {
			a.Header().Set("Docker-Content-Digest", absent)
		}, "", "digest|not found|unexpected"},
		{"another content than its digest", func(r *http.Request, a *httptest.ResponseRecorder) {
			if r.Method == http.MethodGet {
				a.Body = bytes.NewBuffer(bytes.Replace(a.Body.Bytes(), []byte(`"layers"`), []byte(`"slayer"`), 1))
			}
		}, "", "digest|unexpected|size"},
		{"a wrong media type", func(_ *http.Request, a *httptest.ResponseRecorder) {
			a.Header().Set("Content-Type", "application/vnd.example.none+json")
		}, "", "media|mediatype|type|not found|manifest"},
		{"no manifest", func(_ *http.Request, a *httptest.ResponseRecorder) {
			a.Header().Set("Content-Type", "text/html")
			a.Body = bytes.NewBufferString("<html>")
		}, "", "not found|digest|type|manifest|invalid|unexpected|size"},
	} {
		t.Run(c.name, func(t *testing.T) {
			lies := false
			r := kit.StartRegistry(t, func(h http.Handler) http.Handler {
				return falsified(h, func(r *http.Request, a *httptest.ResponseRecorder) {
					if lies {
						c.change(r, a)
					}
				})
			})
			r.Push("frontend", frontend)
			lies = true
			saysOne(t, tryBuild(t, d, files(t, map[string]string{"Dockerfile": "# syntax=" + r.Host + "/frontend" + c.at + "\nFROM base\nRUN echo built\n"})), c.words)
			nothingLeft(t, d)
		})
	}
	t.Run("an entitlement that its client has not given", func(t *testing.T) {
		r := kit.StartRegistry(t, nil)
		r.Push("frontend", frontend)
		for _, step := range []string{"--security=insecure", "--network=host"} {
			saysOne(t, tryBuild(t, d, files(t, map[string]string{"Dockerfile": "# syntax=" + r.Host + "/frontend\nFROM base\nRUN " + step + " true\n"})), "is not allowed")
		}
		nothingLeft(t, d)
	})
	t.Run("a registry that never answers", func(t *testing.T) {
		r := kit.StartRegistry(t, func(http.Handler) http.Handler {
			return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				select {
				case <-never:
				case <-r.Context().Done():
				}
			})
		})
		b := begin(t, d, nil, "--progress=plain", files(t, map[string]string{"Dockerfile": "# syntax=" + r.Host + "/frontend\nFROM base\n"}))
		b.until("resolve image config for docker-image://" + r.Host)
		build(t, d, files(t, map[string]string{"Dockerfile": "FROM base\nRUN true\n"}))
		b.kill()
		_ = b.end()
		nothingLeft(t, d)
	})
}

func TestOptionsInTheURLOfGitAreNone(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	marker := filepath.Join(t.TempDir(), "ran")
	url := web(t, nil)
	touch := "touch${IFS}" + marker
	for _, context := range []string{
		"--upload-pack=" + touch + ".git",
		url + "/repo.git#--upload-pack=" + touch,
		url + "/repo.git#--exec=" + touch,
		url + "/repo.git?ref=--upload-pack=" + touch,
		url + "/repo.git?branch=--upload-pack=" + touch + "&subdir=--help",
		"ssh://-oProxyCommand=" + touch + "/repo.git",
		"git@-oProxyCommand=" + touch + ":repo.git",
		"ssh://git@-oProxyCommand=" + touch + ":22/repo.git#master",
		"git://-u/repo.git",
	} {
		for client, run := range map[string]func(dir ...string) kit.Result{
			"buildx":     func(args ...string) kit.Result { return tryBuild(t, d, args...) },
			"old client": func(args ...string) kit.Result { return classic(d, args...) },
			"POST": func(args ...string) kit.Result {
				req, err := http.NewRequest(http.MethodPost, "http://x/v1.43/build", nil)
				if err != nil {
					t.Fatal(err)
				}
				q := req.URL.Query()
				q.Set("remote", args[0])
				req.URL.RawQuery = q.Encode()
				resp, err := d.HTTP().Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				text, _ := io.ReadAll(resp.Body)
				r := kit.Result{Stdout: string(text)}
				if resp.StatusCode != http.StatusOK || bytes.Contains(text, []byte(`"error"`)) {
					r.Code = 1
				}
				return r
			},
		} {
			r := run(context)
			if r.Code == 0 {
				t.Errorf("%s, %s: the build succeeds:\n%s%s", client, context, r.Stdout, r.Stderr)
			}
			if r.Stdout+r.Stderr == "" {
				t.Errorf("%s, %s: there is no word of the error", client, context)
			}
			if _, err := os.Lstat(marker); err == nil {
				t.Errorf("%s, %s: a command ran on the host", client, context)
				os.Remove(marker)
			}
		}
	}
	// One of them may also be in ADD.
	saysOne(t, tryBuild(t, d, files(t, map[string]string{"Dockerfile": "FROM base\nADD " + url + "/repo.git#--upload-pack=" + touch + " /x/\n"})), "invalid|ref|not found")
	if _, err := os.Lstat(marker); err == nil {
		t.Error("ADD: a command ran on the host")
	}
	nothingLeft(t, d)
}

// TestSpecialFilesOfAContext sends what is neither a file nor a directory, and what has more
// than content. Nothing waits for such files, and a device in an image can't be opened.
func TestSpecialFilesOfAContext(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	const dockerfile = "FROM base\nCOPY . /x/\nRUN cd /x; for f in *; do stat -c '%n %F %a' $f; done >/list\n" +
		"RUN cd /x; for f in kmsg disk; do head -c 1 $f && echo opened $f; done >>/list; true\n"
	dir := files(t, map[string]string{"Dockerfile": dockerfile, ".dockerignore": "Dockerfile\n.dockerignore\n", "plain": "p", "setuid": "s"})
	at := func(name string) string { return filepath.Join(dir, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Chmod(at("setuid"), 0o755|os.ModeSetuid))
	must(unix.Setxattr(at("plain"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	must(unix.Mkfifo(at("fifo"), 0o644))
	must(unix.Mknod(at("kmsg"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 11))))
	l, err := net.Listen("unix", at("socket"))
	must(err)
	defer l.Close()

	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "Dockerfile", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(dockerfile))},
		{Name: "setuid", Typeflag: tar.TypeReg, Mode: 0o4755},
		{Name: "plain", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o644},
		{Name: "kmsg", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 11, Mode: 0o666},
		{Name: "disk", Typeflag: tar.TypeBlock, Devmajor: 8, Devminor: 0, Mode: 0o666},
	} {
		must(w.WriteHeader(&h))
		if h.Size > 0 {
			_, err := io.WriteString(w, dockerfile)
			must(err)
		}
	}
	must(w.Close())

	for name, run := range map[string]func(args ...string) kit.Result{
		"directory, buildx": func(args ...string) kit.Result { return tryBuild(t, d, append(args, dir)...) },
		"archive, buildx": func(args ...string) kit.Result {
			cmd := buildCommand(t, d, append(args, "-")...)
			cmd.Stdin = bytes.NewReader(b.Bytes())
			return d.Run(cmd)
		},
		"archive, old client": func(args ...string) kit.Result {
			cmd := classicCommand(d, append(args, "-")...)
			cmd.Stdin = bytes.NewReader(b.Bytes())
			return d.Run(cmd)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := run("--no-cache", "-t", "special")
			if r.Code != 0 {
				t.Fatalf("exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
			}
			got := d.Docker("run", "--rm", "special", "cat", "/list")
			if !strings.Contains(got, "setuid regular empty file 4755") && !strings.Contains(got, "setuid regular file 4755") {
				t.Errorf("the mode of the file with the setuid bit:\n%s", got)
			}
			if !strings.Contains(got, "plain regular") || !strings.Contains(got, "kmsg") || strings.Contains(got, "opened") {
				t.Errorf("the step sees\n%s", got)
			}
			if got := d.TryDocker("run", "--rm", "special", "head", "-c", "1", "/x/kmsg"); got.Code == 0 || !strings.Contains(got.Stderr, "not permitted") {
				t.Errorf("a container opens the device: %+v", got)
			}
			if strings.HasPrefix(name, "directory") {
				// Docker keeps the attributes that the kernel takes from root alone, too.
				if got := d.Docker("run", "--rm", "--entrypoint", "stat", "special", "-c", "%s", "/x/plain"); got != "1" {
					t.Errorf("the size of the file with an attribute is %q", got)
				}
			}
			d.Docker("rmi", "-f", "special")
		})
	}
	nothingLeft(t, d)
}
