package cow_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/internal/sys"
	"plyfs/internal/testenv"
)

// noise is content without zeros or repetitions.
func noise(size int) []byte {
	rnd, b := rand.New(rand.NewPCG(7, uint64(size))), make([]byte, size)
	for i := range b {
		b[i] = byte(rnd.IntN(255) + 1)
	}
	return b
}

// pair is a source file with the given content and an empty destination in another directory.
func pair(t testing.TB, from, to string, content []byte) (src, dst *os.File) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(from, "src"), content, 0o600))
	src, err := os.Open(filepath.Join(from, "src"))
	must(t, err)
	dst, err = os.OpenFile(filepath.Join(to, "dst"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	must(t, err)
	t.Cleanup(func() { src.Close(); dst.Close() })
	return src, dst
}

func content(t testing.TB, f *os.File) []byte {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	must(t, err)
	return b
}

func TestCopyData(t *testing.T) {
	tmp, ext4, reflink := testenv.Scratch(t), testenv.Ext4(t, 32<<20), testenv.XFS(t)
	for _, c := range []struct{ about, from, to string }{
		{"tmpfs", tmp, tmp}, {"ext4", ext4, ext4}, {"xfs", reflink, reflink}, {"ext4 to tmpfs", ext4, tmp}, {"tmpfs to xfs", tmp, reflink},
	} {
		t.Run(c.about, func(t *testing.T) {
			var copier cow.Copier
			for _, size := range []int{0, 1, 4095, 4096, 4097, 1<<20 + 1} {
				data := noise(size)
				for _, upTo := range []int{size, size / 2, size + 5000} { // whole, cut off, and of a source that shrank meanwhile
					src, dst := pair(t, c.from, c.to, data)
					n, err := copier.CopyData(nil, int(dst.Fd()), int(src.Fd()), int64(upTo))
					want := make([]byte, upTo)
					copy(want, data)
					if err != nil || !bytes.Equal(content(t, dst), want) {
						t.Errorf("%d of %d bytes: %v, %d bytes arrived", upTo, size, err, len(content(t, dst)))
					}
					if n != int64(min(size, upTo)) {
						t.Errorf("%d of %d bytes: %d are told", upTo, size, n)
					}
					src.Close()
					dst.Close()
				}
			}
		})
	}
}

// Whole files share their extents where that is possible, and where it is not it is tried once.
func TestCopyDataClones(t *testing.T) {
	tmp, reflink := testenv.Scratch(t), testenv.XFS(t)
	for _, c := range []struct {
		about, dir    string
		first, second []string
	}{
		{"xfs", reflink, []string{"clone"}, []string{"clone"}},
		{"tmpfs", tmp, []string{"clone", "copy_file_range"}, []string{"copy_file_range"}},
	} {
		var copier cow.Copier
		for _, want := range [][]string{c.first, c.second} {
			var rec recorder
			src, dst := pair(t, c.dir, c.dir, noise(1<<20))
			n, err := copier.CopyData(rec.mutator(), int(dst.Fd()), int(src.Fd()), 1<<20)
			if err != nil || n != 1<<20 || !slices.Equal(rec.all(), want) {
				t.Errorf("%s: %d bytes, %v, by %q; want %q", c.about, n, err, rec.all(), want)
			}
		}
	}
	var copier cow.Copier
	var rec recorder
	src, dst := pair(t, reflink, reflink, noise(8192))
	_, err := copier.CopyData(rec.mutator(), int(dst.Fd()), int(src.Fd()), 4096)
	if err != nil || rec.made("clone") != 0 {
		t.Errorf("a part is shared as a whole: %v, %q", err, rec.all())
	}
}

func TestCopyDataKeepsHoles(t *testing.T) {
	const size = 4 << 30
	for about, dirs := range map[string][2]string{
		"tmpfs": {testenv.Scratch(t), testenv.Scratch(t)}, "ext4": {testenv.Ext4(t, 32<<20), testenv.Scratch(t)},
		"xfs": {testenv.XFS(t), testenv.Scratch(t)},
	} {
		for _, to := range []string{dirs[0], dirs[1]} {
			data, offsets := noise(5000), []int64{0, 1 << 30, size - 5000}
			src, dst := pair(t, dirs[0], to, nil)
			must(t, os.Truncate(src.Name(), size))
			w, err := os.OpenFile(src.Name(), os.O_WRONLY, 0)
			must(t, err)
			for _, off := range offsets {
				_, err := w.WriteAt(data, off)
				must(t, err)
			}
			must(t, w.Close())
			var copier cow.Copier
			n, err := copier.CopyData(failClone(), int(dst.Fd()), int(src.Fd()), size)
			must(t, err)
			var st, from unix.Stat_t
			must(t, unix.Fstat(int(dst.Fd()), &st), unix.Fstat(int(src.Fd()), &from))
			if st.Size != size || st.Blocks > from.Blocks+256 || n > 1<<20 || n < 15000 {
				t.Errorf("%s: size %d, %d blocks of %d, %d bytes copied", about, st.Size, st.Blocks, from.Blocks, n)
			}
			for _, off := range offsets {
				got := make([]byte, len(data))
				_, err := dst.ReadAt(got, off)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s: other data at %d: %v", about, off, err)
				}
				if end := off + 5000; end < size {
					_, err = dst.ReadAt(got, end)
					if err != nil || !bytes.Equal(got, make([]byte, len(got))) {
						t.Errorf("%s: data in the hole at %d: %v", about, end, err)
					}
				}
			}
			must(t, src.Close(), dst.Close(), os.Remove(dst.Name()))
		}
	}
}

// failClone is a mutator for file systems on which a clone would do all.
func failClone() *sys.Mutator {
	return (&recorder{fail: failing("clone", unix.EOPNOTSUPP)}).mutator()
}

func TestCopyDataOnlyHole(t *testing.T) {
	dir := testenv.Scratch(t)
	src, dst := pair(t, dir, dir, nil)
	must(t, os.Truncate(src.Name(), 1<<40))
	n, err := new(cow.Copier).CopyData(nil, int(dst.Fd()), int(src.Fd()), 1<<40)
	var st unix.Stat_t
	must(t, err, unix.Fstat(int(dst.Fd()), &st))
	if n != 0 || st.Size != 1<<40 || st.Blocks != 0 {
		t.Errorf("%d bytes copied, size %d, %d blocks", n, st.Size, st.Blocks)
	}
}

// Where copy_file_range does not serve, at once or any more, data goes through a buffer.
func TestCopyDataBuffered(t *testing.T) {
	dir := testenv.Scratch(t)
	data := noise(5<<20 + 1)
	clear(data[1<<20 : 2<<20])
	for _, fault := range []error{unix.EXDEV, unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP, unix.EPERM} {
		for first := 1; first <= 2; first++ { // the first span of data that it refuses
			src, dst := pair(t, dir, dir, data)
			must(t, punch(src.Name(), 1<<20, 1<<20))
			rec, calls := recorder{}, 0
			rec.fail = func(op string, _ int) error {
				if op != "copy_file_range" {
					return failing("clone", unix.EOPNOTSUPP)(op, 0)
				}
				if calls++; calls >= first {
					return fault
				}
				return nil
			}
			n, err := new(cow.Copier).CopyData(rec.mutator(), int(dst.Fd()), int(src.Fd()), int64(len(data)))
			if err != nil || n != int64(len(data)-1<<20) || !bytes.Equal(content(t, dst), data) {
				t.Errorf("%v: %d bytes, %v", fault, n, err)
			}
			if calls != 2 || rec.made("write") == 0 {
				t.Errorf("%v: by %q", fault, rec.all())
			}
		}
	}
}

// punch makes a hole in a file.
func punch(path string, off, length int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
}

// TestCopyDataShrinks cuts the source off while it is copied: the copy has the size that was asked for and does not wait.
func TestCopyDataShrinks(t *testing.T) {
	dir := testenv.Scratch(t)
	for _, op := range []string{"clone", "copy_file_range", "write"} {
		data := noise(3 << 20)
		src, dst := pair(t, dir, dir, data)
		rec := recorder{fail: func(o string, _ int) error {
			if o == op {
				must(t, os.Truncate(src.Name(), 1<<20))
			}
			if o == "clone" || o == "copy_file_range" && op == "write" {
				return unix.EOPNOTSUPP
			}
			return nil
		}}
		_, err := new(cow.Copier).CopyData(rec.mutator(), int(dst.Fd()), int(src.Fd()), int64(len(data)))
		got := content(t, dst)
		if err != nil || len(got) != len(data) || !bytes.Equal(got[:1<<20], data[:1<<20]) {
			t.Errorf("at %s: %d bytes, %v", op, len(got), err)
		}
	}
}

// TestCopyDataFaults fails each call in turn: the failure is told, or something else was done and the copy is right.
func TestCopyDataFaults(t *testing.T) {
	dir := testenv.Scratch(t)
	data := append(make([]byte, 1<<20), noise(1<<20)...)
	for _, buffered := range []bool{false, true} {
		for nth := 1; ; nth++ {
			src, dst := pair(t, dir, dir, data)
			must(t, punch(src.Name(), 0, 1<<20))
			hit := ""
			rec := recorder{fail: func(op string, n int) error {
				if n == nth {
					hit = op
					return unix.ENOSPC
				}
				if buffered && op == "copy_file_range" || op == "clone" {
					return unix.EOPNOTSUPP
				}
				return nil
			}}
			_, err := new(cow.Copier).CopyData(rec.mutator(), int(dst.Fd()), int(src.Fd()), int64(len(data)))
			switch {
			case err == nil && !bytes.Equal(content(t, dst), data):
				t.Errorf("%q, %s failed: a wrong copy and no error", rec.all(), hit)
			case err != nil && !errors.Is(err, unix.ENOSPC):
				t.Errorf("%q, %s failed: %v", rec.all(), hit, err)
			case err == nil && hit != "" && hit != "clone":
				t.Errorf("%q: the failure of %s is not told", rec.all(), hit)
			}
			if hit == "" {
				if nth < 3 {
					t.Errorf("only %q is called", rec.all())
				}
				break
			}
		}
	}
}

func TestCopyDataErrors(t *testing.T) {
	dir := testenv.Scratch(t)
	src, dst := pair(t, dir, dir, noise(100))
	readOnly, err := os.Open(dst.Name())
	must(t, err)
	defer readOnly.Close()
	if _, err := new(cow.Copier).CopyData(nil, int(readOnly.Fd()), int(src.Fd()), 100); !errors.Is(err, unix.EBADF) {
		t.Errorf("to a file that is not open for writing: %v", err)
	}
	if _, err := new(cow.Copier).CopyData(nil, int(dst.Fd()), -1, 100); !errors.Is(err, unix.EBADF) {
		t.Errorf("from nowhere: %v", err)
	}
	small := testenv.Ext4(t, 4<<20)
	src, dst = pair(t, dir, small, noise(8<<20))
	if _, err := new(cow.Copier).CopyData(nil, int(dst.Fd()), int(src.Fd()), 8<<20); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("to a full disk: %v", fmt.Sprint(err))
	}
}
