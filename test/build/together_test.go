// SPDX-License-Identifier: Apache-2.0

package build

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/test/kit"
)

// rendezvous is a step's script that waits until the steps 1 and 2 have come to it.
const rendezvous = `touch /meet/$N; i=0; until [ -e /meet/1 ] && [ -e /meet/2 ]; do i=$((i+1)); test $i -lt 600 || exit 8; usleep 50000; done; `

// TestCacheMountsOfBuildsAtOnce runs two builds that use one cache mount at the same time.
func TestCacheMountsOfBuildsAtOnce(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	for sharing, script := range map[string]string{
		// Each is alone in it, for as long as it takes.
		"locked": `mkdir /c/inside || exit 9; sleep 1; rmdir /c/inside; echo $N >>/c/list; test $(wc -l </c/list) -le 2`,
		// Both see what the other one writes.
		"shared": strings.ReplaceAll(rendezvous, "/meet", "/c") + "true",
		// Both are in it at the same time, and each has its own.
		"private": rendezvous + `touch /c/own-$N; touch /meet/made-$N; until [ -e /meet/made-1 ] && [ -e /meet/made-2 ]; do usleep 50000; done; test "$(ls /c)" = own-$N`,
	} {
		t.Run(sharing, func(t *testing.T) {
			dir := files(t, map[string]string{"Dockerfile": "FROM base\nARG N\nRUN --mount=type=cache,id=" + sharing + ",target=/c,sharing=" + sharing +
				" --mount=type=cache,id=meet-" + sharing + ",target=/meet,sharing=shared " + script + "\n"})
			var both []*running
			for n := 1; n <= 2; n++ {
				both = append(both, begin(t, d, nil, "--progress=plain", "--build-arg", fmt.Sprintf("N=%d", n), dir))
			}
			for _, b := range both {
				if err := b.end(); err != nil {
					t.Errorf("%v\n%s", err, &b.seen)
				}
			}
		})
	}
	nothingLeft(t, d)
}

// TestBuildsOfOneDockerfileAtOnceRunItsStepsOnce counts the executions of a step that
// lasts until the other build has come to it, or to its end.
func TestBuildsOfOneDockerfileAtOnceRunItsStepsOnce(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	const count = "RUN --mount=type=cache,id=count,target=/count,sharing=shared "
	dir := files(t, map[string]string{
		"Dockerfile": "FROM base\nCOPY file /\n" + count + "echo run >>/count/runs; sleep 3\nRUN echo after >/after\n", "file": "copied\n",
		"count": "FROM base\n" + count + "echo runs: $(wc -l </count/runs)\n",
	})
	build(t, d, files(t, map[string]string{"Dockerfile": "FROM base\nRUN true\n"})) // what builds is up
	for _, b := range []*running{begin(t, d, nil, "--progress=plain", "-t", "first", dir), begin(t, d, nil, "--progress=plain", "-t", "second", dir)} {
		if err := b.end(); err != nil {
			t.Errorf("%v\n%s", err, &b.seen)
		}
	}
	if out := build(t, d, "-f", dir+"/count", dir); !strings.Contains(out, "runs: 1\n") {
		t.Errorf("the step of two builds at once:\n%s", out)
	}
	if first, second := d.Docker("inspect", "-f", "{{.RootFS.Layers}}", "first"), d.Docker("inspect", "-f", "{{.RootFS.Layers}}", "second"); first != second {
		t.Errorf("the builds have other layers:\n%s\n%s", first, second)
	}
}

func TestBuildsOfOneTagAtOnceLeaveOneOfTheirImages(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	const many = 4
	var all []*running
	for n := range many {
		dir := files(t, map[string]string{"Dockerfile": fmt.Sprintf("FROM base\nRUN echo %d >/n\n", n)})
		all = append(all, begin(t, d, nil, "--progress=plain", "-t", "one:tag", "--iidfile", filepath.Join(dir, "id"), dir))
	}
	for _, b := range all {
		if err := b.end(); err != nil {
			t.Errorf("%v\n%s", err, &b.seen)
		}
	}
	got := d.Docker("run", "--rm", "one:tag", "cat", "/n")
	if !strings.Contains("0123", got) || len(got) != 1 {
		t.Errorf("the image has %q", got)
	}
	// The others have lost the name, and are whole.
	ids := strings.Fields(d.Docker("images", "-q", "--no-trunc", "--filter", "dangling=true"))
	if len(ids) != many-1 {
		t.Errorf("%d images have lost the name, want %d", len(ids), many-1)
	}
	for _, id := range ids {
		got += d.Docker("run", "--rm", id, "cat", "/n")
	}
	for n := range many {
		if strings.Count(got, fmt.Sprint(n)) != 1 {
			t.Errorf("the images have %q", got)
		}
	}
}

// TestHistoryIsReadableAfterKillsWhileItIsWritten kills the build process when a build has
// just begun to write its record.
func TestHistoryIsReadableAfterKillsWhileItIsWritten(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	build(t, d, files(t, map[string]string{"Dockerfile": "FROM base\nRUN echo said first\n"}))
	ingests := filepath.Join(d.DataRoot, "images", "content", "ingest")
	for round := range 6 {
		name := fmt.Sprintf("round-%d", round)
		dir := filepath.Join(files(t, map[string]string{name + "/Dockerfile": "FROM base\nRUN echo said " + name + "\n"}), name)
		pid := builder(t, d)
		b := begin(t, d, nil, "--progress=plain", "-o", "type=cacheonly", dir)
		// Nothing else is written into the store: the output is none.
		end := time.Now().Add(20 * time.Second)
		for time.Now().Before(end) {
			if open, err := os.ReadDir(ingests); err == nil && len(open) > 0 {
				break
			}
		}
		<-time.After(time.Duration(round) * 2 * time.Millisecond)
		kit.Kill(t, pid)
		_ = b.end() // the build has ended, or the connection
		all := history(t, d)
		for _, e := range all {
			if e.Status != "Completed" {
				t.Errorf("round %d: %+v in the history", round, e)
			}
			if got := d.TryDocker("buildx", "history", "logs", "--progress=plain", e.Ref); got.Code != 0 || !strings.Contains(got.Stdout+got.Stderr, "said") {
				t.Errorf("round %d: the log of %+v: %+v", round, e, got)
			}
		}
		if len(all) == 0 {
			t.Errorf("round %d: the history is empty", round)
		}
		if again := build(t, d, "-o", "type=cacheonly", dir); !strings.Contains(again, "said "+name) && !strings.Contains(again, "CACHED") {
			t.Errorf("round %d: the build after the kill:\n%s", round, again)
		}
	}
	nothingLeft(t, d)
}

// TestCacheThatIsDamagedDuringABuildIsSetAside overwrites the databases while they are
// open. BuildKit reads them as memory, so it may panic in any build.
func TestCacheThatIsDamagedDuringABuildIsSetAside(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"cache.db", "metadata_v2.db"} {
		t.Run(name, func(t *testing.T) {
			d := start(t, kit.Options{})
			d.Docker("run", "-d", "--name", "beside", "base", "sleep", "1000")
			dir := files(t, map[string]string{"Dockerfile": "FROM base\nRUN echo begun >&2; sleep 1\nRUN echo made >/file\n"})
			build(t, d, "-t", "before", files(t, map[string]string{"Dockerfile": "FROM base\nRUN echo before >/file\n"}))
			b := begin(t, d, nil, "--progress=plain", "-t", "during", dir)
			b.until("begun")
			path := filepath.Join(d.DataRoot, "build", name)
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			st, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			// Of the two meta pages at the beginning one stays good.
			for at := int64(8192); at < st.Size(); at += 4096 {
				if _, err := f.WriteAt([]byte(strings.Repeat("damaged ", 512)), at); err != nil {
					t.Fatal(err)
				}
			}
			f.Close()
			during := b.end()
			// One build may find the damage. After it builds work.
			_ = tryBuild(t, d, "-t", "finds", dir)
			if pid := builder(t, d); pid != 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have panicked just now
				kit.Eventually(t, "the build process is dead", func() bool { return !kit.Alive(pid) })
			}
			build(t, d, "-t", "after", dir)
			if got := d.Docker("run", "--rm", "after", "cat", "/file"); got != "made" {
				t.Errorf("the image has %q", got)
			}
			if got := d.Docker("run", "--rm", "before", "cat", "/file"); got != "before" {
				t.Errorf("the image of the build before has %q", got)
			}
			if log := buildLog(d); !strings.Contains(log, "set aside") {
				t.Errorf("nothing is said of the damage; the build during it: %v\n%s", during, log)
			}
			if got := d.Docker("inspect", "-f", "{{.State.Running}} {{.RestartCount}}", "beside"); got != "true 0" {
				t.Errorf("the container beside it: %s", got)
			}
			nothingLeft(t, d)
		})
	}
}

// TestImageKeepsItsSizeWhenOneWithALayerOfItsIsRemoved builds an image twice. The lower step
// makes the same layer both times, and the first image and its steps are removed.
func TestImageKeepsItsSizeWhenOneWithALayerOfItsIsRemoved(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	dir := files(t, map[string]string{"Dockerfile": "FROM base\nCOPY same /same\nRUN head -c 4000000 /dev/urandom >/differs\n", "same": "same\n"})
	size := func() string { return d.Docker("image", "inspect", "-f", "{{.Size}}", "second") }
	build(t, d, "--no-cache", "--provenance=false", "-t", "first", dir)
	d.Docker("builder", "prune", "-af")
	build(t, d, "--no-cache", "--provenance=false", "-t", "second", dir)
	before := size()
	d.Docker("rmi", "first")
	d.Docker("builder", "prune", "-af")
	if after := size(); after != before {
		t.Errorf("the size was %s, and is %s", before, after)
	}
	if got := d.Docker("run", "--rm", "second", "sh", "-c", "cat /same; wc -c </differs"); got != "same\n4000000" {
		t.Errorf("the image has %q", got)
	}
}
