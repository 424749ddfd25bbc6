// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener whose connections are in memory, so that a test controls
// their time.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }

// serving runs test with a connection to a server of h, with a fake clock.
func serving(t *testing.T, h Handler, test func(t *testing.T, c net.Conn)) {
	synctest.Test(t, func(t *testing.T) {
		p := &pipes{conns: make(chan net.Conn, 1), done: make(chan struct{})}
		s := &http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := h(w, &Request{Request: r, Log: slog.New(slog.DiscardHandler)}); err != nil {
				WriteError(w, err)
			}
		})}
		go s.Serve(p)
		near, far := net.Pipe()
		p.conns <- far
		test(t, near)
		near.Close()
		s.Close()
		synctest.Wait()
	})
}

func TestClientThatNeverReadsIsLeft(t *testing.T) {
	ended := make(map[string]time.Duration)
	for name, h := range map[string]Handler{
		"an answer": func(w http.ResponseWriter, _ *Request) error { return WriteEncoded(w, 200, make([]byte, 1<<20)) },
		"an archive": func(w http.ResponseWriter, r *Request) error {
			return Tar(w, r, func(begin func() io.Writer) error {
				_, err := begin().Write(make([]byte, 1<<20))
				return err
			})
		},
	} {
		serving(t, func(w http.ResponseWriter, r *Request) error {
			began := time.Now()
			defer func() { ended[name] = time.Since(began) }()
			return h(w, r)
		}, func(t *testing.T, c net.Conn) {
			if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: d\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Hour)
		})
	}
	if ended["an answer"] != answerPatience || ended["an archive"] != heldPatience {
		t.Errorf("the connections were given up after %v", ended)
	}
}

func TestClientThatNeverSendsItsArchiveIsLeft(t *testing.T) {
	var got error
	serving(t, func(w http.ResponseWriter, r *Request) error {
		_, got = io.ReadAll(HeldBody(w, r))
		return got
	}, func(t *testing.T, c net.Conn) {
		if _, err := io.WriteString(c, "PUT / HTTP/1.1\r\nHost: d\r\nContent-Length: 100\r\n\r\nabc"); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != http.StatusBadRequest || time.Since(began) != heldPatience {
			t.Errorf("%d after %s", res.StatusCode, time.Since(began))
		}
	})
	if got == nil || errors.Is(got, io.EOF) {
		t.Errorf("reading ended with %v", got)
	}
}

// The deadline of one answer must not end a later answer on the same
// connection.
func TestConnectionIsUsedAgainForALongStream(t *testing.T) {
	for name, first := range map[string]Handler{
		"an answer": func(w http.ResponseWriter, _ *Request) error { return WriteEncoded(w, 200, []byte("{}")) },
		"an archive": func(w http.ResponseWriter, r *Request) error {
			return Tar(w, r, func(begin func() io.Writer) error {
				_, err := begin().Write([]byte("x"))
				return err
			})
		},
		"a body": func(w http.ResponseWriter, r *Request) error {
			_, err := io.ReadAll(HeldBody(w, r))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			serving(t, func(w http.ResponseWriter, r *Request) error {
				if r.URL.Path == "/first" {
					return first(w, r)
				}
				s := NewStream(w, "application/json")
				for range 3 {
					<-time.After(time.Hour)
					if err := s.Send(1); err != nil || r.Context().Err() != nil {
						t.Error(err, r.Context().Err())
					}
				}
				return nil
			}, func(t *testing.T, c net.Conn) {
				in := bufio.NewReader(c)
				for _, path := range []string{"/first", "/second"} {
					if _, err := io.WriteString(c, "PUT "+path+" HTTP/1.1\r\nHost: d\r\nContent-Length: 2\r\n\r\nok"); err != nil {
						t.Fatal(err)
					}
					res, err := http.ReadResponse(in, nil)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadAll(res.Body); err != nil {
						t.Error(path, err)
					}
				}
			})
		})
	}
}
