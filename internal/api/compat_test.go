// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// get decodes the answer of GET path at a version.
func get(t *testing.T, f *fake, version, path string) any {
	t.Helper()
	w := ask(handler(f), "GET", "/v"+version+path, "")
	if w.Code != 200 {
		t.Fatalf("%s %s: %d %q", version, path, w.Code, w.Body)
	}
	var v any
	if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// at follows a path of keys and, for lists, [0]. ok reports whether the value
// exists.
func at(v any, path string) (any, bool) {
	for _, key := range strings.Split(path, ".") {
		switch c := v.(type) {
		case map[string]any:
			next, ok := c[key]
			if !ok {
				return nil, false
			}
			v = next
		case []any:
			if key != "0" || len(c) == 0 {
				return nil, false
			}
			v = c[0]
		default:
			return nil, false
		}
	}
	return v, true
}

// absent marks a field that must not be in the answer.
const absent = "\x00absent"

type field struct {
	version, path string
	want          any
}

func check(t *testing.T, f *fake, url string, fields []field) {
	t.Helper()
	for _, c := range fields {
		got, ok := at(get(t, f, c.version, url), c.path)
		if c.want == absent {
			if ok {
				t.Errorf("%s %s: %s is %v, want it left out", c.version, url, c.path, got)
			}
			continue
		}
		a, _ := json.Marshal(got)
		b, _ := json.Marshal(c.want)
		if !ok || string(a) != string(b) {
			t.Errorf("%s %s: %s is %s (there: %v), want %s", c.version, url, c.path, a, ok, b)
		}
	}
}

func TestContainerInspectInTheFormOfEachVersion(t *testing.T) {
	id := strings.Repeat("0123456789ab", 5)
	f := &fake{inspect: container.InspectResponse{
		ID: id, Driver: "overlayfs", Config: &container.Config{Hostname: "h"},
		Storage:                 &storage.Storage{RootFS: &storage.RootFSStorage{Snapshot: &storage.RootFSStorageSnapshot{Name: "overlayfs"}}},
		ImageManifestDescriptor: &ocispec.Descriptor{MediaType: "m"},
		NetworkSettings: &container.NetworkSettings{SandboxID: "s", Networks: map[string]*network.EndpointSettings{
			"bridge": {
				EndpointID: "e", IPAddress: netip.MustParseAddr("172.17.0.2"), IPPrefixLen: 16,
				Gateway: netip.MustParseAddr("172.17.0.1"), MacAddress: network.HardwareAddr{2, 0, 0, 0, 0, 1},
			},
			"mine": {Aliases: []string{"db"}},
		}},
	}}
	const ns = "NetworkSettings."
	check(t, f, "/containers/w/json", []field{
		{"1.52", ns + "IPAddress", absent},
		{"1.52", ns + "SandboxID", "s"},
		{"1.52", ns + "Networks.bridge.IPAddress", "172.17.0.2"},
		{"1.52", "GraphDriver", absent},
		{"1.52", "Storage.RootFS.Snapshot.Name", "overlayfs"},
		{"1.52", "Config.OnBuild", absent},
		{"1.51", ns + "IPAddress", "172.17.0.2"},
		{"1.51", ns + "IPPrefixLen", 16},
		{"1.51", ns + "Gateway", "172.17.0.1"},
		{"1.51", ns + "MacAddress", "02:00:00:00:00:01"},
		{"1.51", ns + "EndpointID", "e"},
		{"1.51", ns + "IPv6Gateway", ""},
		{"1.51", ns + "SecondaryIPAddresses", nil},
		{"1.51", ns + "HairpinMode", false},
		{"1.51", ns + "SandboxID", "s"},
		{"1.51", ns + "Networks.mine.Aliases", []string{"db"}},
		{"1.51", "GraphDriver.Name", "overlayfs"},
		{"1.51", "Storage", absent},
		{"1.51", "Config.OnBuild", nil},
		{"1.51", "Config.Hostname", "h"},
		{"1.48", "ImageManifestDescriptor.mediaType", "m"},
		{"1.47", "ImageManifestDescriptor", absent},
		{"1.45", ns + "Networks.mine.Aliases", []string{"db"}},
		{"1.44", ns + "Networks.mine.Aliases", []string{"db", "0123456789ab", "h"}},
		{"1.44", ns + "Networks.bridge.Aliases", nil},
		{"1.24", ns + "IPAddress", "172.17.0.2"},
	})
	if got := f.inspect.NetworkSettings.Networks["mine"].Aliases; len(got) != 1 {
		t.Errorf("the engine's own answer was changed: %v", got)
	}
}

func TestParentOfAnImageIsToldInAllVersions(t *testing.T) {
	check(t, &fake{parent: "sha256:2"}, "/images/a/json", []field{
		{"1.56", "Parent", "sha256:2"},
		{"1.51", "Parent", "sha256:2"},
		{"1.40", "Parent", "sha256:2"},
	})
}

func TestImageInspectInTheFormOfEachVersion(t *testing.T) {
	f := &fake{image: image.InspectResponse{
		ID: "sha256:1", Size: 7, Descriptor: &ocispec.Descriptor{}, Identity: &image.Identity{},
		Config: &dockerspec.DockerOCIImageConfig{ImageConfig: ocispec.ImageConfig{Cmd: []string{"sh"}}},
	}}
	check(t, f, "/images/a/json", []field{
		{"1.53", "Identity", map[string]any{}},
		{"1.52", "Identity", absent},
		{"1.52", "Config.Cmd", []string{"sh"}},
		{"1.52", "Config.Entrypoint", absent},
		{"1.52", "Parent", absent},
		{"1.52", "RepoTags", []string{}},
		{"1.51", "Config.Cmd", []string{"sh"}},
		{"1.51", "Config.Entrypoint", nil},
		{"1.51", "Config.WorkingDir", ""},
		{"1.51", "Config.Hostname", absent},
		{"1.51", "Parent", ""},
		{"1.51", "DockerVersion", ""},
		{"1.51", "GraphDriver.Name", ""},
		{"1.51", "Size", 7},
		{"1.49", "Config.Hostname", ""},
		{"1.48", "Descriptor.size", 0},
		{"1.47", "Descriptor", absent},
		{"1.45", "Container", absent},
		{"1.44", "Container", ""},
		{"1.44", "ContainerConfig", nil},
		{"1.44", "VirtualSize", absent},
		{"1.44", "Created", absent},
		{"1.43", "VirtualSize", 7},
		{"1.43", "Created", "0001-01-01T00:00:00Z"},
	})
}

func TestImageListInTheFormOfEachVersion(t *testing.T) {
	f := &fake{images: []image.Summary{{ID: "sha256:1", Size: 7, Containers: 2, Descriptor: &ocispec.Descriptor{}, Manifests: []image.ManifestSummary{{ID: "m"}}}}}
	check(t, f, "/images/json", []field{
		{"1.51", "0.Containers", 2},
		{"1.51", "0.RepoTags", []string{}},
		{"1.51", "0.VirtualSize", absent},
		{"1.50", "0.Containers", -1},
		{"1.48", "0.Descriptor.size", 0},
		{"1.47", "0.Descriptor", absent},
		{"1.47", "0.Manifests.0.ID", "m"},
		{"1.46", "0.Manifests", absent},
		{"1.43", "0.VirtualSize", 7},
		{"1.43", "0.RepoTags", []string{}},
		{"1.42", "0.RepoTags", []string{"<none>:<none>"}},
		{"1.42", "0.RepoDigests", []string{"<none>@<none>"}},
	})
	if w := ask(handler(f), "GET", "/v1.40/images/json?filter=busybox&shared-size=1", ""); w.Code != 200 || f.last() != "ImageList({All:false Manifests:false SharedSize:false Filters:map[reference:[busybox]]})" {
		t.Errorf("%d, called %s", w.Code, f.last())
	}
}

func TestInfoInTheFormOfEachVersion(t *testing.T) {
	check(t, &fake{}, "/info", []field{
		{"1.52", "ContainerdCommit", map[string]string{"ID": "abc"}},
		{"1.52", "KernelMemoryTCP", absent},
		{"1.51", "KernelMemoryTCP", absent},
		{"1.47", "RegistryConfig.AllowNondistributableArtifactsCIDRs", absent},
		{"1.46", "RegistryConfig.AllowNondistributableArtifactsCIDRs", nil},
		{"1.46", "RegistryConfig.AllowNondistributableArtifactsHostnames", nil},
		{"1.50", "BridgeNfIptables", absent},
		{"1.49", "BridgeNfIptables", false},
		{"1.49", "BridgeNfIp6tables", false},
		{"1.49", "ContainerdCommit.Expected", absent},
		{"1.48", "ContainerdCommit.Expected", "abc"},
		{"1.44", "Runtimes.runc.status.k", "v"},
		{"1.43", "Runtimes.runc.status", absent},
		{"1.43", "Runtimes.runc.path", "runc"},
		{"1.43", "ID", "daemon"},
	})
}

func TestDiskUsageInTheFormOfEachVersion(t *testing.T) {
	f := &fake{usage: system.DiskUsage{
		ImageUsage:      &image.DiskUsage{TotalSize: 5, TotalCount: 1, Items: []image.Summary{{ID: "i"}}},
		ContainerUsage:  &container.DiskUsage{TotalCount: 1, Items: []container.Summary{{ID: "c"}}},
		VolumeUsage:     &volume.DiskUsage{TotalCount: 1, Items: []volume.Volume{{Name: "v"}}},
		BuildCacheUsage: &build.DiskUsage{},
	}}
	check(t, f, "/system/df", []field{
		{"1.53", "ImageUsage.TotalSize", 5},
		{"1.53", "ImageUsage.Items.0.Id", "i"},
		{"1.53", "Images.0.Id", "i"}, // unless verbose is requested, as in dockerd
		{"1.52", "ImageUsage.TotalSize", 5},
		{"1.52", "Images.0.Id", "i"},
		{"1.51", "ImageUsage", absent},
		{"1.51", "LayersSize", 5},
		{"1.51", "Images.0.Id", "i"},
		{"1.51", "Containers.0.Id", "c"},
		{"1.51", "Volumes.0.Name", "v"},
		{"1.51", "BuildCache", []string{}},
	})
	check(t, f, "/system/df?verbose=1", []field{
		{"1.53", "ImageUsage.Items.0.Id", "i"},
		{"1.53", "VolumeUsage.Items.0.Name", "v"},
		{"1.52", "Images", absent},
		{"1.51", "ImageUsage", absent},
	})
	check(t, f, "/system/df?type=image", []field{{"1.42", "Containers", absent}, {"1.42", "Images.0.Id", "i"}, {"1.42", "LayersSize", 5}})
	check(t, f, "/system/df?type=volume", []field{{"1.42", "LayersSize", absent}, {"1.53", "LayersSize", absent}})
	if f.usage.ImageUsage.Items == nil {
		t.Error("the engine's own answer was changed")
	}
}

func TestNetworkInTheFormOfEachVersion(t *testing.T) {
	check(t, &fake{}, "/networks/n", []field{{"1.52", "Status", map[string]any{"IPAM": map[string]any{}}}, {"1.51", "Status", absent}})
	check(t, &fake{}, "/networks", []field{{"1.28", "0.Containers", absent}, {"1.27", "0.Containers", nil}})
	check(t, &fake{}, "/networks/", []field{{"1.44", "0.Name", "n"}})
}

// create sends a create request at a version and returns the request that the
// engine receives.
func create(t *testing.T, version, body string) (*fake, container.CreateResponse) {
	t.Helper()
	f := &fake{}
	w := ask(handler(f), "POST", "/v"+version+"/containers/create?name=w&platform=linux/arm64", body, "Content-Type", "application/json")
	if w.Code != 201 {
		t.Fatalf("%s: %d %q", version, w.Code, w.Body)
	}
	var res container.CreateResponse
	if err := json.Unmarshal(w.Body.Bytes(), &res); err != nil {
		t.Fatal(err)
	}
	return f, res
}

func TestCreateRequestsOfOlderVersionsKeepTheirMeaning(t *testing.T) {
	const body = `{"Image":"a","Unknown":1,"Healthcheck":{"StartInterval":5},"HostConfig":{"Umask":18,"ConsoleSize":[3,4],"Annotations":{"a":"b"},
		"Mounts":[{"Type":"bind","Source":"/a","Target":"/b","ReadOnly":true,"BindOptions":{"CreateMountpoint":true,"NonRecursive":true},"TmpfsOptions":{}},
		{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"Options":[["exec"]]}}]}}`
	for _, c := range []struct {
		since int // the minor version from which it is respected
		what  string
		holds func(f *fake) bool
	}{
		{56, "Umask", func(f *fake) bool { return f.created.Request.HostConfig.Umask != nil }},
		{46, "tmpfs options", func(f *fake) bool { return f.created.Request.HostConfig.Mounts[1].TmpfsOptions.Options != nil }},
		{44, "StartInterval", func(f *fake) bool { return f.created.Request.Healthcheck.StartInterval != 0 }},
		{44, "recursive read-only", func(f *fake) bool {
			return !f.created.Request.HostConfig.Mounts[0].BindOptions.ReadOnlyNonRecursive
		}},
		{43, "Annotations", func(f *fake) bool { return f.created.Request.HostConfig.Annotations != nil }},
		{42, "ConsoleSize", func(f *fake) bool { return f.created.Request.HostConfig.ConsoleSize != [2]uint{} }},
		{42, "CreateMountpoint", func(f *fake) bool { return f.created.Request.HostConfig.Mounts[0].BindOptions.CreateMountpoint }},
		{42, "options of another type", func(f *fake) bool { return f.created.Request.HostConfig.Mounts[0].TmpfsOptions != nil }},
		{41, "platform", func(f *fake) bool { return f.created.Platform != nil }},
		{41, "default of CgroupnsMode", func(f *fake) bool { return f.created.Request.HostConfig.CgroupnsMode == "" }},
		{40, "default of IpcMode", func(f *fake) bool { return f.created.Request.HostConfig.IpcMode == "" }},
		{40, "NonRecursive", func(f *fake) bool { return f.created.Request.HostConfig.Mounts[0].BindOptions.NonRecursive }},
	} {
		for minor, want := range map[int]bool{c.since: true, c.since - 1: false} {
			f, _ := create(t, "1."+itoa(minor), body)
			if c.holds(f) != want {
				t.Errorf("1.%d: %s is respected: %v, want %v", minor, c.what, !want, want)
			}
		}
	}
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

func TestContainerWideMACAddressMovesToTheMainNetwork(t *testing.T) {
	const mac = "02:00:00:00:00:07"
	for _, c := range []struct {
		name, version, body, endpoint string
		moved, warned                 bool
	}{
		{"default network", "1.43", `{"Image":"a","MacAddress":"` + mac + `"}`, "default", true, false},
		{"named network", "1.43", `{"Image":"a","MacAddress":"` + mac + `","HostConfig":{"NetworkMode":"mine"}}`, "mine", true, false},
		{"endpoint that is there", "1.43", `{"Image":"a","MacAddress":"` + mac + `","HostConfig":{"NetworkMode":"mine"},"NetworkingConfig":{"EndpointsConfig":{"mine":{"Aliases":["x"]}}}}`, "mine", true, false},
		{"endpoint on the bridge", "1.44", `{"Image":"a","MacAddress":"` + mac + `","HostConfig":{"NetworkMode":"default"},"NetworkingConfig":{"EndpointsConfig":{"bridge":null}}}`, "bridge", true, true},
		{"with a warning", "1.51", `{"Image":"a","MacAddress":"` + mac + `"}`, "default", true, true},
		{"ignored", "1.52", `{"Image":"a","MacAddress":"` + mac + `"}`, "default", false, false},
	} {
		f, res := create(t, c.version, c.body)
		ep := f.created.Request.NetworkingConfig.EndpointsConfig[c.endpoint]
		if moved := ep != nil && ep.MacAddress.String() == mac; moved != c.moved {
			t.Errorf("%s: endpoint %s is %+v", c.name, c.endpoint, ep)
		}
		if (len(res.Warnings) > 0) != c.warned {
			t.Errorf("%s: warnings %q", c.name, res.Warnings)
		}
	}
	f, _ := create(t, "1.43", `{"Image":"a","NetworkingConfig":{"EndpointsConfig":{"n":{"MacAddress":"`+mac+`"}}}}`)
	if ep := f.created.Request.NetworkingConfig.EndpointsConfig["n"]; len(ep.MacAddress) != 0 {
		t.Errorf("1.43 has no MAC addresses of endpoints, got %v", ep.MacAddress)
	}
}

func TestCommandsMayBeStrings(t *testing.T) {
	f, _ := create(t, "1.44", `{"Image":"a","Cmd":"echo hi","Entrypoint":["sh","-c"]}`)
	if r := f.created.Request; len(r.Cmd) != 1 || r.Cmd[0] != "echo hi" || len(r.Entrypoint) != 2 {
		t.Errorf("command %q, entry point %q", r.Cmd, r.Entrypoint)
	}
}

func TestOldClientsDefaults(t *testing.T) {
	for _, c := range []struct{ method, path, want string }{
		{"POST", "/v1.41/containers/w/stop?t=3&signal=INT", "ContainerStop(w,  3)"},
		{"POST", "/v1.42/containers/w/stop?t=3&signal=INT", "ContainerStop(w, INT 3)"},
		{"POST", "/v1.41/volumes/prune", "VolumesPrune(map[all:[true]])"},
		{"POST", "/v1.42/volumes/prune", "VolumesPrune(map[])"},
		{"GET", "/v1.41/system/df?type=image", "DiskUsage({Containers:true Images:true Volumes:true BuildCache:true})"},
		{"GET", "/v1.44/containers/json?limit=-1&all=0", "ContainerList({All:false Limit:0 Size:false Filters:map[]})"},
	} {
		f := &fake{}
		if w := ask(handler(f), c.method, c.path, ""); w.Code >= 300 || f.last() != c.want {
			t.Errorf("%s: %d, called %s, want %s", c.path, w.Code, f.last(), c.want)
		}
	}
	f := &fake{}
	f.wait = func(context.Context) <-chan container.WaitResponse {
		c := make(chan container.WaitResponse, 1)
		c <- container.WaitResponse{StatusCode: 1, Error: &container.WaitExitError{Message: "x"}}
		return c
	}
	for path, want := range map[string]string{
		"/v1.33/containers/w/wait?condition=removed": "",
		"/v1.34/containers/w/wait?condition=removed": `{"Error":{"Message":"x"},"StatusCode":1}` + "\n",
		"/v1.29/containers/w/wait?condition=odd":     `{"Error":{"Message":"x"},"StatusCode":1}` + "\n",
	} {
		if w := ask(handler(f), "POST", path, ""); w.Code != 200 || w.Body.String() != want {
			t.Errorf("%s: %d %q, want %q", path, w.Code, w.Body, want)
		}
	}
}
