package system

import (
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types"
	"github.com/moby/moby/api/types/events"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine"
)

// eventFilters are the terms that GET /events knows (API 1.56).
var eventFilters = []string{
	"config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope",
	"secret", "service", "type", "volume",
}

// legacyEvent has the fields of the time before Actor, which were sent until
// API 1.52.
type legacyEvent struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	events.Message
}

func (h *handlers) events(w http.ResponseWriter, r *wire.Request) error {
	arrived := time.Now()
	o := engine.EventsOptions{}
	var err error
	if o.Filters, err = r.Filters(); err != nil {
		return err
	}
	if err := o.Filters.Check(eventFilters...); err != nil {
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
	if o.Since.IsZero() && o.Until.IsZero() {
		// The head goes out before the engine is asked, as clients wait for it;
		// nothing that happens between the two may be missed.
		o.Since = arrived
	}

	s := wire.NewStream(w, eventsType(r))
	if err := s.Open(); err != nil {
		return err
	}
	legacy := r.Version.Before(52)
	return h.backend.Events(r.Context(), o, func(m events.Message) error {
		if !legacy {
			return s.Send(m)
		}
		l := legacyEvent{Message: m}
		switch m.Type {
		case events.ContainerEventType:
			l.Status, l.ID, l.From = string(m.Action), m.Actor.ID, m.Actor.Attributes["image"]
		case events.ImageEventType:
			l.Status, l.ID = string(m.Action), m.Actor.ID
		}
		return s.Send(l)
	})
}

// eventsType picks the stream's content type: application/json before API 1.52,
// then what the client accepts most, and application/x-ndjson for one that
// accepts anything.
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
				return offers[0]
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
