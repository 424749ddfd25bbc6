// SPDX-License-Identifier: Apache-2.0

// Package arch checks the architecture: which package may import which, what
// each binary may not link and why, that every package has a comment, and that
// documents refer only to things that exist. It needs no root.
package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// modulePath is the module's path, the prefix of all of our packages.
const modulePath = "holdfast"

// pkg is the part of the output of "go list" that the tests use.
type pkg struct {
	ImportPath   string
	Dir          string
	Doc          string
	Standard     bool
	Imports      []string
	Deps         []string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
}

// rel is the path inside the repository: internal/engine, cmd/holdfast.
func (p *pkg) rel() string { return strings.TrimPrefix(p.ImportPath, modulePath+"/") }

func own(importPath string) bool { return strings.HasPrefix(importPath, modulePath+"/") }

// std reports whether a package is in the standard library. Only there the
// first element of the path has no dot.
func std(importPath string) bool {
	first, _, _ := strings.Cut(importPath, "/")
	return !strings.Contains(first, ".") && !own(importPath)
}

// root is the repository's directory.
var root = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", err
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
})

// packages are the module's own packages, as they are built for Linux.
var packages = sync.OnceValues(func() ([]*pkg, error) {
	dir, err := root()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("go", "list", "-e",
		"-json=ImportPath,Dir,Doc,Standard,Imports,Deps,GoFiles,TestGoFiles,XTestGoFiles", "./...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	var list []*pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(pkg)
		if err := dec.Decode(p); errors.Is(err, io.EOF) {
			return list, nil
		} else if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
})

func rootDir(t *testing.T) string {
	t.Helper()
	dir, err := root()
	if err != nil {
		t.Fatal("find the module: ", err)
	}
	return dir
}

func ownPackages(t *testing.T) []*pkg {
	t.Helper()
	list, err := packages()
	if err != nil {
		t.Fatal("go list: ", err)
	}
	if len(list) == 0 {
		t.Fatal("go list found no package")
	}
	return list
}

func find(t *testing.T, rel string) *pkg {
	t.Helper()
	for _, p := range ownPackages(t) {
		if p.rel() == rel {
			return p
		}
	}
	t.Fatalf("package %s does not exist", rel)
	return nil
}
