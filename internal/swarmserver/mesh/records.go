// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// The records that nodes tell each other, in the formats of moby (EndpointRecord in
// daemon/libnetwork/agent.proto, PeerRecord in drivers/overlay/overlay.proto), so that
// Docker's nodes understand them.

// The tables of the records, by moby's names.
const (
	endpointTable = "endpoint_table"
	peerTable     = "overlay_peer_table"
)

// endpointRecord tells that a task, or a container, can be used under its names.
type endpointRecord struct {
	Name        string // of the container
	Service     string
	ServiceID   string
	VirtualIP   string
	EndpointIP  string
	Ports       []portRecord // of the routing mesh
	Aliases     []string     // of the service
	TaskAliases []string
	// Disabled: it takes no new connections, because it is about to end.
	Disabled bool
}

// portRecord is a port that the routing mesh publishes.
type portRecord struct {
	Name      string
	Protocol  uint32 // 0 TCP, 1 UDP, 2 SCTP
	Target    uint32
	Published uint32
}

// peerRecord tells on which host an address is.
type peerRecord struct {
	EndpointIP, EndpointMAC, TunnelEndpointIP string
}

func appendText(b []byte, field protowire.Number, text string) []byte {
	if text == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), text)
}

func appendNumber(b []byte, field protowire.Number, n uint64) []byte {
	if n == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), n)
}

func (r endpointRecord) encode() (b []byte) {
	for i, text := range []string{r.Name, r.Service, r.ServiceID, r.VirtualIP, r.EndpointIP} {
		b = appendText(b, protowire.Number(i+1), text)
	}
	for _, p := range r.Ports {
		var port []byte
		port = appendText(port, 1, p.Name)
		for i, n := range []uint32{p.Protocol, p.Target, p.Published} {
			port = appendNumber(port, protowire.Number(i+2), uint64(n))
		}
		b = protowire.AppendBytes(protowire.AppendTag(b, 6, protowire.BytesType), port)
	}
	for _, a := range r.Aliases {
		b = appendText(b, 7, a)
	}
	for _, a := range r.TaskAliases {
		b = appendText(b, 8, a)
	}
	if r.Disabled {
		b = appendNumber(b, 9, 1)
	}
	return b
}

func (r peerRecord) encode() (b []byte) {
	for i, text := range []string{r.EndpointIP, r.EndpointMAC, r.TunnelEndpointIP} {
		b = appendText(b, protowire.Number(i+1), text)
	}
	return b
}

// fields calls see with each field of a message. Fields of other types are left out:
// later releases may add some.
func fields(b []byte, see func(field protowire.Number, text []byte, n uint64) error) error {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		var text []byte
		var number uint64
		switch kind {
		case protowire.BytesType:
			text, n = protowire.ConsumeBytes(b)
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(b)
		default:
			n = protowire.ConsumeFieldValue(field, kind, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if err := see(field, text, number); err != nil {
			return err
		}
	}
	return nil
}

func decodeEndpoint(b []byte) (r endpointRecord, err error) {
	err = fields(b, func(field protowire.Number, text []byte, n uint64) error {
		switch field {
		case 1:
			r.Name = string(text)
		case 2:
			r.Service = string(text)
		case 3:
			r.ServiceID = string(text)
		case 4:
			r.VirtualIP = string(text)
		case 5:
			r.EndpointIP = string(text)
		case 6:
			p, err := decodePort(text)
			r.Ports = append(r.Ports, p)
			return err
		case 7:
			r.Aliases = append(r.Aliases, string(text))
		case 8:
			r.TaskAliases = append(r.TaskAliases, string(text))
		case 9:
			r.Disabled = n != 0
		}
		return nil
	})
	if err != nil {
		return r, fmt.Errorf("the record of an endpoint: %w", err)
	}
	return r, nil
}

func decodePort(b []byte) (p portRecord, err error) {
	err = fields(b, func(field protowire.Number, text []byte, n uint64) error {
		switch field {
		case 1:
			p.Name = string(text)
		case 2:
			p.Protocol = uint32(n)
		case 3:
			p.Target = uint32(n)
		case 4:
			p.Published = uint32(n)
		}
		return nil
	})
	return p, err
}

func decodePeer(b []byte) (r peerRecord, err error) {
	err = fields(b, func(field protowire.Number, text []byte, _ uint64) error {
		switch field {
		case 1:
			r.EndpointIP = string(text)
		case 2:
			r.EndpointMAC = string(text)
		case 3:
			r.TunnelEndpointIP = string(text)
		}
		return nil
	})
	if err != nil {
		return r, fmt.Errorf("the record of a peer: %w", err)
	}
	return r, nil
}
