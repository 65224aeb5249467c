package layerdb

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"

	"plyfs/drivers"
	"plyfs/drivers/overlay2"
	"plyfs/drivers/vfs"
	"plyfs/internal/testenv"
)

// manyFiles is a stream of n files of 2 KiB on average, in directories of a hundred.
func manyFiles(b *testing.B, n int) []byte {
	b.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	content := bytes.Repeat([]byte("some content of a file\n"), 178)
	for i := range n {
		if i%100 == 0 {
			if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("d%d/", i/100), Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
				b.Fatal(err)
			}
		}
		h := &tar.Header{Name: fmt.Sprintf("d%d/f%d", i/100, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(i * 37 % len(content))}
		if err := w.WriteHeader(h); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(content[:h.Size]); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return buf.Bytes()
}

func openBench(b *testing.B, f drivers.Factory) *Store {
	b.Helper()
	o := optionsAt(filepath.Join(testenv.Scratch(b), "store"))
	o.Registry = drivers.NewRegistry(f)
	s, err := Open(context.Background(), o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { closeStore(b, s) })
	return s
}

// BenchmarkRegister is a layer of 30,000 files: hashed, split, unpacked and published; beside tar -x of the same stream. All is
// on tmpfs, so that it is the processor's time that is compared, not the disk's of the moment.
func BenchmarkRegister(b *testing.B) {
	ctx := context.Background()
	layer := manyFiles(b, 30000)
	for _, f := range []drivers.Factory{vfs.Factory(), overlay2.Factory()} {
		b.Run(f.Name, func(b *testing.B) {
			s := openBench(b, f)
			for b.Loop() {
				register(b, s, "", layer, RegisterOptions{Hold: &Holder{Kind: "test", Key: "it"}})
				b.StopTimer()
				if err := s.Release(ctx, Ref{"test", "it"}); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
	b.Run("tar -x", func(b *testing.B) {
		for b.Loop() {
			cmd := exec.Command("tar", "-xC", testenv.Scratch(b))
			cmd.Stdin = bytes.NewReader(layer)
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}
	})
}

// BenchmarkCommit is a commit of ten changed files over images of different sizes.
func BenchmarkCommit(b *testing.B) {
	ctx := context.Background()
	for _, files := range []int{100, 30000} {
		b.Run(fmt.Sprintf("%d files below", files), func(b *testing.B) {
			s := openBench(b, overlay2.Factory())
			l := register(b, s, "", manyFiles(b, files), RegisterOptions{Hold: &Holder{Kind: "test", Key: "base"}})
			if _, err := s.CreateContainer(ctx, "c", l.ID, ContainerOptions{}); err != nil {
				b.Fatal(err)
			}
			root, err := s.Mount(ctx, "c", MountOptions{})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Unmount(ctx, "c")
			n := 0
			for b.Loop() {
				b.StopTimer()
				for i := range 10 {
					writeTo(b, filepath.Join(root, fmt.Sprintf("d0/f%d", i)), fmt.Sprint("changed ", n))
				}
				n++
				b.StartTimer()
				if _, err := s.Commit(ctx, "c", RegisterOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
