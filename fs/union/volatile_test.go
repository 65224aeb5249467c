package union

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/internal/sys"
	"plyfs/internal/testenv"
)

// newVolatile returns a volatile union over directories below dir. In its lower is a file "f".
func newVolatile(t *testing.T, dir string, m *sys.Mutator) *Union {
	t.Helper()
	var ls []*layer.Layer
	for _, name := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		l, err := layer.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		ls = append(ls, l)
	}
	if err := os.WriteFile(filepath.Join(dir, "lower/f"), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	u, err := New(Options{Lowers: ls[:1], Upper: ls[1], Work: ls[2], Volatile: true, Mutator: m})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func isLoss(err error) bool { return errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOSPC) }

// TestVolatileLoss: from the first failed write-back on, fsync of everything fails, of what was not written too.
func TestVolatileLoss(t *testing.T) {
	testenv.CheckLeaks(t)
	s := testenv.NewStarved(t)
	var calls []string
	u := newVolatile(t, s.Root, &sys.Mutator{Hook: func(op string) error {
		calls = append(calls, op)
		return nil
	}})
	defer u.Close()
	lower, _, err := u.Lookup(u.Root(), "f")
	if err != nil {
		t.Fatal(err)
	}
	n := create(t, u, "new", make([]byte, 1<<20))
	calls = nil
	for _, n := range []*Node{n, lower, u.Root()} {
		if err := u.Fsync(n); err != nil {
			t.Fatal(err)
		}
	}
	s.Starve(t)
	if err := testenv.WriteBack(filepath.Join(s.Root, "upper/new")); !isLoss(err) {
		t.Fatalf("write-back to a full device: %v", err)
	}
	for range 2 {
		for _, n := range []*Node{n, lower, u.Root()} {
			if err := u.Fdatasync(n); !isLoss(err) {
				t.Errorf("fsync after a failed write-back: %v", err)
			}
		}
		s.Feed(t)
	}
	if len(calls) != 0 {
		t.Errorf("fsync of a volatile mount makes %q", calls)
	}
}

// TestVolatileLossOfOne: over another overlay, the kernel tells of a file's own failures alone.
func TestVolatileLossOfOne(t *testing.T) {
	testenv.CheckLeaks(t)
	s := testenv.NewStarved(t)
	u := newVolatile(t, s.Root, nil)
	defer u.Close()
	n, other := create(t, u, "new", make([]byte, 1<<20)), create(t, u, "other", []byte("x"))
	unwatch(t, u)
	for _, n := range []*Node{n, other, u.Root()} {
		if err := u.Fsync(n); err != nil {
			t.Fatal(err)
		}
	}
	s.Starve(t)
	if err := testenv.WriteBack(filepath.Join(s.Root, "upper/new")); !isLoss(err) {
		t.Fatalf("write-back to a full device: %v", err)
	}
	s.Feed(t)
	if err := u.Fsync(other); err != nil {
		t.Errorf("fsync of a file that lost nothing: %v", err)
	}
	if err := u.Fsync(n); !isLoss(err) {
		t.Errorf("fsync of the file that lost data: %v", err)
	}
	for _, n := range []*Node{n, other, u.Root()} {
		if err := u.Fsync(n); !errors.Is(err, unix.EIO) {
			t.Errorf("fsync after a loss was seen: %v", err)
		}
	}
}

// unwatch gives u a work directory whose file system can't be the upper of an overlay: an overlay.
func unwatch(t *testing.T, u *Union) {
	t.Helper()
	dir := testenv.Scratch(t)
	o := testenv.Overlay{Lowers: []string{dir + "/l"}, Upper: dir + "/u", Work: dir + "/w"}
	for _, name := range []string{"l", "u", "w", "m"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := testenv.MountOverlay(o, dir+"/m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { testenv.Unmount(t, dir+"/m") })
	base, err := layer.Open(dir + "/m")
	if err != nil {
		t.Fatal(err)
	}
	w, err := cow.OpenWork(base, cow.WorkOptions{Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.BeginData(); err != nil {
		t.Fatal(err)
	}
	u.work.Close()
	u.opt.Work.Close()
	u.work, u.opt.Work = w, base
}

// TestVolatileFailedWrite: a write that the file system failed counts as lost data, one that it refused does not.
func TestVolatileFailedWrite(t *testing.T) {
	var fail error
	u := newVolatile(t, testenv.Scratch(t), &sys.Mutator{Hook: func(op string) error {
		if op == "write" {
			return fail
		}
		return nil
	}})
	defer u.Close()
	n := create(t, u, "new", []byte("x"))
	for _, c := range []struct{ fail, want error }{{unix.ENOSPC, nil}, {unix.EIO, unix.EIO}, {nil, unix.EIO}} {
		fail = c.fail
		if _, err := u.Write(n, []byte("y"), 0, KeepSetID); !errors.Is(err, c.fail) {
			t.Fatalf("write: %v, want %v", err, c.fail)
		}
		if err := u.Fsync(n); !errors.Is(err, c.want) {
			t.Errorf("fsync after a write that gave %v: %v, want %v", c.fail, err, c.want)
		}
	}
}

// TestVolatileBegins: the first data that gets to the upper, and nothing else, makes a volatile mount watch for its loss.
func TestVolatileBegins(t *testing.T) {
	testenv.CheckLeaks(t)
	for _, c := range []struct {
		name string
		data bool
		do   func(u *Union, low, empty *Node) error
	}{
		{"metadata", false, func(u *Union, low, empty *Node) error {
			_, err := u.SetAttr(&Caller{}, low, &SetAttrIn{Valid: SetMode, Mode: 0o600})
			_, _, mkdir := u.Mkdir(&Caller{}, u.Root(), "dir", 0o755)
			_, read := u.Read(low, make([]byte, 8), 0)
			return errors.Join(err, mkdir, read, u.Fsync(low), u.Rename(&Caller{}, u.Root(), "empty", u.Root(), "moved", 0))
		}},
		{"write", true, func(u *Union, _, empty *Node) error {
			_, err := u.Write(empty, []byte("x"), 0, KeepSetID)
			return err
		}},
		{"copy-up", true, func(u *Union, low, _ *Node) error {
			_, err := u.Write(low, []byte("x"), 0, KeepSetID)
			return err
		}},
		{"truncate", true, func(u *Union, low, _ *Node) error {
			_, err := u.SetAttr(&Caller{}, low, &SetAttrIn{Valid: SetSize, Size: 1})
			return err
		}},
		{"fallocate", true, func(u *Union, _, empty *Node) error { return u.Fallocate(empty, 0, 0, 4096, KeepSetID) }},
		{"copy range", true, func(u *Union, low, empty *Node) error {
			_, err := u.CopyRange(low, 0, empty, 0, 3)
			return err
		}},
		{"passthrough", true, func(u *Union, _, empty *Node) error {
			f, _, err := u.Backing(empty, ForWriting)
			if err == nil {
				f.Close()
			}
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := testenv.Ext4(t, 16<<20)
			u := newVolatile(t, dir, nil)
			defer u.Close()
			low, _, err := u.Lookup(u.Root(), "f")
			if err != nil {
				t.Fatal(err)
			}
			empty, _, err := u.Create(&Caller{}, u.Root(), "empty", 0o644, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.do(u, low, empty); err != nil {
				t.Fatal(err)
			}
			watch, err := filepath.Glob(filepath.Join(dir, "work/work/plyfs-*/volatile"))
			if err != nil || c.data != (len(watch) == 1) {
				t.Errorf("it watches: %q, %v", watch, err)
			}
		})
	}
}

// TestVolatileRefusesData: over an error that nobody saw no data is written, until it was told.
func TestVolatileRefusesData(t *testing.T) {
	testenv.CheckLeaks(t)
	s := testenv.NewStarved(t)
	lost := filepath.Join(s.Root, "lost")
	if err := os.WriteFile(lost, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Starve(t)
	if err := testenv.WriteBack(lost); !isLoss(err) {
		t.Fatalf("write-back to a full device: %v", err)
	}
	s.Feed(t)
	u := newVolatile(t, s.Root, nil)
	defer u.Close()
	n, _, err := u.Create(&Caller{}, u.Root(), "new", 0o644, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := u.Write(n, []byte("x"), 0, KeepSetID); !errors.Is(err, unix.EIO) || !errors.Is(err, cow.ErrUnseenWriteBack) {
			t.Errorf("write: %v", err)
		}
		if err := u.Fsync(n); err != nil {
			t.Errorf("fsync while nothing was written: %v", err)
		}
	}
	if err := unix.Syncfs(u.upper.FD()); err == nil {
		t.Error("syncfs tells no error")
	}
	for range 100 {
		if _, err = u.Write(n, []byte("x"), 0, KeepSetID); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err := errors.Join(err, u.Fsync(n)); err != nil {
		t.Errorf("after it was told: %v", err)
	}
}

func create(t *testing.T, u *Union, name string, content []byte) *Node {
	t.Helper()
	n, _, err := u.Create(&Caller{}, u.Root(), name, 0o644, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Write(n, content, 0, KeepSetID); err != nil {
		t.Fatal(err)
	}
	return n
}
