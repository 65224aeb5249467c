package tarlayer_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow/tarlayer"
	"plyfs/internal/fingerprint"
	"plyfs/internal/testenv"
)

func compare(t testing.TB, older, newer string, o tarlayer.CompareOptions) string {
	t.Helper()
	changes, err := tarlayer.Compare(t.Context(), open(t, older), open(t, newer), o)
	must(t, err)
	lines := make([]string, 0, len(changes))
	for _, c := range changes {
		lines = append(lines, c.String())
	}
	return strings.Join(lines, "\n")
}

func TestCompare(t *testing.T) {
	for name, c := range map[string]struct {
		change func(in func(string) string) error
		want   string
	}{
		"nothing": {func(func(string) string) error { return nil }, ""},
		"touched": {func(in func(string) string) error {
			return os.Chtimes(in("d/one"), stamp,
				stamp.Add(time.Second))
		}, "C /d\nC /d/one"},
		"directory's time": {func(in func(string) string) error {
			return os.Chtimes(in("d"), stamp,
				stamp.Add(time.Second))
		}, ""},
		"part of a second": {func(in func(string) string) error {
			return os.Chtimes(in("d/one"), stamp,
				stamp.Add(5))
		}, ""},
		"mode of a directory": {
			func(in func(string) string) error { return os.Chmod(in("d/sub"), 0o700) },
			"C /d\nC /d/sub",
		},
		"owner": {func(in func(string) string) error { return os.Lchown(in("l"), 1, 1) }, "C /l"},
		"attribute": {func(in func(string) string) error {
			return unix.Setxattr(in("d/two"), "user.x",
				[]byte("y"), 0)
		}, "C /d\nC /d/two"},
		"removed directory": {func(in func(string) string) error { return os.RemoveAll(in("d")) }, "D /d"},
		"removed files": {func(in func(string) string) error {
			return errors.Join(os.Remove(in("d/one")), os.Remove(in("d/sub/x")))
		}, "C /d\nD /d/one\nC /d/sub\nD /d/sub/x"},
		"new tree": {
			func(in func(string) string) error { return os.MkdirAll(in("e/a/b"), 0o755) },
			"C /e\nA /e/a\nA /e/a/b",
		},
		"file for a directory": {func(in func(string) string) error {
			return errors.Join(os.RemoveAll(in("d")), os.WriteFile(in("d"), nil, 0o644))
		}, "C /d"},
		"directory for a file": {func(in func(string) string) error {
			return errors.Join(os.Remove(in("f")), os.MkdirAll(in("f/in"), 0o755))
		}, "C /f\nA /f/in"},
		"symlink's target": {func(in func(string) string) error {
			ts := unix.Timespec{Sec: stamp.Unix()}
			return errors.Join(os.Remove(in("l")), os.Symlink("e", in("l")), unix.UtimesNanoAt(unix.AT_FDCWD, in("l"),
				[]unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
		}, "C /l"},
		"order": {func(in func(string) string) error {
			return errors.Join(os.Mkdir(in("a"), 0o755), os.WriteFile(in("a/b"), nil, 0o644), os.WriteFile(in("a-b"),
				nil, 0o644), os.WriteFile(in("a.b"), nil, 0o644))
		}, "A /a\nA /a/b\nA /a-b\nA /a.b"},
		"mounted on": {func(in func(string) string) error {
			return errors.Join(os.Mkdir(in("new"), 0o755), unix.Mount("tmpfs", in("e"), "tmpfs", 0, ""),
				unix.Mount("tmpfs", in("new"), "tmpfs", 0, ""),
				unix.Mount(in("h"), in("f"), "", unix.MS_BIND, ""))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := testenv.Scratch(t)
			older, newer := subdir(t, dir, "older"), subdir(t, dir, "newer")
			apply(t, older, tarlayer.ApplyOptions{}, base()...)
			apply(t, newer, tarlayer.ApplyOptions{}, base()...)
			must(t, c.change(func(name string) string { return filepath.Join(newer, name) }))
			if name == "mounted on" {
				defer func() {
					for _, p := range []string{"e", "new", "f"} {
						testenv.Unmount(t, filepath.Join(newer, p))
					}
				}()
			}
			want(t, "changes", compare(t, older, newer, tarlayer.CompareOptions{}), c.want)
		})
	}
}

func TestCompareVerify(t *testing.T) {
	dir := testenv.Scratch(t)
	older, newer := subdir(t, dir, "older"), subdir(t, dir, "newer")
	big := strings.Repeat("x", 600<<10)
	apply(t, older, tarlayer.ApplyOptions{}, file("f", big+"1"), file("same", big))
	apply(t, newer, tarlayer.ApplyOptions{}, file("f", big+"2"), file("same", big))
	want(t, "changes", compare(t, older, newer, tarlayer.CompareOptions{}), "")
	want(t, "changes", compare(t, older, newer, tarlayer.CompareOptions{Verify: true}), "C /f")
}

// A diff between two trees, unpacked over the older one, must give the newer one, whatever was done.
func TestDiffBringsOlderToNewer(t *testing.T) {
	dir := testenv.Scratch(t)
	for i := range 40 {
		older, newer := subdir(t, dir, fmt.Sprint("older", i)), subdir(t, dir, fmt.Sprint("newer", i))
		churn(t, older, uint32(i), 30)
		snapshot := writeAll(t, older, tarlayer.WriteOptions{Times: tarlayer.TimeNanoseconds})
		_, err := tryApply(t, newer, tarlayer.ApplyOptions{}, snapshot)
		must(t, err)
		churn(t, newer, uint32(i)*31+7, 15)
		changes, err := tarlayer.Compare(t.Context(), open(t, older), open(t, newer),
			tarlayer.CompareOptions{Verify: true})
		must(t, err)
		want(t, "order", slices.IsSortedFunc(changes, func(a,
			b tarlayer.Change,
		) int {
			return tarlayer.ComparePaths(a.Path, b.Path)
		}), true)
		src := tarlayer.NewDirSource(open(t, newer), tarlayer.DirOptions{})
		var b strings.Builder
		must(t, tarlayer.Write(t.Context(), &b, src, changes, tarlayer.WriteOptions{Times: tarlayer.TimeNanoseconds}),
			src.Close())
		_, err = tryApply(t, older, tarlayer.ApplyOptions{}, []byte(b.String()))
		must(t, err)
		old, now := take(t, older), take(t, newer)
		delete(old.Entries, ".")
		delete(now.Entries, ".")
		// A directory's time alone is no change.
		for p, e := range now.Entries {
			if o := old.Entries[p]; o != nil && e.Type == unix.S_IFDIR {
				o.Mtime = e.Mtime
			}
		}
		same(t, old, now, 0)
		if t.Failed() {
			t.Fatalf("round %d: %v", i, changes)
		}
	}
}

// churn makes n changes to a tree, which seed determines.
func churn(t testing.TB, dir string, seed uint32, n int) {
	t.Helper()
	next := func(limit int) int {
		seed = seed*1664525 + 1013904223
		return int(seed>>8) % limit
	}
	for i := range n {
		p := filepath.Join(dir, fmt.Sprint("n", next(4)))
		for range next(3) {
			p = filepath.Join(p, fmt.Sprint("n", next(4)))
		}
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Dir(p), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		switch next(8) {
		case 0:
			must(t, os.RemoveAll(p))
		case 1, 2, 3:
			_ = os.Mkdir(p, 0o755)
		case 4, 5:
			_ = os.WriteFile(p, fmt.Append(nil, i, seed), 0o644)
		case 6:
			_ = os.Symlink(fmt.Sprint("t", i), p)
		case 7:
			_ = unix.Lsetxattr(p, "user.x", fmt.Append(nil, i), 0)
		}
	}
}

func TestSize(t *testing.T) {
	dir := testenv.Scratch(t)
	apply(t, dir, tarlayer.ApplyOptions{}, file("a", "12345"), hardlink("b", "a"), file("c", "123"), symlink("l",
		"long"), directory("d"))
	src := tarlayer.NewDirSource(open(t, dir), tarlayer.DirOptions{})
	defer src.Close()
	var changes []tarlayer.Change
	for _, p := range []string{"a", "b", "c", "d", "l"} {
		changes = append(changes, tarlayer.Change{Path: p, Kind: tarlayer.Modify})
	}
	n, err := tarlayer.Size(t.Context(), src, append(changes, tarlayer.Change{Path: "gone", Kind: tarlayer.Delete}, tarlayer.Change{Path: "went/meanwhile", Kind: tarlayer.Add}))
	must(t, err)
	want(t, "size", n, 8)
}

// A hard link to a file of the layers below is summed as what it is a name of, whether that is in the tree already or is copied
// up; the file itself is no member.
func TestSumOfLinkBelow(t *testing.T) {
	lower := testenv.Scratch(t)
	must(t, os.WriteFile(filepath.Join(lower, "f"), []byte("content"), 0o640))
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: "link", Linkname: "f"}))
	must(t, w.Close())
	copied := testenv.Scratch(t)
	src := tarlayer.NewDirSource(open(t, lower), tarlayer.DirOptions{})
	defer src.Close()
	up, err := tryApply(t, copied, tarlayer.ApplyOptions{Whiteouts: tarlayer.WhiteoutKernel, Lower: src, Sum: true}, b.Bytes())
	must(t, err)
	in, err := tryApply(t, lower, tarlayer.ApplyOptions{Sum: true}, b.Bytes())
	must(t, err)
	tree := tarlayer.NewDirSource(open(t, lower), tarlayer.DirOptions{})
	defer tree.Close()
	sum, err := tarlayer.Sum(t.Context(), tree, []tarlayer.Change{{Path: "link", Kind: tarlayer.Add}})
	must(t, err)
	want(t, "copied up", up.Sum, sum)
	want(t, "in the tree", in.Sum, sum)
}

// A time that not all file systems hold has the sum of the nearest one that they do, in the stream as in the tree.
func TestSumOfFarTimes(t *testing.T) {
	at := func(sec int64) (applied, read uint64) {
		dir := testenv.Scratch(t)
		m := file("f", "content")
		m.ModTime = time.Unix(sec, 0)
		applied = apply(t, dir, tarlayer.ApplyOptions{Sum: true}, m).Sum
		src := tarlayer.NewDirSource(open(t, dir), tarlayer.DirOptions{})
		defer src.Close()
		read, err := tarlayer.Sum(t.Context(), src, []tarlayer.Change{{Path: "f", Kind: tarlayer.Add}})
		must(t, err)
		return applied, read
	}
	for held, far := range map[int64][]int64{
		15032385535: {15032385536, 99999999999, math.MaxInt64}, -1 << 31: {-1<<31 - 1, -99999999999}, 4102444800: {4102444800},
	} {
		sum, read := at(held)
		want(t, fmt.Sprint("tree of ", held), read, sum)
		for _, sec := range far {
			applied, read := at(sec)
			want(t, fmt.Sprint("stream of ", sec), applied, sum)
			want(t, fmt.Sprint("tree of ", sec), read, sum)
		}
	}
	low, _ := at(15032385534)
	high, _ := at(15032385535)
	if low == high {
		t.Error("times that all hold are not told apart")
	}
}

func TestSumIsThatOfTheTree(t *testing.T) {
	from, to := testenv.Scratch(t), testenv.Scratch(t)
	manyThings(t, from)
	res, err := tryApply(t, to, tarlayer.ApplyOptions{Sum: true}, writeAll(t, from, tarlayer.WriteOptions{}))
	must(t, err)
	changes := []tarlayer.Change{{Kind: tarlayer.Modify}}
	added, err := tarlayer.Compare(t.Context(), nil, open(t, to), tarlayer.CompareOptions{})
	must(t, err)
	changes = append(changes, added...)
	sum := func() uint64 {
		src := tarlayer.NewDirSource(open(t, to), tarlayer.DirOptions{})
		defer src.Close()
		s, err := tarlayer.Sum(t.Context(), src, changes)
		must(t, err)
		return s
	}
	want(t, "sum", sum(), res.Sum)
	for what, f := range map[string]func(p string) error{
		"content": func(p string) error {
			return errors.Join(os.WriteFile(p, []byte("kontent"), 0o644), os.Chtimes(p, stamp, fileTime(t,
				filepath.Join(from, "file"))))
		},
		"mode":      func(p string) error { return os.Chmod(p, 0o600) },
		"attribute": func(p string) error { return unix.Removexattr(p, "user.comment") },
		"removal":   os.Remove,
	} {
		before := sum()
		must(t, f(filepath.Join(to, "file")))
		if sum() == before {
			t.Errorf("a change of %s is not seen", what)
		}
		if what == "removal" {
			break
		}
	}
}

func fileTime(t *testing.T, path string) time.Time {
	t.Helper()
	st := lstat(t, path)
	return time.Unix(st.Mtim.Unix())
}

func TestCompareEqualTrees(t *testing.T) {
	a, b := testenv.Scratch(t), testenv.Scratch(t)
	manyThings(t, a)
	_, err := tryApply(t, b, tarlayer.ApplyOptions{}, writeAll(t, a, tarlayer.WriteOptions{}))
	must(t, err)
	want(t, "changes", compare(t, a, b, tarlayer.CompareOptions{Verify: true}), "")
	same(t, take(t, a), take(t, b), fingerprint.Default&^fingerprint.Mtime)
}
