package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/e2e/listing"
	"plyfs/internal/testenv"
)

// TestNesting stacks union file systems on each other, as containers within containers do, and works in the innermost.
func TestNesting(t *testing.T) {
	p := newProgram(t, "/")
	ours := func(t *testing.T, s stack) {
		p.mount(t, "lowerdir="+s.lower+",upperdir="+s.upper+",workdir="+s.work, s.merged)
	}
	kernel := func(options ...string) func(*testing.T, stack) {
		return func(t *testing.T, s stack) {
			o := testenv.Overlay{Lowers: []string{s.lower}, Upper: s.upper, Work: s.work, Options: options}
			if err := testenv.MountOverlay(o, s.merged); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if isMounted(t, s.merged) {
					testenv.Unmount(t, s.merged)
				}
			})
		}
	}
	for _, test := range []struct {
		name         string
		outer, inner func(*testing.T, stack)
	}{
		{"the kernel's overlayfs alone", nil, kernel("redirect_dir=on")},
		{"on a plain file system", nil, ours},
		{"on itself", ours, ours},
		{"on the kernel's overlayfs", kernel(), ours},
		{"under the kernel's overlayfs", ours, kernel("redirect_dir=on", "index=off")},
		{"under the kernel's overlayfs with metacopy", ours, kernel("redirect_dir=on", "metacopy=on")},
		{"under the kernel's overlayfs with userxattr", ours, kernel("userxattr")},
	} {
		t.Run(test.name, func(t *testing.T) { nest(t, test.outer, test.inner) })
	}
}

// stack is the directories of a union mount.
type stack struct{ lower, upper, work, merged string }

// newStack makes the directories below dir. The names are those of a guest, so that a mount on a mount sees them as
// ordinary files.
func newStack(t *testing.T, dir string) stack {
	t.Helper()
	s := stack{filepath.Join(dir, "lower"), filepath.Join(dir, "upper"), filepath.Join(dir, "work"), filepath.Join(dir, "merged")}
	for _, d := range []string{s.lower, s.upper, s.work, s.merged} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s stack) unmount(t *testing.T) {
	t.Helper()
	testenv.Unmount(t, s.merged)
}

func isMounted(t testing.TB, dir string) bool {
	t.Helper()
	var here, above unix.Stat_t
	if err := unix.Stat(dir, &here); errors.Is(err, unix.ENOENT) {
		return false
	} else if err := errors.Join(err, unix.Stat(filepath.Dir(dir), &above)); err != nil {
		t.Fatal(err)
	}
	return here.Dev != above.Dev
}

// nest mounts inner on directories within outer, works in it, and compares with the same work on plain directories:
// while mounted, after inner is mounted again, and after both are.
func nest(t *testing.T, outer, inner func(*testing.T, stack)) {
	dir := testenv.Scratch(t)
	out := newStack(t, dir)
	home := out.merged
	if outer != nil {
		if err := os.MkdirAll(filepath.Join(out.lower, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		outer(t, out)
	}
	plain := testenv.Scratch(t)
	in := newStack(t, home)
	for _, d := range []string{plain, in.lower} {
		if err := guestTree(d); err != nil {
			t.Fatal(err)
		}
	}
	inner(t, in)
	compare := func(when string) {
		t.Helper()
		want, err := listing.Walk(plain, ".")
		if err != nil {
			t.Fatal(err)
		}
		got, err := listing.Walk(in.merged, ".")
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		checkLines(t, when, timeless(want), timeless(got))
	}
	compare("the inner mount, untouched,")
	if err := guestWork(plain); err != nil {
		t.Fatal(err)
	}
	if err := guestWork(in.merged); err != nil {
		t.Fatal(err)
	}
	compare("the inner mount")
	in.unmount(t)
	inner(t, in)
	compare("the inner mount, mounted again,")
	in.unmount(t)
	if outer == nil {
		return
	}
	out.unmount(t)
	outer(t, out)
	inner(t, in)
	compare("the inner mount, both mounted again,")
	in.unmount(t)
	out.unmount(t)
}

var (
	mtime    = regexp.MustCompile(` mtime \d+`)
	private  = regexp.MustCompile(` (user\.overlay\.|user\.fuseoverlayfs\.)\S+`)
	linkless = regexp.MustCompile(` nlink \d+`)
)

// timeless strips from a listing what may differ between two runs of the same work: times, and link counts, which the
// kernel's overlayfs does not keep without its index.
func timeless(lines []string) []string {
	var out []string
	for _, l := range lines {
		l = mtime.ReplaceAllString(l, "")
		l = linkless.ReplaceAllString(l, "")
		out = append(out, private.ReplaceAllString(l, ""))
	}
	return out
}

// guestTree fills the lower.
func guestTree(dir string) error {
	var errs []error
	for i := range 6 {
		d := filepath.Join(dir, fmt.Sprintf("d%d", i))
		errs = append(errs, os.MkdirAll(filepath.Join(d, "sub", "deep"), 0o755))
		for j := range 4 {
			content := bytes.Repeat([]byte{byte('a' + j)}, 3000*j)
			errs = append(errs, os.WriteFile(filepath.Join(d, fmt.Sprintf("f%d", j)), content, 0o644),
				os.WriteFile(filepath.Join(d, "sub", "deep", fmt.Sprintf("g%d", j)), content, 0o600))
		}
		errs = append(errs, os.Symlink("../d0/f1", filepath.Join(d, "link")))
	}
	return errors.Join(errs...)
}

// guestWork makes every kind of change that a container makes.
func guestWork(dir string) error {
	p := func(name string) string { return filepath.Join(dir, name) }
	steps := []struct {
		name string
		err  func() error
	}{
		{"unlink", func() error { return os.Remove(p("d0/f0")) }},
		{"append", func() error { return appendTo(p("d0/f1"), "tail") }},
		{"truncate", func() error { return os.Truncate(p("d0/f2"), 10) }},
		{"chmod", func() error { return os.Chmod(p("d0/f3"), 0o600) }},
		{"chown", func() error { return os.Chown(p("d0/sub"), 12, 34) }},
		{"setxattr", func() error { return unix.Setxattr(p("d0/sub/deep"), "user.x", []byte("y"), 0) }},
		{"recursive remove", func() error { return os.RemoveAll(p("d1/sub")) }},
		{"recreate", func() error { return os.Mkdir(p("d1/sub"), 0o700) }},
		{"create in it", func() error { return os.WriteFile(p("d1/sub/new"), []byte("n"), 0o644) }},
		{"rename file over file", func() error { return os.Rename(p("d1/f1"), p("d1/f2")) }},
		{"hard link", func() error { return os.Link(p("d1/f3"), p("d1/f3link")) }},
		{"write through the link", func() error { return appendTo(p("d1/f3link"), "both") }},
		{"directory to file", func() error {
			return errors.Join(os.RemoveAll(p("d2")), os.WriteFile(p("d2"), []byte("file"), 0o644))
		}},
		{"file to directory", func() error { return errors.Join(os.Remove(p("d3/f0")), os.Mkdir(p("d3/f0"), 0o755)) }},
		{"symlink", func() error { return errors.Join(os.Remove(p("d3/link")), os.Symlink("x", p("d3/link"))) }},
		{"fifo", func() error { return unix.Mkfifo(p("d3/pipe"), 0o640) }},
		{"device", func() error { return unix.Mknod(p("d3/null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) }},
		{"rename a new directory", func() error {
			return errors.Join(os.Mkdir(p("d4/new"), 0o755), os.WriteFile(p("d4/new/x"), []byte("x"), 0o600),
				os.Rename(p("d4/new"), p("d4/renamed")))
		}},
		{"move a lower directory", func() error { return moveDir(p("d5/sub"), p("d4/moved")) }},
		{"remove in the moved", func() error { return os.Remove(p("d4/moved/deep/g1")) }},
		{"temporary file", func() error { return tmpfile(p("d4"), p("d4/tmplinked")) }},
		{"large file", func() error { return os.WriteFile(p("large"), bytes.Repeat([]byte("0123456789abcdef"), 1<<16), 0o644) }},
	}
	for _, s := range steps {
		if err := s.err(); err != nil {
			return fmt.Errorf("%s in %s: %w", s.name, dir, err)
		}
	}
	return nil
}

// moveDir renames a directory, and does by hand what rename refuses with EXDEV, as mv(1) does.
func moveDir(from, to string) error {
	err := os.Rename(from, to)
	if !errors.Is(err, unix.EXDEV) {
		return err
	}
	return errors.Join(os.CopyFS(to, os.DirFS(from)), copyModes(from, to), os.RemoveAll(from))
}

// copyModes gives the copies of a tree the modes that CopyFS widened.
func copyModes(from, to string) error {
	lines, err := filepath.Glob(filepath.Join(from, "*", "*"))
	if err != nil {
		return err
	}
	for _, f := range slices.Concat(lines, []string{from, filepath.Join(from, "deep")}) {
		rel, err := filepath.Rel(from, f)
		if err != nil {
			return err
		}
		st, err := os.Lstat(f)
		if err != nil {
			return err
		}
		if err := os.Chmod(filepath.Join(to, rel), st.Mode().Perm()); err != nil {
			return err
		}
	}
	return nil
}

// tmpfile makes a file that has no name and gives it one.
func tmpfile(dir, name string) error {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte("had no name\n")); err != nil {
		return err
	}
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
}

// TestGuestMetadata makes, through a mount, the objects by which union file systems mark things, as a guest that is
// itself a union file system does. They are kept and given back, and mean nothing to the mount.
func TestGuestMetadata(t *testing.T) {
	p := newProgram(t, "/")
	s := newStack(t, testenv.Scratch(t))
	if err := guestTree(s.lower); err != nil {
		t.Fatal(err)
	}
	mount := func() { p.mount(t, "lowerdir="+s.lower+",upperdir="+s.upper+",workdir="+s.work, s.merged) }
	mount()
	in := func(name string) string { return filepath.Join(s.merged, name) }
	for name, err := range map[string]error{
		"char 0:0 as a new name":      unix.Mknod(in("d0/whiteout"), unix.S_IFCHR|0o600, 0),
		"rename with RENAME_WHITEOUT": unix.Renameat2(unix.AT_FDCWD, in("d1/f1"), unix.AT_FDCWD, in("d1/f1moved"), unix.RENAME_WHITEOUT),
		".wh. file":                   os.WriteFile(in("d2/.wh.f1"), nil, 0o600),
		".wh..wh..opq file":           os.WriteFile(in("d3/.wh..wh..opq"), nil, 0o600),
		"opaque xattr":                unix.Setxattr(in("d4"), "trusted.overlay.opaque", []byte("y"), 0),
		"user opaque xattr":           unix.Setxattr(in("d5"), "user.overlay.opaque", []byte("y"), 0),
		"redirect xattr":              unix.Setxattr(in("d4/sub"), "trusted.overlay.redirect", []byte("/d0"), 0),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	checkGuest(t, in)
	s.unmount(t)
	mount()
	checkGuest(t, in)
	if err := os.Remove(in("d0/whiteout")); err != nil {
		t.Errorf("remove a guest's whiteout: %v", err)
	}
	s.unmount(t)
}

// checkGuest looks at what TestGuestMetadata made.
func checkGuest(t *testing.T, in func(string) string) {
	t.Helper()
	for _, name := range []string{"d0/whiteout", "d1/f1"} {
		var st unix.Stat_t
		if err := unix.Lstat(in(name), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
			t.Errorf("%s: %v, mode %#o, device %d, want character device 0:0", name, err, st.Mode, st.Rdev)
		}
	}
	for dir, want := range map[string]int{"d0": 7, "d1": 7, "d2": 7, "d3": 7, "d4": 6, "d5": 6, "d4/sub": 1} {
		names, err := os.ReadDir(in(dir))
		if err != nil || len(names) != want {
			t.Errorf("%s lists %v, %v, want %d names", dir, names, err, want)
		}
	}
	for name, attr := range map[string]string{"d4": "trusted.overlay.opaque", "d5": "user.overlay.opaque"} {
		value := make([]byte, 16)
		n, err := unix.Getxattr(in(name), attr, value)
		if err != nil || string(value[:max(n, 0)]) != "y" {
			t.Errorf("%s of %s: %q, %v", attr, name, value[:max(n, 0)], err)
		}
	}
	if text, err := os.ReadFile(in("d2/f1")); err != nil || len(text) != 3000 {
		t.Errorf("d2/f1 beside a guest's whiteout for it: %d bytes, %v", len(text), err)
	}
	if text, err := os.ReadFile(in("d4/sub/deep/g1")); err != nil || len(text) != 3000 {
		t.Errorf("d4/sub/deep/g1 under a guest's redirect: %d bytes, %v", len(text), err)
	}
}
