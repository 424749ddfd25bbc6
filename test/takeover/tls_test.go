// SPDX-License-Identifier: Apache-2.0

package takeover

import (
	"bufio"
	"crypto/tls"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"

	"holdfast/test/cert"
	"holdfast/test/kit"
)

func TestAttachedTerminalOverTLSGoesOnOverTakeovers(t *testing.T) {
	t.Parallel()
	d := kit.New(t, kit.Options{LiveRestore: true})
	pem, key := cert.New(t, "test", nil).Write(t, d.Root, "server")
	d.SetFlags("-H", d.Host, "-H", "tcp://127.0.0.1:0", "--tls", "--tlsverify=false", "--tlscert", pem, "--tlskey", key)
	d.Start()
	d.Load(image, kit.Busybox(t, nil))
	_, rest, _ := strings.Cut(d.Log(), "API listen on tcp://")
	address := rest[:strings.IndexAny(rest, "\"\n")]
	d.Holdfast("run", "-d", "-i", "--name", "cat", image, "sh", "-c", "while read x && [ $x != end ]; do echo $x; done")

	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	io.WriteString(conn, "POST /containers/cat/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n")
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp, err)
	}
	out, in := io.Pipe()
	go func() {
		_, err := stdcopy.StdCopy(in, io.Discard, r)
		in.CloseWithError(err)
	}()
	echoed := lines(out)
	for _, word := range []string{"one", "two", "three"} {
		io.WriteString(conn, word+"\n")
		if got := await(t, "the echo", echoed); got != word {
			t.Errorf("%q came back for %q", got, word)
		}
		d.Takeover()
	}
	io.WriteString(conn, "end\n")
	for range echoed {
		t.Error("more bytes came back than were sent")
	}
	conn.Close()
	for _, old := range d.Predecessors() {
		select {
		case <-old.Exited:
		case <-time.After(patience):
			t.Error("an old daemon without a stream does not exit")
		}
	}
}
