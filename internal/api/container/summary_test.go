// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// fill sets all fields of a value, or a random part of them.
func fill(r *rand.Rand, v reflect.Value, all bool) {
	if !all && r.IntN(3) == 0 {
		return
	}
	switch v.Interface().(type) {
	case netip.Addr:
		v.Set(reflect.ValueOf([]netip.Addr{
			netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7"), netip.MustParseAddr("fe80::1%a\"b"), netip.MustParseAddr("::ffff:1.2.3.4"),
		}[r.IntN(4)]))
		return
	case network.HardwareAddr:
		v.SetBytes([]byte{2, 0, 0, 0, 0, byte(r.IntN(255))})
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(all || r.IntN(2) == 0)
	case reflect.Int, reflect.Int64:
		v.SetInt(1 + r.Int64N(1<<40))
	case reflect.Uint8, reflect.Uint16:
		v.SetUint(1 + r.Uint64N(200))
	case reflect.String:
		v.SetString([]string{"web", "<b>&", "a\"\\b", "\u2028\x00\x7f\xff", "größe"}[r.IntN(5)])
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(r, v.Elem(), all)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(r, v.Field(i), all)
		}
	case reflect.Slice:
		n := r.IntN(3)
		if all {
			n = 2
		}
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			fill(r, v.Index(i), all)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range 3 {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fill(r, key, all)
			fill(r, value, all)
			v.SetMapIndex(key, value)
		}
	default:
		panic("a " + v.Type().String() + " can't be filled in: teach the test, and the encoder")
	}
}

func TestListIsWrittenAsEncodingJSONWritesIt(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	lists := [][]container.Summary{nil, {}, {{}}}
	for i := range 3000 {
		list := make([]container.Summary, 1+r.IntN(3))
		for k := range list {
			fill(r, reflect.ValueOf(&list[k]).Elem(), i < 20)
		}
		lists = append(lists, list)
	}
	for _, list := range lists {
		var want bytes.Buffer
		enc := json.NewEncoder(&want)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(list); err != nil {
			t.Fatal(err)
		}
		var e encoder
		e.summaries(list)
		if got := string(e.text) + "\n"; e.err != nil || got != want.String() {
			t.Fatalf("%v\ngot  %s\nwant %s", e.err, got, want.String())
		}
	}
}

func BenchmarkList(b *testing.B) {
	list := make([]container.Summary, 200)
	for i := range list {
		list[i] = container.Summary{
			ID: "fc59728267c9527527d58153058e1f6211c843ba86ffff40ecf3563ec47c1f90", Names: []string{"/kind_painter"}, Image: "busybox:1",
			Ports: []container.PortSummary{{IP: netip.MustParseAddr("0.0.0.0"), PrivatePort: 80, PublicPort: 10098, Type: "tcp"}},
			NetworkSettings: &container.NetworkSettingsSummary{Networks: map[string]*network.EndpointSettings{
				"bridge": {Gateway: netip.MustParseAddr("10.77.0.1"), IPAddress: netip.MustParseAddr("10.77.0.3"), MacAddress: network.HardwareAddr{2, 0, 0, 0, 0, 1}},
			}},
		}
	}
	b.Run("encoder", func(b *testing.B) {
		b.ReportAllocs()
		var e encoder
		for b.Loop() {
			e.text = e.text[:0]
			e.summaries(list)
		}
	})
	b.Run("encoding/json", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := json.Marshal(list); err != nil {
				b.Fatal(err)
			}
		}
	})
}
