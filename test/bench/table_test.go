// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Rows of the table. A row's name contains the unit, and %d is the number of
// containers.
const (
	rowRun      = "`run -d -p`: create, start, first answer (ms)"
	rowBare     = "bare `runc run` of `true` (ms)"
	rowOverBare = "`run -d -p` over the bare `runc run` (ms)"
	rowRemove   = "`run --rm true` (ms)"
	rowStop     = "`stop` and `rm` (ms)"
	rowInRow    = "%d × `run -d -p` in a row (ms)"
	rowAtOnce   = "%d × `run -d -p` at once (ms)"
	rowPS       = "`ps` with %d running (ms)"
	rowUp       = "restart with %d: until the API answers (ms)"
	rowTaken    = "restart with %d: until a container takes a signal, all being restored (ms)"
	rowWay      = "%s with %d: until each has taken a signal (ms)"
	rowRefused  = "restart with %d: longest refusal of a published port (ms)"
	rowIdle     = "memory without containers (MB PSS)"
	rowWith     = "memory with %d containers (MB PSS)"
	rowEach     = "memory of each container (kB PSS)"

	rowGapAPI  = gapPrefix + "%s with %d: the API (ms)"
	rowGapPort = gapPrefix + "%s with %d: a published port (ms)"
	rowStream  = netPrefix + "stream, %s (GB/s)"
	rowTrip    = netPrefix + "a byte there and back, %s (µs)"
	rowLaunch  = netPrefix + "`run -d` on a user-defined network (ms)"
	rowAttach  = netPrefix + "attach a container with a published port, %d others being published (ms)"

	// The prefix of a row's name chooses the table. It is not printed.
	gapPrefix  = "gap: "
	netPrefix  = "net: "
	verbPrefix = "verb: "

	buildPrefix = "build: "
	swarmPrefix = "swarm: "
)

// sections are the tables.
var sections = []struct{ prefix, title, about string }{
	{"", "", ""},
	{verbPrefix, "Verb by verb",
		"Requests go through the API, without a command line. The containers sleep, have no published port, and are " +
			"ended by SIGKILL. A verb is measured until its answer is complete, and an `exec` until the client has its exit " +
			"code. The copied files have a kilobyte each. Medians of 21, of 3 for verbs that carry many bytes, and of 10 " +
			"for `create` and `start`."},
	{gapPrefix, "Longest gap in answers",
		"`GET /_ping` and a page of one container's published port are requested on a new connection each, 2 ms after " +
			"the previous answer or refusal. A gap is the longest time between two answers, from before the end of the " +
			"daemon until it has carried out a request with all containers restored. So an undisturbed gap is a little over " +
			"2 ms. *Restart* is SIGTERM and a start, *crash* is SIGKILL and a start at once, and *upgrade* is `holdfastd " +
			"--takeover`, for which dockerd has no counterpart. The containerd that dockerd has started dies with dockerd. " +
			"Medians of 3, with the longest in parentheses."},
	{buildPrefix, "Builds",
		"Each build is a request for BuildKit over the API, without a command line, from the first byte of the context to the end " +
			"of the answer. What is built without a cache has an `ENV` before the step that no build had before. The base image is in " +
			"the store. buildkitd is BuildKit's own daemon, of the release that Holdfast embeds: without a store of images and " +
			"containers, with RUN steps in the host's network, and with the base image in an OCI layout. Its times are those of its " +
			"client `buildctl`, from the start of the process to its end. Medians of 5, with the longest in parentheses."},
	{swarmPrefix, "Swarm mode",
		"Swarms of one node, a manager, in a network namespace. Requests go through the API, and states are polled every 50 ms. A " +
			"program of a task ends at once on its stop signal. dockerd runs without live restore, which it refuses in a swarm. Its virtual " +
			"addresses need IPVS in the kernel. Medians of 3, with the longest in parentheses. The requests are for a small page of busybox's " +
			"`httpd`, from the network namespace of another task of the node; medians of 2,000, in turns. Nodes that die are those of " +
			"another swarm, of three managers: their cable is pulled out."},
	{netPrefix, "Networks",
		"Each engine runs in a network namespace of its own, so that no packet passes the other's rules; dockerd has " +
			"`--userland-proxy=false`. All containers are on a user-defined bridge network. A stream is 128 MB of `iperf3` " +
			"over one connection, as the receiver counts it; its processes are in the containers' network namespaces. A " +
			"round trip is one byte there and back over a TCP connection. Both ends share one core, so that a figure shows " +
			"the work for the packets and does not depend on the scheduler's placement. The neighbour is another namespace " +
			"at the other end of a veth pair, and sends its requests to the host's address. The engines take short turns, " +
			"60 streams and 300 turns of 50 bytes each. The comparison is the median over the turns, and the parentheses " +
			"show the 95 % confidence interval of the ratio of dockerd's figure to ours. A target is missed if all of the " +
			"interval is on the wrong side. `run -d` is `create` and `start`, without a port. Attaching is `network " +
			"connect` of a running container with one published port, until the port answers. Medians of 21."},
}

// target is the aim of a row: an upper limit, an upper share of dockerd's
// figure, or a lower limit.
type target struct {
	row   string
	limit float64 // 0 is no limit
	share float64
	near  string // a row: if its figure is at most nearBare, that suffices, too
	floor float64
	any   bool // no target: the row is shown for comparison
	zero  bool // the figure must be zero
	// For figures measured in turns, the aim is to be no worse than dockerd
	// within the confidence interval: not more, or with atLeast not less.
	level, atLeast bool
}

// nearBare is how much more than the runtime alone an engine may take, in milliseconds.
const nearBare = 8

var targets = []target{
	{row: rowBare, any: true},
	{row: rowRun, share: 1. / 3},
	{row: rowOverBare, limit: 12},
	{row: rowRemove, share: 1. / 3},
	{row: rowStop, share: 1. / 3},
	{row: fmt.Sprintf(rowInRow, 50), share: 1. / 3},
	{row: fmt.Sprintf(rowAtOnce, 50), share: 1. / 3},
	{row: fmt.Sprintf(rowPS, 0), any: true},
	{row: fmt.Sprintf(rowPS, 50), any: true},
	{row: fmt.Sprintf(rowPS, 200), limit: 5},
	{row: fmt.Sprintf(rowUp, 0), any: true},
	{row: fmt.Sprintf(rowUp, 50), any: true},
	{row: fmt.Sprintf(rowUp, 200), any: true},
	{row: fmt.Sprintf(rowTaken, 50), limit: 150},
	{row: fmt.Sprintf(rowTaken, 200), limit: 150},
	{row: fmt.Sprintf(rowWay, "restart", 50), limit: 150},
	{row: fmt.Sprintf(rowWay, "restart", 200), limit: 150},
	{row: fmt.Sprintf(rowWay, "restart", 500), limit: 250},
	{row: fmt.Sprintf(rowWay, "crash", 50), limit: 150},
	{row: fmt.Sprintf(rowWay, "crash", 200), limit: 150},
	{row: fmt.Sprintf(rowWay, "crash", 500), limit: 250},
	{row: fmt.Sprintf(rowRefused, 50), zero: true},
	{row: fmt.Sprintf(rowRefused, 200), zero: true},
	{row: rowIdle, limit: 45},
	{row: fmt.Sprintf(rowWith, 50), any: true},
	{row: rowEach, limit: 700},
	{row: rowHealth, any: true},
	{row: rowExecCPU, any: true},
	{row: rowPull, share: 1. / 2},
	{row: rowLog, floor: 400},
	{row: fmt.Sprintf(rowLogRead, 262), floor: 333},
	{row: fmt.Sprintf(rowLogFollow, 262), floor: 400},

	{row: rowBuildCold, share: 1},
	{row: rowBuildCached, limit: maxCachedBuild},
	{row: fmt.Sprintf(rowBuildCopy, 10_000), share: 1},
	{row: fmt.Sprintf(rowBuildLayer, 200), share: 1},
	{row: rowBuildTwice, share: 1},
	{row: rowBuildRun, share: 1},

	{row: fmt.Sprintf(rowSwarmStart, 100), any: true},
	{row: fmt.Sprintf(rowSwarmUp, 50), any: true},
	{row: fmt.Sprintf(rowSwarmDown, 50), any: true},
	{row: fmt.Sprintf(rowSwarmUpdate, 20), any: true},
	{row: rowSwarmDirect, any: true},
	{row: rowSwarmVirtual, any: true},
	{row: rowSwarmMemory, any: true},
	{row: fmt.Sprintf(rowSwarmMany, 100), any: true},
	{row: rowFailoverTask, any: true},
	{row: rowFailoverLeader, any: true},

	{row: rowVerbStop, share: 1. / 4},
	{row: rowVerbKill, share: 1. / 4},
	{row: rowVerbWait, share: 1. / 4},
	{row: rowVerbDie, share: 1. / 4},
	{row: rowVerbRemove, share: 1. / 4},
	{row: rowVerbRestart, any: true},
	{row: fmt.Sprintf(rowVerbCreate, 0), share: 1. / 4, near: fmt.Sprintf(rowVerbNear, 0)},
	{row: fmt.Sprintf(rowVerbNear, 0), any: true},
	{row: fmt.Sprintf(rowVerbCreate, 50), share: 1. / 4, near: fmt.Sprintf(rowVerbNear, 50)},
	{row: fmt.Sprintf(rowVerbNear, 50), any: true},
	{row: fmt.Sprintf(rowVerbCreate, 200), share: 1. / 4, near: fmt.Sprintf(rowVerbNear, 200)},
	{row: fmt.Sprintf(rowVerbNear, 200), any: true},
	{row: fmt.Sprintf(rowVerbCreate, 500), any: true},
	{row: fmt.Sprintf(rowVerbNear, 500), any: true},
	{row: fmt.Sprintf(rowVerbCycle, 50), floor: 30},
	{row: rowVerbExec, any: true},
	{row: rowVerbBare, any: true},
	{row: rowVerbOver, limit: 8},
	{row: fmt.Sprintf(rowVerbExecs, 20), any: true},
	{row: fmt.Sprintf(rowVerbPing, 50), any: true},
	{row: fmt.Sprintf(rowVerbInspect, 50), limit: 1},
	{row: rowVerbAttach, any: true},
	{row: rowVerbStdin, any: true},
	{row: fmt.Sprintf(rowVerbCpFile, 256), any: true},
	{row: fmt.Sprintf(rowVerbCpFiles, 10_000), any: true},
	{row: rowVerbVolume, any: true},

	{row: fmt.Sprintf(rowGapAPI, "restart", 50), any: true},
	{row: fmt.Sprintf(rowGapAPI, "restart", 200), any: true},
	{row: fmt.Sprintf(rowGapAPI, "crash", 50), any: true},
	{row: fmt.Sprintf(rowGapAPI, "crash", 200), any: true},
	{row: fmt.Sprintf(rowGapAPI, "upgrade", 50), any: true},
	{row: fmt.Sprintf(rowGapAPI, "upgrade", 200), any: true},
	{row: fmt.Sprintf(rowGapPort, "restart", 50), any: true},
	{row: fmt.Sprintf(rowGapPort, "restart", 200), any: true},
	{row: fmt.Sprintf(rowGapPort, "crash", 50), any: true},
	{row: fmt.Sprintf(rowGapPort, "crash", 200), any: true},
	{row: fmt.Sprintf(rowGapPort, "upgrade", 50), any: true},
	{row: fmt.Sprintf(rowGapPort, "upgrade", 200), any: true},

	{row: fmt.Sprintf(rowStream, "container to container"), level: true, atLeast: true},
	{row: fmt.Sprintf(rowStream, "host to container"), level: true, atLeast: true},
	{row: fmt.Sprintf(rowStream, "neighbour to published port"), level: true, atLeast: true},
	{row: fmt.Sprintf(rowTrip, "container to container"), level: true},
	{row: fmt.Sprintf(rowTrip, "host to container"), level: true},
	{row: fmt.Sprintf(rowTrip, "neighbour to published port"), level: true},
	{row: rowLaunch, any: true},
	{row: fmt.Sprintf(rowAttach, 0), any: true},
	{row: fmt.Sprintf(rowAttach, 1000), any: true},
}

// table holds the measured figures by row and engine.
type table struct {
	engines, versions []string
	load              string // load average before the first measurement
	hurried           bool   // there were fewer rounds than usual
	rows              map[string]map[string]float64
	longest           map[string]map[string]float64 // the maximum, for rows that show it
	pairs             map[string][]float64          // ratios of dockerd's figure to Holdfast's, one per round, sorted
}

func newTable() *table {
	load, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(load), " ")
	return &table{load: first, rows: map[string]map[string]float64{}, longest: map[string]map[string]float64{}, pairs: map[string][]float64{}}
}

func (t *table) set(row, engine string, value float64) {
	if t.rows[row] == nil {
		t.rows[row] = map[string]float64{}
	}
	t.rows[row][engine] = value
}

// setAll records the median of times, and the maximum.
func (t *table) setAll(row, engine string, times []time.Duration) {
	t.set(row, engine, ms(median(times)))
	if t.longest[row] == nil {
		t.longest[row] = map[string]float64{}
	}
	t.longest[row][engine] = ms(slices.Max(times))
}

// setPairs records the medians of measurements that were taken in turns, and
// the ratio of the engines in each round. A slow phase of the machine affects
// both figures of a ratio.
func (t *table) setPairs(row string, by map[string][]float64) {
	for who, list := range by {
		t.set(row, who, median(list))
	}
	own := by["Holdfast"]
	for i, other := range by["dockerd"] {
		t.pairs[row] = append(t.pairs[row], other/own[i])
	}
	slices.Sort(t.pairs[row])
}

// certain returns the 95 % confidence interval of the median. The list must be
// sorted.
func certain(list []float64) (low, high float64) {
	n := float64(len(list))
	off := 0.98 * math.Sqrt(n) // of a binomial distribution around n/2
	return list[max(0, int(n/2-off))], list[min(len(list)-1, int(n/2+off))]
}

// get returns NaN if the row was not measured. A difference may be negative.
func (t *table) get(row, engine string) float64 {
	if v, ok := t.rows[row][engine]; ok {
		return v
	}
	return math.NaN()
}

// verdict returns the target and whether it is met, as a text.
func (t *table) verdict(g target) string {
	have, docker := t.get(g.row, "Holdfast"), t.get(g.row, "dockerd")
	mark := func(ok bool, words string) string {
		if ok {
			return words + ": holds"
		}
		return words + ": **missed**"
	}
	switch {
	case g.zero:
		return mark(have == 0, "none")
	case g.limit > 0:
		return mark(have <= g.limit, "≤ "+number(g.limit))
	case g.floor > 0:
		return mark(have >= g.floor, "≥ "+number(g.floor))
	case g.level && len(t.pairs[g.row]) > 0:
		low, high := certain(t.pairs[g.row])
		if g.atLeast {
			return mark(low <= 1, "≥ dockerd's")
		}
		return mark(high >= 1, "≤ dockerd's")
	case g.share > 0 && docker > 0:
		words, ok := fmt.Sprintf("≤ 1/%.0f of dockerd's", 1/g.share), have <= docker*g.share
		if g.near != "" {
			words += fmt.Sprintf(", or within %d ms of the bare runtime", nearBare)
			ok = ok || t.get(g.near, "Holdfast") <= nearBare
		}
		return mark(ok, words)
	}
	return ""
}

// sectionOf returns the prefix of the table in which a row is.
func sectionOf(row string) (prefix string) {
	for _, s := range sections {
		if strings.HasPrefix(row, s.prefix) && len(s.prefix) > len(prefix) {
			prefix = s.prefix
		}
	}
	return prefix
}

func (t *table) String() string {
	var known []target
	listed := map[string]bool{}
	for _, g := range targets {
		known = append(known, g)
		listed[g.row] = true
	}
	for _, row := range slices.Sorted(maps.Keys(t.rows)) {
		if !listed[row] {
			known = append(known, target{row: row, any: true})
		}
	}
	var b strings.Builder
	for _, s := range sections {
		var mine []target
		for _, g := range known {
			if t.rows[g.row] != nil && sectionOf(g.row) == s.prefix {
				mine = append(mine, g)
			}
		}
		if len(mine) == 0 {
			continue
		}
		if b.Len() > 0 {
			b.WriteString("\n")
		}
		if s.title != "" {
			b.WriteString("### " + s.title + "\n\n" + wrap(s.about, 120) + "\n\n")
		}
		t.write(&b, s.prefix, mine)
	}
	return b.String()
}

// wrap breaks a text into lines.
func wrap(text string, width int) string {
	var b strings.Builder
	n := 0
	for _, word := range strings.Fields(text) {
		switch {
		case n > 0 && n+1+len(word) > width:
			b.WriteString("\n")
			n = 0
		case n > 0:
			b.WriteString(" ")
			n++
		}
		b.WriteString(word)
		n += len(word)
	}
	return b.String()
}

// write writes one table. Columns without a figure are left out.
func (t *table) write(b *strings.Builder, prefix string, rows []target) {
	var engines []string
	for _, e := range t.engines {
		if slices.ContainsFunc(rows, func(g target) bool { return !math.IsNaN(t.get(g.row, e)) }) || e == "Holdfast" {
			engines = append(engines, e)
		}
	}
	ratio := slices.Contains(engines, "dockerd")
	goal := slices.ContainsFunc(rows, func(g target) bool { return !g.any })
	b.WriteString("| |")
	for _, e := range engines {
		b.WriteString(" " + e + " |")
	}
	under := "\n|---|" + strings.Repeat("---:|", len(engines))
	if ratio {
		b.WriteString(" Holdfast is |")
		under += "---|"
	}
	if goal {
		b.WriteString(" target |")
		under += "---|"
	}
	b.WriteString(under + "\n")
	for _, g := range rows {
		b.WriteString("| " + strings.TrimPrefix(g.row, prefix) + " |")
		for _, e := range engines {
			cell := "–"
			if v, ok := t.rows[g.row][e]; ok {
				cell = number(v)
			}
			if v, ok := t.longest[g.row][e]; ok {
				cell += " (" + number(v) + ")"
			}
			b.WriteString(" " + cell + " |")
		}
		if ratio {
			have, docker := t.get(g.row, "Holdfast"), t.get(g.row, "dockerd")
			cell := "–"
			if have > 0 && docker > 0 && !g.zero {
				cell = times(g.row, docker/have)
			}
			if p := t.pairs[g.row]; len(p) > 0 {
				low, high := certain(p)
				cell = fmt.Sprintf("%s (%.2f–%.2f)", times(g.row, median(p)), low, high)
			}
			b.WriteString(" " + cell + " |")
		}
		if goal {
			b.WriteString(" " + t.verdict(g) + " |")
		}
		b.WriteString("\n")
	}
}

// times compares the engines in a row, given the ratio of dockerd's figure to
// Holdfast's: "4.4 times faster". For rates a higher figure is better, for
// everything else a lower one.
func times(row string, ratio float64) string {
	better, worse, even := "faster", "slower", "as fast"
	switch {
	case strings.HasSuffix(row, "/s)"):
		ratio = 1 / ratio
	case strings.HasSuffix(row, "PSS)"):
		better, worse, even = "smaller", "larger", "as large"
	}
	word := better
	if ratio < 1 {
		ratio, word = 1/ratio, worse
	}
	switch {
	case ratio < 1.05:
		return even
	case ratio < 10:
		return fmt.Sprintf("%.1f times %s", ratio, word)
	}
	return fmt.Sprintf("%.0f times %s", ratio, word)
}

// number formats a value with three significant digits.
func number(v float64) string {
	switch {
	case v == float64(int(v)), v >= 100 || v <= -100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10 || v <= -10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// The generated table stands between these two lines. The rest of the page is
// written by hand.
const (
	beginMark = "<!-- measured: begin -->\n"
	endMark   = "<!-- measured: end -->\n"
)

// writeTo replaces the generated part of a document.
func (t *table) writeTo(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(b), beginMark)
	_, after, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no lines %q and %q", path, beginMark, endMark)
	}
	return os.WriteFile(path, []byte(before+beginMark+"\n"+t.machine()+"\n"+t.String()+"\n"+endMark+after), 0o644)
}

// machine describes the machine in general terms, as far as the figures depend
// on it.
func (t *table) machine() string {
	var u unix.Utsname
	unix.Uname(&u)
	var info unix.Sysinfo_t
	unix.Sysinfo(&info)
	cpus, _ := os.ReadFile("/proc/cpuinfo")
	model := ""
	for line := range strings.Lines(string(cpus)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
		}
	}
	lines := []string{
		"Measured on " + time.Now().UTC().Format("2006-01-02") + " with `make bench` on a virtual machine:",
		"",
		fmt.Sprintf("- %d cores (%s), %d GB of memory", strings.Count(string(cpus), "processor\t"), model, (info.Totalram*uint64(info.Unit)+1<<29)>>30),
		fmt.Sprintf("- load average at the beginning: %s (what others of the machine ran meanwhile is in the figures)", t.load),
		"- Linux " + strings.SplitN(unix.ByteSliceToString(u.Release[:]), "-", 2)[0] + ", " + cgroups(),
		"- " + strings.Join(append(t.versions, runtimeVersion()), ", "),
	}
	if t.hurried {
		lines = append(lines, "- fewer rounds than usual at the end: the machine was too slow for all of them")
	}
	return strings.Join(lines, "\n") + "\n"
}

func cgroups() string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return "cgroup v2"
	}
	return "cgroup v1"
}

func runtimeVersion() string {
	out, _ := exec.Command("runc", "--version").Output()
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.Replace(line, "version ", "", 1)
}
