package layerdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/drivers/vfs"
	"plyfs/internal/testenv"
	"plyfs/metadata/kv"
)

// One process has a store; another is told which, after it waited.
func TestLocked(t *testing.T) {
	s := newStore(t)
	_, err := Open(context.Background(), optionsAt(s.Root()))
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("%v; want ErrLocked and the process", err)
	}
	o := optionsAt(s.Root())
	o.Wait = NoWait
	if _, err := Open(context.Background(), o); !errors.Is(err, ErrLocked) || strings.Contains(err.Error(), "waited") {
		t.Errorf("not waiting: %v", err)
	}
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	o.Wait = 0
	if _, err := Open(canceled, o); !errors.Is(err, ErrLocked) || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	if _, err := s.Layers(context.Background()); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	openAt(t, s.Root())
}

// Who waits for a store gets it when it is free.
func TestWaits(t *testing.T) {
	s := newStore(t)
	o := optionsAt(s.Root())
	o.Wait = defaultWait
	opened := make(chan error)
	go func() {
		second, err := Open(context.Background(), o)
		if err == nil {
			err = second.Close()
		}
		opened <- err
	}()
	closeStore(t, s)
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

// A store that another driver made is refused with the way out, with and without the file that names it.
func TestOtherDriver(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	root := s.Root()
	register(t, s, "", stream(t, file{name: "a"}), RegisterOptions{})
	closeStore(t, s)
	o := optionsAt(root)
	o.Registry = drivers.NewRegistry(vfs.Factory(), stackFactory("stack", asItIs))
	o.Driver = "stack"
	for range 2 {
		_, err := Open(ctx, o)
		if !errors.Is(err, drivers.ErrOtherDriver) || !strings.Contains(err.Error(), "plyfs layer migrate --to stack") {
			t.Errorf("%v", err)
		}
		if err := os.RemoveAll(filepath.Join(root, driverFile)); err != nil {
			t.Fatal(err)
		}
	}
	// No migration leads to a driver that there is not.
	o.Driver = "floppy"
	if _, err := Open(ctx, o); !errors.Is(err, drivers.ErrNotFound) || strings.Contains(err.Error(), "migrate") {
		t.Errorf("a driver that there is not: %v", err)
	}
	o.Driver = ""
	s, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	if b, err := os.ReadFile(filepath.Join(root, driverFile)); err != nil || string(b) != "vfs\n" {
		t.Errorf("file driver: %q, %v", b, err)
	}
}

// A store of another version is refused, and not touched.
func TestOtherVersion(t *testing.T) {
	s := newStore(t)
	root := s.Root()
	closeStore(t, s)
	if err := os.RemoveAll(filepath.Join(root, dbDir)); err != nil {
		t.Fatal(err)
	}
	db, err := kv.Open(filepath.Join(root, dbDir), kv.Options{Profile: kv.Durable, Schema: schema + 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), optionsAt(root)); !errors.Is(err, ErrVersion) {
		t.Errorf("%v, want ErrVersion", err)
	}
	if _, err := Rebuild(context.Background(), optionsAt(root)); !errors.Is(err, ErrVersion) {
		t.Errorf("rebuild: %v, want ErrVersion", err)
	}
}

// What cannot be opened is given back whole.
func TestOpenRefuses(t *testing.T) {
	root := filepath.Join(testenv.Scratch(t), "store")
	for name, o := range map[string]Options{
		"no registry":    {Root: root},
		"unknown driver": {Root: root, Driver: "floppy", Registry: registry(), Wait: -1},
		"no driver":      {Root: root, Registry: drivers.NewRegistry(), Wait: -1},
		"unknown option": {Root: root, Registry: registry(), DriverOptions: map[string]string{"no": "such"}, Wait: -1},
	} {
		if _, err := Open(context.Background(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	openAt(t, root)
}

// Holders change together or not at all, and what one drops another may take.
func TestHolders(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	a := register(t, s, "", stream(t, file{name: "a"}), RegisterOptions{Hold: &Holder{Kind: "test", Key: "a", Data: []byte("1")}})
	b := register(t, s, "", stream(t, file{name: "b"}), RegisterOptions{Hold: &Holder{Kind: "test", Key: "b"}})
	first, err := s.Holder(ctx, Ref{"test", "a"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Hold(ctx, holder("a", b.ID), holder("b", a.ID)); err != nil {
		t.Fatal("swap:", err)
	}
	if h, err := s.Holder(ctx, Ref{"test", "a"}); err != nil || len(h.Layers) != 1 || h.Layers[0] != b.ID || h.Data != nil ||
		!h.Created.Equal(first.Created) {
		t.Errorf("%+v, %v", h, err)
	}
	unknown := ChainID(diffID([]byte("unknown")))
	for name, u := range map[string]Update{
		"unknown layer":  {Hold: []Holder{holder("c", a.ID), holder("a", unknown)}},
		"unknown holder": {Hold: []Holder{holder("c", a.ID)}, Release: []Ref{{"test", "nobody"}}},
		"twice":          {Hold: []Holder{holder("c", a.ID)}, Release: []Ref{{"test", "c"}}},
		"too much":       {Hold: []Holder{{Kind: "test", Key: "c", Data: bytes.Repeat([]byte{0}, MaxData+1)}}},
		"no key":         {Hold: []Holder{{Kind: "test"}}},
		"odd kind":       {Hold: []Holder{{Kind: "a/b", Key: "c"}}},
		"odd key":        {Hold: []Holder{{Kind: "test", Key: "\xff"}}},
	} {
		if err := s.Change(ctx, u); !errors.Is(err, drivers.ErrNotFound) && !errors.Is(err, drivers.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if all, err := s.Holders(ctx, ""); err != nil || len(all) != 2 {
		t.Errorf("%+v, %v", all, err)
	}
	if rep, err := s.Check(ctx, CheckOptions{}); err != nil || len(rep.Problems) > 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	if err := s.Hold(ctx, Holder{Kind: "test", Key: "a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Layer(ctx, b.ID); !errors.Is(err, drivers.ErrNotFound) {
		t.Errorf("a layer that nobody holds any more is there: %v", err)
	}
	emptyStore(t, s)
}

// Containers refuse what cannot be, and leave nothing of it.
func TestContainerRefuses(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	lower, _ := populated(t, s)
	for name, c := range map[string]struct {
		name   string
		parent ChainID
		o      ContainerOptions
		want   error
	}{
		"taken":     {"c", lower.ID, ContainerOptions{}, drivers.ErrExists},
		"odd name":  {"../c", lower.ID, ContainerOptions{}, drivers.ErrInvalid},
		"no parent": {"d", ChainID(diffID(nil)), ContainerOptions{}, drivers.ErrNotFound},
		"quota":     {"d", lower.ID, ContainerOptions{Quota: drivers.Quota{Bytes: -1}}, drivers.ErrInvalid},
		"option":    {"d", lower.ID, ContainerOptions{Options: map[string]string{"no": "such"}}, drivers.ErrInvalid},
	} {
		if _, err := s.CreateContainer(ctx, c.name, c.parent, c.o); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	for name, err := range map[string]error{
		"unmount": s.Unmount(ctx, "c"), "unmount nothing": s.Unmount(ctx, "d"), "remove nothing": s.RemoveContainer(ctx, "d"),
	} {
		if !errors.Is(err, drivers.ErrInvalid) && !errors.Is(err, drivers.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if rep, err := s.Check(ctx, CheckOptions{}); err != nil || len(rep.Problems) > 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	emptyStore(t, s)
}

// References to mounts are the store's: another process gives them back. A boot later there are none.
func TestMountOutlivesProcess(t *testing.T) {
	ctx := context.Background()
	o := optionsAt(filepath.Join(testenv.Scratch(t), "store"))
	o.Registry = drivers.NewRegistry(stackFactory("stack", asItIs))
	s, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	populated(t, s)
	for range 2 {
		root, err := s.Mount(ctx, "c", MountOptions{})
		if err != nil {
			t.Fatal(err)
		}
		writeTo(t, filepath.Join(root, "written"), "x")
	}
	if _, err := s.Mount(ctx, "c", MountOptions{ReadOnly: true}); !errors.Is(err, drivers.ErrInUse) {
		t.Errorf("other options: %v", err)
	}
	closeStore(t, s)
	if s, err = Open(ctx, o); err != nil {
		t.Fatal(err)
	}
	defer func() { closeStore(t, s) }()
	if c, err := s.Container(ctx, "c"); err != nil || c.Mounts != 2 {
		t.Errorf("%+v, %v", c, err)
	}
	if err := s.RemoveContainer(ctx, "c"); !errors.Is(err, drivers.ErrInUse) {
		t.Errorf("remove: %v", err)
	}
	if err := errors.Join(s.Unmount(ctx, "c"), s.Unmount(ctx, "c")); err != nil {
		t.Error(err)
	}
	if list, err := s.Changes(ctx, "c"); err != nil || fmt.Sprint(list) != "[A /written]" {
		t.Errorf("%v, %v", list, err)
	}
	if n, err := s.DiffSize(ctx, "c"); err != nil || n != 1 {
		t.Errorf("%d, %v", n, err)
	}
	if u, err := s.Usage(ctx, "c"); err != nil || u.Bytes != 1 {
		t.Errorf("%+v, %v", u, err)
	}
	s.boot = "another"
	s.drv.(*stackDriver).mounts = nil
	if c, err := s.Container(ctx, "c"); err != nil || c.Mounts != 0 {
		t.Errorf("after a boot: %+v, %v", c, err)
	}
}

// A mount that is made anew, because the first one is gone, is there until all who mounted have unmounted.
func TestMountAgain(t *testing.T) {
	ctx := context.Background()
	for _, b := range stackingBackends(t) {
		t.Run(b.Name, func(t *testing.T) {
			o := b.at(filepath.Join(testenv.Scratch(t), "store"))
			s, err := Open(ctx, o)
			if err != nil {
				t.Fatal(err)
			}
			populated(t, s)
			root, err := s.Mount(ctx, "c", MountOptions{})
			if err != nil {
				t.Fatal(err)
			}
			closeStore(t, s)
			if err := unix.Unmount(root, 0); err != nil {
				t.Fatal(err)
			}
			if s, err = Open(ctx, o); err != nil {
				t.Fatal(err)
			}
			defer func() { closeStore(t, s) }()
			if _, err := s.Mount(ctx, "c", MountOptions{}); err != nil {
				t.Fatal(err)
			}
			for left := 1; left >= 0; left-- {
				if err := s.Unmount(ctx, "c"); err != nil {
					t.Error(err)
				}
				if c, err := s.Container(ctx, "c"); err != nil || c.Mounts != left || drivers.IsMountPoint(root) != (left > 0) {
					t.Errorf("%d mounts, %v, and mounted: %t; want %d", c.Mounts, err, drivers.IsMountPoint(root), left)
				}
			}
			emptyStore(t, s)
		})
	}
}

// A database that lost all its files is not taken for a new one: the copies of its records bring it back.
func TestEmptiedDatabase(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	l := register(t, s, "", stream(t, file{name: "a"}), RegisterOptions{Hold: &Holder{Kind: "test", Key: "a"}})
	root, db := s.Root(), s.path(dbDir)
	closeStore(t, s)
	if err := errors.Join(os.RemoveAll(db), os.Mkdir(db, 0o700)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the first attempt leaves it as it is
		if _, err := Open(ctx, optionsAt(root)); !errors.Is(err, drivers.ErrDamaged) || !strings.Contains(err.Error(), "--repair") {
			t.Errorf("%v; want ErrDamaged and the way out", err)
		}
	}
	if _, err := Rebuild(ctx, optionsAt(root)); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, root)
	if _, err := s.Layer(ctx, l.ID); err != nil {
		t.Error(err)
	}
}

// A process that was killed in its first moments leaves a database that is not one yet, and no records: the store is made new.
func TestKilledBeginning(t *testing.T) {
	for name, files := range map[string][]string{
		"nothing": nil, "lock": {"LOCK"}, "manifest in the making": {"LOCK", "MANIFEST-REWRITE"},
	} {
		t.Run(name, func(t *testing.T) {
			root := filepath.Join(testenv.Scratch(t), "store")
			if err := os.MkdirAll(filepath.Join(root, dbDir), 0o700); err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				writeTo(t, filepath.Join(root, dbDir, f), "")
			}
			register(t, openAt(t, root), "", stream(t, file{name: "a"}), RegisterOptions{})
		})
	}
}

// Records are JSON, and could not name such a store.
func TestPathIsNotUTF8(t *testing.T) {
	root := filepath.Join(testenv.Scratch(t), "store\xff")
	if _, err := Open(context.Background(), optionsAt(root)); !errors.Is(err, drivers.ErrInvalid) || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("%v, want ErrInvalid", err)
	}
	if _, err := os.Lstat(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory was made: %v", err)
	}
}

// A store that can't be begun leaves nothing that was not there before, and those who wait for it meanwhile are not disturbed.
func TestOpenLeavesNothing(t *testing.T) {
	ctx := context.Background()
	bad := func(root string) Options {
		o := optionsAt(root)
		o.Driver, o.Wait = "floppy", 0
		return o
	}
	dir := testenv.Scratch(t)
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "empty"), 0o700), os.MkdirAll(filepath.Join(dir, "used/layers/x"), 0o700)); err != nil {
		t.Fatal(err)
	}
	writeTo(t, filepath.Join(dir, "used/layers/x/file"), "")
	unopened := optionsAt(filepath.Join(dir, "options"))
	unopened.DriverOptions = map[string]string{"no": "such"}
	late := optionsAt(filepath.Join(dir, "late"))
	late.Registry = drivers.NewRegistry(drivers.Factory{Name: "late", Open: func(_ context.Context, o drivers.Options) (drivers.Driver, error) {
		return nil, errors.Join(drivers.ErrPrerequisites, os.MkdirAll(filepath.Join(o.Home, "a/b"), 0o700), os.MkdirAll(o.Run, 0o700))
	}})
	late.Driver = "late"
	missing := optionsAt(filepath.Join(dir, "missing"))
	missing.MustExist = true
	for _, o := range []Options{
		bad(filepath.Join(dir, "new")), bad(filepath.Join(dir, "far/away/new")), bad(filepath.Join(dir, "empty")),
		bad(filepath.Join(dir, "used")), unopened, late, missing,
	} {
		if _, err := Open(ctx, o); err == nil {
			t.Errorf("%s: no error", o.Root)
		}
	}
	var left []string
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		left = append(left, strings.TrimPrefix(path, dir))
		return err
	})
	if want := "[ /empty /used /used/layers /used/layers/x /used/layers/x/file]"; err != nil || fmt.Sprint(left) != want {
		t.Errorf("left: %v, %v; want %s", left, err, want)
	}
	root := filepath.Join(dir, "both")
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			if _, err := Open(ctx, bad(root)); !errors.Is(err, drivers.ErrNotFound) && !errors.Is(err, drivers.ErrOtherDriver) {
				t.Errorf("unknown driver: %v", err)
			}
		})
		all.Go(func() {
			o := optionsAt(root)
			o.Wait = time.Minute
			s, err := Open(ctx, o)
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// TestNoPlaceForAStore: where a store can't be, the message says what to do, and no directory is left.
func TestNoPlaceForAStore(t *testing.T) {
	dir := testenv.Scratch(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		root string
		want error
	}{
		{file, unix.ENOTDIR},
		{filepath.Join(file, "below"), unix.ENOTDIR},
		{"/proc/store", unix.ENOENT},
		{filepath.Join(dir, "new", strings.Repeat("x", 256)), unix.ENAMETOOLONG},
	} {
		_, err := Open(context.Background(), optionsAt(c.root))
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), "PLYFS_ROOT names another") {
			t.Errorf("%s: %v", c.root, err)
		}
	}
	if left := listing(t, dir); strings.Contains(left, "new") {
		t.Errorf("left: %s", left)
	}
}

// TestUnmakeSparesAnother: an Open that has waited while another one began the store takes back nothing of it, not even what looks empty.
func TestUnmakeSparesAnother(t *testing.T) {
	ctx := context.Background()
	o := optionsAt(filepath.Join(testenv.Scratch(t), "store"))
	s, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateContainer(ctx, "c", "", ContainerOptions{}); err != nil {
		t.Fatal(err)
	}
	before := listing(t, o.Root)
	closeStore(t, s)
	late, err := lockRoot(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	// As if the directories had been made by this one, before the other had the lock.
	for _, dir := range []string{layersDir, runDir, tempDir} {
		late.made.dirs = append(late.made.dirs, late.path(dir))
	}
	late.unmake()
	if err := late.release(); err != nil {
		t.Fatal(err)
	}
	if after := listing(t, o.Root); after != before {
		t.Errorf("left:\n%s\nof:\n%s", after, before)
	}
}

// listing has the path of everything below root, but of the database's files.
func listing(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() && e.Name() == dbDir {
			return filepath.SkipDir
		}
		fmt.Fprintln(&b, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
