package bench

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"plyfs/internal/testenv"
)

// TestStoreQuick measures every store workload once, with small sizes, and checks that each was measured on each of its
// systems and that nothing is left.
func TestStoreQuick(t *testing.T) {
	var seen []Result
	report, err := RunStore(t.Context(), Config{
		LayersOn: []string{tmpfsMedium}, Samples: 1, Scale: 10 * quickScale, Timeout: 2 * time.Minute,
		OnResult: func(r Result) { seen = append(seen, r) },
	}, testenv.Binary(t), AllStore())
	if err != nil {
		t.Error(err)
	}
	want := 0
	for _, w := range AllStore() {
		want += max(1, len(w.Series)) * len(w.Systems)
	}
	got := 0
	for _, r := range report.Results {
		for _, c := range r.Cells {
			if len(c.Samples) != 1 || c.Median <= 0 {
				t.Errorf("%s on %s: samples %v, error %q, skipped %q", r.Series, c.System, c.Samples, c.Error, c.Skipped)
			}
			got++
		}
	}
	if got != want || len(seen) != len(report.Results) {
		t.Errorf("%d cells of %d, %d results of %d told", got, want, len(seen), len(report.Results))
	}
	checks := Judge(report.Results)
	if len(checks) != len(storeRows()) {
		t.Errorf("%d verdicts on %d demands: %+v", len(checks), len(storeRows()), checks)
	}
	var text bytes.Buffer
	if err := WriteChecks(&text, checks); err != nil || !strings.Contains(text.String(), "/ "+StoreTar) {
		t.Errorf("%v: %s", err, text.String())
	}
	expectNothingLeft(t)
}

// TestStoreFailures: a workload that fails, or measures nothing, is an error of its cell and of the run.
func TestStoreFailures(t *testing.T) {
	broken := errors.New("it broke")
	report, err := RunStore(t.Context(), Config{LayersOn: []string{tmpfsMedium}, Samples: 1}, "", []StoreWorkload{
		{Name: "fails", Systems: []string{StoreTar}, Run: func(context.Context, *StoreEnv) error { return broken }},
		{Name: "idles", Systems: []string{StoreTar}, Run: func(context.Context, *StoreEnv) error { return nil }},
		{Name: "skips", Systems: []string{StoreTar}, Run: func(context.Context, *StoreEnv) error {
			return &SkipError{Reason: "no reason"}
		}},
	})
	if !errors.Is(err, errFailed) || len(report.Results) != 3 {
		t.Fatalf("error %v, %d results", err, len(report.Results))
	}
	for i, want := range []string{broken.Error(), errNotMeasured.Error(), ""} {
		if got := report.Results[i].Cells[0].Error; !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: error %q, want %q", report.Results[i].Series, got, want)
		}
	}
	if got := report.Results[2].Cells[0].Skipped; got != "no reason" {
		t.Errorf("skipped: %q", got)
	}
	expectNothingLeft(t)
}

func TestSelectStore(t *testing.T) {
	for pattern, want := range map[string]int{"": len(AllStore()), "store-unpack": 1, "store-unpack,store-*": len(AllStore())} {
		if got, err := Select(AllStore(), words(pattern)); err != nil || len(got) != want {
			t.Errorf("%q: %d workloads, error %v; want %d", pattern, len(got), err, want)
		}
	}
	for _, bad := range []string{"nothing", "[", "store-unpack,nothing"} {
		if _, err := Select(AllStore(), words(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
