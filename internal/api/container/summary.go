// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/api/wire"
)

// Clients request the list of containers most often, and the answer grows with
// the number of containers. It is encoded here byte for byte as encoding/json
// would, in a tenth of the time. Rare values are left to that package. A test
// compares the two with all fields set.

// encoders are reused together with their buffers, which are large for a long
// list.
var encoders = sync.Pool{New: func() any { return new(encoder) }}

// writeSummaries answers with a list.
func writeSummaries(w http.ResponseWriter, list []container.Summary) error {
	e := encoders.Get().(*encoder)
	defer encoders.Put(e)
	e.text, e.err = e.text[:0], nil
	e.summaries(list)
	if e.err != nil {
		return fmt.Errorf("encode the answer: %w", e.err)
	}
	e.raw("\n")
	return wire.WriteEncoded(w, http.StatusOK, e.text)
}

// encoder appends JSON. After the first error it stops.
type encoder struct {
	text []byte
	err  error
}

func (e *encoder) summaries(list []container.Summary) {
	each(e, list, func(s container.Summary) { e.summary(&s) })
}

func (e *encoder) summary(s *container.Summary) {
	e.raw(`{"Id":`).string(s.ID)
	e.raw(`,"Names":`).strings(s.Names)
	e.raw(`,"Image":`).string(s.Image)
	e.raw(`,"ImageID":`).string(s.ImageID)
	if d := s.ImageManifestDescriptor; d != nil {
		e.raw(`,"ImageManifestDescriptor":`).descriptor(d)
	}
	e.raw(`,"Command":`).string(s.Command)
	e.raw(`,"Created":`).int(s.Created)
	e.raw(`,"Ports":`)
	each(e, s.Ports, e.port)
	if s.SizeRw != 0 {
		e.raw(`,"SizeRw":`).int(s.SizeRw)
	}
	if s.SizeRootFs != 0 {
		e.raw(`,"SizeRootFs":`).int(s.SizeRootFs)
	}
	e.raw(`,"Labels":`).strmap(s.Labels)
	e.raw(`,"State":`).string(string(s.State))
	e.raw(`,"Status":`).string(s.Status)
	e.raw(`,"HostConfig":{`)
	if s.HostConfig.NetworkMode != "" {
		e.raw(`"NetworkMode":`).string(s.HostConfig.NetworkMode)
	}
	if len(s.HostConfig.Annotations) > 0 {
		if s.HostConfig.NetworkMode != "" {
			e.raw(`,`)
		}
		e.raw(`"Annotations":`).strmap(s.HostConfig.Annotations)
	}
	e.raw(`}`)
	if h := s.Health; h != nil {
		e.raw(`,"Health":{"Status":`).string(string(h.Status))
		e.raw(`,"FailingStreak":`).int(int64(h.FailingStreak))
		e.raw(`}`)
	}
	e.raw(`,"NetworkSettings":`).networks(s.NetworkSettings)
	e.raw(`,"Mounts":`)
	each(e, s.Mounts, e.mount)
	e.raw(`}`)
}

func (e *encoder) descriptor(d *ocispec.Descriptor) {
	if len(d.URLs) > 0 || len(d.Annotations) > 0 || len(d.Data) > 0 || d.ArtifactType != "" || d.Platform == nil || d.Platform.OSVersion != "" || len(d.Platform.OSFeatures) > 0 {
		e.any(d)
		return
	}
	e.raw(`{"mediaType":`).string(d.MediaType)
	e.raw(`,"digest":`).string(string(d.Digest))
	e.raw(`,"size":`).int(d.Size)
	e.raw(`,"platform":{"architecture":`).string(d.Platform.Architecture)
	e.raw(`,"os":`).string(d.Platform.OS)
	if d.Platform.Variant != "" {
		e.raw(`,"variant":`).string(d.Platform.Variant)
	}
	e.raw(`}}`)
}

func (e *encoder) port(p container.PortSummary) {
	e.raw(`{"IP":`).addr(p.IP)
	e.raw(`,"PrivatePort":`).int(int64(p.PrivatePort))
	if p.PublicPort != 0 {
		e.raw(`,"PublicPort":`).int(int64(p.PublicPort))
	}
	e.raw(`,"Type":`).string(p.Type)
	e.raw(`}`)
}

func (e *encoder) networks(s *container.NetworkSettingsSummary) {
	if s == nil || s.Networks == nil {
		e.any(s)
		return
	}
	e.raw(`{"Networks":{`)
	for i, name := range names(s.Networks) {
		if i > 0 {
			e.raw(`,`)
		}
		e.string(name).raw(`:`).endpoint(s.Networks[name])
	}
	e.raw(`}}`)
}

func (e *encoder) endpoint(s *network.EndpointSettings) {
	if s == nil {
		e.raw(`null`)
		return
	}
	e.raw(`{"IPAMConfig":`)
	if s.IPAMConfig == nil {
		e.raw(`null`)
	} else {
		e.any(s.IPAMConfig)
	}
	e.raw(`,"Links":`).strings(s.Links)
	e.raw(`,"Aliases":`).strings(s.Aliases)
	e.raw(`,"DriverOpts":`).strmap(s.DriverOpts)
	e.raw(`,"GwPriority":`).int(int64(s.GwPriority))
	e.raw(`,"NetworkID":`).string(s.NetworkID)
	e.raw(`,"EndpointID":`).string(s.EndpointID)
	e.raw(`,"Gateway":`).addr(s.Gateway)
	e.raw(`,"IPAddress":`).addr(s.IPAddress)
	e.raw(`,"MacAddress":"`)
	for i, b := range s.MacAddress {
		if i > 0 {
			e.raw(`:`)
		}
		e.text = append(e.text, hex[b>>4], hex[b&15])
	}
	e.raw(`"`)
	e.raw(`,"IPPrefixLen":`).int(int64(s.IPPrefixLen))
	e.raw(`,"IPv6Gateway":`).addr(s.IPv6Gateway)
	e.raw(`,"GlobalIPv6Address":`).addr(s.GlobalIPv6Address)
	e.raw(`,"GlobalIPv6PrefixLen":`).int(int64(s.GlobalIPv6PrefixLen))
	e.raw(`,"DNSNames":`).strings(s.DNSNames)
	e.raw(`}`)
}

func (e *encoder) mount(m container.MountPoint) {
	e.raw(`{`)
	if m.Type != "" {
		e.raw(`"Type":`).string(string(m.Type)).raw(`,`)
	}
	if m.Name != "" {
		e.raw(`"Name":`).string(m.Name).raw(`,`)
	}
	e.raw(`"Source":`).string(m.Source)
	e.raw(`,"Destination":`).string(m.Destination)
	if m.Driver != "" {
		e.raw(`,"Driver":`).string(m.Driver)
	}
	e.raw(`,"Mode":`).string(m.Mode)
	e.raw(`,"RW":`)
	e.text = strconv.AppendBool(e.text, m.RW)
	e.raw(`,"Propagation":`).string(string(m.Propagation))
	e.raw(`}`)
}

const hex = "0123456789abcdef"

// names returns a map's keys, sorted.
func names[V any](m map[string]V) []string {
	list := make([]string, 0, 4)
	for name := range m {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// each writes a list; a nil list is null.
func each[T any](e *encoder, list []T, write func(T)) {
	if list == nil {
		e.raw(`null`)
		return
	}
	e.raw(`[`)
	for i, v := range list {
		if i > 0 {
			e.raw(`,`)
		}
		write(v)
	}
	e.raw(`]`)
}

func (e *encoder) raw(text string) *encoder {
	e.text = append(e.text, text...)
	return e
}

func (e *encoder) strings(list []string) {
	each(e, list, func(s string) { e.string(s) })
}

func (e *encoder) strmap(m map[string]string) {
	if m == nil {
		e.raw(`null`)
		return
	}
	e.raw(`{`)
	for i, k := range names(m) {
		if i > 0 {
			e.raw(`,`)
		}
		e.string(k).raw(`:`).string(m[k])
	}
	e.raw(`}`)
}

func (e *encoder) int(n int64) { e.text = strconv.AppendInt(e.text, n, 10) }

func (e *encoder) addr(a netip.Addr) {
	if !a.IsValid() {
		e.raw(`""`)
		return
	}
	if a.Zone() != "" { // a zone may contain any character
		e.string(a.String())
		return
	}
	e.raw(`"`)
	e.text = a.AppendTo(e.text)
	e.raw(`"`)
}

// string writes a string. If it needs escapes, encoding/json encodes it.
func (e *encoder) string(s string) *encoder {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			e.any(s)
			return e
		}
	}
	e.text = append(e.text, '"')
	e.text = append(e.text, s...)
	e.text = append(e.text, '"')
	return e
}

func (e *encoder) any(v any) {
	if e.err != nil {
		return
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	e.err = enc.Encode(v)
	e.text = append(e.text, bytes.TrimSuffix(buf.Bytes(), []byte("\n"))...)
}
