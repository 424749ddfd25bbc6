// SPDX-License-Identifier: Apache-2.0

package classic

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Instruction is an instruction of a Dockerfile.
type Instruction struct {
	Name string // such as "run", in any case
	Text string // the whole instruction
}

// layered are the instructions that are steps of BuildKit's.
var layered = []string{"run", "copy", "add", "workdir"}

// Plan numbers the instructions of a Dockerfile as BuildKit does, up to the end of the
// stage target: its name or number, or "" for the last one.
func Plan(all []Instruction, target string) []Step {
	var steps []Step
	var names []string // of the stages
	index := 0
	for _, in := range all {
		name := strings.ToLower(in.Name)
		if name == "from" {
			if n := len(names); target != "" && n > 0 && isTarget(names[n-1], n-1, target) {
				break
			}
			base, stage := fromOf(in.Text)
			own := slices.Contains(names, strings.ToLower(base))
			names = append(names, strings.ToLower(stage))
			index = 0
			step := Step{Text: in.Text, Base: true}
			if base != "scratch" && !own {
				index, step.Index = 1, 1
			}
			steps = append(steps, step)
			steps[len(steps)-1].Stage = stageName(stage, len(names)-1)
			continue
		}
		step := Step{Text: in.Text, Runs: name == "run"}
		if len(names) > 0 {
			step.Stage = steps[len(steps)-1].Stage
			if slices.Contains(layered, name) {
				index++
				step.Index = index
			}
		}
		steps = append(steps, step)
	}
	if count(all) == 1 {
		for i := range steps {
			steps[i].Stage = ""
		}
	}
	return steps
}

func count(all []Instruction) (stages int) {
	for _, in := range all {
		if strings.EqualFold(in.Name, "from") {
			stages++
		}
	}
	return stages
}

func isTarget(name string, number int, target string) bool {
	return strings.EqualFold(name, target) || strconv.Itoa(number) == target
}

func stageName(name string, number int) string {
	if name == "" {
		return fmt.Sprintf("stage-%d", number)
	}
	return strings.ToLower(name)
}

// fromOf reads "FROM [--platform=P] base [AS stage]".
func fromOf(text string) (base, stage string) {
	words := slices.DeleteFunc(strings.Fields(text)[1:], func(w string) bool { return strings.HasPrefix(w, "--") })
	if len(words) > 0 {
		base = words[0]
	}
	if len(words) == 3 && strings.EqualFold(words[1], "as") {
		stage = words[2]
	}
	return base, stage
}
