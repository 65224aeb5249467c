package overlay2

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/fingerprint"
	"plyfs/internal/testenv"
)

var must = testenv.Must

func wants(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func newDriver(t *testing.T, base string, opts map[string]string) *Driver {
	t.Helper()
	d, err := Open(t.Context(), drivers.Options{
		Home: filepath.Join(base, "home"), Run: filepath.Join(base, "run"), Options: opts,
	})
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	must(t, d.Cleanup(t.Context()))
	return d
}

// mobyStore lays a store out as dockerd does: an image of two layers, a container's init layer, and the container.
func mobyStore(t *testing.T, home string) {
	t.Helper()
	write := func(path, content string) {
		t.Helper()
		p := filepath.Join(home, path)
		must(t, os.MkdirAll(filepath.Dir(p), 0o755))
		must(t, os.WriteFile(p, []byte(content), 0o644))
	}
	must(t, os.MkdirAll(filepath.Join(home, "l"), 0o710))
	var below []string
	for i, l := range []struct {
		id        string
		files     []string
		committed bool
	}{
		{"b0" + strings.Repeat("0", 62), []string{"etc/passwd", "etc/shadow"}, true},
		{"a1" + strings.Repeat("1", 62), []string{"bin/sh"}, true},
		{"c2" + strings.Repeat("2", 62) + "-init", []string{"etc/hosts"}, true},
		{"c2" + strings.Repeat("2", 62), []string{"new"}, false},
	} {
		link := strings.Repeat(string(rune('A'+i)), 26)
		for _, f := range l.files {
			write(l.id+"/diff/"+f, f)
		}
		write(l.id+"/link", link)
		must(t, os.Symlink("../"+l.id+"/diff", filepath.Join(home, "l", link)))
		if len(below) > 0 {
			write(l.id+"/lower", strings.Join(below, ":"))
			must(t, os.Mkdir(filepath.Join(home, l.id, "work"), 0o700))
		}
		if l.committed {
			write(l.id+"/committed", "")
		}
		below = append([]string{"l/" + link}, below...)
	}
	must(t, os.MkdirAll(filepath.Join(home, "c2"+strings.Repeat("2", 62), "diff/etc"), 0o755))
	must(t, unix.Mknod(filepath.Join(home, "c2"+strings.Repeat("2", 62), "diff/etc/shadow"), unix.S_IFCHR, 0))
}

// TestMobyStore reads what dockerd left, and changes nothing of it.
func TestMobyStore(t *testing.T) {
	base := testenv.Scratch(t)
	home := filepath.Join(base, "home")
	mobyStore(t, home)
	before, err := fingerprint.Take(home, fingerprint.Options{})
	must(t, err)
	d := newDriver(t, base, map[string]string{"read_only": "true"})
	parents := make(map[string]string)
	must(t, d.List(t.Context(), func(i drivers.Info) error {
		parents[i.ID[:2]+i.ID[64:]] = i.Parent
		if i.Writable {
			t.Errorf("layer %s is writable", i.ID)
		}
		return nil
	}))
	image, container := "a1"+strings.Repeat("1", 62), "c2"+strings.Repeat("2", 62)
	if len(parents) != 4 || parents["b0"] != "" || parents["a1"][:2] != "b0" || parents["c2-init"] != image || parents["c2"] != container+"-init" {
		t.Errorf("parents %q", parents)
	}
	root, err := d.Get(t.Context(), container, nil)
	must(t, err)
	for _, f := range []string{"etc/passwd", "bin/sh", "etc/hosts", "new"} {
		if b, err := os.ReadFile(filepath.Join(root, f)); err != nil || string(b) != f {
			t.Errorf("%s: %q, %v", f, b, err)
		}
	}
	wants(t, "write", os.WriteFile(filepath.Join(root, "x"), nil, 0o644), unix.EROFS)
	must(t, d.Put(t.Context(), container))
	changes, err := d.Changes(t.Context(), container, image)
	must(t, err)
	if got := fmt.Sprint(changes); got != "[C /etc A /etc/hosts D /etc/shadow A /new]" {
		t.Errorf("changes of the container against the image: %s", got)
	}
	wants(t, "Create", d.Create(t.Context(), "x", image, nil), drivers.ErrNotSupported)
	wants(t, "Remove", d.Remove(t.Context(), container), drivers.ErrNotSupported)
	after, err := fingerprint.Take(home, fingerprint.Options{})
	must(t, err)
	if diff := fingerprint.Diff(before, after, 0); len(diff) > 0 {
		t.Errorf("the store was changed:\n%s", fingerprint.Format(diff, 10))
	}
}

func TestVolatile(t *testing.T) {
	base := testenv.Scratch(t)
	d := newDriver(t, base, map[string]string{"volatile": "true"})
	must(t, d.CreateReadWrite(t.Context(), "c", "", nil))
	mark := filepath.Join(base, "home/c/work/work/incompat/volatile")
	for range 2 {
		root, err := d.Get(t.Context(), "c", nil)
		must(t, err)
		if _, err := os.Stat(mark); err != nil {
			t.Errorf("the mount is not volatile: %v", err)
		}
		must(t, os.WriteFile(filepath.Join(root, "f"), nil, 0o644))
		must(t, d.Put(t.Context(), "c"))
		if _, err := os.Stat(mark); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the mark is left: %v", err)
		}
	}
	// Killed while mounted, in this boot: nothing is lost.
	must(t, os.MkdirAll(mark, 0o700))
	boot := filepath.Join(base, "home/c/volatile")
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	must(t, err)
	must(t, os.WriteFile(boot, []byte(strings.TrimSpace(string(b))), 0o600))
	_, err = d.Get(t.Context(), "c", nil)
	must(t, err)
	must(t, d.Put(t.Context(), "c"))
	// In another boot: something may be.
	must(t, os.MkdirAll(mark, 0o700))
	must(t, os.WriteFile(boot, []byte("another"), 0o600))
	_, err = d.Get(t.Context(), "c", nil)
	wants(t, "Get after a crash", err, drivers.ErrDamaged)
	must(t, d.Remove(t.Context(), "c"))
}

func TestProbe(t *testing.T) {
	base := testenv.Scratch(t)
	rep := Factory().Probe(t.Context(), drivers.Options{Home: filepath.Join(base, "not/there")})
	if !rep.Usable {
		t.Errorf("not usable on tmpfs: %s; %s", rep.Why, rep.Todo)
	}
	if left, err := os.ReadDir(base); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	must(t, os.MkdirAll(filepath.Join(base, "l"), 0o755))
	must(t, os.MkdirAll(filepath.Join(base, "u"), 0o755))
	must(t, os.MkdirAll(filepath.Join(base, "w"), 0o755))
	merged := testenv.Scratch(t)
	must(t, testenv.MountOverlay(testenv.Overlay{
		Lowers: []string{filepath.Join(base, "l")}, Upper: filepath.Join(base, "u"), Work: filepath.Join(base, "w"),
	}, merged))
	defer testenv.Unmount(t, merged)
	rep = Factory().Probe(t.Context(), drivers.Options{Home: merged})
	if rep.Usable || !strings.Contains(rep.Why, "overlay") || rep.Todo == "" {
		t.Errorf("on an overlay: %+v", rep)
	}
	if left, err := os.ReadDir(merged); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	rep = Factory().Probe(t.Context(), drivers.Options{Home: base, Options: map[string]string{"no": "option"}})
	if rep.Usable || rep.Todo == "" {
		t.Errorf("with a wrong option: %+v", rep)
	}
}

// TestNoQuota: a file system without project quotas says so, and what to use.
func TestNoQuota(t *testing.T) {
	d := newDriver(t, testenv.Scratch(t), nil)
	err := d.CreateReadWrite(t.Context(), "c", "", &drivers.CreateOptions{Quota: drivers.Quota{Bytes: 1 << 20}})
	wants(t, "a quota", err, drivers.ErrNotSupported)
	if err != nil && !strings.Contains(err.Error(), "driver plyfs") {
		t.Errorf("no way out: %v", err)
	}
	if ok, err := d.Exists(t.Context(), "c"); ok || err != nil {
		t.Errorf("the layer exists: %v, %v", ok, err)
	}
}

// TestUnmountBusy: a mount in use stays, and its reference with it.
func TestUnmountBusy(t *testing.T) {
	d := newDriver(t, testenv.Scratch(t), nil)
	must(t, d.CreateReadWrite(t.Context(), "c", "", nil))
	root, err := d.Get(t.Context(), "c", nil)
	must(t, err)
	f, err := os.Create(filepath.Join(root, "f"))
	must(t, err)
	wants(t, "Put", d.Put(t.Context(), "c"), drivers.ErrInUse)
	wants(t, "Remove", d.Remove(t.Context(), "c"), drivers.ErrInUse)
	must(t, f.Close())
	must(t, d.Put(t.Context(), "c"))
	if left, err := filepath.Glob(root + "*"); err != nil || !slices.Equal(left, nil) {
		t.Errorf("the mount point is left: %v, %v", left, err)
	}
	must(t, d.Remove(t.Context(), "c"))
}
