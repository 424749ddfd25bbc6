// SPDX-License-Identifier: Apache-2.0

package truth

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"holdfast/test/kit"
)

// odd is an image whose configuration is what the test says.
type odd struct {
	v1.Image
	config string
}

func (o odd) RawConfigFile() ([]byte, error) { return []byte(o.config), nil }
func (o odd) ConfigName() (v1.Hash, error) {
	h, _, err := v1.SHA256(strings.NewReader(o.config))
	return h, err
}
func (o odd) Manifest() (*v1.Manifest, error) {
	m, err := o.Image.Manifest()
	if err != nil {
		return nil, err
	}
	m = m.DeepCopy()
	m.Config.Size = int64(len(o.config))
	m.Config.Digest, err = o.ConfigName()
	return m, err
}
func (o odd) RawManifest() ([]byte, error) {
	m, err := o.Manifest()
	if err != nil {
		return nil, err
	}
	return json.Marshal(m)
}
func (o odd) Digest() (v1.Hash, error) { return partial.Digest(o) }
func (o odd) Size() (int64, error)     { return partial.Size(o) }

// attested is an index with an image and the statements about it, by predicate type.
func attested(t *testing.T, about v1.Image, statements map[string]string) v1.ImageIndex {
	t.Helper()
	return joined(t, about, saying(t, statements))
}

// saying is a manifest with statements.
func saying(t *testing.T, statements map[string]string) v1.Image {
	t.Helper()
	said, err := mutate.MediaType(empty.Image, types.OCIManifestSchema1), error(nil)
	for kind, text := range statements {
		said, err = mutate.Append(said, mutate.Addendum{
			Layer:       static.NewLayer([]byte(text), "application/vnd.in-toto+json"),
			Annotations: map[string]string{"in-toto.io/predicate-type": kind},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return said
}

// joined is an index with an image and the manifest that attests to it.
func joined(t *testing.T, about, said v1.Image) v1.ImageIndex {
	t.Helper()
	of, err := about.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		mutate.IndexAddendum{Add: about, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: said, Descriptor: v1.Descriptor{
			Platform:    &v1.Platform{OS: "unknown", Architecture: "unknown"},
			Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": of.String()},
		}})
}

func TestStatementsAboutAnImageAreListed(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	const provenance, bill = "https://slsa.dev/provenance/v1", "https://spdx.dev/Document"
	index := attested(t, kit.Busybox(t, nil), map[string]string{provenance: `{"by":"a builder"}`, bill: `{"of":"materials"}`, "broken": "no JSON"})
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendIndex(index, layout.WithAnnotations(map[string]string{"io.containerd.image.name": "docker.io/library/told:1", "org.opencontainers.image.ref.name": "1"})); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-C", dir, "-cf", dir+"/image.tar", "blobs", "index.json", "oci-layout").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	d.Docker("load", "-i", dir+"/image.tar")

	ask := func(image, query string) (int, string) {
		t.Helper()
		resp, err := d.HTTP().Get("http://holdfast/v1.55/images/" + image + "/attestations?" + query)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var all []struct {
			PredicateType string
			Descriptor    struct{ MediaType string }
			Statement     json.RawMessage
		}
		var failed struct{ Message string }
		if resp.StatusCode != http.StatusOK {
			if err := json.NewDecoder(resp.Body).Decode(&failed); err != nil {
				t.Fatal(err)
			}
			return resp.StatusCode, failed.Message
		}
		if err := json.NewDecoder(resp.Body).Decode(&all); err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, s := range all {
			if s.Descriptor.MediaType != "application/vnd.in-toto+json" {
				t.Errorf("%+v", s)
			}
			out = append(out, s.PredicateType+string(s.Statement))
		}
		return resp.StatusCode, strings.Join(out, " ")
	}
	of := func(kind string) string { return "type=" + url.QueryEscape(kind) }
	for query, want := range map[string]string{
		of(provenance):                  provenance,
		of(provenance) + "&statement=1": provenance + `{"by":"a builder"}`,
		of(bill) + "&statement=true":    bill + `{"of":"materials"}`,
		of("nothing"):                   "",
		of(bill) + "&" + of("nothing"):  bill,
		of(bill) + "&platform=" + url.QueryEscape(`{"os":"linux","architecture":"amd64"}`): bill,
	} {
		if status, got := ask("told:1", query); status != http.StatusOK || got != want {
			t.Errorf("%s: %d %s, want %s", query, status, got, want)
		}
	}
	if status, got := ask("told:1", ""); status != http.StatusOK || strings.Count(got, " ") != 2 {
		t.Errorf("all statements: %d %s", status, got)
	}
	if status, got := ask(image, ""); status != http.StatusOK || got != "" {
		t.Errorf("an image without statements: %d %s", status, got)
	}
	for query, want := range map[string]struct {
		status int
		says   string
	}{
		"statement=1": {http.StatusBadRequest, "is not JSON"},
		"platform=x":  {http.StatusBadRequest, "failed to parse platform"},
		"platform=" + url.QueryEscape(`{"os":"linux","architecture":"s390x"}`): {http.StatusNotFound, "s390x"},
	} {
		if status, got := ask("told:1", query); status != want.status || !strings.Contains(got, want.says) {
			t.Errorf("%s: %d %s, want %+v", query, status, got, want)
		}
	}
	// They come with a pull, if the registry has them.
	reg := kit.StartRegistry(t, nil)
	other := kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t, kit.File{Name: "other"}))
	ref := reg.PushIndex("other:1", attested(t, other, map[string]string{provenance: `{"by":"another"}`}))
	d.Docker("pull", ref)
	if status, got := ask(ref, "statement=1"); status != http.StatusOK || got != provenance+`{"by":"another"}` {
		t.Errorf("after a pull: %d %s", status, got)
	}
	lost, err := static.NewLayer([]byte(`{"by":"nobody"}`), "application/vnd.in-toto+json").Digest()
	if err != nil {
		t.Fatal(err)
	}
	third := kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t, kit.File{Name: "third"}))
	lacking := kit.StartRegistry(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, lost.String()) {
				http.NotFound(w, r)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	ref = lacking.PushIndex("third:1", attested(t, third, map[string]string{provenance: `{"by":"nobody"}`}))
	if got := d.Docker("run", "--rm", ref, "ls", "/third"); got != "/third" {
		t.Errorf("the image without its statements: %q", got)
	}
	if status, got := ask(ref, ""); status != http.StatusOK || got != provenance {
		t.Errorf("what the manifest says of statements that were not fetched: %d %s", status, got)
	}
	if status, got := ask(ref, "statement=1"); status != http.StatusNotFound || !strings.Contains(got, "statement "+lost.String()) {
		t.Errorf("a statement that was not fetched: %d %s", status, got)
	}
	// Statements that can't be read don't make the image useless.
	fourth := kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t, kit.File{Name: "fourth"}))
	ref = reg.PushIndex("fourth:1", joined(t, fourth, odd{saying(t, map[string]string{provenance: "{}"}), "no JSON"}))
	if got := d.Docker("run", "--rm", ref, "ls", "/fourth"); got != "/fourth" {
		t.Errorf("the image beside a broken manifest: %q", got)
	}
	if status, got := ask("nothing:1", ""); status != http.StatusNotFound || !strings.Contains(got, "No such image") {
		t.Errorf("no image: %d %s", status, got)
	}
}
