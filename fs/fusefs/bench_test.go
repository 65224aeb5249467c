package fusefs

import (
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// report adds what the server spent per operation.
func (m *mounted) report(b *testing.B, f func()) {
	b.Helper()
	before := m.state()
	start := time.Now()
	b.ResetTimer()
	f()
	b.StopTimer()
	elapsed := time.Since(start)
	after := m.state()
	var requests uint64
	for name := range after.Counters {
		requests += after.Counters[name] - before.Counters[name]
	}
	n := float64(b.N)
	b.ReportMetric(float64(requests)/n, "req/op")
	if requests > 0 {
		b.ReportMetric(float64(elapsed.Nanoseconds())/float64(requests), "ns/req")
	}
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/n, "mallocs/op")
	b.ReportMetric(float64((after.CPU-before.CPU).Nanoseconds())/n, "cpu-ns/op")
}

var transports = []struct {
	name string
	t    Transport
}{{"fast", TransportFast}, {"gofuse", TransportGoFUSE}}

func eachTransport(b *testing.B, f func(b *testing.B, m *mounted)) {
	for _, tr := range transports {
		b.Run(tr.name, func(b *testing.B) {
			m := mountUnion(b, func(lower string) { writeFile(b, lower+"/file", "content") },
				func(c *serverConfig) { c.Transport = tr.t })
			f(b, m)
		})
	}
}

// BenchmarkGetattr is one request that is answered from memory.
func BenchmarkGetattr(b *testing.B) {
	eachTransport(b, func(b *testing.B, m *mounted) {
		var st unix.Statx_t
		m.report(b, func() {
			for range b.N {
				must(b, unix.Statx(unix.AT_FDCWD, m.path("file"), unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st))
			}
		})
	})
}

// BenchmarkLookupMissing looks up names that were never asked for.
func BenchmarkLookupMissing(b *testing.B) {
	eachTransport(b, func(b *testing.B, m *mounted) {
		var st unix.Stat_t
		m.report(b, func() {
			for i := range b.N {
				if err := unix.Stat(fmt.Sprintf("%s/no%d", m.Target, i), &st); err != unix.ENOENT {
					b.Fatal(err)
				}
			}
		})
	})
}

// BenchmarkOpenReadClose reads a small file that is in the page cache.
func BenchmarkOpenReadClose(b *testing.B) {
	eachTransport(b, func(b *testing.B, m *mounted) {
		buf := make([]byte, 4096)
		m.report(b, func() {
			for range b.N {
				fd, err := unix.Open(m.path("file"), unix.O_RDONLY, 0)
				must(b, err)
				_, err = unix.Read(fd, buf)
				must(b, err)
				must(b, unix.Close(fd))
			}
		})
	})
}

// BenchmarkCreateUnlink creates a file, writes 4 KiB and removes it.
func BenchmarkCreateUnlink(b *testing.B) {
	eachTransport(b, func(b *testing.B, m *mounted) {
		buf := make([]byte, 4096)
		name := m.path("new")
		m.report(b, func() {
			for range b.N {
				fd, err := unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o644)
				must(b, err)
				_, err = unix.Write(fd, buf)
				must(b, err)
				must(b, unix.Close(fd))
				must(b, unix.Unlink(name))
			}
		})
	})
}

// BenchmarkWrite4k overwrites a block of a file, one request each.
func BenchmarkWrite4k(b *testing.B) {
	eachTransport(b, func(b *testing.B, m *mounted) {
		fd, err := unix.Open(m.path("data"), unix.O_CREAT|unix.O_RDWR, 0o644)
		must(b, err)
		defer unix.Close(fd)
		buf := make([]byte, 4096)
		b.SetBytes(4096)
		m.report(b, func() {
			for i := range b.N {
				_, err = unix.Pwrite(fd, buf, int64(i%256)*4096)
				must(b, err)
			}
		})
	})
}

// BenchmarkReadCold reads 1 MiB pieces that are not in the page cache.
func BenchmarkReadCold(b *testing.B) {
	eachTransport(b, func(b *testing.B, m *mounted) {
		const size = 64 << 20
		must(b, os.WriteFile(m.path("big"), make([]byte, size), 0o644))
		fd, err := unix.Open(m.path("big"), unix.O_RDONLY, 0)
		must(b, err)
		defer unix.Close(fd)
		buf := make([]byte, 1<<20)
		b.SetBytes(1 << 20)
		m.report(b, func() {
			for i := range b.N {
				off := int64(i) << 20 % size
				if off == 0 {
					must(b, unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED))
				}
				_, err = unix.Pread(fd, buf, off)
				must(b, err)
			}
		})
	})
}

const treeDirs, treeFiles = 100, 100

func fillTree(b *testing.B, root string) {
	for d := range treeDirs {
		dir := fmt.Sprintf("%s/d%d", root, d)
		must(b, os.Mkdir(dir, 0o755))
		for f := range treeFiles {
			writeFile(b, fmt.Sprintf("%s/f%d", dir, f), "content")
		}
	}
}

// walkTree lists every directory, as find(1), and looks at every entry if stat, as ls -lR.
func walkTree(b *testing.B, root string, stat bool) {
	var st unix.Stat_t
	for d := range treeDirs {
		dir := fmt.Sprintf("%s/d%d", root, d)
		names := listDir(b, dir)
		if len(names) != treeFiles {
			b.Fatalf("%d names", len(names))
		}
		if stat {
			for _, n := range names {
				must(b, unix.Lstat(dir+"/"+n, &st))
			}
		}
	}
}

// BenchmarkWalk walks over a tree of 10,000 files that the mount has never seen, and over one that it has.
func BenchmarkWalk(b *testing.B) {
	overlay := func(b *testing.B) string {
		dir := testenv.Scratch(b)
		for _, d := range []string{"lower", "upper", "work", "merged"} {
			must(b, os.Mkdir(dir+"/"+d, 0o755))
		}
		fillTree(b, dir+"/lower")
		must(b, testenv.MountOverlay(testenv.Overlay{Lowers: []string{dir + "/lower"}, Upper: dir + "/upper", Work: dir + "/work"},
			dir+"/merged"))
		b.Cleanup(func() { testenv.Unmount(b, dir+"/merged") })
		return dir + "/merged"
	}
	ours := func(b *testing.B) string { return mountUnion(b, func(lower string) { fillTree(b, lower) }, nil).Target }
	for _, fs := range []struct {
		name  string
		mount func(*testing.B) string
	}{{"plyfs", ours}, {"overlayfs", overlay}} {
		for _, kind := range []string{"names", "stat"} {
			b.Run(fs.name+"/"+kind, func(b *testing.B) {
				root := fs.mount(b)
				var cold, warm time.Duration
				for range b.N {
					must(b, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
					start := time.Now()
					walkTree(b, root, kind == "stat")
					cold += time.Since(start)
					start = time.Now()
					walkTree(b, root, kind == "stat")
					warm += time.Since(start)
				}
				const entries = treeDirs * treeFiles
				b.ReportMetric(float64(cold.Nanoseconds())/float64(b.N*entries), "cold-ns/entry")
				b.ReportMetric(float64(warm.Nanoseconds())/float64(b.N*entries), "warm-ns/entry")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
