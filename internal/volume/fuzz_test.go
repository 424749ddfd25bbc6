// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// FuzzCreate creates volumes with arbitrary names and options. An accepted volume
// is in its own directory and nowhere else, and is the same after a restart.
func FuzzCreate(f *testing.F) {
	for _, s := range [][4]string{
		{"data", "local", `{}`, `{"a":"b"}`}, {"", "", `null`, `null`}, {"..", "local", `{}`, `{}`}, {"../x", "", `{}`, `{}`}, {"a/../../x", "", `{}`, `{}`},
		{"a\n", "", `{}`, `{}`}, {"a\x00b", "", `{}`, `{}`}, {".creating-1", "", `{}`, `{}`}, {"x.removing-", "", `{}`, `{}`}, {strings.Repeat("a", 300), "", `{}`, `{}`},
		{"nfs", "local", `{"type":"nfs","o":"addr=10.0.0.1,rw","device":":/x"}`, `{}`}, {"b", "local", `{"type":"none","o":"bind","device":"/"}`, `{}`},
		{"o", "local", `{"o":"uid=0"}`, `{}`}, {"s", "local", `{"size":"1g"}`, `{}`}, {"u", "local", `{"type":"tmpfs","device":"tmpfs","o":",,=,\u0000,addr=,x=y=z"}`, `{}`},
		{"c", "local", `{"type":"cifs","device":"//[::1]%25/x","o":"password=secret"}`, `{}`}, {"d", "other", `{}`, `{}`}, {"e", "local", `{"":""}`, `{"":""}`},
	} {
		f.Add(s[0], s[1], s[2], s[3])
	}
	f.Fuzz(func(t *testing.T, name, driver, options, labels string) {
		opts := CreateOptions{Name: name, Driver: driver}
		if json.Unmarshal([]byte(options), &opts.DriverOpts) != nil || json.Unmarshal([]byte(labels), &opts.Labels) != nil {
			return
		}
		parent := t.TempDir()
		dir := filepath.Join(parent, "volumes")
		v, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		made, created, err := v.Create(opts)
		beside, _ := os.ReadDir(parent)
		if len(beside) != 1 {
			t.Errorf("beside the volumes there is %v", beside)
		}
		inside, _ := os.ReadDir(dir)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) && !errdefs.IsNotFound(err) {
				t.Errorf("no kind: %v", err)
			}
			if len(inside) > 0 {
				t.Errorf("refused, and there is %v", inside)
			}
			return
		}
		if !created || len(inside) != 1 || inside[0].Name() != made.Name || made.Mountpoint != filepath.Join(v.dir, made.Name, dataDir) {
			t.Errorf("made %+v (%v), and there is %v", made, created, inside)
		}
		if name != "" && made.Name != name {
			t.Errorf("%q is made as %q", name, made.Name)
		}
		again, err := Open(dir, Options{})
		if err != nil || len(again.Broken()) > 0 {
			t.Fatalf("opened again: %v, %v", err, again.Broken())
		}
		read, err := again.Get(made.Name)
		if err != nil || read.Name != made.Name || !maps.Equal(read.Options, made.Options) || !maps.Equal(read.Labels, made.Labels) {
			t.Errorf("made\n%+v\nread\n%+v, %v", made, read, err)
		}
	})
}

// FuzzMeta opens a volume whose meta.json has arbitrary content. The volume is as
// the file says, or it is reported as broken and left alone.
func FuzzMeta(f *testing.F) {
	for _, s := range []string{
		"", "{", "null", `{"schema":1,"name":"data","created":"2026-01-01T00:00:00Z"}`, `{"schema":2,"name":7}`, `{"schema":1,"name":"other"}`,
		`{"name":"data"}`, `{"schema":0,"name":"data"}`, `{"schema":1,"schema":2,"name":"data"}`, `{"schema":1,"name":"data","options":{"type":"none","device":"/","o":"bind"}}`,
		`{"schema":1,"name":"data","options":[]}`, `{"schema":1e0,"name":"data","labels":{"a":null}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "data", dataDir), 0o700); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "data", metaFile)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		v, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, text) {
			t.Errorf("opening changed the file: %v", err)
		}
		_, err = v.Get("data")
		if (err == nil) == (len(v.Broken()) == 1) {
			t.Errorf("get says %v, broken is %v", err, v.Broken())
		}
		for _, err := range v.Broken() {
			if !errdefs.IsDataLoss(err) && !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), path) {
				t.Errorf("told without its kind or the file's name: %v", err)
			}
		}
	})
}

// FuzzMountOptions resolves the options of network file systems that name an
// address. The kernel gets all requested options, and in addition only an
// address.
func FuzzMountOptions(f *testing.F) {
	for _, s := range [][3]string{
		{"nfs", ":/x", "addr=10.0.0.1,rw"}, {"cifs", "//10.0.0.1/share", "username=u,password=a,b"}, {"cifs", "//[fe80::1%25eth0]/x", ""}, {"nfs4", "", ","},
		{"tmpfs", "tmpfs", "addr=x"}, {"smb3", "//u:p@10.0.0.1:1/x", "addr="}, {"cifs", ":", ""}, {"none", "/", "bind"},
	} {
		f.Add(s[0], s[1], s[2])
	}
	// The cancelled context prevents name lookups, which would leave the process.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	f.Fuzz(func(t *testing.T, typ, device, o string) {
		got, err := resolve(ctx, typ, device, o)
		if err != nil || got == o {
			return
		}
		rest, ok := strings.CutPrefix(got, o)
		if o != "" {
			rest, _ = strings.CutPrefix(rest, ",")
		}
		addr, isAddr := strings.CutPrefix(rest, "addr=")
		if _, err := netip.ParseAddr(addr); !ok || !isAddr || err != nil {
			t.Errorf("%q of %q on %q became %q", o, typ, device, got)
		}
	})
}
