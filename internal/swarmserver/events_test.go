// SPDX-License-Identifier: Apache-2.0

package swarmserver

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	types "github.com/gogo/protobuf/types"
	"github.com/moby/swarmkit/v2/api"
)

func TestEventsOfChangesAreDockers(t *testing.T) {
	now := time.Unix(100, 0)
	service := func(image string, replicas uint64, state *api.UpdateStatus) *api.Object {
		return &api.Object{Object: &api.Object_Service{Service: &api.Service{
			ID: "s", Meta: api.Meta{CreatedAt: &types.Timestamp{Seconds: 5}, UpdatedAt: &types.Timestamp{Seconds: 7}},
			Spec: api.ServiceSpec{
				Annotations: api.Annotations{Name: "web"},
				Task:        api.TaskSpec{Runtime: &api.TaskSpec_Container{Container: &api.ContainerSpec{Image: image}}},
				Mode:        &api.ServiceSpec_Replicated{Replicated: &api.ReplicatedService{Replicas: replicas}},
			},
			UpdateStatus: state,
		}}}
	}
	node := func(state api.NodeStatus_State, leader bool) *api.Object {
		return &api.Object{Object: &api.Object_Node{Node: &api.Node{
			ID: "n", Description: &api.NodeDescription{Hostname: "host"}, Status: api.NodeStatus{State: state},
			ManagerStatus: &api.ManagerStatus{Leader: leader},
		}}}
	}
	for _, c := range []struct {
		name     string
		action   api.WatchActionKind
		is, was  *api.Object
		kind, do string
		at       int64
		want     map[string]string
	}{
		{"create", api.WatchActionKindCreate, service("a:1", 1, nil), nil, "service", "create", 5, map[string]string{"name": "web"}},
		{
			"update", api.WatchActionKindUpdate, service("A:2", 3, &api.UpdateStatus{State: api.UpdateStatus_UPDATING}), service("A:1", 1, nil), "service", "update", 7,
			map[string]string{"name": "web", "image.old": "A:1", "image.new": "A:2", "replicas.old": "1", "replicas.new": "3", "updatestate.new": "updating"},
		},
		{
			"end of an update", api.WatchActionKindUpdate, service("a", 1, &api.UpdateStatus{State: api.UpdateStatus_COMPLETED}),
			service("a", 1, &api.UpdateStatus{State: api.UpdateStatus_UPDATING}), "service", "update", 7,
			map[string]string{"name": "web", "updatestate.old": "updating", "updatestate.new": "completed"},
		},
		{"remove", api.WatchActionKindRemove, service("a", 1, nil), service("b", 2, nil), "service", "remove", 100, map[string]string{"name": "web"}},
		{
			"node", api.WatchActionKindUpdate, node(api.NodeStatus_READY, true), node(api.NodeStatus_DOWN, false), "node", "update", 100,
			map[string]string{"name": "host", "state.old": "down", "state.new": "ready", "leader.old": "false", "leader.new": "true"},
		},
	} {
		m, ok := eventOf(&api.WatchMessage_Event{Action: c.action, Object: c.is, OldObject: c.was}, now)
		if !ok || m.Type != c.kind || m.Action != c.do || m.Scope != "swarm" || m.Time != c.at || !maps.Equal(m.Actor.Attributes, c.want) {
			t.Errorf("%s: %v %+v", c.name, ok, m)
		}
	}
	if m, ok := eventOf(&api.WatchMessage_Event{Action: api.WatchActionKindCreate, Object: &api.Object{Object: &api.Object_Task{Task: &api.Task{}}}}, now); ok {
		t.Errorf("a task: %+v", m)
	}
}

func TestPositionIsStoredAndADamagedOneIsBegunAnew(t *testing.T) {
	dir := t.TempDir()
	p := loadPosition(dir)
	p.Reported, p.Version = 3, 9
	if err := p.save(dir); err != nil {
		t.Fatal(err)
	}
	if got := loadPosition(dir); got != p {
		t.Errorf("%+v, want %+v", got, p)
	}
	if err := os.WriteFile(filepath.Join(dir, positionFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := loadPosition(dir); got.Stream == "" || got.Stream == p.Stream || got.Reported != 0 || got.Version != 0 {
		t.Errorf("of a damaged file: %+v", got)
	}
}
