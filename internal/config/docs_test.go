package config

import (
	"flag"
	"fmt"
	"os"
	"sort"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table of docs/options.md anew")

const (
	optionsPage  = "../../docs/options.md"
	tableBegins  = "<!-- The table below is written by go test ./internal/config -run OptionsPage -update -->\n"
	tableEndings = "<!-- end of the table -->\n"
)

// page is the table of docs/options.md.
func page() string {
	var rows []string
	for _, o := range Options() {
		if o.Key == "" {
			continue // a flag can't change under a daemon, and hides no key
		}
		effect := func(e Effect) string {
			if e == EffectNone {
				return "ignored"
			}
			return string(e)
		}
		rows = append(rows, fmt.Sprintf("| `%s` | %s | %s | %s |\n", o.Key, effect(o.OnReload()), effect(o.OnRestart()), o.Why()))
	}
	sort.Strings(rows)
	return "| key | by reload | by restart | running containers, or why not |\n|---|---|---|---|\n" + strings.Join(rows, "")
}

func TestOptionsPageIsWhatTheCodeDoes(t *testing.T) {
	raw, err := os.ReadFile(optionsPage)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(raw), tableBegins)
	table, after, ended := strings.Cut(rest, tableEndings)
	if !found || !ended {
		t.Fatalf("%s has no place for the table", optionsPage)
	}
	if table == page() {
		return
	}
	if !*update {
		t.Fatalf("%s is not what the code does: run go test ./internal/config -run OptionsPage -update\n%s", optionsPage, page())
	}
	if err := os.WriteFile(optionsPage, []byte(before+tableBegins+page()+tableEndings+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
