// SPDX-License-Identifier: Apache-2.0

// Command player is the program in the containers of a soak.
//
//	player NAME RATE LIFE CODE
//	player check PERIOD
//
// It counts its runs in /state, and writes RATE lines per second, "RUN NUMBER" and a
// filler each. It answers NAME and RUN on port 80. After LIFE milliseconds, if that is
// not 0, it ends with CODE.
//
// check is a health check, whose result changes every PERIOD seconds of the clock; with
// 0 it always succeeds.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	if os.Args[1] == "check" {
		if p := number(2); p > 0 && time.Now().Unix()/int64(p)%2 == 1 {
			fmt.Println("ill for now")
			os.Exit(1)
		}
		return
	}
	run := count()
	serve(os.Args[1], run)
	var over <-chan time.Time
	if life := number(3); life > 0 {
		over = time.After(time.Duration(life) * time.Millisecond)
	}
	// Many lines are written in bursts, as programs do.
	pace, burst := time.Second/time.Duration(number(2)), 1
	for pace < 20*time.Millisecond {
		pace, burst = pace*2, burst*2
	}
	tick := time.NewTicker(pace)
	out := bufio.NewWriter(os.Stdout)
	for n := 0; ; {
		select {
		case <-tick.C:
			for range burst {
				n++
				fmt.Fprintf(out, "%d %d the quick brown fox jumps over the lazy dog\n", run, n)
			}
			out.Flush()
		case <-over:
			os.Exit(number(4))
		}
	}
}

func number(i int) int {
	n, err := strconv.Atoi(os.Args[i])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(64)
	}
	return n
}

// count counts the run.
func count() int {
	b, _ := os.ReadFile("/state") // the first run has none
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	n++
	if err := os.WriteFile("/state", []byte(strconv.Itoa(n)), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(65)
	}
	return n
}

func serve(name string, run int) {
	l, err := net.Listen("tcp", ":80")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(66)
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
