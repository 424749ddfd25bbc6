// SPDX-License-Identifier: Apache-2.0

// Package judge decides whether measurements of a soak are flat, and draws them.
// It measures nothing itself.
//
// The rule looks at the second half of the soak, when caches and heaps have their
// size. A series rises if both hold:
//
//   - Its trend is no chance. The Mann-Kendall statistic counts for each pair of
//     points whether the later is higher. It needs no distribution of the noise, and
//     one odd point changes little. It must exceed zLimit standard deviations of what
//     a series without a trend gives.
//   - It matters. The growth over the second half, by the median of the slopes of all
//     pairs (the Theil-Sen estimator), exceeds the tolerance of the series. If no life
//     lasted that long, it is the growth over the longest life.
//
// A series also rises if the median of the last quarter exceeds that of the second
// quarter by more than twice the tolerance. This finds steps, which are no trend.
//
// Pairs are made of points of the same life of a process only: a daemon that starts
// again begins with an empty heap. Points right after the beginning of a life are
// left out.
package judge

import (
	"fmt"
	"math"
	"slices"
)

// Point is a measurement.
type Point struct {
	At    float64 // seconds since the soak began
	Value float64
	// Life is different for each process that is measured in turn. Counts of the
	// host are of one life.
	Life int
	// Age is how long the life has lasted, in seconds.
	Age float64
}

// Series is a quantity over time.
type Series struct {
	Group, Name, Unit string
	// Absolute and Relative are the growth that is tolerated over the second half:
	// the larger of Absolute, in the unit, and Relative of the median.
	Absolute, Relative float64
	// Settle is the age of a life at which its points begin to count, in seconds.
	Settle float64
	// Least is how long the soak must be for a judgement, in seconds.
	Least float64
	// Most, if not 0, is the bound of the quantity, which replaces the rule: it may
	// grow until there.
	Most   float64
	Points []Point
}

// zLimit is the number of standard deviations from which on a trend is no chance. It is
// high because neighbouring points resemble each other, as in a load that changes
// slowly, which the statistic does not know.
const zLimit = 4

// fewest is the number of points below which the second half can't be judged.
const fewest = 8

// Verdict is the result for a series.
type Verdict struct {
	First, Last float64 // medians of the second and of the last quarter
	Growth      float64 // over the second half or the longest life in it, by the slope within lives
	Z           float64
	Tolerated   float64
	// Judged is false if the soak was too short.
	Judged bool
	// Rises says why the series is not flat. Empty is flat.
	Rises string
}

// Judge applies the rule.
func (s Series) Judge() Verdict {
	var v Verdict
	if len(s.Points) == 0 {
		return v
	}
	from, to := s.Points[0].At, s.Points[len(s.Points)-1].At
	span := to - from
	part := func(a, b float64) (out []Point) {
		for _, p := range s.Points {
			if p.Age >= s.Settle && p.At >= from+a*span && p.At <= from+b*span {
				out = append(out, p)
			}
		}
		return out
	}
	half := part(0.5, 1)
	v.First, v.Last = median(values(part(0.25, 0.5))), median(values(part(0.75, 1)))
	v.Tolerated = math.Max(s.Absolute, s.Relative*median(values(half)))
	if span < s.Least || len(half) < fewest {
		return v
	}
	v.Judged = true
	if s.Most > 0 {
		v.Tolerated = s.Most
		if top := slices.Max(values(half)); top > s.Most {
			v.Rises = fmt.Sprintf("%s is above its bound of %s", Figure(top), Figure(s.Most))
		}
		return v
	}
	slope, longest, z := trend(half)
	v.Growth, v.Z = slope*longest, z
	switch {
	case v.Growth > v.Tolerated && z > zLimit:
		v.Rises = fmt.Sprintf("a trend, %s more (z = %.1f), tolerated are %s", Figure(v.Growth), z, Figure(v.Tolerated))
	case v.Last-v.First > 2*v.Tolerated:
		v.Rises = fmt.Sprintf("a step, from %s in the second quarter to %s in the last, tolerated are %s", Figure(v.First), Figure(v.Last), Figure(2*v.Tolerated))
	}
	return v
}

// trend returns the median slope of the pairs within lives, in units per second, the
// length of the longest life, and how many standard deviations the direction of the
// pairs is from none.
func trend(points []Point) (slope, longest, z float64) {
	lives := map[int][]Point{}
	for _, p := range points {
		lives[p.Life] = append(lives[p.Life], p)
	}
	var slopes []float64
	var sum, variance float64
	for _, l := range lives {
		ties := map[float64]float64{}
		for i, p := range l {
			ties[p.Value]++
			for _, q := range l[i+1:] {
				if q.At > p.At {
					slopes = append(slopes, (q.Value-p.Value)/(q.At-p.At))
				}
				switch {
				case q.Value > p.Value:
					sum++
				case q.Value < p.Value:
					sum--
				}
			}
		}
		longest = math.Max(longest, l[len(l)-1].At-l[0].At)
		n := float64(len(l))
		variance += n * (n - 1) * (2*n + 5) / 18
		for _, t := range ties {
			variance -= t * (t - 1) * (2*t + 5) / 18
		}
	}
	if variance > 0 {
		// The continuity correction.
		z = (sum - math.Copysign(math.Min(1, math.Abs(sum)), sum)) / math.Sqrt(variance)
	}
	return median(slopes), longest, z
}

func values(points []Point) (out []float64) {
	for _, p := range points {
		out = append(out, p.Value)
	}
	return out
}

// median is 0 of nothing.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Clone(v)
	slices.Sort(s)
	m := len(s) / 2
	if len(s)%2 == 0 {
		return (s[m-1] + s[m]) / 2
	}
	return s[m]
}

// Figure writes a value with as many digits as a reader needs.
func Figure(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100 || v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
