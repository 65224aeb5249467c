package snapshotter

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"plyfs/drivers"
	"plyfs/drivers/overlay2"
	"plyfs/drivers/plyfs"
	"plyfs/internal/testenv"
)

// onDisk returns a directory on the disk, whose syncs cost what they cost.
func onDisk(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp(filepath.Dir(os.TempDir()), "snapshotter-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// imageDepth is how many layers are made over each other.
const imageDepth = 41

// unpackKeys makes the snapshots that containerd makes to unpack an image, and removes them.
func unpackKeys(b *testing.B, s snapshots.Snapshotter) {
	ctx := context.Background()
	for i := 0; b.Loop(); i++ {
		parent := ""
		for l := range imageDepth {
			key := fmt.Sprintf("ns/%d/extract-%d", l, l)
			if _, err := s.Prepare(ctx, key, parent); err != nil {
				b.Fatal(err)
			}
			parent = fmt.Sprintf("ns/%d/sha-%d-%d", l, i, l)
			if err := s.Commit(ctx, parent, key); err != nil {
				b.Fatal(err)
			}
		}
		b.StopTimer()
		for l := imageDepth - 1; l >= 0; l-- {
			if err := s.Remove(ctx, fmt.Sprintf("ns/%d/sha-%d-%d", l, i, l)); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
	}
}

// BenchmarkUnpackKeys compares the bookkeeping of an image's layers with that of containerd's overlayfs snapshotter.
func BenchmarkUnpackKeys(b *testing.B) {
	b.Run("overlayfs", func(b *testing.B) {
		s, err := overlay.NewSnapshotter(onDisk(b))
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		unpackKeys(b, s)
	})
	for _, f := range []struct {
		name string
		open func(root string) (*Snapshotter, error)
	}{
		{"plyfs", func(root string) (*Snapshotter, error) {
			return openAt(context.Background(), root, plyfs.Factory(), map[string]string{"mount_program": testenv.Binary(b)})
		}},
		{"overlay2", func(root string) (*Snapshotter, error) {
			return openAt(context.Background(), root, overlay2.Factory(), nil)
		}},
	} {
		b.Run(f.name, func(b *testing.B) {
			s, err := f.open(onDisk(b))
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			unpackKeys(b, s)
		})
	}
}

const (
	benchFiles   = 100_000
	benchChanges = 100
)

// manyFiles is a layer of small files in many directories.
func manyFiles(b *testing.B, files int) []byte {
	b.Helper()
	var t bytes.Buffer
	w := tar.NewWriter(&t)
	for i := range files {
		if i%100 == 0 {
			if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("d%d/", i/100), Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
				b.Fatal(err)
			}
		}
		name := fmt.Sprintf("d%d/f%d", i/100, i)
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(name))}); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write([]byte(name)); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return t.Bytes()
}

// BenchmarkDiffer compares the making of a layer of 100 changed files in 100,000 with containerd's way, and the unpacking of a layer.
func BenchmarkDiffer(b *testing.B) {
	b.Setenv("PATH", filepath.Dir(testenv.Binary(b))+":"+os.Getenv("PATH"))
	blob := manyFiles(b, benchFiles)
	for _, driver := range []drivers.Factory{plyfs.Factory(), overlay2.Factory()} {
		options := map[string]string{}
		if driver.Name == plyfs.Name {
			options["mount_program"] = testenv.Binary(b)
		}
		w := newWorkbench(b, testenv.Scratch(b), driver, options)
		ctx := w.context(b)
		d := w.put(b, ocispec.MediaTypeImageLayer, blob)
		for name, apply := range map[string]diff.Applier{"plyfs": w.differ, "containerd": w.differ.mounted} {
			b.Run(driver.Name+"/apply/"+name, func(b *testing.B) {
				for i := 0; b.Loop(); i++ {
					key := fmt.Sprintf("extract-%s-%d", name, i)
					mounts := w.prepare(b, key, "")
					if _, err := apply.Apply(ctx, d, mounts); err != nil {
						b.Fatal(err)
					}
					b.StopTimer()
					if err := w.Remove(ctx, key); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
			})
		}
		w.extract(b, "base", "", d)
		box := w.prepare(b, "box", "base")
		w.at(b, box, func(root string) {
			for i := range benchChanges {
				if err := os.WriteFile(filepath.Join(root, fmt.Sprintf("d%d/f%d", i, i*100)), []byte("changed"), 0o644); err != nil {
					b.Fatal(err)
				}
			}
		})
		lower, err := w.View(ctx, "view", "base")
		if err != nil {
			b.Fatal(err)
		}
		for name, compare := range map[string]diff.Comparer{"plyfs": w.differ, "containerd": w.differ.walking} {
			b.Run(driver.Name+"/diff/"+name, func(b *testing.B) {
				for b.Loop() {
					if _, err := compare.Compare(ctx, lower, box); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
