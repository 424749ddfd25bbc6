// SPDX-License-Identifier: Apache-2.0

// Package golden compares what the code makes with files that are kept beside the
// tests, and with generated parts of documents. Run a package's tests with -update to
// rewrite them, and review the difference.
package golden

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"
)

// Update rewrites the files instead of comparing them.
var Update = flag.Bool("update", false, "rewrite the golden files and the generated parts of documents")

// Compare fails the test if the file differs. The path is relative to the test's
// package.
func Compare(t *testing.T, path string, got []byte) {
	t.Helper()
	if *Update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs from the code: run the test with -update and review the difference. Got:\n%s", path, got)
	}
}
