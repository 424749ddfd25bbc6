// SPDX-License-Identifier: Apache-2.0

package classic

import (
	"holdfast/test/golden"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A script has the instructions of a Dockerfile, an empty line, and what BuildKit
// reports: a line "+ID NAME" for a step that is known, ">ID" for one that starts,
// "<ID" for one that is done, "=ID" for one from the cache, "ID: TEXT" for output, and
// "end" or "fail".
func TestTextIsAsInTheGoldenFiles(t *testing.T) {
	scripts, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(scripts) == 0 {
		t.Fatal(scripts, err)
	}
	for _, path := range scripts {
		t.Run(filepath.Base(path), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(text))
			golden.Compare(t, strings.TrimSuffix(path, ".txt")+".golden", []byte(got))
		})
	}
}

func play(t *testing.T, script string) string {
	dockerfile, events, ok := strings.Cut(script, "\n\n")
	if !ok {
		dockerfile, events = "", strings.TrimPrefix(script, "\n")
	}
	var steps []Step
	if dockerfile != "" {
		var nodes []Instruction
		for line := range strings.Lines(dockerfile + "\n") {
			line = strings.TrimSpace(line)
			name, _, _ := strings.Cut(line, " ")
			nodes = append(nodes, Instruction{Name: name, Text: line})
		}
		steps = Plan(nodes, "")
	}
	f := New(steps)
	names := map[string]string{}
	id := func(short string) string { return "sha256:" + strings.Repeat(short, 64)[:64] }
	var out strings.Builder
	for line := range strings.Lines(events) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			continue
		}
		key, rest := line[1:], ""
		switch line[0] {
		case '+':
			key, rest, _ = strings.Cut(key, " ")
			names[key] = rest
			out.WriteString(f.Vertices([]Vertex{{ID: id(key), Name: rest}}))
		case '>':
			out.WriteString(f.Vertices([]Vertex{{ID: id(key), Name: names[key], Started: true}}))
		case '<':
			out.WriteString(f.Vertices([]Vertex{{ID: id(key), Name: names[key], Started: true, Completed: true}}))
		case '=':
			out.WriteString(f.Vertices([]Vertex{{ID: id(key), Name: names[key], Started: true, Completed: true, Cached: true}}))
		default:
			if line == "end" || line == "fail" {
				out.WriteString(f.End(line == "end"))
				continue
			}
			key, rest, _ = strings.Cut(line, ": ")
			out.WriteString(f.Log(id(key), rest+"\n"))
		}
	}
	return out.String()
}
