package upperdiff

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/tarlayer"
	"plyfs/internal/testenv"
)

// The difference that the issue of drivers demands numbers for: 100 changed files over an image of 100,000.
const (
	imageFiles   = 100_000
	filesInDir   = 100
	changedFiles = 100
)

// benchTree makes an image on the disk's file system and changes files in it, as a mount would.
func benchTree(b *testing.B) tree {
	x := newTree(b)
	for i := range imageFiles {
		dir := filepath.Join(x.lower, fmt.Sprintf("d%d/s%d", i/filesInDir/10, i/filesInDir%10))
		if i%filesInDir == 0 {
			must(b, os.MkdirAll(dir, 0o755))
		}
		must(b, os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d", i%filesInDir)), []byte("content"), 0o644))
	}
	for i := range changedFiles {
		n := i * (imageFiles / filesInDir / changedFiles)
		x.put(x.upper, fmt.Sprintf("d%d/s%d/f0", n/10, n%10))
	}
	return x
}

// BenchmarkDiff compares Diff by the upper with Diff by two trees, of which the newer is a mount of the kernel's
// overlayfs.
func BenchmarkDiff(b *testing.B) {
	x := benchTree(b)
	b.Run("upper", func(b *testing.B) {
		start := processorTime()
		for b.Loop() {
			d, err := Open(x.layers())
			must(b, err)
			must(b, d.Write(context.Background(), io.Discard, tarlayer.WriteOptions{}))
			must(b, d.Close())
		}
		reportProcessor(b, start)
	})
	b.Run("trees", func(b *testing.B) {
		merged, older := testenv.Scratch(b), testenv.Scratch(b)
		must(b, testenv.MountOverlay(testenv.Overlay{
			Lowers: []string{x.lower, x.bottom}, Upper: x.upper, Work: x.work, Options: []string{"index=off"},
		}, merged))
		defer testenv.Unmount(b, merged)
		must(b, testenv.MountOverlay(testenv.Overlay{Lowers: []string{x.lower, x.bottom}, ReadOnly: true}, older))
		defer testenv.Unmount(b, older)
		start := processorTime()
		for b.Loop() {
			naive(b, older, merged)
		}
		reportProcessor(b, start)
	})
}

// processorTime is what this process has used so far, which other work on the machine changes less than the time that
// passes.
func processorTime() time.Duration {
	var ru unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &ru) // it fails for bad arguments alone
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func reportProcessor(b *testing.B, start time.Duration) {
	b.Helper()
	b.ReportMetric(float64((processorTime()-start).Microseconds())/float64(b.N), "cpu-µs/op")
}

func naive(b *testing.B, older, newer string) {
	o, err := layer.Open(older)
	must(b, err)
	defer o.Close()
	n, err := layer.Open(newer)
	must(b, err)
	defer n.Close()
	list, err := tarlayer.Compare(context.Background(), o, n, tarlayer.CompareOptions{})
	must(b, err)
	src := tarlayer.NewDirSource(n, tarlayer.DirOptions{})
	defer src.Close()
	must(b, tarlayer.Write(context.Background(), io.Discard, src, list, tarlayer.WriteOptions{}))
}
