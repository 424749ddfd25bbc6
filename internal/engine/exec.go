// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	moby "github.com/moby/moby/api/types/container"

	"holdfast/internal/container"
	"holdfast/internal/errs"
	"holdfast/internal/shim/proto"
)

// execs serves exec sessions, which the containers' shims own.
type execs struct {
	index   *index
	bundler *bundler
}

// execInfo describes an exec session for the API. The shim stores it.
type execInfo struct {
	Entrypoint string   `json:"entrypoint"`
	Arguments  []string `json:"arguments"`
	Tty        bool     `json:"tty"`
	User       string   `json:"user,omitempty"`
	Privileged bool     `json:"privileged,omitempty"`
	Stdin      bool     `json:"stdin,omitempty"`
	Stdout     bool     `json:"stdout,omitempty"`
	Stderr     bool     `json:"stderr,omitempty"`
	DetachKeys []byte   `json:"detachKeys,omitempty"`
}

// ExecCreate creates an exec session for a command in a running container, and
// returns its ID.
func (x *execs) ExecCreate(ctx context.Context, ref string, r moby.ExecCreateRequest) (string, error) {
	a, err := x.index.findForChange(ctx, ref)
	if err != nil {
		return "", err
	}
	if len(r.Cmd) == 0 {
		return "", errs.Invalid("No exec command specified")
	}
	keys, err := detachKeys(r.DetachKeys)
	if err != nil {
		return "", err
	}
	if err := a.ask(ctx, container.AskExec, func(_ container.Action, done func(error)) { done(nil) }); err != nil {
		return "", err
	}
	process, uid, gid, err := x.bundler.execProcess(a.view.Load(), r)
	if err != nil {
		return "", err
	}
	session := execInfo{
		Entrypoint: r.Cmd[0], Arguments: r.Cmd[1:], Tty: r.Tty, User: r.User, Privileged: r.Privileged,
		Stdin: r.AttachStdin, Stdout: r.AttachStdout, Stderr: r.AttachStderr,
	}
	if r.DetachKeys != "" {
		session.DetachKeys = keys // as in Docker, inspect only shows keys that the client set
	}
	info, err := json.Marshal(session)
	if err != nil {
		return "", err
	}
	id := newID()
	err = a.withShim(ctx, "is not running", func(s Shim) error {
		return s.ExecCreate(ctx, proto.ExecCreate{
			Exec: id, Process: process, Tty: r.Tty,
			Stdin: r.AttachStdin, Stdout: r.AttachStdout, Stderr: r.AttachStderr,
			DetachKeys: keys, UID: uid, GID: gid, Info: info,
		})
	})
	if err != nil {
		return "", err
	}
	x.index.addExec(id, a.id)
	a.emit("exec_create: "+r.Cmd[0]+" "+strings.Join(r.Cmd[1:], " "), map[string]string{"execID": id})
	return id, nil
}

// ExecStart runs an exec session's command. Unless it is detached, the client's
// socket is handed to the shim.
func (x *execs) ExecStart(ctx context.Context, id string, o ExecStartOptions) error {
	a, st, err := x.session(ctx, id)
	if err != nil {
		return err
	}
	if st.Running {
		return errs.Conflict("exec %s is already running", id)
	}
	if st.Started {
		return errs.Conflict("exec %s has already run", id)
	}
	if err := a.ask(ctx, container.AskExec, func(_ container.Action, done func(error)) { done(nil) }); err != nil {
		return err
	}
	var info execInfo
	if err := json.Unmarshal(st.Info, &info); err != nil {
		return err
	}
	start := proto.ExecStart{Exec: id, Reframe: !o.Detach && o.Tty != info.Tty}
	if o.ConsoleSize != nil {
		start.ConsoleSize = *o.ConsoleSize
	}
	var client *os.File
	if !o.Detach {
		c, err := o.Hijack(o.Tty)
		if err != nil {
			return err
		}
		client, start.Pending = c.File, c.Pending
		defer client.Close()
	}
	a.emit("exec_start: "+info.Entrypoint+" "+strings.Join(info.Arguments, " "), map[string]string{"execID": id})
	asked := false
	err = a.withShim(ctx, "is not running", func(s Shim) error {
		asked = true
		_, err := s.ExecStart(ctx, start, client)
		var call *proto.Error
		if client != nil && errors.As(err, &call) && call.Kind == proto.KindRuntime {
			return nil // the shim has written the error to the client, and the exit code reports it
		}
		return err
	})
	if err != nil && client != nil && !asked {
		// The connection was upgraded, so the error can't be the answer any more. A shim
		// that refuses tells the client itself.
		_, _ = client.Write(framed(fmt.Appendf(nil, "%v\r\n", err), false, o.Tty))
	}
	return err
}

// ExecResize sets the size of an exec session's terminal, in characters. A session
// that has not started gets the size at its start. Without a terminal nothing is
// done.
func (x *execs) ExecResize(ctx context.Context, id string, height, width uint) error {
	a, st, err := x.session(ctx, id)
	if err != nil {
		return err
	}
	var info execInfo
	if err := json.Unmarshal(st.Info, &info); err != nil {
		return err
	}
	switch {
	case st.Started && !st.Running:
		return errs.NotFound("exec %s has ended", id)
	case !info.Tty:
		return nil
	}
	return a.withShim(ctx, "is not running", func(s Shim) error {
		return s.ExecResize(ctx, id, height, width)
	})
}

// ExecInspect returns the state of an exec session.
func (x *execs) ExecInspect(ctx context.Context, id string) (moby.ExecInspectResponse, error) {
	a, st, err := x.session(ctx, id)
	if err != nil {
		return moby.ExecInspectResponse{}, err
	}
	var info execInfo
	if err := json.Unmarshal(st.Info, &info); err != nil {
		return moby.ExecInspectResponse{}, err
	}
	r := moby.ExecInspectResponse{
		ID: id, Running: st.Running, ContainerID: a.id, Pid: st.Pid,
		OpenStdin: info.Stdin, OpenStdout: info.Stdout, OpenStderr: info.Stderr,
		DetachKeys: append([]byte{}, info.DetachKeys...),
		ProcessConfig: &moby.ExecProcessConfig{
			Tty: info.Tty, Entrypoint: info.Entrypoint, Arguments: info.Arguments,
			Privileged: &info.Privileged, User: info.User,
		},
	}
	if st.Started && !st.Running {
		r.ExitCode = &st.ExitCode
	}
	return r, nil
}

func (x *execs) owner(ctx context.Context, id string) (*actor, error) {
	if err := x.index.ready(ctx); err != nil {
		return nil, err
	}
	return x.index.byExec(id)
}

// session returns the container and the state of an exec session. The state comes
// from the shim, or from the shim's last record if the container has ended.
func (x *execs) session(ctx context.Context, id string) (*actor, proto.ExecState, error) {
	a, err := x.owner(ctx, id)
	if err != nil {
		return nil, proto.ExecState{}, err
	}
	rec := a.view.Load().rec
	err = a.withShim(ctx, "is not running", func(s Shim) (err error) {
		rec, err = s.State(ctx)
		return err
	})
	i := slices.IndexFunc(rec.Execs, func(x proto.ExecState) bool { return x.Exec == id })
	if i < 0 {
		if err != nil {
			return nil, proto.ExecState{}, err
		}
		return nil, proto.ExecState{}, errs.NotFound("No such exec instance: %s", id)
	}
	return a, rec.Execs[i], nil
}
