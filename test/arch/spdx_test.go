// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const licence = "SPDX-License-Identifier: Apache-2.0"

// TestEveryFileNamesItsLicence requires the licence in the first line of Go
// files and of files with "#" comments, or in the second line after "#!". In Go
// an empty line must follow, because otherwise the licence would become a part
// of the package's comment.
func TestEveryFileNamesItsLicence(t *testing.T) {
	dir := rootDir(t)
	files, scripts := 0, 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			switch name {
			case ".git", ".cache", "bin", "dist":
				return filepath.SkipDir
			}
			return nil
		}
		if !e.Type().IsRegular() {
			return nil
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text := string(raw)
		switch ext := filepath.Ext(name); {
		case ext == ".go":
			files++
			if !strings.HasPrefix(text, "// "+licence+"\n\n") {
				t.Errorf("%s does not begin with \"// %s\" and an empty line", name, licence)
			}
		case strings.HasPrefix(text, "#!"):
			scripts++
			_, text, _ = strings.Cut(text, "\n")
			if !strings.HasPrefix(text, "# "+licence+"\n") {
				t.Errorf("%s has no \"# %s\" in its second line", name, licence)
			}
		case e.Name() == "Makefile", ext == ".yml", ext == ".conf", ext == ".service", ext == ".socket":
			if strings.Contains(filepath.ToSlash(name), "/testdata/") {
				return nil
			}
			if !strings.HasPrefix(text, "# "+licence+"\n") {
				t.Errorf("%s does not begin with \"# %s\"", name, licence)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files == 0 || scripts == 0 {
		t.Errorf("%d Go files and %d scripts found", files, scripts)
	}
}
