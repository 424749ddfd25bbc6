package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	moby "github.com/moby/moby/api/types/container"
)

// A request has over a hundred members and mostly says something with a dozen
// of them. What says nothing is not stored: a daemon that starts reads all
// requests, and reading is what it does most.

// encode is the request as a spec keeps it.
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
		Networking         any   `json:",omitempty"`
		Kept               *kept `json:",omitempty"`
	}{Config: config, HostConfig: host, Kept: r.Kept}
	if r.Networking != nil {
		stored.Networking = r.Networking
	}
	return json.Marshal(stored)
}

// decodeRequest reads what encode wrote, and what earlier releases did, with
// all members.
func decodeRequest(text json.RawMessage) (r request, err error) {
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("its request can't be read: %w", err)
	}
	if r.Config == nil || r.HostConfig == nil {
		return r, errors.New("its request is incomplete")
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
		panic(err) // of a type without a value
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

// terse is v without the members that read as in none, which is what its zero
// value is written as: a member that is absent is read as zero.
func terse(v any, none map[string]json.RawMessage) (json.RawMessage, error) {
	m, err := members(v)
	if err != nil {
		return nil, err
	}
	for name, text := range m {
		if bytes.Equal(text, none[name]) {
			delete(m, name)
		}
	}
	if m == nil { // v is nil
		return json.RawMessage("null"), nil
	}
	return json.Marshal(m)
}
