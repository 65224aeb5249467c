package layer_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/testenv"
)

// list returns the entries of the directory behind fd by name.
func list(t testing.TB, fd int) map[string]layer.RawDirent {
	t.Helper()
	all := make(map[string]layer.RawDirent)
	err := layer.List(fd, func(e layer.RawDirent) error {
		if _, twice := all[e.Name]; twice {
			t.Errorf("%q is listed twice", e.Name)
		}
		all[e.Name] = e
		return nil
	})
	must(t, err)
	return all
}

func TestList(t *testing.T) {
	testenv.CheckLeaks(t)
	dir := testenv.Scratch(t)
	kinds := map[string]uint8{
		"file": unix.DT_REG, "dir": unix.DT_DIR, "link": unix.DT_LNK, "fifo": unix.DT_FIFO, "null": unix.DT_CHR, "disk": unix.DT_BLK,
		"socket": unix.DT_SOCK, "...": unix.DT_REG, "..a": unix.DT_REG, " ": unix.DT_REG, "a\nb": unix.DT_REG, "\xff\xfe": unix.DT_REG,
		"\x01": unix.DT_REG, ".wh.x": unix.DT_REG, strings.Repeat("n", 255): unix.DT_REG,
	}
	for name, kind := range kinds {
		p := filepath.Join(dir, name)
		switch kind {
		case unix.DT_DIR:
			must(t, unix.Mkdir(p, 0o700))
		case unix.DT_LNK:
			must(t, unix.Symlink("nowhere", p))
		case unix.DT_CHR:
			must(t, unix.Mknod(p, unix.S_IFCHR, int(unix.Mkdev(1, 3))))
		case unix.DT_BLK:
			must(t, unix.Mknod(p, unix.S_IFBLK, int(unix.Mkdev(7, 0))))
		default:
			must(t, unix.Mknod(p, uint32(kind)<<12|0o600, 0)) // cf. linux/fs.h DT_CHR and siblings: the type bits of a mode
		}
	}
	all := list(t, open(t, dir).FD())
	for name, kind := range kinds {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(dir, name), &st))
		if e := all[name]; e.Type != kind || e.Ino != st.Ino {
			t.Errorf("%q: type %d, inode %d; want %d, %d", name, e.Type, e.Ino, kind, st.Ino)
		}
	}
	if len(all) != len(kinds) {
		t.Errorf("%d entries are listed, there are %d", len(all), len(kinds))
	}
}

func TestListLarge(t *testing.T) {
	testenv.CheckLeaks(t)
	const entries, atOnce = 100_000, 4
	dir := testenv.Scratch(t)
	d, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(d)
	must(t, unix.Mknodat(d, "f", unix.S_IFREG|0o600, 0))
	for i := range entries - 1 {
		must(t, unix.Linkat(d, "f", d, fmt.Sprintf("name-%d", i), 0))
	}
	// All at once through one descriptor: no listing moves another's place.
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			n := 0
			err := layer.List(d, func(layer.RawDirent) error { n++; return nil })
			if err != nil || n != entries {
				t.Errorf("%d entries are listed, there are %d; %v", n, entries, err)
			}
		})
	}
	wg.Wait()
	if n := len(list(t, d)); n != entries {
		t.Errorf("%d names are listed, there are %d", n, entries)
	}
}

func TestListErrors(t *testing.T) {
	testenv.CheckLeaks(t)
	dir := testenv.Scratch(t)
	for _, name := range []string{"a", "b", "c"} {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	stop, calls := errors.New("stop"), 0
	l := open(t, dir)
	if err := layer.List(l.FD(), func(layer.RawDirent) error { calls++; return stop }); !errors.Is(err, stop) || calls != 1 {
		t.Errorf("after %d calls: %v", calls, err)
	}
	none := func(e layer.RawDirent) error { return fmt.Errorf("%q is listed", e.Name) }
	f, err := os.Open(filepath.Join(dir, "a"))
	must(t, err)
	defer f.Close()
	if err := layer.List(int(f.Fd()), none); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a file: %v", err)
	}
	must(t, os.Mkdir(filepath.Join(dir, "gone"), 0o700))
	gone, err := l.OpenDir("gone")
	must(t, err)
	defer unix.Close(gone)
	must(t, os.Remove(filepath.Join(dir, "gone")))
	if err := layer.List(gone, none); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a removed directory: %v", err)
	}
}

// Only its owner may list a directory without changing its access time.
func TestListOfAnother(t *testing.T) {
	dir := testenv.Scratch(t)
	must(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o600), os.Mkdir(filepath.Join(dir, "closed"), 0o711))
	l := open(t, dir)
	closed, err := l.OpenDir("closed")
	must(t, err)
	defer unix.Close(closed)
	var names []string
	must(t, testenv.RunAs(testenv.Cred{UID: 65534, GID: 65534}, func() error {
		if err := layer.List(closed, func(layer.RawDirent) error { return nil }); !errors.Is(err, unix.EACCES) {
			return fmt.Errorf("a directory that may not be read: %w", err)
		}
		return layer.List(l.FD(), func(e layer.RawDirent) error { names = append(names, e.Name); return nil })
	}))
	if len(names) != 2 {
		t.Errorf("listed %q", names)
	}
}

// An ext4 without the feature keeps no types in its directories.
func TestListUnknownTypes(t *testing.T) {
	dir := testenv.Scratch(t)
	img, mnt := filepath.Join(dir, "img"), filepath.Join(dir, "mnt")
	must(t, os.WriteFile(img, nil, 0o600), os.Truncate(img, 8<<20), os.Mkdir(mnt, 0o755))
	for _, args := range [][]string{
		{"mkfs.ext4", "-q", "-F", "-O", "^filetype,^has_journal", img}, {"mount", "-o", "loop", "-t", "ext4", img, mnt},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() { testenv.Unmount(t, mnt) })
	must(t, os.WriteFile(filepath.Join(mnt, "f"), nil, 0o600))
	l := open(t, mnt)
	if all := list(t, l.FD()); len(all) != 2 || all["f"].Type != unix.DT_UNKNOWN || all["lost+found"].Type != unix.DT_UNKNOWN {
		t.Errorf("listed %+v", all)
	}
	must(t, l.Close()) // before the unmount
}
