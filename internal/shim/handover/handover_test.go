// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestStateIsReadAsItWasWritten(t *testing.T) {
	type state struct {
		Name string `json:"name"`
		Rest []byte `json:"rest"`
	}
	want := state{"web", []byte{0, 1, 255}}
	fd, err := Write(want)
	if err != nil {
		t.Fatal(err)
	}
	var got state
	if err := Read(fd, &got); err != nil || got.Name != want.Name || string(got.Rest) != string(want.Rest) {
		t.Errorf("%+v, %v", got, err)
	}
	if err := Read(fd, &got); err == nil {
		t.Error("the memfd is still open")
	}
}

func TestOnlyKnownVersionsAreAccepted(t *testing.T) {
	for text, want := range map[string]bool{"1": true, "0": false, "-1": false, "2": false, "": false, "x": false} {
		if got := AcceptsText(text); got != want {
			t.Errorf("version %q: %v", text, got)
		}
	}
}

func TestDescriptorsAreInheritedUntilTheyAreTakenBack(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, none := int(f.Fd()), -1
	for _, on := range []bool{true, false} {
		Inherit([]*int{&none, &fd}, on)
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := flags&unix.FD_CLOEXEC == 0; got != on {
			t.Errorf("inherited: %v, want %v", got, on)
		}
	}
}
