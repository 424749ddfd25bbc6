// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Result is the output and exit code of a command.
type Result struct {
	Stdout, Stderr string
	Code           int // -1: killed by a signal or not started
}

// Docker runs Docker's client against the daemon and returns its standard
// output without the last newline. If it fails the test fails.
func (d *Daemon) Docker(args ...string) string {
	d.t.Helper()
	return d.must(d.TryDocker(args...), "docker", args)
}

// Holdfast is Docker with the tree's client.
func (d *Daemon) Holdfast(args ...string) string {
	d.t.Helper()
	return d.must(d.TryHoldfast(args...), "holdfast", args)
}

// TryDocker is Docker, but returns the result and never fails the test because
// of it.
func (d *Daemon) TryDocker(args ...string) Result {
	d.t.Helper()
	return d.run(d.DockerCommand(context.Background(), args...))
}

// TryHoldfast is Holdfast, but returns the result and never fails the test
// because of it.
func (d *Daemon) TryHoldfast(args ...string) Result {
	d.t.Helper()
	return d.run(d.HoldfastCommand(context.Background(), args...))
}

// DockerCommand returns a command of Docker's client for the daemon, not
// started, for tests that feed it, read its output or kill it.
func (d *Daemon) DockerCommand(ctx context.Context, args ...string) *exec.Cmd {
	d.t.Helper()
	return d.command(ctx, docker(d.t), args)
}

// HoldfastCommand is DockerCommand with the tree's client.
func (d *Daemon) HoldfastCommand(ctx context.Context, args ...string) *exec.Cmd {
	d.t.Helper()
	return d.command(ctx, Binary(d.t, "holdfast"), args)
}

func (d *Daemon) command(ctx context.Context, path string, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "DOCKER_") && !strings.HasPrefix(v, "HOLDFAST_HOST=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "DOCKER_HOST="+d.Host, "DOCKER_CONFIG="+d.Root+"/docker", d.raceReports())
	return cmd
}

// Run runs a command of the kit to its end and returns the result.
func (d *Daemon) Run(cmd *exec.Cmd) Result {
	d.t.Helper()
	return d.run(cmd)
}

// run runs a command to its end. It must end within 2*patience.
func (d *Daemon) run(cmd *exec.Cmd) Result {
	d.t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	timer := time.AfterFunc(2*patience, func() {
		if cmd.Process != nil {
			cmd.Process.Kill()
		}
	})
	err := cmd.Run()
	if !timer.Stop() {
		d.t.Fatalf("%s took longer than %s\n%s%s", strings.Join(cmd.Args, " "), 2*patience, &out, &errs)
	}
	r := Result{Stdout: out.String(), Stderr: errs.String(), Code: -1}
	var exit *exec.ExitError
	switch {
	case err == nil || errors.As(err, &exit):
		r.Code = cmd.ProcessState.ExitCode()
	default:
		d.t.Fatalf("run %s: %v", strings.Join(cmd.Args, " "), err)
	}
	return r
}

func (d *Daemon) must(r Result, name string, args []string) string {
	d.t.Helper()
	if r.Code != 0 {
		d.t.Fatalf("%s %s: exit code %d\n%s%s", name, strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSuffix(r.Stdout, "\n")
}

// DockerWith is Docker with standard input.
func (d *Daemon) DockerWith(stdin io.Reader, args ...string) string {
	d.t.Helper()
	cmd := d.DockerCommand(context.Background(), args...)
	cmd.Stdin = stdin
	return d.must(d.run(cmd), "docker", args)
}

// CreateExec creates an exec session by the API and returns its ID. spec is the JSON
// body of the request.
func (d *Daemon) CreateExec(container, spec string) string {
	d.t.Helper()
	r, err := d.HTTP().Post("http://h/containers/"+container+"/exec", "application/json", strings.NewReader(spec))
	if err != nil {
		d.t.Fatal(err)
	}
	defer r.Body.Close()
	var answer struct{ ID, Message string }
	if err := json.NewDecoder(r.Body).Decode(&answer); err != nil || answer.ID == "" {
		d.t.Fatalf("create an exec session in %s: %s: %s %v", container, r.Status, answer.Message, err)
	}
	return answer.ID
}
