package layerdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/drivers/vfs"
	"plyfs/internal/fingerprint"
	"plyfs/internal/testenv"
)

func bothDrivers(f *faults) *drivers.Registry {
	stack := stackFactory("stack", asItIs)
	if f != nil {
		stack = faultyFactory(stack, f)
	}
	return drivers.NewRegistry(vfs.Factory(), stack)
}

// movable is a closed store of vfs with an image of three layers, and a container in which files were made and removed.
func movable(t *testing.T) (o Options, tars [][]byte) {
	t.Helper()
	ctx := context.Background()
	o = optionsAt(filepath.Join(testenv.Scratch(t), "store"))
	o.Registry = bothDrivers(nil)
	s, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	tars = imageTars(t, 2)
	tars = append(tars, stream(t, file{name: "d/.wh.f0"}, file{name: "d/x", content: "one"}, file{name: "d/x", content: "two"}))
	layers, err := s.RegisterAll(ctx, sourcesOf(tars), RegisterAllOptions{Hold: &Holder{Kind: "image", Key: "it"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateContainer(ctx, "c", layers[2].ID, ContainerOptions{Labels: map[string]string{"k": "v"}}); err != nil {
		t.Fatal(err)
	}
	inContainer(t, s, func(root string) {
		writeTo(t, filepath.Join(root, "made"), "in the container")
		if err := os.Remove(filepath.Join(root, "d", "f1")); err != nil {
			t.Fatal(err)
		}
	})
	return o, tars
}

func inContainer(t *testing.T, s *Store, fn func(root string)) {
	t.Helper()
	ctx := context.Background()
	root, err := s.Mount(ctx, "c", MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	fn(root)
	if err := s.Unmount(ctx, "c"); err != nil {
		t.Fatal(err)
	}
}

// mustHaveMoved compares a store with what movable made.
func mustHaveMoved(t *testing.T, s *Store, tars [][]byte) {
	t.Helper()
	ctx := context.Background()
	layers, err := s.Layers(ctx)
	if err != nil || len(layers) != len(tars) {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	for i, l := range layers {
		if !bytes.Equal(export(t, s, l.ID), tars[i]) {
			t.Errorf("layer %d goes out changed", i)
		}
	}
	mustHoldFile(t, s, "c", "made", "in the container")
	inContainer(t, s, func(root string) {
		if exists(filepath.Join(root, "d", "f1")) || exists(filepath.Join(root, "d", "f0")) || !exists(filepath.Join(root, "d", "x")) {
			t.Error("whiteouts are lost")
		}
	})
	rep, err := s.Check(ctx, CheckOptions{Mode: CheckContent})
	// A copy may be ahead of its record by what was interrupted.
	rep.Problems = slices.DeleteFunc(rep.Problems, func(p Problem) bool { return p.Kind == ProblemCopy })
	if err != nil || len(rep.Problems) > 0 {
		t.Errorf("%+v, %v", rep, err)
	}
}

// A store moves to another driver and back, with everything, and the old one stays until it is removed.
func TestMigrate(t *testing.T) {
	ctx := context.Background()
	o, tars := movable(t)
	s, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { closeStore(t, s) }()
	if err := s.Migrate(ctx, "vfs", MigrateOptions{}); !errors.Is(err, drivers.ErrExists) {
		t.Errorf("to where it is: %v", err)
	}
	if err := s.Migrate(ctx, "floppy", MigrateOptions{}); !errors.Is(err, drivers.ErrNotFound) {
		t.Errorf("to nowhere: %v", err)
	}
	var objects []string
	err = s.Migrate(ctx, "stack", MigrateOptions{Progress: func(p MigrateProgress) { objects = append(objects, p.Object) }})
	if err != nil {
		t.Fatal(err)
	}
	if len(objects) != 5 || objects[3] != "c" || objects[4] != "" {
		t.Errorf("progress: %q", objects)
	}
	mustHaveMoved(t, s, tars)
	closeStore(t, s)
	if _, err := Open(ctx, optionsWith(o, "vfs")); !errors.Is(err, drivers.ErrOtherDriver) {
		t.Errorf("with the old driver: %v", err)
	}
	if s, err = Open(ctx, o); err != nil {
		t.Fatal(err)
	}
	mustHaveMoved(t, s, tars)
	// What happens in between counts when it moves back.
	inContainer(t, s, func(root string) { writeTo(t, filepath.Join(root, "made"), "later") })
	if err := s.Migrate(ctx, "vfs", MigrateOptions{Old: RemoveOld}); err != nil {
		t.Fatal(err)
	}
	mustHoldFile(t, s, "c", "made", "later")
	if exists(s.path(layersDir, "stack")) {
		t.Error("the old store is there")
	}
	if old, err := s.Old(ctx); err != nil || len(old) > 0 {
		t.Errorf("old stores: %v, %v", old, err)
	}
	emptyStore(t, s)
}

// The records of a migrated store name both drivers, and those of a database that is rebuilt one: their copies follow.
func TestRebuildMigrated(t *testing.T) {
	ctx := context.Background()
	o, tars := movable(t)
	s, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Migrate(ctx, "stack", MigrateOptions{})
	closeStore(t, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(o.Root, dbDir)); err != nil {
		t.Fatal(err)
	}
	rep, err := Rebuild(ctx, o)
	if err != nil || len(rep.Problems) > 0 || rep.Layers != len(tars) || rep.Containers != 1 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if s, err = Open(ctx, o); err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	mustHaveMoved(t, s, tars)
}

func optionsWith(o Options, driver string) Options {
	o.Driver = driver
	return o
}

// A migration refuses what it cannot do, and leaves the store as it was.
func TestMigrateRefuses(t *testing.T) {
	ctx := context.Background()
	o, tars := movable(t)
	s, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	if _, err := s.Mount(ctx, "c", MountOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Migrate(ctx, "stack", MigrateOptions{}); !errors.Is(err, drivers.ErrInUse) {
		t.Errorf("mounted: %v", err)
	}
	if err := s.Unmount(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	r, err := s.Diff(ctx, "c")
	if err != nil {
		t.Fatal(err)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Migrate(canceled, "stack", MigrateOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a reader is open: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	mustHaveMoved(t, s, tars)
}

// What no layer can hold of a container goes along, too.
func TestMigrateKeepsContainers(t *testing.T) {
	ctx := context.Background()
	o, tars := movable(t)
	s, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	var before *fingerprint.Tree
	take := func(root string) *fingerprint.Tree {
		tree, err := fingerprint.Take(root, fingerprint.Options{Fields: fingerprint.Default})
		if err != nil {
			t.Fatal(err)
		}
		return tree
	}
	inContainer(t, s, func(root string) {
		writeTo(t, filepath.Join(root, "d", "trusted"), "t")
		at := unix.Timespec{Sec: 1_600_000_000, Nsec: 123_456_789}
		if err := errors.Join(unix.Mknod(filepath.Join(root, "d", "socket"), unix.S_IFSOCK|0o640, 0),
			os.Chown(filepath.Join(root, "d", "socket"), 3, 4), unix.Setxattr(filepath.Join(root, "d", "trusted"), "trusted.k", []byte("v"), 0),
			os.Chown(root, 7, 7), unix.Chmod(root, 0o1750), unix.Setxattr(root, "user.k", []byte("v"), 0),
			unix.UtimesNano(filepath.Join(root, "d"), []unix.Timespec{at, at}), unix.UtimesNano(root, []unix.Timespec{at, at})); err != nil {
			t.Fatal(err)
		}
		before = take(root)
	})
	for _, to := range []string{"stack", "vfs"} {
		if err := s.Migrate(ctx, to, MigrateOptions{Old: RemoveOld}); err != nil {
			t.Fatal(err)
		}
		inContainer(t, s, func(root string) {
			if d := fingerprint.Diff(before, take(root), fingerprint.Default); d != nil {
				t.Errorf("in %s:\n%s", to, fingerprint.Format(d, 20))
			}
		})
	}
	mustHaveMoved(t, s, tars)
}

// A container with something that can't go along stays where it is, with all of it, and the message says what that is.
func TestMigrateRefusesToLose(t *testing.T) {
	ctx := context.Background()
	o, _ := movable(t)
	var said strings.Builder
	o.Log = slog.New(slog.NewTextHandler(&said, nil))
	s, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	inContainer(t, s, func(root string) {
		if err := os.Mkdir(filepath.Join(root, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		writeTo(t, filepath.Join(root, "sub", ".wh.x"), "deep")
		writeTo(t, filepath.Join(root, "state"), "9")
	})
	if _, err := s.Commit(ctx, "c", RegisterOptions{}); err != nil {
		t.Fatal(err)
	}
	if text := said.String(); !strings.Contains(text, "container=c") || !strings.Contains(text, "path=/sub/.wh.x") {
		t.Errorf("a commit without the file said %q", text)
	}
	for range 2 {
		err := s.Migrate(ctx, "stack", MigrateOptions{Old: RemoveOld})
		if !errors.Is(err, drivers.ErrNotSupported) || !strings.Contains(fmt.Sprint(err), "/sub/.wh.x") || !strings.Contains(fmt.Sprint(err), "c: ") {
			t.Fatalf("%v, want ErrNotSupported for /sub/.wh.x of c", err)
		}
	}
	if s.Driver().Name() != "vfs" {
		t.Error("the store went away from its driver")
	}
	mustHoldFile(t, s, "c", "sub/.wh.x", "deep")
	mustHoldFile(t, s, "c", "state", "9")
	inContainer(t, s, func(root string) {
		if err := os.Rename(filepath.Join(root, "sub", ".wh.x"), filepath.Join(root, "sub", "x")); err != nil {
			t.Fatal(err)
		}
	})
	if err := s.Migrate(ctx, "stack", MigrateOptions{Old: RemoveOld}); err != nil {
		t.Fatal(err)
	}
	mustHoldFile(t, s, "c", "sub/x", "deep")
	mustHoldFile(t, s, "c", "made", "in the container")
}

// A migration whose target has too little room says so before it copies anything.
func TestMigrateNeedsSpace(t *testing.T) {
	ctx := context.Background()
	o, _ := movable(t)
	s, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	huge, err := s.Layers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	l := huge[2]
	l.Content = 1 << 60
	if err := s.putRecord(Record{Layer: &l, Drivers: []string{"vfs"}}); err != nil {
		t.Fatal(err)
	}
	err = s.Migrate(ctx, "stack", MigrateOptions{Progress: func(MigrateProgress) { t.Error("something is moved") }})
	if !errors.Is(err, ErrNoSpace) {
		t.Errorf("%v, want ErrNoSpace", err)
	}
}

// A migration that is interrupted and not wanted any more leaves nothing in the driver that it went to.
func TestMigrateGivenUp(t *testing.T) {
	ctx := context.Background()
	o, tars := movable(t)
	s, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	interrupt, cancel := context.WithCancel(ctx)
	err = s.Migrate(interrupt, "stack", MigrateOptions{Progress: func(p MigrateProgress) {
		if p.Done == 2 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	moved := filepath.Join(o.Root, layersDir, "stack")
	if left, err := os.ReadDir(moved); err != nil || len(left) == 0 {
		t.Fatalf("nothing was moved: %v", err)
	}
	if err := s.RemoveOld(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(moved); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", moved, err)
	}
	if m, err := s.meta(); err != nil || m.To != "" || len(m.Old) > 0 {
		t.Errorf("the store's record still says %+v: %v", m, err)
	}
	mustHaveMoved(t, s, tars)
	if s.Driver().Name() != "vfs" {
		t.Error("the store went away from its driver")
	}
	if err := s.Migrate(ctx, "stack", MigrateOptions{Old: RemoveOld}); err != nil {
		t.Fatal(err)
	}
	mustHaveMoved(t, s, tars)
}

// Wherever a migration is interrupted, the store is the old driver's or the new one's, and the next attempt goes on.
func TestMigrateInterrupted(t *testing.T) {
	ctx := context.Background()
	for at := 1; ; at++ {
		f := &faults{mode: failBefore, at: at}
		done := false
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			o, tars := movable(t)
			o.Registry = bothDrivers(f)
			s, err := openStore(ctx, o, func(s *Store) (database, error) {
				db, err := openDatabase(s)
				return &faultyDB{db, f}, err
			})
			if err != nil {
				t.Fatal(err)
			}
			failed := s.Migrate(ctx, "stack", MigrateOptions{})
			closeStore(t, s)
			if done = f.n < at; done {
				if failed != nil {
					t.Error(failed)
				}
				return
			}
			o.Registry = bothDrivers(nil)
			if s, err = Open(ctx, o); err != nil {
				t.Fatal(err)
			}
			defer closeStore(t, s)
			mustHaveMoved(t, s, tars)
			if s.Driver().Name() == "vfs" {
				inContainer(t, s, func(root string) { writeTo(t, filepath.Join(root, "made"), "in between") })
				if err := s.Migrate(ctx, "stack", MigrateOptions{}); err != nil {
					t.Fatal(err)
				}
				mustHoldFile(t, s, "c", "made", "in between")
			}
			if err := s.RemoveOld(ctx); err != nil {
				t.Error(err)
			}
			emptyStore(t, s)
		})
		if done || t.Failed() {
			return
		}
	}
}
