// SPDX-License-Identifier: Apache-2.0

package image

import (
	"encoding/base64"
	"net/http"
	"testing"

	"github.com/moby/moby/api/types/registry"

	"holdfast/internal/api/wire"
)

// FuzzCredentials: the header X-Registry-Auth yields credentials, none, or a
// client error whose message never contains a password.
func FuzzCredentials(f *testing.F) {
	for _, s := range []string{
		"", "e30=", "e30", "bnVsbA==", "!!", "====", `{"username":"a"}`, "eyJ1c2VybmFtZSI6ImEiLCJwYXNzd29yZCI6ImIifQ", "eyJ1c2VybmFtZSI6MX0=", "W10=", "/+/+",
		base64.StdEncoding.EncodeToString([]byte(`{"username":"a","password":"b","serveraddress":"127.0.0.1:1"}`)),
		base64.URLEncoding.EncodeToString([]byte(`{"auth":"a"} x`)),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		auth, err := credentials(header)
		if err != nil {
			if code := wire.Status(err); code != http.StatusBadRequest || auth != nil {
				t.Errorf("%d %v", code, err)
			}
			return
		}
		if auth != nil && *auth == (registry.AuthConfig{}) {
			t.Error("an empty header yields credentials")
		}
	})
}

// FuzzNamed: a repository and a tag yield a reference or a client error.
func FuzzNamed(f *testing.F) {
	for _, s := range [][2]string{
		{"busybox", ""}, {"busybox", "latest"}, {"a/b:c", "d"}, {"a@sha256:0000000000000000000000000000000000000000000000000000000000000000", ""},
		{"busybox", "sha256:0000000000000000000000000000000000000000000000000000000000000000"}, {"busybox", "sha256:zz"}, {"A", ""}, {"", ""}, {"a:", "\x00"}, {"..", "-"},
	} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, repo, tag string) {
		ref, err := named(repo, tag)
		if err != nil {
			if code := wire.Status(err); code != http.StatusBadRequest {
				t.Errorf("%d %v", code, err)
			}
			return
		}
		again, err := named(ref.String(), "")
		if err != nil || again.String() != ref.String() {
			t.Errorf("%q is not the same when it is read again: %v, %v", ref, again, err)
		}
	})
}
