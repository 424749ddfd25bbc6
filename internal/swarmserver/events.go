// SPDX-License-Identifier: Apache-2.0

package swarmserver

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/swarmkit/v2/api"
	"github.com/moby/swarmkit/v2/log"
	"google.golang.org/grpc"

	"holdfast/internal/durable"
	"holdfast/internal/event"
	ours "holdfast/internal/swarm"
)

// position is how far a manager has reported the events of its swarm. It is stored
// after the daemon has recorded the events, so the events after it may be reported
// once more, with the same sources: the daemon records each source once.
type position struct {
	// Stream is random, and differs for each time at which this host joined a swarm.
	Stream string `json:"stream"`
	// Reported is the number of events so far.
	Reported uint64 `json:"reported"`
	// Version is that of the cluster's store after the last of them, or 0.
	Version uint64 `json:"version"`
}

// positionFile is the file of the position in the state directory.
const positionFile = "events.json"

// loadPosition returns a new position if none is stored, or a damaged one.
func loadPosition(dir string) (p position) {
	text, err := os.ReadFile(filepath.Join(dir, positionFile))
	if err == nil {
		err = json.Unmarshal(text, &p)
	}
	if err == nil && p.Stream != "" {
		return p
	}
	if !errors.Is(err, os.ErrNotExist) {
		log.L.Warnf("%s is damaged: events of the swarm while no process ran are not reported: %v", filepath.Join(dir, positionFile), err)
	}
	b := make([]byte, 8)
	_, _ = rand.Read(b) // never fails
	return position{Stream: hex.EncodeToString(b)}
}

func (p position) save(dir string) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, positionFile), text, 0o600)
}

// watched are the kinds of objects whose changes are events.
var watched = []string{"node", "service", "network", "secret", "config"}

// reportEvents reports the changes of the cluster's objects to the daemon, as long as
// the connection to the manager lasts. It goes on where an earlier process has ended.
func (m *member) reportEvents(ctx context.Context, conn *grpc.ClientConn) {
	dir := ours.StateDir(m.s.o.DataRoot)
	p := loadPosition(dir)
	resume := p.Version != 0
	for delay := firstDelay; ; delay = min(2*delay, lastDelay) {
		before := p
		err := m.watchStore(ctx, api.NewWatchClient(conn), &p, resume)
		if ctx.Err() != nil {
			return
		}
		// The manager may no longer have the changes since then, for example after it
		// was away for a long time. Then the next attempt begins with the present.
		resume = p != before
		log.L.Debugf("watch the cluster: %v", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
		if resume {
			delay = firstDelay
		}
	}
}

// watchStore reports changes until the watch ends.
func (m *member) watchStore(ctx context.Context, client api.WatchClient, p *position, resume bool) error {
	req := &api.WatchRequest{IncludeOldObject: true}
	if resume {
		req.ResumeFrom = &api.Version{Index: p.Version}
	}
	for _, kind := range watched {
		req.Entries = append(req.Entries, &api.WatchRequest_WatchEntry{
			Kind: kind, Action: api.WatchActionKindCreate | api.WatchActionKindUpdate | api.WatchActionKindRemove,
		})
	}
	stream, err := client.Watch(ctx, req)
	if err != nil {
		return err
	}
	for {
		msg, err := stream.Recv()
		if err != nil {
			return err
		}
		next := *p
		var list []event.Message
		for _, e := range msg.Events {
			one, ok := eventOf(e, time.Now())
			if !ok {
				continue
			}
			next.Reported++
			one.Source = fmt.Sprintf("swarm/%s:%d", p.Stream, next.Reported)
			list = append(list, one)
		}
		if msg.Version != nil {
			next.Version = msg.Version.Index
		}
		if len(list) > 0 {
			if err := m.s.engine.Report(ctx, list); err != nil {
				return err
			}
		}
		*p = next
		if len(list) > 0 {
			if err := p.save(ours.StateDir(m.s.o.DataRoot)); err != nil {
				log.L.Warnf("record which events of the swarm are reported: %v", err)
			}
		}
	}
}

// actions are Docker's names of the changes.
var actions = map[api.WatchActionKind]string{
	api.WatchActionKindCreate: "create", api.WatchActionKindUpdate: "update", api.WatchActionKindRemove: "remove",
}

// eventOf is the event of a change, as Docker reports it. now is the time of a removal.
func eventOf(e *api.WatchMessage_Event, now time.Time) (event.Message, bool) {
	action, ok := actions[e.Action]
	if !ok || e.Object == nil {
		return event.Message{}, false
	}
	var kind, id string
	var meta api.Meta
	attributes := map[string]string{}
	old := e.OldObject
	if old == nil || e.Action != api.WatchActionKindUpdate {
		old = &api.Object{}
	}
	switch o := e.Object.Object.(type) {
	case *api.Object_Node:
		kind, id, meta = "node", o.Node.ID, o.Node.Meta
		attributes["name"] = nodeName(o.Node)
		nodeChanges(attributes, o.Node, old.GetNode())
	case *api.Object_Service:
		kind, id, meta = "service", o.Service.ID, o.Service.Meta
		attributes["name"] = o.Service.Spec.Annotations.Name
		serviceChanges(attributes, o.Service, old.GetService())
	case *api.Object_Network:
		kind, id, meta = "network", o.Network.ID, o.Network.Meta
		attributes["name"] = o.Network.Spec.Annotations.Name
	case *api.Object_Secret:
		kind, id, meta = "secret", o.Secret.ID, o.Secret.Meta
		attributes["name"] = o.Secret.Spec.Annotations.Name
	case *api.Object_Config:
		kind, id, meta = "config", o.Config.ID, o.Config.Meta
		attributes["name"] = o.Config.Spec.Annotations.Name
	default:
		return event.Message{}, false
	}
	at := now
	stamp := meta.UpdatedAt
	if e.Action == api.WatchActionKindCreate {
		stamp = meta.CreatedAt
	}
	if stamp != nil && e.Action != api.WatchActionKindRemove {
		at = time.Unix(stamp.Seconds, int64(stamp.Nanos))
	}
	m := event.New(kind, action, id, attributes, at)
	m.Scope = "swarm"
	return m, true
}

func nodeName(n *api.Node) string {
	if n.Spec.Annotations.Name == "" && n.Description != nil {
		return n.Description.Hostname
	}
	return n.Spec.Annotations.Name
}

// change adds what a value was and what it is.
func change(attributes map[string]string, name, was, is string) {
	if was != is {
		attributes[name+".old"], attributes[name+".new"] = strings.ToLower(was), strings.ToLower(is)
	}
}

func nodeChanges(attributes map[string]string, n, old *api.Node) {
	if old == nil {
		return
	}
	change(attributes, "availability", old.Spec.Availability.String(), n.Spec.Availability.String())
	change(attributes, "role", old.Role.String(), n.Role.String())
	change(attributes, "state", old.Status.State.String(), n.Status.State.String())
	if n.ManagerStatus != nil && old.ManagerStatus != nil {
		change(attributes, "leader", strconv.FormatBool(old.ManagerStatus.Leader), strconv.FormatBool(n.ManagerStatus.Leader))
		change(attributes, "reachability", old.ManagerStatus.Reachability.String(), n.ManagerStatus.Reachability.String())
	}
}

func serviceChanges(attributes map[string]string, s, old *api.Service) {
	if old == nil {
		return
	}
	if was, is := old.Spec.GetReplicated(), s.Spec.GetReplicated(); was != nil && is != nil {
		change(attributes, "replicas", strconv.FormatUint(was.Replicas, 10), strconv.FormatUint(is.Replicas, 10))
	}
	if was, is := old.Spec.Task.GetContainer(), s.Spec.Task.GetContainer(); was != nil && is != nil && was.Image != is.Image {
		// A reference is not put into lower case: tags have both.
		attributes["image.old"], attributes["image.new"] = was.Image, is.Image
	}
	switch was, is := old.UpdateStatus, s.UpdateStatus; {
	case is == nil:
	case was == nil:
		attributes["updatestate.new"] = strings.ToLower(is.State.String())
	default:
		change(attributes, "updatestate", was.State.String(), is.State.String())
	}
}
