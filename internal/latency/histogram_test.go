package latency_test

import (
	"math"
	"sync"
	"testing"
	"time"

	"plyfs/internal/latency"
)

func TestClasses(t *testing.T) {
	for d, want := range map[time.Duration]int{
		-time.Second: 0, 0: 0, 1: 0, time.Microsecond: 0, time.Microsecond + 1: 1, 2 * time.Microsecond: 1,
		2*time.Microsecond + 1: 2, 4 * time.Microsecond: 2, time.Millisecond: 10, 8 * time.Second: latency.Classes - 1,
		9 * time.Second: latency.Classes, math.MaxInt64: latency.Classes,
	} {
		var h latency.Histogram
		h.Observe(d)
		s := h.Snapshot()
		if s.Counts[want] != 1 || s.Count() != 1 {
			t.Errorf("%v counts as %v, want class %d", d, s.Counts, want)
		}
		if want < latency.Classes && d > latency.Bound(want) {
			t.Errorf("%v is in a class that ends at %v", d, latency.Bound(want))
		}
		if s.SumNanoseconds != uint64(max(d, 0)) {
			t.Errorf("%v adds %d", d, s.SumNanoseconds)
		}
	}
}

func TestQuantile(t *testing.T) {
	var h latency.Histogram
	s := h.Snapshot()
	if got := s.Quantile(0.5); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
	for range 99 {
		h.Observe(3 * time.Microsecond)
	}
	h.Observe(time.Minute)
	s = h.Snapshot()
	for q, want := range map[float64]time.Duration{
		0: time.Microsecond, 0.5: 4 * time.Microsecond, 0.99: 4 * time.Microsecond, 1: latency.Bound(latency.Classes - 1),
	} {
		if got := s.Quantile(q); got != want {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if d := s.Sub(&s); d.Count() != 0 || d.SumNanoseconds != 0 {
		t.Errorf("a snapshot without itself: %+v", d)
	}
}

func TestConcurrent(t *testing.T) {
	var h latency.Histogram
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 1000 {
				h.Observe(time.Millisecond)
			}
		})
	}
	all.Wait()
	s := h.Snapshot()
	var twice latency.Snapshot
	twice.Add(&s)
	twice.Add(&s)
	if twice.Count() != 8000 || twice.SumNanoseconds != 8000*uint64(time.Millisecond) {
		t.Errorf("%d durations of %d ns in all", twice.Count(), twice.SumNanoseconds)
	}
}

func BenchmarkObserve(b *testing.B) {
	var h latency.Histogram
	for b.Loop() {
		h.Observe(7 * time.Microsecond)
	}
}
