// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/upload/uploadprovider"
	"github.com/moby/moby/api/types/jsonstream"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"holdfast/internal/buildserver/classic"
)

// running are the builds of POST /build that can be cancelled by their ID.
type running struct {
	mu     sync.Mutex
	cancel map[string]context.CancelFunc
}

func (r *running) add(ctx context.Context, id string) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	if id == "" {
		return ctx, cancel
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cancel == nil {
		r.cancel = map[string]context.CancelFunc{}
	}
	r.cancel[id] = cancel
	return ctx, func() {
		cancel()
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.cancel, id)
	}
}

func (r *running) stop(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	cancel := r.cancel[id]
	if cancel != nil {
		cancel()
	}
	return cancel != nil
}

// local returns a client of the process's own gRPC server.
func (b *builder) local() (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:builder", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20), grpc.MaxCallSendMsgSize(16<<20)),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			near, far := net.Pipe()
			b.conns.Add(far)
			return near, nil
		}))
}

// serveBuild is POST /build.
func (s *server) serveBuild(w http.ResponseWriter, r *http.Request) {
	req, err := parseRequest(r.URL.Query(), r.Header.Get("X-Registry-Config"))
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	// The context is read while the progress is written.
	_ = http.NewResponseController(w).EnableFullDuplex()
	ctx, done := s.running.add(r.Context(), req.id)
	defer done()
	out := &stream{w: w}
	if err := s.builder.build(ctx, req, r.Body, out); err != nil {
		out.fail(err)
	}
}

// serveCancel is POST /build/cancel.
func (s *server) serveCancel(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Query().Get("id")
	if id == "" {
		refuse(w, http.StatusBadRequest, errors.New("build ID not provided"))
		return
	}
	s.running.stop(id)
	w.WriteHeader(http.StatusOK)
}

// build carries out a request and writes its stream.
func (b *builder) build(ctx context.Context, req *request, body io.ReadCloser, out *stream) error {
	conn, err := b.local()
	if err != nil {
		return err
	}
	defer conn.Close()
	api := controlapi.NewControlClient(conn)
	var steps []classic.Step
	var with session.Attachable
	if req.remote != "" {
		req.attrs["context"] = req.remote
	} else if req.body {
		spool, err := newSpool(body)
		if err != nil {
			return err
		}
		defer spool.Close()
		if !req.buildkit {
			steps = spool.steps(req.dockerfile, req.target)
		}
		if req.session == "" {
			up := uploadprovider.New()
			req.attrs["context"] = up.Add(spool.context())
			with = up
		} else {
			url, end, err := spool.serve()
			if err != nil {
				return err
			}
			defer end()
			req.attrs["context"] = url
		}
	}
	if req.session == "" {
		end, err := b.ownSession(ctx, req, with)
		if err != nil {
			return err
		}
		defer end()
	}
	return solve(ctx, api, req, progressOf(req, steps, out), out)
}

// ownSession makes a session for a client without one. It has the context and the
// client's credentials.
func (b *builder) ownSession(ctx context.Context, req *request, up session.Attachable) (end func(), _ error) {
	own, err := session.NewSession(ctx, "")
	if err != nil {
		return nil, err
	}
	own.Allow(&credentials{req: req})
	if up != nil {
		own.Allow(up)
	}
	req.session = own.ID()
	// The manager's side ends first. It would otherwise log that the session is lost.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		_ = own.Run(context.WithoutCancel(ctx), func(_ context.Context, _ string, meta map[string][]string) (net.Conn, error) {
			near, far := net.Pipe()
			go func() { _ = b.sessions.HandleConn(serving, far, meta) }() // it ends with the session
			return near, nil
		})
	}()
	return func() {
		stop()
		own.Close()
	}, nil
}

// lastWords is how long the status of a failed build may take to end.
const lastWords = 3 * time.Second

// solve runs a build and follows its progress.
func solve(ctx context.Context, api controlapi.ControlClient, req *request, p progress, out *stream) error {
	ref := identity.NewID()
	solving := &controlapi.SolveRequest{
		Ref: ref, Session: req.session, Frontend: "dockerfile.v0", FrontendAttrs: req.attrs,
		Exporters: req.exports, Entitlements: req.entitlements, Cache: &controlapi.CacheOptions{Imports: req.imports},
	}
	var resp *controlapi.SolveResponse
	var failed error
	group, ctx := errgroup.WithContext(ctx)
	status, stop := context.WithCancel(ctx)
	defer stop()
	group.Go(func() (err error) {
		resp, err = api.Solve(ctx, solving)
		if err != nil {
			// The status has the last output. There is none of a build that never began.
			time.AfterFunc(lastWords, stop)
		}
		failed = err
		return nil
	})
	group.Go(func() error {
		follow, err := api.Status(status, &controlapi.StatusRequest{Ref: ref})
		for err == nil {
			var news *controlapi.StatusResponse
			if news, err = follow.Recv(); err == nil {
				err = p.news(news)
			}
		}
		if errors.Is(err, io.EOF) || status.Err() != nil {
			return nil
		}
		return err
	})
	err := firstError(group.Wait(), failed)
	if endErr := p.end(err == nil); err == nil {
		err = endErr
	}
	if err != nil {
		return err
	}
	return out.done(req, resp.ExporterResponse["containerimage.digest"])
}

// progress writes the progress of a build.
type progress interface {
	news(*controlapi.StatusResponse) error
	end(ok bool) error
}

func progressOf(req *request, steps []classic.Step, out *stream) progress {
	switch {
	case req.buildkit:
		return traces{out}
	case req.quiet:
		return silent{}
	}
	return &text{classic.New(steps), out}
}

type silent struct{}

func (silent) news(*controlapi.StatusResponse) error { return nil }
func (silent) end(bool) error                        { return nil }

// traces sends BuildKit's own messages, for clients that ask for version 2.
type traces struct{ out *stream }

func (t traces) news(n *controlapi.StatusResponse) error {
	raw, err := proto.Marshal(n)
	if err != nil {
		return err
	}
	return t.out.aux("moby.buildkit.trace", raw)
}

func (traces) end(bool) error { return nil }

// text writes the classic text.
type text struct {
	f   *classic.Formatter
	out *stream
}

func (t *text) news(n *controlapi.StatusResponse) error {
	var all []classic.Vertex
	for _, v := range n.Vertexes {
		all = append(all, classic.Vertex{ID: v.Digest, Name: v.Name, Started: v.Started != nil, Completed: v.Completed != nil && v.Error == "", Cached: v.Cached})
	}
	out := t.f.Vertices(all)
	for _, l := range n.Logs {
		out += t.f.Log(l.Vertex, string(l.Msg))
	}
	return t.out.text(out)
}

func (t *text) end(ok bool) error { return t.out.text(t.f.End(ok)) }

// stream is the answer of POST /build: JSON objects, one after the other.
type stream struct {
	w     http.ResponseWriter
	began bool
}

func (s *stream) send(v any) error {
	if !s.began {
		s.began = true
		s.w.Header().Set("Content-Type", "application/json")
		s.w.WriteHeader(http.StatusOK)
	}
	if err := json.NewEncoder(s.w).Encode(v); err != nil {
		return err
	}
	return http.NewResponseController(s.w).Flush()
}

// text sends each line on its own, as the classic builder did.
func (s *stream) text(text string) error {
	for line := range strings.Lines(text) {
		if err := s.send(jsonstream.Message{Stream: line}); err != nil {
			return err
		}
	}
	return nil
}

func (s *stream) aux(id string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	aux := json.RawMessage(raw)
	return s.send(jsonstream.Message{ID: id, Aux: &aux})
}

// done reports the image that was built.
func (s *stream) done(req *request, id string) error {
	result := map[string]string{"ID": id}
	switch {
	case id == "":
		return nil // the result went elsewhere
	case req.buildkit:
		return s.aux("moby.image.id", result)
	case req.quiet:
		return s.text(id + "\n")
	}
	if err := s.aux("", result); err != nil {
		return err
	}
	text := "Successfully built " + shortID(id) + "\n"
	for _, t := range req.tags {
		if !strings.Contains(t[strings.LastIndex(t, "/")+1:], ":") {
			t += ":latest"
		}
		text += "Successfully tagged " + t + "\n"
	}
	return s.text(text)
}

func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 12)]
}

// failedStep matches BuildKit's words for a RUN step that fails.
var failedStep = regexp.MustCompile(`process "(.*)" did not complete successfully: exit code: (\d+)`)

// fail reports an error, in the classic builder's words where it had some.
func (s *stream) fail(err error) {
	message, code := err.Error(), 0
	if st, ok := status.FromError(err); ok {
		message = st.Message()
		if st.Code() == codes.Canceled {
			message = "build cancelled"
		}
	}
	if m := failedStep.FindStringSubmatch(message); m != nil {
		code, _ = strconv.Atoi(m[2])
		message = fmt.Sprintf("The command '%s' returned a non-zero code: %d", m[1], code)
	}
	if !s.began {
		refuse(s.w, httpStatus(err), errors.New(message))
		return
	}
	_ = s.send(struct {
		jsonstream.Message
		Text string `json:"error"` // programs written before there was errorDetail look for it
	}{jsonstream.Message{Error: &jsonstream.Error{Code: code, Message: message}}, message})
}

// httpStatus is the status of an answer that is nothing but an error. What BuildKit
// refuses before it begins, such as a Dockerfile that can't be parsed, has no code of
// its own, and is the client's fault.
func httpStatus(err error) int {
	st, ok := status.FromError(err)
	if !ok {
		return http.StatusInternalServerError
	}
	switch st.Code() {
	case codes.InvalidArgument, codes.Unknown, codes.FailedPrecondition:
		return http.StatusBadRequest
	case codes.NotFound:
		return http.StatusNotFound
	case codes.Unavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// credentials gives BuildKit the credentials that came with a request.
type credentials struct {
	auth.UnimplementedAuthServer
	req *request
}

func (c *credentials) Register(s *grpc.Server) { auth.RegisterAuthServer(s, c) }

// hubServer is the name of Docker Hub in the credentials of clients.
const hubServer = "https://index.docker.io/v1/"

func (c *credentials) Credentials(_ context.Context, r *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	host := r.Host
	if host == "registry-1.docker.io" {
		host = hubServer
	}
	a, ok := c.req.auth[host]
	if !ok {
		a = c.req.auth["https://"+host]
	}
	if a.IdentityToken != "" {
		return &auth.CredentialsResponse{Secret: a.IdentityToken}, nil
	}
	return &auth.CredentialsResponse{Username: a.Username, Secret: a.Password}, nil
}
