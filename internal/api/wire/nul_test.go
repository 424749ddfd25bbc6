// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNULBytesAreRefusedByName(t *testing.T) {
	for _, c := range []struct {
		path, query, want string
	}{
		{"/containers/a\x00b/json", "", `invalid path "/containers/a\x00b/json": it has a NUL byte`},
		{"/", "path=%2F%00", `invalid value "/\x00" for parameter "path": it has a NUL byte`},
		{"/", "a%00=1", `for parameter "a\x00": it has a NUL byte`},
		{"/", "path=%2500", ""},
	} {
		q, err := url.ParseQuery(c.query)
		if err != nil {
			t.Fatal(err)
		}
		err = NoNUL(c.path, q)
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || Status(err) != http.StatusBadRequest) {
			t.Errorf("%q ?%s: %v, want %q", c.path, c.query, err, c.want)
		}
	}
	for body, refused := range map[string]bool{
		`{"a":"\u0000"}`: true, `{"a":"x\u0000y"}`: true, `{"a":"\\u0000"}`: false, `{"a":"\\\u0000"}`: true, `{"\u0000":1}`: true, `{"a":"\u0001"}`: false,
	} {
		var v map[string]any
		if err := DecodeBytes([]byte(body), &v); (err != nil) != refused || err != nil && Status(err) != http.StatusBadRequest {
			t.Errorf("%s: %v", body, err)
		}
	}
}

func TestNamesThatTheKernelRefusesAreTheClientsFault(t *testing.T) {
	for errno, want := range map[unix.Errno]int{
		unix.ENAMETOOLONG: 400, unix.ENOTDIR: 400, unix.ELOOP: 400, unix.EISDIR: 400, unix.EIO: 500, unix.ENOSPC: 500, unix.EINVAL: 500,
	} {
		err := fmt.Errorf("do it: %w", &fs.PathError{Op: "openat2", Path: "x", Err: errno})
		if got := Status(err); got != want {
			t.Errorf("%s has status %d, want %d", errno, got, want)
		}
	}
	if got := Status(errors.Join(os.NewSyscallError("x", unix.ENAMETOOLONG), Unavailable("x"))); got != http.StatusNotImplemented {
		t.Errorf("an error with a kind of its own has status %d", got)
	}
}
