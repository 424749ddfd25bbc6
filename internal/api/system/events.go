// SPDX-License-Identifier: Apache-2.0

package system

import (
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine"
	"holdfast/internal/event"
)

func (h *handlers) events(w http.ResponseWriter, r *wire.Request) error {
	arrived := time.Now()
	o := engine.EventsOptions{}
	var err error
	if o.Filters, err = r.Filters(); err != nil {
		return err
	}
	if err := o.Filters.Check(event.Filters...); err != nil {
		return wire.Invalid("%w", err)
	}
	if o.Since, err = r.Time("since"); err != nil {
		return err
	}
	if o.Until, err = r.Time("until"); err != nil {
		return err
	}
	if !o.Since.IsZero() && !o.Until.IsZero() && o.Until.Before(o.Since) {
		return wire.Invalid("`since` time (%s) cannot be after `until` time (%s)", r.Query.Get("since"), r.Query.Get("until"))
	}
	follows := o.Until.IsZero() || o.Until.After(arrived)
	kind := eventsType(r)
	legacy := r.Version.Before(52)
	if hj := wire.NewHijacker(w, r); follows && hj.Hands() {
		taken, err := h.backend.GiveEvents(engine.GiveEventsOptions{
			EventsOptions: o, Legacy: legacy, Sequence: kind == types.MediaTypeJSONSequence,
			Hijack: func() (*engine.Client, []byte, error) {
				c, head, err := hj.TakeOver(kind, true)
				return (*engine.Client)(c), head, err
			},
		})
		if taken || err != nil {
			return err
		}
	}
	if o.Since.IsZero() && o.Until.IsZero() {
		// The head is sent before the engine is asked, because clients wait for
		// it. Events between the two must not be missed.
		o.Since = arrived
	}
	s := wire.NewStream(w, kind)
	if err := s.Open(); err != nil {
		return err
	}
	return h.backend.Events(r.Context(), o, func(m event.Message) error { return s.Send(m.Answer(legacy)) })
}

// eventsType selects the stream's content type: application/json before API
// 1.52, later the type that the client prefers, application/x-ndjson for one
// that accepts any, and application/jsonl for one without an Accept header.
func eventsType(r *wire.Request) string {
	if r.Version.Before(52) {
		return types.MediaTypeJSON
	}
	offers := []string{types.MediaTypeNDJSON, types.MediaTypeJSONLines, types.MediaTypeJSONSequence}
	if r.Version.Before(53) {
		offers = []string{types.MediaTypeNDJSON, types.MediaTypeJSONSequence}
	}
	best, bestQ := types.MediaTypeJSON, 0.0
	accepts := strings.Split(strings.Join(r.Header.Values("Accept"), ","), ",")
	for _, a := range accepts {
		if strings.TrimSpace(a) == "" {
			if len(accepts) == 1 {
				return types.MediaTypeJSONLines // as in Docker
			}
			continue
		}
		kind, params, err := mime.ParseMediaType(a)
		if err != nil {
			continue
		}
		q := 1.0
		if s, ok := params["q"]; ok {
			if q, err = strconv.ParseFloat(s, 64); err != nil {
				continue
			}
		}
		if kind == "*/*" || kind == "application/*" {
			kind = offers[0]
		}
		for _, offer := range offers {
			if kind == offer && q > bestQ {
				best, bestQ = offer, q
			}
		}
	}
	return best
}
