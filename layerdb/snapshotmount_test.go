package layerdb

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/testenv"
)

// mountSnapshot mounts a snapshot, and holds that it has one reference then.
func mountSnapshot(t *testing.T, s *Store, name string) (root string) {
	t.Helper()
	root, err := s.MountSnapshot(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	if !drivers.IsMountPoint(root) {
		t.Errorf("nothing is mounted on %s", root)
	}
	n, err := s.Snapshot(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	if has := s.drv.(drivers.Referrer).References()[n.ID]; has != 1 {
		t.Errorf("snapshot %s has %d references", name, has)
	}
	return root
}

// A snapshot that is mounted stays so, for others and for who comes after, until it is committed or removed.
func TestMountSnapshot(t *testing.T) {
	s, o := snapshotStore(t)
	ctx := context.Background()
	top := snapshotChain(t, s, 2)
	for _, name := range []string{"box", "gone"} {
		if _, err := s.CreateSnapshot(ctx, name, top, SnapshotOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	root := mountSnapshot(t, s, "box")
	if err := os.WriteFile(filepath.Join(root, "file"), []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	if again := mountSnapshot(t, s, "box"); again != root {
		t.Errorf("it is at %s, and then at %s", root, again)
	}
	removed := mountSnapshot(t, s, "gone")
	closeStore(t, s)

	s = reopen(t, o)
	defer closeStore(t, s)
	if !drivers.IsMountPoint(root) {
		t.Error("the mount is gone when the store is opened again")
	}
	mountSnapshot(t, s, "box")
	// Whoever has a copy of the mount does not keep the snapshot from being committed.
	other := t.TempDir()
	if err := unix.Mount(root, other, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	_, err := s.CommitSnapshot(ctx, "new", "box", SnapshotCommit{})
	if err := errors.Join(err, unix.Unmount(other, 0), s.RemoveSnapshot(ctx, "gone")); err != nil {
		t.Error(err)
	}
	for _, gone := range []string{root, removed} {
		if drivers.IsMountPoint(gone) {
			t.Errorf("%s is still mounted", gone)
		}
	}
	if has := s.drv.(drivers.Referrer).References(); len(has) > 0 {
		t.Errorf("there are references: %v", has)
	}
	if _, err := s.CreateSnapshot(ctx, "child", "new", SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(mountSnapshot(t, s, "child"), "file")); err != nil || string(b) != "text" {
		t.Errorf("what was written and committed: %q, %v", b, err)
	}
	if err := s.RemoveSnapshot(ctx, "child"); err != nil {
		t.Error(err)
	}
}

// References that others have stay theirs.
func TestMountSnapshotBesideReaders(t *testing.T) {
	b := vfsBackend()
	s, err := Open(context.Background(), b.at(filepath.Join(testenv.Scratch(t), "store")))
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	ctx := context.Background()
	top := snapshotChain(t, s, 1)
	n, err := s.CreateSnapshot(ctx, "box", top, SnapshotOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := s.MountSnapshot(ctx, "box"); err != nil {
			t.Fatal(err)
		}
	}
	root, err := s.drv.Get(ctx, n.ID, nil) // who compares it with another
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveSnapshot(ctx, "box"); err != nil {
		t.Error(err)
	}
	if has := s.drv.(drivers.Referrer).References()[n.ID]; has != 1 {
		t.Errorf("the reader's reference: %d", has)
	}
	if _, err := os.Stat(root); err != nil {
		t.Errorf("what is read is gone: %v", err)
	}
	if err := s.drv.Put(ctx, n.ID); err != nil {
		t.Error(err)
	}
	if n, err := s.CleanSnapshots(ctx); n != 1 || err != nil {
		t.Errorf("clean-up: %d, %v", n, err)
	}
}

// A commit that is refused leaves the mount.
func TestMountSnapshotCommitRefused(t *testing.T) {
	s, _ := snapshotStore(t)
	ctx := context.Background()
	top := snapshotChain(t, s, 1)
	if _, err := s.CreateSnapshot(ctx, "box", top, SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	root := mountSnapshot(t, s, "box")
	for name, labels := range map[string]map[string]string{top: nil, "new": {"a": string(make([]byte, MaxData))}} {
		if _, err := s.CommitSnapshot(ctx, name, "box", SnapshotCommit{Labels: labels}); err == nil {
			t.Errorf("committed as %s", name)
		}
		if !drivers.IsMountPoint(root) {
			t.Fatalf("not mounted after the commit as %s was refused", name)
		}
	}
	if err := s.UnmountSnapshot(ctx, "box"); err != nil || drivers.IsMountPoint(root) {
		t.Errorf("unmount: %v", err)
	}
	if err := s.UnmountSnapshot(ctx, "box"); err != nil {
		t.Errorf("unmount of what is not mounted: %v", err)
	}
	if err := s.UnmountSnapshot(ctx, "none"); !errors.Is(err, drivers.ErrNotFound) {
		t.Errorf("unmount of nothing: %v", err)
	}
	if err := s.RemoveSnapshot(ctx, "box"); err != nil {
		t.Error(err)
	}
}

// A mount that somebody took away is made again.
func TestMountSnapshotAnew(t *testing.T) {
	s, _ := snapshotStore(t)
	top := snapshotChain(t, s, 1)
	if _, err := s.CreateSnapshot(context.Background(), "box", top, SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	root := mountSnapshot(t, s, "box")
	if err := unix.Unmount(root, 0); err != nil {
		t.Fatal(err)
	}
	mountSnapshot(t, s, "box")
	if err := s.RemoveSnapshot(context.Background(), "box"); err != nil {
		t.Error(err)
	}
}

// While something is open in the mount itself, a commit is refused, and a removed snapshot's space is given back later.
func TestMountSnapshotInUse(t *testing.T) {
	s, _ := snapshotStore(t)
	ctx := context.Background()
	top := snapshotChain(t, s, 1)
	if _, err := s.CreateSnapshot(ctx, "box", top, SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	root := mountSnapshot(t, s, "box")
	f, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CommitSnapshot(ctx, "new", "box", SnapshotCommit{}); !errors.Is(err, drivers.ErrInUse) {
		t.Errorf("commit: %v, want ErrInUse", err)
	}
	if again := mountSnapshot(t, s, "box"); again != root {
		t.Errorf("after a commit that failed it is at %s, before at %s", again, root)
	}
	if err := s.RemoveSnapshot(ctx, "box"); err != nil {
		t.Error(err)
	}
	if _, err := s.CleanSnapshots(ctx); !errors.Is(err, drivers.ErrInUse) {
		t.Errorf("clean-up: %v, want ErrInUse", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if n, err := s.CleanSnapshots(ctx); n != 1 || err != nil {
		t.Errorf("clean-up: %d, %v", n, err)
	}
	if drivers.IsMountPoint(root) {
		t.Error("it is still mounted")
	}
}

func TestMountSnapshotRefusals(t *testing.T) {
	s, _ := snapshotStore(t)
	ctx := context.Background()
	top := snapshotChain(t, s, 1)
	for name, o := range map[string]SnapshotOptions{"view": {Kind: SnapshotView}, "unpacked": {Content: SnapshotUnpacked}} {
		if _, err := s.CreateSnapshot(ctx, name, top, o); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]error{
		"none": drivers.ErrNotFound, top: drivers.ErrInvalid, "view": drivers.ErrInvalid, "unpacked": drivers.ErrInvalid, "": drivers.ErrInvalid,
	} {
		if _, err := s.MountSnapshot(ctx, name); !errors.Is(err, want) {
			t.Errorf("snapshot %q: %v, want %v", name, err, want)
		}
	}
	if has := s.drv.(drivers.Referrer).References(); len(has) > 0 {
		t.Errorf("there are references: %v", has)
	}
}

// Many may ask at once, and beside the removal.
func TestMountSnapshotConcurrently(t *testing.T) {
	s, _ := snapshotStore(t)
	ctx := context.Background()
	top := snapshotChain(t, s, 1)
	if _, err := s.CreateSnapshot(ctx, "box", top, SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	var asking sync.WaitGroup
	for i := range 16 {
		asking.Go(func() {
			if _, err := s.MountSnapshot(ctx, "box"); err != nil && (i < 8 || !errors.Is(err, drivers.ErrNotFound)) {
				t.Error(err)
			}
		})
		if i == 7 {
			asking.Wait()
			mountSnapshot(t, s, "box")
			asking.Go(func() {
				if err := s.RemoveSnapshot(ctx, "box"); err != nil {
					t.Error(err)
				}
			})
		}
	}
	asking.Wait()
	if has := s.drv.(drivers.Referrer).References(); len(has) > 0 {
		t.Errorf("there are references: %v", has)
	}
}
