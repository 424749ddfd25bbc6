// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

func request(body, contentType string) *Request {
	r := httptest.NewRequest("POST", "/", strings.NewReader(body))
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	return &Request{Request: r}
}

func TestDecodeTakesWhatDockerdTakes(t *testing.T) {
	for _, c := range []struct{ name, body, kind string }{
		{"plain", `{"Image":"a"}`, "application/json"},
		{"charset", `{"Image":"a"}`, "application/json; charset=utf-8"},
		{"white space around", "\n {\"Image\":\"a\"} \n\n", "application/json"},
		{"unknown fields", `{"Image":"a","Foo":{"Bar":[1]}}`, "application/json"},
		{"other case", `{"image":"a"}`, "application/json"},
		{"null", `{"Image":"a","HostConfig":null,"Cmd":null}`, "application/json"},
	} {
		var v container.CreateRequest
		ok, err := request(c.body, c.kind).Decode(httptest.NewRecorder(), &v)
		if !ok || err != nil || v.Image != "a" {
			t.Errorf("%s: %v, %v, %+v", c.name, ok, err, v)
		}
	}
	var v container.CreateRequest
	if ok, err := request("", "").Decode(httptest.NewRecorder(), &v); ok || err != nil {
		t.Errorf("no body: %v, %v", ok, err)
	}
	if ok, err := request("", "application/json").Decode(httptest.NewRecorder(), &v); ok || err != nil {
		t.Errorf("no body, with a type: %v, %v", ok, err)
	}
}

func TestBodyThatIsTooLargeIsRefused(t *testing.T) {
	r := request(`{"Image":"`+strings.Repeat("a", maxBody)+`"}`, "application/json")
	var v container.CreateRequest
	_, err := r.Decode(httptest.NewRecorder(), &v)
	if Status(err) != http.StatusRequestEntityTooLarge {
		t.Errorf("%d: %v", Status(err), err)
	}
}

func TestPositionCountsLinesAndColumns(t *testing.T) {
	body := []byte("{\n  \"a\": 1\n}")
	for offset, want := range map[int64]string{0: "line 1, column 1", 2: "line 2, column 1", 4: "line 2, column 3", 99: "line 3, column 2", -5: "line 1, column 1"} {
		if got := position(body, offset); got != want {
			t.Errorf("offset %d: %s, want %s", offset, got, want)
		}
	}
}

// FuzzDecode: a refusal is a 400 with a message, and an accepted body is
// decoded as encoding/json would.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		"", "{", "[]", "null", `{"Image":1}`, `{"HostConfig":{"Memory":"x"}}`, `{"a":1} x`, `{"HostConfig":{"Dns":["x"]}}`,
		`{"HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"x"}]}}}`, `{"NetworkingConfig":{"EndpointsConfig":{"a":{"MacAddress":"x"}}}}`,
		"{}\u2029", `{"ExposedPorts":{"x":{}}}`, `{"Healthcheck":{"Interval":1e99}}`, "{\"Image\":\"\xff\"}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var create container.CreateRequest
		var net network.CreateRequest
		for _, v := range []any{&create, &net} {
			err := DecodeBytes(body, v)
			if err != nil {
				if Status(err) != 400 || err.Error() == "" {
					t.Errorf("%d %q", Status(err), err)
				}
				continue
			}
			if !json.Valid(body) {
				t.Errorf("took %q", body)
			}
		}
	})
}

func FuzzQuery(f *testing.F) {
	for _, s := range []string{"", "0", "1.5", "-1.5", "1700000000.123456789123", "2006-01-02T15:04:05.5+02:00", "1.", ".5", "99999999999999999999", "--1", "1.-5"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r := &Request{Query: map[string][]string{"v": {s}, "h": {s}, "w": {s}, "platform": {s}, "filters": {s}}}
		check := func(what string, err error) {
			if err != nil && Status(err) != 400 {
				t.Errorf("%s of %q: %d %v", what, s, Status(err), err)
			}
		}
		_, err := r.Time("v")
		check("time", err)
		_, err = r.Int("v")
		check("number", err)
		h, w, err := r.Size()
		check("size", err)
		if h != w || h > 65535 {
			t.Errorf("size of %q: %d, %d", s, h, w)
		}
		_, err = r.Platform()
		check("platform", err)
		_, err = r.PlatformJSON()
		check("JSON platform", err)
		_, err = r.Filters()
		check("filters", err)
		r.Bool("v")
		if v, err := ParseVersion(s); err == nil {
			if again, err := ParseVersion(v.String()); err != nil || again != v {
				t.Errorf("version %q became %v, then %v, %v", s, v, again, err)
			}
		}
	})
}

func TestFieldsAreNamedByTheirPathInTheJSON(t *testing.T) {
	for body, want := range map[string]string{
		`{"Env":[1]}`: "field Env:",
		`{"HostConfig":{"Ulimits":[{"Name":"n","Hard":"x"}]}}`:          "field HostConfig.Ulimits.Hard:",
		`{"HostConfig":{"Mounts":[{"BindOptions":{"Propagation":1}}]}}`: "field HostConfig.Mounts.BindOptions.Propagation:",
		`{"ExposedPorts":{"70000":{}}}`:                                 "field ExposedPorts:",
		`7`:                                                             "field (the whole body):",
	} {
		var v container.CreateRequest
		err := DecodeBytes([]byte(body), &v)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q in it", body, err, want)
		}
	}
	if err := DecodeBytes([]byte(`{"a":1}`), &failing{}); err == nil || !errors.Is(err, errFailing) {
		t.Errorf("a decoder's own error: %v", err)
	}
}

var errFailing = errors.New("no")

type failing struct{}

func (*failing) UnmarshalJSON([]byte) error { return errFailing }
