package vfs_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/drivers/vfs"
	"plyfs/internal/testenv"
)

var must = testenv.Must

func options(base string) drivers.Options {
	return drivers.Options{Home: filepath.Join(base, "home"), Run: filepath.Join(base, "run")}
}

func open(t *testing.T, base string) drivers.Driver {
	t.Helper()
	d, err := vfs.Factory().Open(t.Context(), options(base))
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

// A layer whose record is missing or torn is reported by name, and can be removed.
func TestDamagedRecord(t *testing.T) {
	base := testenv.Scratch(t)
	d := open(t, base)
	must(t, d.Create(t.Context(), "torn", "", nil))
	path := filepath.Join(base, "home", "torn", "layer.json")
	for _, damage := range []func() error{
		func() error { return os.WriteFile(path, []byte(`{"parent":`), 0o600) },
		func() error { return os.Remove(path) },
	} {
		must(t, damage())
		var damaged string
		err := d.List(t.Context(), func(i drivers.Info) error {
			damaged = i.Damaged
			return nil
		})
		if err != nil || !strings.Contains(damaged, path) {
			t.Errorf("listed as %q, %v", damaged, err)
		}
		if _, err := d.Metadata(t.Context(), "torn"); !errors.Is(err, drivers.ErrDamaged) {
			t.Errorf("metadata: %v", err)
		}
	}
	must(t, d.Remove(t.Context(), "torn"), d.List(t.Context(), func(drivers.Info) error { return nil }))
}

// A layer that was being unpacked when the process died is not listed, and goes with the next Cleanup; one that is
// being unpacked stays.
func TestFilling(t *testing.T) {
	base := testenv.Scratch(t)
	d := open(t, base)
	must(t, d.Create(t.Context(), "dead", "", nil), d.Create(t.Context(), "alive", "", nil),
		os.WriteFile(filepath.Join(base, "home", "dead", "filling"), nil, 0o600))
	must(t, d.List(t.Context(), func(i drivers.Info) error {
		if i.ID == "dead" {
			t.Error("half a layer is listed")
		}
		return nil
	}))
	cleaned := make(chan error)
	must(t, d.(drivers.Filler).Fill(t.Context(), "alive", func(root string) error {
		go func() { cleaned <- d.Cleanup(context.Background()) }()
		return os.WriteFile(filepath.Join(root, "f"), nil, 0o644)
	}))
	must(t, <-cleaned)
	for id, want := range map[string]bool{"dead": false, "alive": true} {
		if ok, err := d.Exists(t.Context(), id); err != nil || ok != want {
			t.Errorf("%s exists: %v, %v", id, ok, err)
		}
	}
	if err := d.(drivers.Filler).Fill(t.Context(), "none", nil); !errors.Is(err, drivers.ErrNotFound) {
		t.Error(err)
	}
	must(t, d.CreateReadWrite(t.Context(), "c", "alive", nil))
	if _, err := drivers.DifferOf(d).ApplyDiff(t.Context(), "c", strings.NewReader(""), nil); !errors.Is(err,
		drivers.ErrInvalid) {
		t.Errorf("unpacked into a container: %v", err)
	}
}

// Copies share data where the file system can, whole trees of them.
func TestSharesData(t *testing.T) {
	base := testenv.Btrfs(t, 256<<20)
	d := open(t, base)
	must(t, d.Create(t.Context(), "base", "", nil))
	const size = 32 << 20
	must(t, d.(drivers.Filler).Fill(t.Context(), "base", func(root string) error {
		return os.WriteFile(filepath.Join(root, "big"), make([]byte, size), 0o644)
	}), d.Sync(t.Context(), "base"))
	before := free(t, base)
	for _, id := range []string{"a", "b", "c", "d", "e", "f"} {
		must(t, d.CreateReadWrite(t.Context(), id, "base", nil))
	}
	must(t, d.Sync(t.Context()))
	if used := before - free(t, base); used > size {
		t.Errorf("six copies of %d bytes took %d", size, used)
	}
	if d.(drivers.ParentCopier).CopiesParent() {
		t.Error("says that a layer takes as much space as its parent")
	}
	r := vfs.Factory().Probe(t.Context(), options(base))
	if !r.Usable || strings.Contains(r.Warning, "times its size") {
		t.Errorf("%+v", r)
	}
	if !open(t, testenv.Scratch(t)).(drivers.ParentCopier).CopiesParent() {
		t.Error("on tmpfs copies are said to share data")
	}
}

func free(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(path, &st))
	return int64(st.Bfree) * st.Bsize
}

func TestRefusesLabels(t *testing.T) {
	d := open(t, testenv.Scratch(t))
	const label = "system_u:object_r:container_file_t:s0"
	if err := d.Create(t.Context(), "l", "", &drivers.CreateOptions{MountLabel: label}); !errors.Is(err,
		drivers.ErrNotSupported) {
		t.Error(err)
	}
	must(t, d.Create(t.Context(), "l", "", nil))
	if _, err := d.Get(t.Context(), "l", &drivers.GetOptions{MountLabel: label}); !errors.Is(err,
		drivers.ErrNotSupported) {
		t.Error(err)
	}
}

// A place that cannot be written to is no place for a store.
func TestProbeUnwritable(t *testing.T) {
	dir := testenv.Scratch(t)
	must(t, os.Mkdir(filepath.Join(dir, "ro"), 0o755), unix.Mount("tmpfs", filepath.Join(dir, "ro"), "tmpfs",
		unix.MS_RDONLY, ""))
	defer testenv.Unmount(t, filepath.Join(dir, "ro"))
	if r := vfs.Factory().Probe(t.Context(), options(filepath.Join(dir, "ro"))); r.Usable || r.Todo == "" {
		t.Errorf("%+v", r)
	}
}

// Diff of a container reads it while it is bound read-only.
func TestReadOnlyBindIsGone(t *testing.T) {
	base := testenv.Scratch(t)
	d := open(t, base)
	must(t, d.CreateReadWrite(t.Context(), "c", "", nil))
	root, err := d.Get(t.Context(), "c", &drivers.GetOptions{ReadOnly: true})
	must(t, err)
	r, err := drivers.DifferOf(d).Diff(t.Context(), "c", "", nil)
	must(t, err)
	_, err = io.Copy(io.Discard, r)
	must(t, err, r.Close())
	if !drivers.IsMountPoint(root) {
		t.Error("Diff took the mount away")
	}
	must(t, d.Put(t.Context(), "c"))
	if drivers.IsMountPoint(root) {
		t.Error("still mounted")
	}
}
