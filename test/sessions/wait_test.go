package sessions

import (
	"io"
	"testing"
)

func TestWaitIsAnsweredWhileNoDaemonLives(t *testing.T) {
	for _, condition := range []string{"not-running", "next-exit", "removed"} {
		t.Run(condition, func(t *testing.T) {
			t.Parallel()
			d := live(t, nil)
			args := []string{"-i", "--name", "box"}
			if condition == "removed" {
				args = append(args, "--rm")
			}
			create := append([]string{"create"}, args...)
			d.Docker(append(create, image, "sh", "-c", `while read x; do [ $x = hi ] && echo hi || exit $x; done`)...)
			var early *waiting
			if condition != "not-running" {
				early = waits(t, d, condition) // before there is a shim
			}
			d.Docker("start", "box")
			late := waits(t, d, condition)
			// An answer to what is typed shows that the shim has this client.
			in, conn := request(t, d, "POST", "/containers/box/attach?stdin=1&stdout=1&stream=1")
			if _, err := io.WriteString(conn, "hi\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(in.Body, make([]byte, 11)); err != nil {
				t.Fatal(err)
			}
			d.Kill9()
			if _, err := io.WriteString(conn, "9\n"); err != nil {
				t.Fatal(err)
			}
			for _, w := range []*waiting{early, late} {
				if w != nil {
					if got, want := w.answer(), "{\"StatusCode\":9}\n"; got != want {
						t.Errorf("answer %q, want %q", got, want)
					}
				}
			}
			if condition == "removed" {
				d.Start()
				removed(t, d, "box")
			}
		})
	}
}
