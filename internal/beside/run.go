// SPDX-License-Identifier: Apache-2.0

package beside

import (
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/version"
)

// Work is what a process does for its clients.
type Work interface {
	http.Handler
	// Busy reports whether there is something to do without any client. It must not
	// call methods of the Life.
	Busy() bool
	// Tidy is called when there has been nothing to do for a while, before the process
	// ends for that reason. Clients may come meanwhile.
	Tidy()
	// Close is called when the process ends, after its clients were cut off.
	Close() error
}

// Options are what a daemon tells a process.
type Options struct {
	DataRoot, ExecRoot string
	// Settings are what the daemon's side of this process has set.
	Settings string
	// Ready gets a word when clients can be passed, or the reason why not, and is then
	// closed.
	Ready io.WriteCloser
}

// Run runs a process until it has had nothing to do for as long as rest, until a daemon
// ends it, or until SIGTERM. dir is the directory of its lock and its socket, and open
// makes its Work when it has the lock. ready is that of the Options.
func Run(dir string, rest time.Duration, ready io.WriteCloser, open func(*Life) (Work, error)) error {
	err := run(dir, rest, ready, open)
	if err != nil {
		_, _ = io.WriteString(ready, err.Error()) // closed, if clients could be passed
		ready.Close()
	}
	return err
}

func run(dir string, rest time.Duration, ready io.WriteCloser, open func(*Life) (Work, error)) error {
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	life := newLife(rest)
	work, err := open(life)
	if err != nil {
		return err
	}
	clients, err := listen(dir, life)
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
	go func() {
		<-stop
		life.stop(true)
	}()
	life.begin(work)
	web := &http.Server{Handler: work}
	go clients.serve(web)
	_, _ = io.WriteString(ready, ReadyWord)
	ready.Close()
	<-life.done
	clients.close()
	web.Close()
	return work.Close()
}

// Main is the main function of a process, by the name of its program. It ends the
// program if the daemon has not started it, or if run fails.
func Main(name string, run func(Options) error) {
	data := flag.String("data-root", "", "the daemon's data root")
	exec := flag.String("exec-root", "", "the daemon's exec root")
	settings := flag.String("settings", "", "settings of the daemon for this process")
	shown := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *shown {
		fmt.Printf("Holdfast version %s, build %s\n", version.Version, version.Commit)
		return
	}
	if *data == "" || *exec == "" || !startedByDaemon() {
		fmt.Fprintln(os.Stderr, name+" can only be started by the daemon")
		os.Exit(125)
	}
	if err := run(Options{DataRoot: *data, ExecRoot: *exec, Settings: *settings, Ready: os.NewFile(ReadyFD, "ready")}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
