package indexdb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"plyfs/metadata"
	"plyfs/metadata/metadatatest"
)

// The index of the benchmarks: 10,000 directories of 100 entries.
const (
	benchDirs  = 10000
	benchNames = 100
)

func benchView(i int) string { return fmt.Sprintf("usr/share/some/package-%d/dir-%d", i/100, i) }

func buildLarge(b *testing.B, dir string) *Cache {
	b.Helper()
	c, err := OpenCache(dir, nil)
	if err != nil {
		b.Fatal(err)
	}
	w, err := c.Build(testStack(1), BuildOptions{})
	if err != nil {
		b.Fatal(err)
	}
	rec := metadatatest.TypicalRecord(benchNames)
	for i := range benchDirs {
		if err := w.Put(benchView(i), rec); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		b.Fatal(err)
	}
	return c
}

// BenchmarkBuild encodes and writes an index of 1,000,000 entries, syncing included.
func BenchmarkBuild(b *testing.B) {
	for b.Loop() {
		done := metadatatest.ReportCPU(b)
		start := time.Now()
		c := buildLarge(b, b.TempDir())
		b.ReportMetric(float64(time.Since(start).Nanoseconds())/(benchDirs*benchNames), "ns/entry")
		done(benchDirs * benchNames)
		b.ReportMetric(float64(c.outside(testStack(1).Name()).Bytes)/(benchDirs*benchNames), "B/entry")
		b.ReportMetric(float64(anonymous(b)>>10), "KiB-anon")
		c.Close()
	}
}

// anonymous is the anonymous memory of the process in bytes.
func anonymous(b *testing.B) int {
	b.Helper()
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[0] == "Anonymous:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				b.Fatal(err)
			}
			return n << 10
		}
	}
	b.Fatal("no anonymous memory is told of")
	return 0
}

func BenchmarkOpenLarge(b *testing.B) {
	c := buildLarge(b, b.TempDir())
	defer c.Close()
	done := metadatatest.ReportCPU(b)
	b.ResetTimer()
	for b.Loop() {
		x, err := c.Open(testStack(1))
		if err != nil {
			b.Fatal(err)
		}
		if d, err := x.Dir(""); d != nil || err != nil {
			b.Fatal(d, err)
		}
		if err := x.Close(); err != nil {
			b.Fatal(err)
		}
	}
	done(b.N)
}

// flat is the least that a read-only index could be: a mapped file of records behind a mapped hash table of their places.
type flat struct{ data, table []byte }

const flatSlot = 24 // hash, offset, length

func hashOf(view string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(view))
	return h.Sum64()
}

func mapFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return syscall.Mmap(int(f.Fd()), 0, int(st.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
}

func newFlat(b *testing.B, dir string) *flat {
	b.Helper()
	rec, err := metadatatest.TypicalRecord(benchNames).Encode(nil)
	if err != nil {
		b.Fatal(err)
	}
	const slots = 1 << 15
	table := make([]byte, slots*flatSlot)
	var data []byte
	for i := range benchDirs {
		h := hashOf(benchView(i))
		at := h % slots
		for binary.LittleEndian.Uint64(table[at*flatSlot+16:]) != 0 {
			at = (at + 1) % slots
		}
		binary.LittleEndian.PutUint64(table[at*flatSlot:], h)
		binary.LittleEndian.PutUint64(table[at*flatSlot+8:], uint64(len(data)))
		binary.LittleEndian.PutUint64(table[at*flatSlot+16:], uint64(len(rec)))
		data = append(data, rec...)
	}
	var f flat
	for name, part := range map[string]*[]byte{"data": &f.data, "table": &f.table} {
		content := data
		if name == "table" {
			content = table
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			b.Fatal(err)
		}
		if *part, err = mapFile(path); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = syscall.Munmap(*part) })
	}
	return &f
}

func (f *flat) get(view string) (string, error) {
	h := hashOf(view)
	slots := uint64(len(f.table) / flatSlot)
	for at := h % slots; ; at = (at + 1) % slots {
		s := f.table[at*flatSlot:]
		off, n := binary.LittleEndian.Uint64(s[8:]), binary.LittleEndian.Uint64(s[16:])
		if n == 0 {
			return "", errors.New("none")
		}
		if binary.LittleEndian.Uint64(s) == h {
			return string(f.data[off : off+n]), nil
		}
	}
}

// BenchmarkDir reads one directory of many: bytes alone, and decoded, from the database and from a flat mapped file.
func BenchmarkDir(b *testing.B) {
	dir := b.TempDir()
	c := buildLarge(b, dir)
	defer c.Close()
	x, err := c.Open(testStack(1))
	if err != nil {
		b.Fatal(err)
	}
	defer x.Close()
	f := newFlat(b, dir)
	views := make([]string, benchDirs)
	for i := range views {
		views[i] = benchView(i * 7919 % benchDirs)
	}
	for name, get := range map[string]func(string) error{
		"database/bytes": func(v string) error { _, _, err := x.get(keyDir, v); return err },
		"database/dir":   func(v string) error { _, err := x.Dir(v); return err },
		"flat/bytes":     func(v string) error { _, err := f.get(v); return err },
		"flat/dir": func(v string) error {
			s, err := f.get(v)
			if err == nil {
				_, err = metadata.DecodeDirString(s)
			}
			return err
		},
		"database/absent": func(v string) error { _, err := x.Dir(v[1:]); return err },
	} {
		b.Run(name, func(b *testing.B) {
			done := metadatatest.ReportCPU(b)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if err := get(views[i%benchDirs]); err != nil {
					b.Fatal(err)
				}
				i++
			}
			done(b.N)
		})
	}
}

// BenchmarkMemory reports what an index that is open takes, and what after 1,000 directories of it were read.
func BenchmarkMemory(b *testing.B) {
	dir := b.TempDir()
	if err := buildInChild(dir); err != nil {
		b.Fatal(err)
	}
	c, err := OpenCache(dir, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for b.Loop() {
		before := anonymous(b)
		x, err := c.Open(testStack(1))
		if err != nil {
			b.Fatal(err)
		}
		opened := anonymous(b)
		kept := make([]*metadata.Dir, 1000)
		for i := range kept {
			if kept[i], err = x.Dir(benchView(i)); err != nil || kept[i].Len() != benchNames {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64((opened-before)>>10), "KiB-open")
		b.ReportMetric(float64((anonymous(b)-opened)>>10), "KiB-1000-dirs")
		runtime.KeepAlive(kept)
		if err := x.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// buildInChild builds the large index in another process, so that its memory is not this one's.
func buildInChild(dir string) error {
	cmd := exec.Command(os.Args[0], "-test.run=^$", "-test.bench=^BenchmarkChild$", "-test.benchtime=1x")
	cmd.Env = append(os.Environ(), builderEnv+"="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// BenchmarkChild is the other process of BenchmarkMemory.
func BenchmarkChild(b *testing.B) {
	dir := os.Getenv(builderEnv)
	if dir == "" {
		b.Skip("it is started by BenchmarkMemory")
	}
	buildLarge(b, dir).Close()
}
