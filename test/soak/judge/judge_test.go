// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

// An hour with two samples each minute, or ten minutes with one every 15 seconds.
var lengths = map[string]struct{ span, step float64 }{"an hour": {3600, 30}, "ten minutes": {600, 15}}

// descriptors are those of the shims of 200 containers: 22 each, and those of the
// execs and clients that are under way at the moment of the sample.
func descriptors(r *rand.Rand, span, step float64, more func(at float64) float64) Series {
	s := Series{Name: "descriptors", Absolute: 12, Relative: 0.003}
	for at := 0.0; at <= span; at += step {
		under := float64(r.IntN(6) * 5)
		if r.IntN(15) == 0 {
			under += 60 // a start of many at once
		}
		s.Points = append(s.Points, Point{At: at, Value: 200*22 + under + more(at), Age: at})
	}
	return s
}

func TestLeakOfOneDescriptorPerRestartIsFound(t *testing.T) {
	for name, l := range lengths {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(300) {
				r := rand.New(rand.NewPCG(seed, 0))
				// Every fifth container ends every 90 seconds.
				v := descriptors(r, l.span, l.step, func(at float64) float64 { return math.Floor(at / 90 * 40) }).Judge()
				if v.Rises == "" {
					t.Errorf("seed %d: not found: %+v", seed, v)
				}
			}
		})
	}
}

func TestLeakInOneContainerAloneIsFound(t *testing.T) {
	// The series is the highest number of one shim.
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		s := Series{Absolute: 4}
		for at := 0.0; at <= 3600; at += 30 {
			s.Points = append(s.Points, Point{At: at, Value: 24 + float64(r.IntN(4)*3) + math.Floor(at/90), Age: at})
		}
		if v := s.Judge(); v.Rises == "" {
			t.Errorf("seed %d: not found: %+v", seed, v)
		}
	}
}

func TestNoiseAloneIsFlat(t *testing.T) {
	for name, l := range lengths {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(3000) {
				r := rand.New(rand.NewPCG(seed, 1))
				if v := descriptors(r, l.span, l.step, func(float64) float64 { return 0 }).Judge(); v.Rises != "" || !v.Judged {
					t.Errorf("seed %d: %+v", seed, v)
				}
			}
		})
	}
}

// A heap grows until it is collected, and is larger when there was more to do.
func heap(r *rand.Rand, leak float64) Series {
	s := Series{Absolute: 3, Relative: 0.15, Settle: 120}
	life, born, load := 0, 0.0, 0.0
	for at := 0.0; at <= 3600; at += 30 {
		if math.Mod(at, 600) == 120 || math.Mod(at, 600) == 0 {
			life, born = life+1, at
		}
		load = 0.8*load + r.NormFloat64() // it changes slowly
		age := at - born
		s.Points = append(s.Points, Point{At: at, Life: life, Age: age, Value: 40 + load + 6*r.Float64() - 15*math.Exp(-age/30) + leak*age})
	}
	return s
}

func TestHeapThatIsCollectedIsFlat(t *testing.T) {
	for seed := range uint64(3000) {
		if v := heap(rand.New(rand.NewPCG(seed, 2)), 0).Judge(); v.Rises != "" {
			t.Errorf("seed %d: %+v", seed, v)
		}
	}
}

func TestLeakThatEndsWithEachLifeIsFound(t *testing.T) {
	// 50 kB per second, in daemons that live for 2 and 8 minutes.
	for seed := range uint64(300) {
		if v := heap(rand.New(rand.NewPCG(seed, 3)), 0.05).Judge(); v.Rises == "" {
			t.Errorf("seed %d: not found: %+v", seed, v)
		}
	}
}

func TestStepThatStaysIsFound(t *testing.T) {
	s := Series{Absolute: 4}
	for at := 0.0; at <= 3600; at += 30 {
		value := 100.0
		if at > 1700 {
			value = 110
		}
		s.Points = append(s.Points, Point{At: at, Value: value, Age: at})
	}
	if v := s.Judge(); v.Rises == "" {
		t.Errorf("not found: %+v", v)
	}
}

func TestWhatIsBoundedMayGrowUntilThere(t *testing.T) {
	s := Series{Most: 64}
	for at := 0.0; at <= 3600; at += 30 {
		s.Points = append(s.Points, Point{At: at, Value: at / 60, Age: at})
	}
	if v := s.Judge(); v.Rises != "" || !v.Judged {
		t.Errorf("%+v", v)
	}
	s.Points[100].Value = 65
	if v := s.Judge(); v.Rises == "" {
		t.Errorf("above the bound, and flat: %+v", v)
	}
}

func TestShortSoakIsNotCalledFlat(t *testing.T) {
	s := Series{Name: "memory", Least: 300, Points: []Point{{At: 0, Value: 1}, {At: 20, Value: 1}}}
	if v := s.Judge(); v.Judged {
		t.Errorf("%+v", v)
	}
	if table := Table([]Series{s}); !strings.Contains(table, "not judged") || strings.Contains(table, "flat") {
		t.Error(table)
	}
}

func TestPictureIsWellFormedForAnyValues(t *testing.T) {
	list := []Series{
		{Group: "a<b", Name: "none & nothing", Unit: "MB"},
		{Group: "a<b", Name: "zero", Points: []Point{{}, {At: 60}}},
		{Group: "c", Name: "rising", Points: []Point{{At: 0, Value: 1}, {At: 1, Value: 1e9}}},
	}
	d := xml.NewDecoder(strings.NewReader(Chart("a & b", "<c>", list, []Mark{{1, "kill"}})))
	n := 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok {
			n++
			for _, a := range e.Attr {
				if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") {
					t.Errorf("%s has %s", e.Name.Local, a.Value)
				}
			}
		}
	}
	if n < 20 {
		t.Errorf("%d elements", n)
	}
}
