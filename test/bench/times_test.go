// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"strings"
	"testing"
)

func TestTheReportSaysHowManyTimesFaster(t *testing.T) {
	for _, c := range []struct {
		row   string
		ratio float64 // dockerd's figure divided by Holdfast's
		want  string
	}{
		{"`stop` and `rm` (ms)", 4.42, "4.4 times faster"},
		{"`stop` and `rm` (ms)", 41.25, "41 times faster"},
		{"`stop` and `rm` (ms)", 0.5, "2.0 times slower"},
		{"`stop` and `rm` (ms)", 0.98, "as fast"},
		{"log of 100-byte lines (MB/s)", 0.14, "7.1 times faster"},
		{"log of 100-byte lines (MB/s)", 3, "3.0 times slower"},
		{"memory without containers (MB PSS)", 4.69, "4.7 times smaller"},
		{"memory of each container (kB PSS)", 0.25, "4.0 times larger"},
	} {
		if got := times(c.row, c.ratio); got != c.want {
			t.Errorf("%s, %g: %s, want %s", c.row, c.ratio, got, c.want)
		}
	}
}

func TestEachRowIsInOneTable(t *testing.T) {
	table := newTable()
	table.engines = []string{"Holdfast"}
	rows := []string{rowRun, rowVerbStop, rowGapAPI, rowBuildCold, rowSwarmVirtual, rowStream}
	for _, row := range rows {
		table.set(row, "Holdfast", 1)
	}
	text := table.String()
	for _, row := range rows {
		if n := strings.Count(text, strings.TrimPrefix(row, sectionOf(row))); n != 1 {
			t.Errorf("%q is there %d times:\n%s", row, n, text)
		}
	}
}
