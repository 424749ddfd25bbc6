// SPDX-License-Identifier: Apache-2.0

package security

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// The reference of a git context was an argument of git, so that one that begins with
// two dashes was an option, and ran a program as root. Such a reference is refused
// before git is called, in the URL's own form and in that of a query.
func TestCVE_2019_13139_ReferenceOfAGitContextIsNoOption(t *testing.T) {
	t.Parallel()
	kit.Binary(t, "holdfast-build")
	d := kit.Start(t, kit.Options{})
	repository := httptest.NewServer(http.NotFoundHandler())
	defer repository.Close()
	made := filepath.Join(t.TempDir(), "made")
	for _, fragment := range []string{
		"#--upload-pack=touch " + made + ";", "#--upload-pack=touch " + made + ";:sub", "?ref=--upload-pack=touch+" + made,
	} {
		q := url.Values{"remote": {repository.URL + "/x.git" + fragment}}
		resp, err := d.HTTP().Post("http://holdfast/build?"+q.Encode(), "", nil)
		if err != nil {
			t.Fatal(err)
		}
		said, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(said), "invalid git ref") {
			t.Errorf("%s: %s %v: %s", fragment, resp.Status, err, said)
		}
	}
	if _, err := os.Lstat(made); err == nil {
		t.Error("git ran a program")
	}
}
