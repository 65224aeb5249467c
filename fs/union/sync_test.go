package union

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// stack is a union over directories of a test, of which one lower file "f" holds "old".
type stack struct {
	t                  testing.TB
	lower, upper, work string
}

func newStack(t testing.TB) *stack {
	t.Helper()
	return newStackIn(t, t.TempDir())
}

// newStackIn makes it in the empty directory root.
func newStackIn(t testing.TB, root string) *stack {
	t.Helper()
	s := &stack{t: t, lower: root + "/lower", upper: root + "/upper", work: root + "/work"}
	for _, d := range []string{s.lower, s.upper, s.work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(s.lower+"/f", []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	return s
}

// openAs assembles the union with options of its own.
func (s *stack) openAs(o Options) (*Union, error) {
	s.t.Helper()
	var ls []*layer.Layer
	for _, d := range []string{s.lower, s.upper, s.work} {
		l, err := layer.Open(d)
		if err != nil {
			s.t.Fatal(err)
		}
		ls = append(ls, l)
	}
	o.Lowers, o.Upper, o.Work = ls[:1], ls[1], ls[2]
	return New(o)
}

// open assembles the union as if its upper lay on a file system that a power cut leaves behind.
func (s *stack) open(m *sys.Mutator) *Union {
	s.t.Helper()
	u, err := s.openAs(Options{Mutator: m})
	if err != nil {
		s.t.Fatal(err)
	}
	if u.names == nil {
		s.t.Fatal("the file system of TMPDIR takes no overlay attributes")
	}
	u.marks = true
	return u
}

// crash ends the union as a kill would: nothing is synced, no mark goes.
func (s *stack) crash(u *Union) {
	u.sync.mu.Lock()
	u.sync.closed = true
	if u.sync.timer != nil {
		u.sync.timer.Stop()
	}
	u.sync.mu.Unlock()
	u.work.Close()
	u.work = nil
	u.files.CloseAll()
	u.dirs.CloseAll()
	u.closeLayers()
}

func (s *stack) mark() (ovl.UnsyncedMark, bool) {
	s.t.Helper()
	for _, ns := range []*ovl.Names{ovl.Trusted(), ovl.User()} {
		var buf [512]byte
		n, err := unix.Lgetxattr(s.upper+"/f", ns.Unsynced, buf[:])
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) {
			continue
		}
		if err != nil {
			s.t.Fatal(err)
		}
		m, err := ovl.ParseUnsynced(buf[:n])
		if err != nil {
			s.t.Fatal(err)
		}
		return m, true
	}
	return ovl.UnsyncedMark{}, false
}

func (s *stack) content() string {
	s.t.Helper()
	b, err := os.ReadFile(s.upper + "/f")
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

func write(t *testing.T, u *Union, text string) *Node {
	t.Helper()
	n, _, err := u.Lookup(u.Root(), "f")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Write(n, []byte(text), 0, KeepSetID); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestMarkGoesWithFsync(t *testing.T) {
	s := newStack(t)
	u := s.open(nil)
	n := write(t, u, "new")
	m, ok := s.mark()
	if !ok || m.Lower != "f" || m.Boot != u.boot() {
		t.Fatalf("mark after copy-up: %+v, %v", m, ok)
	}
	if err := u.Fsync(n); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.mark(); ok {
		t.Error("the mark survives fsync")
	}
	s.crash(u)
	s.open(nil).Close()
	if got := s.content(); got != "new" {
		t.Errorf("after a crash behind fsync: %q", got)
	}
}

// TestMarkGoesAfterFailure: the mark of a metadata-only copy that did not get its data, for want of space, goes like any other. Else
// what is written into the file later, and synced, would be taken back after a power cut.
func TestMarkGoesAfterFailure(t *testing.T) {
	for _, end := range []string{"fsync", "close"} {
		t.Run(end, func(t *testing.T) {
			s := newStack(t)
			full := false
			u := s.open(&sys.Mutator{Hook: func(op string) error {
				if full && (op == "clone" || op == "copy_file_range") {
					return unix.ENOSPC
				}
				return nil
			}})
			n, _, err := u.Lookup(u.Root(), "f")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := u.SetAttr(&Caller{}, n, &SetAttrIn{Valid: SetMode, Mode: 0o600}); err != nil {
				t.Fatal(err)
			}
			full = true
			if _, err := u.Write(n, []byte("new"), 0, KeepSetID); !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("write without space: %v", err)
			}
			full = false
			if end == "close" {
				if err := u.Close(); err != nil {
					t.Fatal(err)
				}
				if _, ok := s.mark(); ok {
					t.Error("the mark survives a clean end")
				}
				return
			}
			defer s.crash(u)
			if _, err := u.SetAttr(&Caller{}, n, &SetAttrIn{Valid: SetSize}); err != nil {
				t.Fatal(err)
			}
			write(t, u, "new")
			if err := u.Fsync(n); err != nil {
				t.Fatal(err)
			}
			if _, ok := s.mark(); ok {
				t.Error("the mark survives fsync")
			}
		})
	}
}

// TestFsyncBeforeUnmark: the data is on disk before the mark goes, and its going is on disk when fsync returns.
func TestFsyncBeforeUnmark(t *testing.T) {
	s := newStack(t)
	var calls []string
	u := s.open(&sys.Mutator{Hook: func(op string) error {
		calls = append(calls, op)
		return nil
	}})
	defer u.Close()
	n := write(t, u, "new")
	calls = nil
	if err := u.Fdatasync(n); err != nil {
		t.Fatal(err)
	}
	if len(calls) != 3 || calls[0] != "fdatasync" || calls[1] != "removexattr" || calls[2] != "fsync" {
		t.Errorf("calls of the first fsync: %v", calls)
	}
	calls = nil
	if err := u.Fdatasync(n); err != nil {
		t.Fatal(err)
	}
	if len(calls) != 1 {
		t.Errorf("calls of the second fsync: %v", calls)
	}
}

// TestNoFsync: with fsync=0 an application's fsync is answered, and nothing is synced.
func TestNoFsync(t *testing.T) {
	s := newStack(t)
	u, err := s.openAs(Options{NoFsync: true, Mutator: &sys.Mutator{Hook: func(op string) error {
		if op == "fsync" || op == "fdatasync" {
			t.Error("an fsync")
		}
		return nil
	}}})
	must(t, err)
	defer u.Close()
	must(t, u.Fsync(write(t, u, "new")))
}

func TestCleanEndLeavesNoMark(t *testing.T) {
	s := newStack(t)
	u := s.open(nil)
	write(t, u, "new")
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.mark(); ok {
		t.Error("a mark is left")
	}
	left, _ := filepath.Glob(s.work + "/plyfs*")
	staged, _ := filepath.Glob(s.work + "/work/*")
	if len(left)+len(staged) > 0 {
		t.Errorf("left in the work directory: %v %v", left, staged)
	}
}

// TestUnlinkedLeavesBatch: a copied-up file whose last name goes before the batch is synced does not keep its space until then.
func TestUnlinkedLeavesBatch(t *testing.T) {
	for _, replace := range []bool{false, true} {
		s := newStack(t)
		u := s.open(nil)
		n := write(t, u, "new")
		var err error
		if replace {
			var g *Node
			if g, _, err = u.Create(&Caller{}, u.Root(), "g", 0o644, 0); err != nil {
				t.Fatal(err)
			}
			u.Forget(g, 1)
			err = u.Rename(&Caller{}, u.Root(), "g", u.Root(), "f", 0)
		} else {
			err = u.Unlink(u.Root(), "f")
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.Write(n, []byte("er"), 3, KeepSetID); err != nil {
			t.Error(err)
		}
		u.Forget(n, 1)
		if marked := u.marked.Load(); marked != 0 {
			t.Errorf("replaced %v: %d marked files", replace, marked)
		}
		if f := u.files.Get(&n.data); f != nil {
			f.Close()
			t.Errorf("replaced %v: the descriptor of a file without a name is still open", replace)
		}
		u.Close()
	}
}

func TestBatchTakesMarksOff(t *testing.T) {
	s := newStack(t)
	u := s.open(nil)
	defer u.Close()
	n := write(t, u, "new")
	u.Forget(n, 1) // the batch holds the node
	u.syncPending()
	if _, ok := s.mark(); ok {
		t.Error("the background sync left the mark")
	}
	if u.Stats().Marked != 0 {
		t.Errorf("%d marked", u.Stats().Marked)
	}
}

// TestFailedSyncKeepsMark: a file whose sync failed stays marked, and with it its lower's content is kept.
func TestFailedSyncKeepsMark(t *testing.T) {
	s := newStack(t)
	fail := true
	u := s.open(&sys.Mutator{Hook: func(op string) error {
		if op == "syncfs" && fail {
			return unix.EIO
		}
		return nil
	}})
	write(t, u, "new")
	u.syncPending()
	if _, ok := s.mark(); !ok {
		t.Error("the mark went although the sync failed")
	}
	fail = false
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.mark(); ok {
		t.Error("the mark is left after a sync that worked")
	}
}

// TestStuckMarkKeepsRecord: while a mark cannot be taken off, the record of unsynced files stays with it, since a mark that
// nobody accounts for would take back later data after some power cut.
func TestStuckMarkKeepsRecord(t *testing.T) {
	s := newStack(t)
	u := s.open(&sys.Mutator{Hook: func(op string) error {
		if op == "removexattr" {
			return unix.EIO
		}
		return nil
	}})
	write(t, u, "new")
	if err := u.Close(); !errors.Is(err, unix.EIO) {
		t.Errorf("closed with %v", err)
	}
	record := s.work + "/plyfs.unsynced"
	if _, err := os.Stat(record); err != nil {
		t.Fatalf("the record went although a mark stays: %v", err)
	}
	u = s.open(nil)
	if _, ok := s.mark(); ok {
		t.Error("the next mount left the mark")
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(record); err == nil || s.content() != "new" {
		t.Errorf("record: %v, content %q", err, s.content())
	}
}

func TestKilledServerKeepsData(t *testing.T) {
	s := newStack(t)
	u := s.open(nil)
	write(t, u, "new")
	s.crash(u)
	if _, ok := s.mark(); !ok {
		t.Fatal("no mark after the kill")
	}
	u = s.open(nil)
	defer u.Close()
	if _, ok := s.mark(); ok {
		t.Error("the next mount of the same boot left the mark")
	}
	if got := s.content(); got != "new" {
		t.Errorf("content after a kill: %q", got)
	}
}

// TestPowerCutFallsBack: data that did not reach the disk is replaced by the lower's content, under whatever name the file
// has by then.
func TestPowerCutFallsBack(t *testing.T) {
	s := newStack(t)
	u := s.open(nil)
	n := write(t, u, "new")
	if err := u.Rename(&Caller{}, u.Root(), "f", u.Root(), "g", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := u.SetAttr(&Caller{}, n, &SetAttrIn{Valid: SetMode, Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	s.crash(u)
	// What a journal leaves: the inode and its attributes, without the data.
	names := ovl.Trusted()
	mark := ovl.UnsyncedMark{Boot: "another", Lower: "f"}
	if err := unix.Lsetxattr(s.upper+"/g", names.Unsynced, mark.Encode(), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(s.upper+"/g", 0); err != nil {
		t.Fatal(err)
	}
	u = s.open(nil)
	defer u.Close()
	g, a, err := u.Lookup(u.Root(), "g")
	if err != nil {
		t.Fatal(err)
	}
	var buf [16]byte
	k, err := u.Read(g, buf[:], 0)
	if err != nil || string(buf[:k]) != "old" || a.Mode&0o777 != 0o600 {
		t.Errorf("after a power cut: %q, mode %o, %v", buf[:k], a.Mode, err)
	}
	if _, err := unix.Lgetxattr(s.upper+"/g", names.Unsynced, nil); !errors.Is(err, unix.ENODATA) {
		t.Errorf("mark after recovery: %v", err)
	}
}

// TestPowerCutKeepsAttributes: giving a file its lower's content back changes nothing else of it.
func TestPowerCutKeepsAttributes(t *testing.T) {
	s := newStack(t)
	u := s.open(nil)
	write(t, u, "new")
	s.crash(u)
	f := s.upper + "/f"
	mark := ovl.UnsyncedMark{Boot: "another", Lower: "f"}
	if err := unix.Lsetxattr(f, ovl.Trusted().Unsynced, mark.Encode(), 0); err != nil {
		t.Fatal(err)
	}
	// cap_net_raw, permitted and effective (cf. linux/capability.h struct vfs_cap_data)
	caps := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	if err := unix.Lsetxattr(f, xattrCaps, []byte(caps), 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Chmod(f, 0o6755); err != nil {
		t.Fatal(err)
	}
	at, mt := time.Unix(1111111111, 5), time.Unix(1234567890, 7)
	if err := os.Chtimes(f, at, mt); err != nil {
		t.Fatal(err)
	}
	if err := s.open(nil).Close(); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(f, &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode&0o7777 != 0o6755 || !time.Unix(st.Mtim.Unix()).Equal(mt) || !time.Unix(st.Atim.Unix()).Equal(at) {
		t.Errorf("after a power cut: mode %o, mtime %v, atime %v", st.Mode, st.Mtim, st.Atim)
	}
	var buf [64]byte
	if n, err := unix.Lgetxattr(f, xattrCaps, buf[:]); err != nil || string(buf[:n]) != caps {
		t.Errorf("capabilities after a power cut: %q, %v", buf[:max(n, 0)], err)
	}
	if got := s.content(); got != "old" {
		t.Errorf("content %q", got)
	}
}
