package indexdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"plyfs/metadata"
	"plyfs/metadata/kv"
	"plyfs/metadata/metadatatest"
)

func testStack(n uint64) *metadata.Stack {
	return &metadata.Stack{Layers: []metadata.LayerID{{UUID: [16]byte{1}, Ino: n, Btime: metadata.Time{Sec: 5, Nsec: 6}, Handle: []byte("h")}}, IDMap: "m", Options: "o"}
}

func openCache(t testing.TB, dir string) (*Cache, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	c, err := OpenCache(dir, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, &log
}

// views of the test index; the last one's record is larger than a block of a table and the threshold of the value log.
func testViews() map[string]*metadata.Record {
	return map[string]*metadata.Record{"": metadatatest.TypicalRecord(1), "a": metadatatest.TypicalRecord(10), "a/b": metadatatest.TypicalRecord(100), "empty": metadatatest.TypicalRecord(0)}
}

// recorded is what comes back of an entry of a typical record.
func recorded(e metadata.Entry) metadata.Entry {
	e.NoXattrs = true
	return e
}

func build(t testing.TB, c *Cache, s *metadata.Stack, views map[string]*metadata.Record) {
	t.Helper()
	b, err := c.Build(s, BuildOptions{Digests: true, Layers: []string{"/l1", "/l2"}})
	if err != nil {
		t.Fatal(err)
	}
	for view, r := range views {
		if err := b.Put(view, r); err != nil {
			t.Fatal(err)
		}
		if err := b.PutDigests(view, []metadata.Digest{{Name: view, Size: 1, Sum: 2}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, c *Cache, s *metadata.Stack) *Index {
	t.Helper()
	x, err := c.Open(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

// checkViews compares what the index answers with what was recorded.
func checkViews(t *testing.T, x *Index, views map[string]*metadata.Record) {
	t.Helper()
	for view, r := range views {
		d, err := x.Dir(view)
		if err != nil || d == nil {
			t.Fatalf("Dir(%q) = %v, %v", view, d, err)
		}
		var e metadata.Entry
		for i := range r.Entries {
			want := recorded(r.Entries[i])
			if ok, err := d.Find(want.Name, &e); !ok || err != nil || !reflect.DeepEqual(e, want) {
				t.Fatalf("%q: %q: %v %v\n%+v, want\n%+v", view, want.Name, ok, err, e, want)
			}
		}
		ds, err := x.Digests(view)
		if err != nil || !reflect.DeepEqual(ds, []metadata.Digest{{Name: view, Size: 1, Sum: 2}}) {
			t.Fatalf("Digests(%q) = %v, %v", view, ds, err)
		}
	}
	if d, err := x.Dir("none"); d != nil || err != nil {
		t.Fatalf("Dir of nothing = %v, %v", d, err)
	}
}

func TestBuildAndOpen(t *testing.T) {
	c, log := openCache(t, filepath.Join(t.TempDir(), "new", "cache"))
	s, views := testStack(1), testViews()
	if _, err := c.Open(s); !errors.Is(err, ErrNotBuilt) {
		t.Fatalf("open before the build: %v, want ErrNotBuilt", err)
	}
	build(t, c, s, views)
	x := open(t, c, s)
	checkViews(t, x, views)
	var walked []string
	err := x.Walk(t.Context(), func(view string, d *metadata.Dir) error {
		walked = append(walked, view)
		if d.Len() != len(views[view].Entries) {
			t.Errorf("%q has %d entries", view, d.Len())
		}
		return nil
	})
	if want := []string{"", "a", "a/b", "empty"}; err != nil || !slices.Equal(walked, want) {
		t.Errorf("walked %q, %v; want %q", walked, err, want)
	}
	stop := errors.New("stop")
	if err := x.Walk(t.Context(), func(string, *metadata.Dir) error { return stop }); err != stop { //nolint:errorlint // itself, not wrapped
		t.Errorf("Walk returns %v, not the function's error", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := x.Walk(ctx, func(string, *metadata.Dir) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("Walk returns %v, not that of the context", err)
	}
	i := x.Info()
	if i.Entries != 111 || i.Dirs != 4 || !i.Digests || len(i.Layers) != 2 || i.Bytes == 0 || i.Stale != "" || i.Broken != "" ||
		time.Since(i.Built) > time.Hour || i.Path != c.path(s.Name()) {
		t.Errorf("info %+v", i)
	}
	list, err := c.List()
	if err != nil || len(list) != 1 || !reflect.DeepEqual(list[0], i) {
		t.Errorf("list %+v, %v; want %+v", list, err, i)
	}
	if log.Len() > 0 {
		t.Errorf("log: %s", log)
	}
	checkNames(t, c, s.Name())
}

// checkNames checks what is in the cache, the lock aside.
func checkNames(t *testing.T, c *Cache, want ...string) {
	t.Helper()
	got, err := c.names(func(n string) bool { return n != lockFile })
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("the cache has %q, %v; want %q", got, err, want)
	}
}

func TestStackNames(t *testing.T) {
	names := map[string]string{}
	base := func() *metadata.Stack { return testStack(1) }
	for what, change := range map[string]func(*metadata.Stack){
		"nothing": func(*metadata.Stack) {}, "uuid": func(s *metadata.Stack) { s.Layers[0].UUID[15] = 1 }, "fsid": func(s *metadata.Stack) { s.Layers[0].FSID = 1 },
		"ino": func(s *metadata.Stack) { s.Layers[0].Ino++ }, "btime": func(s *metadata.Stack) { s.Layers[0].Btime.Nsec++ },
		"handle": func(s *metadata.Stack) { s.Layers[0].Handle = nil }, "override": func(s *metadata.Stack) { s.Layers[0].Override = "x" },
		"idmap": func(s *metadata.Stack) { s.IDMap = "" }, "options": func(s *metadata.Stack) { s.Options += "x" },
		"another": func(s *metadata.Stack) { s.Layers = append(s.Layers, s.Layers[0]) }, "none": func(s *metadata.Stack) { s.Layers = nil },
		"shift":  func(s *metadata.Stack) { s.IDMap, s.Options = "mo", "" },
		"no fs":  func(s *metadata.Stack) { s.Layers[0].UUID = [16]byte{} },
		"device": func(s *metadata.Stack) { s.Layers[0].UUID, s.Layers[0].Dev = [16]byte{}, 5 },
	} {
		s := base()
		change(s)
		if other := names[s.Name()]; other != "" {
			t.Errorf("%q and %q have one name", what, other)
		}
		if !isName(s.Name()) {
			t.Errorf("%q is no name", s.Name())
		}
		names[s.Name()] = what
	}
	s := base()
	s.Layers[0].Dev = 7
	if s.Name() != base().Name() {
		t.Error("the device number counts although the file system has an identity")
	}
}

func TestLongViewIsLeftOut(t *testing.T) {
	c, _ := openCache(t, t.TempDir())
	long := strings.Repeat("x", metadata.MaxView)
	build(t, c, testStack(1), map[string]*metadata.Record{long: metadatatest.TypicalRecord(1), long + "x": metadatatest.TypicalRecord(1)})
	x := open(t, c, testStack(1))
	if d, err := x.Dir(long); d == nil || err != nil {
		t.Errorf("%v, %v", d, err)
	}
	if d, err := x.Dir(long + "x"); d != nil || err != nil {
		t.Errorf("%v, %v", d, err)
	}
}

func TestMarkStale(t *testing.T) {
	c, _ := openCache(t, t.TempDir())
	s := testStack(1)
	build(t, c, s, testViews())
	x := open(t, c, s)
	x.MarkStale("first")
	x.MarkStale("second")
	if got := x.Info().Stale; got != "first" {
		t.Errorf("stale for %q", got)
	}
	if _, err := c.Open(s); !errors.Is(err, ErrStale) || !strings.Contains(err.Error(), "first") {
		t.Errorf("open: %v, want ErrStale", err)
	}
	named, err := c.OpenName(s.Name())
	if err != nil || named.Info().Stale != "first" {
		t.Fatalf("by name: %v", err)
	}
	named.Close()
	// The reason may be missing: the disk was full, or the process ended.
	if err := os.Truncate(filepath.Join(c.Dir(), s.Name(), staleFile), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Open(s); !errors.Is(err, ErrStale) {
		t.Errorf("open with an empty mark: %v, want ErrStale", err)
	}
	build(t, c, s, testViews())
	x.MarkStale("the old one must not hit the new one")
	checkViews(t, x, testViews())
	checkViews(t, open(t, c, s), testViews())
	checkNames(t, c, s.Name())
}

func TestFirstBuilderWins(t *testing.T) {
	c, _ := openCache(t, t.TempDir())
	s := testStack(1)
	b, err := c.Build(s, BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Put("late", metadatatest.TypicalRecord(1)); err != nil {
		t.Fatal(err)
	}
	if b.Entries() != 1 {
		t.Errorf("%d entries", b.Entries())
	}
	build(t, c, s, testViews())
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	b.Abort()
	x := open(t, c, s)
	if d, err := x.Dir("late"); d != nil || err != nil {
		t.Errorf("the later one replaced the winner: %v %v", d, err)
	}
	checkNames(t, c, s.Name())
}

func TestAbortLeavesNothing(t *testing.T) {
	c, _ := openCache(t, t.TempDir())
	b, err := c.Build(testStack(1), BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Put("x", &metadata.Record{Entries: []metadata.Entry{{Name: "/"}}}); !errors.Is(err, metadata.ErrInvalid) {
		t.Errorf("an invalid record: %v", err)
	}
	if err := b.Put("x", metadatatest.TypicalRecord(10)); err != nil {
		t.Error(err)
	}
	b.Abort()
	b.Abort()
	checkNames(t, c)
}

func TestOwner(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenCache("/proc/version/x", nil); err == nil {
		t.Error("a cache below a file")
	}
	for _, mode := range []fs.FileMode{0o770, 0o702, 0o722} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenCache(dir, nil); !errors.Is(err, ErrUnsafe) || !strings.Contains(err.Error(), "chmod 0700") {
			t.Errorf("mode %o: %v, want ErrUnsafe", mode, err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, 12345, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenCache(dir, nil); !errors.Is(err, ErrUnsafe) || !strings.Contains(err.Error(), "12345") {
			t.Errorf("another's: %v, want ErrUnsafe", err)
		}
		if err := os.Chown(dir, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	sub := filepath.Join(dir, "a", "b")
	c, _ := openCache(t, sub)
	for _, p := range []string{sub, filepath.Dir(sub)} {
		if st, err := os.Stat(p); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v %v", p, st.Mode(), err)
		}
	}
	if c.Dir() != sub {
		t.Errorf("it is at %s", c.Dir())
	}
}

// setUsed says when the index was used last.
func setUsed(t *testing.T, c *Cache, s *metadata.Stack, when time.Time) {
	t.Helper()
	if err := os.Chtimes(filepath.Join(c.path(s.Name()), usedFile), when, when); err != nil {
		t.Fatal(err)
	}
}

func TestUseIsNotedByTheHour(t *testing.T) {
	c, _ := openCache(t, t.TempDir())
	s := testStack(1)
	build(t, c, s, testViews())
	now := time.Now()
	for _, ago := range []time.Duration{10 * time.Minute, 2 * time.Hour, -time.Hour} {
		setUsed(t, c, s, now.Add(-ago))
		open(t, c, s)
		used := c.outside(s.Name()).Used
		if noted := !used.Equal(now.Add(-ago)); noted != (ago != 10*time.Minute) {
			t.Errorf("used %v ago: noted %v", ago, noted)
		}
	}
}

func TestTrim(t *testing.T) {
	c, _ := openCache(t, t.TempDir())
	now := time.Now()
	for n := range uint64(4) {
		build(t, c, testStack(n), testViews())
		setUsed(t, c, testStack(n), now.Add(time.Duration(n)*time.Hour))
	}
	if err := os.Mkdir(c.path(testStack(9).Name()+".bad-1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if removed, err := c.Trim(0); err != nil || len(removed) != 0 {
		t.Errorf("below the limit: %v, %v", removed, err)
	}
	x := open(t, c, testStack(1))
	size := c.outside(testStack(3).Name()).Bytes
	removed, err := c.Trim(3*size + size/2)
	if err != nil || len(removed) < 1 || removed[0].Name != testStack(9).Name()+".bad-1" {
		t.Fatalf("removed %+v, %v; want the one set aside first", removed, err)
	}
	removed = append(removed[1:], mustTrim(t, c, 1)...)
	var names []string
	for _, i := range removed {
		names = append(names, i.Name)
	}
	if want := []string{testStack(0).Name(), testStack(2).Name()}; !slices.Equal(names, want) {
		t.Errorf("removed %q, want %q: the oldest, not the one in use, not the newest", names, want)
	}
	checkViews(t, x, testViews())
	open(t, c, testStack(3))
	if err := c.Remove(testStack(1).Name()); err != nil {
		t.Error(err)
	}
	checkViews(t, x, testViews())
	if err := c.Remove(testStack(1).Name()); !errors.Is(err, ErrNotBuilt) {
		t.Errorf("removed again: %v", err)
	}
	for _, name := range []string{"../x", lockFile, "", ".build-x"} {
		if err := c.Remove(name); !errors.Is(err, ErrNotBuilt) {
			t.Errorf("Remove(%q): %v", name, err)
		}
		if _, err := c.OpenName(name); !errors.Is(err, ErrNotBuilt) {
			t.Errorf("OpenName(%q): %v", name, err)
		}
	}
	checkNames(t, c, testStack(3).Name())
}

func mustTrim(t *testing.T, c *Cache, limit int64) []metadata.Info {
	t.Helper()
	removed, err := c.Trim(limit)
	if err != nil {
		t.Fatal(err)
	}
	return removed
}

// A cache on a read-only file system is used as it is.
func TestReadOnlyCache(t *testing.T) {
	if os.Getenv("PLYFS_TEST_CACHE") != "" {
		readOnlyChild(t)
		return
	}
	dir := t.TempDir()
	c, _ := openCache(t, dir)
	build(t, c, testStack(1), testViews())
	build(t, c, testStack(2), testViews())
	if err := os.Truncate(filepath.Join(c.path(testStack(2).Name()), dbDir, "MANIFEST"), 3); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestReadOnlyCache$", "-test.v")
	cmd.Env = append(os.Environ(), "PLYFS_TEST_CACHE="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER, UidMappings: []syscall.SysProcIDMap{
		{HostID: os.Geteuid(), Size: 1},
	}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	checkNames(t, c, sortedNames(1, 2)...)
}

// sortedNames are the names of test stacks.
func sortedNames(stacks ...uint64) []string {
	var names []string
	for _, n := range stacks {
		names = append(names, testStack(n).Name())
	}
	slices.Sort(names)
	return names
}

func readOnlyChild(t *testing.T) {
	dir := os.Getenv("PLYFS_TEST_CACHE")
	flags := uintptr(syscall.MS_BIND | syscall.MS_REC)
	for range 2 {
		if err := syscall.Mount(dir, dir, "", flags, ""); err != nil {
			t.Fatal(err)
		}
		flags = syscall.MS_BIND | syscall.MS_REMOUNT | syscall.MS_RDONLY
	}
	c, log := openCache(t, dir)
	x := open(t, c, testStack(1))
	checkViews(t, x, testViews())
	x.MarkStale("said to nobody")
	if x.Info().Stale == "" {
		t.Error("the index itself has forgotten")
	}
	open(t, c, testStack(1))
	if _, err := c.Open(testStack(2)); !errors.Is(err, ErrNotBuilt) || !strings.Contains(log.String(), "stays where it is") {
		t.Errorf("a damaged one: %v; log: %s", err, log)
	}
	if _, err := c.Build(testStack(3), BuildOptions{}); !errors.Is(err, syscall.EROFS) {
		t.Errorf("build: %v, want EROFS", err)
	}
}

const builderEnv = "PLYFS_TEST_BUILDER"

// Two processes build one stack at once while a third opens it; every time all see a whole index in the end.
func TestProcessesRace(t *testing.T) {
	if dir := os.Getenv(builderEnv); dir != "" {
		c, _ := openCache(t, dir)
		build(t, c, testStack(1), testViews())
		checkViews(t, open(t, c, testStack(1)), testViews())
		return
	}
	for round := range 5 {
		dir := t.TempDir()
		c, log := openCache(t, dir)
		done := make(chan error)
		for range 2 {
			go func() {
				cmd := exec.Command(os.Args[0], "-test.run=^TestProcessesRace$")
				cmd.Env = append(os.Environ(), builderEnv+"="+dir)
				out, err := cmd.CombinedOutput()
				if err != nil {
					err = fmt.Errorf("%w\n%s", err, out)
				}
				done <- err
			}()
		}
		for left := 2; left > 0; {
			select {
			case err := <-done:
				if left--; err != nil {
					t.Error(err)
				}
			default:
				x, err := c.Open(testStack(1))
				if err == nil {
					checkViews(t, x, testViews())
					err = x.Close()
				}
				if err != nil && !errors.Is(err, ErrNotBuilt) {
					t.Error(err)
				}
			}
		}
		checkNames(t, c, testStack(1).Name())
		if log.Len() > 0 {
			t.Errorf("round %d: log: %s", round, log)
		}
	}
}

// A builder that is killed leaves a directory that the next builder removes, but none of one that lives.
func TestDeadBuilder(t *testing.T) {
	if dir := os.Getenv(builderEnv); dir != "" {
		c, _ := openCache(t, dir)
		b, err := c.Build(testStack(1), BuildOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Put("a", metadatatest.TypicalRecord(1000)); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	c, _ := openCache(t, dir)
	living, err := c.Build(testStack(2), BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestDeadBuilder$")
	cmd.Env = append(os.Environ(), builderEnv+"="+dir)
	if out, err := cmd.CombinedOutput(); cmd.ProcessState.Exited() {
		t.Fatalf("it was not killed: %v\n%s", err, out)
	}
	builds, err := c.names(func(n string) bool { return strings.HasPrefix(n, buildPrefix) })
	if err != nil || len(builds) != 2 {
		t.Fatalf("%q, %v; want two that are being built", builds, err)
	}
	if _, err := c.Open(testStack(1)); !errors.Is(err, ErrNotBuilt) {
		t.Errorf("half built: %v", err)
	}
	build(t, c, testStack(1), testViews())
	if err := living.Commit(); err != nil {
		t.Error(err)
	}
	checkNames(t, c, sortedNames(1, 2)...)
}

// What was never sealed is set aside even if it has the name of an index.
func TestHalfBuiltUnderItsName(t *testing.T) {
	c, log := openCache(t, t.TempDir())
	s := testStack(1)
	db, err := kv.Open(filepath.Join(mustMkdir(t, c.path(s.Name())), dbDir), kv.Options{Profile: kv.Durable, Schema: metadata.SchemaVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := c.Open(s); !errors.Is(err, ErrNotBuilt) || !errors.Is(err, kv.ErrUnclean) {
		t.Errorf("%v, want ErrNotBuilt for ErrUnclean", err)
	}
	checkNames(t, c, s.Name()+".bad-1")
	if n := strings.Count(log.String(), "set aside"); n != 1 {
		t.Errorf("said %d times: %s", n, log)
	}
}

func mustMkdir(t *testing.T, dir string) string {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// An index that was copied to the name of another stack does not answer for that.
func TestIndexOfAnotherStack(t *testing.T) {
	c, log := openCache(t, t.TempDir())
	build(t, c, testStack(1), testViews())
	if err := os.Rename(c.path(testStack(1).Name()), c.path(testStack(2).Name())); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Open(testStack(2)); !errors.Is(err, ErrNotBuilt) || !errors.Is(err, kv.ErrForeign) {
		t.Errorf("%v, want ErrNotBuilt for ErrForeign", err)
	}
	checkNames(t, c, testStack(2).Name()+".bad-1")
	if !strings.Contains(log.String(), "another stack") {
		t.Errorf("log: %s", log)
	}
	list, err := c.List()
	if err != nil || len(list) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
}
