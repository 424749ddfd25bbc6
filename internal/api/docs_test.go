// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"strings"
	"testing"

	"holdfast/test/golden"
)

const (
	routesBegin = "<!-- The table below is written by go test ./internal/api -run DifferencesPage -update -->\n"
	routesEnd   = "<!-- end of the table -->\n"
)

// TestDifferencesPageListsEveryRouteThatIsNotAvailable compares the page with
// the routes that answer 501.
func TestDifferencesPageListsEveryRouteThatIsNotAvailable(t *testing.T) {
	var want strings.Builder
	want.WriteString("| what | requests |\n|---|---|\n")
	for _, u := range unavailable {
		paths := make([]string, len(u.paths))
		for i, p := range u.paths {
			paths[i] = "`" + strings.ReplaceAll(p, "...}", "}") + "`"
		}
		fmt.Fprintf(&want, "| %s | %s |\n", u.what, strings.Join(paths, ", "))
	}

	golden.Section{
		Path: "../../docs/differences.md", Begin: routesBegin, End: routesEnd,
		Command: "go test ./internal/api -run DifferencesPage -update",
	}.Keep(t, want.String())
}
