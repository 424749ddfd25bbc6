// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
)

// A request that was held back when the daemon stops gets an answer that is no
// success.
func TestRequestThatIsHeldBackAtTheStopIsRefused(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	stop()
	w := httptest.NewRecorder()
	newGate().ServeHTTP(w, httptest.NewRequest("POST", "/containers/web/start", nil).WithContext(ctx))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
