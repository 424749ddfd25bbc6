// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// BuildProgram builds the command in a Go package, static, as the file at path. stamp
// has further flags for the linker, such as "-X main.release=2".
func BuildProgram(path, pkg, stamp string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w "+stamp, "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// Shim builds the shim with the version of another release, and returns its path.
func Shim(t testing.TB, release string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "holdfast-shim")
	if err := BuildProgram(path, "holdfast/cmd/holdfast-shim", "-X main.release="+release); err != nil {
		t.Fatal(err)
	}
	return path
}

// ProgramImage is an image of busybox with the command in a Go package, as
// /bin/NAME.
func ProgramImage(t testing.TB, pkg string) v1.Image {
	t.Helper()
	name := filepath.Base(pkg)
	path := filepath.Join(t.TempDir(), name)
	if err := BuildProgram(path, pkg, ""); err != nil {
		t.Fatal(err)
	}
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return Image(t, Busybox(t, nil), nil, Layer(t, File{Name: "bin/" + name, Body: body, Mode: 0o755}))
}

// Files writes files, by their paths, and returns their directory.
func Files(t testing.TB, all map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range all {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
