// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"holdfast/internal/beside"
	"holdfast/internal/build"
)

func newGRPC(c *control.Controller, admit grpc.UnaryServerInterceptor) *grpc.Server {
	s := grpc.NewServer(
		grpc.ChainUnaryInterceptor(grpcerrors.UnaryServerInterceptor, admit), grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
	)
	c.Register(s)
	healthpb.RegisterHealthServer(s, health.NewServer())
	return s
}

var versioned = regexp.MustCompile(`^/v[0-9.]+/`)

// ServeHTTP answers the request of a client that a daemon has passed. The daemon has
// checked the request's version and the client's rights.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	beside.SetHeaders(w, r)
	path := r.URL.Path
	if versioned.MatchString(path) {
		path = path[strings.Index(path[1:], "/")+1:]
	}
	switch r.Method + " " + path {
	case "POST /grpc":
		s.serveGRPC(w, r)
	case "POST /session":
		if err := s.builder.sessions.HandleHTTPRequest(r.Context(), w, r); err != nil && r.Context().Err() == nil {
			logf("a client's session: %v", err)
		}
	case "POST /build":
		s.serveBuild(w, r)
	case "POST /build/prune":
		s.servePrune(w, r)
	case "GET " + build.UsagePath:
		s.serveUsage(w, r)
	case "POST /build/cancel":
		s.serveCancel(w, r)
	default:
		refuse(w, http.StatusNotFound, fmt.Errorf("page not found"))
	}
}

// refuse answers with an error.
func refuse(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(struct {
		Message string `json:"message"`
	}{err.Error()})
}

// serveGRPC lets a client use BuildKit's own API over its connection.
func (s *server) serveGRPC(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "h2c" {
		refuse(w, http.StatusBadRequest, fmt.Errorf("this request has to ask for an upgrade to h2c"))
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		refuse(w, http.StatusInternalServerError, err)
		return
	}
	head := "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
	if _, err := io.WriteString(conn, head); err != nil {
		conn.Close()
		return
	}
	s.builder.conns.Add(&bufferedConn{conn, rw.Reader})
}

// bufferedConn is a connection of which HTTP has read ahead.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }
