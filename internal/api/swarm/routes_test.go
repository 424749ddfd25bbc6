// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"holdfast/internal/api/wire"
	"holdfast/internal/beside"
	"holdfast/internal/errs"
)

// absent is a host in no swarm, without the program of swarm mode.
type absent struct{ asked bool }

func (*absent) Member() bool { return false }
func (a *absent) Ready(context.Context) error {
	a.asked = true
	return errs.NotImplemented("it is not installed")
}
func (*absent) Give(context.Context, beside.Client, map[string][]string) error { return nil }
func (*absent) Ask(context.Context, *http.Request) (*http.Response, error) {
	return nil, errs.NotImplemented("it is not installed")
}

func TestHostInNoSwarmAnswersWithoutAProcess(t *testing.T) {
	for _, route := range Routes(&absent{}) {
		b := &absent{}
		for _, r := range Routes(b) {
			if r.Method != route.Method || r.Path != route.Path {
				continue
			}
			err := r.Handle(httptest.NewRecorder(), &wire.Request{Request: httptest.NewRequest(r.Method, "/", nil)})
			joins := r.Path == "/swarm/init" || r.Path == "/swarm/join"
			switch {
			case joins && (!b.asked || !errdefs.IsNotImplemented(err)):
				t.Errorf("%s %s: %v", r.Method, r.Path, err)
			case !joins && (b.asked || !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "This node is not")):
				t.Errorf("%s %s: %v", r.Method, r.Path, err)
			}
		}
	}
	for _, r := range Routes(nil) {
		if err := r.Handle(nil, nil); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s %s without swarm mode: %v", r.Method, r.Path, err)
		}
	}
}
