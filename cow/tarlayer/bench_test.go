package tarlayer_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"plyfs/cow/layer"
	"plyfs/cow/tarlayer"
	"plyfs/internal/testenv"
)

// benchFiles is how many files the layer of the benchmarks has: a distribution's base with its packages.
const benchFiles = 30_000

// benchLayer is a layer as a distribution's packages make it: most files small, some large, few in each directory.
func benchLayer(b *testing.B) []byte {
	b.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 4<<20)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	var members []member
	dir := ""
	for i := range benchFiles {
		if i%12 == 0 {
			dir = fmt.Sprintf("usr/share/package%d", i/120)
			if i%120 == 0 {
				members = append(members, directory(dir))
			}
			dir = fmt.Sprintf("%s/part%d", dir, i/12)
			members = append(members, directory(dir))
		}
		size := r.IntN(6 << 10)
		switch {
		case i%5000 == 4999:
			size = 4 << 20
		case i%100 == 99:
			size = 128 << 10
		}
		m := file(fmt.Sprintf("%s/file%d", dir, i), string(data[:size]))
		if i%10 == 9 {
			m = symlink(fmt.Sprintf("%s/link%d", dir, i), "file1")
		}
		members = append(members, m)
	}
	return stream(b, members...)
}

// BenchmarkApply unpacks the same layer by Apply and by tar(1), on tmpfs and on the file system of the working directory.
func BenchmarkApply(b *testing.B) {
	layerBytes := benchLayer(b)
	for _, place := range []struct{ name, dir string }{{"tmpfs", testenv.Scratch(b)}, {"disk", diskDir(b)}} {
		archive := filepath.Join(place.dir, "layer.tar")
		must(b, os.WriteFile(archive, layerBytes, 0o600))
		for _, how := range []struct {
			name string
			f    func(dir string) error
		}{
			{"apply", func(dir string) error { return applyFile(b, dir, archive, tarlayer.ApplyOptions{}) }},
			{"apply-sum", func(dir string) error {
				return applyFile(b, dir, archive,
					tarlayer.ApplyOptions{Sum: true})
			}},
			{"apply-overlay", func(dir string) error {
				return applyFile(b, dir, archive, tarlayer.ApplyOptions{Whiteouts: tarlayer.WhiteoutKernel})
			}},
			{"tar", func(dir string) error { return exec.Command("tar", "-x", "-p", "-f", archive, "-C", dir).Run() }},
		} {
			b.Run(place.name+"/"+how.name, func(b *testing.B) {
				b.SetBytes(int64(len(layerBytes)))
				b.ReportAllocs()
				for i := range b.N {
					b.StopTimer()
					dir := subdir(b, place.dir, fmt.Sprint(how.name, i))
					b.StartTimer()
					must(b, how.f(dir))
					b.StopTimer()
					must(b, os.RemoveAll(dir))
					b.StartTimer()
				}
			})
		}
		must(b, os.Remove(archive))
	}
}

func applyFile(b *testing.B, dir, archive string, o tarlayer.ApplyOptions) error {
	b.Helper()
	f, err := os.Open(archive)
	must(b, err)
	defer f.Close()
	l, err := layer.Open(dir)
	must(b, err)
	defer l.Close()
	_, err = tarlayer.Apply(b.Context(), l, f, o)
	return err
}

// diskDir is a directory on the file system that holds the working directory, which is no tmpfs.
func diskDir(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp(".", ".bench")
	must(b, err)
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	abs, err := filepath.Abs(dir)
	must(b, err)
	return abs
}

func BenchmarkWriteAll(b *testing.B) {
	dir := testenv.Scratch(b)
	layerBytes := benchLayer(b)
	_, err := tarlayer.Apply(b.Context(), open(b, dir), bytes.NewReader(layerBytes), tarlayer.ApplyOptions{})
	must(b, err)
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			src := tarlayer.NewDirSource(open(b, dir), tarlayer.DirOptions{})
			must(b, tarlayer.WriteAll(b.Context(), discard{}, src, tarlayer.WriteOptions{}))
			src.Close()
		}
	})
	b.Run("tar", func(b *testing.B) {
		for b.Loop() {
			must(b, exec.Command("sh", "-c", "tar -c -C "+dir+" . | cat > /dev/null").Run())
		}
	})
	b.Run("compare", func(b *testing.B) {
		for b.Loop() {
			_, err := tarlayer.Compare(b.Context(), open(b, dir), open(b, dir), tarlayer.CompareOptions{})
			must(b, err)
		}
	})
}

// discard is io.Discard without its ReadFrom.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
