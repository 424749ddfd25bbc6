// SPDX-License-Identifier: Apache-2.0

package build

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// entry is a build in the history, as buildx prints it.
type entry struct {
	Ref, Name, Status string
}

// history returns the builds that buildx knows, by the beginning of their name.
func history(t *testing.T, d *kit.Daemon) map[string]entry {
	t.Helper()
	all := map[string]entry{}
	for line := range strings.Lines(d.Docker("buildx", "history", "ls", "--format", "json", "--no-trunc")) {
		var e struct {
			Ref    string `json:"ref"`
			Name   string `json:"name"`
			Status string `json:"status"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		all[e.Name] = entry{filepath.Base(e.Ref), e.Name, e.Status}
	}
	return all
}

// TestHistoryOfBuildsIsRightAfterKills asks for the history when the daemon or the build
// process was killed in the middle of a build.
func TestHistoryOfBuildsIsRightAfterKills(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{LiveRestore: true})
	named := func(name, step string) string {
		return filepath.Join(files(t, map[string]string{name + "/Dockerfile": "FROM base\nRUN " + step + "\n"}), name)
	}
	build(t, d, named("whole", "echo said by whole"))
	if r := tryBuild(t, d, named("failed", "echo said by failed; exit 3")); r.Code == 0 {
		t.Fatal("the build succeeds")
	}
	begun := func() *running {
		t.Helper()
		b := begin(t, d, nil, "--progress=plain", "--no-cache", named("begun", "echo said by begun; sleep 98764"))
		kit.Eventually(t, "the step runs", func() bool { return len(processes(t, "98764")) > 0 })
		return b
	}
	// check wants the two builds that have ended as they were, and begun in a state.
	check := func(when, status string) {
		t.Helper()
		all := history(t, d)
		if all["whole"].Status != "Completed" || all["failed"].Status != "Error" || all["begun"].Status != status {
			t.Errorf("%s: %+v, want that begun is %q", when, all, status)
		}
		for name, want := range map[string]string{"whole": "completed", "failed": "failed"} {
			ref := all[name].Ref
			if got := d.TryDocker("buildx", "history", "logs", "--progress=plain", ref); !strings.Contains(got.Stdout+got.Stderr, "said by "+name) {
				t.Errorf("%s: the log of %s: %+v", when, name, got)
			}
			got := d.TryDocker("buildx", "history", "inspect", "--format", "{{.Status}}", ref)
			if strings.TrimSpace(got.Stdout) != want {
				t.Errorf("%s: inspect says that %s is %+v", when, name, got)
			}
		}
	}
	check("before", "")

	b := begun()
	check("during a build", "Running")
	d.Kill9()
	d.Start()
	check("the daemon was killed", "Running")
	kit.Kill(t, builder(t, d))
	_ = b.end()
	check("the build process was killed", "")
	kit.Eventually(t, "the step ends", func() bool { return len(processes(t, "98764")) == 0 })

	b = begun()
	pid := builder(t, d)
	d.Kill9()
	kit.Kill(t, pid)
	_ = b.end()
	d.Start()
	check("both were killed", "")
	kit.Eventually(t, "the step ends", func() bool { return len(processes(t, "98764")) == 0 })

	all := history(t, d)
	d.Docker("buildx", "history", "rm", all["failed"].Ref)
	kit.Kill(t, builder(t, d))
	if left := history(t, d); left["failed"].Ref != "" || left["whole"].Ref != all["whole"].Ref {
		t.Errorf("after one was removed: %+v", left)
	}
	d.Docker("buildx", "history", "rm", "--all")
	d.Kill9()
	d.Start()
	if left := history(t, d); len(left) > 0 {
		t.Errorf("after all were removed: %+v", left)
	}
	nothingLeft(t, d)
}
