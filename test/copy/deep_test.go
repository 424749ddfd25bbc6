// SPDX-License-Identifier: Apache-2.0

package copy

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// The kernel takes no path of 4,096 bytes or more. A container makes such ones
// from two parts, as its shell goes no deeper either.
var (
	deepName = strings.Repeat("0123456789", 10)
	deepRest = "e/" + strings.Repeat(deepName+"/", 20) // in the folder that goDeep leads to
	goDeep   = "for i in $(seq 30); do cd " + deepName + "; done; "
	makeDeep = "mkdir -p /d/" + strings.Repeat(deepName+"/", 30) + " /" + deepRest + "; cd /" + deepRest + "; echo x > f; ln -s f link; ln f hard; mkdir empty; chmod 750 .; cd /d; " + goDeep + "mv /e .; "
)

func deepPath(name string) string {
	return "d/" + strings.Repeat(deepName+"/", 30) + deepRest + name
}

func TestPathsLongerThanTheKernelTakesAreCopied(t *testing.T) {
	t.Parallel()
	d := live(t)
	d.Docker("run", "-d", "--name", "box", "-v", "vol:/vol", image, "sh", "-c", makeDeep+strings.NewReplacer(" /d", " /vol/d", " /e", " /vol/e").Replace(makeDeep)+"touch /ready; exec sleep 9999")
	d.Docker("exec", "box", "sh", "-c", "until [ -e /ready ]; do usleep 1000; done")

	complete := func(what string, got map[string]entry, prefix string) {
		t.Helper()
		if f := got[prefix+deepPath("f")]; f.Header == nil || f.body != "x\n" && f.Typeflag != tar.TypeLink {
			t.Errorf("%s: the file is missing, of %d entries", what, len(got))
		}
		if l := got[prefix+deepPath("link")]; l.Header == nil || l.Linkname != "f" {
			t.Errorf("%s: the link is missing", what)
		}
		if e := got[prefix+deepPath("empty/")]; e.Header == nil || e.Typeflag != tar.TypeDir {
			t.Errorf("%s: the folder is missing", what)
		}
		if e := got[prefix+deepPath("")]; e.Header == nil || e.Mode&0o777 != 0o750 {
			t.Errorf("%s: the folder above it is missing, or has another mode", what)
		}
	}
	export := run(t, d.DockerCommand(t.Context(), "export", "box"), nil)
	complete("export", entries(t, strings.NewReader(export)), "")
	out := run(t, d.DockerCommand(t.Context(), "cp", "box:/d", "-"), nil)
	complete("cp", entries(t, strings.NewReader(out)), "")
	out = run(t, d.DockerCommand(t.Context(), "cp", "box:/vol/d", "-"), nil)
	complete("cp of a volume", entries(t, strings.NewReader(out)), "")
	if diff := d.Docker("diff", "box"); !strings.Contains(diff, "A /"+deepPath("f")+"\n") {
		t.Errorf("diff: %d bytes", len(diff))
	}

	// Into a running container, one that is stopped, and a volume.
	d.Docker("create", "--name", "other", "-v", "other:/vol", image, "sh", "-c", "cd /d; "+goDeep+"cat "+deepRest+"f "+deepRest+"hard; readlink "+deepRest+"link; rmdir "+deepRest+"empty && echo empty")
	run(t, d.DockerCommand(t.Context(), "cp", "-", "other:/"), strings.NewReader(out))
	run(t, d.DockerCommand(t.Context(), "cp", "-", "other:/vol"), strings.NewReader(out))
	if got := d.Docker("start", "-a", "other"); got != "x\nx\nf\nempty" {
		t.Errorf("in the copy: %q", got)
	}
	if got := d.Docker("run", "--rm", "-v", "other:/v", image, "sh", "-c", "cd /v/d; "+goDeep+"cat "+deepRest+"f"); got != "x" {
		t.Errorf("in the volume: %q", got)
	}
	run(t, d.DockerCommand(t.Context(), "cp", "-", "box:/tmp"), strings.NewReader(out))
	complete("cp of the copy", entries(t, strings.NewReader(run(t, d.DockerCommand(t.Context(), "cp", "box:/tmp/d", "-"), nil))), "")

	// Sizes and the end of all that.
	if size := d.Docker("ps", "-s", "--format", "{{.Size}}", "--filter", "name=box"); strings.HasPrefix(size, "0B") {
		t.Errorf("size %s", size)
	}
	d.Docker("system", "df", "-v")
	d.Docker("rm", "-f", "box", "other")
	d.Docker("volume", "rm", "vol", "other")
	if left := entriesBelow(t, d.DataRoot+"/volumes"); left != 0 {
		t.Errorf("%d volumes are left", left)
	}
}

// entriesBelow counts the folders in a folder.
func entriesBelow(t *testing.T, dir string) (n int) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.IsDir() {
			n++
		}
	}
	return n
}

// The libraries that unpack layers name files by their paths. A layer that they
// can't unpack is refused with the reason, and leaves nothing behind.
func TestLayerWithAPathLongerThanTheKernelTakesIsRefusedClearly(t *testing.T) {
	t.Parallel()
	drivers(t, func(t *testing.T, d *kit.Daemon) {
		before := d.Docker("system", "df", "--format", "{{.Type}} {{.Size}}")
		d.Docker("run", "--name", "box", image, "sh", "-c", makeDeep)
		export := run(t, d.DockerCommand(t.Context(), "export", "box"), nil)
		refused := func(what string, r kit.Result) {
			t.Helper()
			if r.Code == 0 || !strings.Contains(r.Stderr, "the layer has a path of ") || !strings.Contains(r.Stderr, "the kernel's limit is 4095") || len(r.Stderr) > 1000 {
				t.Errorf("%s: %d %q", what, r.Code, r.Stderr)
			}
		}
		refused("commit", d.TryDocker("commit", "box", "made"))
		file := filepath.Join(t.TempDir(), "export.tar")
		if err := os.WriteFile(file, []byte(export), 0o600); err != nil {
			t.Fatal(err)
		}
		refused("import", d.TryDocker("import", file, "made"))
		reg := kit.StartRegistry(t, nil)
		ref := reg.Push("deep:1", kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t, kit.File{Name: deepPath("f"), Body: []byte("x\n")})))
		refused("pull", d.TryDocker("pull", ref))
		d.Docker("rm", "box")
		kit.Eventually(t, "the store has again the size that it had", func() bool {
			return d.Docker("system", "df", "--format", "{{.Type}} {{.Size}}") == before
		})
	})
}
