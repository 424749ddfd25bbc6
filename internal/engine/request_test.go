// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	moby "github.com/moby/moby/api/types/container"
	mobynet "github.com/moby/moby/api/types/network"
)

// some sets a random part of a value.
func some(r *rand.Rand, v reflect.Value) {
	if r.IntN(3) == 0 {
		return
	}
	switch v.Interface().(type) {
	case netip.Addr:
		v.Set(reflect.ValueOf(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(255))})))
		return
	case mobynet.HardwareAddr:
		v.SetBytes([]byte{2, 0, 0, 0, 0, byte(r.IntN(255))})
		return
	case mobynet.Port:
		v.Set(reflect.ValueOf(mobynet.MustParsePort([]string{"80/tcp", "53/udp"}[r.IntN(2)])))
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 0)
	case reflect.Int, reflect.Int64:
		v.SetInt(r.Int64N(3))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint64:
		v.SetUint(r.Uint64N(3))
	case reflect.String:
		v.SetString([]string{"", "a", "<b>\u2028"}[r.IntN(3)])
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		some(r, v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				some(r, v.Field(i))
			}
		}
	case reflect.Array:
		for i := range v.Len() {
			some(r, v.Index(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), r.IntN(3), 3))
		for i := range v.Len() {
			some(r, v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range r.IntN(3) {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			some(r, key)
			some(r, value)
			if !key.IsZero() {
				v.SetMapIndex(key, value)
			}
		}
	}
}

func TestStoredRequestReadsAsTheOneWithAllMembers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		req := request{Config: &moby.Config{}, HostConfig: &moby.HostConfig{}}
		some(r, reflect.ValueOf(req.Config).Elem())
		some(r, reflect.ValueOf(req.HostConfig).Elem())
		some(r, reflect.ValueOf(&req.Networking).Elem())
		some(r, reflect.ValueOf(&req.Fixed).Elem())
		full, err := json.Marshal(req) // what earlier releases stored
		if err != nil {
			t.Fatal(err)
		}
		short, err := req.encode()
		if err != nil {
			t.Fatal(err)
		}
		want, err := decodeRequest(full)
		if err != nil {
			t.Fatalf("%v: %s", err, full)
		}
		got, err := decodeRequest(short)
		if err != nil {
			t.Fatalf("%v: %s", err, short)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%s\nis decoded differently from\n%s", short, full)
		}
		if len(short) > len(full) {
			t.Fatalf("%s\nis longer than\n%s", short, full)
		}
	}
}

func TestStoredRequestHasNoMembersThatSayNothing(t *testing.T) {
	off := false
	text, err := request{
		Config:     &moby.Config{Image: "web", Labels: map[string]string{}},
		HostConfig: &moby.HostConfig{Resources: moby.Resources{OomKillDisable: &off}},
	}.encode()
	if err != nil {
		t.Fatal(err)
	}
	want := `{"Config":{"Image":"web","Labels":{}},"HostConfig":{"OomKillDisable":false}}`
	if got := string(text); got != want {
		t.Errorf("stored was %s, want %s", got, want)
	}
	if _, err := decodeRequest(json.RawMessage(`{"Config":{}}`)); err == nil || !strings.Contains(err.Error(), "incomplete") {
		t.Errorf("half a request: %v", err)
	}
}

func BenchmarkDecodeRequest(b *testing.B) {
	req := request{
		Config: &moby.Config{Image: "bench/busybox:1", Cmd: []string{"httpd", "-f"}, StopSignal: "SIGKILL", Hostname: "75f5ef38a48b"},
		HostConfig: &moby.HostConfig{
			NetworkMode: "bridge", Runtime: "runc", ShmSize: 64 << 20, LogConfig: moby.LogConfig{Type: "json-file"},
			PortBindings: mobynet.PortMap{mobynet.MustParsePort("80/tcp"): {{HostPort: "10001"}}},
		},
	}
	full, err := json.Marshal(req)
	if err != nil {
		b.Fatal(err)
	}
	short, err := req.encode()
	if err != nil {
		b.Fatal(err)
	}
	for name, text := range map[string]json.RawMessage{"full": full, "short": short} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := decodeRequest(text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
