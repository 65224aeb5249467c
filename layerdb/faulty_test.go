package layerdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"plyfs/cow/tarlayer"
	"plyfs/drivers"
	"plyfs/metadata/kv"
)

var errInjected = errors.New("injected failure")

// How a step goes wrong.
type failure string

const (
	failBefore failure = "fail before" // the step is not taken
	failAfter  failure = "fail after"  // the step is taken, and nobody knows: only where that can be
	killBefore failure = "kill before"
	killAfter  failure = "kill after"
)

// faults makes the n-th step of a driver or database go wrong.
type faults struct {
	mode failure
	at   int // the first is 1; 0 for none

	mu    sync.Mutex
	n     int      // guarded by mu
	names []string // of the steps taken; guarded by mu
}

func (f *faults) step(name string, unknowable bool, do func() error) error {
	f.mu.Lock()
	f.n++
	hit := f.n == f.at
	f.names = append(f.names, name)
	f.mu.Unlock()
	if !hit {
		return do()
	}
	switch f.mode {
	case failBefore:
		return fmt.Errorf("%s: %w", name, errInjected)
	case killBefore:
		kill()
	}
	err := do()
	switch f.mode {
	case killAfter:
		kill()
	case failAfter:
		if unknowable && err == nil {
			return fmt.Errorf("%s: %w", name, errInjected)
		}
	}
	return err
}

func kill() {
	unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

// faultyDriver is a driver of which steps go wrong.
type faultyDriver struct {
	drivers.Driver
	differ drivers.Differ
	f      *faults
}

// faultyFactory makes the driver of inner faulty.
func faultyFactory(inner drivers.Factory, f *faults) drivers.Factory {
	open := inner.Open
	inner.Open = func(ctx context.Context, o drivers.Options) (drivers.Driver, error) {
		d, err := open(ctx, o)
		if err != nil {
			return nil, err
		}
		return &faultyDriver{d, drivers.DifferOf(d), f}, nil
	}
	return inner
}

func (d *faultyDriver) ParallelApply() bool {
	p, ok := d.Driver.(drivers.ParallelApplier)
	return ok && p.ParallelApply()
}

func (d *faultyDriver) Create(ctx context.Context, id, parent string, o *drivers.CreateOptions) error {
	return d.f.step("create", false, func() error { return d.Driver.Create(ctx, id, parent, o) })
}

func (d *faultyDriver) CreateReadWrite(ctx context.Context, id, parent string, o *drivers.CreateOptions) error {
	return d.f.step("create rw", false, func() error { return d.Driver.CreateReadWrite(ctx, id, parent, o) })
}

func (d *faultyDriver) Remove(ctx context.Context, id string) error {
	return d.f.step("remove", true, func() error { return d.Driver.Remove(ctx, id) })
}

func (d *faultyDriver) Get(ctx context.Context, id string, o *drivers.GetOptions) (root string, err error) {
	err = d.f.step("get", false, func() error {
		root, err = d.Driver.Get(ctx, id, o)
		return err
	})
	return root, err
}

func (d *faultyDriver) Put(ctx context.Context, id string) error {
	return d.f.step("put", false, func() error { return d.Driver.Put(ctx, id) })
}

func (d *faultyDriver) References() map[string]int { return d.Driver.(drivers.Referrer).References() }

func (d *faultyDriver) Sync(ctx context.Context, ids ...string) error {
	return d.f.step("sync", true, func() error { return d.Driver.Sync(ctx, ids...) })
}

func (d *faultyDriver) Diff(ctx context.Context, id, parent string, o *drivers.DiffOptions) (r io.ReadCloser, err error) {
	err = d.f.step("diff", false, func() error {
		r, err = d.differ.Diff(ctx, id, parent, o)
		return err
	})
	return r, err
}

func (d *faultyDriver) Changes(ctx context.Context, id, parent string) ([]tarlayer.Change, error) {
	return d.differ.Changes(ctx, id, parent)
}

func (d *faultyDriver) DiffSize(ctx context.Context, id, parent string) (int64, error) {
	return d.differ.DiffSize(ctx, id, parent)
}

// ApplyDiff fails in the middle of a stream.
func (d *faultyDriver) ApplyDiff(ctx context.Context, id string, r io.Reader, o *drivers.ApplyOptions) (res tarlayer.ApplyResult, err error) {
	whole, err := io.ReadAll(r)
	if err != nil {
		return res, err
	}
	half := io.MultiReader(bytes.NewReader(whole[:len(whole)/2]), failingReader{})
	err = d.f.step("apply", false, func() error {
		res, err = d.differ.ApplyDiff(ctx, id, bytes.NewReader(whole), o)
		return err
	})
	if errors.Is(err, errInjected) {
		_, err = d.differ.ApplyDiff(ctx, id, half, o)
	}
	return res, err
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errInjected }

// faultyDB is a database of which commits go wrong.
type faultyDB struct {
	database
	f *faults
}

func (d *faultyDB) Update(fn func(*kv.Txn) error) error {
	return d.f.step("commit", true, func() error { return d.database.Update(fn) })
}

// openFaulty opens a store in which the step goes wrong that f says.
func openFaulty(root string, b backend, f *faults) (*Store, error) {
	b.Factory = faultyFactory(b.Factory, f)
	o := b.at(root)
	return openStore(context.Background(), o, func(s *Store) (database, error) {
		db, err := openDatabase(s)
		if err != nil {
			return nil, err
		}
		return &faultyDB{db, f}, nil
	})
}
