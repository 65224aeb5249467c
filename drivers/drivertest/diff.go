package drivertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/tarlayer"
	"plyfs/drivers"
	"plyfs/internal/fingerprint"
)

func diffCases() []aCase {
	return []aCase{
		{"DiffApply", caseDiffApply},
		{"DiffOfAll", caseDiffOfAll},
		{"DiffBetween", caseDiffBetween},
		{"DiffMounted", caseDiffMounted},
		{"DiffSameSecond", caseDiffSameSecond},
		{"DiffSockets", caseDiffSockets},
		{"DiffClosedEarly", caseDiffClosedEarly},
		{"Changes", caseChanges},
		{"ChangesNone", caseChangesNone},
		{"ApplyOptions", caseApplyOptions},
		{"ApplyBroken", caseApplyBroken},
		{"ApplyReaderFails", caseApplyReaderFails},
		{"ApplyFullDisk", caseApplyFullDisk},
		{"MountsBelow", caseMountsBelow},
		{"BigFile", caseBigFile},
	}
}

// caseDiffApply is moby's: many files, of which some are changed, added and deleted.
func caseDiffApply(e *env) {
	const files = 500
	e.image("base", "", dir("a", 0o755), many("a", files), dir("b/c", 0o755), many("b/c", 50))
	e.writable("c", "base")
	var steps []step
	var want []string
	for i := range files {
		name := fmt.Sprintf("a/f%04d", i)
		switch i % 50 {
		case 0:
			steps, want = append(steps, file(name, "changed", 0o644)), append(want, "C /"+name)
		case 1:
			steps, want = append(steps, remove(name)), append(want, "D /"+name)
		case 2:
			steps, want = append(steps, file(name+"-new", "new", 0o600)), append(want, "A /"+name+"-new")
		}
	}
	at := &place{root: e.get("c"), layer: 1}
	e.must(at.do(append(steps, remove("b"))))
	e.put("c")
	e.wantChanges("c", "base", append(want, "C /a", "D /b")...)
	e.must(e.d.Create(ctx(), "made", "base", nil))
	e.copyDiff("c", "base", "made")
	e.same("c", "made")
}

// wantChanges compares changes with lines as of docker diff, in any order.
func (e *env) wantChanges(id, parent string, want ...string) {
	e.Helper()
	list, err := drivers.DifferOf(e.d).Changes(ctx(), id, parent)
	e.must(err)
	var got []string
	for _, c := range list {
		got = append(got, c.String())
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		e.Errorf("changes of %s:\n%s\nwant\n%s", id, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// same compares what two layers show.
func (e *env) same(a, b string) {
	e.Helper()
	one := take(e, e.get(a))
	e.put(a)
	two := take(e, e.get(b))
	e.put(b)
	if diff := fingerprint.Diff(one, two, kept); diff != nil {
		e.Errorf("%s != %s:\n%s", a, b, fingerprint.Format(diff, 20))
	}
}

// caseDiffOfAll flattens a stack.
func caseDiffOfAll(e *env) {
	e.image("base", "", baseSteps()...)
	e.image("mid", "base", remove("a file"), file("g", "g", 0o644))
	e.image("top", "mid", remove("etc"), dir("etc", 0o700), file("etc/h", "h", 0o644))
	e.must(e.d.Create(ctx(), "flat", "", nil))
	e.copyDiff("top", "", "flat")
	e.same("top", "flat")
	e.wantChanges("top", "", "A /a subdir", "A /etc", "A /etc/h", "A /g", "A /link")
}

// caseDiffBetween asks for the difference to a layer further below.
func caseDiffBetween(e *env) {
	e.image("base", "", baseSteps()...)
	e.image("mid", "base", remove("a file"), file("g", "g", 0o644), file("t", "t", 0o644))
	e.image("top", "mid", remove("t"), appendTo("etc/passwd", "+"))
	e.must(e.d.Create(ctx(), "flat", "base", nil))
	e.copyDiff("top", "base", "flat")
	e.same("top", "flat")
}

// caseDiffSameSecond changes a file in the second that its layer has for it, to content of the same size.
func caseDiffSameSecond(e *env) {
	e.image("base", "", file("f", "one", 0o644))
	e.writable("c", "base")
	at := &place{root: e.get("c")}
	var st unix.Stat_t
	e.must(unix.Stat(at.path("f"), &st))
	e.must(os.WriteFile(at.path("f"), []byte("two"), 0o644))
	e.must(unix.UtimesNano(at.path("f"), []unix.Timespec{st.Atim, {Sec: st.Mtim.Sec, Nsec: 500_000_000}}))
	e.put("c")
	e.wantChanges("c", "base", "C /f")
	e.must(e.d.Create(ctx(), "made", "base", nil))
	e.copyDiff("c", "base", "made")
	e.check("made", holds("f", "two"))
}

// caseDiffMounted commits a running container.
func caseDiffMounted(e *env) {
	e.image("base", "", baseSteps()...)
	e.writable("c", "base")
	at := &place{root: e.get("c")}
	f, err := os.OpenFile(at.path("a file"), os.O_RDWR, 0)
	e.must(err)
	defer f.Close()
	_, err = f.WriteAt([]byte("DATA, unsynced"), 0)
	e.must(err)
	e.must(at.do([]step{file("new", "new", 0o644), remove("link")}))
	e.wantChanges("c", "base", "C /a file", "A /new", "D /link")
	e.must(e.d.Create(ctx(), "made", "base", nil))
	e.copyDiff("c", "base", "made")
	e.check("made", holds("a file", "DATA, unsynced"), holds("new", "new"), absent("link"))
	// It goes on.
	_, err = f.WriteAt([]byte("more"), 0)
	e.must(err)
	e.must(f.Close())
	e.must(at.do([]step{file("later", "l", 0o644)}))
	e.put("c")
	e.check("made", absent("later"))
}

// caseDiffSockets leaves out what no stream can hold, and only that.
func caseDiffSockets(e *env) {
	e.image("base", "", dir("run", 0o755))
	e.writable("c", "base")
	e.change("c", mknod("run/socket", unix.S_IFSOCK|0o755, 0), file("run/pid", "1", 0o644))
	e.check("c", func(at *place) error {
		var st unix.Stat_t
		err := unix.Lstat(at.path("run/socket"), &st)
		if err == nil && st.Mode != unix.S_IFSOCK|0o755 {
			err = fmt.Errorf("the socket has mode %o", st.Mode)
		}
		return err
	})
	e.must(e.d.Create(ctx(), "made", "base", nil))
	e.copyDiff("c", "base", "made")
	e.check("made", absent("run/socket"), holds("run/pid", "1"))
}

// caseDiffClosedEarly loses interest in a stream.
func caseDiffClosedEarly(e *env) {
	e.image("base", "", many(".", 100), func(at *place) error {
		return os.WriteFile(at.path("big"), noiseBytes(3<<20),
			0o644)
	})
	for _, n := range []int64{0, 1, 600, 1 << 20} {
		r, err := drivers.DifferOf(e.d).Diff(ctx(), "base", "", nil)
		e.must(err)
		if _, err := io.CopyN(io.Discard, r, n); err != nil {
			e.Errorf("read %d bytes: %v", n, err)
		}
		e.must(r.Close())
		if err := r.Close(); err != nil {
			e.Errorf("close again: %v", err)
		}
	}
	// One whose context ends says so.
	c, cancel := context.WithCancel(ctx())
	r, err := drivers.DifferOf(e.d).Diff(c, "base", "", nil)
	e.must(err)
	_, err = io.CopyN(io.Discard, r, 600)
	e.must(err)
	cancel()
	if _, err := io.Copy(io.Discard, r); err != nil && !errors.Is(err, context.Canceled) {
		e.Errorf("after the context ended: %v", err)
	}
	e.must(r.Close())
	e.wants(e.d.Put(ctx(), "base"), drivers.ErrInvalid)
}

// caseChanges is moby's, with parents as docker diff lists them.
func caseChanges(e *env) {
	e.image("base", "", append(baseSteps(), file("etc/group", "g", 0o644))...)
	e.writable("c", "base")
	at := &place{root: e.get("c"), layer: 1}
	e.must(at.do([]step{
		appendTo("etc/group", "x"), dir("a subdir/new/deep", 0o755), chmod("a file", 0o600), remove("link"), symlink("a",
			"link2"),
	}))
	e.put("c")
	e.wantChanges("c", "base", "C /etc", "C /etc/group", "C /a subdir", "A /a subdir/new", "A /a subdir/new/deep",
		"C /a file", "D /link", "A /link2")
}

// caseChangesNone looks at layers that were used, and not changed.
func caseChangesNone(e *env) {
	e.image("base", "", baseSteps()...)
	e.writable("c", "base")
	e.wantChanges("c", "base")
	e.change("c", func(at *place) error {
		f, err := os.OpenFile(at.path("a file"), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return f.Close()
	}, file("temp", "t", 0o644), remove("temp"))
	e.wantChanges("c", "base")
	e.image("same", "base")
	e.wantChanges("same", "base")
	size, err := drivers.DifferOf(e.d).DiffSize(ctx(), "same", "base")
	e.must(err)
	if size != 0 {
		e.Errorf("size of no difference: %d", size)
	}
}

// caseApplyOptions checks that limits and progress reach who unpacks.
func caseApplyOptions(e *env) {
	e.must(e.d.Create(ctx(), "l", "", nil))
	o := &drivers.ApplyOptions{Limits: tarlayer.Limits{Bytes: 1000}}
	_, err := drivers.DifferOf(e.d).ApplyDiff(ctx(), "l", archive(e.T, member{name: "f", size: 2000}), o)
	e.wants(err, tarlayer.ErrLimit)
	e.must(e.d.Remove(ctx(), "l"))
	e.must(e.d.Create(ctx(), "l", "", nil))
	var seen int64
	o = &drivers.ApplyOptions{Progress: func(n int64) {
		if n < seen {
			e.Errorf("progress went back from %d to %d", seen, n)
		}
		seen = n
	}}
	res, err := drivers.DifferOf(e.d).ApplyDiff(ctx(), "l", archive(e.T, member{name: "f", size: 200_000},
		member{name: "g", content: "g"}), o)
	e.must(err)
	if seen < 200_000 || res.Bytes != 200_001 || res.Entries != 2 {
		e.Errorf("progress ended at %d, result %+v", seen, res)
	}
}

// caseApplyBroken breaks streams off, and gives what is none.
func caseApplyBroken(e *env) {
	e.image("base", "", baseSteps()...)
	whole, err := io.ReadAll(archive(e.T, member{name: "a file", content: "new"}, member{name: "etc", gone: true},
		member{name: "big", size: 100_000}))
	e.must(err)
	for _, n := range []int{100, 512, 700, 1024, 3000, 60_000} {
		e.applyFails(fmt.Sprintf("cut off at %d", n), "base", bytes.NewReader(whole[:n]), io.ErrUnexpectedEOF)
	}
	e.applyFails("no tar", "base", strings.NewReader(strings.Repeat("not a tar stream ", 100)), nil)
	e.applyFails("escape", "base", archive(e.T, member{name: "../escape", content: "x"}), nil)
	e.check("base", checkBase()...)
}

// applyFails checks that ApplyDiff fails, with an error of a class if one is given, and that the layer can be removed
// and made again.
func (e *env) applyFails(what, parent string, r io.Reader, class error) {
	e.Helper()
	e.must(e.d.Create(ctx(), "half", parent, nil))
	_, err := drivers.DifferOf(e.d).ApplyDiff(ctx(), "half", r, nil)
	switch {
	case err == nil:
		e.Errorf("%s: it was applied", what)
	case class != nil && !errors.Is(err, class):
		e.Errorf("%s: error %v, want one that wraps %q", what, err, class)
	}
	e.must(e.d.Remove(ctx(), "half"))
	e.exists("half", false)
}

func caseApplyReaderFails(e *env) {
	e.image("base", "", baseSteps()...)
	broken := errors.New("the connection is gone")
	head := io.LimitReader(archive(e.T, member{name: "big", size: 1 << 20}), 300_000)
	e.applyFails("failing reader", "base", io.MultiReader(head, failingReader{broken}), broken)
	// The same after a restart that nobody cleaned up before.
	e.must(e.d.Create(ctx(), "half", "base", nil))
	_, err := drivers.DifferOf(e.d).ApplyDiff(ctx(), "half", failingReader{broken}, nil)
	e.wants(err, broken)
	e.reopen()
	e.must(e.d.Remove(ctx(), "half"))
	e.check("base", checkBase()...)
}

type failingReader struct{ err error }

func (f failingReader) Read([]byte) (int, error) { return 0, f.err }

// caseApplyFullDisk fills the file system.
func caseApplyFullDisk(t *env) {
	e := newSmallEnv(t)
	e.image("base", "", baseSteps()...)
	var many []member
	for i := range 16 {
		many = append(many, member{name: fmt.Sprintf("big%d", i), size: SmallSize / 16})
	}
	e.applyFails("full disk", "base", archive(e.T, many...), unix.ENOSPC)
	// There is room again, and nothing else came to harm.
	e.check("base", checkBase()...)
	e.image("next", "base", func(at *place) error { return os.WriteFile(at.path("some"), noiseBytes(500_000), 0o644) })
	e.check("next", checkBase()...)
}

func newSmallEnv(e *env) *env {
	e.Helper()
	return newEnv(e.T, e.s, func(t testing.TB) string { return e.s.SmallBase(t) })
}

// caseMountsBelow mounts in a container: volumes are no part of it.
func caseMountsBelow(e *env) {
	e.image("base", "", dir("vol/inner", 0o755), file("vol/hidden", "h", 0o644), file("resolv", "r", 0o644), dir("proc",
		0o755))
	e.writable("c", "base")
	at := &place{root: e.get("c"), layer: 1}
	e.must(unix.Mount("tmpfs", at.path("vol"), "tmpfs", 0, "mode=700"))
	e.must(os.WriteFile(at.path("vol/secret"), []byte("s"), 0o644))
	e.must(os.WriteFile(filepath.Join(e.base, "other"), []byte("bound"), 0o644))
	e.must(unix.Mount(filepath.Join(e.base, "other"), at.path("resolv"), "", unix.MS_BIND, ""))
	e.must(at.do([]step{file("mine", "m", 0o644), chmod("proc", 0o555)}))
	e.wantChanges("c", "base", "A /mine", "C /proc")
	e.must(e.d.Create(ctx(), "made", "base", nil))
	e.copyDiff("c", "base", "made")
	e.check("made", holds("vol/hidden", "h"), holds("resolv", "r"), absent("vol/secret"), holds("mine", "m"))
	// All of the container, what is hidden included.
	e.must(e.d.Create(ctx(), "flat", "", nil))
	e.copyDiff("c", "", "flat")
	e.check("flat", holds("vol/hidden", "h"), holds("resolv", "r"), absent("vol/secret"), holds("mine", "m"))
	e.must(unix.Unmount(at.path("resolv"), 0))
	e.must(unix.Unmount(at.path("vol"), 0))
	e.put("c")
}

// caseBigFile has a sparse file whose size no 32 bits hold; in the long form a dense one, too.
func caseBigFile(e *env) {
	const size = 5 << 30
	if !Long() {
		e.image("base", "", sparse("s", 64<<20))
		e.check("base", func(at *place) error { return checkSparse(at.path("s"), 64<<20) })
		return
	}
	e.image("base", "", sparse("s", size))
	e.check("base", func(at *place) error { return checkSparse(at.path("s"), size) })
	e.must(e.d.Create(ctx(), "dense", "", nil))
	_, err := drivers.DifferOf(e.d).ApplyDiff(ctx(), "dense", archive(e.T, member{name: "big", size: size}), nil)
	e.must(err)
	e.check("dense", func(at *place) error {
		f, err := os.Open(at.path("big"))
		if err != nil {
			return err
		}
		defer f.Close()
		return equalStreams(f, io.LimitReader(&noise{state: 1}, size))
	})
}

func checkSparse(path string, size int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 6)
	if _, err := f.ReadAt(b, size/2); err != nil || string(b) != "middle" {
		return fmt.Errorf("%s has %q in the middle: %w", path, b, err)
	}
	if fi, err := f.Stat(); err != nil || fi.Size() != size {
		return fmt.Errorf("%s has %d bytes, want %d: %w", path, fi.Size(), size, err)
	}
	return nil
}

func equalStreams(a, b io.Reader) error {
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; {
		n, err := io.ReadFull(a, x)
		m, err2 := io.ReadFull(b, y)
		if n != m || !bytes.Equal(x[:n], y[:m]) {
			return fmt.Errorf("differs between %d and %d", off, off+int64(max(n, m)))
		}
		if err := errors.Join(err, err2); err != nil {
			return ignoreEnd(err)
		}
		off += int64(n)
	}
}

// ignoreEnd is nil for the end of a stream.
func ignoreEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}
