// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func untar(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		} else if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = data
	}
}

func decode(t *testing.T, raw []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(raw, v); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
}

func TestImageIsAnOCILayoutWithTrueDigests(t *testing.T) {
	raw, err := image([]byte("program"), "arm64")
	if err != nil {
		t.Fatal(err)
	}
	files := untar(t, bytes.NewReader(raw))
	for name, data := range files {
		if hex, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && digest.FromBytes(data).Encoded() != hex {
			t.Errorf("%s has another digest: %s", name, digest.FromBytes(data))
		}
	}
	blob := func(d ocispec.Descriptor) []byte {
		t.Helper()
		data, ok := files["blobs/sha256/"+d.Digest.Encoded()]
		if !ok || int64(len(data)) != d.Size {
			t.Fatalf("%s: there are %d bytes, the descriptor says %d", d.Digest, len(data), d.Size)
		}
		return data
	}

	var layout ocispec.ImageLayout
	decode(t, files["oci-layout"], &layout)
	var index ocispec.Index
	decode(t, files["index.json"], &index)
	if layout.Version != ocispec.ImageLayoutVersion || len(index.Manifests) != 1 {
		t.Fatalf("layout %q with %d manifests", layout.Version, len(index.Manifests))
	}
	if name := index.Manifests[0].Annotations[nameAnnotation]; name != imageName {
		t.Errorf("named %q", name)
	}
	var manifest ocispec.Manifest
	decode(t, blob(index.Manifests[0]), &manifest)
	var config ocispec.Image
	decode(t, blob(manifest.Config), &config)
	if config.Architecture != "arm64" || config.OS != "linux" || len(manifest.Layers) != 1 {
		t.Fatalf("%s/%s with %d layers", config.OS, config.Architecture, len(manifest.Layers))
	}
	z, err := gzip.NewReader(bytes.NewReader(blob(manifest.Layers[0])))
	if err != nil {
		t.Fatal(err)
	}
	layer, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	if got := config.RootFS.DiffIDs[0]; got != digest.FromBytes(layer) {
		t.Errorf("diff ID %s, the layer is %s", got, digest.FromBytes(layer))
	}
	if program := untar(t, bytes.NewReader(layer))["demo"]; string(program) != "program" {
		t.Errorf("/demo is %q", program)
	}
}

func TestEqualSourcesGiveAnEqualImage(t *testing.T) {
	a, err := image([]byte("program"), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	b, err := image([]byte("program"), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("two images of the same program differ")
	}
}
