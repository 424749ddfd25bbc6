// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestMobyClientReachesEveryOperation calls each operation with the client
// library that the docker command is built on, and checks the call that arrives
// at the engine.
func TestMobyClientReachesEveryOperation(t *testing.T) {
	ctx := t.Context()
	seven := 7
	arm := ocispec.Platform{OS: "linux", Architecture: "arm64"}
	labels := client.Filters{}.Add("label", "a=b")
	for _, c := range []struct {
		name string
		do   func(c *client.Client) error
		want string
	}{
		{"create", func(c *client.Client) error {
			r, err := c.ContainerCreate(ctx, client.ContainerCreateOptions{
				Name: "web", Platform: &arm, Config: &container.Config{Image: "busybox", Cmd: []string{"true"}},
			})
			if err == nil && r.ID != "c1" {
				t.Errorf("created %q", r.ID)
			}
			return err
		}, "ContainerCreate(web, linux/arm64/, busybox, [true])"},
		{"list", func(c *client.Client) error {
			_, err := c.ContainerList(ctx, client.ContainerListOptions{All: true, Size: true, Limit: 3, Filters: labels})
			return err
		}, "ContainerList({All:true Limit:3 Size:true Filters:map[label:[a=b]]})"},
		{"inspect", func(c *client.Client) error {
			_, err := c.ContainerInspect(ctx, "web", client.ContainerInspectOptions{Size: true})
			return err
		}, "ContainerInspect(web, true)"},
		{"start", func(c *client.Client) error {
			_, err := c.ContainerStart(ctx, "web", client.ContainerStartOptions{})
			return err
		}, "ContainerStart(web)"},
		{"stop", func(c *client.Client) error {
			_, err := c.ContainerStop(ctx, "web", client.ContainerStopOptions{Signal: "INT", Timeout: &seven})
			return err
		}, "ContainerStop(web, INT 7)"},
		{"stop with defaults", func(c *client.Client) error {
			_, err := c.ContainerStop(ctx, "web", client.ContainerStopOptions{})
			return err
		}, "ContainerStop(web,  default)"},
		{"restart", func(c *client.Client) error {
			_, err := c.ContainerRestart(ctx, "web", client.ContainerRestartOptions{Timeout: &seven})
			return err
		}, "ContainerRestart(web,  7)"},
		{"kill", func(c *client.Client) error {
			_, err := c.ContainerKill(ctx, "web", client.ContainerKillOptions{Signal: "HUP"})
			return err
		}, "ContainerKill(web, HUP)"},
		{"pause", func(c *client.Client) error {
			_, err := c.ContainerPause(ctx, "web", client.ContainerPauseOptions{})
			return err
		}, "ContainerPause(web)"},
		{"unpause", func(c *client.Client) error {
			_, err := c.ContainerUnpause(ctx, "web", client.ContainerUnpauseOptions{})
			return err
		}, "ContainerUnpause(web)"},
		{"rename", func(c *client.Client) error {
			_, err := c.ContainerRename(ctx, "web", client.ContainerRenameOptions{NewName: "shop"})
			return err
		}, "ContainerRename(web, shop)"},
		{"update", func(c *client.Client) error {
			r, err := c.ContainerUpdate(ctx, "web", client.ContainerUpdateOptions{Resources: &container.Resources{Memory: 99}})
			if err == nil && len(r.Warnings) != 1 {
				t.Errorf("warnings %q", r.Warnings)
			}
			return err
		}, "ContainerUpdate(web, 99)"},
		{"remove", func(c *client.Client) error {
			_, err := c.ContainerRemove(ctx, "web", client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
			return err
		}, "ContainerRemove(web, {Force:true Volumes:true Link:false})"},
		{"resize", func(c *client.Client) error {
			_, err := c.ContainerResize(ctx, "web", client.ContainerResizeOptions{Height: 24, Width: 80})
			return err
		}, "ContainerResize(web, 24, 80)"},
		{"top", func(c *client.Client) error {
			_, err := c.ContainerTop(ctx, "web", client.ContainerTopOptions{Arguments: []string{"-e", "-f"}})
			return err
		}, "ContainerTop(web, -e -f)"},
		{"stat a path", func(c *client.Client) error {
			r, err := c.ContainerStatPath(ctx, "web", client.ContainerStatPathOptions{Path: "/a b"})
			if err == nil && (r.Stat.Name != "f" || r.Stat.Size != 3) {
				t.Errorf("stat %+v", r.Stat)
			}
			return err
		}, "ContainerStatPath(web, /a b)"},
		{"copy from", func(c *client.Client) error {
			r, err := c.CopyFromContainer(ctx, "web", client.CopyFromContainerOptions{SourcePath: "/a"})
			if err != nil {
				return err
			}
			defer r.Content.Close()
			b, err := io.ReadAll(r.Content)
			if string(b) != "tar" || r.Stat.Name != "f" {
				t.Errorf("copied %q, %+v", b, r.Stat)
			}
			return err
		}, "ContainerArchive(web, /a)"},
		{"copy to", func(c *client.Client) error {
			_, err := c.CopyToContainer(ctx, "web", client.CopyToContainerOptions{DestinationPath: "/a", Content: strings.NewReader("tar"), CopyUIDGID: true})
			return err
		}, "ContainerExtract(web, /a, {NoOverwriteDirNonDir:true CopyUIDGID:true}, tar)"},
		{"export", func(c *client.Client) error {
			r, err := c.ContainerExport(ctx, "web", client.ContainerExportOptions{})
			if err != nil {
				return err
			}
			defer r.Close()
			b, err := io.ReadAll(r)
			if string(b) != "tar" {
				t.Errorf("exported %q", b)
			}
			return err
		}, "ContainerExport(web)"},
		{"commit", func(c *client.Client) error {
			r, err := c.ContainerCommit(ctx, "web", client.ContainerCommitOptions{Reference: "img:1", Comment: "c", Author: "me", Changes: []string{"CMD x"}, NoPause: true})
			if err == nil && r.ID != "sha256:1" {
				t.Errorf("committed %q", r.ID)
			}
			return err
		}, "ContainerCommit(web, {Ref:docker.io/library/img:1 Author:me Comment:c Changes:[CMD x] Pause:false Config:<nil>}, false)"},
		{"changes", func(c *client.Client) error {
			r, err := c.ContainerDiff(ctx, "web", client.ContainerDiffOptions{})
			if err == nil && (len(r.Changes) != 1 || r.Changes[0].Path != "/a") {
				t.Errorf("changes %+v", r.Changes)
			}
			return err
		}, "ContainerChanges(web)"},
		{"prune containers", func(c *client.Client) error {
			r, err := c.ContainerPrune(ctx, client.ContainerPruneOptions{Filters: labels})
			if err == nil && r.Report.SpaceReclaimed != 7 {
				t.Errorf("reclaimed %d", r.Report.SpaceReclaimed)
			}
			return err
		}, "ContainersPrune(map[label:[a=b]])"},
		{"exec create", func(c *client.Client) error {
			r, err := c.ExecCreate(ctx, "web", client.ExecCreateOptions{Cmd: []string{"sh"}})
			if err == nil && r.ID != "e1" {
				t.Errorf("exec %q", r.ID)
			}
			return err
		}, "ExecCreate(web, [sh])"},
		{"exec start, detached", func(c *client.Client) error {
			_, err := c.ExecStart(ctx, "e1", client.ExecStartOptions{Detach: true})
			return err
		}, "ExecStart(e1, true, false)"},
		{"exec resize", func(c *client.Client) error {
			_, err := c.ExecResize(ctx, "e1", client.ExecResizeOptions{Height: 1, Width: 2})
			return err
		}, "ExecResize(e1, 1, 2)"},
		{"exec inspect", func(c *client.Client) error {
			r, err := c.ExecInspect(ctx, "e1", client.ExecInspectOptions{})
			if err == nil && r.PID != 42 {
				t.Errorf("pid %d", r.PID)
			}
			return err
		}, "ExecInspect(e1)"},

		{"push", func(c *client.Client) error {
			r, err := c.ImagePush(ctx, "r.example/busybox:1.37", client.ImagePushOptions{Platform: &arm, RegistryAuth: "eyJ1c2VybmFtZSI6Im1lIn0="})
			if err != nil {
				return err
			}
			return r.Wait(ctx)
		}, "ImagePush(r.example/busybox:1.37, linux/arm64/, me, false)"},
		{"save", func(c *client.Client) error {
			r, err := c.ImageSave(ctx, []string{"a", "b:1"}, client.ImageSaveWithPlatforms(arm))
			if err != nil {
				return err
			}
			defer r.Close()
			b, err := io.ReadAll(r)
			if string(b) != "tar" {
				t.Errorf("saved %q", b)
			}
			return err
		}, "ImageSave([a b:1], 1)"},
		{"pull", func(c *client.Client) error {
			r, err := c.ImagePull(ctx, "busybox:1.37", client.ImagePullOptions{Platforms: []ocispec.Platform{arm}, RegistryAuth: "eyJ1c2VybmFtZSI6Im1lIn0="})
			if err != nil {
				return err
			}
			return r.Wait(ctx)
		}, "ImagePull(docker.io/library/busybox:1.37, linux/arm64/, me, false)"},
		{"pull all tags", func(c *client.Client) error {
			r, err := c.ImagePull(ctx, "host:5000/a/b", client.ImagePullOptions{All: true})
			if err != nil {
				return err
			}
			return r.Wait(ctx)
		}, "ImagePull(host:5000/a/b, host, anonymous, true)"},
		{"pull by digest", func(c *client.Client) error {
			r, err := c.ImagePull(ctx, "busybox@sha256:"+strings.Repeat("a", 64), client.ImagePullOptions{})
			if err != nil {
				return err
			}
			return r.Wait(ctx)
		}, "ImagePull(docker.io/library/busybox@sha256:" + strings.Repeat("a", 64) + ", host, anonymous, false)"},
		{"import", func(c *client.Client) error {
			r, err := c.ImageImport(ctx, client.ImageImportSource{Source: strings.NewReader("tar"), SourceName: "-"}, "mine",
				client.ImageImportOptions{Tag: "v1", Message: "hello", Changes: []string{"CMD a", "ENV b=c"}, Platform: arm})
			if err != nil {
				return err
			}
			defer r.Close()
			b, err := io.ReadAll(r)
			if !strings.Contains(string(b), `"status":"sha256:1"`) {
				t.Errorf("import answered %q", b)
			}
			return err
		}, "ImageImport(tar, docker.io/library/mine:v1, hello, [CMD a ENV b=c], linux/arm64/)"},
		{"load", func(c *client.Client) error {
			r, err := c.ImageLoad(ctx, strings.NewReader("tar"), client.ImageLoadWithPlatforms(arm, ocispec.Platform{OS: "linux", Architecture: "amd64"}))
			if err != nil {
				return err
			}
			return r.Close()
		}, "ImageLoad(2)"},
		{"list images", func(c *client.Client) error {
			_, err := c.ImageList(ctx, client.ImageListOptions{All: true, SharedSize: true, Manifests: true, Filters: labels})
			return err
		}, "ImageList({All:true Manifests:true SharedSize:true Filters:map[label:[a=b]]})"},
		{"inspect image", func(c *client.Client) error {
			_, err := c.ImageInspect(ctx, "host:5000/a/b:c", client.ImageInspectWithPlatform(&arm))
			return err
		}, "ImageInspect(host:5000/a/b:c, linux/arm64/, false)"},
		{"inspect image with manifests", func(c *client.Client) error {
			_, err := c.ImageInspect(ctx, "b", client.ImageInspectWithManifests(true))
			return err
		}, "ImageInspect(b, host, true)"},
		{"history", func(c *client.Client) error {
			_, err := c.ImageHistory(ctx, "a/b", client.ImageHistoryWithPlatform(arm))
			return err
		}, "ImageHistory(a/b, linux/arm64/)"},
		{"tag", func(c *client.Client) error {
			_, err := c.ImageTag(ctx, client.ImageTagOptions{Source: "a/b", Target: "host:5000/c:d"})
			return err
		}, "ImageTag(a/b, host:5000/c:d)"},
		{"remove image", func(c *client.Client) error {
			_, err := c.ImageRemove(ctx, "a/b:c", client.ImageRemoveOptions{Force: true, PruneChildren: true})
			return err
		}, "ImageRemove(a/b:c, true, false)"},
		{"prune images", func(c *client.Client) error {
			_, err := c.ImagePrune(ctx, client.ImagePruneOptions{Filters: client.Filters{}.Add("dangling", "false")})
			return err
		}, "ImagesPrune(map[dangling:[false]])"},

		{"create volume", func(c *client.Client) error {
			_, err := c.VolumeCreate(ctx, client.VolumeCreateOptions{Name: "data", Driver: "local"})
			return err
		}, "VolumeCreate(data, local)"},
		{"list volumes", func(c *client.Client) error {
			_, err := c.VolumeList(ctx, client.VolumeListOptions{Filters: labels})
			return err
		}, "VolumeList(map[label:[a=b]])"},
		{"inspect volume", func(c *client.Client) error {
			_, err := c.VolumeInspect(ctx, "data", client.VolumeInspectOptions{})
			return err
		}, "VolumeInspect(data)"},
		{"remove volume", func(c *client.Client) error {
			_, err := c.VolumeRemove(ctx, "data", client.VolumeRemoveOptions{Force: true})
			return err
		}, "VolumeRemove(data, true)"},
		{"prune volumes", func(c *client.Client) error {
			_, err := c.VolumePrune(ctx, client.VolumePruneOptions{All: true})
			return err
		}, "VolumesPrune(map[all:[true]])"},

		{"create network", func(c *client.Client) error {
			_, err := c.NetworkCreate(ctx, "front", client.NetworkCreateOptions{Driver: "bridge"})
			return err
		}, "NetworkCreate(front, bridge)"},
		{"list networks", func(c *client.Client) error {
			_, err := c.NetworkList(ctx, client.NetworkListOptions{Filters: labels})
			return err
		}, "NetworkList(map[label:[a=b]])"},
		{"inspect network", func(c *client.Client) error {
			r, err := c.NetworkInspect(ctx, "front", client.NetworkInspectOptions{Scope: "local", Verbose: true})
			if err == nil && r.Network.Status == nil {
				t.Error("network has no status at the newest version")
			}
			return err
		}, "NetworkInspect(front, local, true)"},
		{"connect", func(c *client.Client) error {
			_, err := c.NetworkConnect(ctx, "front", client.NetworkConnectOptions{Container: "web"})
			return err
		}, "NetworkConnect(front, web)"},
		{"disconnect", func(c *client.Client) error {
			_, err := c.NetworkDisconnect(ctx, "front", client.NetworkDisconnectOptions{Container: "web", Force: true})
			return err
		}, "NetworkDisconnect(front, web, true)"},
		{"remove network", func(c *client.Client) error {
			_, err := c.NetworkRemove(ctx, "front", client.NetworkRemoveOptions{})
			return err
		}, "NetworkRemove(front)"},
		{"prune networks", func(c *client.Client) error {
			_, err := c.NetworkPrune(ctx, client.NetworkPruneOptions{})
			return err
		}, "NetworksPrune(map[])"},

		{"info", func(c *client.Client) error {
			_, err := c.Info(ctx, client.InfoOptions{})
			return err
		}, "Info()"},
		{"version", func(c *client.Client) error {
			v, err := c.ServerVersion(ctx, client.ServerVersionOptions{})
			if err == nil && (v.APIVersion != "1.56" || v.MinAPIVersion != "1.24") {
				t.Errorf("versions %q to %q", v.MinAPIVersion, v.APIVersion)
			}
			return err
		}, "Version()"},
		{"disk usage", func(c *client.Client) error {
			_, err := c.DiskUsage(ctx, client.DiskUsageOptions{Images: true, Volumes: true})
			return err
		}, "DiskUsage({Containers:false Images:true Volumes:true BuildCache:false})"},
		{"login", func(c *client.Client) error {
			r, err := c.RegistryLogin(ctx, client.RegistryLoginOptions{Username: "me"})
			if err == nil && r.Auth.Status != "Login Succeeded" {
				t.Errorf("status %q", r.Auth.Status)
			}
			return err
		}, "Auth(me)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fake{load: func(_ context.Context, src io.Reader, _ func(jsonstream.Message)) error {
				_, err := io.Copy(io.Discard, src)
				return err
			}}
			if err := c.do(dial(t, serve(t, f), "")); err != nil {
				t.Fatal(err)
			}
			if got := f.last(); got != c.want {
				t.Errorf("the engine was called\n  %s\nwant\n  %s", got, c.want)
			}
		})
	}
}

// TestWaitAnswersItsHeadBeforeTheContainerEnds: docker run registers its wait,
// and starts the container only then.
func TestWaitAnswersItsHeadBeforeTheContainerEnds(t *testing.T) {
	answer := make(chan container.WaitResponse, 1)
	f := &fake{wait: func(context.Context) <-chan container.WaitResponse { return answer }}
	c := dial(t, serve(t, f), "")
	// ContainerWait of the client returns once the head is there.
	res := c.ContainerWait(t.Context(), "web", client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	select {
	case r := <-res.Result:
		t.Fatalf("answered %+v before the container ended", r)
	case err := <-res.Error:
		t.Fatal(err)
	default:
	}
	if got := f.last(); got != "ContainerWait(web, next-exit)" {
		t.Fatalf("called %s", got)
	}
	answer <- container.WaitResponse{StatusCode: 3}
	select {
	case r := <-res.Result:
		if r.StatusCode != 3 {
			t.Errorf("status %d, want 3", r.StatusCode)
		}
	case err := <-res.Error:
		t.Fatal(err)
	case <-time.After(10 * time.Second):
		t.Fatal("no answer")
	}
}

func TestPingTellsWhatClientsNegotiateWith(t *testing.T) {
	c := dial(t, serve(t, &fake{}), "")
	p, err := c.Ping(t.Context(), client.PingOptions{NegotiateAPIVersion: true})
	if err != nil {
		t.Fatal(err)
	}
	if p.APIVersion != "1.56" || p.OSType != "linux" || p.Experimental || p.BuilderVersion != "1" || p.SwarmStatus.NodeState != "inactive" {
		t.Errorf("ping says %+v", p)
	}
	if c.ClientVersion() != client.MaxAPIVersion {
		t.Errorf("negotiated %s, want %s", c.ClientVersion(), client.MaxAPIVersion)
	}
}
