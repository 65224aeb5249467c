package union

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// lateQuota is the quota of these tests.
const lateQuota = 4 << 20

// late is a union with a quota over a file system whose st_blocks changes at write-back.
type late struct {
	t *testing.T
	u *Union
	s *stack
}

func newLate(t *testing.T, root string) *late {
	s := newStackIn(t, subdir(t, root))
	u := s.withQuota(Quota{Bytes: lateQuota})
	t.Cleanup(func() { okT(t, u.Close()) })
	return &late{t, u, s}
}

func subdir(t *testing.T, root string) string {
	t.Helper()
	dir, err := os.MkdirTemp(root, "stack")
	okT(t, err)
	t.Cleanup(func() { okT(t, os.RemoveAll(dir)) })
	return dir
}

// sync writes back all that the file system has, as happens at any time.
func (l *late) sync() {
	l.t.Helper()
	dir, err := os.Open(l.s.upper)
	okT(l.t, err)
	okT(l.t, unix.Syncfs(int(dir.Fd())))
	okT(l.t, dir.Close())
}

// file makes a file and writes data at each of the offsets.
func (l *late) file(name string, data []byte, offs ...int64) (*Node, error) {
	l.t.Helper()
	n, _, err := l.u.Create(&Caller{}, l.u.Root(), name, 0o644, unix.O_EXCL)
	if err != nil {
		return nil, err
	}
	for _, off := range offs {
		if _, err := l.u.Write(n, data, off, KeepSetID); err != nil {
			return n, err
		}
	}
	return n, nil
}

// A life is what happens to a node between the writing and the removal of its file.
type life struct {
	name           string
	parts, unswept bool // the node is forgotten before write-back; nothing is settled before
}

var lives = []life{{"kept", false, false}, {"forgotten", true, false}, {"unswept", false, true}, {"forgotten unswept", true, true}}

// pass lets the file called name, of node n, be written back, and removes it unless keep.
func (l *late) pass(how life, n *Node, name string, keep bool) {
	l.t.Helper()
	if !how.unswept {
		l.u.QuotaUse()
	}
	if how.parts {
		l.u.Forget(n, 1)
	}
	l.sync()
	if !keep {
		okT(l.t, l.u.Unlink(l.u.Root(), name))
	}
	if !how.parts {
		l.u.Forget(n, 1)
	}
}

// scattered are the offsets of every other block, from the last one on: beyond the end, xfs allocates ahead.
func scattered(blocks int64) (offs []int64) {
	for i := range blocks {
		offs = append(offs, (blocks-i)*8192)
	}
	return offs
}

// TestQuotaFragmented: what ext4 and xfs add to a file when they map it is given back with the file, and no more than was
// counted. btrfs adds nothing, and counts compressed data as it was written.
func TestQuotaFragmented(t *testing.T) {
	for name, root := range map[string]string{
		"ext4": testenv.Ext4(t, 64<<20), "xfs": testenv.XFS(t), "btrfs": testenv.Btrfs(t, 256<<20, "compress-force=zstd"),
	} {
		for _, how := range lives {
			t.Run(name+"/"+how.name, func(t *testing.T) {
				l := newLate(t, root)
				block := make([]byte, 4096)
				for range 30 {
					n, err := l.file("x", block, scattered(30)...)
					okT(t, err)
					l.pass(how, n, "x", false)
				}
				exact(t, l.u)
				l.fillScattered(how)
			})
		}
	}
}

// fillScattered writes files in many pieces until the quota is full, twice over.
func (l *late) fillScattered(how life) {
	t := l.t
	block := make([]byte, 4096)
	for round := range 2 {
		var names []string
		for i := 0; ; i++ {
			name := fmt.Sprintf("f%d.%d", round, i)
			n, err := l.file(name, block, scattered(30)...)
			if n != nil {
				names = append(names, name)
				l.pass(how, n, name, true)
			}
			if err != nil {
				if !errors.Is(err, unix.EDQUOT) {
					t.Fatal(err)
				}
				break
			}
		}
		// One block for the map of each file, and nothing else, comes on top.
		okT(t, l.u.RecountQuota())
		if used := l.u.QuotaUse().Bytes; used > lateQuota+int64(len(names))*4096 || used < lateQuota*9/10 {
			t.Errorf("round %d: %d files take up %d bytes, the quota is %d", round, len(names), used, lateQuota)
		}
		for _, name := range names {
			okT(t, l.u.Unlink(l.u.Root(), name))
		}
	}
}

// TestQuotaShared: an overwrite of what is shared takes up its space twice on xfs, until it is written back. The account must
// come down with it, by itself, and before it refuses anything.
func TestQuotaShared(t *testing.T) {
	root := testenv.XFS(t)
	noise := make([]byte, 512<<10)
	for _, how := range lives {
		t.Run(how.name, func(t *testing.T) {
			l := newLate(t, root)
			x, err := l.file("x", noise, 0)
			okT(t, err)
			defer l.u.Forget(x, 1)
			l.sync()
			for range 20 {
				l.pass(how, l.overwritten(x, "y", noise), "y", false)
			}
			exact(t, l.u)
			for i := range 7 { // exactly what is left
				name := fmt.Sprint("y", i)
				l.pass(how, l.overwritten(x, name, noise[:448<<10]), name, true)
			}
		})
	}
}

// overwritten makes a file that shares what x has, and overwrites it.
func (l *late) overwritten(x *Node, name string, data []byte) *Node {
	l.t.Helper()
	n, err := l.file(name, nil)
	okT(l.t, err)
	k, err := l.u.CopyRange(x, 0, n, 0, int64(len(data)))
	okT(l.t, err)
	if k != len(data) {
		l.t.Fatalf("%d of %d bytes could be copied", k, len(data))
	}
	_, err = l.u.Write(n, data, 0, KeepSetID)
	okT(l.t, err)
	return n
}

// TestQuotaFull: a quota that is really full is found out once, not with every refusal.
func TestQuotaFull(t *testing.T) {
	l := newLate(t, testenv.XFS(t))
	data := make([]byte, 64<<10)
	n, err := l.file("x", nil)
	okT(t, err)
	defer l.u.Forget(n, 1)
	off, refused := int64(0), 0
	for refused < 500 {
		_, err := l.u.Write(n, data, off, KeepSetID)
		switch {
		case err == nil:
			off += int64(len(data))
		case errors.Is(err, unix.EDQUOT):
			refused++
		default:
			t.Fatal(err)
		}
	}
	if off > lateQuota || off < lateQuota*9/10 {
		t.Errorf("%d bytes could be written, the quota is %d", off, lateQuota)
	}
	if l.u.quota.round > 3 {
		t.Errorf("%d refusals made %d recounts", refused, l.u.quota.round)
	}
	l.sync()
	exact(t, l.u)
}

// TestQuotaAllocatedLate: where nothing shows before it is written back, what was written counts until that is known.
func TestQuotaAllocatedLate(t *testing.T) {
	for _, parts := range []bool{false, true} {
		l := newLate(t, testenv.Ext4(t, 64<<20))
		q := l.u.quota
		q.timing = dataLate
		data := make([]byte, 1<<20)
		var err error
		for i := 0; err == nil && i < 8; i++ {
			var n *Node
			n, err = l.file(fmt.Sprint("x", i), data[:400<<10], 0)
			l.hide(fmt.Sprint("x", i))
			l.u.QuotaUse()
			if parts {
				l.u.Forget(n, 1)
			} else {
				defer l.u.Forget(n, 1)
			}
		}
		okT(t, err) // 3.2 MB
		if use := l.u.QuotaUse().Bytes; use < 8*400<<10 {
			t.Errorf("%d bytes are counted, %d were written", use, 8*400<<10)
		}
		if q.round != 0 {
			t.Errorf("%d recounts before the quota was full", q.round)
		}
		// Written back, it is still not there: what was to be written was holes, as it were.
		n, err := l.file("g", data, 0)
		okT(t, err)
		l.u.Forget(n, 1)
		if use := l.u.QuotaUse().Bytes; q.round != 1 || use > 3<<20 {
			t.Errorf("%d bytes are counted after %d recounts", use, q.round)
		}
		l.unlinkAll()
		exact(t, l.u)
	}
}

// hide makes the upper file look as if nothing of it were allocated.
func (l *late) hide(name string) {
	l.t.Helper()
	f, err := os.OpenFile(l.s.upper+"/"+name, os.O_RDWR, 0)
	okT(l.t, err)
	okT(l.t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 1<<30))
	okT(l.t, f.Close())
}

func (l *late) unlinkAll() {
	l.t.Helper()
	entries, err := os.ReadDir(l.s.upper)
	okT(l.t, err)
	for _, e := range entries {
		okT(l.t, l.u.Unlink(l.u.Root(), e.Name()))
	}
}

// TestQuotaPartedMany: memory of objects without a node is bounded, and what is forgotten errs to the safe side.
func TestQuotaPartedMany(t *testing.T) {
	s := newStackIn(t, subdir(t, testenv.Ext4(t, 512<<20)))
	u := s.withQuota(Quota{Bytes: 400 << 20})
	defer func() { okT(t, u.Close()) }()
	l := &late{t, u, s}
	block := make([]byte, 4096)
	for i := range manyParted + 100 {
		offs := []int64{0}
		if i < 200 {
			offs = scattered(6)
		}
		n, err := l.file(fmt.Sprint("x", i), block, offs...)
		okT(t, err)
		u.Forget(n, 1)
	}
	l.sync()
	if got := len(u.quota.parted); got != manyParted {
		t.Errorf("%d objects are remembered", got)
	}
	for i := range 200 {
		okT(t, u.Unlink(u.Root(), fmt.Sprint("x", i)))
	}
	use := u.QuotaUse()
	doubt := u.quota.doubted
	okT(t, u.RecountQuota())
	if found := u.QuotaUse(); use.Bytes < found.Bytes || use.Bytes > found.Bytes+doubt {
		t.Errorf("the account has %+v, %d of them in doubt, the upper %+v", use, doubt, found)
	}
}
