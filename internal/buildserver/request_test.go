// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/session/auth"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestParametersOfABuildReachBuildKit(t *testing.T) {
	q := url.Values{
		"t": {"app", "app:2"}, "dockerfile": {"sub/D"}, "nocache": {"1"}, "pull": {"true"}, "target": {"one"}, "platform": {"linux/arm64"},
		"networkmode": {"host"}, "extrahosts": {"a:1.2.3.4", "b=::1"}, "shmsize": {"1024"}, "cgroupparent": {"/x"},
		"buildargs": {`{"A":"1","B":null}`}, "labels": {`{"l":"m"}`}, "cachefrom": {`["ref"]`}, "ulimits": {`[{"Name":"nofile","Soft":1,"Hard":2}]`},
		"memory": {"0"}, "squash": {"false"},
	}
	r, err := parseRequest(q, base64.URLEncoding.EncodeToString([]byte(`{"https://index.docker.io/v1/":{"username":"u","password":"p"},"example.com":{"identitytoken":"t"}}`)))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"filename": "sub/D", "no-cache": "", "image-resolve-mode": "pull", "target": "one", "platform": "linux/arm64",
		"force-network-mode": "host", "add-hosts": "a=1.2.3.4,b=::1", "shm-size": "1024", "cgroup-parent": "/x",
		"build-arg:A": "1", "label:l": "m", "ulimit": "nofile=1:2",
	}
	if !maps.Equal(r.attrs, want) {
		t.Errorf("%v, want %v", r.attrs, want)
	}
	if len(r.exports) != 1 || r.exports[0].Type != exporterMoby || r.exports[0].Attrs["name"] != "app,app:2" || r.imports[0].Attrs["ref"] != "ref" {
		t.Errorf("%v %v", r.exports, r.imports)
	}
	c := &credentials{req: r}
	for host, want := range map[string]string{"registry-1.docker.io": "u p", "example.com": " t", "other": " "} {
		got, err := c.Credentials(t.Context(), &auth.CredentialsRequest{Host: host})
		if err != nil || got.Username+" "+got.Secret != want {
			t.Errorf("%s: %v, %v, want %q", host, got, err, want)
		}
	}
}

func TestBuildThatCantBeAsAskedIsRefused(t *testing.T) {
	for _, query := range []string{
		"squash=1", "securityopt=[\"seccomp=x\"]", "buildargs=x", "labels=[]", "shmsize=-1",
		"remote=client-session", `outputs=[{"Type":"x"}]`, "ulimits={}",
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseRequest(q, ""); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", query, err)
		}
	}
	if _, err := parseRequest(nil, "%%%"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("credentials: %v", err)
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add(`t=a&buildargs={"a":null}&extrahosts=a:b,c&shmsize=1`, "e30=")
	f.Add(`outputs=[{"Type":"local","Attrs":null}]&ulimits=[null]`, "")
	f.Add(`cachefrom=[null]&labels={"a":null}&networkmode=host`, "bnVsbA==")
	f.Fuzz(func(t *testing.T, query, header string) {
		q, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		r, err := parseRequest(q, header)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q is no ErrInvalidArgument", err)
			}
			return
		}
		if r.dockerfile == "" || r.attrs["filename"] != r.dockerfile {
			t.Errorf("dockerfile %q, filename %q", r.dockerfile, r.attrs["filename"])
		}
		if len(r.attrs["add-hosts"]) > 0 && strings.Contains(r.attrs["add-hosts"], "\n") && !strings.Contains(query, "%0A") && !strings.Contains(query, "\n") {
			t.Errorf("hosts of several lines: %q", r.attrs["add-hosts"])
		}
	})
}

func TestPruneFiltersReachBuildKit(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	r, err := pruneRequest(url.Values{
		"all": {"1"}, "keep-storage": {"7"}, "max-used-space": {"8"},
		"filters": {`{"until":{"24h":true},"type":{"regular":true},"inuse":{"false":true},"id":{"abc":true}}`},
	}, now)
	if err != nil {
		t.Fatal(err)
	}
	if !r.All || r.ReservedSpace != 7 || r.MaxUsedSpace != 8 || time.Duration(r.KeepDuration) != 24*time.Hour ||
		strings.Join(r.Filter, " ") != `id~="^abc",inuse==false,type=="regular"` {
		t.Errorf("%+v", r)
	}
	if r, err := pruneRequest(url.Values{"filters": {`{"id":["a","b"],"shared":[""],"parent":["c"]}`}}, now); err != nil ||
		!slices.Equal(r.Filter, []string{`id~="^a",parent=="c",shared==true`, `id~="^b",parent=="c",shared==true`}) {
		t.Errorf("several values: %q, %v", r.GetFilter(), err)
	}
	if r, err := pruneRequest(url.Values{"filters": {`{"until":["2029-12-31T00:00:00Z"]}`}}, now); err != nil || time.Duration(r.KeepDuration) != 24*time.Hour {
		t.Errorf("%+v, %v", r, err)
	}
	for _, q := range []url.Values{{"keep-storage": {"-1"}}, {"filters": {"x"}}, {"filters": {`{"label":["a"]}`}}, {"filters": {`{"until":["soon"]}`}}} {
		if _, err := pruneRequest(q, now); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", q, err)
		}
	}
}

func archive(t *testing.T, compress bool, files ...string) io.Reader {
	t.Helper()
	var b bytes.Buffer
	var out io.Writer = &b
	if compress {
		z := gzip.NewWriter(&b)
		defer z.Close()
		out = z
	}
	w := tar.NewWriter(out)
	for _, name := range files {
		text := "FROM base\nRUN " + name + "\n"
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if z, ok := out.(*gzip.Writer); ok {
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return bytes.NewReader(b.Bytes())
}

func TestDockerfileIsFoundInTheContext(t *testing.T) {
	for name, c := range map[string]struct {
		body       io.Reader
		dockerfile string
		steps      int
	}{
		"tar":          {archive(t, false, "a", "./Dockerfile"), "Dockerfile", 2},
		"gzip":         {archive(t, true, "x/D"), "x/D", 2},
		"not there":    {archive(t, false, "a"), "Dockerfile", 0},
		"climbs out":   {archive(t, false, "../Dockerfile", "a"), "../../Dockerfile", 2},
		"a Dockerfile": {strings.NewReader("FROM base\nRUN a\nRUN b\n" + strings.Repeat("# comment\n", 100)), "Dockerfile", 3},
		"empty":        {strings.NewReader(""), "Dockerfile", 0},
	} {
		s, err := newSpool(c.body)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.steps(c.dockerfile, ""); len(got) != c.steps {
			t.Errorf("%s: %v, want %d steps", name, got, c.steps)
		}
		s.Close()
	}
}

func TestNamesOfLayersAreTranslatedBothWays(t *testing.T) {
	chain := "sha256:" + strings.Repeat("ab", 32)
	if name := inner(chain); name == chain || outer(name) != chain {
		t.Errorf("%s becomes %s", chain, name)
	}
	for _, own := range []string{"", "k2j3h4", "buildkit-layer-snapshot-v1-x"} {
		if inner(own) != own || outer(own) != own {
			t.Errorf("%q is changed", own)
		}
	}
}

func TestNamesOfImagesAreCompleted(t *testing.T) {
	got, err := fullNames("app,app:latest,example.com/x:1")
	if want := "docker.io/library/app:latest,example.com/x:1"; got != want || err != nil {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	if _, err := fullNames("UPPER"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v", err)
	}
}

func TestErrorOfAPlatformNamesItsHandler(t *testing.T) {
	for arch, want := range map[string]string{"arm64": "qemu-aarch64", "riscv64": "qemu-riscv64", "amd64": "qemu-x86_64"} {
		if got := handlerOf(ocispec.Platform{OS: "linux", Architecture: arch}); got != want {
			t.Errorf("%s: %s, want %s", arch, got, want)
		}
	}
}
