// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"

	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	"holdfast/internal/logs/reader"
	"holdfast/internal/shim/proto"
)

// logConfig is what the shim needs to write a container's log.
func logConfig(s Store, spec container.Spec, req request) (proto.Log, error) {
	c, err := oci.ParseLog(req.HostConfig.LogConfig)
	if err != nil {
		return proto.Log{}, err
	}
	attrs, err := c.Attributes(oci.LogInfo{
		ContainerID: spec.ID, ContainerName: "/" + spec.Name,
		ContainerImageID: spec.Image.ID, ContainerImageName: req.Config.Image,
		Config: req.Config, DaemonName: "holdfast",
	})
	if err != nil {
		return proto.Log{}, err
	}
	return proto.Log{
		Driver: c.Driver, Path: s.LogPath(spec.ID, c.Driver),
		MaxSize: c.MaxSize, MaxFiles: c.MaxFiles, Compress: c.Compress, Attrs: attrs,
	}, nil
}

func openLog(ctx context.Context, s Store, v *view, o reader.Options) (*reader.Reader, error) {
	driver := v.req.HostConfig.LogConfig.Type
	cfg := reader.Config{Driver: driver, Path: s.LogPath(v.spec.ID, driver)}
	// A configuration that can't be parsed must not prevent reading the log.
	if log, err := logConfig(s, v.spec, v.req); err == nil {
		cfg.Attrs = log.Attrs
	}
	return reader.Open(ctx, cfg, o)
}
