package plyfs

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/drivers/overlay2"
	"plyfs/internal/testenv"
)

// BenchmarkGetPut mounts and unmounts a container of 64 layers, beside the kernel's overlayfs, on the disk's file
// system.
func BenchmarkGetPut(b *testing.B) {
	const layers = 64
	for _, f := range []drivers.Factory{Factory(), overlay2.Factory()} {
		b.Run(f.Name, func(b *testing.B) {
			base := testenv.Ext4(b, 1<<30)
			o := drivers.Options{Home: filepath.Join(base, "home"), Run: filepath.Join(base, "run")}
			if f.Name == Name {
				o.Options = map[string]string{"mount_program": testenv.Binary(b)}
			}
			d, err := f.Open(b.Context(), o)
			must(b, err)
			defer func() { must(b, d.Close()) }()
			parent := ""
			for i := range layers {
				id := fmt.Sprintf("layer-%d", i)
				must(b, d.Create(b.Context(), id, parent, nil))
				parent = id
			}
			must(b, d.CreateReadWrite(b.Context(), "c", parent, nil))
			start := processorTime()
			for b.Loop() {
				_, err := d.Get(b.Context(), "c", nil)
				must(b, err)
				must(b, d.Put(b.Context(), "c"))
			}
			b.ReportMetric(float64((processorTime()-start).Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}

// processorTime is what this process and the servers that ended have used, which other work on the machine changes less
// than the time that passes.
func processorTime() (sum time.Duration) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var ru unix.Rusage
		_ = unix.Getrusage(who, &ru) // it fails for bad arguments alone
		sum += time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	}
	return sum
}
