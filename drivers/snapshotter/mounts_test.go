package snapshotter

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/drivers/overlay2"
	"plyfs/drivers/plyfs"
	"plyfs/internal/testenv"
)

// image makes committed snapshots base and top.
func (w *workbench) image(t *testing.T) {
	t.Helper()
	w.extract(t, "base", "", w.put(t, ocispec.MediaTypeImageLayerGzip, baseTar(t)))
	w.at(t, w.prepare(t, "make-top", "base"), func(root string) {
		if err := os.WriteFile(filepath.Join(root, "top"), []byte("top"), 0o644); err != nil {
			t.Fatal(err)
		}
	})
	if err := w.Commit(t.Context(), "top", "make-top"); err != nil {
		t.Fatal(err)
	}
}

func mustWrite(t testing.TB, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("text"), 0o644); err != nil {
		t.Error(err)
	}
}

// dockerd mounts the snapshot of a running container a second time, to commit it: with upperdir, workdir and ro.
func TestSecondMountIsReadOnly(t *testing.T) {
	w := newWorkbench(t, testenv.Scratch(t), plyfs.Factory(), installPlyfs(t))
	w.image(t)
	box := w.prepare(t, "box", "top")
	w.at(t, box, func(root string) {
		mustWrite(t, filepath.Join(root, "written"))
		again := slices.Clone(box)
		again[0].Options = append(slices.Clone(again[0].Options), "ro")
		w.at(t, again, func(second string) {
			if text, err := os.ReadFile(filepath.Join(second, "written")); err != nil || string(text) != "text" {
				t.Errorf("the second mount shows %q, %v", text, err)
			}
			if err := os.WriteFile(filepath.Join(second, "more"), nil, 0o644); !errors.Is(err, unix.EROFS) {
				t.Errorf("writing to the second mount: %v, want EROFS", err)
			}
		})
		mustWrite(t, filepath.Join(root, "written later"))
	})
}

// hasOption returns the value of a mount's option.
func hasOption(m mount.Mount, name string) (value string, ok bool) {
	for _, o := range m.Options {
		if v, found := strings.CutPrefix(o, name+"="); found {
			return v, true
		}
	}
	return "", false
}

// For keys by which containerd unpacks it gets mounts of which it makes none.
func TestUnpackNeedsNoMount(t *testing.T) {
	for _, f := range []drivers.Factory{plyfs.Factory(), overlay2.Factory()} {
		w := newWorkbench(t, testenv.Scratch(t), f, driverOptions(t, f))
		first := w.prepare(t, "ns/1/extract-1 sha256:abc", "")
		if first[0].Type != typeBind || !slices.Contains(first[0].Options, "rw") {
			t.Errorf("%s: the first layer is mounted as %+v", f.Name, first)
		}
		mustWrite(t, filepath.Join(first[0].Source, "a"))
		if err := w.Commit(t.Context(), "first", "ns/1/extract-1 sha256:abc"); err != nil {
			t.Fatal(err)
		}
		second := w.prepare(t, "ns/2/extract-2 sha256:abc", "first")
		upper, _ := hasOption(second[0], "upperdir")
		lower, _ := hasOption(second[0], "lowerdir")
		if _, work := hasOption(second[0], "workdir"); second[0].Type != "overlay" || upper == "" || lower == "" || work {
			t.Errorf("%s: the second layer is mounted as %+v", f.Name, second)
		}
		mustWrite(t, filepath.Join(upper, "b"))
		if err := w.Commit(t.Context(), "second", "ns/2/extract-2 sha256:abc"); err != nil {
			t.Fatal(err)
		}
		tree := w.tree(t, "second")
		if tree.Entries["a"] == nil || tree.Entries["b"] == nil {
			t.Errorf("%s: what was unpacked shows %v", f.Name, tree.Paths())
		}
		if _, ok := hasOption(w.prepare(t, "box extract-3", "second")[0], "workdir"); !ok {
			t.Errorf("%s: a container whose name holds extract- is taken for a layer", f.Name)
		}
	}
}

// driverOptions are what a driver needs here.
func driverOptions(t *testing.T, f drivers.Factory) map[string]string {
	t.Helper()
	if f.Name == plyfs.Name {
		return installPlyfs(t)
	}
	return nil
}

// Labels map owners, and bound what is written.
func TestLabels(t *testing.T) {
	w := newWorkbench(t, testenv.Scratch(t), plyfs.Factory(), installPlyfs(t))
	w.image(t)
	mapped, err := w.Prepare(t.Context(), "mapped", "top", snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotUIDMapping: "0:1000:1,1:5000:100", snapshots.LabelSnapshotGIDMapping: "0:2000:1000",
	}))
	if err != nil {
		t.Fatal(err)
	}
	w.at(t, mapped, func(root string) {
		var st syscall.Stat_t
		if err := syscall.Lstat(filepath.Join(root, "top"), &st); err != nil || st.Uid != 1000 || st.Gid != 2000 {
			t.Errorf("a file of root belongs to %d:%d, %v; want 1000:2000", st.Uid, st.Gid, err)
		}
	})
	bounded, err := w.Prepare(t.Context(), "bounded", "top", snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotMaxSize: "1048576",
	}))
	if err != nil {
		t.Fatal(err)
	}
	w.at(t, bounded, func(root string) {
		err := os.WriteFile(filepath.Join(root, "large"), make([]byte, 4<<20), 0o644)
		if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
			t.Errorf("4 MiB in a snapshot of 1 MiB: %v", err)
		}
	})
	_, err = w.Prepare(t.Context(), "bad", "top", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotMaxSize: "large"}))
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("a size that is no number: %v", err)
	}
}

// Labels that nothing can be made of leave no snapshot.
func TestBadMappingLeavesNothing(t *testing.T) {
	w := newWorkbench(t, testenv.Scratch(t), overlay2.Factory(), nil)
	w.image(t)
	for _, mapping := range []string{"0:1000", "a:b:c", "1:1000:10", "0:-1:5"} {
		_, err := w.Prepare(t.Context(), "box", "top", snapshots.WithLabels(map[string]string{
			snapshots.LabelSnapshotUIDMapping: mapping, snapshots.LabelSnapshotGIDMapping: "0:0:1",
		}))
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("mapping %q: %v", mapping, err)
		}
		if _, err := w.Stat(t.Context(), "box"); !errdefs.IsNotFound(err) {
			t.Errorf("mapping %q leaves a snapshot: %v", mapping, err)
		}
	}
}

// Errors have the classes by which containerd decides what to do.
func TestErrorClasses(t *testing.T) {
	w := newWorkbench(t, testenv.Scratch(t), overlay2.Factory(), nil)
	w.image(t)
	ctx := t.Context()
	w.prepare(t, "box", "top")
	mounts := func(key string) error { _, err := w.Mounts(ctx, key); return err }
	prepare := func(key, parent string) error { _, err := w.Prepare(ctx, key, parent); return err }
	ended, cancel := context.WithCancel(ctx)
	cancel()
	for _, c := range []struct {
		what string
		err  error
		is   func(error) bool
	}{
		{"mounts of a committed snapshot", mounts("top"), errdefs.IsFailedPrecondition},
		{"mounts of nothing", mounts("none"), errdefs.IsNotFound},
		{"a key that is taken", prepare("box", "top"), errdefs.IsAlreadyExists},
		{"no such parent", prepare("x", "none"), errdefs.IsNotFound},
		{"an active parent", prepare("x", "box"), errdefs.IsInvalidArgument},
		{"another parent at commit", w.Commit(ctx, "x", "box", snapshots.WithParent("base")), errdefs.IsInvalidArgument},
		{"commit of a committed one", w.Commit(ctx, "x", "top"), errdefs.IsFailedPrecondition},
		{"removal of a parent", w.Remove(ctx, "base"), errdefs.IsFailedPrecondition},
		{"removal of nothing", w.Remove(ctx, "none"), errdefs.IsNotFound},
		{"a filter that is none", w.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }, "=="), errdefs.IsInvalidArgument},
		{"a call that was given up", w.Remove(ended, "box"), func(err error) bool { return errors.Is(err, context.Canceled) }},
	} {
		if !c.is(c.err) {
			t.Errorf("%s: %v", c.what, c.err)
		}
	}
	if err := w.Commit(ctx, "done", "box", snapshots.WithParent("top")); err != nil {
		t.Errorf("commit with the parent that it has: %v", err)
	}
}

// A path that mount options could not hold is refused at once.
func TestRootMustStandInOptions(t *testing.T) {
	for _, name := range []string{"a,b", "a:b", "a b", `a"b`, `a\b`} {
		s, err := openAt(t.Context(), filepath.Join(testenv.Scratch(t), name), overlay2.Factory(), nil)
		if err == nil {
			s.Close()
		}
		if !errors.Is(err, drivers.ErrInvalid) {
			t.Errorf("store in %q: %v", name, err)
		}
	}
}
