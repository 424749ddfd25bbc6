// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"holdfast/internal/container"
	"holdfast/internal/event"
	"holdfast/internal/network"
	"holdfast/internal/shim/proto"
)

// journal writes the events of containers, and of what they use, to the journal of
// events.
type journal struct {
	events   Events
	networks Networks // for the drivers of networks
	log      *slog.Logger
}

// emit journals an event for something that the daemon did.
func (j *journal) emit(typ, action, id string, attributes map[string]string, at time.Time) {
	j.append(event.Message{Type: typ, Action: action, Actor: event.Actor{ID: id, Attributes: attributes}}, at)
}

func (j *journal) append(m event.Message, at time.Time) {
	m.Scope = "local"
	m.Time, m.TimeNano = at.Unix(), at.UnixNano()
	if _, err := j.events.Append(m); err != nil {
		j.log.Error("an event could not be journalled", "type", m.Type, "action", m.Action, "id", m.Actor.ID, "error", err)
	}
}

// created journals that a container was created. It is idempotent.
func (j *journal) created(spec container.Spec, req request, at time.Time) {
	j.once("create", spec, attributesOf(spec, req), at)
}

// destroyed journals that a container was removed. It is idempotent.
func (j *journal) destroyed(spec container.Spec, req request) {
	j.once("destroy", spec, attributesOf(spec, req), time.Now())
}

// once journals an event of which a container has only one.
func (j *journal) once(action string, spec container.Spec, attributes map[string]string, at time.Time) {
	j.append(event.Message{
		Type: "container", Action: action, Actor: event.Actor{ID: spec.ID, Attributes: attributes},
		Source: spec.ID + "/" + action + ":1",
	}, at)
}

// record journals a shim's entry. It is idempotent: an entry that an earlier daemon
// has journalled is not added again.
func (j *journal) record(a *actor, entry shimEntry, life uint64) {
	j.append(messageOf(a.id, attributesOf(a.spec, a.req), entry, life), entry.Time)
}

// messageOf converts a shim's entry to an event of the API.
func messageOf(id string, attributes map[string]string, entry shimEntry, life uint64) event.Message {
	at := attributes
	for k, v := range entry.Attributes {
		at[k] = v
	}
	action := entry.Action
	if h := entry.Attributes["health"]; h != "" {
		action += ": " + h
		delete(at, "health")
	}
	return event.Message{
		Type: "container", Action: action, Scope: "local",
		Actor: event.Actor{ID: id, Attributes: at},
		Time:  entry.Time.Unix(), TimeNano: entry.Time.UnixNano(),
		Source: entrySource(id, life, entry.Seq),
	}
}

// entrySource identifies a shim's journal entry, so that it is journalled once.
func entrySource(id string, life, seq uint64) string {
	return fmt.Sprintf("%s:%d", entryStream(id, life), seq)
}

// entryStream identifies the journal of the shim of a life.
func entryStream(id string, life uint64) string { return fmt.Sprintf("%s/%d", id, life) }

// through returns the number up to which all entries of the shim of a life are in the
// journal of events, so that no daemon asks the shim for them again.
func (j *journal) through(id string, life uint64) uint64 {
	return j.events.Through(entryStream(id, life))
}

type shimEntry = proto.Entry

// endpoints journals that a container joined its networks, or left them.
func (j *journal) endpoints(action string, s network.Sandbox) {
	for _, ep := range s.Endpoints {
		j.endpoint(action, s.Container, ep)
	}
}

func (j *journal) endpoint(action, id string, ep network.Endpoint) {
	driver := ""
	if n, err := j.networks.Network(ep.NetworkID); err == nil {
		driver = n.Driver
	}
	j.emit("network", action, ep.NetworkID, map[string]string{"container": id, "name": ep.Network, "type": driver}, time.Now())
}

// volume journals an event of a volume.
func (j *journal) volume(action, name string, attributes map[string]string) {
	j.emit("volume", action, name, attributes, time.Now())
}

// mounts journals that a container has mounted its volumes.
func (j *journal) mounts(id string, mounts []mountPoint) {
	for _, m := range mounts {
		if m.volume() {
			j.volume("mount", m.Name, map[string]string{
				"container": id, "destination": m.Destination, "driver": m.Driver,
				"propagation": string(m.Propagation), "read/write": strconv.FormatBool(m.RW),
			})
		}
	}
}

// unmounts journals that a container has unmounted its volumes.
func (j *journal) unmounts(id string, mounts []mountPoint) {
	for _, m := range mounts {
		if m.volume() {
			j.volume("unmount", m.Name, map[string]string{"container": id, "driver": m.Driver})
		}
	}
}

// givenBack journals what giveBack released.
func (j *journal) givenBack(id string, sandbox network.Sandbox, mounts []mountPoint) {
	j.endpoints("disconnect", sandbox)
	j.unmounts(id, mounts)
}
