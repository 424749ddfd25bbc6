// SPDX-License-Identifier: Apache-2.0

//go:build linux

package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"
)

// logLine is a numbered line of the container.
type logLine struct {
	time   time.Time // when it was logged
	number uint64
}

// parseLine parses "TIME NUMBER words".
func parseLine(s string) (logLine, error) {
	stamp, rest, _ := strings.Cut(s, " ")
	number, _, _ := strings.Cut(rest, " ")
	t, err := time.Parse(time.RFC3339Nano, stamp)
	if err != nil {
		return logLine{}, fmt.Errorf("log line %q has no time: %w", s, err)
	}
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return logLine{}, fmt.Errorf("log line %q has no number: %w", s, err)
	}
	return logLine{t, n}, nil
}

// scanLog parses the log of a container without a terminal, as the API sends it
// with timestamps, until it ends or fn returns an error.
func scanLog(stream io.Reader, fn func(logLine) error) error {
	pr, pw := io.Pipe()
	defer pr.Close()
	go func() {
		_, err := stdcopy.StdCopy(pw, io.Discard, stream)
		pw.CloseWithError(err)
	}()
	lines := bufio.NewScanner(pr)
	for lines.Scan() {
		l, err := parseLine(lines.Text())
		if err != nil {
			return err
		}
		if err := fn(l); err != nil {
			return err
		}
	}
	return lines.Err()
}

func openLog(ctx context.Context, api *client.Client, id string, follow bool) (io.ReadCloser, error) {
	return api.ContainerLogs(ctx, id, client.ContainerLogsOptions{
		ShowStdout: true, ShowStderr: true, Timestamps: true, Follow: follow,
	})
}

// readLog returns every line logged so far.
func readLog(ctx context.Context, api *client.Client, id string) ([]logLine, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	stream, err := openLog(ctx, api, id, false)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var all []logLine
	err = scanLog(stream, func(l logLine) error {
		all = append(all, l)
		return nil
	})
	return all, err
}

// logWatch follows the log as "logs -f" does.
type logWatch struct {
	api   *client.Client
	first chan struct{} // closed at the first line
	ended chan struct{} // closed when the followed stream ends
	last  uint64
	gap   error // the first missing or repeated line
	// survived is set if the stream outlasted the daemon that opened it.
	survived bool
	err      error // how the stream ended
	stop     context.CancelFunc
}

func newLogWatch(api *client.Client) *logWatch {
	return &logWatch{api: api, first: make(chan struct{})}
}

// start follows the log and returns once the first line has arrived.
func (w *logWatch) start(ctx context.Context, id string) error {
	if err := w.follow(ctx, id); err != nil {
		return err
	}
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-w.first:
		return nil
	case <-w.ended:
		return fmt.Errorf("the log ended before its first line: %w", orEOF(w.err))
	case <-timeout.C:
		return fmt.Errorf("no line was logged within %s", patience)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// resume opens the stream again if it ended with the daemon. The new stream
// begins at the first line; lines that were seen already are skipped.
func (w *logWatch) resume(ctx context.Context, id string) error {
	select {
	case <-w.ended:
		return w.follow(ctx, id)
	default:
		w.survived = true
		return nil
	}
}

func (w *logWatch) follow(ctx context.Context, id string) error {
	ctx, w.stop = context.WithCancel(ctx)
	stream, err := openLog(ctx, w.api, id, true)
	if err != nil {
		w.stop()
		return err
	}
	ended := make(chan struct{})
	w.ended = ended
	go func() {
		defer close(ended)
		defer stream.Close()
		w.err = scanLog(stream, func(l logLine) error {
			w.see(l.number)
			return nil
		})
	}()
	return nil
}

func (w *logWatch) see(n uint64) {
	switch {
	case n == w.last+1:
		if n == 1 {
			close(w.first)
		}
		w.last = n
	case n > w.last+1:
		if w.gap == nil {
			w.gap = fmt.Errorf("line %d came after line %d", n, w.last)
		}
		w.last = n
	}
}

// followed is the result of following the log.
type followed struct {
	lines    uint64
	gap      error
	survived bool
}

// result stops following and returns the result.
func (w *logWatch) result() followed {
	w.stop()
	<-w.ended
	return followed{lines: w.last, gap: w.gap, survived: w.survived}
}

func orEOF(err error) error {
	if err == nil {
		return io.EOF
	}
	return err
}

// checkNumbers checks that the lines are numbered 1, 2, 3…
func checkNumbers(lines []logLine) error {
	if len(lines) == 0 {
		return errors.New("it is empty")
	}
	for i, l := range lines {
		if want := uint64(i) + 1; l.number != want {
			return fmt.Errorf("line %d of the log has the number %d", want, l.number)
		}
	}
	return nil
}
