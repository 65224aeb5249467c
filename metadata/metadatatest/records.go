// Package metadatatest makes what tests and benchmarks of stack indexes need.
package metadatatest

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/metadata"
)

// TypicalRecord is a directory as package managers leave it.
func TypicalRecord(n int) *metadata.Record {
	r := rand.New(rand.NewPCG(uint64(n), 5))
	base := metadata.Time{Sec: 1700000000, Nsec: 123456789}
	rec := &metadata.Record{Lowers: []metadata.Lower{
		{Layer: 0, Path: "usr/share/doc", Stamp: metadata.Stamp{Ino: 1 << 20, Size: 4096, Mtime: base, Ctime: base}},
		{Layer: 5, Path: "usr/share/doc", Stamp: metadata.Stamp{Ino: 1 << 21, Size: 4096, Mtime: base, Ctime: base}},
	}}
	for i := range n {
		c := metadata.Time{Sec: base.Sec + int64(i/500), Nsec: r.Uint32N(1e9)}
		m := metadata.Time{Sec: base.Sec - r.Int64N(1e8)}
		size := uint64(r.IntN(50000))
		e := metadata.Entry{
			Name: fmt.Sprintf("file-name-%d.txt", i), First: int32(r.IntN(2)), Mode: unix.S_IFREG | 0o644, Nlink: 1, Blksize: 4096,
			Ino: 1<<20 + uint64(i), Size: size, Blocks: (size + 4095) / 4096 * 8, Atime: c, Mtime: m, Ctime: c, Btime: c,
		}
		if i%20 == 0 {
			e.Mode, e.Below, e.Nlink, e.Size, e.Blocks, e.Subdirs = unix.S_IFDIR|0o755, []int32{0, 1}, 2, 4096, 8, 3
		}
		rec.Entries = append(rec.Entries, e)
	}
	return rec
}

// cpuTime is the processor time of the process; on a shared machine it says more than the clock.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// ReportCPU reports the processor time per operation since the function was called.
func ReportCPU(b *testing.B) func(ops int) {
	start := cpuTime()
	return func(ops int) { b.ReportMetric(float64((cpuTime()-start).Nanoseconds())/float64(ops), "cpu-ns/op") }
}
