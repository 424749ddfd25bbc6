// SPDX-License-Identifier: Apache-2.0

// Package security replays publicly known flaws of container engines and
// attacks of our own against a real daemon. A test that replays a known flaw is
// named after it, TestCVE_YEAR_NUMBER_WhatHolds; its comment says in our own
// words what the flaw was and what holds here.
package security

import (
	"debug/elf"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

const image = "busybox:latest"

// roles are the programs that this test binary is when it does not run as a
// test, but inside a container or as another user. SECURITY_ROLE names the
// role, and os.Args[1:] are its arguments. A file adds its own roles in an init
// function.
var roles = map[string]func(){"swap": swap}

func TestMain(m *testing.M) {
	if role := roles[os.Getenv("SECURITY_ROLE")]; role != nil {
		role()
		return
	}
	kit.Main(m)
}

// swap exchanges two names in an endless loop, as fast as the kernel can.
func swap() {
	os.Stdout.WriteString("ready\n") // before that nothing is exchanged
	for {
		_ = unix.Renameat2(unix.AT_FDCWD, os.Args[1], unix.AT_FDCWD, os.Args[2], unix.RENAME_EXCHANGE)
	}
}

// self is the path of this test binary on the host. It is static, so it also
// runs in a container into which it is bind-mounted.
func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close()
	if libs, err := binary.ImportedLibraries(); err != nil || len(libs) > 0 {
		t.Fatalf("this test binary runs in containers only if it is static: build it with CGO_ENABLED=0 (it needs %v, %v)", libs, err)
	}
	return path
}

// live starts a daemon with live restore that has the image.
func live(t *testing.T) *kit.Daemon {
	t.Helper()
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	return d
}
