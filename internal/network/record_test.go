// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDamagedRecordOfANetworkIsSetAside(t *testing.T) {
	dir := t.TempDir()
	if err := save(dir, &record{Schema: recordSchema, ID: "whole", Name: "whole", Driver: driverBridge}); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"empty": "", "short": `{"schema":1,"id":"sh`, "zeros": strings.Repeat("\x00", 100), "nameless": `{"schema":1}`} {
		if err := os.WriteFile(filepath.Join(dir, name+".json"), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	l, err := load(dir)
	if err != nil || len(l.records) != 1 || len(l.damaged) != 4 {
		t.Fatalf("%+v, %v", l, err)
	}
	var log bytes.Buffer
	p := &parsed{Options: Options{Log: slog.New(slog.NewTextHandler(&log, nil))}}
	if err := p.setAside(l.damaged); err != nil {
		t.Fatal(err)
	}
	for _, d := range l.damaged {
		if _, err := os.Stat(d.path + damagedSuffix); err != nil || !strings.Contains(log.String(), d.path) {
			t.Errorf("%s: %v; log %s", d.path, err, &log)
		}
	}
	if l, err = load(dir); err != nil || len(l.records) != 1 || len(l.damaged) != 0 {
		t.Errorf("the next time: %+v, %v", l, err)
	}
}
