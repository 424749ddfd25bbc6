// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"encoding/hex"
	"reflect"
	"testing"
)

func TestRecordsHaveTheFormatOfMoby(t *testing.T) {
	e := endpointRecord{
		Name: "web.1.x", Service: "web", ServiceID: "s", VirtualIP: "10.0.1.2", EndpointIP: "10.0.1.3",
		Ports:   []portRecord{{Name: "p", Protocol: 1, Target: 80, Published: 8080}},
		Aliases: []string{"a"}, TaskAliases: []string{"t", "u"}, Disabled: true,
	}
	// The fields in the order of their numbers, as gogo/protobuf writes them.
	const endpoint = "0a077765622e312e78120377656" + "21a01732208" + "31302e302e312e32" + "2a08" + "31302e302e312e33" +
		"320a" + "0a0170" + "1001" + "1850" + "20903f" + "3a0161" + "420174" + "420175" + "4801"
	if got := hex.EncodeToString(e.encode()); got != endpoint {
		t.Errorf("endpoint\n%s, want\n%s", got, endpoint)
	}
	if back, err := decodeEndpoint(e.encode()); err != nil || !reflect.DeepEqual(back, e) {
		t.Errorf("%+v %v", back, err)
	}
	p := peerRecord{EndpointIP: "10.0.1.3", EndpointMAC: "02:42:0a:00:01:03", TunnelEndpointIP: "192.0.2.1"}
	if back, err := decodePeer(p.encode()); err != nil || back != p {
		t.Errorf("%+v %v", back, err)
	}
}

func FuzzRecords(f *testing.F) {
	f.Add(endpointRecord{Name: "n", Ports: []portRecord{{Target: 1}}, Disabled: true}.encode())
	f.Add([]byte{0x32, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Add([]byte{0x0b})
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeEndpoint(b); err == nil {
			if again, err := decodeEndpoint(r.encode()); err != nil || !sameButEmpty(r, again) {
				t.Errorf("%+v is read back as %+v (%v)", r, again, err)
			}
		}
		if r, err := decodePeer(b); err == nil {
			if again, err := decodePeer(r.encode()); err != nil || again != r {
				t.Errorf("%+v is read back as %+v (%v)", r, again, err)
			}
		}
	})
}

// sameButEmpty compares two records. Empty names in lists are not written.
func sameButEmpty(a, b endpointRecord) bool {
	for _, r := range []*endpointRecord{&a, &b} {
		r.Aliases, r.TaskAliases = full(r.Aliases), full(r.TaskAliases)
		if len(r.Ports) == 0 {
			r.Ports = nil
		}
	}
	return reflect.DeepEqual(a, b)
}

func full(list []string) (out []string) {
	for _, s := range list {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}
