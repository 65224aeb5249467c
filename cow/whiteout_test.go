package cow_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/internal/testenv"
)

// bench is an upper u beside its work directory w.
type bench struct {
	testing.TB
	*cow.Work
	rec   *recorder
	upper int
	dir   string
}

func newBench(t testing.TB) *bench {
	t.Helper()
	dir := testenv.Scratch(t)
	must(t, os.Mkdir(filepath.Join(dir, "u"), 0o755), os.Mkdir(filepath.Join(dir, "w"), 0o755))
	b := &bench{TB: t, rec: &recorder{}, dir: dir, upper: openLayer(t, filepath.Join(dir, "u")).FD()}
	b.Work = openWork(t, filepath.Join(dir, "w"), cow.WorkOptions{Mutator: b.rec.mutator()})
	stageOf(t, b.Work)
	b.rec.reset(nil)
	return b
}

func (b *bench) path(rel string) string { return filepath.Join(b.dir, "u", rel) }

// staged lists what lies in the staging directory, but for the whiteout that all others are links to.
func (b *bench) staged() []string {
	b.Helper()
	work := filepath.Join(b.dir, "w/work")
	return slices.DeleteFunc(names(b, filepath.Join(work, names(b, work)[0])), func(n string) bool { return n == "whiteout" })
}

func TestWhiteoutsShareAnInode(t *testing.T) {
	b := newBench(t)
	must(t, b.WhiteoutAt(b.upper, "a"), b.WhiteoutAt(b.upper, "b"))
	name, err := b.Whiteout()
	must(t, err)
	if got := b.staged(); !slices.Equal(got, []string{name}) {
		t.Errorf("staged: %q", got)
	}
	var st, other unix.Stat_t
	must(t, unix.Lstat(b.path("a"), &st), unix.Lstat(b.path("b"), &other))
	if !isWhiteout(b.path("a")) || st.Ino != other.Ino || st.Nlink != 4 {
		t.Errorf("inodes %d and %d, %d links", st.Ino, other.Ino, st.Nlink)
	}
	write(t, b.path("taken"), "x")
	if err := b.WhiteoutAt(b.upper, "taken"); !errors.Is(err, unix.EEXIST) {
		t.Errorf("over a file: %v", err)
	}
	if err := b.WhiteoutAt(b.upper, "a"); !errors.Is(err, unix.EEXIST) {
		t.Errorf("over a whiteout: %v", err)
	}
}

func TestWhiteoutLinkErrors(t *testing.T) {
	once := func(err error) func(string, int) error {
		return func(op string, nth int) error {
			if op == "link" && nth == 1 {
				return err
			}
			return nil
		}
	}
	for about, c := range map[string]struct {
		fail      func(string, int) error
		shared    bool // the second is a link to the first
		firstLink bool // before all of it there is one already
	}{
		"full":                  {once(unix.EMLINK), true, true},
		"full each time":        {failing("link", unix.EMLINK), false, true},
		"first":                 {once(unix.ENOENT), true, false},
		"no links to devices":   {failing("link", unix.EPERM), false, false},
		"no links":              {failing("link", unix.EOPNOTSUPP), false, false},
		"of a project's, EXDEV": {failing("link", unix.EXDEV), false, false},
	} {
		t.Run(about, func(t *testing.T) {
			b := newBench(t)
			if c.firstLink {
				must(t, b.WhiteoutAt(b.upper, "old"))
			}
			b.rec.reset(c.fail)
			must(t, b.WhiteoutAt(b.upper, "a"), b.WhiteoutAt(b.upper, "b"))
			var a, second unix.Stat_t
			must(t, unix.Lstat(b.path("a"), &a), unix.Lstat(b.path("b"), &second))
			if !isWhiteout(b.path("a")) || !isWhiteout(b.path("b")) || (a.Ino == second.Ino) != c.shared {
				t.Errorf("inodes %d and %d, want one: %v", a.Ino, second.Ino, c.shared)
			}
			if c.firstLink && !isWhiteout(b.path("old")) {
				t.Error("the one before is gone")
			}
			b.rec.reset(nil)
		})
	}
}

// Several find at once that the inode is full, and each makes a new one.
func TestWhiteoutsAtOnce(t *testing.T) {
	const workers, each = 8, 200
	b := newBench(t)
	rnd := rand.New(rand.NewPCG(1, 1)) // used by the hook, one call at a time
	b.rec.reset(func(op string, _ int) error {
		if op == "link" && rnd.IntN(2) == 0 {
			return unix.EMLINK
		}
		return nil
	})
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				if err := b.WhiteoutAt(b.upper, strconv.Itoa(w*each+i)); err != nil {
					t.Errorf("whiteout %d of %d: %v", i, w, err)
				}
			}
		})
	}
	wg.Wait()
	for i := range workers * each {
		if !isWhiteout(b.path(strconv.Itoa(i))) {
			t.Fatalf("whiteout %d is none", i)
		}
	}
}

func TestMakeOpaque(t *testing.T) {
	for _, aufs := range []bool{false, true} {
		b := newBench(t)
		opaque := b.MakeOpaque
		if aufs {
			opaque = b.MakeOpaqueAUFS
		}
		must(t, os.Mkdir(b.path("d"), 0o755))
		must(t, opaque(b.upper, "d"), opaque(b.upper, "d"))
		inAttr, inFile := xattr(b.path("d"), b.Names.Opaque) == "y", slices.Equal(names(b, b.path("d")), []string{".wh..wh..opq"})
		if inAttr == aufs || inFile != aufs {
			t.Errorf("with aufs %v: by attribute %v, by a file %v", aufs, inAttr, inFile)
		}
		write(t, b.path("f"), "")
		must(t, os.Symlink("d", b.path("link")))
		if aufs {
			for _, name := range []string{"f", "link"} {
				if err := opaque(b.upper, name); !errors.Is(err, unix.ENOTDIR) {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
	b := newBench(t)
	b.Names = nil // a file system without attributes
	must(t, os.Mkdir(b.path("d"), 0o755), b.MakeOpaque(b.upper, "d"))
	if got := names(t, b.path("d")); !slices.Equal(got, []string{".wh..wh..opq"}) {
		t.Errorf("without attributes: %q", got)
	}
}

// removal is an operation on the entry "victim" of the upper.
type removal struct {
	about    string
	prepare  func(b *bench) error
	run      func(b *bench) error
	whiteout bool
}

func removals() []removal {
	file := func(b *bench) error { return os.WriteFile(b.path("victim"), []byte("x"), 0o600) }
	dir := func(b *bench) error {
		return errors.Join(os.Mkdir(b.path("victim"), 0o755), unix.Mknod(b.path("victim/wh"), unix.S_IFCHR, 0),
			os.WriteFile(b.path("victim/.wh..wh..opq"), nil, 0o600))
	}
	return []removal{
		{"file", file, func(b *bench) error { return b.WhiteoutFile(b.upper, "victim") }, true},
		{"symlink", func(b *bench) error { return os.Symlink("/", b.path("victim")) }, func(b *bench) error {
			return b.WhiteoutFile(b.upper, "victim")
		}, true},
		{"dir", dir, func(b *bench) error { return b.RemoveDir(b.upper, "victim") }, false},
		{"dir under a lower", dir, func(b *bench) error { return b.WhiteoutDir(b.upper, "victim") }, true},
	}
}

// TestRemoveFaults fails each call of each removal in turn: the victim is there as it was, or is gone with all that was to come
// in its place, and nothing stays staged.
func TestRemoveFaults(t *testing.T) {
	for _, r := range removals() {
		t.Run(r.about, func(t *testing.T) {
			for nth := 1; ; nth++ {
				b := newBench(t)
				must(t, r.prepare(b))
				hit := false
				b.rec.reset(func(_ string, n int) error {
					if n == nth {
						hit = true
						return unix.EIO
					}
					return nil
				})
				err := r.run(b)
				calls := b.rec.all()
				b.rec.reset(nil)
				var st unix.Stat_t
				there := unix.Lstat(b.path("victim"), &st) == nil
				switch removed := there == r.whiteout && isWhiteout(b.path("victim")) == r.whiteout; {
				case err == nil && !removed:
					t.Errorf("%q: done, and the victim is there: %v", calls, there)
				case err != nil && (!hit || !errors.Is(err, unix.EIO)):
					t.Errorf("%q: %v", calls, err)
				case err != nil && (!there || isWhiteout(b.path("victim"))):
					t.Errorf("%q: failed, and the victim is gone", calls)
				}
				if left := b.staged(); len(left) > 0 {
					t.Errorf("%q: %q stays staged", calls, left)
				}
				if !hit {
					if err != nil || nth == 1 {
						t.Errorf("without a fault: %v after %q", err, calls)
					}
					return
				}
			}
		})
	}
}

func TestRemoveAbsent(t *testing.T) {
	b := newBench(t)
	if err := b.RemoveDir(b.upper, "absent"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a directory: %v", err)
	}
	if err := b.WhiteoutDir(b.upper, "absent"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a directory below a lower: %v", err)
	}
	must(t, os.Mkdir(b.path("d"), 0o755))
	write(t, b.path("d/f"), "")
	if err := b.WhiteoutFile(b.upper, "d"); !errors.Is(err, unix.EISDIR) {
		t.Errorf("a directory removed as a file: %v", err)
	}
	if left := b.staged(); len(left) > 0 {
		t.Errorf("%q stays staged", left)
	}
}

func TestRecordFaults(t *testing.T) {
	for nth := 1; ; nth++ {
		b := newBench(t)
		hit := false
		b.rec.reset(func(_ string, n int) error {
			hit = hit || n == nth
			if n == nth {
				return unix.ENOSPC
			}
			return nil
		})
		_, indexErr := b.MakeIndex()
		noteErr := b.NoteUnsynced()
		forgetErr := b.ForgetUnsynced()
		calls := b.rec.all()
		for _, err := range []error{indexErr, noteErr, forgetErr} {
			if err != nil && !errors.Is(err, unix.ENOSPC) {
				t.Errorf("%q: %v", calls, err)
			}
		}
		if hit && indexErr == nil && noteErr == nil && forgetErr == nil {
			t.Errorf("%q: a failure is not told", calls)
		}
		b.rec.reset(nil)
		if fd, err := b.MakeIndex(); fd < 0 || err != nil {
			t.Errorf("after the fault: index %d, %v", fd, err)
		}
		must(t, b.NoteUnsynced())
		if boot, err := b.UnsyncedBoot(); boot == "" {
			t.Errorf("after the fault: no record, %v", err)
		}
		if !hit {
			if nth == 1 {
				t.Error("nothing was called")
			}
			return
		}
	}
}
