// SPDX-License-Identifier: Apache-2.0

// Command mkimage builds the image that "holdfast demo" runs: the program in
// ../app, alone in one layer, as an OCI image layout in a tar archive. It is
// run by "go generate" and "make build"; equal sources give an equal archive.
//
// usage: mkimage [-arch GOARCH] FILE
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	_ "crypto/sha256" // go-digest looks it up by name
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	appPackage = "holdfast/internal/cli/demo/app"
	// The annotation that "docker save" and ctr use for the full name.
	nameAnnotation = "io.containerd.image.name"
	imageName      = "docker.io/holdfast/demo:latest"
)

func main() {
	arch := flag.String("arch", runtime.GOARCH, "architecture of the image, as in GOARCH")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: mkimage [-arch GOARCH] FILE")
		os.Exit(2)
	}
	if err := writeImage(flag.Arg(0), *arch); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

// writeImage writes the archive to path, either whole or not at all.
func writeImage(path, arch string) error {
	tmp, err := os.MkdirTemp("", "holdfast-mkimage-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	program := filepath.Join(tmp, "demo")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", program, appPackage)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build %s: %w", appPackage, err)
	}
	binary, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	archive, err := image(binary, arch)
	if err != nil {
		return err
	}
	part, err := os.CreateTemp(filepath.Dir(path), ".image-")
	if err != nil {
		return err
	}
	defer os.Remove(part.Name())
	if _, err := part.Write(archive); err != nil {
		return err
	}
	if err := part.Close(); err != nil {
		return err
	}
	if err := os.Chmod(part.Name(), 0o644); err != nil {
		return err
	}
	return os.Rename(part.Name(), path)
}

// image returns the archive of an image whose only file is the program, /demo.
func image(program []byte, arch string) ([]byte, error) {
	files := &layout{}
	layerTar, err := archive([]file{{name: "demo", mode: 0o755, data: program}})
	if err != nil {
		return nil, err
	}
	var layerGzip bytes.Buffer
	z, err := gzip.NewWriterLevel(&layerGzip, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(layerTar); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}

	epoch := time.Unix(0, 0).UTC()
	layer := files.blob(ocispec.MediaTypeImageLayerGzip, layerGzip.Bytes())
	config, err := files.json(ocispec.MediaTypeImageConfig, ocispec.Image{
		Created:  &epoch,
		Platform: ocispec.Platform{OS: "linux", Architecture: arch},
		Config: ocispec.ImageConfig{
			Entrypoint:   []string{"/demo"},
			ExposedPorts: map[string]struct{}{"8080/tcp": {}},
			User:         "65534:65534",
			WorkingDir:   "/",
			Labels:       map[string]string{ocispec.AnnotationTitle: "holdfast demo"},
		},
		RootFS:  ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layerTar)}},
		History: []ocispec.History{{Created: &epoch, CreatedBy: "COPY demo /demo"}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := files.json(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config,
		Layers:    []ocispec.Descriptor{layer},
	})
	if err != nil {
		return nil, err
	}
	manifest.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
	manifest.Annotations = map[string]string{
		nameAnnotation:            imageName,
		ocispec.AnnotationRefName: "latest",
	}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{manifest},
	})
	if err != nil {
		return nil, err
	}
	version, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return nil, err
	}
	return archive(append(files.files,
		file{name: ocispec.ImageIndexFile, mode: 0o644, data: index},
		file{name: ocispec.ImageLayoutFile, mode: 0o644, data: version}))
}

type file struct {
	name string
	mode int64
	data []byte
}

// layout collects the blobs of an OCI image layout.
type layout struct{ files []file }

func (l *layout) blob(mediaType string, data []byte) ocispec.Descriptor {
	d := digest.FromBytes(data)
	l.files = append(l.files, file{
		name: filepath.ToSlash(filepath.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())),
		mode: 0o644,
		data: data,
	})
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

func (l *layout) json(mediaType string, v any) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return l.blob(mediaType, data), nil
}

// archive returns the files as a tar, owned by root and without times.
func archive(files []file) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.data)),
			ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR,
		}); err != nil {
			return nil, err
		}
		if _, err := io.Copy(w, bytes.NewReader(f.data)); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
