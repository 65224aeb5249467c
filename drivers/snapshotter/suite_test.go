package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"

	"plyfs/drivers"
	"plyfs/drivers/btrfs"
	"plyfs/drivers/overlay2"
	"plyfs/drivers/plyfs"
	"plyfs/drivers/vfs"
	"plyfs/internal/testenv"
	"plyfs/layerdb"
)

// openAt opens a snapshotter on a store of the driver.
func openAt(ctx context.Context, root string, f drivers.Factory, options map[string]string) (*Snapshotter, error) {
	return openWith(ctx, root, f, options, Options{})
}

func openWith(ctx context.Context, root string, f drivers.Factory, options map[string]string, o Options) (*Snapshotter, error) {
	store, err := layerdb.Open(ctx, layerdb.Options{
		Root: root, Driver: f.Name, Registry: drivers.NewRegistry(f), DriverOptions: options,
	})
	if err != nil {
		return nil, err
	}
	s, err := New(store, o)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return s, nil
}

// installPlyfs puts the binary under test where mount.fuse3 finds it.
func installPlyfs(t *testing.T) map[string]string {
	t.Helper()
	if _, err := os.Stat("/sbin/mount.fuse3"); err != nil {
		t.Fatalf("package fuse3 is missing: %v", err)
	}
	t.Setenv("PATH", filepath.Dir(testenv.Binary(t))+":"+os.Getenv("PATH"))
	return map[string]string{"mount_program": testenv.Binary(t)}
}

// suite runs containerd's tests of snapshotters, each on a store of its own beneath base.
func suite(t *testing.T, name, base string, f drivers.Factory, options map[string]string) {
	suiteWith(t, name, base, f, options, Options{})
}

func suiteWith(t *testing.T, name, base string, f drivers.Factory, options map[string]string, o Options) {
	t.Setenv("TMPDIR", base)
	testsuite.SnapshotterSuite(t, name, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := openWith(ctx, root, f, options, o)
		if err != nil {
			return nil, nil, err
		}
		return asker{s}, func() error {
			if err := s.Close(); err != nil {
				return err
			}
			return checkStore(ctx, root, f, options)
		}, nil
	})
}

// asker asks for the mounts of what it prepares, as containerd does before it starts a container.
type asker struct{ *Snapshotter }

func (s asker) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	if m, err := s.Snapshotter.Prepare(ctx, key, parent, opts...); err != nil {
		return m, err
	}
	m, err := s.Mounts(ctx, key)
	if err == nil && s.opt.Served && m[0].Type != typeBind {
		err = errors.New("a snapshot is not served")
	}
	return m, err
}

// checkStore opens the store that a test leaves, has it checked, and removes what may be mounted.
func checkStore(ctx context.Context, root string, f drivers.Factory, options map[string]string) error {
	s, err := openAt(ctx, root, f, options)
	if err != nil {
		return err
	}
	defer s.Close()
	rep, err := s.store.Check(ctx, layerdb.CheckOptions{})
	for _, p := range rep.Problems {
		err = errors.Join(err, errors.New(p.Kind+" "+p.Object+": "+p.Detail))
	}
	err = errors.Join(err, s.Walk(ctx, func(ctx context.Context, i snapshots.Info) error {
		return s.Remove(ctx, i.Name)
	}, "kind==active"), s.Cleanup(ctx))
	if r, ok := s.store.Driver().(drivers.Referrer); ok && len(r.References()) > 0 {
		err = errors.Join(err, fmt.Errorf("mounted in the end: %v", r.References()))
	}
	return err
}

func TestSuitePlyfs(t *testing.T) {
	suite(t, "plyfs", testenv.Scratch(t), plyfs.Factory(), installPlyfs(t))
}

// The same where the snapshotter mounts what Mounts tells of.
func TestSuiteServed(t *testing.T) {
	suiteWith(t, "plyfs", testenv.Scratch(t), plyfs.Factory(), installPlyfs(t), Options{Served: true})
}

// The suite leaves the renaming of a directory of a lower layer out for snapshotters of this name, which the kernel refuses.
func TestSuiteOverlay2(t *testing.T) {
	suite(t, "overlayfs", testenv.Scratch(t), overlay2.Factory(), nil)
}

func TestSuiteVFS(t *testing.T) { suite(t, "vfs", testenv.Scratch(t), vfs.Factory(), nil) }

func TestSuiteBtrfs(t *testing.T) {
	suite(t, "btrfs", testenv.Btrfs(t, 1<<30), btrfs.Factory(), nil)
}

// TestSuiteInUserNamespace leaves out the case of 128 layers, which takes half of all the time, unless PLYFS_LONG is set.
func TestSuiteInUserNamespace(t *testing.T) {
	pattern := "^(TestSuitePlyfs|TestSuiteServed|TestSuiteOverlay2|TestSuiteVFS)$"
	if os.Getenv("PLYFS_LONG") == "" {
		pattern += "/^[^1]"
	}
	testenv.RunInUserNamespace(t, pattern)
}
