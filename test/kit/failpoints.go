// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Failpoints returns the names of the code's failpoints, sorted. The error says which
// name two of them have. The working directory is that of a package of the tests.
func Failpoints() (names []string, err error) {
	here := regexp.MustCompile(`failpoint\.Here\("([^"]+)"\)`)
	err = filepath.WalkDir("../../internal", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range here.FindAllStringSubmatch(string(text), -1) {
			names = append(names, m[1])
		}
		return err
	})
	slices.Sort(names)
	for i, name := range names {
		if err == nil && i > 0 && name == names[i-1] {
			err = fmt.Errorf("two failpoints are called %s", name)
		}
	}
	return names, err
}
