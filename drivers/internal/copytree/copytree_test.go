package copytree_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/drivers/internal/copytree"
	"plyfs/internal/fingerprint"
	"plyfs/internal/sys"
	"plyfs/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m, testenv.Options{})) }

var must = testenv.Must

func copyTree(ctx context.Context, t testing.TB, to, from string, o copytree.Options) error {
	t.Helper()
	a, err := unix.Open(from, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(a)
	b, err := unix.Open(to, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(b)
	return copytree.Copy(ctx, b, a, o)
}

// build makes a tree with everything in it.
func build(t testing.TB, root string) {
	t.Helper()
	p := func(name string) string { return filepath.Join(root, name) }
	must(t, os.MkdirAll(p("d/e/f"), 0o755), os.WriteFile(p("d/file"), []byte(strings.Repeat("x", 100_000)), 0o644),
		os.Link(p("d/file"), p("link")), os.Link(p("d/file"), p("d/e/link")), os.Symlink("d/file", p("sym")),
		os.Link(p("sym"), p("sym2")), unix.Mkfifo(p("fifo"), 0o640), unix.Mknod(p("sock"), unix.S_IFSOCK|0o700, 0),
		os.WriteFile(p("empty"), nil, 0), os.WriteFile(p("set-id"), []byte("#!"), 0o644), os.Chown(p("set-id"), 3, 4),
		unix.Chmod(p("set-id"), 0o6755), unix.Setxattr(p("set-id"), "security.capability",
			[]byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0),
		unix.Setxattr(p("d/file"), "user.x", []byte("y"), 0), os.Lchown(p("sym"), 5, 6), os.Chown(p("d/e"), 7,
			8), unix.Chmod(p("d/e"), 0o3700))
	if !testenv.InUserNamespace() {
		must(t, unix.Mknod(p("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.Setxattr(p("d"),
			"trusted.overlay.opaque", []byte("y"), 0))
	}
	acl := "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x06\x00\x07\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff" +
		"\x10\x00\x06\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff"
	must(t, unix.Setxattr(p("d"), "system.posix_acl_default", []byte(acl), 0), unix.Setxattr(p("d"),
		"system.posix_acl_access", []byte(acl), 0))
	f, err := os.Create(p("sparse"))
	must(t, err)
	_, err = f.WriteAt([]byte("data"), 3<<20)
	must(t, err, f.Truncate(8<<20), f.Close())
	old := []unix.Timespec{{Sec: 1_000_000_000, Nsec: 123_456_789}, {Sec: 1_100_000_000, Nsec: 987_654_321}}
	for _, name := range []string{"d/file", "sym", "fifo", "d/e", "d", "."} {
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, p(name), old, unix.AT_SYMLINK_NOFOLLOW))
	}
}

func same(t *testing.T, a, b string) {
	t.Helper()
	const fields = fingerprint.Default | fingerprint.Holes
	one, err := fingerprint.Take(a, fingerprint.Options{Fields: fields})
	must(t, err)
	two, err := fingerprint.Take(b, fingerprint.Options{Fields: fields})
	must(t, err)
	if d := fingerprint.Diff(one, two, fields); d != nil {
		t.Errorf("the copy differs:\n%s", fingerprint.Format(d, 20))
	}
	if len(one.Entries) < 10 {
		t.Errorf("only %d entries", len(one.Entries))
	}
}

func TestCopy(t *testing.T) {
	if !testenv.InUserNamespace() {
		defer testenv.RunInUserNamespace(t, "^TestCopy$")
	}
	testenv.CheckLeaks(t)
	from, to := testenv.Scratch(t), testenv.Scratch(t)
	build(t, from)
	must(t, copyTree(t.Context(), t, to, from, copytree.Options{}))
	same(t, from, to)
}

func TestCopyDeep(t *testing.T) {
	from, to := testenv.Scratch(t), testenv.Scratch(t)
	must(t, os.Mkdir(filepath.Join(from, "x"), 0o755))
	fd, err := unix.Open(filepath.Join(from, "x"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	name := strings.Repeat("n", 250)
	for range 60 {
		must(t, unix.Mkdirat(fd, name, 0o755), unix.Mkdirat(fd, "side", 0o711))
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		unix.Close(fd)
		fd = next
	}
	// Two names of a file, far from each other.
	f, err := unix.Openat(fd, "file", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	must(t, err)
	unix.Close(f)
	must(t, unix.Linkat(fd, "file", unix.AT_FDCWD, filepath.Join(from, "link"), 0))
	unix.Close(fd)
	must(t, copyTree(t.Context(), t, to, from, copytree.Options{}))
	same(t, from, to)
}

func TestCopySkip(t *testing.T) {
	from, to := testenv.Scratch(t), testenv.Scratch(t)
	build(t, from)
	must(t, copyTree(t.Context(), t, to, from, copytree.Options{
		Skip: func(p string) bool { return p == "d/e" || p == "fifo" },
	}))
	for name, want := range map[string]bool{"d/e": true, "d/e/f": false, "fifo": false, "d/file": true} {
		if _, err := os.Lstat(filepath.Join(to, name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A failure at any call is reported, and nothing stays open.
func TestCopyFails(t *testing.T) {
	testenv.CheckLeaks(t)
	from := testenv.Scratch(t)
	build(t, from)
	failure := errors.New("failure")
	for i := 0; ; i++ {
		n := 0
		m := &sys.Mutator{Hook: func(string) error {
			if n++; n > i {
				return failure
			}
			return nil
		}}
		err := copyTree(t.Context(), t, testenv.Scratch(t), from, copytree.Options{Mutator: m})
		if err == nil {
			if i < 30 {
				t.Errorf("only %d calls", i)
			}
			return
		}
		if !errors.Is(err, failure) {
			t.Fatalf("call %d: %v", i, err)
		}
	}
}

func TestCopyCancelled(t *testing.T) {
	from := testenv.Scratch(t)
	build(t, from)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := copyTree(ctx, t, testenv.Scratch(t), from, copytree.Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
