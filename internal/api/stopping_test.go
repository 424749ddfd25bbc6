// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// When the daemon stops it ends the requests that wait. Their clients are still
// there, and must not take an empty 200 for success.
func TestRequestThatTheDaemonGivesUpIsNoSuccess(t *testing.T) {
	h := handler(&fake{err: context.Canceled})
	for _, target := range []string{"POST /containers/web/start", "POST /containers/web/stop", "DELETE /containers/web", "POST /volumes/create"} {
		method, path, _ := strings.Cut(target, " ")
		ctx, stop := context.WithCancel(t.Context())
		stop()
		body := ""
		if method == "POST" {
			body = "{}"
		}
		r := httptest.NewRequest(method, path, strings.NewReader(body)).WithContext(ctx)
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusServiceUnavailable || !strings.Contains(message(t, w), "the daemon stopped") {
			t.Errorf("%s: %d %s", target, w.Code, w.Body)
		}
	}
}
