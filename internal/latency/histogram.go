// Package latency counts how long things take, in classes whose bounds are powers of two of a microsecond: cheap enough for
// the path of a request, and fine enough to tell a cache from a disk. It has no locks; all methods of a Histogram are safe
// for concurrent use.
package latency

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Classes is the number of classes with a bound. The last of them ends at 8.4 seconds; one more takes what is longer.
const Classes = 24

// Bound returns the longest duration of class i, from a microsecond for class 0. i must be less than Classes.
func Bound(i int) time.Duration { return time.Microsecond << i }

// Histogram counts durations. The zero value is ready.
type Histogram struct {
	counts [Classes + 1]atomic.Uint64
	sum    atomic.Uint64 // nanoseconds
}

// Observe counts one duration; a negative one counts as 0.
func (h *Histogram) Observe(d time.Duration) {
	d = max(d, 0)
	h.counts[class(d)].Add(1)
	h.sum.Add(uint64(d))
}

// class returns the first class whose bound d does not exceed.
func class(d time.Duration) int {
	if d <= time.Microsecond {
		return 0
	}
	return min(bits.Len64(uint64((d-1)/time.Microsecond)), Classes)
}

// Snapshot returns what was counted so far. What is observed meanwhile may be in the sum and not in the counts.
func (h *Histogram) Snapshot() Snapshot {
	var s Snapshot
	for i := range h.counts {
		s.Counts[i] = h.counts[i].Load()
	}
	s.SumNanoseconds = h.sum.Load()
	return s
}

// Snapshot is the state of a Histogram at some time.
type Snapshot struct {
	// Counts are the durations of each class, not of those before it; the last is of those beyond all bounds.
	Counts         [Classes + 1]uint64 `json:"counts"`
	SumNanoseconds uint64              `json:"sum_ns"`
}

// Count returns how many durations were counted.
func (s *Snapshot) Count() uint64 {
	var n uint64
	for _, c := range s.Counts {
		n += c
	}
	return n
}

// Sub returns what was counted between an earlier snapshot of the same histogram and s.
func (s *Snapshot) Sub(earlier *Snapshot) Snapshot {
	d := Snapshot{SumNanoseconds: s.SumNanoseconds - earlier.SumNanoseconds}
	for i := range d.Counts {
		d.Counts[i] = s.Counts[i] - earlier.Counts[i]
	}
	return d
}

// Add counts all of another snapshot into s.
func (s *Snapshot) Add(other *Snapshot) {
	s.SumNanoseconds += other.SumNanoseconds
	for i := range s.Counts {
		s.Counts[i] += other.Counts[i]
	}
}

// Quantile returns a duration that at least the fraction q of all did not exceed: the bound of their class. It is 0 if there
// are none, and the last bound if that is not enough.
func (s *Snapshot) Quantile(q float64) time.Duration {
	total := s.Count()
	if total == 0 {
		return 0
	}
	var n uint64
	for i, c := range s.Counts[:Classes] {
		if n += c; float64(n) >= q*float64(total) {
			return Bound(i)
		}
	}
	return Bound(Classes - 1)
}
