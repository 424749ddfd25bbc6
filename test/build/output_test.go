// SPDX-License-Identifier: Apache-2.0

package build

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/test/kit"
)

// imported reports whether a build has used an imported cache: a step is cached, or its
// layer is fetched while the step is shown.
func imported(out string) bool {
	return strings.Contains(out, "CACHED") || fetchedLayer.MatchString(out)
}

var fetchedLayer = regexp.MustCompile(`(?m)^#\d+ sha256:[0-9a-f]{64} \d+`)

func TestResultsGoWhereTheyAreSent(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	r := kit.StartRegistry(t, nil)
	pushed := r.Host + "/built:1"
	began := time.Now()
	dir := files(t, map[string]string{
		"Dockerfile": `FROM base AS build
RUN --mount=type=secret,id=word --mount=type=cache,target=/cache --mount=type=tmpfs,target=/t <<END
test "$(cat /run/secrets/word)" = hidden
echo "$(cat /cache/n 2>/dev/null)x" >/cache/n
cp /cache/n /n
END
RUN --mount=type=bind,source=sub,target=/s cp /s/kept /kept && test ! -e /s/ignored
FROM scratch
COPY --from=build --chmod=0600 /n /kept /
`,
		".dockerignore": "sub/*\n!sub/kept\n", "sub/kept": "kept\n", "sub/ignored": "", "secret": "hidden",
	})
	secret := "id=word,src=" + filepath.Join(dir, "secret")
	build(t, d, "--secret", secret, "--push", "-t", pushed, dir)
	d.Docker("pull", pushed)

	out := t.TempDir()
	build(t, d, "--secret", secret, "--output", "type=local,dest="+out, dir)
	if text, err := os.ReadFile(filepath.Join(out, "kept")); err != nil || string(text) != "kept\n" {
		t.Errorf("%q, %v", text, err)
	}
	archive := filepath.Join(out, "oci.tar")
	build(t, d, "--secret", secret, "--output", "type=oci,dest="+archive, "--no-cache", dir)
	if st, err := os.Stat(archive); err != nil || st.Size() == 0 {
		t.Error(err)
	}
	build(t, d, "--secret", secret, "--cache-to", "type=registry,ref="+r.Host+"/cache", "-t", "one", dir)
	d.Docker("builder", "prune", "-af")
	again := build(t, d, "--secret", secret, "--cache-from", "type=registry,ref="+r.Host+"/cache", "-t", "two", dir)
	if !imported(again) {
		t.Errorf("the imported cache is not used:\n%s", again)
	}
	meta := filepath.Join(out, "id")
	build(t, d, "--iidfile", meta, "-t", "named", "--label", "a=b", dir)
	if id, err := os.ReadFile(meta); err != nil || d.Docker("image", "inspect", "-f", `{{.ID}} {{index .Config.Labels "a"}}`, "named") != string(id)+" b" {
		t.Errorf("%s, %v", id, err)
	}
	events := d.Docker("events", "--since", fmt.Sprint(began.Unix()), "--until", fmt.Sprint(time.Now().Unix()+1), "--filter", "type=image", "--format", "{{.Action}} {{.Actor.Attributes.name}}")
	for _, want := range []string{"tag named:latest", "build sha256:", "tag " + pushed} {
		if !strings.Contains(events, want) {
			t.Errorf("no event %q in\n%s", want, events)
		}
	}
	// A name that is built again leaves the image that it had.
	build(t, d, "-t", "named", "--label", "a=c", dir)
	if got := d.Docker("images", "-q", "--filter", "dangling=true"); len(strings.Fields(got)) == 0 {
		t.Error("the image that lost its name is gone")
	}
}

func TestBuildsLoseNothingToWhatIsRemovedBesideThem(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	d.Load("other:latest", kit.Busybox(t, nil))
	pulled := kit.StartRegistry(t, nil).Push("pulled", kit.Busybox(t, nil)) // it has the base's layer
	dir := files(t, map[string]string{"Dockerfile": `FROM base
ARG N
RUN echo begun $N >&2; for i in $(seq 20); do head -c 1000 /dev/urandom >/file$i; sleep 0.1; done
RUN ls /file1 /file10 && echo $N >/n
`})
	var builds []*running
	for i := range 3 {
		b := begin(t, d, nil, "--progress=plain", "--build-arg", fmt.Sprintf("N=%d", i), "-t", fmt.Sprintf("built:%d", i), dir)
		b.until("begun")
		builds = append(builds, b)
	}
	done := make(chan struct{})
	var beside sync.WaitGroup
	for _, args := range [][]string{{"builder", "prune", "-af"}, {"image", "rm", "-f", "base", "other"}, {"pull", pulled}, {"image", "rm", "-f", pulled}} {
		beside.Go(func() {
			for {
				d.TryDocker(args...)
				select {
				case <-done:
					return
				case <-time.After(50 * time.Millisecond):
				}
			}
		})
	}
	for i, b := range builds {
		if err := b.end(); err != nil {
			t.Errorf("%v\n%s", err, &b.seen)
			continue
		}
		if got := d.Docker("run", "--rm", fmt.Sprintf("built:%d", i), "cat", "/n"); got != fmt.Sprint(i) {
			t.Errorf("image %d has %q", i, got)
		}
	}
	close(done)
	beside.Wait()
}
