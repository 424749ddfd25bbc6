// SPDX-License-Identifier: Apache-2.0

package proto

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"
)

// kinds returns an empty message of each type.
func kinds() []fielder {
	return []fielder{&Message{}, &Bootstrap{}, &Hello{}, &HelloReply{}, &Subscribe{}, &Stop{}, &Kill{}, &Pause{}, &Update{}, &Resize{}, &Names{}, &Ports{}, &PortsReply{},
		&Attach{}, &Hold{}, &Follow{}, &ExecCreate{}, &ExecStart{}, &Upgrade{}, &State{}, &Entry{}, &Event{}, &ExecState{}, &Error{}}
}

// fill sets every field of v to a random value, which may be zero.
func fill(r *rand.Rand, v reflect.Value) {
	texts := []string{"", "a", "web-1", "a\"b\\c\n\t\x01\b\f", "<&>", "é\u2028\u2029😀", "\xff\xc3", strings.Repeat("long ", 100)}
	if r.IntN(4) == 0 {
		return
	}
	switch p := v.Addr().Interface().(type) {
	case *time.Time:
		*p = time.Unix(r.Int64N(4e9), r.Int64N(2)*r.Int64N(1e9)).In([]*time.Location{time.UTC, time.FixedZone("", 5400)}[r.IntN(2)])
		return
	case *json.RawMessage:
		*p = json.RawMessage([]string{`{"a":[1,{"b":null}],"c":"x"}`, `null`, `"text"`, `[]`, `-1.5e+3`, `true`}[r.IntN(6)])
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(texts[r.IntN(len(texts))])
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt([]int64{1, -1, 1<<63 - 1, -1 << 63, r.Int64()}[r.IntN(5)])
	case reflect.Uint, reflect.Uint32, reflect.Uint64:
		v.SetUint(r.Uint64())
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(r, v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), r.IntN(3), 3))
		for i := range v.Len() {
			if v.Type().Elem().Kind() == reflect.Uint8 {
				v.Index(i).SetUint(uint64(r.IntN(256)))
			} else {
				fill(r, v.Index(i))
			}
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(r, v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range r.IntN(4) {
			v.SetMapIndex(reflect.ValueOf(texts[r.IntN(len(texts))]), reflect.ValueOf(texts[r.IntN(len(texts))]))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fill(r, v.Field(i))
		}
	default:
		panic("the codec knows no " + v.Kind().String())
	}
}

func TestMessagesAreWhatEncodingJSONMakesOfThem(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, f := range kinds() {
		for range 500 {
			v := reflect.New(reflect.TypeOf(f).Elem())
			fill(r, v.Elem())
			want, err := json.Marshal(v.Interface())
			if err != nil {
				t.Fatal(err)
			}
			got, err := Marshal(v.Interface())
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%T: %v\n got %s\nwant %s", f, err, got, want)
			}
			var indented bytes.Buffer
			json.Indent(&indented, want, "", "\t")
			for _, text := range [][]byte{want, indented.Bytes()} {
				sameAsEncodingJSON(t, f, text)
			}
		}
	}
}

// sameAsEncodingJSON compares Unmarshal with json.Unmarshal.
func sameAsEncodingJSON(t *testing.T, f fielder, text []byte) {
	t.Helper()
	got, want := reflect.New(reflect.TypeOf(f).Elem()), reflect.New(reflect.TypeOf(f).Elem())
	if err := Unmarshal(text, got.Interface()); err != nil {
		t.Fatalf("%T: %v\n%s", f, err, text)
	}
	if err := json.Unmarshal(text, want.Interface()); err != nil {
		t.Fatalf("%T: encoding/json rejects what Unmarshal accepts: %v\n%s", f, err, text)
	}
	if !reflect.DeepEqual(got.Interface(), want.Interface()) {
		t.Fatalf("%T:\n got %+v\nwant %+v\n%s", f, got, want, text)
	}
}

func TestFieldsOfOtherReleasesArePassedOver(t *testing.T) {
	var e Event
	err := Unmarshal([]byte(` { "later" : {"seq":9,"x":[{},[],"]}",{"action":"no"}]}, "seq":7,"state":{"later":[1.5e3,true],"pid":4},"action":"die","time":null,"more":null} `), &e)
	if err != nil || e.Seq != 7 || e.Action != "die" || e.State.Pid != 4 {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestWhatIsNoMessageIsRefused(t *testing.T) {
	for _, text := range []string{"", "{", `{"id"`, `{"id":`, `{"id":1`, `{"id":1,}`, `{"id":1}}`, `{"id":01}`, `{"id":1.0}`, `{"id":-1}`,
		`{"id":18446744073709551616}`, `{"id":"1"}`, `{"method":"a`, `{"method":"\x"}`, `{"method":"\u12"}`, "{\"method\":\"\n\"}", `{"fds":tru}`,
		`{"params":{"a"}}`, `{"params":nul}`, `{"params":[1,]}`, `{"event":[]}`, `{"error":{"kind":1}}`, `[]`, `1`, `{"id":1} x`, `{"id":1}{`,
		`{"params":` + strings.Repeat("[", 1<<20)} {
		if err := Unmarshal([]byte(text), &Message{}); err == nil {
			t.Errorf("accepted: %.80s", text)
		}
		if json.Valid([]byte(text)) && json.Unmarshal([]byte(text), &Message{}) == nil {
			t.Errorf("encoding/json accepts: %.80s", text)
		}
	}
}

// Unmarshal must accept the same texts as encoding/json, with the same result. The
// exceptions, which no peer sends, are names in other case, duplicate members, and
// binary data as lists of numbers.
func FuzzMessages(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 4))
	for i, k := range kinds() {
		for range 5 {
			v := reflect.New(reflect.TypeOf(k).Elem())
			fill(r, v.Elem())
			text, _ := Marshal(v.Interface())
			f.Add(byte(i), text)
		}
	}
	f.Add(byte(0), []byte(`{"id":null,"method":"\ud83d\ude00\ud83d\u0041\/","params": [ 1 ] ,"error":null,"event":{"attributes":{"a":null}}}`))
	f.Fuzz(func(t *testing.T, kind byte, text []byte) {
		k := kinds()[int(kind)%len(kinds())]
		plain, odd := true, false
		var walk func(d *json.Decoder) bool
		walk = func(d *json.Decoder) bool {
			tok, err := d.Token()
			if err != nil {
				plain = false
				return false
			}
			switch tok {
			case json.Delim('['):
				for d.More() {
					if !walk(d) {
						return false
					}
				}
				d.Token()
			case json.Delim('{'):
				seen := map[string]bool{}
				for d.More() {
					key, err := d.Token()
					if err != nil {
						plain = false
						return false
					}
					name := strings.ToLower(strings.NewReplacer("ſ", "s", "K", "k").Replace(key.(string)))
					odd = odd || seen[name] || known[name] != "" && known[name] != key
					seen[name] = true
					if !walk(d) {
						return false
					}
				}
				d.Token()
			}
			return true
		}
		walk(json.NewDecoder(bytes.NewReader(text)))
		if odd {
			return
		}
		got, want := reflect.New(reflect.TypeOf(k).Elem()), reflect.New(reflect.TypeOf(k).Elem())
		err, werr := Unmarshal(text, got.Interface()), json.Unmarshal(text, want.Interface())
		switch {
		case err == nil && werr != nil:
			t.Fatalf("%T: accepted, but encoding/json returns %v\n%s", k, werr, text)
		case err != nil && werr == nil:
			if plain && !strings.Contains(err.Error(), "unexpected \"[\"") && err != errDepth {
				t.Fatalf("%T: rejected with %v, but encoding/json accepts\n%s", k, err, text)
			}
		case err == nil && !reflect.DeepEqual(got.Interface(), want.Interface()):
			t.Fatalf("%T:\n got %+v\nwant %+v\n%s", k, got, want, text)
		}
	})
}

// known has the names of all fields, by their lower-case form.
var known = func() map[string]string {
	names := map[string]string{}
	var add func(t reflect.Type)
	seen := map[reflect.Type]bool{}
	add = func(t reflect.Type) {
		switch t.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Array:
			add(t.Elem())
		case reflect.Struct:
			if seen[t] || t == reflect.TypeFor[time.Time]() {
				return
			}
			seen[t] = true
			for i := range t.NumField() {
				f := t.Field(i)
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				if name == "" {
					name = f.Name
				}
				names[strings.ToLower(name)] = name
				add(f.Type)
			}
		}
	}
	for _, k := range kinds() {
		add(reflect.TypeOf(k).Elem())
	}
	return names
}()
