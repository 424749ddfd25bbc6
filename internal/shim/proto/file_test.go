// SPDX-License-Identifier: Apache-2.0

package proto

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestReadFileReadsAllOfAFileAndFailsAsOsDoes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, n := range []int{0, 1, 4095, 4096, 4097, 1 << 20} {
		want := bytes.Repeat([]byte("x"), n)
		if err := os.WriteFile(path, want, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("file of %d bytes: %d bytes read, %v", n, len(got), err)
		}
	}
	for _, path := range []string{path + ".no", filepath.Dir(path)} {
		_, want := os.ReadFile(path)
		_, got := ReadFile(path)
		if want == nil || got == nil || got.Error() != want.Error() {
			t.Errorf("%s: %v, os says %v", path, got, want)
		}
	}
	if _, err := ReadFile(path + ".no"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}
