// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/context/docker"
	"github.com/moby/moby/client"

	"holdfast/internal/cli/status"
)

const (
	// lifeTimeout bounds how long the daemon may take to say which life it is in.
	lifeTimeout = 5 * time.Second
	// returnTimeout bounds the wait for the next daemon, and returnPoll is how often it
	// is looked for.
	returnTimeout = 60 * time.Second
	returnPoll    = 100 * time.Millisecond
)

// again runs a build, and runs it once more if the end of the daemon has cut it off.
// The finished steps are in the cache then. A build that reads standard input or writes
// to standard output is not repeated.
func again(ctx context.Context, cli *command.DockerCli, args []string, build func() error) error {
	at, err := endpointOf(cli)
	if err != nil || usesPipes(args) {
		return build()
	}
	before := make(chan []status.Life, 1)
	go func() {
		ctx, cancel := context.WithTimeout(ctx, lifeTimeout)
		defer cancel()
		st, err := status.Fetch(ctx, at.dial)
		if err != nil {
			st.Lives = nil // another engine, or no daemon
		}
		before <- st.Lives
	}()
	if err = build(); err == nil || ctx.Err() != nil {
		return err
	}
	lives := <-before
	if len(lives) == 0 {
		return err
	}
	now, nowErr := at.nextDaemon(ctx, cli)
	if nowErr != nil {
		fmt.Fprintln(cli.Err(), "holdfast: no daemon answers: build again when one does; the finished steps are in the cache")
		return err
	}
	if !cutOff(lives[len(lives)-1], now.Lives, at.tls) {
		return err
	}
	fmt.Fprintln(cli.Err(), "holdfast: the daemon ended during the build: building again; the finished steps are in the cache")
	return build()
}

// usesPipes reports whether the arguments of a build make it read standard input or
// write to standard output.
func usesPipes(args []string) bool {
	return slices.ContainsFunc(args, func(a string) bool {
		return a == "-" || a == "-f-" || a == "-o-" || strings.HasSuffix(a, "=-") || strings.Contains(a, "dest=-,")
	})
}

// endpoint is how the daemon is reached. Over TLS the daemon holds the keys of a
// connection, so that it ends with the daemon.
type endpoint struct {
	dial func(context.Context) (net.Conn, error)
	tls  bool
}

func endpointOf(cli *command.DockerCli) (endpoint, error) {
	meta, err := cli.ContextStore().GetMetadata(cli.CurrentContext())
	if err != nil {
		return endpoint{}, err
	}
	m, err := docker.EndpointFromContext(meta)
	if err != nil {
		return endpoint{}, err
	}
	ep, err := docker.WithTLSData(cli.ContextStore(), cli.CurrentContext(), m)
	if err != nil {
		return endpoint{}, err
	}
	opts, err := ep.ClientOpts()
	if err != nil {
		return endpoint{}, err
	}
	c, err := client.New(opts...)
	if err != nil {
		return endpoint{}, err
	}
	return endpoint{c.Dialer(), strings.HasPrefix(ep.Host, "tcp://") && (ep.TLSData != nil || ep.SkipTLSVerify)}, nil
}

// nextDaemon returns the status of the daemon as soon as one answers.
func (e endpoint) nextDaemon(ctx context.Context, cli *command.DockerCli) (status.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, returnTimeout)
	defer cancel()
	tick := time.NewTicker(returnPoll)
	defer tick.Stop()
	for told := false; ; told = true {
		st, err := status.Fetch(ctx, e.dial)
		if err == nil || ctx.Err() != nil {
			return st, err
		}
		if !told {
			fmt.Fprintln(cli.Err(), "holdfast: the daemon ended during the build: waiting for the next one")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return st, ctx.Err()
		}
	}
}

// cutOff reports whether the end of a life of the daemon ended the builds that clients
// had begun in it, by the lives up to now. A build goes on if the daemon was killed, and
// ends if the daemon stopped its containers, too. Over TLS it ends with any life, except
// that a daemon that hands over serves its clients to the end.
func cutOff(was status.Life, lives []status.Life, overTLS bool) bool {
	i := slices.IndexFunc(lives, func(l status.Life) bool { return l.Started.Equal(was.Started) })
	if i < 0 {
		return false
	}
	switch l := lives[i]; l.How {
	case "", "handover":
		return false
	default:
		return overTLS || l.ContainersStopped || l.How == "reboot"
	}
}
