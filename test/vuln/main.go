// SPDX-License-Identifier: Apache-2.0

// Vuln checks every binary of ours with the Go vulnerability database.
//
// usage: vuln [-accepted FILE] [PACKAGE...]
//
// The database is fetched as a Go module, golang.org/x/vulndb. So it comes from
// the same source as our dependencies, and is verified like them. The binaries
// are built again, with their symbols, because a stripped binary does not show
// which functions of the standard library are linked.
//
// A vulnerability counts if a vulnerable function is linked into a binary. Each
// one is either fixed or listed among the accepted findings with a reason. A
// listed finding that no longer occurs must be removed from the list.
//
// Exit status:
//
//	0  every finding is accepted
//	1  a finding is not accepted, or the list is wrong
//	3  the database or the tool could not be fetched, so the result is unknown
//
// If only an older version of the database is available, it is used, and the
// output says so. The list may then contain more than the findings.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/version"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// tool is the version of govulncheck. The module does not depend on it.
const tool = "golang.org/x/vuln/cmd/govulncheck@v1.9.0"

const database = "golang.org/x/vulndb"

// download is the time limit for fetching the newest database.
const download = time.Minute

const (
	exitFound   = 1
	exitUnknown = 3
)

func main() {
	list := flag.String("accepted", "test/vuln/accepted.txt", "the list of accepted findings")
	cache := flag.String("cache", ".cache/bin", "where the tool is kept")
	flag.Parse()
	packages := flag.Args()
	if len(packages) == 0 {
		packages = []string{"./cmd/..."}
	}
	os.Exit(run(context.Background(), os.Stdout, *list, *cache, packages))
}

func run(ctx context.Context, out io.Writer, list, cache string, packages []string) int {
	accepted, err := readAccepted(list)
	if err != nil {
		fmt.Fprintln(out, "vuln:", err)
		return exitFound
	}
	db, state, newest, err := findDatabase(ctx)
	if err == nil && !newest {
		fmt.Fprintf(out, "vuln: the newest database could not be had: asking the state %s\n", state)
	}
	var check string
	if err == nil {
		check, err = findTool(ctx, cache)
	}
	if err != nil {
		fmt.Fprintf(out, "vuln: NOT CHECKED: %v\n", err)
		return exitUnknown
	}
	found, err := scan(ctx, check, db, packages)
	if err != nil {
		fmt.Fprintln(out, "vuln:", err)
		return exitFound
	}
	asked, err := toolchain(ctx)
	if err != nil {
		fmt.Fprintln(out, "vuln:", err)
		return exitFound
	}
	found, old := older(found, asked)
	if len(old) > 0 {
		fmt.Fprintf(out, "vuln: these binaries were built with %s, which has %s. go.mod asks for %s, which has not: build with that.\n",
			goVersion(old[0].Version), strings.Join(ids(old), ", "), asked)
	}
	return report(out, found, accepted, state, newest)
}

// toolchain is the Go release that go.mod requires.
func toolchain(ctx context.Context) (string, error) {
	text, err := command(ctx, nil, "go", "mod", "edit", "-json")
	if err != nil {
		return "", err
	}
	var mod struct{ Go, Toolchain string }
	if err := json.Unmarshal(text, &mod); err != nil {
		return "", err
	}
	return cmp.Or(mod.Toolchain, "go"+mod.Go), nil
}

func goVersion(module string) string { return "go" + strings.TrimPrefix(module, "v") }

// older separates the findings in the standard library that the required Go
// release does not have.
func older(found []finding, asked string) (rest, old []finding) {
	for _, f := range found {
		if f.Module == "stdlib" && f.Fixed != "" && version.Compare(goVersion(f.Fixed), asked) <= 0 {
			old = append(old, f)
		} else {
			rest = append(rest, f)
		}
	}
	return rest, old
}

func ids(list []finding) (out []string) {
	for _, f := range list {
		out = append(out, f.ID)
	}
	return out
}

// finding is a vulnerability with the binaries that link it.
type finding struct {
	ID, Summary, Module, Version, Fixed string
	Function                            string   // one of the vulnerable functions
	Binaries                            []string // sorted
}

// acceptance is a line of the list.
type acceptance struct{ ID, Reason string }

// readAccepted reads the list: an ID and a reason on each line; "#" begins a
// comment.
func readAccepted(path string) (list []acceptance, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		id, reason, _ := strings.Cut(line, " ")
		if reason = strings.TrimSpace(reason); !strings.HasPrefix(id, "GO-") || reason == "" {
			return nil, fmt.Errorf("%s: want an ID such as GO-2026-0001 and a reason, not %q", path, line)
		}
		if slices.ContainsFunc(list, func(a acceptance) bool { return a.ID == id }) {
			return nil, fmt.Errorf("%s: %s is listed twice", path, id)
		}
		list = append(list, acceptance{id, reason})
	}
	return list, nil
}

func command(ctx context.Context, env []string, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// findDatabase returns a directory of OSV entries and its version. It is the
// newest version, or the newest one in the module cache.
func findDatabase(ctx context.Context) (dir, state string, newest bool, err error) {
	limited, cancel := context.WithTimeout(ctx, download)
	defer cancel()
	text, err := command(limited, nil, "go", "mod", "download", "-json", database+"@latest")
	var module struct{ Dir, Version, Error string }
	if jsonErr := json.Unmarshal(text, &module); jsonErr == nil && module.Dir != "" {
		return filepath.Join(module.Dir, "data/osv"), module.Version, true, nil
	}
	if err == nil {
		err = errors.New(module.Error)
	}
	cache, cacheErr := command(ctx, nil, "go", "env", "GOMODCACHE")
	if cacheErr != nil {
		return "", "", false, cacheErr
	}
	prefix := filepath.Join(strings.TrimSpace(string(cache)), database) + "@"
	kept, globErr := filepath.Glob(prefix + "*")
	if globErr != nil || len(kept) == 0 {
		return "", "", false, fmt.Errorf("no vulnerability database can be had: %w", err)
	}
	last := slices.Max(kept) // all versions have the same length and begin with the time
	return filepath.Join(last, "data/osv"), strings.TrimPrefix(last, prefix), false, nil
}

// findTool builds govulncheck unless it exists.
func findTool(ctx context.Context, cache string) (string, error) {
	_, release, _ := strings.Cut(tool, "@")
	path, err := filepath.Abs(filepath.Join(cache, "govulncheck-"+release))
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	temp, err := os.MkdirTemp("", "vuln-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp)
	if _, err := command(ctx, []string{"GOBIN=" + temp}, "go", "install", tool); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	built, err := os.ReadFile(filepath.Join(temp, "govulncheck"))
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(path+".new", built, 0o755); err != nil {
		return "", err
	}
	return path, os.Rename(path+".new", path)
}

// scan builds the binaries and checks each. The findings are sorted by ID.
func scan(ctx context.Context, check, db string, packages []string) ([]finding, error) {
	temp, err := os.MkdirTemp("", "vuln-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	build := append([]string{"build", "-trimpath", "-buildvcs=false", "-o", temp + "/"}, packages...)
	if _, err := command(ctx, nil, "go", build...); err != nil {
		return nil, err
	}
	binaries, err := os.ReadDir(temp)
	if err != nil {
		return nil, err
	}
	if len(binaries) == 0 {
		return nil, fmt.Errorf("%s make no binary", strings.Join(packages, " "))
	}
	all := map[string]*finding{}
	for _, b := range binaries {
		text, err := command(ctx, nil, check, "-db", "file://"+db, "-mode", "binary", "-format", "json", filepath.Join(temp, b.Name()))
		if err != nil {
			return nil, err
		}
		if err := collect(all, b.Name(), text); err != nil {
			return nil, fmt.Errorf("govulncheck %s: %w", b.Name(), err)
		}
	}
	var found []finding
	for _, id := range slices.Sorted(maps.Keys(all)) {
		found = append(found, *all[id])
	}
	return found, nil
}

// collect reads the messages of govulncheck (its -format json) about a binary.
func collect(all map[string]*finding, binary string, text []byte) error {
	type frame struct{ Module, Version, Package, Function, Receiver string }
	summaries := map[string]string{}
	scanned := false
	for dec := json.NewDecoder(bytes.NewReader(text)); ; {
		var m struct {
			Config *struct {
				ScanMode string `json:"scan_mode"`
			}
			OSV     *struct{ ID, Summary string }
			Finding *struct {
				OSV   string
				Fixed string `json:"fixed_version"`
				Trace []frame
			}
		}
		if err := dec.Decode(&m); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		if m.Config != nil {
			scanned = m.Config.ScanMode == "binary"
		}
		if m.OSV != nil {
			summaries[m.OSV.ID] = m.OSV.Summary
		}
		// A finding without a function means that the module or package is
		// linked, but no vulnerable function of it.
		if m.Finding == nil || len(m.Finding.Trace) == 0 || m.Finding.Trace[0].Function == "" {
			continue
		}
		at := m.Finding.Trace[0]
		f := all[m.Finding.OSV]
		if f == nil {
			f = &finding{ID: m.Finding.OSV, Module: at.Module, Version: at.Version, Fixed: m.Finding.Fixed,
				Function: strings.Join(slices.DeleteFunc([]string{at.Package, at.Receiver, at.Function}, func(s string) bool { return s == "" }), ".")}
			all[f.ID] = f
		}
		f.Summary = summaries[f.ID]
		if !slices.Contains(f.Binaries, binary) {
			f.Binaries = append(f.Binaries, binary)
		}
	}
	if !scanned {
		return errors.New("it has not scanned a binary")
	}
	return nil
}

// report compares the findings with the accepted ones.
func report(out io.Writer, found []finding, accepted []acceptance, state string, newest bool) int {
	status := 0
	for _, f := range found {
		line := fmt.Sprintf("%s in %s: %s, %s@%s, linked is %s", f.ID, strings.Join(f.Binaries, ", "), f.Summary, f.Module, f.Version, f.Function)
		i := slices.IndexFunc(accepted, func(a acceptance) bool { return a.ID == f.ID })
		if i >= 0 {
			fmt.Fprintf(out, "accepted: %s\n    because %s\n", line, accepted[i].Reason)
			continue
		}
		fixed := "no release has it fixed"
		if f.Fixed != "" {
			fixed = "fixed in " + f.Fixed
		}
		fmt.Fprintf(out, "FOUND: %s\n    %s\n", line, fixed)
		status = exitFound
	}
	for _, a := range accepted {
		if newest && !slices.ContainsFunc(found, func(f finding) bool { return f.ID == a.ID }) {
			fmt.Fprintf(out, "NO LONGER FOUND: %s: take it out of the list\n", a.ID)
			status = exitFound
		}
	}
	if status == 0 {
		fmt.Fprintf(out, "vuln: nothing that isn't accepted, by the database of %s\n", state)
	}
	return status
}
