// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"

	"holdfast/test/kit"
)

// TestOptionsOfABuild goes through the options of docker build that say what becomes of
// the result, and the commands that show builds.
func TestOptionsOfABuild(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	r := kit.StartRegistry(t, nil)
	frontend, err := os.ReadFile(kit.Tool(t, "dockerfile-frontend"))
	if err != nil {
		t.Fatal(err)
	}
	d.Load("frontend:latest", kit.Image(t, empty.Image, nil, kit.Layer(t, kit.File{Name: "frontend", Body: frontend, Mode: 0o755})))
	dir := files(t, map[string]string{
		"Dockerfile":      "FROM base AS one\nRUN echo one >/word\nFROM base AS two\nRUN echo two >/word\n",
		"lint":            "from base\nENV A 1\n",
		"Front":           "FROM frontend\nENTRYPOINT [\"/frontend\"]\n",
		"syntax":          "# syntax=" + r.Host + "/frontend\nFROM base\nRUN echo by another >/word\n",
		"scanner":         "FROM base\nCOPY scan /scan\nENTRYPOINT [\"/bin/sh\", \"/scan\"]\n",
		"scan":            "mkdir -p $BUILDKIT_SCAN_DESTINATION\nprintf '{\"_type\":\"https://in-toto.io/Statement/v0.1\",\"predicateType\":\"https://spdx.dev/Document\",\"predicate\":{\"name\":\"scanned\",\"files\":\"%s\"}}' \"$(cat $BUILDKIT_SCAN_SOURCE/word)\" >$BUILDKIT_SCAN_DESTINATION/out.spdx.json\n",
		"docker-bake.hcl": "group \"default\" { targets = [\"a\", \"b\"] }\ntarget \"a\" {\n  target = \"one\"\n  tags = [\"baked:a\"]\n}\ntarget \"b\" {\n  inherits = [\"a\"]\n  target = \"two\"\n  tags = [\"baked:b\"]\n}\n",
	})
	in := func(name string) string { return filepath.Join(dir, name) }
	word := func(image string) string { return d.Docker("run", "--rm", image, "cat", "/word") }
	fails := func(words string, args ...string) {
		t.Helper()
		if r := d.TryDocker(args...); r.Code == 0 || !strings.Contains(r.Stdout+r.Stderr, words) {
			t.Errorf("docker %s: exit code %d, want %q:\n%s%s", strings.Join(args, " "), r.Code, words, r.Stdout, r.Stderr)
		}
	}

	t.Run("target, metadata, quiet", func(t *testing.T) {
		build(t, d, "--target", "one", "-t", "a:1", "-t", "b", "--metadata-file", in("meta"), dir)
		if got := word("a:1") + word("b"); got != "oneone" {
			t.Errorf("got %q", got)
		}
		var meta map[string]any
		text, _ := os.ReadFile(in("meta"))
		if err := json.Unmarshal(text, &meta); err != nil || !strings.Contains(string(text), "a:1,docker.io/library/b") || !strings.HasPrefix(meta["containerimage.digest"].(string), "sha256:") {
			t.Errorf("%v in %s", err, text)
		}
		if id := d.Docker("build", "-q", dir); d.Docker("image", "inspect", "-f", "{{.ID}}", id) != id {
			t.Errorf("-q prints %q", id)
		}
		fails("target stage", "build", "--target", "none", dir)
	})
	t.Run("check", func(t *testing.T) {
		build(t, d, "--check", dir)
		fails("LegacyKeyValueFormat", "build", "--check", "-f", in("lint"), dir)
		fails("lint violation", "build", "--build-arg", "BUILDKIT_DOCKERFILE_CHECK=error=true", "--check", "-f", in("lint"), dir)
	})
	t.Run("syntax", func(t *testing.T) {
		d.Docker("build", "-f", in("Front"), "-t", r.Host+"/frontend", dir)
		d.Docker("push", r.Host+"/frontend")
		d.Docker("rmi", r.Host+"/frontend")
		got := build(t, d, "-f", in("syntax"), "-t", "a", dir)
		if word("a") != "by another" || !strings.Contains(got, "docker-image://"+r.Host+"/frontend") {
			t.Errorf("got %s", got)
		}
		r := classic(d, "--no-cache", "-f", in("syntax"), "-t", "a", dir)
		if r.Code != 0 || !strings.Contains(r.Stdout, "Successfully tagged a:latest") {
			t.Errorf("old client: %d %s%s", r.Code, r.Stdout, r.Stderr)
		}
	})
	t.Run("attestations", func(t *testing.T) {
		d.Docker("build", "-f", in("scanner"), "-t", r.Host+"/scanner", "--push", dir)
		build(t, d, "--provenance=mode=max", "--sbom=generator="+r.Host+"/scanner", "-t", r.Host+"/attested", "--push", "--annotation", "index:a=b", dir)
		d.Docker("rmi", "-f", r.Host+"/attested")
		d.Docker("pull", r.Host+"/attested")
		resp, err := d.HTTP().Get("http://x/v1.53/images/" + r.Host + "/attested/attestations?statement=true")
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		for _, want := range []string{"slsa.dev/provenance", "spdx.dev/Document", "scanned", `two`} {
			if !strings.Contains(string(text), want) {
				t.Errorf("no %q in %s", want, text)
			}
		}
		if got := d.Docker("buildx", "imagetools", "inspect", "--raw", r.Host+"/attested"); !strings.Contains(got, `"a": "b"`) || !strings.Contains(got, "attestation-manifest") {
			t.Errorf("the index: %s", got)
		}
	})
	t.Run("outputs", func(t *testing.T) {
		for kind, want := range map[string]string{"tar": "word", "oci": "index.json", "docker": "manifest.json"} {
			path := in(kind + ".tar")
			build(t, d, "-o", "type="+kind+",dest="+path, dir)
			text, err := os.ReadFile(path)
			if err != nil || !strings.Contains(string(text), want) {
				t.Errorf("%s: %v, %d bytes", kind, err, len(text))
			}
		}
		d.Docker("load", "-i", in("docker.tar"))
		cmd := d.DockerCommand(context.Background(), "build", "-o", "-", dir)
		if out := d.Run(cmd); out.Code != 0 || !strings.Contains(out.Stdout, "two") {
			t.Errorf("-o -: %d, %s", out.Code, out.Stderr)
		}
		build(t, d, "-o", "type=image,name="+r.Host+"/zstd,push=true,compression=zstd,force-compression=true,oci-mediatypes=true", dir)
		d.Docker("rmi", "-f", r.Host+"/zstd")
		d.Docker("pull", r.Host+"/zstd")
		if word(r.Host+"/zstd") != "two" {
			t.Error("an image with zstd")
		}
	})
	t.Run("caches", func(t *testing.T) {
		for _, c := range []struct{ to, from string }{
			{"type=local,mode=max,dest=" + in("cache"), "type=local,src=" + in("cache")},
			{"type=inline", "type=registry,ref=" + r.Host + "/inline"},
			{"type=registry,mode=max,ref=" + r.Host + "/max", r.Host + "/max"},
		} {
			build(t, d, "--cache-to", c.to, "-t", r.Host+"/inline", "--push", dir)
			d.Docker("rmi", "-f", r.Host+"/inline")
			d.Docker("builder", "prune", "-af")
			if got := build(t, d, "--cache-from", c.from, "-t", "again", dir); !imported(got) {
				t.Errorf("%s is not used:\n%s", c.from, got)
			}
			if word("again") != "two" {
				t.Error("the image of an imported cache")
			}
			d.Docker("rmi", "-f", "again")
			d.Docker("builder", "prune", "-af")
		}
	})
	t.Run("bake", func(t *testing.T) {
		cmd := d.DockerCommand(context.Background(), "buildx", "bake", "--progress=plain")
		cmd.Dir = dir
		if out := d.Run(cmd); out.Code != 0 || word("baked:a")+word("baked:b") != "onetwo" {
			t.Errorf("%d %s", out.Code, out.Stderr)
		}
	})
	t.Run("history and cache", func(t *testing.T) {
		build(t, d, "-t", "a", dir)
		ref := strings.Fields(d.Docker("buildx", "history", "ls", "--format", "{{.Ref}}"))
		if len(ref) == 0 {
			t.Fatal("there is no history")
		}
		if got := d.Docker("buildx", "history", "inspect", filepath.Base(ref[0])); !strings.Contains(got, "Build Steps:") {
			t.Errorf("inspect: %s", got)
		}
		d.Docker("buildx", "history", "logs", filepath.Base(ref[0]))
		if got := d.Docker("history", "a"); !strings.Contains(got, "echo two") {
			t.Errorf("image history: %s", got)
		}
		if got := d.Docker("buildx", "du", "--verbose"); !strings.Contains(got, "Description:") {
			t.Errorf("du: %s", got)
		}
		if got := d.Docker("system", "df", "-v"); !strings.Contains(got, "Build cache usage") && !strings.Contains(got, "CACHE ID") {
			t.Errorf("df: %s", got)
		}
		fails("expects a duration", "builder", "prune", "-af", "--filter", "until=soon")
		for _, args := range [][]string{{"--keep-storage", "1GB"}, {"--reserved-space", "1GB"}, {"--max-used-space", "1GB"}, {"--min-free-space", "1MB"}} {
			d.Docker(append([]string{"buildx", "prune", "-af"}, args...)...)
		}
		d.Docker("system", "prune", "-af")
		if got := d.Docker("system", "df", "--format", "{{.Type}} {{.TotalCount}}"); !strings.Contains(got, "Build Cache 0") {
			t.Errorf("after system prune -a: %s", got)
		}
	})
}
