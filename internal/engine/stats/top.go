// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"holdfast/internal/errs"
)

// Top lists processes with the host's ps(1). An empty psArgs means "-ef". For
// arguments that hide the column PID, or make ps fail, it returns
// errdefs.ErrInvalidArgument; on a host without ps errdefs.ErrFailedPrecondition.
func Top(ctx context.Context, pids []int, psArgs string) (container.TopResponse, error) {
	if psArgs == "" {
		psArgs = "-ef"
	}
	if err := validatePsArgs(psArgs); err != nil {
		return container.TopResponse{}, err
	}
	ps, err := exec.LookPath("ps")
	if err != nil {
		return container.TopResponse{}, errdefs.ErrFailedPrecondition.WithMessage("ps is not installed on the host: install the package procps")
	}
	args := strings.Fields(psArgs)

	// With -q ps only examines these processes and not all of the host's. But not
	// every ps and not all arguments can be combined with -q.
	quick := append([]string{"-q" + joinPids(pids)}, args...)
	out, err := exec.CommandContext(ctx, ps, quick...).Output()
	if err != nil {
		out, err = exec.CommandContext(ctx, ps, args...).Output()
	}
	if ctx.Err() != nil {
		return container.TopResponse{}, ctx.Err()
	}
	if err != nil {
		reason := err.Error()
		var exit *exec.ExitError
		if errors.As(err, &exit) && len(exit.Stderr) > 0 {
			reason, _, _ = strings.Cut(string(bytes.TrimSpace(exit.Stderr)), "\n")
		}
		return container.TopResponse{}, errs.Invalid("ps: %s", reason)
	}
	return parsePs(string(out), pids)
}

func joinPids(pids []int) string {
	parts := make([]string, len(pids))
	for i, p := range pids {
		parts[i] = strconv.Itoa(p)
	}
	return strings.Join(parts, ",")
}

// renamedPid matches "-o something=PID", which gives another column the title
// PID.
var renamedPid = regexp.MustCompile(`\s+(\S*)=\s*(PID\S*)`)

func validatePsArgs(args string) error {
	for _, m := range renamedPid.FindAllStringSubmatch(" "+args, -1) {
		if len(m) == 3 && m[1] != "pid" {
			return errs.Invalid("specifying %q is not allowed", m[1]+"="+m[2])
		}
	}
	return nil
}

// parsePs selects the lines of the given processes. A line with "-" as its pid is
// a thread of the preceding process.
func parsePs(out string, pids []int) (container.TopResponse, error) {
	var r container.TopResponse
	lines := strings.Split(strings.TrimRight(out, "\n"), "\n")
	r.Titles = strings.Fields(lines[0])
	pidColumn := slices.Index(r.Titles, "PID")
	if pidColumn < 0 {
		return r, errdefs.ErrInvalidArgument.WithMessage("Couldn't find PID field in ps output")
	}
	r.Processes = [][]string{}
	keeping := false
	for _, line := range lines[1:] {
		if strings.TrimSpace(line) == "" {
			continue
		}
		fields := columns(line, len(r.Titles))
		if pidColumn >= len(fields) {
			continue
		}
		if fields[pidColumn] == "-" {
			if keeping {
				r.Processes = append(r.Processes, fields)
			}
			continue
		}
		pid, err := strconv.Atoi(fields[pidColumn])
		if err != nil {
			return r, fmt.Errorf("unexpected pid '%s': %w", fields[pidColumn], err)
		}
		keeping = slices.Contains(pids, pid)
		if keeping {
			r.Processes = append(r.Processes, fields)
		}
	}
	return r, nil
}

// columns splits a line into n fields. The last one keeps its blanks.
func columns(line string, n int) []string {
	var out []string
	rest := strings.TrimSpace(line)
	for len(out) < n-1 && rest != "" {
		i := strings.IndexAny(rest, " \t")
		if i < 0 {
			break
		}
		out = append(out, rest[:i])
		rest = strings.TrimLeft(rest[i:], " \t")
	}
	if rest != "" {
		out = append(out, rest)
	}
	return out
}
