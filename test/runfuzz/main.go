// SPDX-License-Identifier: Apache-2.0

// Runfuzz runs every fuzz target of a module for some time and reports the
// results.
//
// usage: runfuzz [-time 10s] [-only REGEXP] [-at-once N] [PACKAGE...]
//
// It finds the targets itself, in the named packages or in all packages. It
// builds one binary per package. Only the module's own packages are
// instrumented. So dependencies need not be built again, and the fuzzer
// searches for new paths through our code alone.
//
// It exits with 1 if a target failed, and prints the path below testdata/fuzz
// of the file with the input. Commit that file together with the fix, as a
// test.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	each := flag.Duration("time", 10*time.Second, "how long each target runs")
	only := flag.String("only", "", "run only targets whose package and name, as in internal/config.FuzzDaemonJSON, match this `regexp`")
	atOnce := flag.Int("at-once", 2, "how many run beside each other, each with one worker")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ok, err := run(ctx, os.Stdout, ".", *each, *only, *atOnce, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "runfuzz:", err)
	}
	if !ok || err != nil {
		os.Exit(1)
	}
}

// target is one fuzz target.
type target struct {
	pkg  *pkg
	name string
}

// String is the text that -only is matched with.
func (t target) String() string { return t.pkg.rel + "." + t.name }

// pkg is a package with fuzz targets.
type pkg struct {
	path, rel, dir string
	binary         string // path of its test binary
}

// result is the result of running a target.
type result struct {
	target
	took  time.Duration
	execs int64
	found int // inputs that reached new code
	// failure is empty if the target passed.
	failure string
	output  string
	files   []string // inputs that fail, by paths relative to the module
}

// run fuzzes the packages of the module in dir and prints a table. It reports
// whether all targets passed.
func run(ctx context.Context, out io.Writer, dir string, each time.Duration, only string, atOnce int, patterns []string) (bool, error) {
	match, err := regexp.Compile(only)
	if err != nil {
		return false, fmt.Errorf("-only: %w", err)
	}
	module, targets, err := find(ctx, dir, patterns)
	if err != nil {
		return false, err
	}
	targets = slices.DeleteFunc(targets, func(t target) bool { return !match.MatchString(t.String()) })
	if len(targets) == 0 {
		return false, errors.New("no such target")
	}
	temp, err := os.MkdirTemp("", "fuzz-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(temp)
	if err := build(ctx, out, dir, module, temp, targets); err != nil {
		return false, err
	}
	cache, err := output(ctx, dir, "go", "env", "GOCACHE")
	if err != nil {
		return false, err
	}

	fmt.Fprintf(out, "%d targets, %v each, %d at once\n", len(targets), each, atOnce)
	results := make([]result, len(targets))
	var group sync.WaitGroup
	turn := make(chan struct{}, max(1, atOnce))
	for i, t := range targets {
		group.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			// The same directory as that of "go test -fuzz".
			results[i] = fuzz(ctx, t, each, filepath.Join(strings.TrimSpace(cache), "fuzz", filepath.FromSlash(t.pkg.path)))
			// A run can take hours or be interrupted, so print each result at
			// once.
			fmt.Fprintf(os.Stderr, "%s: %v, %s\n", t, results[i].took.Round(time.Second), cmp.Or(results[i].failure, "ok"))
		})
	}
	group.Wait()
	return report(out, results), ctx.Err()
}

// find lists the fuzz targets of the packages.
func find(ctx context.Context, dir string, patterns []string) (module string, all []target, err error) {
	if len(patterns) == 0 {
		patterns = []string{"./..."}
	}
	text, err := output(ctx, dir, "go", append([]string{"list", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles,Module"}, patterns...)...)
	if err != nil {
		return "", nil, err
	}
	for dec := json.NewDecoder(strings.NewReader(text)); ; {
		var listed struct {
			ImportPath, Dir           string
			TestGoFiles, XTestGoFiles []string
			Module                    struct{ Path string }
		}
		if err := dec.Decode(&listed); err == io.EOF {
			return module, all, nil
		} else if err != nil {
			return "", nil, err
		}
		module = listed.Module.Path
		p := &pkg{path: listed.ImportPath, dir: listed.Dir, rel: strings.TrimPrefix(strings.TrimPrefix(listed.ImportPath, module), "/")}
		for _, name := range slices.Concat(listed.TestGoFiles, listed.XTestGoFiles) {
			names, err := targetsIn(filepath.Join(p.dir, name))
			if err != nil {
				return "", nil, err
			}
			for _, n := range names {
				all = append(all, target{p, n})
			}
		}
	}
}

// targetsIn lists the functions FuzzX of a file.
func targetsIn(path string) (names []string, err error) {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Fuzz") && len(f.Type.Params.List) == 1 {
			names = append(names, f.Name.Name)
		}
	}
	return names, nil
}

// build builds the test binaries one after the other, because one build uses
// all cores.
func build(ctx context.Context, out io.Writer, dir, module, temp string, targets []target) error {
	began := time.Now()
	for i, t := range targets {
		if t.pkg.binary != "" {
			continue
		}
		t.pkg.binary = filepath.Join(temp, strconv.Itoa(i)+".test")
		// The flags that "go test -fuzz" uses for all packages.
		_, err := output(ctx, dir, "go", "test", "-c", "-gcflags="+module+"/...=-d=libfuzzer", "-o", t.pkg.binary, t.pkg.path)
		if err != nil {
			return fmt.Errorf("build %s: %w", t.pkg.path, err)
		}
	}
	fmt.Fprintf(out, "built in %v\n", time.Since(began).Round(time.Second))
	return nil
}

func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, &stderr)
	}
	return string(out), nil
}

// grace is the time that a target may take in addition to its own: to run its
// seeds and the cached inputs, and to minimize a failing input.
const grace = 3 * time.Minute

// interrupted is the failure of a target that was stopped by a signal.
const interrupted = "was interrupted"

func fuzz(all context.Context, t target, each time.Duration, cache string) result {
	if all.Err() != nil {
		return result{target: t, failure: interrupted}
	}
	// Workers are killed at the end and leave temporary files behind.
	temp, err := os.MkdirTemp(filepath.Dir(t.pkg.binary), "temp-")
	if err != nil {
		return result{target: t, failure: err.Error()}
	}
	defer os.RemoveAll(temp)
	ctx, cancel := context.WithTimeout(all, each+grace)
	defer cancel()
	cmd := exec.CommandContext(ctx, t.pkg.binary, "-test.run=^$", "-test.fuzz=^"+t.name+"$", "-test.fuzztime="+each.String(),
		// Without a limit, minimizing one input could take all the time.
		"-test.fuzzminimizetime="+min(each/10, 10*time.Second).String(), "-test.parallel=1", "-test.fuzzcachedir="+cache)
	cmd.Dir = t.pkg.dir
	cmd.Env = append(os.Environ(), "TMPDIR="+temp)
	// Workers are separate processes, so they get a common process group.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	began := time.Now()
	text, err := cmd.CombinedOutput()
	r := judge(string(text), err)
	r.target, r.took = t, time.Since(began)
	switch {
	case all.Err() != nil:
		r.failure = interrupted
	case ctx.Err() != nil:
		r.failure = fmt.Sprintf("did not end within %v", each+grace)
	}
	for i, name := range r.files {
		r.files[i] = filepath.Join(t.pkg.rel, name)
	}
	return r
}

var (
	progress = regexp.MustCompile(`fuzz: elapsed: \S+, execs: (\d+) .*new interesting: (\d+)`)
	written  = regexp.MustCompile(`Failing input written to (\S+)`)
	seed     = regexp.MustCompile(`(?:--- FAIL:|corpus entry:) (Fuzz\w+/[0-9a-f]{16})\b`)
	late     = regexp.MustCompile(`(?s)^--- FAIL: Fuzz\w+ \([^)]*\)\s+(\S*: )?context deadline exceeded\s+FAIL\s*$`)
)

// judge interprets the output of a test binary.
func judge(text string, err error) (r result) {
	var rest strings.Builder
	for line := range strings.Lines(text) {
		if m := progress.FindStringSubmatch(line); m != nil {
			r.execs, _ = strconv.ParseInt(m[1], 10, 64)
			r.found, _ = strconv.Atoi(m[2])
		}
		if !strings.HasPrefix(line, "fuzz: ") {
			rest.WriteString(line)
		}
	}
	r.output = rest.String()
	for _, m := range written.FindAllStringSubmatch(text, -1) {
		r.files = append(r.files, m[1])
	}
	for _, m := range seed.FindAllStringSubmatch(text, -1) {
		r.files = append(r.files, filepath.Join("testdata/fuzz", m[1]))
	}
	slices.Sort(r.files)
	r.files = slices.Compact(r.files)
	switch {
	case err == nil:
	case len(r.files) == 0 && r.execs > 0 && late.MatchString(r.output):
		// The time was over while a worker was busy, and the fuzzing engine may
		// report that as the worker's failure. No input is at fault.
	case len(r.files) > 0:
		r.failure = "an input fails"
	default:
		r.failure = err.Error()
	}
	return r
}

// report prints the results, and reports whether all targets passed.
func report(out io.Writer, results []result) bool {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprint(w, "\nTARGET\tTIME\tEXECS\tNEW\tRESULT\n")
	failed := 0
	for _, r := range results {
		outcome := "ok"
		if r.failure != "" {
			outcome = "FAIL: " + r.failure
			failed++
		}
		fmt.Fprintf(w, "%s\t%.0fs\t%d\t%d\t%s\n", r.target, r.took.Seconds(), r.execs, r.found, outcome)
	}
	_ = w.Flush()
	for _, r := range results {
		if r.failure == "" {
			continue
		}
		fmt.Fprintf(out, "\n%s: %s\n%s", r.target, r.failure, r.output)
		for _, name := range r.files {
			fmt.Fprintf(out, "%s: keep it: %s\n", r.target, name)
		}
	}
	if failed > 0 {
		fmt.Fprintf(out, "\n%d of %d targets failed\n", failed, len(results))
	}
	return failed == 0
}
