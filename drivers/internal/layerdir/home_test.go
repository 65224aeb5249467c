package layerdir_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/drivers/internal/layerdir"
	"plyfs/internal/sys"
	"plyfs/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m, testenv.Options{})) }

var must = testenv.Must

func open(t testing.TB, path string) *layerdir.Home {
	t.Helper()
	h, err := layerdir.Open(path)
	must(t, err)
	t.Cleanup(func() { must(t, h.Close()) })
	return h
}

func names(t testing.TB, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestOpen(t *testing.T) {
	testenv.CheckLeaks(t)
	dir := testenv.Scratch(t)
	h := open(t, filepath.Join(dir, "a", "b"))
	var st unix.Stat_t
	must(t, unix.Stat(h.Path(), &st))
	if st.Mode&0o7777 != 0o700 {
		t.Errorf("mode %o", st.Mode)
	}
	if _, err := layerdir.Open("relative"); !errors.Is(err, drivers.ErrInvalid) {
		t.Errorf("relative: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	if _, err := layerdir.Open(filepath.Join(dir, "file", "x")); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("beneath a file: %v", err)
	}
}

// ext4 puts layers far from each other.
func TestOpenSpreads(t *testing.T) {
	h := open(t, filepath.Join(testenv.Ext4(t, 16<<20), "home"))
	if flags, err := sys.GetFlags(h.FD()); err != nil || flags&sys.FlagTopDir == 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
}

func TestCreate(t *testing.T) {
	h := open(t, filepath.Join(testenv.Scratch(t), "home"))
	var stage string
	must(t, h.Create(t.Context(), "l", func(dir string) error {
		stage = dir
		if ok, err := h.Has("l"); ok || err != nil {
			t.Errorf("there before it is complete: %v", err)
		}
		// What this process is making is not swept.
		must(t, h.Sweep(t.Context(), nil))
		return os.WriteFile(filepath.Join(dir, "f"), nil, 0o600)
	}))
	if _, err := os.Stat(filepath.Join(h.Layer("l"), "f")); err != nil || stage == h.Layer("l") {
		t.Error(err, stage)
	}
	if err := h.Create(t.Context(), "l", nil); !errors.Is(err, drivers.ErrExists) {
		t.Error(err)
	}
	failure := errors.New("failure")
	if err := h.Create(t.Context(), "m", func(string) error { return failure }); !errors.Is(err, failure) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := h.Create(ctx, "m", func(string) error {
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	// Someone made it meanwhile.
	err = h.Create(t.Context(), "m", func(string) error { return os.Mkdir(h.Layer("m"), 0o700) })
	if !errors.Is(err, drivers.ErrExists) {
		t.Error(err)
	}
	if got := names(t, h.Path()); !slices.Equal(got, []string{"l", "m"}) {
		t.Errorf("home has %v", got)
	}
	if ids, err := h.IDs(); err != nil || len(ids) != 2 {
		t.Error(ids, err)
	}
}

func TestRemove(t *testing.T) {
	h := open(t, filepath.Join(testenv.Scratch(t), "home"))
	must(t, h.Create(t.Context(), "l", func(dir string) error { return os.MkdirAll(filepath.Join(dir, "d/e"), 0o700) }))
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Remove(done, "l", nil); !errors.Is(err, context.Canceled) || h.Need("l") != nil {
		t.Error(err, h.Need("l"))
	}
	must(t, h.Remove(t.Context(), "l", nil), h.Remove(t.Context(), "l", nil))
	if err := h.Need("l"); !errors.Is(err, drivers.ErrNotFound) {
		t.Error(err)
	}
	if got := names(t, h.Path()); got != nil {
		t.Errorf("home has %v", got)
	}
	must(t, h.Create(t.Context(), "m", func(string) error { return nil }))
	failure, told := errors.New("failure"), ""
	err := h.Remove(t.Context(), "m", func(dir string) error {
		told = dir
		return failure
	})
	if !errors.Is(err, failure) || !errors.Is(h.Need("m"), drivers.ErrNotFound) {
		t.Error(err, h.Need("m"))
	}
	must(t, h.Sweep(t.Context(), func(dir string) error {
		if dir != told {
			t.Errorf("swept %s, not %s", dir, told)
		}
		return nil
	}))
	if got := names(t, h.Path()); got != nil {
		t.Errorf("home has %v", got)
	}
	if err := h.Remove(t.Context(), "../x", nil); !errors.Is(err, drivers.ErrInvalid) {
		t.Error(err)
	}
}

func TestSweep(t *testing.T) {
	h := open(t, filepath.Join(testenv.Scratch(t), "home"))
	for _, n := range []string{".tmp-1/x", ".removing-2/y/z", "tmp-3", "removing-4"} {
		must(t, os.MkdirAll(filepath.Join(h.Path(), n), 0o700))
	}
	var told []string
	must(t, h.Sweep(t.Context(), func(dir string) error {
		told = append(told, filepath.Base(dir))
		return nil
	}))
	slices.Sort(told)
	if !slices.Equal(told, []string{".removing-2", ".tmp-1"}) {
		t.Errorf("told of %v", told)
	}
	if got := names(t, h.Path()); !slices.Equal(got, []string{"removing-4", "tmp-3"}) {
		t.Errorf("home has %v", got)
	}
}

func removeTree(t testing.TB, dir, name string) error {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	return layerdir.RemoveTree(t.Context(), fd, name)
}

func TestRemoveTree(t *testing.T) {
	testenv.CheckLeaks(t)
	dir := testenv.Scratch(t)
	out := filepath.Join(dir, "out")
	must(t, os.MkdirAll(filepath.Join(out, "keep"), 0o755), os.MkdirAll(filepath.Join(dir, "x/a/b"), 0o755),
		os.Symlink(out, filepath.Join(dir, "x/a/link")), os.Symlink("nowhere", filepath.Join(dir, "x/dangling")),
		unix.Mkfifo(filepath.Join(dir, "x/a/b/fifo"), 0o600), os.Chmod(filepath.Join(dir, "x/a/b"), 0))
	must(t, removeTree(t, dir, "x"), removeTree(t, dir, "x"), removeTree(t, dir, "not-there"))
	if got := names(t, dir); !slices.Equal(got, []string{"out"}) {
		t.Errorf("left: %v", got)
	}
	must(t, os.Symlink(out, filepath.Join(dir, "x")), removeTree(t, dir, "x"))
	if got := names(t, out); !slices.Equal(got, []string{"keep"}) {
		t.Errorf("a symlink was followed: %v", got)
	}
}

// Deeper than a path can say, and than there may be descriptors.
func TestRemoveTreeDeep(t *testing.T) {
	dir := testenv.Scratch(t)
	must(t, os.Mkdir(filepath.Join(dir, "x"), 0o755))
	fd, err := unix.Open(filepath.Join(dir, "x"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	const depth = 3000
	for range depth {
		must(t, unix.Mkdirat(fd, "subdirectory", 0o755), unix.Mkdirat(fd, "side", 0o755))
		next, err := unix.Openat(fd, "subdirectory", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	var old unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: old.Max}))
	err = removeTree(t, dir, "x")
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old), err)
	if got := names(t, dir); got != nil {
		t.Errorf("left: %v", got)
	}
}

// What is mounted in a tree is detached, not emptied.
func TestRemoveTreeMounts(t *testing.T) {
	dir := testenv.Scratch(t)
	out := filepath.Join(dir, "out")
	must(t, os.Mkdir(out, 0o755), os.WriteFile(filepath.Join(out, "precious"), nil, 0o600),
		os.MkdirAll(filepath.Join(dir, "x/a/full"), 0o755), os.MkdirAll(filepath.Join(dir, "x/empty"), 0o755),
		os.WriteFile(filepath.Join(dir, "x/a/full/f"), nil, 0o600), os.WriteFile(filepath.Join(dir, "x/file"), nil, 0o600))
	for _, m := range []string{"x/a/full", "x/empty", "x/empty"} {
		must(t, unix.Mount(out, filepath.Join(dir, m), "", unix.MS_BIND, ""))
	}
	must(t, unix.Mount(filepath.Join(out, "precious"), filepath.Join(dir, "x/file"), "", unix.MS_BIND, ""))
	must(t, removeTree(t, dir, "x"))
	if got := names(t, dir); !slices.Equal(got, []string{"out"}) {
		t.Errorf("left: %v", got)
	}
	if got := names(t, out); !slices.Equal(got, []string{"precious"}) {
		t.Errorf("what was mounted has %v", got)
	}
}

func TestRemoveTreeImmutable(t *testing.T) {
	dir := testenv.Ext4(t, 16<<20)
	must(t, os.MkdirAll(filepath.Join(dir, "x/d"), 0o755), os.WriteFile(filepath.Join(dir, "x/d/f"), nil, 0o600),
		os.WriteFile(filepath.Join(dir, "x/g"), nil, 0o600))
	const immutable, appendOnly = 0x10, 0x20
	var m *sys.Mutator
	for p, flag := range map[string]uint32{"x/d/f": immutable, "x/d": appendOnly, "x/g": appendOnly} {
		fd, err := unix.Open(filepath.Join(dir, p), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must(t, err)
		must(t, m.SetFlags(fd, flag))
		unix.Close(fd)
	}
	must(t, removeTree(t, dir, "x"))
	if got := names(t, dir); slices.Contains(got, "x") {
		t.Errorf("left: %v", got)
	}
}

func TestRemoveTreeCancelled(t *testing.T) {
	dir := testenv.Scratch(t)
	must(t, os.MkdirAll(filepath.Join(dir, "x/d/e"), 0o755))
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := layerdir.RemoveTree(ctx, fd, "x"); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "x") {
		t.Error(err)
	}
}

func TestUsage(t *testing.T) {
	testenv.CheckLeaks(t)
	dir := testenv.Scratch(t)
	must(t, os.MkdirAll(filepath.Join(dir, "x/d"), 0o755), os.WriteFile(filepath.Join(dir, "x/f"), make([]byte, 100_000),
		0o600),
		os.Link(filepath.Join(dir, "x/f"), filepath.Join(dir, "x/d/g")), os.Symlink("f", filepath.Join(dir, "x/s")),
		os.Mkdir(filepath.Join(dir, "x/m"), 0o755), unix.Mount("tmpfs", filepath.Join(dir, "x/m"), "tmpfs", 0, ""),
		os.WriteFile(filepath.Join(dir, "x/m/big"), make([]byte, 1<<20), 0o600))
	defer testenv.Unmount(t, filepath.Join(dir, "x/m"))
	u, err := layerdir.Usage(t.Context(), filepath.Join(dir, "x"))
	must(t, err)
	if u.Inodes != 4 || u.Bytes < 100_000 || u.Bytes > 200_000 {
		t.Errorf("%+v", u)
	}
}

func TestScratch(t *testing.T) {
	dir := testenv.Scratch(t)
	at, remove, err := layerdir.Scratch(filepath.Join(dir, "a", "b"))
	must(t, err)
	if filepath.Dir(at) != dir {
		t.Errorf("made %s", at)
	}
	must(t, os.WriteFile(filepath.Join(at, "f"), nil, 0o600), remove())
	if got := names(t, dir); got != nil {
		t.Errorf("left: %v", got)
	}
	if layerdir.FSName(dir) != "tmpfs" {
		t.Errorf("file system %s", layerdir.FSName(dir))
	}
}
