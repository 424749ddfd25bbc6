// SPDX-License-Identifier: Apache-2.0

package power

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"holdfast/test/kit"
)

// files are the regular files of an image: their digests by path. Files with the
// same content share one digest.
type files map[string]string

func sum(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

// contents are the files of all images of a run, by image ID.
type contents map[string]files

// layerFiles makes files for a layer below a folder: empty ones, small ones and
// some of several pages.
func layerFiles(r *rand.Rand, folder, mark string) (list []kit.File, all files) {
	list, all = []kit.File{{Name: folder + "/"}}, files{}
	add := func(name string, body []byte) {
		list = append(list, kit.File{Name: folder + "/" + name, Body: body})
		all[folder+"/"+name] = sum(body)
	}
	add("mark", []byte(mark+"\n"))
	for i := range 12 {
		body := make([]byte, []int{0, 1, 100, 5000, 70000}[i%5])
		for j := range body {
			body[j] = byte(r.Uint32())
		}
		add(fmt.Sprintf("f%02d", i), body)
	}
	return list, all
}

// dataFolder is a folder of images that volumes are filled from.
const dataFolder = "data"

// newImage makes an image of busybox and a layer of its own.
func newImage(t testing.TB, r *rand.Rand, mark string) (img v1.Image, all files) {
	t.Helper()
	list, own := layerFiles(r, dataFolder, mark)
	img = kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t, list...))
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	below, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer below.Close()
	all, err = readFiles(below)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(all, own)
	return img, all
}

// foreign returns the image for a machine of another kind.
func foreign(t testing.TB, img v1.Image) v1.Image {
	t.Helper()
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.Architecture = "riscv64"
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img
}

// readFiles reads the regular files of an archive.
func readFiles(in io.Reader) (files, error) {
	out := files{}
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		var b bytes.Buffer
		if _, err := io.Copy(&b, r); err != nil {
			return out, err
		}
		out[strings.TrimPrefix(h.Name, "./")] = sum(b.Bytes())
	}
}

// differences describes how the files are not those that are wanted. Files that
// the engine makes for each container are left out.
func (f files) differences(want files) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(want)) {
		switch got, there := f[name]; {
		case !there:
			out = append(out, name+" is missing")
		case got == sum(nil) && want[name] != got:
			out = append(out, name+" is empty")
		case got != want[name]:
			out = append(out, name+" has another content")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(f)) {
		if _, wanted := want[name]; !wanted && !ofTheEngine(name) {
			out = append(out, name+" should not be there")
		}
	}
	if len(out) > 5 {
		out = append(out[:5], fmt.Sprintf("and %d more", len(out)-5))
	}
	return out
}

func ofTheEngine(name string) bool {
	return slices.Contains([]string{".dockerenv", "etc/hosts", "etc/hostname", "etc/resolv.conf", "dev/console"}, name)
}

// folderFiles reads the regular files below a folder of the host.
func folderFiles(folder string) (files, error) {
	out := files{}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		b, err := root.ReadFile(e.Name())
		if err != nil {
			return nil, err
		}
		out[e.Name()] = sum(b)
	}
	return out, nil
}
