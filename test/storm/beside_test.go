// SPDX-License-Identifier: Apache-2.0

package storm

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"testing"
)

// playBeside runs TestStorm in several processes, each with a daemon of its own. Much of
// a round is waiting: for time-outs, for a failpoint to be met, for rest. The processes
// share nothing: each is the parent of its orphans, and its seed is played again alone.
// When one has failed the others end after their round.
func playBeside(t *testing.T, seed uint64) {
	var all sync.WaitGroup
	end := make(chan struct{})
	enough := sync.OnceFunc(func() { close(end) })
	for i := range uint64(*stormBeside) {
		seed := strconv.FormatUint(seed+i, 10)
		share := strconv.Itoa((*stormFaults + *stormBeside - 1) / *stormBeside)
		// The last of equal flags counts.
		cmd := exec.Command(os.Args[0], slices.Concat(os.Args[1:], []string{
			"-test.run=^TestStorm$", "-test.v", "-test.count=1", "-storm.beside=0", "-storm.seed=" + seed, "-storm.faults=" + share})...)
		until, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, in := io.Pipe()
		cmd.Stdout, cmd.Stderr = in, in
		ended := make(chan struct{})
		all.Go(func() {
			select {
			case <-end:
			case <-ended:
			}
			until.Close()
		})
		all.Go(func() {
			for lines := bufio.NewScanner(out); lines.Scan(); {
				fmt.Printf("%s: %s\n", seed, lines.Text())
			}
			io.Copy(io.Discard, out) // what follows a line that is too long
		})
		all.Go(func() {
			defer close(ended)
			err := cmd.Run()
			in.Close()
			if err != nil {
				t.Errorf("the storm of seed %s: %v", seed, err)
				if !*stormKeep {
					enough()
				}
			}
		})
	}
	all.Wait()
}

// toldToEnd is closed when the process that plays several storms beside each other, of
// which this is one, wants this one to end, or has ended itself.
func toldToEnd() <-chan struct{} {
	told := make(chan struct{})
	if *stormBeside == 0 {
		go func() {
			io.Copy(io.Discard, os.Stdin)
			close(told)
		}()
	}
	return told
}
