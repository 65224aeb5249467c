package union

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
)

// openLowers opens a union without an upper.
func openLowers(t testing.TB, live bool, dirs ...string) *Union {
	t.Helper()
	var ls []*layer.Layer
	for _, d := range dirs {
		l, err := layer.Open(d)
		okT(t, err)
		ls = append(ls, l)
	}
	u, err := New(Options{Lowers: ls, Live: live})
	okT(t, err)
	t.Cleanup(func() { okT(t, u.Close()) })
	return u
}

// shown is what the root of u has, asked for by name and listed: each name with its type and inode number. Both must agree.
func shown(t testing.TB, u *Union, names []string) map[string]string {
	t.Helper()
	asked, listed := map[string]string{}, map[string]string{}
	for _, name := range names {
		n, a, err := u.Lookup(u.Root(), name)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		okT(t, err)
		u.Forget(n, 1)
		asked[name] = fmt.Sprintf("%o %d", a.Mode&unix.S_IFMT, a.Ino)
	}
	buf := make([]Dirent, 100)
	n, err := u.ReadDir(u.Root(), 0, buf)
	okT(t, err)
	for _, e := range buf[:n] {
		if e.Name == "." || e.Name == ".." {
			continue
		}
		listed[e.Name] = fmt.Sprintf("%o %d", e.Type, e.Ino)
	}
	if !maps.Equal(asked, listed) {
		t.Errorf("asked %v, listed %v", asked, listed)
	}
	return asked
}

func askForAbsent(t testing.TB, u *Union, times int) {
	t.Helper()
	for i := range times {
		if _, _, err := u.Lookup(u.Root(), fmt.Sprint("absent", i)); !errors.Is(err, unix.ENOENT) {
			t.Fatal(err)
		}
	}
}

// TestNamesOfOneLower: a table of a lower's names, made once many absent ones were asked for, shows what the lower shows.
func TestNamesOfOneLower(t *testing.T) {
	lower := t.TempDir()
	okT(t, os.WriteFile(lower+"/file", nil, 0o644))
	okT(t, os.Mkdir(lower+"/dir", 0o755))
	okT(t, os.Symlink("file", lower+"/symlink"))
	okT(t, unix.Mkfifo(lower+"/fifo", 0o644))
	okT(t, os.WriteFile(lower+"/.wh.gone", nil, 0o644))
	okT(t, os.WriteFile(lower+"/.wh.file", nil, 0o644)) // hides only what would lie below
	names := []string{"file", "dir", "symlink", "fifo", ".wh.gone", ".wh.file", "gone", "whiteout"}
	if err := unix.Mknod(lower+"/whiteout", unix.S_IFCHR, 0); err != nil && os.Getuid() == 0 {
		t.Fatal(err)
	}
	u := openLowers(t, false, lower)
	want := shown(t, u, names)
	if got := slices.Sorted(maps.Keys(want)); !slices.Equal(got, []string{"dir", "fifo", "file", "symlink"}) {
		t.Fatal(got)
	}
	askForAbsent(t, u, maxProbes)
	if u.root.dir.names == nil {
		t.Fatal("there is no table")
	}
	if got := shown(t, u, names); !maps.Equal(got, want) {
		t.Errorf("with the table %v, without %v", got, want)
	}
}

// TestNamesOfLargeLower: the table of a large directory would take more than it is worth.
func TestNamesOfLargeLower(t *testing.T) {
	lower := t.TempDir()
	var st unix.Stat_t
	for i := 0; st.Size <= smallDirs; i++ {
		okT(t, unix.Mknod(fmt.Sprintf("%s/%0200d", lower, i), unix.S_IFREG|0o644, 0))
		okT(t, unix.Stat(lower, &st))
		if i == 100_000 {
			t.Fatal("directories of the file system of TMPDIR have no size")
		}
	}
	u := openLowers(t, false, lower)
	askForAbsent(t, u, 2*maxProbes)
	if u.root.dir.names != nil {
		t.Error("there is a table")
	}
}

// TestLive: what is changed in layers while the union lives shows, however often it was looked at before.
func TestLive(t *testing.T) {
	for layers := 1; layers <= 3; layers++ {
		root := t.TempDir()
		var dirs []string
		for i := range layers {
			d := filepath.Join(root, fmt.Sprint("l", i))
			dirs = append(dirs, d)
			okT(t, os.Mkdir(d, 0o755))
			okT(t, os.WriteFile(fmt.Sprintf("%s/own%d", d, i), nil, 0o644))
		}
		u := openLowers(t, true, dirs...)
		askForAbsent(t, u, 2*maxProbes)
		lowest := dirs[layers-1]
		names := []string{"new", "dir"}
		for i := range layers {
			names = append(names, fmt.Sprint("own", i))
		}
		old := shown(t, u, names)
		okT(t, os.WriteFile(lowest+"/new", nil, 0o644))
		okT(t, os.Mkdir(lowest+"/dir", 0o755))
		if got := shown(t, u, names); len(got) != layers+2 {
			t.Errorf("%d layers, after additions: %v", layers, got)
		}
		okT(t, os.Remove(lowest+"/new"))
		okT(t, os.Remove(lowest+"/dir"))
		if got := shown(t, u, names); !maps.Equal(got, old) {
			t.Errorf("%d layers, after removals: %v, before %v", layers, got, old)
		}
	}
}
