// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	moby "github.com/moby/moby/api/types/container"
)

// A request has over a hundred members, of which mostly a dozen are set. Members with
// zero values are not stored, because a daemon that starts decodes all requests,
// which is most of its work.

// encode encodes the request for Spec.API.
func (r request) encode() (json.RawMessage, error) {
	config, err := terse(r.Config, noConfig())
	if err != nil {
		return nil, err
	}
	host, err := terse(r.HostConfig, noHostConfig())
	if err != nil {
		return nil, err
	}
	stored := struct {
		Config, HostConfig json.RawMessage
		Networking         any           `json:",omitempty"`
		Only               bool          `json:",omitempty"`
		Fixed              *fixedOptions `json:"Kept,omitempty"`
	}{Config: config, HostConfig: host, Only: r.Only, Fixed: r.Fixed}
	if r.Networking != nil {
		stored.Networking = r.Networking
	}
	return json.Marshal(stored)
}

// decodeRequest decodes what encode wrote. It also decodes requests of earlier
// releases, which stored all members.
func decodeRequest(text json.RawMessage) (r request, err error) {
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("the container's request can't be decoded: %w", err)
	}
	if r.Config == nil || r.HostConfig == nil {
		return r, errors.New("the container's request is incomplete")
	}
	return r, nil
}

var (
	noConfig     = sync.OnceValue(func() map[string]json.RawMessage { return mustMembers(moby.Config{}) })
	noHostConfig = sync.OnceValue(func() map[string]json.RawMessage { return mustMembers(moby.HostConfig{}) })
)

func mustMembers(v any) map[string]json.RawMessage {
	m, err := members(v)
	if err != nil {
		panic(err) // can't happen: v is the zero value of a fixed type
	}
	return m
}

func members(v any) (m map[string]json.RawMessage, err error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	err = json.Unmarshal(text, &m)
	return m, err
}

// terse encodes v without the members that are encoded as in zero, which has the
// members of v's zero value: decoding sets an absent member to zero.
func terse(v any, zero map[string]json.RawMessage) (json.RawMessage, error) {
	m, err := members(v)
	if err != nil {
		return nil, err
	}
	for name, text := range m {
		if bytes.Equal(text, zero[name]) {
			delete(m, name)
		}
	}
	if m == nil { // v is nil
		return json.RawMessage("null"), nil
	}
	return json.Marshal(m)
}
