// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/internal/config"
)

// Reading from a pipe would block the start for ever.
func TestPipeInPlaceOfAProfileIsRefused(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "profile.json")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, "/dev/zero", t.TempDir()} {
		if _, err := seccompProfile(&config.Config{SeccompProfile: path}); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%s: %v", path, err)
		}
	}
}
