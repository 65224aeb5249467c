package layerdb

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"plyfs/drivers"
	"plyfs/drivers/overlay2"
	"plyfs/internal/testenv"
)

func snapshotStore(t testing.TB) (*Store, Options) {
	t.Helper()
	o := backend{Factory: overlay2.Factory()}.at(filepath.Join(testenv.Scratch(t), "store"))
	s, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s, o
}

// snapshotChain makes committed snapshots named 0, 1, ..., each over the one before, and returns the name of the last.
func snapshotChain(t testing.TB, s *Store, n int) (name string) {
	t.Helper()
	ctx := context.Background()
	for i := range n {
		parent := name
		name = fmt.Sprint(i)
		if _, err := s.CreateSnapshot(ctx, "make-"+name, parent, SnapshotOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.CommitSnapshot(ctx, name, "make-"+name, SnapshotCommit{}); err != nil {
			t.Fatal(err)
		}
	}
	return name
}

func TestSnapshotRefusals(t *testing.T) {
	s, _ := snapshotStore(t)
	ctx := context.Background()
	top := snapshotChain(t, s, 2)
	if _, err := s.CreateSnapshot(ctx, "box", top, SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	create := func(name, parent string, o SnapshotOptions) func() error {
		return func() error { _, err := s.CreateSnapshot(ctx, name, parent, o); return err }
	}
	commit := func(name, active string) func() error {
		return func() error { _, err := s.CommitSnapshot(ctx, name, active, SnapshotCommit{}); return err }
	}
	for _, c := range []struct {
		what string
		run  func() error
		want error
	}{
		{"a name that is taken", create("box", top, SnapshotOptions{}), drivers.ErrExists},
		{"no such parent", create("x", "none", SnapshotOptions{}), drivers.ErrNotFound},
		{"a parent that is active", create("x", "box", SnapshotOptions{}), drivers.ErrInvalid},
		{"its own parent", create(top, top, SnapshotOptions{}), drivers.ErrInvalid},
		{"no name", create("", top, SnapshotOptions{}), drivers.ErrInvalid},
		{"a name with a zero", create("a\x00b", top, SnapshotOptions{}), drivers.ErrInvalid},
		{"a new one that is committed", create("x", top, SnapshotOptions{Kind: SnapshotCommitted}), drivers.ErrInvalid},
		{
			"labels beyond measure", create("x", top, SnapshotOptions{Labels: map[string]string{"a": string(make([]byte, MaxData))}}),
			drivers.ErrInvalid,
		},
		{"commit to a name that is taken", commit(top, "box"), drivers.ErrExists},
		{"commit of what is committed", commit("x", top), drivers.ErrInUse},
		{"commit of nothing", commit("x", "none"), drivers.ErrNotFound},
		{"removal of a parent", func() error { return s.RemoveSnapshot(ctx, top) }, drivers.ErrInUse},
		{"removal of nothing", func() error { return s.RemoveSnapshot(ctx, "none") }, drivers.ErrNotFound},
		{"migration", func() error { return s.Migrate(ctx, "vfs", MigrateOptions{}) }, drivers.ErrInUse},
	} {
		if err := c.run(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
	}
	all, err := s.Snapshots(ctx)
	if err != nil || len(all) != 3 {
		t.Errorf("after refusals there are %d snapshots, %v", len(all), err)
	}
	rep, err := s.Check(ctx, CheckOptions{})
	if err != nil || len(rep.Problems) > 0 || rep.Snapshots != 3 {
		t.Errorf("check: %+v, %v", rep, err)
	}
}

// What a snapshot takes up is counted once, at commit.
func TestSnapshotUsage(t *testing.T) {
	s, _ := snapshotStore(t)
	ctx := context.Background()
	if _, err := s.CreateSnapshot(ctx, "make", "", SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	dir := ""
	if err := s.UseSnapshot(ctx, "make", func(_ Snapshot, l SnapshotLayers) error {
		m, err := s.drv.Metadata(ctx, l.Top)
		dir = m["UpperDir"]
		return err
	}); err != nil {
		t.Fatal(err)
	}
	write := func(name string) {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a")
	before, err := s.SnapshotUsage(ctx, "make")
	if err != nil || before.Inodes != 2 || before.Bytes < 1<<20 {
		t.Errorf("usage of an active snapshot with one file of 1 MiB: %+v, %v", before, err)
	}
	n, err := s.CommitSnapshot(ctx, "done", "make", SnapshotCommit{Durable: DurableContent})
	if err != nil || n.Usage != before {
		t.Errorf("usage at commit: %+v, %v, want %+v", n.Usage, err, before)
	}
	write("b") // nobody may do so; it shows who counts
	if u, err := s.SnapshotUsage(ctx, "done"); err != nil || u != before {
		t.Errorf("usage of a committed snapshot: %+v, %v, want %+v", u, err, before)
	}
	if _, err := s.CreateSnapshot(ctx, "look", "done", SnapshotOptions{Kind: SnapshotView}); err != nil {
		t.Fatal(err)
	}
	if u, err := s.SnapshotUsage(ctx, "look"); err != nil || u != (drivers.Usage{}) {
		t.Errorf("usage of a view: %+v, %v", u, err)
	}
}

// The copies of records are good for a database that is lost.
func TestSnapshotsAreRebuilt(t *testing.T) {
	s, o := snapshotStore(t)
	ctx := context.Background()
	top := snapshotChain(t, s, 3)
	if _, err := s.CreateSnapshot(ctx, "box", top, SnapshotOptions{Labels: map[string]string{"a": "b"}}); err != nil {
		t.Fatal(err)
	}
	want, err := s.Snapshots(ctx)
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	if err := os.RemoveAll(filepath.Join(o.Root, dbDir)); err != nil {
		t.Fatal(err)
	}
	rep, err := Rebuild(ctx, o)
	if err != nil || len(rep.Problems) > 0 || rep.Snapshots != 4 {
		t.Fatalf("rebuild: %+v, %v", rep, err)
	}
	again := reopen(t, o)
	defer closeStore(t, again)
	got, err := again.Snapshots(ctx)
	if err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("rebuilt: %+v, %v, want %+v", got, err, want)
	}
	if err := again.RemoveSnapshot(ctx, "1"); !errors.Is(err, drivers.ErrInUse) {
		t.Errorf("removal of a parent after a rebuild: %v", err)
	}
}

// A snapshot whose parent's record is lost is reported, with the layer that nothing names.
func TestSnapshotCheckFindsLosses(t *testing.T) {
	s, _ := snapshotStore(t)
	ctx := context.Background()
	snapshotChain(t, s, 2)
	n, err := s.Snapshot(ctx, "0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.updateSnapshots(func(t *tx, _ *snapshotTable) ([]work, error) { return nil, t.delete(snapshotKey("0")) },
		func(k *snapshotTable) { k.remove(&n) }); err != nil {
		t.Fatal(err)
	}
	rep, err := s.Check(ctx, CheckOptions{})
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]bool)
	for _, p := range rep.Problems {
		found[p.Kind+" "+p.Object] = true
	}
	for _, want := range []string{ProblemMissing + " s/0", ProblemGarbage + " " + n.ID} {
		if !found[want] {
			t.Errorf("check does not find %q: %+v", want, rep.Problems)
		}
	}
}

// Many at once over one parent, some of them committed, while others are removed.
func TestSnapshotsConcurrently(t *testing.T) {
	s, _ := snapshotStore(t)
	ctx := context.Background()
	top := snapshotChain(t, s, 2)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			name := fmt.Sprint("box-", i)
			if _, err := s.CreateSnapshot(ctx, name, top, SnapshotOptions{}); err != nil {
				t.Error(err)
				return
			}
			if i%2 == 0 {
				if _, err := s.CommitSnapshot(ctx, "done-"+name, name, SnapshotCommit{}); err != nil {
					t.Error(err)
				}
				name = "done-" + name
			}
			if _, err := s.CleanSnapshots(ctx); err != nil {
				t.Error(err)
			}
			if err := s.RemoveSnapshot(ctx, name); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	all, err := s.Snapshots(ctx)
	if err != nil {
		t.Fatal(err)
	}
	removeSnapshots(t, s, all)
}

// A snapshot that is unpacked gets its copy when it is committed, also if the store was opened anew in between.
func TestSnapshotCopyFollowsCommit(t *testing.T) {
	s, o := snapshotStore(t)
	ctx := context.Background()
	copies := func() int {
		entries, err := os.ReadDir(s.path(recordsDir))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	if _, err := s.CreateSnapshot(ctx, "extract", "", SnapshotOptions{Content: SnapshotUnpacked}); err != nil || copies() != 0 {
		t.Fatal(err, copies())
	}
	closeStore(t, s)
	s = reopen(t, o)
	defer func() { closeStore(t, s) }()
	if _, err := s.CommitSnapshot(ctx, "base", "extract", SnapshotCommit{}); err != nil || copies() != 1 {
		t.Fatal(err, copies())
	}
	if _, err := s.CreateSnapshot(ctx, "box", "base", SnapshotOptions{}); err != nil || copies() != 2 {
		t.Fatal(err, copies())
	}
	// One that cannot be removed keeps it.
	if err := s.RemoveSnapshot(ctx, "base"); !errors.Is(err, drivers.ErrInUse) || copies() != 2 {
		t.Error(err, copies())
	}
	if rep, err := s.Check(ctx, CheckOptions{}); err != nil || len(rep.Problems) > 0 {
		t.Errorf("%+v, %v", rep.Problems, err)
	}
	if notes, err := os.ReadDir(s.path(notesDir)); err != nil || len(notes) > 0 {
		t.Error(notes, err)
	}
	if err := errors.Join(s.RemoveSnapshot(ctx, "box"), s.RemoveSnapshot(ctx, "base")); err != nil || copies() != 0 {
		t.Error(err, copies())
	}
}
