//go:build !vm

package devicemapper

import (
	"context"
	"maps"
	"path/filepath"
	"slices"
	"testing"

	"plyfs/drivers"
	"plyfs/internal/testenv"
)

// fakeLedger is a ledger whose calls fail as those of the machine.
type fakeLedger struct {
	drivers.Ledger
	f *fake
}

func (l fakeLedger) Put(ctx context.Context, key string, value []byte) error {
	return l.f.do("record "+key, func() error { return l.Ledger.Put(ctx, key, value) })
}

func (l fakeLedger) Delete(ctx context.Context, key string) error {
	return l.f.do("no record "+key, func() error { return l.Ledger.Delete(ctx, key) })
}

// fakeStore is a store on a fake machine.
type fakeStore struct {
	*fake
	home, run string
	given     map[string]string
}

func newFakeStore(t testing.TB) *fakeStore {
	return &fakeStore{
		fake: newFake(t), home: filepath.Join(testenv.Scratch(t), "home"), run: filepath.Join(testenv.Scratch(t),
			"run"),
		given: map[string]string{optFS: fsExt4},
	}
}

func (s *fakeStore) tryOpen() (*Driver, error) {
	l, err := drivers.OpenFileLedger(filepath.Join(s.home, "ledger"))
	must(s.t, err)
	opts, err := parseOptions(s.given)
	if err != nil {
		return nil, err
	}
	return open(s.t.Context(), drivers.Options{Home: s.home, Run: s.run, Ledger: fakeLedger{l, s.fake}}, opts, s.fake,
		s.fake)
}

func (s *fakeStore) open() *Driver {
	s.t.Helper()
	d, err := s.tryOpen()
	must(s.t, err)
	return d
}

// checkNothingLeaks compares the pool with the records: each device is known, and each that is known is there.
func (s *fakeStore) checkNothingLeaks(d *Driver) {
	s.t.Helper()
	known := slices.Sorted(maps.Keys(d.devices))
	if in := s.thin(); !slices.Equal(in, known) {
		s.t.Errorf("devices in the pool %v, in the records %v", in, known)
	}
	for _, r := range d.devices {
		if r.State != stateReady {
			s.t.Errorf("device %d is left %s", r.id, r.State)
		}
	}
	active, err := d.active()
	must(s.t, err)
	for _, name := range active {
		if f := s.devices[name]; f.open() == 0 || f.suspended || f.leaving {
			s.t.Errorf("device %s is left active: %+v", name, f)
		}
	}
}
