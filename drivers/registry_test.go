package drivers_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"plyfs/drivers"
)

func factory(name string, r drivers.Report) drivers.Factory {
	return drivers.Factory{
		Name:  name,
		Probe: func(context.Context, drivers.Options) drivers.Report { return r },
		Open:  func(context.Context, drivers.Options) (drivers.Driver, error) { return nil, nil },
	}
}

func TestChoose(t *testing.T) {
	usable, not := drivers.Report{Usable: true, Why: "works"}, drivers.Report{Why: "the kernel lacks it"}
	passed := drivers.Report{Usable: true, Passed: true, Why: "only when asked"}
	for name, c := range map[string]struct {
		reports []drivers.Report
		want    string
	}{
		"first":  {[]drivers.Report{usable, usable}, "d0"},
		"second": {[]drivers.Report{not, usable}, "d1"},
		"passed": {[]drivers.Report{passed, not, usable}, "d2"},
		"none":   {[]drivers.Report{passed, not}, ""},
	} {
		var all []drivers.Factory
		for i, r := range c.reports {
			all = append(all, factory("d"+string(rune('0'+i)), r))
		}
		r := drivers.NewRegistry(all...)
		f, err := r.Choose(r.Probe(t.Context(), func(string) drivers.Options { return drivers.Options{} }))
		if f.Name != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: chose %q: %v", name, f.Name, err)
		}
		if err != nil && (!errors.Is(err, drivers.ErrPrerequisites) || !strings.Contains(err.Error(),
			"d1: the kernel lacks it")) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestValidID(t *testing.T) {
	for _, id := range []string{"a", "0", "A-b_c.d", strings.Repeat("f", drivers.MaxID)} {
		if err := drivers.ValidID(id); err != nil {
			t.Error(err)
		}
	}
	for _, id := range []string{"", ".a", "-a", "_a", "a/b", "a b", "a\x00", "é", strings.Repeat("f", drivers.MaxID+1)} {
		if err := drivers.ValidID(id); !errors.Is(err, drivers.ErrInvalid) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestLocks(t *testing.T) {
	var l drivers.Locks
	held, order := make(map[string]int), []string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 64 {
		id := string(rune('a' + i%4))
		wg.Go(func() {
			defer l.Lock(id)()
			mu.Lock()
			held[id]++
			if held[id] != 1 {
				t.Errorf("%s is held %d times", id, held[id])
			}
			order = append(order, id)
			mu.Unlock()
			mu.Lock()
			held[id]--
			mu.Unlock()
		})
	}
	wg.Wait()
	slices.Sort(order)
	if len(order) != 64 {
		t.Errorf("%d holds", len(order))
	}
}
