// SPDX-License-Identifier: Apache-2.0

// Command player is the program in the containers of a storm. It counts its runs
// in /state/n, writes numbered lines, answers on a port, repeats its input, and
// ends as it is asked to.
//
//	player NAME LIFE CODE STUBBORN
//
// NAME is what it answers on port 80, with the number of its run. LIFE is after
// how many milliseconds it ends, 0 is never; CODE is its exit code then. SIGTERM
// ends it with 7, unless STUBBORN is true. SIGUSR2 makes it silent.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const pace = 25 * time.Millisecond

func main() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGHUP)
	name, stubborn := os.Args[1], os.Args[4] == "true"
	life, _ := strconv.Atoi(os.Args[2])
	code, _ := strconv.Atoi(os.Args[3])
	run := count()
	line := func(what any) { fmt.Printf("%d %v\n", run, what) }
	line("start")
	serve(name, run)
	input := make(chan string)
	go func() {
		s := bufio.NewScanner(os.Stdin)
		for s.Scan() {
			input <- s.Text()
		}
	}()
	var over <-chan time.Time
	if life > 0 {
		over = time.After(time.Duration(life) * time.Millisecond)
	}
	tick := time.NewTicker(pace)
	i := 0
	for {
		select {
		case <-tick.C:
			i++
			line(i)
		case text := <-input:
			line("in " + text)
		case <-over:
			line(fmt.Sprintf("end %d", i))
			os.Exit(code)
		case s := <-signals:
			switch {
			case s == unix.SIGTERM && !stubborn:
				line(fmt.Sprintf("end %d", i))
				os.Exit(7)
			case s == unix.SIGUSR2:
				tick.Stop()
			}
		}
	}
}

// count counts the run. A kill in the middle leaves the old number or the new.
func count() int {
	b, _ := os.ReadFile("/state/n") // the first run has none
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	n++
	err := os.WriteFile("/state/.n", []byte(strconv.Itoa(n)+"\n"), 0o644)
	if err == nil {
		err = os.Rename("/state/.n", "/state/n")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "count:", err) // the disk may be full
	}
	return n
}

func serve(name string, run int) {
	l, err := net.Listen("tcp", ":80")
	if err != nil {
		return // containers that join another have its port
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%s %d\n", name, run)
			c.Close()
		}
	}()
}
