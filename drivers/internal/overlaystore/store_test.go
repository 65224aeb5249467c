package overlaystore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/cow/tarlayer"
	"plyfs/drivers"
	"plyfs/internal/testenv"
)

// kernelMounter mounts by the kernel, with no options of its own.
type kernelMounter struct{}

func (kernelMounter) Plan(k Stack) drivers.Mount { return KernelMount{Stack: k}.Plan() }

func (kernelMounter) Mount(_ context.Context, k Stack, target string) error {
	if k.Upper == "" {
		k.Lowers = append(k.Lowers, k.Empty)
	}
	return KernelMount{Stack: k, Options: []string{"index=off"}}.Mount(target)
}

func (kernelMounter) Flush(string) error { return nil }

func (kernelMounter) Unmount(ctx context.Context, _, target string) error {
	return Unmount(ctx, target)
}

// noQuotas has quotas nowhere.
type noQuotas struct{}

func (noQuotas) Check(drivers.Quota) error          { return drivers.ErrNotSupported }
func (noQuotas) Set(drivers.Quota, ...string) error { return drivers.ErrNotSupported }
func (noQuotas) Release(...string) error            { return nil }

func open(t testing.TB, base string) *Store {
	t.Helper()
	s, err := Open(Config{
		Name: "test", Home: filepath.Join(base, "home"), Run: filepath.Join(base, "run"),
		Mounter: kernelMounter{}, Quotas: noQuotas{}, Form: Form{Whiteouts: tarlayer.WhiteoutKernel, Names: ovl.Trusted()},
	})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

var must = testenv.Must

func wants(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// chain makes image layers, each on the one before.
func chain(t testing.TB, s *Store, ids ...string) {
	t.Helper()
	parent := ""
	for _, id := range ids {
		must(t, s.Create(t.Context(), id, parent, nil))
		parent = id
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

func ids(t testing.TB, s *Store) (list []string) {
	t.Helper()
	must(t, s.List(t.Context(), func(i drivers.Info) error {
		list = append(list, i.ID)
		return nil
	}))
	slices.Sort(list)
	return list
}

func TestLayoutIsMobys(t *testing.T) {
	base := testenv.Scratch(t)
	s := open(t, base)
	chain(t, s, "a", "b")
	must(t, s.CreateReadWrite(t.Context(), "c", "b", nil))
	home := filepath.Join(base, "home")
	links := make(map[string]string)
	for _, id := range []string{"a", "b", "c"} {
		link := read(t, filepath.Join(home, id, "link"))
		links[id] = link
		if to, err := os.Readlink(filepath.Join(home, "l", link)); err != nil || to != "../"+id+"/diff" {
			t.Errorf("link of %s leads to %q, %v", id, to, err)
		}
	}
	if got, want := read(t, filepath.Join(home, "c/lower")), "l/"+links["b"]+":l/"+links["a"]; got != want {
		t.Errorf("lower of c is %q, want %q", got, want)
	}
	if _, err := os.Stat(filepath.Join(home, "a/lower")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a layer without parent has a lower: %v", err)
	}
	for path, want := range map[string]bool{"a/work": false, "c/work": true} {
		if _, err := os.Stat(filepath.Join(home, path)); (err == nil) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestIDOfLinks: the layout has a directory of its own for links, which every id may have all the same.
func TestIDOfLinks(t *testing.T) {
	s := open(t, testenv.Scratch(t))
	all := []string{"l", "l.l", "l.l.l", "l.x", "ll", "x.l", "l.l.", "l.ll"}
	chain(t, s, all...)
	again := open(t, filepath.Dir(s.home))
	must(t, again.Cleanup(t.Context()))
	got := ids(t, again)
	slices.Sort(all)
	if !slices.Equal(got, all) {
		t.Errorf("layers %q, want %q", got, all)
	}
	root, err := again.Get(t.Context(), "l", nil)
	must(t, err)
	must(t, again.Put(t.Context(), "l"))
	if want := filepath.Join(s.home, "l.l/merged"); root != want {
		t.Errorf("mounted on %s, want %s", root, want)
	}
	for _, id := range all {
		if i := slices.Index(all, id); idOfOrFail(t, dirName(id)) != id {
			t.Errorf("%d: id %q is in %q", i, id, dirName(id))
		}
	}
}

func idOfOrFail(t *testing.T, name string) string {
	t.Helper()
	id, ok := idOf(name)
	if !ok {
		t.Errorf("%q is no layer's directory", name)
	}
	return id
}

func TestDamage(t *testing.T) {
	for name, c := range map[string]struct {
		file   string
		damage func(path string) error
	}{
		"no link":       {"b/link", os.Remove},
		"empty link":    {"b/link", func(p string) error { return os.WriteFile(p, nil, 0o600) }},
		"escaping link": {"b/link", func(p string) error { return os.WriteFile(p, []byte("../../../../../../etc/pas"), 0o600) }},
		"short lower":   {"b/lower", func(p string) error { return os.WriteFile(p, []byte("l/ABC"), 0o600) }},
		"lower outside": {"b/lower", func(p string) error { return os.WriteFile(p, []byte("/etc"), 0o600) }},
		"empty lower":   {"b/lower", func(p string) error { return os.WriteFile(p, nil, 0o600) }},
		"no lower":      {"b/lower", os.Remove},
		"many lowers": {"b/lower", func(p string) error {
			return os.WriteFile(p, []byte(strings.Repeat("l/ABCDEFGHIJKLMNOPQRSTUVWXYZ:", maxLowers)+"l/ABCDEFGHIJKLMNOPQRSTUVWXYZ"), 0o600)
		}},
		"lower of nobody": {"b/lower", func(p string) error { return os.WriteFile(p, []byte("l/ABCDEFGHIJKLMNOPQRSTUVWXYZ"), 0o600) }},
		"bad record":      {"b/layer.json", func(p string) error { return os.WriteFile(p, []byte("{"), 0o600) }},
	} {
		t.Run(name, func(t *testing.T) {
			base := testenv.Scratch(t)
			s := open(t, base)
			chain(t, s, "a", "b")
			must(t, c.damage(filepath.Join(base, "home", c.file)))
			s = open(t, base) // it opens all the same
			must(t, s.Cleanup(t.Context()))
			_, err := s.Get(t.Context(), "b", nil)
			wants(t, "Get", err, drivers.ErrDamaged)
			if name != "lower of nobody" && !strings.Contains(fmt.Sprint(err), c.file) {
				t.Errorf("the error does not name %s: %v", c.file, err)
			}
			if name != "lower of nobody" { // that is found where it is mounted
				wants(t, "Create", s.CreateReadWrite(t.Context(), "c", "b", nil), drivers.ErrDamaged)
			}
			if got := ids(t, s); !slices.Equal(got, []string{"a", "b"}) {
				t.Errorf("layers %q", got)
			}
			must(t, s.Remove(t.Context(), "b"))
			must(t, s.Remove(t.Context(), "a"))
			must(t, s.Cleanup(t.Context()))
			if left, err := os.ReadDir(filepath.Join(base, "home/l")); err != nil || len(left) > 0 {
				t.Errorf("links left: %v, %v", left, err)
			}
		})
	}
}

// TestListSlowly: what a list has to read of a damaged layer may take long, and keeps nobody from the others.
func TestListSlowly(t *testing.T) {
	base := testenv.Scratch(t)
	chain(t, open(t, base), "a", "b")
	link := filepath.Join(base, "home/b/link")
	must(t, os.WriteFile(link, []byte("no link"), 0o600))
	s := open(t, base)
	// A pipe: who reads it waits for who writes it.
	must(t, errors.Join(os.Remove(link), unix.Mkfifo(link, 0o600)))
	var listing sync.WaitGroup
	listing.Go(func() {
		err := s.List(t.Context(), func(i drivers.Info) error {
			if (i.Damaged != "") != (i.ID == "b") {
				return fmt.Errorf("layer %s is damaged: %q", i.ID, i.Damaged)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	pipe, err := os.OpenFile(link, os.O_WRONLY, 0) // it is being read
	must(t, err)
	made := make(chan error, 1)
	go func() { made <- s.Create(context.Background(), "c", "a", nil) }()
	late := time.AfterFunc(10*time.Second, func() {
		t.Error("a layer cannot be made while another is read")
		pipe.Close()
	})
	must(t, <-made)
	if late.Stop() {
		must(t, pipe.Close())
	}
	listing.Wait()
}

// TestCleanup: what a crash may have left goes, and what it may have lost is made anew.
func TestCleanup(t *testing.T) {
	base := testenv.Scratch(t)
	s := open(t, base)
	chain(t, s, "a", "b")
	home := filepath.Join(base, "home")
	link := read(t, filepath.Join(home, "a/link"))
	must(t, os.Remove(filepath.Join(home, "l", link)))
	must(t, os.Symlink("../gone/diff", filepath.Join(home, "l/ABCDEFGHIJKLMNOPQRSTUVWXYZ")))
	for _, d := range []string{".tmp-x/diff", ".removing-y/diff", "b/.unpack-z/deep", "b/merged"} {
		must(t, os.MkdirAll(filepath.Join(home, d), 0o700))
	}
	s = open(t, base)
	if got := ids(t, s); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("layers %q", got)
	}
	must(t, s.Cleanup(t.Context()))
	for _, gone := range []string{".tmp-x", ".removing-y", "b/.unpack-z", "b/merged", "l/ABCDEFGHIJKLMNOPQRSTUVWXYZ"} {
		if _, err := os.Lstat(filepath.Join(home, gone)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", gone, err)
		}
	}
	if to, err := os.Readlink(filepath.Join(home, "l", link)); err != nil || to != "../a/diff" {
		t.Errorf("the link of a leads to %q, %v", to, err)
	}
}

func TestDepth(t *testing.T) {
	base := testenv.Scratch(t)
	s := open(t, base)
	all := make([]string, maxLowers)
	for i := range all {
		all[i] = fmt.Sprintf("layer-%d", i)
	}
	chain(t, s, all...)
	top := all[len(all)-1]
	must(t, os.WriteFile(filepath.Join(base, "home", all[0], "diff/f"), []byte("deep"), 0o644))
	wants(t, "one more", s.Create(t.Context(), "more", top, nil), drivers.ErrNotSupported)
	must(t, s.CreateReadWrite(t.Context(), "c", top, nil))
	root, err := s.Get(t.Context(), "c", nil)
	must(t, err)
	if got := read(t, filepath.Join(root, "f")); got != "deep" {
		t.Errorf("the lowest layer shows %q", got)
	}
	must(t, s.Put(t.Context(), "c"))
	if got := ids(t, s); len(got) != maxLowers+1 {
		t.Errorf("%d layers", len(got))
	}
}

// TestOddHome: paths that separate options, and that are longer than fsconfig takes.
func TestOddHome(t *testing.T) {
	for name, dir := range map[string]string{
		"separators": `a:b,c\d=e "f"`,
		"long":       strings.Repeat("long", 50) + "/" + strings.Repeat("longer", 40),
	} {
		t.Run(name, func(t *testing.T) {
			base := filepath.Join(testenv.Scratch(t), dir)
			must(t, os.MkdirAll(base, 0o755))
			s := open(t, base)
			chain(t, s, "a", "b")
			must(t, os.WriteFile(filepath.Join(base, "home/a/diff/f"), []byte("f"), 0o644))
			must(t, s.CreateReadWrite(t.Context(), "c", "b", nil))
			for _, id := range []string{"a", "b", "c"} {
				root, err := s.Get(t.Context(), id, nil)
				must(t, err)
				if got := read(t, filepath.Join(root, "f")); got != "f" {
					t.Errorf("%s shows %q", id, got)
				}
				must(t, s.Put(t.Context(), id))
			}
		})
	}
}

// TestMountByPage: the way of kernels before 6.7.
func TestMountByPage(t *testing.T) {
	base := filepath.Join(testenv.Scratch(t), "a:b,c")
	must(t, os.MkdirAll(base, 0o755))
	s := open(t, base)
	chain(t, s, "a", "b")
	must(t, os.WriteFile(filepath.Join(base, "home/a/diff/f"), []byte("f"), 0o644))
	must(t, s.CreateReadWrite(t.Context(), "c", "b", nil))
	k, err := s.stack("c", drivers.GetOptions{})
	must(t, err)
	target := testenv.Scratch(t)
	must(t, KernelMount{Stack: k, Options: []string{"index=off"}}.mountByPage(target))
	if got := read(t, filepath.Join(target, "f")); got != "f" {
		t.Errorf("the mount shows %q", got)
	}
	must(t, Unmount(t.Context(), target))
	for range 200 {
		k.Lowers = append(k.Lowers, k.Lowers[0])
	}
	wants(t, "200 layers", KernelMount{Stack: k}.mountByPage(target), drivers.ErrNotSupported)
}

// TestLostRecords: a mount of which nobody knows any more is not mounted over, nor does it keep a layer from being
// removed.
func TestLostRecords(t *testing.T) {
	base := testenv.Scratch(t)
	s := open(t, base)
	must(t, s.CreateReadWrite(t.Context(), "c", "", nil))
	lose := func() *Store {
		t.Helper()
		_, err := s.Get(t.Context(), "c", nil)
		must(t, err)
		must(t, os.RemoveAll(filepath.Join(base, "run")))
		return open(t, base)
	}
	s = lose()
	root, err := s.Get(t.Context(), "c", nil)
	must(t, err)
	must(t, s.Put(t.Context(), "c"))
	if _, err := os.Lstat(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mount point is left: %v", err)
	}
	s = lose()
	wants(t, "Remove", s.Remove(t.Context(), "c"), drivers.ErrInUse)
	f, err := os.Create(filepath.Join(root, "f"))
	must(t, err)
	must(t, s.Cleanup(t.Context()))
	if !drivers.IsMountPoint(root) {
		t.Error("a mount in use is gone")
	}
	must(t, f.Close())
	must(t, s.Cleanup(t.Context()))
	must(t, s.Remove(t.Context(), "c"))
}

func TestRemoveInUse(t *testing.T) {
	s := open(t, testenv.Scratch(t))
	chain(t, s, "a", "b")
	wants(t, "Remove of a parent", s.Remove(t.Context(), "a"), drivers.ErrInUse)
	r, err := s.Diff(t.Context(), "b", "a", nil)
	must(t, err)
	wants(t, "Remove while the difference is read", s.Remove(t.Context(), "b"), drivers.ErrInUse)
	must(t, r.Close())
	must(t, s.Remove(t.Context(), "b"))
	must(t, s.Remove(t.Context(), "a"))
}

func TestApplyTwice(t *testing.T) {
	s := open(t, testenv.Scratch(t))
	chain(t, s, "a", "b")
	must(t, os.WriteFile(filepath.Join(s.home, "a/diff/f"), []byte("f"), 0o644))
	apply := func(id string) error {
		r, err := s.Diff(t.Context(), "a", "", nil)
		must(t, err)
		_, err = s.ApplyDiff(t.Context(), id, r, nil)
		must(t, r.Close())
		return err
	}
	must(t, apply("b"))
	wants(t, "the second time", apply("b"), drivers.ErrInvalid)
	wants(t, "of a parent", apply("a"), drivers.ErrInUse)
	must(t, s.CreateReadWrite(t.Context(), "c", "b", nil))
	wants(t, "of a writable layer", apply("c"), drivers.ErrInvalid)
	if left, err := filepath.Glob(filepath.Join(s.home, "*", unpackPrefix+"*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
