// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// classic runs docker build as clients do that know no BuildKit.
func classic(d *kit.Daemon, args ...string) kit.Result { return d.Run(classicCommand(d, args...)) }

// classicCommand is that command, not started.
func classicCommand(d *kit.Daemon, args ...string) *exec.Cmd {
	cmd := d.DockerCommand(context.Background(), append([]string{"build"}, args...)...)
	cmd.Env = append(cmd.Env, "DOCKER_BUILDKIT=0")
	return cmd
}

var hex12 = regexp.MustCompile(`[0-9a-f]{12}`)

func TestClassicClientsGetTheTextTheyKnow(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	dir := files(t, map[string]string{"Dockerfile": `ARG BASE=base
FROM ${BASE} AS one
RUN echo made >/file
FROM base
ENV A=b
COPY --from=one /file /
RUN cat /file
`})
	r := classic(d, "-t", "app", "-t", "app:2", dir)
	if r.Code != 0 {
		t.Fatalf("%d %s%s%s", r.Code, r.Stdout, r.Stderr, buildLog(d))
	}
	got := hex12.ReplaceAllString(r.Stdout, "ID")
	want := `Step 1/7 : ARG BASE=base
Step 2/7 : FROM ${BASE} AS one
 ---> ID
Step 3/7 : RUN echo made >/file
 ---> Running in ID
 ---> ID
Step 4/7 : FROM base
 ---> ID
Step 5/7 : ENV A=b
 ---> ID
Step 6/7 : COPY --from=one /file /
 ---> ID
Step 7/7 : RUN cat /file
 ---> Running in ID
made
 ---> ID
Successfully built ID
Successfully tagged app:latest
Successfully tagged app:2
`
	if _, body, _ := strings.Cut(got, "\n"); !strings.HasSuffix(got, want) {
		t.Errorf("got:\n%s\nwant it to end with:\n%s", body, want)
	}
	if got := d.Docker("run", "--rm", "app:2", "cat", "/file"); got != "made" {
		t.Errorf("the image has %q", got)
	}
	r = classic(d, "-q", dir)
	if id := strings.TrimSpace(r.Stdout); r.Code != 0 || !strings.HasPrefix(id, "sha256:") || strings.Contains(id, "\n") {
		t.Errorf("build -q prints %q (%d)", r.Stdout, r.Code)
	} else if got := d.Docker("image", "inspect", "-f", "{{.ID}}", id); got != id {
		t.Errorf("build -q prints %s, the image is %s", id, got)
	}

	dir = files(t, map[string]string{"Dockerfile": "FROM base\nRUN echo last words; exit 3\n"})
	r = classic(d, dir)
	if r.Code != 3 && r.Code != 1 || !strings.Contains(r.Stderr, "returned a non-zero code: 3") || !strings.Contains(r.Stdout, "last words") {
		t.Errorf("a failing RUN: exit code %d, %q, %q", r.Code, r.Stdout, r.Stderr)
	}
	r = classic(d, "--squash", dir)
	if r.Code == 0 || !strings.Contains(r.Stderr, "squash") {
		t.Errorf("an option that can't be kept: exit code %d, %q", r.Code, r.Stderr)
	}
}
