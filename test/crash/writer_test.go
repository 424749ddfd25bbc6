// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"holdfast/test/kit"
)

// At 100 bytes each, the lines are 105 MB.
const lines = 1_050_000

// writer waits for the file /word/go, writes all lines at full speed, and
// reports that it is done.
const writer = `while [ ! -e /word/go ]; do sleep 0.01; done
awk -v n=$LINES 'BEGIN { for (i = 1; i <= n; i++) printf "%08d ninety-nine bytes and a newline make a line of one hundred, which is written at full speed\n", i }'
touch /word/written
exec sleep 1000`

// A container that writes at full speed while no daemon lives is never blocked,
// and its log has every line once and in order.
func TestWriterIsNeverBlockedAndEveryLineIsLoggedOnce(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		opts []string
		// The rotated files that must exist.
		rotated string
	}{
		{"json-file", nil, ""},
		{"json-file rotated and compressed", []string{"--log-opt", "max-size=20m", "--log-opt", "max-file=30", "--log-opt", "compress=true"}, "*-json.log.*.gz"},
		{"local", []string{"--log-driver", "local", "--log-opt", "max-size=20m", "--log-opt", "max-file=30"}, "local-logs/container.log.*.gz"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := live(t)
			word := d.Root + "/word"
			if err := os.Mkdir(word, 0o755); err != nil {
				t.Fatal(err)
			}
			args := append([]string{"run", "-d", "--name", "writer", "-v", word + ":/word", "-e", fmt.Sprintf("LINES=%d", lines)}, c.opts...)
			id := d.Holdfast(append(args, image, "sh", "-c", writer)...)
			before := identity(t, d, "writer")
			d.Kill9()
			if err := os.WriteFile(word+"/go", nil, 0o600); err != nil {
				t.Fatal(err)
			}
			kit.Eventually(t, "all is written with no daemon", func() bool {
				_, err := os.Stat(word + "/written")
				return err == nil
			})
			d.Start()
			if after := identity(t, d, "writer"); after != before {
				t.Errorf("was %s, is %s", before, after)
			}
			if st := record(d, id); st.LogDropped != 0 {
				t.Errorf("%d lines were dropped", st.LogDropped)
			}
			if c.rotated != "" {
				if files, _ := filepath.Glob(d.DataRoot + "/containers/" + id + "/" + c.rotated); len(files) < 3 {
					t.Errorf("rotated: %v", files)
				}
			}
			if err := everyLine(t, d, "writer", lines); err != nil {
				t.Error(err)
			}
		})
	}
}

// everyLine reads a container's log and checks that its numbered lines are
// complete.
func everyLine(t *testing.T, d *kit.Daemon, name string, want int) error {
	t.Helper()
	cmd := d.HoldfastCommand(context.Background(), "logs", name)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	s := bufio.NewScanner(out)
	n := 0
	for s.Scan() {
		number, _, _ := bytes.Cut(s.Bytes(), []byte(" "))
		i, err := strconv.Atoi(string(number))
		if n++; err != nil || i != n {
			return fmt.Errorf("line %d is %q", n, s.Bytes())
		}
	}
	if n != want {
		return fmt.Errorf("%d lines of %d: %v", n, want, s.Err())
	}
	return nil
}
