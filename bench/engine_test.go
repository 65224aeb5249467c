package bench_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"plyfs/cow/layer"
	"plyfs/fs/union"
)

// dirs makes n empty directories.
func dirs(b *testing.B, n int) []string {
	b.Helper()
	base := b.TempDir()
	out := make([]string, n)
	for i := range out {
		out[i] = filepath.Join(base, strconv.Itoa(i))
		if err := os.Mkdir(out[i], 0o755); err != nil {
			b.Fatal(err)
		}
	}
	return out
}

// writeFiles makes n files of the given size, f0 and on.
func writeFiles(b *testing.B, dir string, n, size int) {
	b.Helper()
	content := make([]byte, size)
	for i := range n {
		if err := os.WriteFile(filepath.Join(dir, "f"+strconv.Itoa(i)), content, 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

func openLayer(b *testing.B, dir string) *layer.Layer {
	b.Helper()
	l, err := layer.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	return l
}

// open returns a writable union of lowers, with a fresh upper. The caller closes it.
func open(b *testing.B, lowers []string) *union.Union {
	b.Helper()
	rw := dirs(b, 2)
	o := union.Options{Upper: openLayer(b, rw[0]), Work: openLayer(b, rw[1])}
	for _, dir := range lowers {
		o.Lowers = append(o.Lowers, openLayer(b, dir))
	}
	u, err := union.New(o)
	if err != nil {
		b.Fatal(err)
	}
	return u
}

func closeUnion(b *testing.B, u *union.Union) {
	b.Helper()
	if err := u.Close(); err != nil {
		b.Error(err)
	}
}

// root is the caller of all benchmarks.
func root() *union.Caller { return &union.Caller{} }

// BenchmarkLookup looks up names that are in the lowest layer: known, when a reference is held, and forgotten.
func BenchmarkLookup(b *testing.B) {
	for _, lowers := range []int{1, 10, 100} {
		for _, mode := range []string{"known", "forgotten", "absent"} {
			b.Run(fmt.Sprintf("lowers=%d/%s", lowers, mode), func(b *testing.B) { benchLookup(b, lowers, mode) })
		}
	}
}

func benchLookup(b *testing.B, lowers int, mode string) {
	const files = 100
	layers := dirs(b, lowers)
	writeFiles(b, layers[lowers-1], files, 0)
	u := open(b, layers)
	defer closeUnion(b, u)
	names := make([]string, files)
	for i := range names {
		names[i] = "f" + strconv.Itoa(i)
		if mode == "absent" {
			names[i] = "absent" + strconv.Itoa(i)
			continue
		}
		n, _, err := u.Lookup(u.Root(), names[i])
		if err != nil {
			b.Fatal(err)
		}
		if mode == "known" {
			defer u.Forget(n, 1)
		} else {
			u.Forget(n, 1)
		}
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		n, _, err := u.Lookup(u.Root(), names[i%files])
		switch {
		case mode != "absent" && err != nil:
			b.Fatal(err)
		case mode == "absent" && err == nil && n != nil:
			b.Fatal("an absent name was found")
		case n != nil:
			u.Forget(n, 1)
		}
	}
}

// BenchmarkReadDir10k lists a directory of 10,000 entries of which 1, 10 or 100 layers have each a part.
func BenchmarkReadDir10k(b *testing.B) {
	const files = 10_000
	for _, lowers := range []int{1, 10, 100} {
		b.Run("lowers="+strconv.Itoa(lowers), func(b *testing.B) {
			layers := dirs(b, lowers)
			for i := range files {
				if err := os.WriteFile(filepath.Join(layers[i%lowers], "e"+strconv.Itoa(i)), nil, 0o644); err != nil {
					b.Fatal(err)
				}
			}
			u := open(b, layers)
			defer closeUnion(b, u)
			buf := make([]union.Dirent, 512)
			b.ReportAllocs()
			for b.Loop() {
				if got := list(b, u, buf); got != files+2 {
					b.Fatalf("%d entries, want %d", got, files+2)
				}
			}
		})
	}
}

// list counts the entries of the root.
func list(b *testing.B, u *union.Union, buf []union.Dirent) int {
	total, offset := 0, uint64(0)
	for {
		n, err := u.ReadDir(u.Root(), offset, buf)
		if err != nil {
			b.Fatal(err)
		}
		if n == 0 {
			return total
		}
		total += n
		offset = buf[n-1].Next
	}
}

// BenchmarkCopyUp writes a byte to lower files of 4 KiB and 1 MiB, and changes the mode of some (metacopy).
func BenchmarkCopyUp(b *testing.B) {
	write := func(u *union.Union, n *union.Node) error {
		_, err := u.Write(n, []byte{1}, 0, union.KeepSetID)
		return err
	}
	chmod := func(u *union.Union, n *union.Node) error {
		_, err := u.SetAttr(root(), n, &union.SetAttrIn{Valid: union.SetMode, Mode: 0o600})
		return err
	}
	for _, c := range []struct {
		name   string
		size   int
		files  int
		change func(u *union.Union, n *union.Node) error
	}{{"4K", 4 << 10, 1000, write}, {"1M", 1 << 20, 64, write}, {"metadata", 1 << 20, 64, chmod}} {
		b.Run(c.name, func(b *testing.B) {
			layers := dirs(b, 1)
			writeFiles(b, layers[0], c.files, c.size)
			var u *union.Union
			defer func() { closeUnion(b, u) }()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				// Each file can be copied up once; then a fresh union is needed.
				if i%c.files == 0 {
					b.StopTimer()
					if u != nil {
						closeUnion(b, u)
					}
					u = open(b, layers)
					b.StartTimer()
				}
				n, _, err := u.Lookup(u.Root(), "f"+strconv.Itoa(i%c.files))
				if err != nil {
					b.Fatal(err)
				}
				if err := c.change(u, n); err != nil {
					b.Fatal(err)
				}
				u.Forget(n, 1)
			}
		})
	}
}

// BenchmarkCreateUnlink creates a file, writes 4 KiB to it and removes it.
func BenchmarkCreateUnlink(b *testing.B) {
	u := open(b, dirs(b, 1))
	defer closeUnion(b, u)
	content := make([]byte, 4<<10)
	b.ReportAllocs()
	for b.Loop() {
		n, _, err := u.Create(root(), u.Root(), "new", 0o644, os.O_RDWR|os.O_CREATE|os.O_EXCL)
		if err != nil {
			b.Fatal(err)
		}
		_, werr := u.Write(n, content, 0, union.KeepSetID)
		if err := errors.Join(werr, u.Unlink(u.Root(), "new")); err != nil {
			b.Fatal(err)
		}
		u.Forget(n, 1)
	}
}
