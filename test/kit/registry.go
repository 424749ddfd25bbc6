// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory" // the storage below
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/sirupsen/logrus"
)

// Registry is a registry on 127.0.0.1, over HTTP, with all data in memory.
type Registry struct {
	// Host is its name in references: 127.0.0.1:PORT.
	Host string
	t    testing.TB
}

// StartRegistry starts the registry of the distribution project. between, if
// not nil, wraps its handler, to delay, cut off or falsify answers.
func StartRegistry(t testing.TB, between func(http.Handler) http.Handler) *Registry {
	t.Helper()
	conf := &configuration.Configuration{
		Storage: configuration.Storage{"inmemory": configuration.Parameters{}, "delete": configuration.Parameters{"enabled": true}},
	}
	conf.Log.Level = "error"
	conf.Log.AccessLog.Disabled = true
	conf.HTTP.Secret = "a secret of this test"
	conf.Catalog.MaxEntries = 100
	logrus.SetOutput(io.Discard) // the registry's log, in this process
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	var h http.Handler = handlers.NewApp(ctx, conf)
	if between != nil {
		h = between(h)
	}
	s := httptest.NewUnstartedServer(h)
	var err error
	s.Listener.Close()
	if s.Listener, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(s.Close)
	return &Registry{Host: strings.TrimPrefix(s.URL, "http://"), t: t}
}

// Push stores an image under repository[:tag] and returns its full reference.
func (r *Registry) Push(ref string, img v1.Image) string {
	r.t.Helper()
	tag, err := name.NewTag(r.Host+"/"+ref, name.Insecure)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		r.t.Fatal(err)
	}
	return tag.Name()
}

// PushIndex is Push for an index of images.
func (r *Registry) PushIndex(ref string, index v1.ImageIndex) string {
	r.t.Helper()
	tag, err := name.NewTag(r.Host+"/"+ref, name.Insecure)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := remote.WriteIndex(tag, index); err != nil {
		r.t.Fatal(err)
	}
	return tag.Name()
}

// Arch is the architecture of images that run here, in the notation of images.
func Arch() string { return runtime.GOARCH }
