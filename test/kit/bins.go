// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

var built struct {
	sync.Mutex
	dir   string
	paths map[string]string
}

// Binary returns the path of holdfastd, holdfast or holdfast-shim: the one in
// the directory HOLDFAST_BIN, or one that is built the first time that the test
// process asks for it.
func Binary(t testing.TB, name string) string {
	t.Helper()
	if dir := os.Getenv("HOLDFAST_BIN"); dir != "" {
		path, err := filepath.Abs(filepath.Join(dir, name))
		if err == nil {
			_, err = os.Stat(path)
		}
		if err != nil {
			t.Fatalf("HOLDFAST_BIN: %v: run make build", err)
		}
		return path
	}
	built.Lock()
	defer built.Unlock()
	if path := built.paths[name]; path != "" {
		return path
	}
	if built.dir == "" {
		sweepOnce.Do(sweep)
		// Named after the process, so that a later one can check whether it is
		// running.
		dir := fmt.Sprintf("/tmp/hfbin-%d", os.Getpid())
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		built.dir, built.paths = dir, map[string]string{}
	}
	// All three in one directory, because the daemon looks for the shim beside
	// itself.
	if err := BuildProgram(built.dir+"/", "holdfast/cmd/"+name, ""); err != nil {
		t.Fatal(err)
	}
	built.paths[name] = filepath.Join(built.dir, name)
	return built.paths[name]
}

// Main runs a package's tests and removes the binaries that Binary built.
// Packages whose tests use the kit have
//
//	func TestMain(m *testing.M) { kit.Main(m) }
func Main(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// moduleRoot returns the directory of go.mod.
func moduleRoot(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatalf("go env GOMOD: %v", err)
	}
	mod := strings.TrimSpace(string(out))
	if mod == "" || mod == os.DevNull {
		t.Fatal("tests must run within the module: go test ./test/...")
	}
	return filepath.Dir(mod)
}

// docker returns the path of Docker's client.
func docker(t testing.TB) string {
	t.Helper()
	if path, err := exec.LookPath("docker"); err == nil {
		return path
	}
	path := filepath.Join(moduleRoot(t), ".cache", "bin", "docker")
	if _, err := os.Stat(path); err != nil {
		t.Fatal("no docker client in PATH: run make tools")
	}
	return path
}

// needRoot fails a test that is not run as root on Linux.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatalf("%s starts a daemon: run it as root, on %s", t.Name(), runtime.GOOS)
	}
}

// Tool returns the path of a program that make tools has built, or that the host
// has.
func Tool(t testing.TB, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range pluginDirs {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	path := filepath.Join(moduleRoot(t), ".cache", "bin", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run make tools", err)
	}
	return path
}

// pluginDirs are where distributions and Docker put the plugins of Docker's client.
var pluginDirs = []string{"/usr/libexec/docker/cli-plugins", "/usr/lib/docker/cli-plugins", "/usr/local/lib/docker/cli-plugins"}
