// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"go.yaml.in/yaml/v3"
)

// ask sends one request to a handler.
func ask(h http.Handler, method, target, body string, header ...string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, target, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w
}

// message is the text of an error answer.
func message(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	var e struct{ Message string }
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil {
		t.Fatalf("the answer is not an error object: %q", w.Body)
	}
	if ct := w.Header().Get("Content-Type"); ct != "application/json" {
		t.Errorf("content type %q, want application/json", ct)
	}
	return e.Message
}

func TestVersionGate(t *testing.T) {
	h := handler(&fake{})
	for _, c := range []struct {
		path string
		code int
		text string
	}{
		{"/version", 200, ""},
		{"/v1.24/version", 200, ""},
		{"/v1.41/version", 200, ""},
		{"/v" + DefaultVersion + "/version", 200, ""},
		{"/v1.23/version", 400, "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"},
		{"/v1.999/version", 400, "client version 1.999 is too new. Maximum supported API version is " + DefaultVersion},
		{"/v2.0/version", 400, "client version 2.0 is too new. Maximum supported API version is " + DefaultVersion},
		{"/v1/version", 400, `invalid API version "1": want MAJOR.MINOR, such as 1.44`},
		{"/v1..2/version", 400, `invalid API version "1..2": want MAJOR.MINOR, such as 1.44`},
		{"/vx/version", 404, "page not found"},
		{"//version", 200, ""},
		{"//v1.44//version", 200, ""},
	} {
		w := ask(h, "GET", c.path, "")
		if w.Code != c.code {
			t.Errorf("%s: %d, want %d", c.path, w.Code, c.code)
			continue
		}
		if c.text != "" && message(t, w) != c.text {
			t.Errorf("%s: %q, want %q", c.path, message(t, w), c.text)
		}
		if got := w.Header().Get("Api-Version"); got != DefaultVersion {
			t.Errorf("%s: Api-Version %q", c.path, got)
		}
	}
}

func TestNewestVersionIsThatOfTheTypes(t *testing.T) {
	if DefaultVersion != client.MaxAPIVersion {
		t.Errorf("the served version is %s, that of the types %s", DefaultVersion, client.MaxAPIVersion)
	}
}

func TestEveryAnswerCarriesTheDaemonsHeaders(t *testing.T) {
	f := &fake{}
	h := New(Options{Containers: f, Images: f, Volumes: f, Networks: f, System: f, Server: "Holdfast/9", Experimental: func() bool { return true }})
	for _, path := range []string{"/_ping", "/info", "/nowhere", "/v1.1/info"} {
		w := ask(h, "GET", path, "")
		for k, want := range map[string]string{"Server": "Holdfast/9", "Ostype": "linux", "Docker-Experimental": "true", "Api-Version": DefaultVersion} {
			if got := w.Header().Get(k); got != want {
				t.Errorf("%s: %s is %q, want %q", path, k, got, want)
			}
		}
	}
	w := ask(h, "HEAD", "/_ping", "")
	if w.Code != 200 || w.Body.Len() != 0 || w.Header().Get("Content-Length") != "0" || w.Header().Get("Cache-Control") == "" {
		t.Errorf("HEAD /_ping: %d %q %v", w.Code, w.Body, w.Header())
	}
	if w := ask(h, "GET", "/_ping", ""); w.Body.String() != "OK" {
		t.Errorf("GET /_ping: %q", w.Body)
	}
}

func TestUnknownPathsAndMethodsAreNotFound(t *testing.T) {
	h := handler(&fake{})
	for _, r := range []string{"GET /", "GET /nowhere", "PUT /info", "GET /containers", "GET /containers//json", "POST /containers/web/json", "GET /images//json", "GET /v1.44", "GET /v1.44/containers//json"} {
		method, path, _ := strings.Cut(r, " ")
		w := ask(h, method, path, "")
		if w.Code != 404 || message(t, w) != "page not found" {
			t.Errorf("%s: %d %q", r, w.Code, w.Body)
		}
	}
}

// mobyAPI is the folder of the module github.com/moby/moby/api.
func mobyAPI(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// TestEveryOperationOfTheAPIIsServedOrRefused compares the routes with the
// API's own descriptions: the newest one, and all older ones in this form.
func TestEveryOperationOfTheAPIIsServedOrRefused(t *testing.T) {
	dir := mobyAPI(t)
	files, err := filepath.Glob(filepath.Join(dir, "docs", "v1.*.yaml"))
	if err != nil || len(files) < 20 {
		t.Fatalf("found %d descriptions of older versions: %v", len(files), err)
	}
	routes := handler(&fake{}).(*server).routes
	variable := regexp.MustCompile(`\{[^}]*\}`)
	operations := map[string]bool{}
	for _, file := range append(files, filepath.Join(dir, "swagger.yaml")) {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Paths map[string]map[string]yaml.Node `yaml:"paths"`
		}
		if err := yaml.Unmarshal(b, &doc); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for path, methods := range doc.Paths {
			for method := range methods {
				operations[strings.ToUpper(method)+" "+variable.ReplaceAllString(path, "x")] = true
			}
		}
	}
	if len(operations) < 100 {
		t.Fatalf("only %d operations read", len(operations))
	}
	for _, op := range slices.Sorted(maps.Keys(operations)) {
		method, path, _ := strings.Cut(op, " ")
		if _, _, ok := routes.find(method, path); !ok {
			t.Errorf("%s has no route", op)
		}
	}
}

func TestWhatIsMissingSaysSo(t *testing.T) {
	h := handler(&fake{})
	for _, u := range unavailable {
		for _, p := range u.paths {
			method, path, _ := strings.Cut(p, " ")
			path = regexp.MustCompile(`\{[^}]*\}`).ReplaceAllString(path, "x")
			w := ask(h, method, "/v1.44"+path, "")
			if want := u.what + " is not available in this release of Holdfast"; w.Code != 501 || message(t, w) != want {
				t.Errorf("%s: %d %q, want 501 %q", p, w.Code, w.Body, want)
			}
		}
	}
}

// TestWhatCannotBeThereIsEmpty: commands about other objects request these too.
func TestWhatCannotBeThereIsEmpty(t *testing.T) {
	h := handler(&fake{})
	if w := ask(h, "GET", "/plugins/a/b:c/json", ""); w.Code != 404 || message(t, w) != `plugin "a/b:c" not found` {
		t.Errorf("plugin: %d %q", w.Code, w.Body)
	}
	if w := ask(h, "GET", "/plugins", ""); w.Code != 200 || w.Body.String() != "[]\n" {
		t.Errorf("plugins: %d %q", w.Code, w.Body)
	}
	if w := ask(h, "POST", "/build/prune", ""); w.Code != 200 || w.Body.String() != `{"CachesDeleted":[],"SpaceReclaimed":0}`+"\n" {
		t.Errorf("build cache: %d %q", w.Code, w.Body)
	}
}

func TestPanicBecomesAnErrorAndIsLogged(t *testing.T) {
	var log bytes.Buffer
	f := &fake{panicOnInfo: true}
	h := New(Options{Containers: f, Images: f, Volumes: f, Networks: f, System: f, Log: slog.New(slog.NewTextHandler(&log, nil))})
	w := ask(h, "GET", "/info", "")
	if w.Code != 500 || !strings.Contains(message(t, w), "internal error while serving GET /info") {
		t.Errorf("%d %q", w.Code, w.Body)
	}
	if !strings.Contains(log.String(), "boom") || !strings.Contains(log.String(), "fake_test.go") {
		t.Errorf("the log has no stack: %s", log.String())
	}
	f.panicOnInfo = false
	if w := ask(h, "GET", "/info", ""); w.Code != 200 {
		t.Errorf("the next request: %d", w.Code)
	}
}

func TestEngineErrorsBecomeTheirStatus(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
	}{
		{fmt.Errorf("No such container: web: %w", errdefs.ErrNotFound), 404},
		{fmt.Errorf("name in use: %w", errdefs.ErrConflict), 409},
		{fmt.Errorf("already started: %w", errdefs.ErrNotModified), 304},
		{errors.New("disk on fire"), 500},
	} {
		w := ask(handler(&fake{err: c.err}), "POST", "/containers/web/start", "")
		if w.Code != c.code {
			t.Errorf("%v: %d, want %d", c.err, w.Code, c.code)
		}
		if c.code == 304 {
			if w.Body.Len() != 0 {
				t.Errorf("304 has a body: %q", w.Body)
			}
		} else if message(t, w) != c.err.Error() {
			t.Errorf("message %q, want %q", message(t, w), c.err)
		}
	}
}

// TestBadInputNamesWhatWasWrong: every bad value is refused with 400 before the
// engine is called, and the message names the value.
func TestBadInputNamesWhatWasWrong(t *testing.T) {
	const js = "application/json"
	for _, c := range []struct {
		name, method, path, kind, body string
		want                           string
	}{
		{"time-out", "POST", "/containers/w/stop?t=abc", "", "", `invalid value "abc" for parameter "t": want a whole number`},
		{"restart time-out", "POST", "/containers/w/restart?t=1.5", "", "", `"t"`},
		{"limit", "GET", "/containers/json?limit=x", "", "", `"limit"`},
		{"filters", "GET", "/containers/json?filters=x", "", "", `invalid filters "x"`},
		{"tail", "GET", "/containers/w/logs?stdout=1&tail=x", "", "", `invalid value "x" for parameter "tail"`},
		{"since", "GET", "/containers/w/logs?stdout=1&since=yesterday", "", "", `"since"`},
		{"no stream", "GET", "/containers/w/logs", "", "", "must specify at least one of"},
		{"height", "POST", "/containers/w/resize?h=x&w=1", "", "", `invalid resize height "x": invalid syntax`},
		{"width", "POST", "/containers/w/resize?h=1&w=70000", "", "", `invalid resize width "70000": value out of range`},
		{"exec width", "POST", "/exec/e/resize?h=1", "", "", `invalid resize width "": invalid syntax`},
		{"condition", "POST", "/containers/w/wait?condition=never", "", "", `invalid condition: "never"`},
		{"stats", "GET", "/containers/w/stats?stream=1&one-shot=1", "", "", "cannot have stream=true and one-shot=true"},
		{"start with a body", "POST", "/containers/w/start", js, `{"Binds":[]}`, "non-empty request body"},
		{"events' order", "GET", "/events?since=20&until=10", "", "", "`since` time (20) cannot be after `until` time (10)"},
		{"events' filter", "GET", `/events?filters={"colour":["red"]}`, "", "", "invalid filter 'colour'"},
		{"usage type", "GET", "/system/df?type=ships", "", "", `unknown object type: "ships"`},
		{"query", "GET", "/info?a=%zz", "", "", "invalid query string"},

		{"no body", "POST", "/containers/create", js, "", "got EOF while reading request body"},
		{"empty object", "POST", "/containers/create", js, "{}", "config cannot be empty in order to create a container"},
		{"no content type", "POST", "/containers/create", "", "{}", "malformed Content-Type header ()"},
		{"other content type", "POST", "/containers/create", "text/plain", "{}", "unsupported Content-Type header (text/plain): must be 'application/json'"},
		{"syntax", "POST", "/containers/create", js, "{\"Image\":\n  oops}", "invalid JSON: invalid character 'o' looking for beginning of value at line 2, column 3"},
		{"cut off", "POST", "/containers/create", js, `{"Image":"a"`, "unexpected end of the request body at line 1, column 13"},
		{"garbage after", "POST", "/containers/create", js, `{"Image":"a"} {"b":1}`, "unexpected content after JSON at line 1, column 15"},
		{"field of the wrong type", "POST", "/containers/create", js, `{"Image":7}`, "field Image: got number, want a string"},
		{"nested field", "POST", "/containers/create", js, `{"Image":"a","HostConfig":{"Memory":"lots"}}`, "field HostConfig.Memory: got string, want a whole number"},
		{"too large a number", "POST", "/containers/create", js, `{"Image":"a","HostConfig":{"BlkioWeight":70000}}`, "HostConfig.BlkioWeight: got number 70000"},
		{"address", "POST", "/containers/create", js, `{"Image":"a","HostConfig":{"Dns":["1.1.1.1","nope"]}}`, `field HostConfig.Dns[1]: ParseAddr("nope")`},
		{"port", "POST", "/containers/create", js, `{"Image":"a","HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"x"}]}}}`, "field HostConfig.PortBindings.80/tcp[0].HostIp: "},
		{"list instead of object", "POST", "/containers/create", js, `[]`, "got array, want an object"},
		{"platform", "POST", "/containers/create?platform=a/b/c/d", js, `{"Image":"a"}`, `invalid platform "a/b/c/d"`},
		{"MAC address", "POST", "/v1.43/containers/create", js, `{"Image":"a","MacAddress":"zz"}`, "field MacAddress: "},
		{"MAC address without network", "POST", "/v1.43/containers/create", js, `{"Image":"a","MacAddress":"02:00:00:00:00:01","HostConfig":{"NetworkMode":"host"}}`, "conflicting options: mac-address and the network mode"},
		{"several networks", "POST", "/v1.43/containers/create", js, `{"Image":"a","NetworkingConfig":{"EndpointsConfig":{"a":{},"b":{}}}}`, "multiple network endpoints: a, b"},
		{"exec without command", "POST", "/containers/w/exec", js, `{}`, "No exec command specified"},
		{"exec console", "POST", "/exec/e/start", js, `{"ConsoleSize":[1,-2]}`, "field ConsoleSize"},
		{"volume", "POST", "/volumes/create", js, `{"Labels":[]}`, "field Labels: got array, want an object"},
		{"network", "POST", "/networks/create", js, `{"Name":"n","EnableIPv6":"yes"}`, "field EnableIPv6: got string, want true or false"},
		{"subnet", "POST", "/networks/create", js, `{"IPAM":{"Config":[{"Subnet":"10.0.0.0"}]}}`, "field IPAM.Config[0].Subnet: "},
		{"connect", "POST", "/networks/n/connect", js, "", "EOF"},
		{"login", "POST", "/auth", js, `{"username":1}`, "field username"},

		{"image create of nothing", "POST", "/images/create", "", "", `give "fromImage" to pull`},
		{"reference", "POST", "/images/create?fromImage=UPPER", "", "", `invalid reference format: repository name (library/UPPER) must be lowercase`},
		{"tag", "POST", "/images/create?fromImage=a&tag=-x", "", "", `invalid tag format`},
		{"pull platform", "POST", "/images/create?fromImage=a&platform=a/b/c/d", "", "", "invalid platform"},
		{"import source", "POST", "/images/create?fromSrc=ftp://x/y", "", "", "invalid import source"},
		{"import reference", "POST", "/images/create?fromSrc=-&repo=A", "", "", "invalid reference format"},
		{"inspect platform", "GET", "/images/a/json?platform=linux", "", "", "failed to parse platform"},
		{"inspect platform, half", "GET", `/images/a/json?platform={"os":"linux"}`, "", "", "both OS and Architecture must be provided"},
		{"inspect conflict", "GET", `/images/a/json?manifests=1&platform={"os":"linux","architecture":"arm"}`, "", "", "mutually exclusive"},
		{"tag target", "POST", "/images/a/tag?repo=B", "", "", "invalid reference format"},
		{"tag without target", "POST", "/images/a/tag", "", "", "invalid reference format"},
		{"tag with digest", "POST", "/images/a/tag?repo=a@sha256:" + strings.Repeat("a", 64), "", "", "refusing to create a tag with a digest reference"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fake{}
			var header []string
			if c.kind != "" {
				header = []string{"Content-Type", c.kind}
			}
			path := strings.NewReplacer("{", "%7B", "}", "%7D", `"`, "%22").Replace(c.path)
			w := ask(handler(f), c.method, path, c.body, header...)
			if w.Code != 400 {
				t.Fatalf("%d %q, want 400", w.Code, w.Body)
			}
			if got := message(t, w); !strings.Contains(got, c.want) {
				t.Errorf("message %q, want %q in it", got, c.want)
			}
			if f.last() != "" {
				t.Errorf("the engine was asked: %s", f.last())
			}
		})
	}
}

func TestRegistryCredentials(t *testing.T) {
	for _, c := range []struct {
		name, header string
		code         int
		user         string
	}{
		{"none", "", 200, "anonymous"},
		{"empty object", "e30=", 200, "anonymous"},
		{"url alphabet", "eyJ1c2VybmFtZSI6IsO_w7_Dv8O_In0=", 200, "ÿÿÿÿ"},
		{"standard alphabet", "eyJ1c2VybmFtZSI6IsO/w7/Dv8O/In0=", 200, "ÿÿÿÿ"},
		{"no padding", "eyJ1c2VybmFtZSI6Im1lIn0", 200, "me"},
		{"no base64", "!!!", 400, ""},
		{"no JSON", "aGVsbG8=", 400, ""},
	} {
		f := &fake{}
		w := ask(handler(f), "POST", "/images/create?fromImage=a&tag=b", "", "X-Registry-Auth", c.header)
		if w.Code != c.code {
			t.Errorf("%s: %d %q, want %d", c.name, w.Code, w.Body, c.code)
		}
		if c.code == 200 && !strings.Contains(f.last(), c.user) {
			t.Errorf("%s: %s, want user %q", c.name, f.last(), c.user)
		}
		if c.code == 400 && !strings.Contains(message(t, w), "invalid X-Registry-Auth header") {
			t.Errorf("%s: %q", c.name, w.Body)
		}
	}
}
