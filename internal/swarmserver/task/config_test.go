// SPDX-License-Identifier: Apache-2.0

package task

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	gogotypes "github.com/gogo/protobuf/types"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/swarmkit/v2/api"
	"github.com/moby/swarmkit/v2/manager/allocator/networkallocator"
)

// sample is a task with a container.
func sample(spec *api.ContainerSpec) *api.Task {
	return &api.Task{
		ID: "task1", ServiceID: "service1", NodeID: "node1", Slot: 2, ServiceAnnotations: api.Annotations{Name: "web"},
		Spec: api.TaskSpec{Runtime: &api.TaskSpec_Container{Container: spec}},
	}
}

func described(t *testing.T, task *api.Task) *container.CreateRequest {
	t.Helper()
	req, err := request(task, nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func TestContainerIsNamedAndLabelledAfterItsTask(t *testing.T) {
	task := sample(&api.ContainerSpec{Image: "app", Labels: map[string]string{"com.docker.swarm.task.id": "forged", "own": "1"}})
	req := described(t, task)
	if nameOf(task) != "web.2.task1" || req.Image != "app:latest" {
		t.Errorf("%s %s", nameOf(task), req.Image)
	}
	if l := req.Labels; l["com.docker.swarm.task.id"] != "task1" || l["own"] != "1" || l["com.docker.swarm.service.name"] != "web" {
		t.Errorf("%v", l)
	}
	if req.HostConfig.RestartPolicy.Name != container.RestartPolicyDisabled {
		t.Errorf("restart policy %v: the cluster starts tasks again", req.HostConfig.RestartPolicy)
	}
	task.Slot = 0
	if nameOf(task) != "web.node1.task1" {
		t.Errorf("the task of a global service is called %s", nameOf(task))
	}
}

func TestEveryPartOfASpecificationReachesTheContainer(t *testing.T) {
	task := sample(&api.ContainerSpec{
		Image: "app", Command: []string{"/bin/app"}, Args: []string{"-v"}, Env: []string{"A=1"}, Dir: "/w", User: "7", Groups: []string{"8"}, Hostname: "h",
		TTY: true, OpenStdin: true, ReadOnly: true, StopSignal: "SIGINT", StopGracePeriod: gogotypes.DurationProto(3 * time.Second),
		Hosts: []string{"10.0.0.1 one alias"}, Sysctls: map[string]string{"a.b": "1"}, CapabilityAdd: []string{"CAP_NET_RAW"}, OomScoreAdj: 5,
		Mounts:      []api.Mount{{Type: api.MountTypeVolume, Source: "data", Target: "/data"}},
		DNSConfig:   &api.ContainerSpec_DNSConfig{Nameservers: []string{"10.0.0.2"}, Search: []string{"s"}},
		Healthcheck: &api.HealthConfig{Test: []string{"CMD", "true"}},
		Privileges:  &api.Privileges{NoNewPrivileges: true, Seccomp: &api.Privileges_SeccompOpts{Mode: api.Privileges_SeccompOpts_UNCONFINED}},
		Ulimits:     []*api.ContainerSpec_Ulimit{{Name: "nofile", Soft: 10, Hard: 20}}, PidsLimit: 9,
	})
	task.Spec.Resources = &api.ResourceRequirements{Limits: &api.Resources{NanoCPUs: 5e8, MemoryBytes: 1 << 26}}
	task.LogDriver = &api.Driver{Name: "local", Options: map[string]string{"max-size": "1m"}}
	task.Endpoint = &api.Endpoint{Ports: []*api.PortConfig{
		{Protocol: api.ProtocolTCP, TargetPort: 80, PublishedPort: 8080, PublishMode: api.PublishModeHost},
		{Protocol: api.ProtocolTCP, TargetPort: 81, PublishedPort: 8081, PublishMode: api.PublishModeIngress},
	}}
	req, err := request(task, []mount.Mount{{Type: mount.TypeBind, Source: "/s", Target: "/run/secrets/s", ReadOnly: true}})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"Entrypoint":["/bin/app"]`, `"Cmd":["-v"]`, `"Env":["A=1"]`, `"WorkingDir":"/w"`, `"User":"7"`, `"GroupAdd":["8"]`, `"Hostname":"h"`, `"Tty":true`,
		`"OpenStdin":true`, `"ReadonlyRootfs":true`, `"StopSignal":"SIGINT"`, `"StopTimeout":3`, `"ExtraHosts":["one:10.0.0.1"]`, `"a.b":"1"`,
		`"CapAdd":["CAP_NET_RAW"]`, `"OomScoreAdj":5`, `"Source":"data","Target":"/data"`, `"/run/secrets/s"`, `"Dns":["10.0.0.2"]`, `"DnsSearch":["s"]`,
		`"Test":["CMD","true"]`, `"no-new-privileges=true"`, `"seccomp=unconfined"`, `"nofile"`, `"PidsLimit":9`, `"NanoCpus":500000000`, `"Memory":67108864`,
		`"Type":"local"`, `"80/tcp":[{"HostIp":"","HostPort":"8080"}]`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("there is no %s in %s", want, text)
		}
	}
	if strings.Contains(string(text), "8081") {
		t.Error("a port of the routing mesh is published on the host")
	}
}

func TestTaskUsesTheNetworkOfItsHost(t *testing.T) {
	task := sample(&api.ContainerSpec{Image: "app"})
	own := map[string]string{networkallocator.PredefinedLabel: "true"}
	task.Networks = []*api.NetworkAttachment{{Network: &api.Network{Spec: api.NetworkSpec{Annotations: api.Annotations{Name: "host", Labels: own}}}}}
	if mode := described(t, task).HostConfig.NetworkMode; mode != "host" {
		t.Errorf("network %s", mode)
	}
}

func TestTaskHasItsAddressesOnOverlayNetworks(t *testing.T) {
	task := sample(&api.ContainerSpec{Image: "app"})
	over := func(id string, internal bool) *api.NetworkAttachment {
		return &api.NetworkAttachment{
			Network:   &api.Network{ID: id, Spec: api.NetworkSpec{Annotations: api.Annotations{Name: "n" + id}, Internal: internal}},
			Addresses: []string{"10.0." + id + ".5/24"}, Aliases: []string{"a" + id},
		}
	}
	task.Networks = []*api.NetworkAttachment{over("2", true), over("1", true)}
	req := described(t, task)
	settings := req.NetworkingConfig.EndpointsConfig
	if req.HostConfig.NetworkMode != "n2" || len(settings) != 2 {
		t.Errorf("network %s, settings %v", req.HostConfig.NetworkMode, settings)
	}
	if s := settings["n1"]; s.NetworkID != "1" || s.IPAMConfig.IPv4Address.String() != "10.0.1.5" || s.MacAddress.String() != "02:42:0a:00:01:05" || s.Aliases[0] != "a1" {
		t.Errorf("%+v", s)
	}
	task.Networks = append(task.Networks, over("3", false))
	if settings := described(t, task).NetworkingConfig.EndpointsConfig; len(settings) != 4 || settings[GatewayNetwork] == nil {
		t.Errorf("a task that may reach other hosts has %v", settings)
	}
	task.Networks[0].Addresses = nil
	if _, err := request(task, nil); err == nil || !strings.Contains(err.Error(), "no address on the network n2") {
		t.Errorf("%v", err)
	}
}
