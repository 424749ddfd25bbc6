// SPDX-License-Identifier: Apache-2.0

package format

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// A decoder keeps parts of the last record. Whatever it has read before, it
// must read a record as encoding/json does.
func TestDecoderAgreesWithEncodingJSONOnRecordsInAnyOrder(t *testing.T) {
	times := []string{
		"2026-03-04T12:00:00.000000001Z", "2026-03-04T12:00:00.1Z", "2026-03-04T12:00:00.123456789Z", "2026-03-04T12:00:00Z",
		"2026-03-04T12:00:00.1234567891Z", "2026-03-04T12:00:01.5Z", "2026-03-04T12:00:00.5+01:00", "2026-03-04T12:00:00.25-00:30",
		"2026-03-04T12:00:00,5Z", "2026-03-04T12:00:00.Z", "2026-03-04T12:00:00.5xZ", "2026-13-04T12:00:00.5Z", "Z", "",
	}
	texts := []string{
		"", "a", "plain text of some length\n", "\"quoted\" and \\slashed\\ \n", "tab\tand\x01control\n", "grüße → 𝄞\n", "<&>\u2028\n",
		"12345678", "1234567\"", "12345678\"", "1234567\\", strings.Repeat("x", 100) + "\n",
	}
	attrs := []map[string]string{nil, {"a": "b"}, {"a": `c","time":"x`}}
	sources := []string{"stdout", "stderr"}
	random := rand.New(rand.NewPCG(1, 2))
	var dec JSONDecoder
	for range 20000 {
		text, _ := json.Marshal(texts[random.IntN(len(texts))])
		record := fmt.Sprintf(`{"log":%s,"stream":"%s",`, text, sources[random.IntN(2)])
		if a := attrs[random.IntN(len(attrs))]; a != nil {
			b, _ := json.Marshal(a)
			record += fmt.Sprintf(`"attrs":%s,`, b)
		}
		record += fmt.Sprintf(`"time":"%s"}`, times[random.IntN(len(times))])
		got, ok := dec.Decode([]byte(record + "\n"))
		var want struct {
			Log, Stream string
			Attrs       map[string]string
			Time        time.Time
		}
		if err := json.Unmarshal([]byte(record), &want); (err == nil) != ok {
			t.Fatalf("%s: decoded: %v, but encoding/json says: %v", record, ok, err)
		}
		if ok && (string(got.Line) != want.Log || got.Source != want.Stream || !got.Time.Equal(want.Time) || !maps.Equal(got.Attrs, want.Attrs)) {
			t.Fatalf("%s: decoded as %+v, want %+v", record, got, want)
		}
	}
}

// Each byte at each place within the eight that are tested at once.
func TestPlainBytesEndAtEachSpecialByte(t *testing.T) {
	for place := range 17 {
		for c := range 256 {
			p := []byte(strings.Repeat("\xff", place) + string([]byte{byte(c)}) + strings.Repeat("\x80", 16))
			want := len(p)
			if c == '"' || c == '\\' || c < 0x20 {
				want = place
			}
			if got := plain(p); got != want {
				t.Errorf("%q: %d plain bytes, want %d", p, got, want)
			}
		}
	}
}
