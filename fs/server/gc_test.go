package server

import "testing"

func TestGCPace(t *testing.T) {
	for live, want := range map[uint64]int{0: gcMost, 1 << 20: gcMost, 12 << 20: 100, 24 << 20: 50, 100 << 20: gcPercent, 1 << 40: gcPercent} {
		if got := gcPace(live); got != want {
			t.Errorf("%d live bytes: %d %%, want %d", live, got, want)
		}
	}
}
