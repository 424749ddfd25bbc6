// SPDX-License-Identifier: Apache-2.0

package build

import (
	"archive/tar"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// archive makes a tar of files.
func archive(t *testing.T, all map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range all {
		h := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}
		if link, ok := strings.CutPrefix(text, "-> "); ok {
			h.Typeflag, h.Linkname, h.Size, text = tar.TypeSymlink, link, 0, ""
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// pax makes a tar of files as Python's module does, each with an extended header.
func pax(t *testing.T, all map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range all {
		h := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg, Format: tar.FormatPAX, PAXRecords: map[string]string{"mtime": "1700000000.5"}}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// web is a server on this host with files below /, and a git repository at /repo.git
// that has a Dockerfile and a file, and the branch other with another file.
func web(t *testing.T, all map[string][]byte) (url string) {
	t.Helper()
	dir := files(t, map[string]string{"repo/Dockerfile": "FROM base\nCOPY file /\n" + showFile, "repo/file": "from git\n", "repo/sub/Dockerfile": "FROM base\nCOPY deep /file\n" + showFile, "repo/sub/deep": "deep\n"})
	run := func(args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Dir = filepath.Join(dir, "repo")
		cmd.Env = append(os.Environ(), "HOME="+dir, "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %s: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	run("init", "-q", "-b", "master")
	run("add", ".")
	run("commit", "-q", "-m", "one")
	run("checkout", "-q", "-b", "other")
	if err := os.WriteFile(filepath.Join(dir, "repo", "file"), []byte("from other\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	run("commit", "-q", "-a", "-m", "two")
	run("checkout", "-q", "master")
	run("clone", "-q", "--bare", ".", dir+"/repo.git")
	path := run("--exec-path")
	git := &cgi.Handler{
		Path: filepath.Join(path, "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/repo.git") {
			git.ServeHTTP(w, r)
			return
		}
		text, ok := all[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(text)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// commitOf returns the commit of a branch.
func commitOf(t *testing.T, url, branch string) string {
	t.Helper()
	out, err := exec.Command("git", "ls-remote", url, "refs/heads/"+branch).Output()
	if err != nil || len(out) < 40 {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out[:40])
}

// sshKey writes a key and returns its path.
func sshKey(t *testing.T) string {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDockerfileInstructions builds with each instruction and each of its flags, and
// looks at the result in a container.
func TestDockerfileInstructions(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	packed := archive(t, map[string]string{"in/packed": "packed\n"})
	url := web(t, map[string][]byte{"/download": []byte("downloaded\n"), "/packed.tar": packed})
	sum := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte("downloaded\n")))
	packedSum := fmt.Sprintf("sha256:%x", sha256.Sum256(packed))
	commit := commitOf(t, url+"/repo.git", "other")
	for i, c := range []struct {
		name       string
		dockerfile string
		files      map[string]string
		args       []string
		run        []string // in the image
		want       string   // what it prints
		fails      string   // a part of the error; "" if the build has to succeed
	}{
		{
			name: "ARG", args: []string{"--build-arg", "TAG=latest", "--build-arg", "HTTP_PROXY=http://proxy:1", "--build-arg", "WORD=b"},
			dockerfile: "ARG TAG=none\nFROM base:$TAG AS x\nARG WORD=a\nRUN echo $HTTP_PROXY >/proxy\nFROM x AS last\nENV LEFT=$WORD\nRUN echo $WORD ${WORD:+set} ${NONE:-none} $TARGETARCH $(env | grep -c -i proxy) >>/proxy\n",
			run:        []string{"cat", "/proxy"}, want: "http://proxy:1\nb set none 2",
		},
		{
			name:       "heredocs",
			dockerfile: "FROM base\nRUN <<EOF\necho one >/a\necho two >>/a\nEOF\nCOPY <<-\"EOF\" <<second.txt /d/\n\t$NOT expanded\nEOF\nthe second\nsecond.txt\nRUN <<EOF sh -x\nls /d | wc -l >/n\nEOF\n",
			run:        []string{"sh", "-c", "cat /a /d/EOF /d/second.txt /n"}, want: "one\ntwo\n$NOT expanded\nthe second\n2",
		},
		{
			name:       "COPY",
			dockerfile: "FROM base AS from\nRUN mkdir -p /s/t && echo x >/s/t/f && ln -s t/f /s/l\nFROM base\nCOPY --link --chown=1000:1000 --chmod=0640 f /link/f\nCOPY --chown=app --chmod=u=rw,go= f /named\nCOPY --from=from /s /s\nCOPY --parents a/b/c.txt a/./d/e.txt /p/\nCOPY --exclude=*.log --exclude=skip tree /tree/\nCOPY --from=base /etc/passwd /other\nCOPY [\"with space\", \"/with space\"]\n",
			files:      map[string]string{"f": "f", "a/b/c.txt": "c", "a/d/e.txt": "e", "tree/keep": "", "tree/x.log": "", "tree/skip/y": "", "with space": "s"},
			run:        []string{"sh", "-c", "stat -c '%u:%g %a' /link/f /named; readlink /s/l; cat /s/l; find /p -type f | sort; find /tree -type f; wc -l </other; cat '/with space'"},
			want:       "1000:1000 640\n1000:1000 600\nt/f\nx\n/p/a/b/c.txt\n/p/d/e.txt\n/tree/keep\n3\ns",
		},
		{
			name:       "ADD",
			dockerfile: "FROM base\nADD packed.tar /t/\nADD --unpack=false packed.tar /kept.tar\nADD --checksum=" + sum + " --chmod=0600 " + url + "/download /d/\nADD " + url + "/repo.git#other /git/\nADD --keep-git-dir=true " + url + "/repo.git /dir/\n",
			files:      map[string]string{"packed.tar": string(packed)},
			run:        []string{"sh", "-c", "cat /t/in/packed; test -s /kept.tar && stat -c %a /d/download; cat /d/download /git/file; ls -d /dir/.git"},
			want:       "packed\n600\ndownloaded\nfrom other\n/dir/.git",
		},
		{name: "ADD with a wrong checksum", dockerfile: "FROM base\nADD --checksum=sha256:" + strings.Repeat("0", 64) + " " + url + "/download /\n", fails: "digest mismatch"},
		{
			name:       "ADD of git and tar with checksums",
			dockerfile: "FROM base\nADD --checksum=" + commit + " " + url + "/repo.git#other /git/\nADD --checksum=" + packedSum + " --unpack=true " + url + "/packed.tar /t/\nADD --checksum=" + packedSum + " " + url + "/packed.tar /kept.tar\n",
			run:        []string{"sh", "-c", "cat /git/file /t/in/packed; test -s /kept.tar && echo kept"}, want: "from other\npacked\nkept",
		},
		{name: "ADD of git with a wrong checksum", dockerfile: "FROM base\nADD --checksum=" + strings.Repeat("0", 40) + " " + url + "/repo.git#other /git/\n", fails: "expected checksum to match"},
		{name: "ADD of tar with a wrong checksum", dockerfile: "FROM base\nADD --checksum=" + sum + " --unpack=true " + url + "/packed.tar /t/\n", fails: "digest mismatch"},
		{name: "ADD of what is not there", dockerfile: "FROM base\nADD " + url + "/none /\n", fails: "404"},
		{
			name:       "metadata",
			dockerfile: "FROM base AS parent\nONBUILD RUN echo onbuild >/on\nONBUILD COPY f /copied\nHEALTHCHECK --interval=3s --timeout=2s --start-period=1s --start-interval=1s --retries=4 CMD true\nSTOPSIGNAL SIGUSR1\nSHELL [\"/bin/sh\", \"-ec\"]\nLABEL z=1 a=\"two words\"\nMAINTAINER me\nFROM parent\nUSER app:app\nWORKDIR /work/dir\nWORKDIR deeper\nEXPOSE 80 90/udp\nVOLUME [\"/vol\", \"/v 2\"]\nENV A=1 B=\"$A 2\"\nENTRYPOINT echo $0 $A $B $PWD; cat /on /copied\n",
			files:      map[string]string{"f": "copied\n"},
			want:       "/bin/sh 1 2 /work/dir/deeper\nonbuild\ncopied",
		},
		{
			name:       "RUN --mount",
			dockerfile: "FROM base AS src\nRUN mkdir /o && echo from >/o/f\nFROM base\nRUN --mount=type=bind,source=d,target=/b --mount=type=bind,from=src,source=/o,target=/o,rw cat /b/f /o/f >/r && echo no >/o/new\nRUN --mount=type=bind,from=src,source=/o,target=/o test ! -e /o/new && ! touch /o/x\nRUN --mount=type=cache,target=/c,id=one,sharing=locked echo c >/c/c\nRUN --mount=type=cache,target=/u,uid=1000,mode=0700 stat -c '%u %a' /u >>/r\nRUN --mount=type=cache,target=/other,id=one,sharing=shared cat /other/c >>/r\nRUN --mount=type=cache,target=/c,id=two,from=src,source=/o,sharing=private cat /c/f >>/r\nRUN --mount=type=tmpfs,target=/t,size=1m df -k /t | tail -1 | awk '{print $2}' >>/r\nRUN --mount=type=secret,id=s,target=/sec,uid=1000,mode=0400,required stat -c '%u %a' /sec >>/r\nRUN --mount=type=secret,id=s,env=WORD sh -c 'echo ${#WORD}' >>/r\nRUN --mount=type=secret,id=absent echo ok >>/r\n",
			files:      map[string]string{"d/f": "bound\n", "secret": "hidden-word"}, args: []string{"--secret", "id=s,src=DIR/secret"},
			run: []string{"sh", "-c", "cat /r; ls / | grep -c -x -e b -e o -e c -e t -e sec || true"}, want: "bound\nfrom\n1000 700\nc\nfrom\n1024\n1000 400\n11\nok\n0",
		},
		{name: "a secret that is required", dockerfile: "FROM base\nRUN --mount=type=secret,id=absent,required true\n", fails: "secret absent: not found"},
		{
			name: "RUN --mount=type=ssh", args: []string{"--ssh", "default=" + sshKey(t)},
			dockerfile: "FROM base\nRUN --mount=type=ssh test -S $SSH_AUTH_SOCK && echo $SSH_AUTH_SOCK >/sock\n",
			run:        []string{"cat", "/sock"}, want: "/run/buildkit/ssh_agent.0",
		},
		{name: "ssh without an agent", dockerfile: "FROM base\nRUN --mount=type=ssh,required true\n", fails: "unset ssh forward key default"},
		{
			name:       "RUN --network",
			dockerfile: "FROM base\nRUN --network=none ls /sys/class/net | tr '\\n' ' ' >/n\nRUN --network=default ls /sys/class/net | tr '\\n' ' ' >>/n\n",
			run:        []string{"cat", "/n"}, want: "lo eth0 lo ",
		},
		{name: "host network without its entitlement", dockerfile: "FROM base\nRUN --network=host true\n", fails: "network.host"},
		{name: "insecure without its entitlement", dockerfile: "FROM base\nRUN --security=insecure true\n", fails: "security.insecure"},
		{
			name: "limits", args: []string{"--ulimit", "nofile=123:456", "--shm-size", "32m", "--add-host", "there=1.2.3.4", "--add-host", "gate=host-gateway"},
			dockerfile: "FROM base\nRUN (ulimit -Sn; ulimit -Hn; df -k /dev/shm | tail -1 | awk '{print $2}'; grep -c -w -e there -e gate /etc/hosts) >/l\n",
			run:        []string{"cat", "/l"}, want: "123\n456\n32768\n2",
		},
		{
			name:       "a failing RUN",
			dockerfile: "FROM base\nRUN echo last words >&2; exit 7\n", fails: "exit code: 7",
		},
		{name: "an unknown instruction", dockerfile: "FROM base\nRAN x\n", fails: "unknown instruction: RAN"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			all := map[string]string{"Dockerfile": c.dockerfile, ".dockerignore": ".dockerignore\nDockerfile\n"}
			for name, text := range c.files {
				all[name] = text
			}
			dir := files(t, all)
			made := fmt.Sprintf("made:%d", i)
			args := []string{"-t", made}
			for _, a := range c.args {
				args = append(args, strings.ReplaceAll(a, "DIR", dir))
			}
			r := tryBuild(t, d, append(args, dir)...)
			if c.fails != "" {
				if r.Code == 0 || !strings.Contains(r.Stderr, c.fails) {
					t.Errorf("exit code %d, want the error %q:\n%s", r.Code, c.fails, r.Stderr)
				}
				return
			}
			if r.Code != 0 {
				t.Fatalf("exit code %d\n%s", r.Code, r.Stderr)
			}
			got := d.Docker(append([]string{"run", "--rm", made}, c.run...)...)
			if got != c.want && !strings.HasSuffix(got, fmt.Sprint(c.want)) {
				t.Errorf("the image prints\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}
