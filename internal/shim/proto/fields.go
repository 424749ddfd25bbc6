// SPDX-License-Identifier: Apache-2.0

package proto

// The fields of the messages, with the names and in the order of their JSON tags. A
// test compares each type with the result of encoding/json.

func (e *Error) fields(c *coder) {
	c.string("kind", &e.Kind, always)
	c.string("message", &e.Message, always)
	integer(c, "exitCode", &e.ExitCode, omit)
}

func (m *Message) fields(c *coder) {
	integer(c, "id", &m.ID, omit)
	c.string("method", &m.Method, omit)
	c.json("params", &m.Params, omit)
	c.json("result", &m.Result, omit)
	pointer(c, "error", &m.Error)
	pointer(c, "event", &m.Event)
	integer(c, "fds", &m.FDs, omit)
}

func (b *Bootstrap) fields(c *coder) {
	integer(c, "version", &b.Version, always)
	c.string("id", &b.ID, always)
	integer(c, "life", &b.Life, always)
	c.string("runDir", &b.RunDir, always)
	c.string("dataDir", &b.DataDir, always)
	c.string("bundle", &b.Bundle, always)
	nested(c, "runtime", &b.Runtime)
	c.bool("terminal", &b.Terminal, omit)
	c.size("consoleSize", &b.ConsoleSize)
	c.bool("openStdin", &b.OpenStdin, omit)
	c.bool("stdinOnce", &b.StdinOnce, omit)
	integer(c, "uid", &b.UID, always)
	integer(c, "gid", &b.GID, always)
	nested(c, "log", &b.Log)
	nested(c, "restart", &b.Restart)
	integer(c, "restartCount", &b.RestartCount, omit)
	c.bool("autoRemove", &b.AutoRemove, omit)
	integer(c, "stopSignal", &b.StopSignal, always)
	integer(c, "stopTimeout", &b.StopTimeout, always)
	pointer(c, "health", &b.Health)
	structs(c, "ports", &b.Ports, omit)
	c.time("finished", &b.Finished, omit)
	structs(c, "healthLog", &b.HealthLog, omit)
	c.string("oomFile", &b.OOMFile, omit)
	c.string("oomKey", &b.OOMKey, omit)
	nested(c, "teardown", &b.Teardown)
	structs(c, "join", &b.Join, omit)
	c.table("attributes", &b.Attributes, omit)
	pointer(c, "adopt", &b.Adopt)
}

// size is a terminal's size.
func (c *coder) size(name string, p *[2]uint) {
	array(c, name, p[:], func(n *uint) { bareInteger(c, n) })
}

func (a *Adopt) fields(c *coder) {
	c.bool("pidfd", &a.Pidfd, omit)
	c.bool("terminal", &a.Terminal, omit)
	c.bool("stdin", &a.Stdin, omit)
}

func (u *Upgrade) fields(c *coder) { c.string("binary", &u.Binary, always) }

func (j *Join) fields(c *coder) {
	c.string("id", &j.ID, always)
	c.string("name", &j.Name, always)
	c.string("what", &j.What, always)
	c.string("dir", &j.Dir, always)
	c.strings("kinds", &j.Kinds, always)
}

func (r *Runtime) fields(c *coder) {
	c.string("path", &r.Path, always)
	c.strings("args", &r.Args, omit)
}

func (p *RestartPolicy) fields(c *coder) {
	c.string("name", &p.Name, omit)
	integer(c, "maxRetries", &p.MaxRetries, omit)
}

func (l *Log) fields(c *coder) {
	c.string("driver", &l.Driver, always)
	c.string("path", &l.Path, omit)
	integer(c, "maxSize", &l.MaxSize, omit)
	integer(c, "maxFiles", &l.MaxFiles, omit)
	c.bool("compress", &l.Compress, omit)
	c.table("attrs", &l.Attrs, omit)
}

func (h *Health) fields(c *coder) {
	c.json("process", &h.Process, always)
	integer(c, "interval", &h.Interval, always)
	integer(c, "timeout", &h.Timeout, always)
	integer(c, "startPeriod", &h.StartPeriod, always)
	integer(c, "startInterval", &h.StartInterval, always)
	integer(c, "retries", &h.Retries, always)
}

func (p *Port) fields(c *coder) {
	c.string("proto", &p.Proto, always)
	c.string("target", &p.Target, always)
	c.string("host", &p.Host, omit)
}

func (p *Ports) fields(c *coder) {
	structs(c, "ports", &p.Ports, omit)
	structs(c, "new", &p.New, omit)
	list(c, "netlink", &p.Netlink, omit, c.bareData)
}

func (r *PortsReply) fields(c *coder) {
	list(c, "missing", &r.Missing, omit, func(n *int) { bareInteger(c, n) })
}

func (t *Teardown) fields(c *coder) {
	list(c, "netlink", &t.Netlink, omit, c.bareData)
	c.strings("unmount", &t.Unmount, omit)
	c.strings("remove", &t.Remove, omit)
}

func (h *Hello) fields(c *coder) {
	integer(c, "version", &h.Version, always)
	c.string("daemon", &h.Daemon, omit)
}

func (h *HelloReply) fields(c *coder) {
	integer(c, "version", &h.Version, always)
	c.string("release", &h.Release, always)
	integer(c, "pid", &h.Pid, always)
	nested(c, "state", &h.State)
	c.bool("names", &h.Names, omit)
	c.bool("chunks", &h.Chunks, omit)
}

func (s *Subscribe) fields(c *coder) { integer(c, "after", &s.After, always) }

func (h *Heard) fields(c *coder) {
	integer(c, "seq", &h.Seq, always)
	integer(c, "kept", &h.Kept, omit)
}

func (s *Stop) fields(c *coder) {
	integer(c, "signal", &s.Signal, omit)
	integer(c, "timeout", &s.Timeout, omit)
	c.bool("default", &s.Default, omit)
	c.bool("user", &s.User, omit)
}

func (k *Kill) fields(c *coder) {
	integer(c, "signal", &k.Signal, always)
	c.bool("manual", &k.Manual, omit)
	c.bool("user", &k.User, omit)
}

func (p *Pause) fields(c *coder) { c.bool("lent", &p.Lent, omit) }

func (u *Update) fields(c *coder) {
	pointer(c, "restart", &u.Restart)
	c.json("resources", &u.Resources, omit)
	c.table("attributes", &u.Attributes, omit)
}

func (r *Resize) fields(c *coder) {
	c.string("exec", &r.Exec, omit)
	integer(c, "height", &r.Height, always)
	integer(c, "width", &r.Width, always)
}

func (n *Names) fields(c *coder) { c.string("view", &n.View, always) }

func (a *Attach) fields(c *coder) {
	c.bool("Stdin", &a.Stdin, always)
	c.bool("Stdout", &a.Stdout, always)
	c.bool("Stderr", &a.Stderr, always)
	c.bool("raw", &a.Raw, omit)
	c.data("detachKeys", &a.DetachKeys, omit)
	c.data("pending", &a.Pending, omit)
}

func (h *Hold) fields(c *coder) {
	c.string("condition", &h.Condition, always)
	c.data("head", &h.Head, omit)
}

func (f *Follow) fields(c *coder) {
	integer(c, "offset", &f.Offset, always)
	c.data("head", &f.Head, omit)
	c.bool("chunked", &f.Chunked, omit)
	c.bool("Stdout", &f.Stdout, always)
	c.bool("Stderr", &f.Stderr, always)
	c.bool("raw", &f.Raw, omit)
	c.bool("timestamps", &f.Timestamps, omit)
	c.bool("details", &f.Details, omit)
	c.time("since", &f.Since, omit)
	c.time("until", &f.Until, omit)
	array(c, "within", f.Within[:], c.bareBool)
}

func (x *ExecCreate) fields(c *coder) {
	c.string("exec", &x.Exec, always)
	c.json("process", &x.Process, always)
	c.bool("tty", &x.Tty, omit)
	c.bool("Stdin", &x.Stdin, always)
	c.bool("Stdout", &x.Stdout, always)
	c.bool("Stderr", &x.Stderr, always)
	c.data("detachKeys", &x.DetachKeys, omit)
	integer(c, "uid", &x.UID, always)
	integer(c, "gid", &x.GID, always)
	c.json("info", &x.Info, omit)
}

func (x *ExecStart) fields(c *coder) {
	c.string("exec", &x.Exec, always)
	c.size("consoleSize", &x.ConsoleSize)
	c.data("pending", &x.Pending, omit)
	c.bool("reframe", &x.Reframe, omit)
}

func (s *State) fields(c *coder) {
	integer(c, "schema", &s.Schema, always)
	c.string("id", &s.ID, always)
	integer(c, "life", &s.Life, always)
	c.string("status", &s.Status, always)
	integer(c, "shimPid", &s.ShimPid, omit)
	integer(c, "pid", &s.Pid, omit)
	integer(c, "pidStart", &s.PidStart, omit)
	c.string("bootID", &s.BootID, omit)
	c.time("started", &s.Started, omit)
	c.time("finished", &s.Finished, omit)
	integer(c, "exitCode", &s.ExitCode, always)
	c.bool("oomKilled", &s.OOMKilled, omit)
	c.string("error", &s.Error, omit)
	c.bool("manual", &s.Manual, omit)
	c.bool("userStopped", &s.UserStopped, omit)
	integer(c, "restartCount", &s.RestartCount, omit)
	c.time("nextRestart", &s.NextRestart, omit)
	integer(c, "logDropped", &s.LogDropped, omit)
	pointer(c, "health", &s.Health)
	structs(c, "execs", &s.Execs, omit)
	integer(c, "seq", &s.Seq, always)
}

func (h *HealthState) fields(c *coder) {
	c.string("status", &h.Status, always)
	integer(c, "failingStreak", &h.FailingStreak, always)
	structs(c, "log", &h.Log, omit)
}

func (r *HealthResult) fields(c *coder) {
	c.time("start", &r.Start, always)
	c.time("end", &r.End, always)
	integer(c, "exitCode", &r.ExitCode, always)
	c.string("output", &r.Output, always)
}

func (x *ExecState) fields(c *coder) {
	c.string("exec", &x.Exec, always)
	c.bool("running", &x.Running, always)
	c.bool("started", &x.Started, always)
	integer(c, "pid", &x.Pid, omit)
	integer(c, "exitCode", &x.ExitCode, always)
	c.json("info", &x.Info, omit)
}

func (e *Event) fields(c *coder) {
	e.Entry.fields(c)
	nested(c, "state", &e.State)
}

func (e *Entry) fields(c *coder) {
	integer(c, "seq", &e.Seq, always)
	c.time("time", &e.Time, always)
	c.string("action", &e.Action, always)
	c.table("attributes", &e.Attributes, omit)
}
