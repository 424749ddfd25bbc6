package engine

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	moby "github.com/moby/moby/api/types/container"

	"holdfast/internal/container"
	"holdfast/internal/shim/proto"
)

// exitCannotInvoke is what the shell calls 126: the command can't be invoked.
const exitCannotInvoke = 126

// execInfo is the exec session in the API's terms; the shim keeps it.
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
	// Failure is why it can't be started: the container has no such user. As in
	// Docker its start tells so, in the output and by the exit code.
	Failure string `json:"failure,omitempty"`
}

// ExecCreate prepares a command to be run in a running container.
func (e *Engine) ExecCreate(ctx context.Context, ref string, r moby.ExecCreateRequest) (string, error) {
	a, err := e.find(ctx, ref)
	if err != nil {
		return "", err
	}
	if len(r.Cmd) == 0 {
		return "", invalid("No exec command specified")
	}
	keys, err := detachKeys(r.DetachKeys)
	if err != nil {
		return "", err
	}
	if err := a.ask(ctx, container.AskExec, func(_ container.Action, done func(error)) { done(nil) }); err != nil {
		return "", err
	}
	process, uid, gid, err := e.execProcess(a.view.Load(), r)
	failure := ""
	if errdefs.IsInvalidArgument(err) && r.User != "" {
		nobody := r
		nobody.User = ""
		nobody.Cmd = []string{""} // whoever starts it nevertheless runs nothing
		failure = err.Error()
		process, uid, gid, err = e.execProcess(a.view.Load(), nobody)
	}
	if err != nil {
		return "", err
	}
	info, err := json.Marshal(execInfo{
		Failure:    failure,
		Entrypoint: r.Cmd[0], Arguments: r.Cmd[1:], Tty: r.Tty, User: r.User, Privileged: r.Privileged,
		Stdin: r.AttachStdin, Stdout: r.AttachStdout, Stderr: r.AttachStderr, DetachKeys: keys,
	})
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
	e.index.addExec(id, a.id)
	a.emit("exec_create: "+strings.Join(r.Cmd, " "), map[string]string{"execID": id})
	return id, nil
}

// ExecStart runs it: detached, or with the client's socket handed to the shim.
func (e *Engine) ExecStart(ctx context.Context, id string, o ExecStartOptions) error {
	a, st, err := e.exec(ctx, id)
	if err != nil {
		return err
	}
	if st.Running {
		return conflict("exec %s is already running", id)
	}
	if st.Started {
		return conflict("exec %s has already run", id)
	}
	if err := a.ask(ctx, container.AskExec, func(_ container.Action, done func(error)) { done(nil) }); err != nil {
		return err
	}
	var info execInfo
	if err := json.Unmarshal(st.Info, &info); err != nil {
		return err
	}
	start := proto.ExecStart{Exec: id}
	if o.ConsoleSize != nil {
		start.ConsoleSize = *o.ConsoleSize
	}
	if info.Failure != "" && o.Detach {
		return invalid("%s", info.Failure)
	}
	var client *os.File
	if !o.Detach {
		c, err := o.Hijack(info.Tty)
		if err != nil {
			return err
		}
		client, start.Pending = c.File, c.Pending
		defer client.Close()
	}
	if info.Failure != "" {
		_, _ = client.Write(execOutput(info.Tty, info.Failure+"\r\n"))
		return nil
	}
	a.emit("exec_start: "+strings.Join(append([]string{info.Entrypoint}, info.Arguments...), " "), map[string]string{"execID": id})
	return a.withShim(ctx, "is not running", func(s Shim) error {
		_, err := s.ExecStart(ctx, start, client)
		var call *proto.Error
		if client != nil && errors.As(err, &call) && call.Kind == proto.KindRuntime {
			return nil // the client has read it, and the exit code tells
		}
		return err
	})
}

// execOutput is text in an exec's output: as it is on a terminal, else in a frame
// of stdout.
func execOutput(tty bool, text string) []byte {
	if tty {
		return []byte(text)
	}
	head := [8]byte{1}
	binary.BigEndian.PutUint32(head[4:], uint32(len(text)))
	return append(head[:], text...)
}

// ExecResize sets the size of an exec's terminal, in characters.
func (e *Engine) ExecResize(ctx context.Context, id string, height, width uint) error {
	a, err := e.execOwner(ctx, id)
	if err != nil {
		return err
	}
	return a.withShim(ctx, "is not running", func(s Shim) error {
		return s.ExecResize(ctx, id, height, width)
	})
}

// ExecInspect tells about an exec session.
func (e *Engine) ExecInspect(ctx context.Context, id string) (moby.ExecInspectResponse, error) {
	a, st, err := e.exec(ctx, id)
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
		DetachKeys: info.DetachKeys, CanRemove: st.Started && !st.Running,
		ProcessConfig: &moby.ExecProcessConfig{
			Tty: info.Tty, Entrypoint: info.Entrypoint, Arguments: info.Arguments,
			Privileged: &info.Privileged, User: info.User,
		},
	}
	if st.Started && !st.Running {
		r.ExitCode = &st.ExitCode
	}
	if info.Failure != "" {
		code := exitCannotInvoke
		r.ExitCode, r.CanRemove = &code, true
	}
	return r, nil
}

func (e *Engine) execOwner(ctx context.Context, id string) (*actor, error) {
	if err := e.ready(ctx); err != nil {
		return nil, err
	}
	return e.index.byExec(id)
}

// exec asks the shim about a session; of a container that has ended the last
// state tells.
func (e *Engine) exec(ctx context.Context, id string) (*actor, proto.ExecState, error) {
	a, err := e.execOwner(ctx, id)
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
		return nil, proto.ExecState{}, notFound("No such exec instance: %s", id)
	}
	return a, rec.Execs[i], nil
}
